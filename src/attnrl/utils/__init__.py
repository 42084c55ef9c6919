"""Helpers for the whole package: atomic writes, safe YAML, statistics, plug-ins, printing."""
