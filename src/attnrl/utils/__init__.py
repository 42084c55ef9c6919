"""Helpers without dependencies on other packages: atomic writes, safe YAML, statistics, plug-ins, console."""
