"""Experiments of the paper besides training: comparisons of recipes, disruption of attention, branch points."""
