"""The golds of six benchmarks and of the training set: equal to themselves, and unlike themselves with one change.

``benchmarks/gold_changes.py`` has the rules of a change; ``benchmarks/grading_golds.py`` grades all golds and changes.
"""

from __future__ import annotations

import importlib
import os
import random
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from attnrl.data.datasets import load_problems
from attnrl.grading.base import ClosableGrader
from attnrl.grading.registry import build_grader
from attnrl.types import Problem

DATA = Path(os.environ.get("ATTNRL_SHARED", Path(__file__).parents[3] / "shared")) / "data"
BENCHMARKS = {
    "aime24_1": 30,
    "aime25_1": 30,
    "amc23_1": 40,
    "math500_1": 500,
    "minerva_1": 272,
    "olympiad_1": 674,
}
TRAINING = "dapo_math_train"
SAMPLE = {"digit": 500, "sign": 400, "letter": 400, "bracket": 60}  # of each kind of change
NEEDS_DATA = pytest.mark.skipif(not DATA.is_dir(), reason="the benchmark files are not here")


@pytest.fixture(scope="module")
def golds() -> Iterator[ModuleType]:
    """The module ``benchmarks/grading_golds.py``."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
        yield importlib.import_module("grading_golds")


@pytest.fixture(scope="module")
def grader() -> Iterator[ClosableGrader]:
    with build_grader("math", workers=2, deadline=10) as built:
        yield built


@pytest.fixture(scope="module")
def files() -> dict[str, list[Problem]]:
    return {name: list(load_problems(DATA / f"{name}.parquet")) for name in (*BENCHMARKS, TRAINING)}


@NEEDS_DATA
@pytest.mark.parametrize("name", [*BENCHMARKS, TRAINING])
def test_every_gold_equals_itself(
    golds: ModuleType, grader: ClosableGrader, files: dict[str, list[Problem]], name: str
) -> None:
    problems = files[name]
    assert len(problems) == BENCHMARKS.get(name, 24_896)
    with_prompt = list(golds.golds_of(problems, every_row=name in BENCHMARKS))
    report = golds.themselves(grader, [*with_prompt, *golds.without_prompt(with_prompt)])
    assert report["refused"] == []


@NEEDS_DATA
def test_a_changed_gold_is_refused(golds: ModuleType, grader: ClosableGrader, files: dict[str, list[Problem]]) -> None:
    """A sample of all changes, half of the problems with their text; every kind of change is in the sample."""
    problems = [problem for name in (*BENCHMARKS, TRAINING) for problem in files[name]]
    distinct = [problem for problem in golds.golds_of(problems, every_row=False) if not problem.answers[0].isdigit()]
    mixed = [problem if n % 2 else golds.without_prompt([problem])[0] for n, problem in enumerate(distinct)]
    changed, rng = list(golds.changed(mixed, most=2)), random.Random(0)
    rows = []
    for kind, count in SAMPLE.items():
        rows += rng.sample([row for row in changed if row[0] == kind], count)
    report: dict[str, Any] = golds.changed_golds(grader, rows)
    assert {kind: sum(counts.values()) for kind, counts in report["verdicts"].items()} == SAMPLE
    assert report["refused_share"] >= 0.995, report["accepted"]


@pytest.mark.parametrize(
    ("gold", "kind", "texts"),
    [
        ("(3,4]", "bracket", {"[3,4]", "(3,4)"}),
        (
            "(-\\infty, 2] \\cup (5, \\infty)",
            "bracket",
            {"(-\\infty, 2) \\cup (5, \\infty)", "(-\\infty, 2] \\cup [5, \\infty)"},
        ),
        ("[1,2) \\cup [2,3]", "bracket", {"(1,2) \\cup [2,3]", "[1,2) \\cup (2,3]", "[1,2) \\cup [2,3)"}),
        ("(1,2)", "bracket", set()),
        ("1 - 2x", "sign", {"1 + 2x", "-1 - 2x"}),
        ("\\pm 2", "sign", set()),
        ("x = -5", "sign", {"x = 5"}),
        ("10^{-3}", "sign", {"10^{3}", "-10^{-3}"}),
        ("x = -5", "letter", set()),
        ("e^{-t}", "letter", {"e^{-T}"}),
        ("864 \\mbox{ inches}^2", "letter", set()),
        ("\\text{even}", "digit", set()),
        ("1.00", "digit", {"d.00"}),
        ("15\\mbox{ cm}^2", "digit", {"d5\\mbox{ cm}^2", "1d\\mbox{ cm}^2"}),
        ("\\frac{1}{6} \\pi+\\pi k", "digit", set()),
    ],
)
def test_the_rules_of_a_change(golds: ModuleType, gold: str, kind: str, texts: set[str]) -> None:
    """Rules by example; ``d`` stands for any digit, and of letters only a change of case is foreseen."""
    found = set()
    for seed in range(20):
        found |= set(golds.changes(gold, random.Random(seed))[kind])
    if kind == "digit":
        assert all(any(_differs_in_d(text, changed) for text in texts) for changed in found)
        assert len(found) >= len(texts)
    elif kind == "letter":
        assert texts <= found and bool(texts) == bool(found)
    else:
        assert found == texts


def _differs_in_d(pattern: str, text: str) -> bool:
    return len(pattern) == len(text) and all(
        one == other or (one == "d" and other.isdigit()) for one, other in zip(pattern, text, strict=True)
    )
