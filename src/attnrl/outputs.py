"""Where a command is to write: told before the work rather than after it."""

from __future__ import annotations

import os
from pathlib import Path

from attnrl.errors import UserError


def require_writable(directory: Path, said: str) -> None:
    """Make sure that a directory is there and can be written, or can be made; nothing is made yet.

    Raises:
        UserError: it cannot; ``said`` is how the user named it.
    """
    nearest = next(path for path in (directory, *directory.absolute().parents) if path.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        raise UserError(f"{said}: {nearest} is no directory that can be written")


def require_writable_file(file: Path, said: str) -> None:
    """Make sure that a file can be written; nothing is made yet.

    Raises:
        UserError: it is a directory, or cannot be in one; ``said`` is how the user named it.
    """
    if file.is_dir():
        raise UserError(f"{said}: is a directory")
    require_writable(file.parent, said)
