"""``python -m attnrl``: the command line."""

from attnrl.cli import main

main()
