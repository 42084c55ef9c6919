"""The console that every command prints to."""

from __future__ import annotations

from rich.console import Console

from attnrl.utils.console import print_line

console = Console()


def echo(line: str) -> None:
    """Print ``line`` verbatim to the console of the command line."""
    print_line(console, line)
