"""The recipes that the package ships: YAML files, read by :func:`attnrl.config.load.read_recipe`."""
