"""Run directories, preparation, sessions."""
