"""Read the rows of a data set with the package ``datasets``: from the Hugging Face Hub, or saved to disk."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from attnrl.data.files import Row, number_rows
from attnrl.errors import UserError, one_line
from attnrl.utils.near import did_you_mean

_HUB_ID = re.compile(r"(?P<name>[\w.-]+(?:/[\w.-]+)?)(?::(?P<config>[^@\[\]]+))?(?:@(?P<revision>[^@\[\]]+))?")


def is_data_set(folder: Path) -> bool:
    """Return True if a folder is the output of ``save_to_disk``, or has a README.md that declares configurations."""
    card = folder / "README.md"
    declared = card.is_file() and re.search(r"^configs:", card.read_text(errors="replace"), re.MULTILINE)
    return is_saved(folder) or bool(declared)


def is_saved(folder: Path) -> bool:
    """Return True if a folder is the output of ``save_to_disk``."""
    return any((folder / file).is_file() for file in ("dataset_dict.json", "state.json"))


def read_data_set(source: str) -> list[Row]:
    """Read the rows of ``NAME:CONFIG@REVISION[SPLIT]``; every part except NAME is optional.

    NAME is a data set of the Hugging Face Hub, or a local folder readable by ``datasets`` (the output of
    ``save_to_disk``, or files of other kinds). Loading scripts are never run. SPLIT is required if the data set has
    several splits.

    Raises:
        UserError: the data set or the split is missing or empty, loading fails, or the package ``datasets`` is not
            installed.
    """
    folder = Path(source).is_dir()
    name, split = source, None
    if not folder and (match := re.fullmatch(r"([^\[]+)\[(.+)\]", source)):
        name, split = match.groups()
        folder = Path(name).is_dir()
    parts: Mapping[str, str | None] = {"name": name, "config": None, "revision": None}
    if not folder:
        if (hub := _HUB_ID.fullmatch(name)) is None:
            raise UserError(f"data file {source}: no such file or folder, nor a data set as in name:config@rev[split]")
        parts = hub.groupdict()
    try:
        import datasets
    except ImportError:
        raise UserError(f"data set {source}: no such file, and data sets need: pip install attnrl[hub]") from None
    try:
        if folder and is_saved(Path(name)):
            loaded = datasets.load_from_disk(name)
        else:
            loaded = datasets.load_dataset(parts["name"], parts["config"], revision=parts["revision"], split=split)
        if isinstance(loaded, dict):
            loaded = _choose_split(loaded, split, source)
        elif split is not None and folder and str(loaded.split) not in {split, "None"}:
            raise UserError(f"data set {source}: no split {split} (known: {loaded.split})")
        rows = number_rows(f"data set {source}", (dict(row) for row in loaded.with_format(None)))
    except UserError:
        raise
    except Exception as error:  # of datasets, file readers or the network: no common base class
        raise UserError(f"data set {source}: cannot be loaded ({type(error).__name__}: {one_line(error)})") from None
    if not rows:
        raise UserError(f"data set {source}: no rows")
    return rows


def _choose_split(splits: Mapping[str, Any], split: str | None, source: str) -> Any:
    if split is not None and split in splits:
        return splits[split]
    if split is None and len(splits) == 1:
        return next(iter(splits.values()))
    known = ", ".join(splits)
    if split is None:
        raise UserError(f"data set {source}: has splits {known}: choose one, as in {source}[{next(iter(splits))}]")
    raise UserError(f"data set {source}: no split {split} (known: {known}){did_you_mean(split, splits)}")
