"""Checks of a model directory: no pickled file is opened, and no code runs without ``trust_remote_code``.

Unpickling a file can run arbitrary code. Weights are therefore read from safetensors and all else from JSON. A
directory that would make transformers load other files is refused: an index of shards that names a pickle, an adapter
with separate weights, an attention implementation from a hub.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from safetensors import SafetensorError, safe_open

from attnrl.errors import UserError, one_line
from attnrl.local.model_config import read_config

PICKLED = frozenset({".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".dill"})
WEIGHTS, WEIGHTS_INDEX = "model.safetensors", "model.safetensors.index.json"
READ = frozenset({".safetensors", ".json", ".jinja", ".model", ".txt"})  # files of a model that are read
LFS_POINTER, LFS_SIZE = b"version https://git-lfs.github.com/spec/", 1024  # a pointer has about 130 bytes
# Only checkpoints of attnrl have both files (Hugging Face's Trainer writes trainer_state.json too, next to pickles).
OWN_FILES = ("trainer_state.json", "optimizer.safetensors")
TRUST = "trust_remote_code=true (--trust-remote-code)"


def is_pickled(path: Path) -> bool:
    """Return True for a pickled file, by suffix or by magic number (torch.save writes a zip archive of pickles)."""
    if path.suffix.lower() in PICKLED:
        return True
    if path.suffix == ".safetensors":  # starts with an arbitrary length, and is read by safetensors only
        return False
    with path.open("rb") as file:
        head = file.read(4)
    return head == b"PK\x03\x04" or (head[:1] == b"\x80" and head[1:2] in {b"\x02", b"\x03", b"\x04", b"\x05"})


def pickles(directory: Path) -> Iterator[Path]:
    """Yield the pickled files in a directory and its subdirectories, sorted by path."""
    return (path for path in sorted(directory.rglob("*")) if path.is_file() and is_pickled(path))


def refuse_pickles(directory: Path) -> None:
    """Refuse a checkpoint with a pickled file: attnrl writes no pickles, so the file has another origin.

    Raises:
        UserError: the checkpoint contains a pickled file; the message names the first.
    """
    try:
        found = next(pickles(directory), None)
    except OSError as error:
        raise UserError(f"checkpoint {directory}: {error.filename} cannot be read ({error.strerror})") from None
    if found is not None:
        raise UserError(
            f"checkpoint {directory}: {found.relative_to(directory)} is pickled, and unpickling can run anything: "
            "a checkpoint holds safetensors and JSON only"
        )


def refuse_placeholders(name: str, directory: Path) -> None:
    """Refuse files of a model that stand for a file elsewhere: pointers of git LFS, links to missing files.

    Args:
        name: the model in messages.
        directory: the model directory.

    Raises:
        UserError: naming the file and the way out.
    """
    for path in sorted(path for path in directory.iterdir() if path.suffix in READ):
        if path.is_symlink() and not path.exists():
            raise UserError(
                f"model {name}: {path.name} is a link to {path.readlink()}, which does not exist: copy the directory "
                "again, with the files that the links name (cp -rL)"
            )
        if path.is_file() and path.stat().st_size <= LFS_SIZE and path.read_bytes().startswith(LFS_POINTER):
            raise UserError(
                f"model {name}: {path.name} is a pointer of git LFS, and the file itself was not downloaded: run "
                "`git lfs pull` in the directory"
            )


def check_model_files(directory: Path, *, trust_remote_code: bool = False) -> None:
    """Refuse a model directory that would load a pickled file, or run code without ``trust_remote_code``.

    Pickles next to safetensors (``training_args.bin``, ``optimizer.pt``, ``pytorch_model.bin``) are common and are
    ignored, because no code opens the pickles. A checkpoint of attnrl must not contain any.

    Raises:
        UserError: naming the file and the reason.
    """
    config = read_config(directory)
    if all((directory / name).is_file() for name in OWN_FILES):
        refuse_pickles(directory)
    if (directory / "adapter_config.json").is_file():
        raise UserError(
            f"model {directory}: contains an adapter (adapter_config.json), not supported: merge adapter and model"
        )
    _check_weights(directory, config)
    if not trust_remote_code:
        for key, value in _implementations(config):
            raise UserError(
                f"model {directory}: config.json takes code from a hub ({key}: {value!r}), which runs only with {TRUST}"
            )


def _check_weights(directory: Path, config: dict[str, Any]) -> None:
    chosen = config.get("transformers_weights")  # transformers prefers this file to all others
    if chosen is not None and not _is_safe(chosen, (".safetensors", ".safetensors.index.json")):
        raise UserError(
            f"model {directory}: config.json names weights other than safetensors in the directory ({chosen!r})"
        )
    if chosen is None and not any((directory / name).is_file() for name in (WEIGHTS, WEIGHTS_INDEX)):
        found = next((path for path in pickles(directory) if path.parent == directory), None)
        if found is not None:
            raise UserError(
                f"model {directory}: its weights are pickled ({found.name}), and unpickling can run anything: convert "
                "them to safetensors first"
            )
    for path in sorted(directory.glob("*.safetensors.index.json")):
        shards = _read_object(path).get("weight_map")
        for shard in shards.values() if isinstance(shards, dict) else ():
            if not _is_safe(shard, (".safetensors",)):
                raise UserError(
                    f"model {directory}: {path.name} names weights other than safetensors in the directory ({shard!r})"
                )


def _is_safe(name: object, endings: tuple[str, ...]) -> bool:
    """Return True for a relative file name with one of the endings and without ``..``."""
    if not isinstance(name, str) or not name.endswith(endings):
        return False
    path = PurePosixPath(name.replace("\\", "/"))
    return not path.is_absolute() and ".." not in path.parts and not Path(name).is_absolute()


def _implementations(config: object) -> Iterator[tuple[str, str]]:
    """Yield ``(key, value)`` of nested settings that name code on a hub, such as the attention ``OWNER/KERNEL``."""
    nested = [config]
    while nested:  # not recursive: the file decides how deep the settings are nested
        settings = nested.pop(0)
        for key, value in settings.items() if isinstance(settings, dict) else ():
            if str(key).endswith("_implementation"):
                named = value.values() if isinstance(value, dict) else [value]
                yield from ((str(key), one) for one in named if isinstance(one, str) and "/" in one)
            else:
                nested.append(value)


def _read_object(path: Path) -> dict[str, Any]:
    """Return the JSON object in the file, or an empty dict if the file is unreadable; the loader reports such files."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


_FINGERPRINT_BLOCKS, _FINGERPRINT_BLOCK = 64, 1 << 14  # blocks per weight file, bytes per block


def weights_fingerprint(name: str, directory: Path, *, with_code: bool) -> str:
    """Return a hash (16 hex digits) of ``config.json`` and of size, header and 64 blocks of every weight file.

    Training changes all weights, so 64 blocks per file suffice to detect other weights; hashing all bytes would take
    minutes for a large model. With ``with_code``, the ``.py`` files of the directory are hashed too.

    Raises:
        UserError: the directory has no ``.safetensors`` file, or a file cannot be read.
    """
    digest = hashlib.sha256((directory / "config.json").read_bytes())
    files = sorted(directory.glob("*.safetensors"))
    if not files:
        raise UserError(f"model {name}: no .safetensors weights in {directory}")
    try:
        for path in sorted(directory.glob("*.py")) if with_code else ():
            digest.update(f"{path.name}:".encode() + path.read_bytes())
        for path in files:
            with safe_open(path, framework="pt"):
                pass  # checks the header and the file's length
            size = path.stat().st_size
            digest.update(f"{path.name}:{size}".encode())
            with path.open("rb") as file:
                for block in range(_FINGERPRINT_BLOCKS):
                    file.seek(block * size // _FINGERPRINT_BLOCKS)
                    digest.update(file.read(_FINGERPRINT_BLOCK))
    except (OSError, SafetensorError) as error:
        raise UserError(f"model {name}: {path} cannot be read ({one_line(error)})") from None
    return digest.hexdigest()[:16]
