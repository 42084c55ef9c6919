"""The console that every command prints to."""

from __future__ import annotations

import io
import sys

from rich.console import Console

from attnrl.utils.console import print_line

console = Console()


def replace_unencodable() -> None:
    """Print ``?`` for every character that the terminal or pipe cannot encode, instead of UnicodeEncodeError."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def echo(line: str) -> None:
    """Print ``line`` verbatim to the console of the command line."""
    print_line(console, line)
