"""The table of graders, the ``rules`` grader, and the imports of the package."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from typer.testing import CliRunner

import attnrl.grading
from attnrl.cli.app import app
from attnrl.errors import UserError
from attnrl.grading.base import ClosableGrader
from attnrl.grading.math import MathGrader
from attnrl.grading.registry import GRADERS, GraderOptions, build_grader
from attnrl.grading.rules import RulesGrader
from attnrl.types import Grade, Problem


class AlwaysRight(ClosableGrader):
    def grade(self, problems: Sequence[Problem], responses: Sequence[str]) -> list[Grade]:
        return [Grade(1.0, "correct", response) for response in responses]


def test_names_and_options() -> None:
    assert build_grader("rules", flexible=True) == RulesGrader(True)
    with build_grader("math", flexible=True, workers=3, deadline=7.0) as grader:
        assert isinstance(grader, MathGrader)
        assert (grader.flexible, grader.pool.size, grader.pool.deadline) == (True, 3, 7.0)


@pytest.mark.parametrize("name", ["exact", "mat", "", "Rules"])
def test_an_unknown_name_is_refused_with_the_known_names(name: str) -> None:
    with pytest.raises(UserError) as caught:
        build_grader(name)
    assert all(text in str(caught.value) for text in ("grader", repr(name), *GRADERS))


def test_a_new_row_of_the_table_is_a_grader_of_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[GraderOptions] = []

    def builder(options: GraderOptions) -> ClosableGrader:
        built.append(options)
        return AlwaysRight()

    monkeypatch.setitem(GRADERS, "always-right", builder)
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text(json.dumps({"response": "6", "answer": "5"}) + "\n")
    command = ["grade", str(source), "--output", str(output), "--grader", "always-right", "--workers", "3"]
    assert CliRunner().invoke(app, command).exit_code == 0
    assert json.loads(output.read_text())["reward"] == 1.0
    assert built == [GraderOptions(flexible=False, workers=3, deadline=5.0)]


@pytest.mark.parametrize(
    ("gold", "response", "verdict"),
    [
        ("5", "\\boxed{5}, \\boxed{5.0}", "correct"),
        ("5", "\\boxed{6} or \\boxed{5}", "wrong"),
        ("5", "\\boxed{10/2}", "wrong"),
        ("\\%", "\\boxed{5}", "bad_gold"),
        ("5", "\\boxed{ }", "no_answer"),
    ],
)
def test_rules(gold: str, response: str, verdict: str) -> None:
    with build_grader("rules") as rules:
        assert rules.grade([Problem("0", "?", (gold,))], [response])[0].verdict == verdict


def test_grading_imports_neither_torch_nor_transformers_nor_sympy() -> None:
    modules = sorted(path.stem for path in Path(attnrl.grading.__path__[0]).glob("*.py") if path.stem != "__init__")
    code = "; ".join(f"import attnrl.grading.{module}" for module in modules)
    code += "; import sys; print(*{'torch', 'transformers', 'sympy', 'math_verify'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "", "")
