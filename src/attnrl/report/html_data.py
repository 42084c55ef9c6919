"""Reader of run directories for ``attnrl report``: compact data for the page."""

from __future__ import annotations

import json
import math
import re
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from statistics import fmean
from typing import Any

from attnrl.errors import UserError
from attnrl.method.steps import StepSettings, split_steps
from attnrl.runs.directory import CONFIG, METRICS, TREES, RunDirectory
from attnrl.runs.metrics_file import read_metrics

MAX_POINTS = 600  # points per curve, about the width of a chart in pixels
DIGITS = 5  # significant digits of a number

Json = Any


@dataclass(frozen=True)
class ForestLine:
    """Location of one problem's forest in ``trees.jsonl``.

    Attributes:
        step: the training step.
        rank: number of the forest within the step, from 0.
        number: line number in the file, from 1.
        offset: offset of the line in bytes.
    """

    step: int
    rank: int
    number: int
    offset: int


def run_names(runs: Sequence[Path]) -> list[str]:
    """Return the display name of each run: the directory's name, or the given path if the name is not unique."""
    names = [run.resolve().name for run in runs]
    return [str(run) if names.count(name) > 1 else name for run, name in zip(runs, names, strict=True)]


def read_run_data(root: Path) -> dict[str, Json]:
    """Return settings, headline numbers, evaluations and metric curves of a run; missing parts are empty or None.

    Raises:
        UserError: ``root`` holds no run, or a file of the run is damaged; the message names the file.
    """
    if not root.is_dir():
        raise UserError(f"{root}: no such run directory")
    run = RunDirectory(root)
    if not (root / METRICS).is_file() and not run.holds_a_run():
        raise UserError(f"{root}: no run (it has neither {CONFIG} nor {METRICS})")
    rows = _metrics(run)
    settings = _settings(run)
    stepped = [row for row in rows if "time/step" in row]
    seconds = list(accumulate(row.get("time/step") or 0.0 for row in rows))
    evaluated = [
        {
            "step": row["step"],
            "tokens": row.get("tokens/total") or 0,
            "seconds": rounded(elapsed),
            "accuracy": rounded(row["eval/accuracy"]),
            "error": rounded(row.get("eval/standard_error")),
            "reward": rounded(row.get("eval/reward")),
        }
        for row, elapsed in zip(rows, seconds, strict=True)
        if row.get("eval/accuracy") is not None
    ]
    valid = [row["tokens/valid_ratio"] for row in stepped if row.get("tokens/valid_ratio") is not None]
    return {
        "settings": settings,
        "headline": {
            "steps": rows[-1]["step"] if rows else None,
            "planned": _number(settings.get("steps")),
            "before": evaluated[0] if evaluated else None,
            "after": evaluated[-1] if len(evaluated) > 1 else None,
            "tokens": stepped[-1].get("tokens/total") if stepped else None,
            "seconds": rounded(seconds[-1]) if stepped else None,
            "valid_ratio": rounded(fmean(valid)) if valid else None,
        },
        "evaluations": thinned(evaluated),
        "columns": metric_columns(stepped),
    }


def thinned(rows: list[dict[str, Json]]) -> list[dict[str, Json]]:
    """Return every n-th row, at most :data:`MAX_POINTS` rows including the last row."""
    stride = math.ceil(len(rows) / MAX_POINTS)
    return rows[::-1][::stride][::-1] if rows else []


def metric_columns(rows: Sequence[Mapping[str, float | None]]) -> dict[str, list[float | None]]:
    """Return metric -> values; with more than :data:`MAX_POINTS` rows, means over consecutive rows."""
    width = max(1, math.ceil(len(rows) / MAX_POINTS))
    bins = [rows[start : start + width] for start in range(0, len(rows), width)]
    names = dict.fromkeys(name for row in rows for name in row if not name.startswith("eval/"))
    found = {name: [_mean([row.get(name) for row in one]) for one in bins] for name in names}
    if rows:
        found["step"] = [one[-1]["step"] for one in bins]
    return found


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return rounded(fmean(known)) if known else None


def rounded(value: float | None) -> float | None:
    """Return ``value`` rounded to :data:`DIGITS` significant digits, or None for None, NaN and inf."""
    if value is None or not math.isfinite(value):
        return None
    return int(value) if value == int(value) else float(f"{value:.{DIGITS}g}")


def _number(value: object) -> float | None:
    """Return ``value`` if it is a finite number, else None."""
    # math.isfinite() would raise OverflowError for an integer larger than any float.
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= sys.float_info.max:
        return None
    return value


def _metrics(run: RunDirectory) -> list[dict[str, Any]]:
    return [{name: _number(value) for name, value in row.items()} for row in read_metrics(run)]


def _settings(run: RunDirectory) -> dict[str, Json]:
    """Return the settings by dotted name; empty if ``config.yaml`` is missing or damaged."""
    try:
        return dict(_flat(run.read_config(), ""))
    except UserError:
        return {}


def _flat(settings: Mapping[Any, Any], prefix: str) -> Iterator[tuple[str, Json]]:
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            plain = value is None or isinstance(value, bool | str) or _number(value) is not None
            yield f"{prefix}{key}", value if plain else str(value)


class ForestLog:
    """Index of the forests in ``trees.jsonl``, read on demand: the file may be larger than memory."""

    def __init__(self, root: Path) -> None:
        """Index ``trees.jsonl`` in ``root`` (empty without a file); a truncated last line (a crash) is left out."""
        self._path = root / TREES
        self.lines = list(self._index())

    def _index(self) -> Iterator[ForestLine]:
        if not self._path.is_file():
            return
        seen: dict[int, int] = defaultdict(int)
        offset = 0
        with self._path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                # The step comes first in a row, so the rest need not be parsed.
                found = re.match(rb'\{"step": (\d+),', line)
                if line.strip() and line.endswith(b"\n"):
                    step = int(found[1]) if found else self._parse(line, number)["step"]
                    yield ForestLine(step, seen[step], number, offset)
                    seen[step] += 1
                offset += len(line)

    def read(self, line: ForestLine) -> dict[str, Any]:
        """Return the row of ``trees.jsonl`` at ``line``.

        Raises:
            UserError: the line is damaged.
        """
        with self._path.open("rb") as file:
            file.seek(line.offset)
            return self._parse(file.readline(), line.number)

    def compact(self, line: ForestLine) -> dict[str, Json]:
        """Return the forest at ``line`` in the form of :func:`compact_forest`.

        Raises:
            UserError: the line is damaged.
        """
        row = self.read(line)
        try:
            return compact_forest(row)
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            raise UserError(f"{self._path}, line {line.number}: not a forest ({error!r})") from None

    def _parse(self, line: bytes, number: int) -> dict[str, Any]:
        try:
            row = json.loads(line)
        except ValueError:
            raise UserError(f"{self._path}, line {number}: not JSON") from None
        if not isinstance(row, dict) or not isinstance(row.get("step"), int):
            raise UserError(f"{self._path}, line {number}: not a forest")
        return row

    def retention_order(self) -> list[ForestLine]:
        """Return the lines in order of retention: the first forest of every step, newest first, then the second, ..."""
        return sorted(self.lines, key=lambda line: (line.rank, -line.step))


def compact_forest(row: Mapping[str, Any]) -> dict[str, Json]:
    """Return a row of ``trees.jsonl`` without token ids, with every text and every segment once."""
    return {
        "problem": str(row["problem"]),
        "prompt": str(row["prompt"]),
        "answers": [str(answer) for answer in row["answers"]],
        "filtered": bool(row["filtered"]),
        "root": rounded(row["root_value"]),  # None: no leaf is judged
        "trees": [_compact_tree(tree) for tree in row["trees"]],
    }


def _compact_tree(tree: Mapping[str, Any]) -> dict[str, Json]:
    starts = [int(start) for start in tree["steps"]]
    entropy = tree["entropy"]
    # Paths of one tree share the first segments.
    segments = {tuple(segment[:3]): segment for node in tree["nodes"] for segment in node["segments"]}
    return {
        "trained": bool(tree["trained"]),
        "starts": starts,
        "influence": [rounded(value) for value in tree["influence"]],
        "entropy": [_mean(entropy[start:end]) for start, end in pairwise([*starts, len(entropy)])],
        "points": [int(point) for point in tree["branch_points"]],
        "segments": [
            [int(owner), int(start), int(end), rounded(value), rounded(advantage)]
            for owner, start, end, value, advantage in segments.values()
        ],
        "nodes": [
            {
                "at": int(node["at"]),
                "tokens": len(node["tokens"]),
                "pieces": split_text(str(node["text"])),
                "reward": rounded(node["reward"]),  # None: not judged
                "correct": bool(node.get("correct", (node["reward"] or 0) >= 1)),  # runs before 0.2 had rewards only
                "finish": str(node["finish_reason"]),
            }
            for node in tree["nodes"]
        ],
    }


def split_text(text: str) -> list[str]:
    """Return the text of each step, split by the rule of the token steps; text without newlines is one step."""
    starts = split_steps([*text], StepSettings(chunk_tokens=len(text) or 1)).starts
    return [text[start:end] for start, end in pairwise([*starts, len(text)])]
