"""Comparisons that the package ships, one YAML file each (``attnrl compare``)."""
