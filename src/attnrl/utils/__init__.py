"""Files, YAML, statistics, plug-ins."""
