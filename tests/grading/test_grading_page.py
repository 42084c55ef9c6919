"""The examples of docs/grading.md have the verdicts of their columns, and the map of the package is complete."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from attnrl import grading
from attnrl.grading.registry import build_grader
from attnrl.types import Problem

PAGE = Path(__file__).parents[2] / "docs" / "grading.md"
COLUMNS = {"true answer", "correct", "wrong"}
MIN_EXAMPLES = 250  # a page without tables must not pass
_CODE = re.compile(r"`([^`]+)`")


@dataclass(frozen=True)
class Example:
    """An answer on the page, or a whole response with boxes, with the verdict of the column."""

    problem: str
    gold: str
    answer: str
    verdict: str

    @property
    def response(self) -> str:
        return self.answer if "\\boxed" in self.answer else f"\\boxed{{{self.answer}}}"


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def examples(page: str) -> Iterator[Example]:
    """Yield the examples of each table with the columns of a comparison; ``problem`` is an optional column."""
    names: list[str] | None = None
    for line in page.splitlines():
        if not line.startswith("|"):
            names = None
        elif names is None:
            names = _cells(line)
        elif names and COLUMNS.issubset(names) and not set(line) <= set("|- "):
            row = dict(zip(names, _cells(line), strict=True))
            (gold,) = _CODE.findall(row["true answer"])
            problem = _CODE.findall(row.get("problem", ""))
            for verdict in ("correct", "wrong"):
                answers = _CODE.findall(row[verdict])
                assert answers, line
                for answer in answers:
                    yield Example(problem[0] if problem else "", gold, answer, verdict)


def test_every_example_of_the_page_has_the_verdict_of_its_column() -> None:
    rows = list(examples(PAGE.read_text(encoding="utf-8")))
    with build_grader("math", workers=1, deadline=30) as grader:
        problems = [Problem(str(n), row.problem, (row.gold,)) for n, row in enumerate(rows)]
        grades = grader.grade(problems, [row.response for row in rows])
    differ = [(row, grade.verdict) for row, grade in zip(rows, grades, strict=True) if grade.verdict != row.verdict]
    assert differ == []
    assert len(rows) >= MIN_EXAMPLES


def test_the_examples_of_a_table_are_read_by_column() -> None:
    header = "| type | problem | true answer | correct | wrong |\n| --- | --- | --- | --- | --- |\n"
    table = header + "| a number | `Add.` | `5` | `5.0` `10/2` | `6` |\n"
    assert [(row.problem, row.gold, row.answer, row.verdict) for row in examples(table)] == [
        ("Add.", "5", "5.0", "correct"),
        ("Add.", "5", "10/2", "correct"),
        ("Add.", "5", "6", "wrong"),
    ]


def test_the_map_of_the_package_names_every_module() -> None:
    modules = {path.stem for path in Path(grading.__file__).parent.rglob("*.py")} - {"__init__"}
    assert modules - set(re.findall(r"\w+", grading.__doc__ or "")) == set()
