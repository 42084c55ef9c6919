"""Recipes side by side (``attnrl compare``)."""
