"""The files of one ``attnrl eval --output DIR``: what is sampled once is never sampled again.

=================  ===============================================================================
``samples.jsonl``  one object per response, appended in chunks as they are finished
``results.json``   settings, versions, and all numbers of each model on each benchmark
=================  ===============================================================================

``results.json`` is written before the first sample, so that a directory always says what its samples are samples of.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from attnrl.errors import UserError, one_line
from attnrl.utils.files import require_writable

SAMPLES, RESULTS = "samples.jsonl", "results.json"
KEY = ("model", "benchmark", "problem", "sample")
TEXTS = ("model", "benchmark", "problem", "prompt", "verdict", "finish_reason")
SAMPLE: dict[str, tuple[type, ...]] = {name: (str,) for name in TEXTS}
SAMPLE |= {"sample": (int,), "answers": (list,), "seed": (int,), "reward": (int, float), "tokens": (int,)}


class EvalDirectory:
    """Reads and writes the files of one evaluation."""

    def __init__(self, root: Path) -> None:
        """``root`` is made when it is opened."""
        self.root = root
        self._lock: Any = None

    def read_results(self) -> dict[str, Any] | None:
        """What ``results.json`` holds; None for a new directory. Nothing is written.

        Raises:
            UserError: the directory cannot be written, or holds something that is not an evaluation.
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
        """The finished samples, each once. A last line cut short by a kill is left out.

        Raises:
            UserError: any other line is no sample.
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
                    if not all(isinstance(row[name], kind) for name, kind in SAMPLE.items()):
                        raise TypeError
                    key = tuple(row[name] for name in KEY)
                except (ValueError, TypeError, KeyError, RecursionError):
                    raise UserError(f"{path}, line {number}: not a sample") from None
                if key not in seen:
                    seen.add(key)
                    yield row

    def open(self) -> None:
        """Make the directory, keep others from writing to it, and cut off what a kill left of a line.

        Raises:
            UserError: it cannot be written, or another evaluation is writing to it now.
        """
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            self._lock = (self.root / SAMPLES).open("a+b")
        except OSError as error:
            raise UserError(f"--output {self.root}: cannot be written ({error.strerror})") from None
        _lock(self._lock, self.root)
        self._lock.truncate(_end_of_last_line(self._lock))

    def append(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Append one line per row, and see that they are on the disk."""
        self._lock.write("".join(json.dumps(row) + "\n" for row in rows).encode())
        self._lock.flush()
        os.fsync(self._lock.fileno())

    def write_results(self, results: Mapping[str, Any]) -> None:
        """Replace ``results.json``, at once or not at all."""
        aside = self.root / f".{RESULTS}.partial"
        aside.write_text(json.dumps(results, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        os.replace(aside, self.root / RESULTS)

    def close(self) -> None:
        """Let others write."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None


def _are_results(document: Any) -> bool:
    """Whether a document has what a later command looks at."""
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


def _lock(file: Any, root: Path) -> None:
    try:
        import fcntl
    except ImportError:  # not on this system: two evaluations at once are then the user's own care
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise UserError(f"--output {root}: another evaluation is writing to it") from None


def _end_of_last_line(file: Any, block: int = 1 << 16) -> int:
    """Where the last newline of a file ends, looking from its end; 0 if there is none."""
    end: int = file.seek(0, os.SEEK_END)
    while end:
        start = max(0, end - block)
        file.seek(start)
        newline = file.read(end - start).rfind(b"\n")
        if newline >= 0:
            return int(start + newline + 1)
        end = start
    return 0
