"""A grader that fails after work began has an exit code of its own; before the first token the code is 2."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
from command_line import EVAL, ROWS, Attnrl, jsonl, train

#: Works on the dummy response (a box), fails on the responses of a random model.
MODULE = """
from attnrl.types import Grade
def late(completions, **columns):
    if not all("boxed" in text for text in completions):
        raise RuntimeError("out of\\n quota")
    return [1.0] * len(completions)
def fails(completions, **columns):
    return [1 / 0]
def rarely(completions, **columns):
    rarely.calls += 1
    if rarely.calls == 3:
        raise RuntimeError
    return [0.5] * len(completions)
rarely.calls = 0
class Nonsense:
    def grade(self, problems, responses):
        return [Grade(1.0, "correct")] if "boxed" in responses[0] else ["yes"] * len(responses)
"""
TASK = ["--task", "ledger"]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(tiny_checkpoint, tmp_path / "tiny")
    (tmp_path / "judges.py").write_text(MODULE)
    (tmp_path / "responses.jsonl").write_text(
        jsonl(*({**row, "response": "\\boxed{1}" if n == 0 else "none"} for n, row in enumerate(ROWS)))
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "judges", raising=False)


@pytest.mark.parametrize("grader", ["judges:late", "judges:Nonsense"])
def test_training_ends_with_code_3_when_most_responses_are_not_judged(attnrl: Attnrl, grader: str) -> None:
    ended = attnrl(*train(f"grader={grader}", "steps=1", "eval.every=0"))
    assert (ended.code, ended.err.count("\n")) == (3, 1)
    assert grader.removeprefix("judges:") in ended.err and "Run directory: out" in ended.out
    assert Path("out/checkpoints/step-000001").is_dir()


def test_a_few_faults_of_many_responses_are_no_fault_of_the_run(attnrl: Attnrl) -> None:
    settings = ["reward.functions=[judges:rarely]", "steps=2", "reward.max_not_judged=0.9"]
    assert attnrl(*train(*settings)).code == 0


@pytest.mark.parametrize("grader", ["judges:late", "judges:Nonsense"])
def test_eval_and_grade(attnrl: Attnrl, grader: str) -> None:
    evaluated = attnrl(*EVAL, *TASK, "--grader", grader, "--output", "results")
    assert (evaluated.code, evaluated.err.count("\n")) == (3, 1)
    assert json.loads(Path("results/results.json").read_text())["complete"]
    assert attnrl(*EVAL, *TASK, "--grader", grader, "--output", "results").code == 3  # the same responses
    graded = attnrl("grade", "responses.jsonl", "--output", "graded.jsonl", "--grader", grader)
    assert (graded.code, graded.err.count("\n")) == (3, 1)
    assert grader.removeprefix("judges:") in graded.err
    assert len(Path("graded.jsonl").read_text().splitlines()) == len(ROWS)


def test_before_the_first_token_a_fault_is_bad_input(attnrl: Attnrl) -> None:
    for arguments in (
        train("grader=judges:fails"),
        [*EVAL, *TASK, "--grader", "judges:fails"],
        ["grade", "responses.jsonl", "--output", "graded.jsonl", "--grader", "judges:fails"],
    ):
        refused = attnrl(*arguments)
        assert (refused.code, refused.err.count("\n")) == (2, 1)
        assert "judges:fails" in refused.err and "ZeroDivisionError" in refused.err
    assert not Path("out").exists() and not Path("graded.jsonl").exists()


def test_a_grader_without_a_fault_has_code_0(attnrl: Attnrl) -> None:
    assert attnrl("grade", "responses.jsonl", "--output", "graded.jsonl", "--grader", "rules").code == 0
