"""Files that are whole or not there, whatever the moment a process or a machine dies."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from attnrl.errors import UserError

MANIFEST = "manifest.json"


def fsync_path(path: Path) -> None:
    """Have what was written to a file, or the names in a directory, outlive a loss of power."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write a file aside and rename it: readers see what it held before or all of ``content``, never a part."""
    aside = path.with_name(f".{path.name}.partial")
    try:
        aside.write_bytes(content.encode() if isinstance(content, str) else content)
        fsync_path(aside)
        os.replace(aside, path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    fsync_path(path.parent)


def write_manifest(directory: Path, notes: dict[str, Any]) -> None:
    """Write a directory's manifest, size and SHA-256 of every file in it, and have all of it outlive a loss of power.

    Args:
        directory: written in full, but for the manifest.
        notes: what else the manifest is to say.
    """
    files = {str(path.relative_to(directory)): path for path in sorted(directory.rglob("*")) if path.is_file()}
    entries = {name: {"size": path.stat().st_size, "sha256": sha256(path)} for name, path in files.items()}
    (directory / MANIFEST).write_text(json.dumps({**notes, "files": entries}, indent=1) + "\n", encoding="utf-8")
    for path in [*files.values(), directory / MANIFEST, *(path for path in directory.rglob("*") if path.is_dir())]:
        fsync_path(path)
    fsync_path(directory)


def read_manifest(directory: Path) -> dict[str, Any]:
    """What :func:`write_manifest` has written.

    Raises:
        ValueError: the manifest is missing or is none; it is named.
    """
    path = directory / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        files = dict(manifest["files"])
        if not all(isinstance(entry["size"], int) and isinstance(entry["sha256"], str) for entry in files.values()):
            raise TypeError("sizes and hashes expected")
    except FileNotFoundError:
        raise ValueError(f"{MANIFEST} is missing") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{MANIFEST} is not readable ({error})") from None
    return dict(manifest)


def verify_manifest(directory: Path) -> None:
    """Compare a directory with its manifest; files that the manifest does not name are no concern of it.

    Raises:
        ValueError: the manifest or a file is missing or not what it was; the first is named.
    """
    for name, entry in read_manifest(directory)["files"].items():
        path = directory / name
        if not path.is_file():
            raise ValueError(f"{name} is missing")
        size = path.stat().st_size
        if size != entry["size"]:
            raise ValueError(f"{name} has {size:,} bytes, not the {entry['size']:,} that were written")
        if sha256(path) != entry["sha256"]:
            raise ValueError(f"{name} is not what was written (its SHA-256 differs)")


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
