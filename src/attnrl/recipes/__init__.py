"""The recipes that the package ships: YAML files, read by :func:`attnrl.config.schema.read_recipe`."""
