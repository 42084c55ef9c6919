"""Graders: rules, math-verify in worker processes, and graders of the user."""
