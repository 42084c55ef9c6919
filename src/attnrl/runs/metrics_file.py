"""Read and validate ``metrics.jsonl`` of any run directory, including copied, edited or truncated files."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from attnrl.errors import UserError
from attnrl.runs.directory import METRICS, RunDirectory


def read_metrics(run: RunDirectory, numbers: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Return the rows of ``metrics.jsonl``; every row has a finite ``step``.

    Args:
        run: directory of the run.
        numbers: optional metrics, numbers if present.

    Raises:
        UserError: naming the row without a step, or the metric that is not a number.
    """
    rows = run.read(METRICS)
    for number, row in enumerate(rows, start=1):
        location = f"{run.root / METRICS}, row {number}"
        if not isinstance(row, dict) or not _is_number(row.get("step"), finite=True):
            raise UserError(f"{location}: not the metrics of a step (no number step)")
        for name in numbers:
            if name in row and not _is_number(row[name]):
                raise UserError(f"{location}: {name} is a {type(row[name]).__name__}, not a number")
    return rows


def _is_number(value: object, *, finite: bool = False) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return not finite or abs(value) <= sys.float_info.max
