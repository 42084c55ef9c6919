"""Read rows of data, each with file and line: local files and Hugging Face data sets."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from attnrl.errors import UserError, one_line

FILE_KINDS = (".parquet", ".jsonl", ".json", ".csv")
_HUB_ID = re.compile(r"(?P<name>[\w.-]+(?:/[\w.-]+)?)(?::(?P<config>[^@\[\]]+))?(?:@(?P<revision>[^@\[\]]+))?")


@dataclass(frozen=True)
class Row:
    """One row of a source.

    Attributes:
        where: file and line (text files, from 1) or row (tables, from 0), for messages.
        fields: content of the row; a mapping if the row is valid.
    """

    where: str
    fields: Any


def read_source(source: str | Path) -> list[Row]:
    """Read the rows of a data file, or of a Hugging Face data set (see :func:`read_data_set`).

    Raises:
        UserError: the source is missing, empty, malformed or of an unknown kind; names the line if known.
    """
    path = Path(source)
    if path.suffix in FILE_KINDS or path.is_file():
        return read_file(path)
    return read_data_set(str(source))


def source_name(source: str | Path) -> str:
    """Return a short name: a file without folder and suffix, a data set without configuration and split."""
    path = Path(source)
    if path.suffix in FILE_KINDS:
        return path.stem
    if path.exists():
        return path.resolve().name
    name = re.split(r"[:@\[]", str(source), maxsplit=1)[0]
    return Path(name).resolve().name if Path(name).is_dir() else name


def read_file(path: Path) -> list[Row]:
    """Read the rows of a .parquet, .jsonl, .json or .csv file.

    Raises:
        UserError: the file is missing, empty, malformed or of an unknown kind; names the line if known.
    """
    if not path.is_file():
        raise UserError(f"data file {path}: no such file")
    if path.suffix == ".parquet":
        rows = _read_parquet(path)
    elif path.suffix == ".json":
        rows = _read_json(path)
    elif path.suffix == ".jsonl":
        rows = _read_jsonl(path)
    elif path.suffix == ".csv":
        rows = _read_csv(path)
    else:
        raise UserError(f"data file {path}: expected .parquet, .jsonl, .json or .csv")
    if not rows:
        raise UserError(f"data file {path}: no rows")
    return rows


def _numbered(name: str, rows: Iterable[Any]) -> list[Row]:
    return [Row(f"{name}, row {number}", row) for number, row in enumerate(rows)]


def _read_parquet(path: Path) -> list[Row]:
    try:
        return _numbered(f"data file {path}", pyarrow.parquet.read_table(path).to_pylist())
    except Exception as error:  # of pyarrow, or of the conversion to Python dates, decimals and text (smaller ranges)
        raise UserError(f"data file {path}: not readable as parquet ({one_line(error)})") from None


def _read_text(path: Path) -> str:
    try:
        # Not read_text(): universal newlines would change line ends inside quoted fields and strings.
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"data file {path}: not UTF-8 text") from None
    except OSError as error:
        raise UserError(f"data file {path}: not readable ({error.strerror})") from None


def _read_json(path: Path) -> list[Row]:
    text = _read_text(path)
    try:
        rows = json.loads(text) if text.strip() else []
    except json.JSONDecodeError as error:
        raise UserError(f"data file {path}, line {error.lineno}: not JSON ({error.msg})") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"data file {path}: not readable as JSON ({error})") from None
    if not isinstance(rows, list):
        raise UserError(f"data file {path}: expected a list of rows")
    return _numbered(f"data file {path}", rows)


def _read_jsonl(path: Path) -> list[Row]:
    rows = []
    # Not splitlines(): a string in a row may hold line separators, e.g. U+2028.
    for number, line in enumerate(_read_text(path).split("\n"), start=1):
        if line.strip():
            where = f"data file {path}, line {number}"
            try:
                rows.append(Row(where, json.loads(line)))
            except (ValueError, RecursionError) as error:
                message = error.msg if isinstance(error, json.JSONDecodeError) else error
                raise UserError(f"{where}: not JSON ({message})") from None
    return rows


def _read_csv(path: Path) -> list[Row]:
    reader = csv.reader(io.StringIO(_read_text(path), newline=""), strict=True)
    rows: list[Row] = []
    header: list[str] | None = None
    line = 1
    while True:
        line = reader.line_num + 1  # a quoted field may span lines: the number of a row is the first line
        where = f"data file {path}, line {line}"
        try:
            fields = next(reader, None)
        except csv.Error as error:
            raise UserError(f"{where}: not CSV ({error})") from None
        if fields is None:
            return rows
        if not fields:  # a blank line
            continue
        if header is None:
            header = [name.strip() for name in fields]
            if len(set(header)) < len(header):
                raise UserError(f"{where}: two columns have the same name ({', '.join(header)})")
        elif len(fields) != len(header):
            raise UserError(f"{where}: {len(fields)} fields, but the first line names {len(header)} columns")
        else:
            rows.append(Row(where, dict(zip(header, fields, strict=True))))


def read_data_set(source: str) -> list[Row]:
    """Read the rows of ``NAME:CONFIG@REVISION[SPLIT]``; every part except NAME is optional.

    NAME is a data set of the Hugging Face Hub, or a local folder readable by ``datasets`` (data files, or the output of
    ``save_to_disk``). Loading scripts are never run. SPLIT is required if the data set has several splits.

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
        if folder and any((Path(name) / file).is_file() for file in ("dataset_dict.json", "state.json")):
            loaded = datasets.load_from_disk(name)
        else:
            loaded = datasets.load_dataset(parts["name"], parts["config"], revision=parts["revision"], split=split)
        if isinstance(loaded, dict):
            loaded = _choose_split(loaded, split, source)
        elif split is not None and folder and str(loaded.split) not in {split, "None"}:
            raise UserError(f"data set {source}: no split {split} (known: {loaded.split})")
        rows = _numbered(f"data set {source}", (dict(row) for row in loaded))
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
    raise UserError(f"data set {source}: no split {split} (known: {known})")
