"""Reward functions as people write them, through the command line: train, dry run, eval and grade."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from command_line import EVAL, FILE, ROWS, Attnrl, jsonl, read_jsonl, train, working_folder
from transformers import PreTrainedTokenizerBase

MODULE = """
import asyncio
import functools
import time
import torch

def negative(completions, **columns):
    return [-3.0 + len(text) % 7 for text in completions]
async def later(completions, completion_ids, trainer_state, **columns):
    await asyncio.sleep(0)
    assert trainer_state.max_steps == 1
    return [None if len(ids) % 2 else 0.25 * trainer_state.global_step + 0.5 for ids in completion_ids]
class Logs:
    def __call__(self, prompts, completions, log_metric, **columns):
        log_metric("words", sum(len(text.split()) for text in completions))
        return [0.0] * len(completions)
partial = functools.partial(lambda completions, scale, **columns: [scale] * len(completions), scale=2.0)
def compute_score(data_source, solution_str, ground_truth, extra_info):
    assert data_source and ground_truth == extra_info["answer"]
    return {"score": 1.5 if len(solution_str) % 2 else -1.5}
def sometimes(completions, **columns):
    if len(completions) > 1 or "box" not in str(completions):
        raise RuntimeError("only one at a time") if len(str(completions)) % 2 else ZeroDivisionError
    return [1.0]
def no_box(completions, **columns):
    return [0.5 if "boxed" in text else float("nan") for text in completions]
def level_needed(completions, answr): return [1.0] * len(completions)
def positional(text): return 1.0
def raises(completions, **columns): return [1 / 0]
def short(completions, **columns): return []
def nan(completions, **columns): return [float("nan")]
def text(completions, **columns): return ["1.0"]
def slow(completions, **columns): time.sleep(30)
async def away(completions, **columns): raise ConnectionError("judge.example refused")
def leaves(completions, **columns): raise SystemExit(0)
class Model(torch.nn.Module):
    def forward(self, completions): return 0
def logs_text(completions, log_metric, **columns):
    log_metric("level", "high")
    return [1.0]
def huge(completions, **columns): return [-1e30]
class Grades:
    def grade(self, problems, responses):
        from attnrl.types import Grade
        return [Grade(1.0, "right") for _ in responses]
class Judge:
    @staticmethod
    def of_verl(solution_str, ground_truth): return float(len(solution_str))
class Needs:
    def __init__(self, size): pass
    def __call__(self, completions): return []
number = 5
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    working_folder(tmp_path, tiny_checkpoint, MODULE, monkeypatch)
    return tmp_path


def functions(*names: str) -> str:
    return f"reward.functions=[{','.join(f'mine:{name}' for name in names)}]"


ONE_STEP = ["steps=1", "eval.every=0", "method.pipeline=two_phase"]


def initial(path: str = "out/trees.jsonl") -> list[dict[str, Any]]:
    return [tree["nodes"][0] for row in read_jsonl(path) for tree in row["trees"]]


def test_the_signature_of_verl(attnrl: Attnrl) -> None:
    outcome = attnrl(*train(*FILE, *ONE_STEP, "reward.functions=mine.py:compute_score", "reward.weights=1"))
    assert outcome.code == 0, outcome.err
    assert {node["reward"] for node in initial()} == {1.5, -1.5}


def test_an_exception_in_a_call_of_several_rows_is_tried_row_by_row(attnrl: Attnrl) -> None:
    outcome = attnrl(*train(*FILE, *ONE_STEP, functions("sometimes")))
    assert outcome.code == 3, outcome.err
    assert "mine.py, line" in outcome.out and "sometimes: " in outcome.out


PROBES = {
    "column that is missing": ("level_needed", ["answr", "did you mean answer"]),
    "other parameters": ("positional", ["text", "completions"]),
    "exception": ("raises", ["ZeroDivisionError", "mine.py, line"]),
    "too few rewards": ("short", ["0 rewards for 1"]),
    "nan": ("nan", ["nan"]),
    "text": ("text", ["str"]),
    "too slow": ("slow", ["0.1 s", "reward.timeout"]),
    "async exception": ("away", ["ConnectionError", "judge.example refused"]),
    "exit": ("leaves", ["SystemExit"]),
    "torch module": ("Model", ["torch module"]),
    "class with arguments": ("Needs", ["TypeError", "size"]),
    "number": ("number", ["int"]),
    "metric that is text": ("logs_text", ["'high'", "mine.py, line"]),
    "beyond float32": ("huge", ["-1e+30", "1e12"]),
    "no such method": ("Judge.of_ver", ["of_ver", "did you mean of_verl"]),
    "misspelt": ("negativ", ["did you mean negative"]),
}


@pytest.mark.parametrize("case", PROBES)
def test_a_function_that_cannot_be_called_is_found_at_the_dry_run(case: str, attnrl: Attnrl) -> None:
    name, named = PROBES[case]
    for setting in (functions(name), f"grader=mine:{name}"):
        outcome = attnrl(*train(*FILE, setting, "reward.timeout=0.1"), "--dry-run")
        assert (outcome.code, outcome.err.count("\n")) == (2, 1)
        said = (setting.partition("=")[0], *named, "mine" if "did you mean " in named[-1] else f"mine:{name}")
        assert [part for part in said if part not in outcome.err] == []
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        (["reward.functions=[mine]"], ["reward.functions", "module:object"]),
        (["reward.functions=[nowhere:f]"], ["reward.functions", "nowhere"]),
        ([functions("negative"), "reward.weights=[1,2]"], ["reward", "weights"]),
        ([functions("negative"), "reward.weights=[0]"], ["weights", "all 0"]),
        (["reward.functions=mine:negative,mine:partial"], ["reward.functions", "[mine:negative,mine:partial]"]),
        (["reward.functions=[mine:Grades]"], ["reward.functions", "mine:Grades", "grader=mine:Grades"]),
        (["grader=mine:Grades"], ["grader", "mine:Grades", "right", "correct, wrong"]),
        (["reward.timeout=1e12"], ["reward.timeout"]),
        (["reward.overlong_penalty=0.5"], ["overlong_penalty", "overlong_buffer"]),
        (["reward.overlong_buffer=97"], ["reward.overlong_buffer", "97", "96"]),
        (["reward.truncated=skip"], ["reward.truncated", "skip"]),
        (["reward.correct_from=.nan"], ["reward.correct_from"]),
        (["reward.timout=3"], ["reward.timout", "timeout"]),
    ],
)
def test_settings_that_do_not_fit(settings: list[str], named: list[str], attnrl: Attnrl) -> None:
    outcome = attnrl(*train(*settings), "--dry-run")
    assert (outcome.code, outcome.err.count("\n")) == (2, 1)
    assert [part for part in named if part not in outcome.err] == []


def test_eval_with_a_reward_function(attnrl: Attnrl) -> None:
    command = [*EVAL, "--task", "ledger", "--output", "evals"]
    assert attnrl(*command, "--grader", "mine:negative").code == 0
    found = read_jsonl("evals/samples.jsonl")
    assert all((row["verdict"] == "correct") == (row["reward"] >= 1) for row in found)
    assert min(row["reward"] for row in found) < 0
    outcome = attnrl(*EVAL, "--task", "ledger", "--grader", "mine:raises")
    assert outcome.code == 2 and "ZeroDivisionError" in outcome.err


def test_eval_of_rows_without_answers(attnrl: Attnrl, folder: Path) -> None:
    (folder / "rows.jsonl").write_text(jsonl(*({"prompt": row["prompt"]} for row in ROWS)))
    assert attnrl(*EVAL, "--data", "rows.jsonl", "--grader", "mine:negative", "--output", "evals").code == 0
    assert [row["answers"] for row in read_jsonl("evals/samples.jsonl")] == [[]] * 6
    assert attnrl(*EVAL, "--data", "rows.jsonl").code == 2


def test_grade_with_a_reward_function_that_fails_on_a_row(attnrl: Attnrl, folder: Path) -> None:
    source = [{"response": "\\boxed{5}", "answer": "5"}, {"response": "five", "answer": "5"}, {"response": "boxed"}]
    (folder / "in.jsonl").write_text(jsonl(*source))
    outcome = attnrl("grade", "in.jsonl", "-o", "out.jsonl", "--grader", "mine:no_box")
    assert outcome.code == 3, outcome.err
    assert [(row["reward"], row["verdict"]) for row in read_jsonl("out.jsonl")] == [
        (0.5, "wrong"),
        (None, "not_judged"),
        (0.5, "wrong"),
    ]
    assert "1 of 3" in outcome.err and "no_box: returned nan" in outcome.err


@pytest.mark.parametrize(("options", "verdict"), [([], "no_answer"), (["--while-thinking"], "correct")])
def test_a_box_in_a_thought_that_never_ends(options: list[str], verdict: str, attnrl: Attnrl, folder: Path) -> None:
    source = [
        {"response": "<think> so \\boxed{5}", "answer": "5"},
        {"response": "so \\boxed{5}", "answer": "5", "prompt": "2+3? <think>\n"},
        {"response": "so \\boxed{6} </think> \\boxed{5}", "answer": "5", "prompt": "2+3? <think>\n"},
    ]
    (folder / "in.jsonl").write_text(jsonl(*source))
    for grader in ("rules", "math"):
        assert attnrl("grade", "in.jsonl", "-o", "out.jsonl", "--grader", grader, *options).code == 0
        assert [row["verdict"] for row in read_jsonl("out.jsonl")] == [verdict, verdict, "correct"]


def test_a_bomb_in_an_answer_is_wrong_with_reward_0_and_counted(attnrl: Attnrl, folder: Path) -> None:
    source = [{"response": "\\boxed{9^{9^{9^9}}}", "answer": "5"}, {"response": "\\boxed{5}", "answer": "5"}]
    (folder / "in.jsonl").write_text(jsonl(*source))
    outcome = attnrl("grade", "in.jsonl", "-o", "out.jsonl", "--workers", "1")
    bomb, right = read_jsonl("out.jsonl")
    assert bomb["verdict"] in ("timeout", "error") and bomb["reward"] == 0.0
    assert right["reward"] == 1.0 and bomb["verdict"] in outcome.out


def without_special_tokens(text: str, tokenizer: PreTrainedTokenizerBase) -> str:
    for token in tokenizer.all_special_tokens:
        text = text.replace(token, "")
    return text


def test_any_number_is_a_reward_and_the_grader_decides_what_is_correct(
    attnrl: Attnrl, tokenizer: PreTrainedTokenizerBase
) -> None:
    outcome = attnrl(*train(*FILE, *ONE_STEP, functions("negative")))
    assert outcome.code == 0, outcome.err
    last = read_jsonl("out/metrics.jsonl")[-1]
    expected = [-3.0 + len(without_special_tokens(node["text"], tokenizer)) % 7 for node in initial()]
    assert [node["reward"] for node in initial()] == expected
    assert min(expected) < 0 and max(expected) > 1
    assert last["accuracy/initial"] == 0.0 and last["reward/initial"] == pytest.approx(sum(expected) / len(expected))


def test_several_functions_of_every_kind_and_weights(attnrl: Attnrl, tokenizer: PreTrainedTokenizerBase) -> None:
    names = functions("negative", "later", "Logs", "partial")
    outcome = attnrl(*train(*ONE_STEP, names, "reward.weights=[1, 10, 1, -1]"))
    assert outcome.code == 0, outcome.err
    last = read_jsonl("out/metrics.jsonl")[-1]
    assert {name for name in last if name.startswith("reward/functions/")} == {
        f"reward/functions/{name}" for name in ("negative", "later", "Logs", "partial")
    }
    assert last["reward/functions/later"] == 0.5 and last["reward/functions/partial"] == 2.0
    assert last["reward/logged/words"] > 0
    for node in initial():
        base = -3.0 + len(without_special_tokens(node["text"], tokenizer)) % 7 - 2.0
        assert node["reward"] in (base, base + 5.0)


def test_rows_without_answers_are_judged_by_the_reward(attnrl: Attnrl, folder: Path) -> None:
    (folder / "rows.jsonl").write_text(jsonl(*({"prompt": row["prompt"]} for row in ROWS)))
    settings = [*FILE, *ONE_STEP, functions("negative"), "reward.correct_from=2"]
    outcome = attnrl(*train(*settings))
    assert outcome.code == 0, outcome.err
    assert [node["verdict"] == "correct" for node in initial()] == [node["reward"] >= 2 for node in initial()]
    refused = attnrl(*train(*settings, "grader=math", "output_dir=other"))
    assert refused.code == 2 and "answer" in refused.err


def test_responses_that_a_function_fails_on_are_not_judged(attnrl: Attnrl) -> None:
    outcome = attnrl(*train(*FILE, *ONE_STEP, functions("no_box"), "reward.max_not_judged=1"))
    assert outcome.code == 0, outcome.err
    failed = [node["reward"] is None for node in initial()]
    assert failed == ["boxed" not in node["text"] for node in initial()] and True in failed
    assert read_jsonl("out/metrics.jsonl")[-1]["not_judged/responses"] >= sum(failed)
    assert "no_box: returned nan" in outcome.out


def test_truncated_responses_and_the_overlong_penalty(attnrl: Attnrl) -> None:
    limit = ["sampling.max_new_tokens=12", "reward.overlong_buffer=4", "reward.overlong_penalty=2"]
    outcome = attnrl(*train(*FILE, *ONE_STEP, *limit, functions("partial"), "reward.truncated=zero"))
    assert outcome.code == 0, outcome.err
    cut = [node for node in initial() if node["finish_reason"] == "length"]
    assert cut and {node["reward"] for node in cut} == {-2.0}
    last = read_jsonl("out/metrics.jsonl")[-1]
    assert -2.0 <= last["reward/functions/overlong_penalty"] < 0
