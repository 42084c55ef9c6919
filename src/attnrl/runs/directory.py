"""The files of a run: one directory, text that people and programs can read.

========================  =======================================================================
``config.yaml``           the resolved recipe, every default spelled out
``metrics.jsonl``         one object per training step; names in docs/metrics.md
``timeline.jsonl``        when the phases of each training step began and ended
``trees.jsonl``           every forest of the steps chosen (``log.trees_every``)
``samples.jsonl``         some responses of every evaluation (``log.samples``)
``checkpoints/``          Hugging Face model directories, from which a run resumes
``faults/``               all problems of steps in which numbers were not finite; absent where none were
``.lock``                 names the process that is at work here; empty when none is
========================  =======================================================================
"""

from __future__ import annotations

import fcntl
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from attnrl.errors import UserError, one_line
from attnrl.utils.files import fsync_path, require_writable, write_atomic
from attnrl.utils.yaml import load_yaml

METRICS, TIMELINE, TREES, SAMPLES = "metrics.jsonl", "timeline.jsonl", "trees.jsonl", "samples.jsonl"
CONFIG, LOCK, FAULTS = "config.yaml", ".lock", "faults"


class RunDirectory:
    """Writes the files of one run."""

    def __init__(self, root: Path) -> None:
        """``root`` is made when the run is opened."""
        self.root = root

    @property
    def checkpoints(self) -> Path:
        """Where checkpoints go."""
        return self.root / "checkpoints"

    def holds_a_run(self) -> bool:
        """Whether an earlier run has written here."""
        return (self.root / CONFIG).exists()

    def read_config(self) -> dict[str, Any]:
        """The settings that ``config.yaml`` holds.

        Raises:
            UserError: it is missing or no YAML mapping.
        """
        path = self.root / CONFIG
        try:
            settings = load_yaml(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            settings = None
        if not isinstance(settings, dict):
            raise UserError(f"{path}: not readable, so the run cannot be continued")
        return settings

    def check_writable(self) -> None:
        """Check that the directory is there and can be written, or can be made.

        Raises:
            UserError: it cannot.
        """
        require_writable(self.root, f"output_dir {self.root}")

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from training here; the system lets go of the lock when this one dies.

        Raises:
            UserError: one is at work here already, or the directory cannot be written.
        """
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            file = (self.root / LOCK).open("a+", encoding="utf-8")
        except OSError as error:
            raise UserError(f"output_dir {self.root}: cannot be written ({error.strerror})") from None
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                file.seek(0)
                raise UserError(
                    f"output_dir {self.root}: process {file.read().strip() or 'of another user'} is training here"
                ) from None
            file.truncate(0)
            file.write(f"{os.getpid()}\n")
            file.flush()
            try:
                yield
            finally:
                file.truncate(0)  # not removed: whoever has it open already would then lock a file of no name

    def open(self, config: str, from_step: int | None) -> None:
        """Make the directory, write ``config.yaml``, and drop what was logged after step ``from_step``.

        Args:
            config: text of ``config.yaml``.
            from_step: the step that the run resumes after; None for a new run, which keeps nothing.

        Raises:
            UserError: the directory cannot be written.
        """
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            write_atomic(self.root / CONFIG, config)
        except OSError as error:
            raise UserError(f"output_dir {self.root}: cannot be written ({error.strerror})") from None
        for name in (METRICS, TIMELINE, TREES, SAMPLES):
            path = self.root / name
            rows = [] if from_step is None else [row for row in self.read(name) if _step(row, path) <= from_step]
            write_atomic(path, "".join(json.dumps(row) + "\n" for row in rows))

    def append(self, name: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """Append one line per row to the file ``name``; numbers that are not finite become null, which JSON has."""
        with (self.root / name).open("a", encoding="utf-8") as file:
            file.writelines(_json_line(row) for row in rows)

    def replace_last(self, name: str, row: Mapping[str, Any]) -> None:
        """Put ``row`` in place of the last one of the file ``name``."""
        rows = self.read(name)
        write_atomic(self.root / name, "".join(_json_line(one) for one in [*rows[:-1], row]))

    def dump_fault(self, step: int, rows: Iterable[Mapping[str, Any]]) -> Path:
        """Write all there is to know of a step that went wrong; returns the file."""
        path = self.root / FAULTS / f"{step:06d}.jsonl"
        path.parent.mkdir(exist_ok=True)
        write_atomic(path, "".join(_json_line(row) for row in rows))
        return path

    def sync(self) -> None:
        """Have what was appended outlive a loss of power: a checkpoint counts on the lines up to its step."""
        for name in (METRICS, TIMELINE, TREES, SAMPLES):
            if (self.root / name).exists():
                fsync_path(self.root / name)
        fsync_path(self.root)

    def read(self, name: str) -> list[dict[str, Any]]:
        """The rows of the file ``name``; none if it does not exist. A last line cut short by a kill is left out.

        Raises:
            UserError: the file cannot be read, or any other line is not JSON.
        """
        path = self.root / name
        if not path.exists():
            return []
        try:
            lines = path.read_text(encoding="utf-8").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{path}: not readable ({one_line(error)})") from None
        rows = []
        for number, line in enumerate(lines, start=1):
            if line:
                try:
                    rows.append(json.loads(line))
                except (ValueError, RecursionError):
                    if number == len(lines):  # no newline behind it: the write was cut short
                        break
                    raise UserError(f"{path}, line {number}: not JSON") from None
        return rows


def _step(row: Any, path: Path) -> float:
    """The step that a row is of.

    Raises:
        UserError: it is of none.
    """
    step = row.get("step") if isinstance(row, dict) else None
    if not isinstance(step, (int, float)):
        raise UserError(f"{path}: not readable (a row without a step)")
    return step


def _json_line(row: Mapping[str, Any]) -> str:
    try:
        return json.dumps(row, allow_nan=False) + "\n"
    except ValueError:
        return json.dumps(_finite(row), allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    """The value with None for every number in it that is not finite."""
    if isinstance(value, Mapping):
        return {key: _finite(inside) for key, inside in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(inside) for inside in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
