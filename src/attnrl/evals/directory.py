"""Files of one ``attnrl eval --output DIR``, written so that an interrupted evaluation resumes.

=================  ===============================================================================
``samples.jsonl``  one object per response, appended chunk by chunk
``results.json``   settings, versions, and the statistics of each model on each benchmark
=================  ===============================================================================

``results.json`` is written before the first sample, so that the settings of all samples are always on record.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from attnrl.errors import UserError, one_line
from attnrl.utils.files import require_writable, write_atomic

SAMPLES, RESULTS = "samples.jsonl", "results.json"
KEY_FIELDS = ("model", "benchmark", "problem", "sample")
_TEXT_FIELDS = ("model", "benchmark", "problem", "prompt", "verdict", "finish_reason")
#: Required fields of a row of ``samples.jsonl``, with the accepted types.
SAMPLE_FIELDS: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(_TEXT_FIELDS, (str,)),
    "sample": (int,),
    "answers": (list,),
    "seed": (int,),
    "reward": (int, float, type(None)),
    "tokens": (int,),
}


class EvalDirectory:
    """Reader and writer of the files of one evaluation."""

    def __init__(self, root: Path) -> None:
        """``root`` is created by :meth:`open`."""
        self.root = root
        self._file: Any = None

    def read_results(self) -> dict[str, Any] | None:
        """Return the contents of ``results.json``, or None for a new directory. Nothing is written.

        Raises:
            UserError: the directory is not writable, ``results.json`` is damaged, or ``samples.jsonl`` exists without
                ``results.json``.
        """
        require_writable(self.root, f"--output {self.root}")
        path = self.root / RESULTS
        if not path.exists():
            samples = self.root / SAMPLES
            if samples.exists() and samples.stat().st_size:
                raise UserError(f"--output {self.root}: holds {SAMPLES} of something else (there is no {RESULTS})")
            return None
        try:
            results = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise UserError(f"{path}: not readable ({one_line(error)})") from None
        if not _are_results(results):
            raise UserError(f"{path}: not the results of an evaluation")
        return dict(results)

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield the rows of ``samples.jsonl`` without duplicates. A truncated last line (a crash) is left out.

        Raises:
            UserError: another line is not a sample; the message names file and line.
        """
        path = self.root / SAMPLES
        if not path.exists():
            return
        seen = set()
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if not line.endswith(b"\n"):
                    return
                try:
                    row = json.loads(line)
                    if not all(isinstance(row[name], kind) for name, kind in SAMPLE_FIELDS.items()):
                        raise TypeError
                    key = tuple(row[name] for name in KEY_FIELDS)
                except (ValueError, TypeError, KeyError, RecursionError):
                    raise UserError(f"{path}, line {number}: not a sample") from None
                if key not in seen:
                    seen.add(key)
                    yield row

    def open(self) -> None:
        """Create the directory, take an exclusive lock on ``samples.jsonl``, and cut off a truncated last line.

        Raises:
            UserError: the directory is not writable, or another evaluation holds the lock.
        """
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            self._file = (self.root / SAMPLES).open("a+b")
        except OSError as error:
            raise UserError(f"--output {self.root}: cannot be written ({error.strerror})") from None
        _lock_file(self._file, self.root)
        self._file.truncate(_end_of_last_line(self._file))

    def append(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Append one line per row to ``samples.jsonl``, and fsync."""
        self._file.write("".join(json.dumps(row) + "\n" for row in rows).encode())
        self._file.flush()
        os.fsync(self._file.fileno())

    def write_results(self, results: Mapping[str, Any]) -> None:
        """Write ``results`` to ``results.json`` atomically."""
        write_atomic(self.root / RESULTS, json.dumps(results, indent=2, ensure_ascii=False) + "\n")

    def close(self) -> None:
        """Release the lock on ``samples.jsonl``."""
        if self._file is not None:
            self._file.close()
            self._file = None


def _are_results(document: Any) -> bool:
    """Return True if ``document`` has every key that a later command reads."""
    entries = {"models": "fingerprint", "benchmarks": "max_new_tokens"}
    return (
        isinstance(document, dict)
        and isinstance(document.get("settings"), dict)
        and all(
            isinstance(document.get(part), dict)
            and all(isinstance(entry, dict) and key in entry for entry in document[part].values())
            for part, key in entries.items()
        )
        and isinstance(document.get("results"), list)
        and all(isinstance(row, dict) and {"model", "benchmark"} <= row.keys() for row in document["results"])
    )


def _lock_file(file: Any, root: Path) -> None:
    try:
        import fcntl
    except ImportError:  # no file locks on this platform: the user must not start two evaluations at once
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise UserError(f"--output {root}: another evaluation is writing to it") from None


def _end_of_last_line(file: Any, block: int = 1 << 16) -> int:
    """Return the offset behind the last newline of ``file``, or 0 without a newline."""
    end: int = file.seek(0, os.SEEK_END)
    while end:
        start = max(0, end - block)
        file.seek(start)
        newline = file.read(end - start).rfind(b"\n")
        if newline >= 0:
            return int(start + newline + 1)
        end = start
    return 0
