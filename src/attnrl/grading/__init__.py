"""Graders: rules, math-verify in worker processes, user functions."""
