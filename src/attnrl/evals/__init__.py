"""Evaluation of models on benchmarks (``attnrl eval``)."""
