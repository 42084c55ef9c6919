"""Golds of data files against themselves, and against themselves with one digit, sign, letter or bracket changed.

    python benchmarks/grading_golds.py ../shared/data/*.parquet --changes 3 --workers 2

Every row's gold is boxed and graded with the row's own prompt, and every distinct gold with the prompt "?": a verdict
other than ``correct`` is listed. Of each distinct gold, up to ``--changes`` changed texts of each kind are graded
(``gold_changes.py`` has the rules): a text that is not ``wrong`` is listed. Prints JSON; figures are by kind of change.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from gold_changes import KINDS, changes

from attnrl.data.datasets import load_problems
from attnrl.grading.base import ClosableGrader
from attnrl.grading.registry import build_grader
from attnrl.types import Problem

BATCH = 4_096
Pair = tuple[Problem, str]  # a problem with a single gold, and the boxed text


def golds_of(problems: Sequence[Problem], *, every_row: bool) -> Iterator[Problem]:
    """Yield a problem for each gold, of every row or of the first row with the gold; empty golds are left out."""
    seen: set[str] = set()
    for problem in problems:
        for gold in problem.answers:
            if gold.strip() and (every_row or gold not in seen):
                seen.add(gold)
                yield Problem(problem.id, problem.prompt, (gold,), problem.source)


def without_prompt(problems: Sequence[Problem]) -> list[Problem]:
    return [Problem(problem.id, "?", problem.answers) for problem in problems]


def changed(problems: Sequence[Problem], most: int, seed: int = 0) -> Iterator[tuple[str, Problem, str]]:
    """Yield (kind, problem, changed gold), up to ``most`` of a kind and gold, drawn with the seed."""
    rng = random.Random(seed)
    for problem in problems:
        for kind, texts in changes(problem.answers[0], rng).items():
            distinct = sorted(set(texts))
            for text in rng.sample(distinct, min(most, len(distinct))):
                yield kind, problem, text


def verdicts(grader: ClosableGrader, pairs: Sequence[Pair]) -> list[str]:
    found: list[str] = []
    for start in range(0, len(pairs), BATCH):
        batch = pairs[start : start + BATCH]
        grades = grader.grade([problem for problem, _ in batch], [f"\\boxed{{{text}}}" for _, text in batch])
        found += [grade.verdict for grade in grades]
    return found


def themselves(grader: ClosableGrader, problems: Sequence[Problem]) -> dict[str, Any]:
    found = verdicts(grader, [(problem, problem.answers[0]) for problem in problems])
    refused = [
        {"gold": problem.answers[0], "problem": problem.id, "verdict": verdict}
        for problem, verdict in zip(problems, found, strict=True)
        if verdict != "correct"
    ]
    return {"golds": len(problems), "correct": len(problems) - len(refused), "refused": refused}


def changed_golds(grader: ClosableGrader, rows: Sequence[tuple[str, Problem, str]]) -> dict[str, Any]:
    found = verdicts(grader, [(problem, text) for _, problem, text in rows])
    by_kind: dict[str, Counter[str]] = {kind: Counter() for kind in KINDS}
    for (kind, *_), verdict in zip(rows, found, strict=True):
        by_kind[kind][verdict] += 1
    accepted = [
        {"kind": kind, "gold": problem.answers[0], "changed": text}
        for (kind, problem, text), verdict in zip(rows, found, strict=True)
        if verdict == "correct"
    ]
    undecided = [
        {"verdict": verdict, "gold": problem.answers[0], "changed": text}
        for (_, problem, text), verdict in zip(rows, found, strict=True)
        if verdict not in ("correct", "wrong")
    ]
    return {
        "changed": len(rows),
        "refused_share": round(1 - len(accepted) / max(1, len(rows)), 5),
        "verdicts": {kind: dict(counts) for kind, counts in by_kind.items()},
        "accepted": accepted,
        "undecided": undecided,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="+", type=Path, help="data files")
    parser.add_argument("--changes", type=int, default=3, help="changed texts of a kind and gold, at most")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    problems = [problem for path in arguments.data for problem in load_problems(path)]
    rows = list(golds_of(problems, every_row=True))
    distinct = list(golds_of(problems, every_row=False))
    bare = without_prompt(distinct)
    report: dict[str, Any] = {"files": [path.name for path in arguments.data]}
    with build_grader("math", workers=arguments.workers) as grader:
        for name, work in {
            "with_own_prompt": lambda: themselves(grader, rows),
            "without_prompt": lambda: themselves(grader, bare),
            "changed_with_own_prompt": lambda: changed_golds(
                grader, list(changed(distinct, arguments.changes, arguments.seed))
            ),
            "changed_without_prompt": lambda: changed_golds(
                grader, list(changed(bare, arguments.changes, arguments.seed))
            ),
        }.items():
            started = time.perf_counter()
            report[name] = work() | {"seconds": round(time.perf_counter() - started, 1)}
    print(json.dumps(report, indent=1, ensure_ascii=False))


if __name__ == "__main__":
    main()
