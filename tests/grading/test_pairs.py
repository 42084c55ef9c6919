"""Answer pairs labelled by hand, by kind: no wrong answer is ``correct``, few right answers are ``wrong``.

``pairs/*.jsonl`` has a row for each pair: ``kind``, ``problem`` (optional), ``answer`` (the gold), ``response``, and
``want``. The rows of ``shared/cases`` are of the same form, with ``prompt`` for the problem.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from attnrl.grading.base import ClosableGrader
from attnrl.grading.registry import build_grader
from attnrl.types import Problem

PAIRS = sorted((Path(__file__).parent / "pairs").glob("*.jsonl"))
CASES = Path(os.environ.get("ATTNRL_SHARED", Path(__file__).parents[3] / "shared")) / "cases"
CASE_FILES = {"grading.jsonl": 72, "grading_copies.jsonl": 16, "grading_small_numbers.jsonl": 5}
Row = dict[str, str]

#: (gold, response) of each right answer that the grader refuses, with the reason.
REFUSED: dict[tuple[str, str], str] = {
    ("\\frac13", "\\boxed{\\left.\\frac{x^3}{3}\\right|_0^1=\\frac13}"): "the bar of an antiderivative is not read",
}


def rows_of(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def key_of(row: Row) -> tuple[str, str]:
    return row["answer"], row["response"]


def verdicts(grader: ClosableGrader, rows: Sequence[Row]) -> list[str]:
    problems = [
        Problem(str(n), row.get("problem", row.get("prompt", "?")), (row["answer"],)) for n, row in enumerate(rows)
    ]
    return [grade.verdict for grade in grader.grade(problems, [row["response"] for row in rows])]


@pytest.fixture(scope="module")
def grader() -> Iterator[ClosableGrader]:
    with build_grader("math", workers=1, deadline=30) as built:
        yield built


@pytest.mark.parametrize("path", PAIRS, ids=lambda path: path.stem)
def test_a_pair_has_the_verdict_of_its_label(grader: ClosableGrader, path: Path) -> None:
    rows = rows_of(path)
    unlike = {
        (*key_of(row), verdict)
        for row, verdict in zip(rows, verdicts(grader, rows), strict=True)
        if (verdict == "correct") != (row["want"] == "correct")
    }
    listed = {(*key_of(row), "wrong") for row in rows if row["want"] == "correct" and key_of(row) in REFUSED}
    assert unlike == listed


def test_few_right_answers_are_listed_as_refused() -> None:
    right = [key_of(row) for path in PAIRS for row in rows_of(path) if row["want"] == "correct"]
    assert set(REFUSED) <= set(right)
    assert all(REFUSED.values())
    assert len(REFUSED) <= 0.02 * len(right)


@pytest.mark.parametrize("path", PAIRS, ids=lambda path: path.stem)
def test_the_pairs_of_a_kind_are_balanced(path: Path) -> None:
    rows = rows_of(path)
    wanted = Counter(row["want"] for row in rows)
    assert set(wanted) == {"correct", "wrong"}
    assert 0.45 * len(rows) <= wanted["correct"] <= 0.55 * len(rows)
    assert all(row["kind"] and row["answer"] and "boxed" in row["response"] for row in rows)


def test_the_pairs_are_many_and_distinct() -> None:
    rows = [row for path in PAIRS for row in rows_of(path)]
    assert len(rows) >= 600
    assert len({(row.get("problem"), *key_of(row)) for row in rows}) == len(rows)


@pytest.mark.skipif(not CASES.is_dir(), reason="the cases of the issue are not here")
@pytest.mark.parametrize("name", CASE_FILES)
def test_a_case_has_the_wanted_verdict(grader: ClosableGrader, name: str) -> None:
    rows = rows_of(CASES / name)
    assert len(rows) >= CASE_FILES[name]
    found = verdicts(grader, rows)
    assert [row for row, verdict in zip(rows, found, strict=True) if verdict != row["want"]] == []
