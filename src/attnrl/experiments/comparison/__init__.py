"""Comparisons of recipes at equal budgets of sampled tokens (``attnrl compare``)."""
