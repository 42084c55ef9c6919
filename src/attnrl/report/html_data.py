"""What ``attnrl report`` reads of run directories, in the compact form that its page draws from."""

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
from attnrl.method.steps import split_steps
from attnrl.runs.directory import CONFIG, METRICS, TREES, RunDirectory
from attnrl.runs.metrics_file import read_metrics

MAX_POINTS = 600  # of a curve: more than a chart has pixels for
DIGITS = 5  # of a number, significant ones

Json = Any


@dataclass(frozen=True)
class ForestLine:
    """Where one problem's forest is in ``trees.jsonl``.

    Attributes:
        step: the training step.
        rank: the how-manieth forest of its step it is, from 0.
        number: line of the file, from 1.
        offset: its first byte.
    """

    step: int
    rank: int
    number: int
    offset: int


def run_names(runs: Sequence[Path]) -> list[str]:
    """The name of each run: its directory's, or the path as given where several directories have that name."""
    names = [run.resolve().name for run in runs]
    return [str(run) if names.count(name) > 1 else name for run, name in zip(runs, names, strict=True)]


def read_run(root: Path) -> dict[str, Json]:
    """Settings, headline numbers and curves of a run, whatever of them there is.

    Raises:
        UserError: there is no run at ``root``, or a file of it is damaged; it is named.
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
        "columns": columns(stepped),
    }


def thinned(rows: list[dict[str, Json]]) -> list[dict[str, Json]]:
    """Every n-th row, so that at most ``MAX_POINTS`` are left, the last one among them."""
    stride = math.ceil(len(rows) / MAX_POINTS)
    return rows[::-1][::stride][::-1] if rows else []


def columns(rows: Sequence[Mapping[str, float | None]]) -> dict[str, list[float | None]]:
    """Each metric as a list, the means of consecutive rows where there are more than ``MAX_POINTS``."""
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
    """A number to a few significant digits: half the bytes, and the same picture."""
    if value is None or not math.isfinite(value):
        return None
    return int(value) if value == int(value) else float(f"{value:.{DIGITS}g}")


def _number(value: object) -> float | None:
    """A finite number, or None for anything else."""
    # Not math.isfinite(), which fails on an integer that is larger than any float.
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= sys.float_info.max:
        return None
    return value


def _metrics(run: RunDirectory) -> list[dict[str, Any]]:
    return [{name: _number(value) for name, value in row.items()} for row in read_metrics(run)]


def _settings(run: RunDirectory) -> dict[str, Json]:
    """Settings by their dotted names; none where ``config.yaml`` is missing or damaged, for a report needs none."""
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


class Forests:
    """The forests of a run, found without reading them all: ``trees.jsonl`` may be larger than memory."""

    def __init__(self, root: Path) -> None:
        """Find the lines of ``root``'s ``trees.jsonl``; there are none if there is no such file.

        A last line cut short by a kill is left out.
        """
        self._path = root / TREES
        self.lines = list(self._find())

    def _find(self) -> Iterator[ForestLine]:
        if not self._path.is_file():
            return
        seen: dict[int, int] = defaultdict(int)
        offset = 0
        with self._path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                # The step comes first in a row: what follows need not be parsed to know it.
                found = re.match(rb'\{"step": (\d+),', line)
                if line.strip() and line.endswith(b"\n"):
                    step = int(found[1]) if found else self._parse(line, number)["step"]
                    yield ForestLine(step, seen[step], number, offset)
                    seen[step] += 1
                offset += len(line)

    def read(self, line: ForestLine) -> dict[str, Any]:
        """One forest, as ``trees.jsonl`` has it.

        Raises:
            UserError: the line is damaged.
        """
        with self._path.open("rb") as file:
            file.seek(line.offset)
            return self._parse(file.readline(), line.number)

    def compact(self, line: ForestLine) -> dict[str, Json]:
        """One forest, as the page has it.

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

    def most_telling_first(self) -> list[ForestLine]:
        """The lines in the order to keep them: one problem of every step, newest step first, then the next ones."""
        return sorted(self.lines, key=lambda line: (line.rank, -line.step))


def compact_forest(row: Mapping[str, Any]) -> dict[str, Json]:
    """A row of ``trees.jsonl`` without token ids, each text and each segment once."""
    return {
        "problem": str(row["problem"]),
        "prompt": str(row["prompt"]),
        "answers": [str(answer) for answer in row["answers"]],
        "filtered": bool(row["filtered"]),
        "root": rounded(row["root_value"]),
        "trees": [_compact_tree(tree) for tree in row["trees"]],
    }


def _compact_tree(tree: Mapping[str, Any]) -> dict[str, Json]:
    starts = [int(start) for start in tree["steps"]]
    entropy = tree["entropy"]
    # The paths of a tree share their first segments.
    segments = {tuple(segment[:3]): segment for node in tree["nodes"] for segment in node["segments"]}
    return {
        "trained": bool(tree["trained"]),
        "starts": starts,
        "fci": [rounded(value) for value in tree["fci"]],
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
                "pieces": pieces(str(node["text"])),
                "reward": rounded(node["reward"]),
                "finish": str(node["finish_reason"]),
            }
            for node in tree["nodes"]
        ],
    }


def pieces(text: str) -> list[str]:
    """The text of each step, cut by the same rule as its tokens were; text without newlines is one piece."""
    starts = split_steps([*text], chunk_tokens=len(text) or 1).starts
    return [text[start:end] for start, end in pairwise([*starts, len(text)])]
