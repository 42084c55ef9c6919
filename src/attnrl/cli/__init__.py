"""The command line ``attnrl``."""
