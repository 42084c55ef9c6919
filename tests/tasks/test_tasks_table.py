"""The table of tasks, and tasks of the user by module:object."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from command_line import EVAL, Attnrl, train

from attnrl.errors import UserError
from attnrl.grading.rules import RulesGrader
from attnrl.tasks import registry
from attnrl.tasks.base import Task
from attnrl.tasks.ledger import LedgerTask
from attnrl.tasks.registry import find_task
from attnrl.types import Problem

MODULE = """
from attnrl.tasks.base import Task
from attnrl.types import Grade, Problem

class Sums:
    name = "sums"

    def draw(self, rng):
        a, b = rng.randrange(100), rng.randrange(100)
        prompt = f"A={a}; B={b}?"
        return Problem(id=prompt, prompt=prompt, answers=(str(a + b),), source=self.name)

class Graded(Sums):
    grader = "user_tasks:reward"

def reward(completions, **_):
    return [0.25] * len(completions)

class Whole(Task):
    name = "whole"
    draw = Sums.draw

class Failing:
    def draw(self, rng):
        raise ZeroDivisionError("a fault")

class Text:
    def draw(self, rng):
        return "1+1?"

class Unfinished:
    def __init__(self, size):
        pass

nothing = 3
"""


@pytest.fixture
def folder(tmp_path: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "tiny").symlink_to(tiny_checkpoint)
    (tmp_path / "user_tasks.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def read_jsonl(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_shipped_tasks() -> None:
    assert find_task("ledger_single") == find_task("ledger_single") != find_task("ledger")
    for name in ["ledger_single", "ledger", "ledger_long"]:
        task = find_task(name)
        assert isinstance(task, LedgerTask) and task.name == name
        assert task.knows_dependencies and not task.fits_prompts
        assert task.grader(flexible=True) == RulesGrader(True)


def test_an_unknown_name_is_told_with_the_near_one() -> None:
    for name, near in [("leger", "ledger"), ("reasoning_gym", "reasoning_gym:"), ("ledger:", "ledger")]:
        with pytest.raises(UserError, match=near):
            find_task(name)


def test_a_row_of_the_table_is_a_task(monkeypatch: pytest.MonkeyPatch) -> None:
    class Coin(Task):
        def __init__(self, name: str) -> None:
            self.name = name

        def draw(self, rng: random.Random) -> Problem:
            return Problem(id="coin", prompt="?", answers=("1",))

    monkeypatch.setattr(registry, "TASKS", {**registry.TASKS, "coin": Coin})
    assert isinstance(find_task("coin"), Coin) and find_task("coin").fits_prompts


def test_a_task_of_the_user(folder: Path) -> None:
    sums, graded, whole = (find_task(f"user_tasks:{name}") for name in ("Sums", "Graded", "Whole"))
    assert sums.draw(random.Random(0)) == graded.draw(random.Random(0))
    assert (sums.name, whole.name) == ("user_tasks:Sums", "whole")
    assert sums.fits_prompts and not sums.knows_dependencies
    assert sums.grader(flexible=False) == RulesGrader(False)
    (grade,) = graded.grader(flexible=False).grade([sums.draw(random.Random(0))], ["\\boxed{1}"])
    assert grade.reward == 0.25


@pytest.mark.parametrize(
    ("name", "named"), [("Failing", "a fault"), ("Text", "str"), ("Unfinished", "size"), ("nothing", "draw")]
)
def test_a_faulty_task_of_the_user(folder: Path, name: str, named: str) -> None:
    with pytest.raises(UserError, match=named) as caught:
        find_task(f"user_tasks:{name}").draw(random.Random(0))
    assert f"user_tasks:{name}" in str(caught.value)


def test_a_task_of_the_user_through_the_command_line(folder: Path, attnrl: Attnrl) -> None:
    run = train("task=user_tasks:Graded", "output_dir=run")
    outcome = attnrl(*run)
    assert outcome.code == 0, outcome.err
    rows = read_jsonl(folder / "run" / "metrics.jsonl")
    steps = [row["step"] for row in rows]
    assert attnrl(*run, "steps=3").code == 0  # resumed
    assert read_jsonl(folder / "run" / "metrics.jsonl")[: len(rows)] == rows
    assert read_jsonl(folder / "run" / "metrics.jsonl")[-1]["step"] == 3 > max(steps)
    assert attnrl(*EVAL, "--task", "user_tasks:Graded", "--output", "x").code == 0
    samples = read_jsonl(folder / "x" / "samples.jsonl")
    assert samples and all(row["problem"].startswith("A=") and row["reward"] == 0.25 for row in samples)
    outcome = attnrl(*train("task=user_tasks:Sum"))
    assert outcome.code == 2 and "Sums" in outcome.err
