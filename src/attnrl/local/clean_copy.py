"""``attnrl export`` of a model directory: a copy whose tensor names have no prefix of a wrapper.

A checkpoint written from a wrapped model (``torch.compile``, DDP) has names such as ``_orig_mod.lm_head.weight``. Only
the names change: the bytes of the tensors are copied, a block at a time, in every dtype.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attnrl.errors import RunError, UserError, one_line
from attnrl.local.checkpoint import staged_directory
from attnrl.local.loading import build_without_weights, load_model_config
from attnrl.local.model_config import CONFIG, read_config
from attnrl.local.model_files import check_model_files, is_pickled
from attnrl.local.weights import compare_shapes, read_shapes, refuse_adapter, some, unwrap, weight_files
from attnrl.utils.files import MANIFEST, require_writable

BLOCK = 1 << 24  # bytes copied at one time


@dataclass(frozen=True)
class CleanCopy:
    """The result of a clean copy.

    Attributes:
        prefixes: removed prefixes, with the number of names.
        tensors: number of tensors.
        left_out: files of the directory that were not copied.
    """

    prefixes: Mapping[str, int]
    tensors: int
    left_out: tuple[str, ...]


def is_model_directory(path: Path) -> bool:
    """Return True for a directory with a model in the format of Hugging Face."""
    return (path / CONFIG).is_file()


def write_clean_copy(
    directory: Path, output: Path, *, trust_remote_code: bool = False, say: Callable[[str], None] = lambda line: None
) -> CleanCopy:
    """Copy a model directory to ``output`` without the prefixes of wrappers (atomic: nothing is written on an error).

    Config, tokenizer and code are copied as they are; pickled files, subdirectories and other weights are left out.

    Args:
        directory: the model directory.
        output: directory to create.
        trust_remote_code: True if code in the directory may run.
        say: called with one line per weight file.

    Raises:
        UserError: ``output`` exists, a file of the model is faulty, or no name has a prefix.
        RunError: ``output`` cannot be written.
    """
    if output.exists():
        raise UserError(f"output {output}: already exists")
    require_writable(output.parent, f"output {output}")
    check_model_files(directory, trust_remote_code=trust_remote_code)
    settings = read_config(directory)
    config = load_model_config(directory, trust_remote_code=trust_remote_code)
    expected = build_without_weights(directory, config, trust_remote_code=trust_remote_code)
    files = weight_files(directory, settings)
    shapes = read_shapes(directory, files)
    known = expected.state_dict().keys()
    refuse_adapter(directory, shapes.keys() - known)
    unwrapped = {name: (name, []) if name in known else unwrap(name) for name in shapes}
    names = {name: clean for name, (clean, _) in unwrapped.items()}
    prefixes = Counter(prefix for _, removed in unwrapped.values() for prefix in set(removed))
    if not prefixes:
        raise UserError(f"model {directory}: no tensor name has a prefix of a wrapper: use the directory as it is")
    twice = [clean for clean, count in Counter(names.values()).items() if count > 1]
    if twice:
        raise UserError(f"model {directory}: without the prefixes, two tensors have the name {some(twice)}")
    compare_shapes(directory, {names[name]: shape for name, shape in shapes.items()}, expected)
    left_out = []
    try:
        with staged_directory(output, {}, replace=False) as aside:
            for path in files:
                say(f"Writing {path.name} ({path.stat().st_size / 1e6:,.1f} MB)")
                copy_renamed(path, aside / path.name, names)
            for path in sorted(set(directory.iterdir()) - set(files)):
                if path.name.endswith(".safetensors.index.json"):
                    _copy_index(path, aside / path.name, names)
                elif path.is_file() and path.suffix != ".safetensors" and not is_pickled(path):
                    if path.name != MANIFEST:
                        shutil.copyfile(path, aside / path.name)
                else:
                    left_out.append(path.name)
    except OSError as error:
        raise RunError(f"output {output}: cannot be written ({one_line(error)})") from error
    return CleanCopy(prefixes, len(shapes), tuple(left_out))


def copy_renamed(source: Path, target: Path, names: Mapping[str, str]) -> None:
    """Copy a safetensors file with other tensor names, a block at a time.

    The file is the length of the header in 8 bytes, the header (JSON), and the values; only the header is changed.
    """
    with source.open("rb") as old, target.open("wb") as new:
        header: dict[str, Any] = json.loads(old.read(int.from_bytes(old.read(8), "little")))
        text = json.dumps({names.get(name, name): entry for name, entry in header.items()}).encode()
        text += b" " * (-len(text) % 8)
        new.write(len(text).to_bytes(8, "little") + text)
        shutil.copyfileobj(old, new, BLOCK)


def _copy_index(source: Path, target: Path, names: Mapping[str, str]) -> None:
    index = json.loads(source.read_text(encoding="utf-8"))
    index["weight_map"] = {names.get(name, name): shard for name, shard in index["weight_map"].items()}
    target.write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
