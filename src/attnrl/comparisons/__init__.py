"""Shipped comparisons of recipes, as YAML files (``attnrl compare``)."""
