"""Procedural tasks: problems drawn without end, and the graders of the tasks."""
