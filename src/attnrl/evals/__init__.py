"""Evaluation of models on benchmarks, data files and tasks (``attnrl eval``)."""
