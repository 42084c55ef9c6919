"""Reading ``metrics.jsonl`` of runs that others may have written, copied or cut."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from attnrl.errors import UserError
from attnrl.runs.directory import METRICS, RunDirectory


def read_metrics(run: RunDirectory, numbers: Sequence[str] = ()) -> list[dict[str, Any]]:
    """The rows of a run's metrics, each of which has a step.

    Args:
        run: the run.
        numbers: metrics that a row need not have, and that are numbers where it has them.

    Raises:
        UserError: a row is something else; it is named.
    """
    rows = run.read(METRICS)
    for number, row in enumerate(rows, start=1):
        where = f"{run.root / METRICS}, row {number}"
        if not isinstance(row, dict) or not _is_number(row.get("step"), finite=True):
            raise UserError(f"{where}: not the metrics of a step")
        for name in numbers:
            if name in row and not _is_number(row[name]):
                raise UserError(f"{where}: {name} is a {type(row[name]).__name__}, not a number")
    return rows


def _is_number(value: object, *, finite: bool = False) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return not finite or abs(value) <= sys.float_info.max
