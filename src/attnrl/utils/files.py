"""Crash-safe files: atomic writes, fsync, manifests with SHA-256 hashes, and checks that a path is writable."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from attnrl.errors import UserError

MANIFEST = "manifest.json"
DIGEST = "digest"  # entry of a manifest: SHA-256 of all other entries


def fsync_path(path: Path) -> None:
    """Flush a file, or the entries of a directory, to disk (fsync): the content survives a power loss."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write a file atomically (temporary file, fsync, rename): readers see the old or the new content, never a part."""
    temporary = path.with_name(f".{path.name}.partial")
    try:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)
        fsync_path(temporary)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    fsync_path(path.parent)


def write_manifest(directory: Path, notes: dict[str, Any]) -> None:
    """Write the manifest of a directory, then fsync every file and directory.

    The manifest has the size and the SHA-256 of every file, the entries of ``notes``, and a digest of all entries.

    Args:
        directory: directory with all files except the manifest.
        notes: further entries of the manifest; JSON values.
    """
    files = {str(path.relative_to(directory)): path for path in sorted(directory.rglob("*")) if path.is_file()}
    entries = {name: {"size": path.stat().st_size, "sha256": sha256(path)} for name, path in files.items()}
    document = {**notes, "files": entries}
    document[DIGEST] = _digest(document)
    (directory / MANIFEST).write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    for path in [*files.values(), directory / MANIFEST, *(path for path in directory.rglob("*") if path.is_dir())]:
        fsync_path(path)
    fsync_path(directory)


def _digest(document: dict[str, Any]) -> str:
    """Return the SHA-256 of a manifest's entries, the digest left out."""
    entries = {key: value for key, value in document.items() if key != DIGEST}
    return hashlib.sha256(json.dumps(entries, sort_keys=True).encode()).hexdigest()


def read_manifest(directory: Path) -> dict[str, Any]:
    """Return the manifest written by :func:`write_manifest`.

    Manifests of version 0.1 have no digest and are accepted.

    Raises:
        ValueError: the manifest is missing, malformed, or has another digest.
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
    if manifest.get(DIGEST, _digest(manifest)) != _digest(manifest):
        raise ValueError(f"{MANIFEST} has changed (its digest differs)")
    return dict(manifest)


def verify_manifest(directory: Path) -> None:
    """Check every file of the manifest by size and SHA-256; files not in the manifest are ignored.

    Raises:
        ValueError: naming the first file that is missing or changed; or the manifest is missing or malformed.
    """
    for name, entry in read_manifest(directory)["files"].items():
        path = directory / name
        if not path.is_file():
            raise ValueError(f"{name} is missing")
        size = path.stat().st_size
        if size != entry["size"]:
            raise ValueError(f"{name} has {size:,} bytes instead of {entry['size']:,}")
        if sha256(path) != entry["sha256"]:
            raise ValueError(f"{name} has changed (the SHA-256 differs)")


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def require_writable(directory: Path, label: str) -> None:
    """Check that a directory is writable or can be created; nothing is created.

    Raises:
        UserError: the directory is not writable; the message begins with ``label``.
    """
    nearest = next(path for path in (directory, *directory.absolute().parents) if path.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        raise UserError(f"{label}: {nearest} is not a writable directory")


def require_writable_file(file: Path, label: str) -> None:
    """Check that a file can be written; nothing is created.

    Raises:
        UserError: the path is a directory, or in a directory that is not writable; the message begins with ``label``.
    """
    if file.is_dir():
        raise UserError(f"{label}: is a directory")
    require_writable(file.parent, label)
