"""What may be in a model's directory: nothing pickled is opened, and nothing there runs unless that is asked for.

Unpickling a file can run anything that its author wrote. Weights are safetensors here, the rest is JSON, and
transformers is not let near the ways in which a directory can send it elsewhere: an index of shards that names a
pickle, an adapter with weights of its own, an attention whose code comes from a hub.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from attnrl.errors import UserError

PICKLED = frozenset({".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".dill"})
WEIGHTS, WEIGHTS_INDEX = "model.safetensors", "model.safetensors.index.json"
# Only directories that we wrote have both (Hugging Face's Trainer writes a trainer_state.json too, beside its pickles).
OWN_FILES = ("trainer_state.json", "optimizer.safetensors")
TRUST = "trust_remote_code=true (--trust-remote-code)"


def is_pickled(path: Path) -> bool:
    """Whether a file is a pickle by its name, or by how it begins (a zip is how torch.save packs one)."""
    if path.suffix.lower() in PICKLED:
        return True
    if path.suffix == ".safetensors":  # its first bytes are a length, which can be any; only safetensors reads it
        return False
    with path.open("rb") as file:
        head = file.read(4)
    return head == b"PK\x03\x04" or (head[:1] == b"\x80" and head[1:2] in {b"\x02", b"\x03", b"\x04", b"\x05"})


def pickles(directory: Path) -> Iterator[Path]:
    """The pickled files of a directory and of all below it, in the order of their names."""
    return (path for path in sorted(directory.rglob("*")) if path.is_file() and is_pickled(path))


def refuse_pickles(directory: Path) -> None:
    """Refuse a checkpoint with a pickled file in it, wherever: a run writes none, so somebody else has.

    Raises:
        UserError: naming the first one.
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


def check_model_files(directory: Path, *, trust_remote_code: bool = False) -> None:
    """Refuse a model's directory that would have something pickled loaded, or foreign code run unasked.

    Pickles beside safetensors (``training_args.bin``, ``optimizer.pt``, ``pytorch_model.bin``) are common in the wild
    and are left alone, since nothing opens them; in a checkpoint of ours there are none.

    Raises:
        UserError: naming the file and what is the matter with it.
    """
    config = _read_object(directory / "config.json")
    if all((directory / name).is_file() for name in OWN_FILES):
        refuse_pickles(directory)
    if (directory / "adapter_config.json").is_file():
        raise UserError(
            f"model {directory}: holds an adapter (adapter_config.json), which is not loaded: merge it into its model"
        )
    _check_weights(directory, config)
    if not trust_remote_code:
        for key, value in _implementations(config):
            raise UserError(
                f"model {directory}: config.json takes code from a hub ({key}: {value!r}), which runs only with {TRUST}"
            )


def _check_weights(directory: Path, config: dict[str, Any]) -> None:
    chosen = config.get("transformers_weights")  # transformers takes this file, whatever else there is
    if chosen is not None and not _is_safe(chosen, (".safetensors", ".safetensors.index.json")):
        raise UserError(f"model {directory}: config.json names weights that are no safetensors in it ({chosen!r})")
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
                    f"model {directory}: {path.name} names weights that are no safetensors in it ({shard!r})"
                )


def _is_safe(name: object, endings: tuple[str, ...]) -> bool:
    """Whether ``name`` is that of a file with one of the endings, in the directory or below it."""
    if not isinstance(name, str) or not name.endswith(endings):
        return False
    path = PurePosixPath(name.replace("\\", "/"))
    return not path.is_absolute() and ".." not in path.parts and not Path(name).is_absolute()


def _implementations(config: object) -> Iterator[tuple[str, str]]:
    """Settings of the config, and of those in it, that name code on a hub: ``OWNER/KERNEL`` for its attention."""
    if isinstance(config, dict):
        for key, value in config.items():
            if str(key).endswith("_implementation"):
                named = value.values() if isinstance(value, dict) else [value]
                yield from ((str(key), one) for one in named if isinstance(one, str) and "/" in one)
            else:
                yield from _implementations(value)


def _read_object(path: Path) -> dict[str, Any]:
    """A JSON object; nothing where there is none, which whoever reads the file for its content says better."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
