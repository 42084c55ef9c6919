"""The run directory: text files for people and programs, checkpoints and the lock.

========================  =======================================================================
``config.yaml``           the resolved configuration, with all defaults
``model.json``            name, commit, directory and fingerprint of the starting model
``metrics.jsonl``         one object per training step; docs/metrics.md names the metrics
``timeline.jsonl``        start and end of each phase of each training step
``trees.jsonl``           the rollout trees of every ``log.trees_every``-th step
``samples.jsonl``         ``log.samples`` responses of every evaluation
``checkpoints/``          Hugging Face model directories to resume from
``faults/``               problems of steps with NaN or inf; absent without faults
``.lock``                 process id of the training process; empty otherwise
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
RECORDS = (METRICS, TIMELINE, TREES, SAMPLES)
CONFIG, MODEL, LOCK, FAULTS = "config.yaml", "model.json", ".lock", "faults"


class RunDirectory:
    """Reads and writes the files of one run, and holds the lock."""

    def __init__(self, root: Path) -> None:
        """Use the directory ``root``; :meth:`open` creates the directory."""
        self.root = root
        self.rows: dict[str, int] = {}  # of each record file, from open() on

    @property
    def checkpoints(self) -> Path:
        """Directory of the checkpoints, with one subdirectory per saved step."""
        return self.root / "checkpoints"

    def holds_a_run(self) -> bool:
        """Return True if the directory holds ``config.yaml``."""
        return (self.root / CONFIG).exists()

    def read_config(self) -> dict[str, Any]:
        """Return the settings in ``config.yaml``.

        Raises:
            UserError: ``config.yaml`` is missing, or not a YAML mapping.
        """
        path = self.root / CONFIG
        try:
            settings = load_yaml(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            settings = None
        if not isinstance(settings, dict):
            raise UserError(f"{path}: not readable, so the run cannot resume")
        return settings

    def require_writable(self) -> None:
        """Check that the directory exists and is writable, or can be created.

        Raises:
            UserError: the directory is not writable.
        """
        require_writable(self.root, f"output_dir {self.root}")

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold an exclusive lock on the directory (``flock``, released by the kernel when the process dies).

        Raises:
            UserError: naming the process that holds the lock; or the directory is not writable.
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
                owner = file.read().strip() or "of another user"
                raise UserError(f"output_dir {self.root}: process {owner} is training in this directory") from None
            file.truncate(0)
            file.write(f"{os.getpid()}\n")
            file.flush()
            try:
                yield
            finally:
                file.truncate(0)  # not removed: another process may wait on this file, and would lock a deleted file

    def open(self, config: str, from_step: int | None) -> None:
        """Create the directory, write ``config.yaml``, and drop rows after step ``from_step`` from every file.

        Args:
            config: text of ``config.yaml``.
            from_step: step of the checkpoint to resume from; None for a new run, which drops all rows.

        Raises:
            UserError: the directory is not writable, or a file is damaged.
        """
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            write_atomic(self.root / CONFIG, config)
        except OSError as error:
            raise UserError(f"output_dir {self.root}: cannot be written ({error.strerror})") from None
        for name in RECORDS:
            path = self.root / name
            rows = [] if from_step is None else [row for row in self.read(name) if step_of(row, path) <= from_step]
            write_atomic(path, "".join(json.dumps(row) + "\n" for row in rows))
            self.rows[name] = len(rows)

    def append(self, name: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """Append one JSON line per row to the file ``name``; NaN and inf become null."""
        lines = [_json_line(row) for row in rows]
        with (self.root / name).open("a", encoding="utf-8") as file:
            file.writelines(lines)
        self.rows[name] = self.rows.get(name, 0) + len(lines)

    def replace_last(self, name: str, row: Mapping[str, Any]) -> None:
        """Replace the last row of the file ``name`` with ``row`` (atomic write)."""
        rows = self.read(name)
        write_atomic(self.root / name, "".join(_json_line(kept) for kept in [*rows[:-1], row]))

    def dump_fault(self, step: int, rows: Iterable[Mapping[str, Any]]) -> Path:
        """Write the problems of a step with NaN or inf to ``faults/`` (atomic write); return the path."""
        path = self.root / FAULTS / f"{step:06d}.jsonl"
        path.parent.mkdir(exist_ok=True)
        write_atomic(path, "".join(_json_line(row) for row in rows))
        return path

    def fsync(self) -> None:
        """Flush all rows to disk (fsync), before a checkpoint of the same step is written."""
        for name in RECORDS:
            if (self.root / name).exists():
                fsync_path(self.root / name)
        fsync_path(self.root)

    def read(self, name: str) -> list[dict[str, Any]]:
        """Return the rows of the file ``name`` (none for a missing file), without a truncated last line.

        Raises:
            UserError: the file is not readable, or a line before the last is not JSON; the line is named.
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
                    if number == len(lines):  # no newline at the end: a kill truncated the line
                        break
                    raise UserError(f"{path}, line {number}: not JSON; mend or remove the line") from None
        return rows


def step_of(row: Any, path: Path) -> float:
    """Return the training step of a row.

    Raises:
        UserError: the row has no step.
    """
    step = row.get("step") if isinstance(row, dict) else None
    if not isinstance(step, (int, float)) or not math.isfinite(step):
        raise UserError(f"{path}: not readable (a row without a step)")
    return step


def _json_line(row: Mapping[str, Any]) -> str:
    try:
        return json.dumps(row, allow_nan=False) + "\n"
    except ValueError:
        return json.dumps(_null_nonfinite(row), allow_nan=False) + "\n"


def _null_nonfinite(value: Any) -> Any:
    """Return a copy of a JSON value with None in place of every NaN and inf."""
    if isinstance(value, Mapping):
        return {key: _null_nonfinite(inside) for key, inside in value.items()}
    if isinstance(value, (list, tuple)):
        return [_null_nonfinite(inside) for inside in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
