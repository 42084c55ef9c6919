"""Shipped recipes: YAML files, read by :func:`attnrl.config.load.read_recipe`."""
