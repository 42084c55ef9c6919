"""Disruption experiment (``attnrl disrupt``): accuracy lost by hiding single steps from later tokens."""
