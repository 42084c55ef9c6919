"""Printing on a rich console: lines of text as they are, and progress bars of counted work."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


def print_line(console: Console, line: str) -> None:
    """Print ``line`` verbatim: no markup, no highlighting, and no line breaks at the console's width."""
    console.print(line, highlight=False, markup=False, soft_wrap=True)


def progress_bars(console: Console) -> Progress:
    """Return progress bars with a description, a count (``3/10``) and the estimated remaining time."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console)
