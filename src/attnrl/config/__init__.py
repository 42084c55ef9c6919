"""Settings of a run: schema, recipes, overrides, messages."""
