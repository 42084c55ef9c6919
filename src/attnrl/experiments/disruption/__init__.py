"""Hidden steps (``attnrl disrupt``)."""
