"""``python -m attnrl``: the command line."""

from attnrl.cli.app import main

main()
