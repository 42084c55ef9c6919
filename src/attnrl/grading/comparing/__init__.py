"""Comparison of an answer with a true answer, by type."""
