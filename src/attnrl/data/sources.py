"""Read the rows of a source, each with file and row: a file, a folder of files, or a Hugging Face data set."""

from __future__ import annotations

import re
from pathlib import Path

from attnrl.data.files import Row, file_kind, read_file, stem
from attnrl.data.hub import is_data_set, read_data_set
from attnrl.errors import UserError
from attnrl.utils.near import did_you_mean

_SPLITS = ("train", "test", "validation", "valid", "val", "dev", "eval")
_DESCRIPTIONS = frozenset({"dataset_dict.json", "state.json", "dataset_info.json", "dataset_infos.json"})


def read_source(source: str | Path) -> list[Row]:
    """Read the rows of a data file, of a folder of data files, or of a data set (see :func:`read_data_set`).

    Raises:
        UserError: the source is missing, empty, malformed or of an unknown kind; names the line if known.
    """
    path, split = _local_path(source)
    if path.is_dir():
        if not any(path.iterdir()):
            raise UserError(f"data set {source}: an empty folder")
        files = _data_files(path)
        if not files or is_data_set(path) or (split or "").endswith("]"):  # train[:10%]
            return read_data_set(f"{path}[{split}]" if split else str(path))
        return [row for file in _of_one_split(path, files, split) for row in read_file(file)]
    if file_kind(path) or path.is_file():
        return read_file(path)
    return read_data_set(str(source))


def source_name(source: str | Path) -> str:
    """Return a short name: a file without folder and endings, a data set without configuration and split."""
    path, _ = _local_path(source)
    if path.is_dir():
        return path.resolve().name
    if file_kind(path) or path.exists():
        return stem(path)
    return re.split(r"[:@\[]", str(source), maxsplit=1)[0]


def _local_path(source: str | Path) -> tuple[Path, str | None]:
    """Return the path and, for ``FOLDER[SPLIT]``, the split."""
    path = Path(source).expanduser()
    if not path.exists() and (match := re.fullmatch(r"([^\[]+)\[(.+)\]", str(source))):
        folder = Path(match[1]).expanduser()
        if folder.is_dir():
            return folder, match[2]
    return path, None


def _data_files(folder: Path) -> list[Path]:
    """Return the data files in a folder and the folders below, sorted; hidden files and descriptions are ignored."""
    return [path for path in sorted(folder.rglob("*")) if _is_data(path.relative_to(folder)) and path.is_file()]


def _is_data(path: Path) -> bool:
    hidden = any(part.startswith((".", "_")) for part in path.parts)
    return not hidden and file_kind(path) is not None and path.name not in _DESCRIPTIONS


def _of_one_split(folder: Path, files: list[Path], split: str | None) -> list[Path]:
    """Return the files of a split, all of one kind; a word of the path tells the split, as in ``test/00-of-02.jsonl``.

    Raises:
        UserError: several splits and ``split`` is None, no file of ``split``, or files of several kinds.
    """
    name = f"data folder {folder}"
    splits: dict[str, list[Path]] = {}
    for path in files:
        splits.setdefault(_split_of(path.relative_to(folder)), []).append(path)
    if split is None and len(splits) > 1:
        known = ", ".join(one or f"without a split: {splits[one][0].name}" for one in splits)
        first = next(filter(None, splits))
        raise UserError(f"{name}: has several splits ({known}): choose one, as in {folder}[{first}]")
    if split is not None and split not in splits:
        known = ", ".join(filter(None, splits)) or "none, because no file name holds a split"
        raise UserError(f"{name}: no split {split} (known: {known}){did_you_mean(split, splits)}")
    chosen = files if split is None else splits[split]
    kinds = sorted({str(file_kind(path)) for path in chosen})
    if len(kinds) > 1:
        raise UserError(f"{name}: holds files of several kinds ({', '.join(kinds)}): name the files, as in [a, b]")
    return chosen


def _split_of(path: Path) -> str:
    words = re.split(r"[^a-z]+", str(path).lower())
    return next((split for split in _SPLITS if split in words), "")
