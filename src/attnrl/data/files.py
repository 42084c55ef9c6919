"""Read the rows of one data file: parquet, JSON lines, JSON, CSV and TSV, plain or compressed with gzip."""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attnrl.errors import UserError, one_line
from attnrl.utils.near import did_you_mean

GZIP = ".gz"


@dataclass(frozen=True)
class Row:
    """One row of a source.

    Attributes:
        where: file and line (text files, from 1) or row (tables, from 0), for messages.
        fields: content of the row; a mapping if the row is valid.
    """

    where: str
    fields: Any


def file_kind(path: Path) -> str | None:
    """Return the row of :data:`READERS` for a file name, e.g. ``.jsonl`` for ``train.JSONL.gz``; None if unknown."""
    name = path.name.lower()
    packed = name.endswith(GZIP)
    kind = Path(name.removesuffix(GZIP)).suffix
    return kind if kind in READERS and not (packed and kind == ".parquet") else None


def stem(path: Path) -> str:
    """Return the file name without the endings that :func:`file_kind` reads: ``train`` for ``train.jsonl.gz``."""
    name = path.name[: -len(GZIP)] if path.name.lower().endswith(GZIP) else path.name
    return name[: -len(Path(name).suffix)] if file_kind(path) else path.name


def read_file(path: Path) -> list[Row]:
    """Read the rows of a file of a kind in :data:`READERS`.

    Raises:
        UserError: the file is missing, empty, malformed or of an unknown kind; names the line if known.
    """
    kind = file_kind(path)
    if not path.is_file():
        raise UserError(f"data file {path}: no such file{did_you_mean(path.name, neighbours(path))}")
    if kind is None:
        raise UserError(f"data file {path}: expected {', '.join(READERS)} or, but for .parquet, the same with {GZIP}")
    rows = READERS[kind](path)
    if not rows:
        raise UserError(f"data file {path}: no rows")
    return rows


def neighbours(path: Path) -> list[str]:
    """Return the names of the data files in the folder of a file, for suggestions."""
    if not path.parent.is_dir():
        return []
    return [other.name for other in path.parent.iterdir() if file_kind(other) and other.is_file()]


def number_rows(name: str, rows: Iterable[Any]) -> list[Row]:
    """Return rows of a table, numbered from 0."""
    return [Row(f"{name}, row {number}", row) for number, row in enumerate(rows)]


def _read_parquet(path: Path) -> list[Row]:
    import pyarrow.parquet  # here, because the command line imports this module and must start fast

    try:
        return number_rows(f"data file {path}", pyarrow.parquet.read_table(path).to_pylist())
    except Exception as error:  # of pyarrow, or of the conversion to Python dates, decimals and text (smaller ranges)
        raise UserError(f"data file {path}: not readable as parquet ({one_line(error)})") from None


def _read_text(path: Path) -> str:
    try:
        content = path.read_bytes()
        if path.name.lower().endswith(GZIP):
            content = gzip.decompress(content)
        # Not read_text(): universal newlines would change line ends inside quoted fields and strings.
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"data file {path}: not UTF-8 text") from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:  # before OSError: BadGzipFile is an OSError
        raise UserError(f"data file {path}: not readable as gzip ({one_line(error)})") from None
    except OSError as error:
        raise UserError(f"data file {path}: not readable ({error.strerror})") from None


def _read_json(path: Path) -> list[Row]:
    """Read a list of rows, an object with one list of rows, or JSON lines in a file called .json."""
    text = _read_text(path)
    try:
        rows = json.loads(text) if text.strip() else []
    except json.JSONDecodeError as error:
        if error.msg == "Extra data" and error.lineno > 1:  # a second value on a later line
            return _parse_lines(text, path)
        raise UserError(f"data file {path}, line {error.lineno}: not JSON ({error.msg})") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"data file {path}: not readable as JSON ({error})") from None
    if isinstance(rows, dict):
        lists = [name for name, value in rows.items() if isinstance(value, list) and value and _all_objects(value)]
        if len(lists) != 1:
            keys = ", ".join(map(str, rows)) or "no key"
            raise UserError(f"data file {path}: expected a list of rows, found an object with {keys}")
        return number_rows(f"data file {path}, {lists[0]}", rows[lists[0]])
    if not isinstance(rows, list):
        raise UserError(f"data file {path}: expected a list of rows")
    return number_rows(f"data file {path}", rows)


def _all_objects(values: Iterable[Any]) -> bool:
    return all(isinstance(value, dict) for value in values)


def _read_jsonl(path: Path) -> list[Row]:
    return _parse_lines(_read_text(path), path)


def _parse_lines(text: str, path: Path) -> list[Row]:
    rows = []
    # Not splitlines(): a string in a row may hold line separators, e.g. U+2028.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            where = f"data file {path}, line {number}"
            try:
                rows.append(Row(where, json.loads(line)))
            except (ValueError, RecursionError) as error:
                message = error.msg if isinstance(error, json.JSONDecodeError) else error
                raise UserError(f"{where}: not JSON ({message})") from None
    return rows


def _read_separated(path: Path, separator: str) -> list[Row]:
    reader = csv.reader(io.StringIO(_read_text(path), newline=""), delimiter=separator, strict=True)
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
            if len(header) == 1 and (other := next((one for one in ",;\t|" if one in header[0]), None)):
                raise UserError(f"{where}: expected {separator!r} between the columns, found {other!r} ({header[0]})")
            if len(set(header)) < len(header):
                raise UserError(f"{where}: two columns have the same name ({', '.join(header)})")
        elif len(fields) != len(header):
            raise UserError(f"{where}: {len(fields)} fields, but the first line names {len(header)} columns")
        else:
            rows.append(Row(where, dict(zip(header, fields, strict=True))))


#: The only list of kinds of data files: a reader by the ending of the file name.
READERS: dict[str, Callable[[Path], list[Row]]] = {
    ".parquet": _read_parquet,
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
    ".json": _read_json,
    ".csv": lambda path: _read_separated(path, ","),
    ".tsv": lambda path: _read_separated(path, "\t"),
}
