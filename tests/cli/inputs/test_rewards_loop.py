"""Rewards and correctness in a run, responses not judged, truncated responses: through the command line."""

from __future__ import annotations

import json
import math
import os
import re
from pathlib import Path

import pytest
from command_line import EVAL, FILE, Attnrl, jsonl, read_jsonl, train, working_folder

import attnrl as attnrl_package

MODULE = """
import zlib

def luck(text, of):
    return zlib.crc32(text.encode()) % of
def signed(completions, **columns):
    return [(-3.5, 0.25, 6.0)[luck(text, 3)] for text in completions]
def sometimes(completions, **columns):
    kinds = [luck(text, 4) if len(completions) > 1 else 3 for text in completions]
    return [(None, float("nan"), 1.0, 2.0)[kind] for kind in kinds]
def never(completions, **columns):
    return [None] * len(completions)
def nan_once(completions, **columns):
    first = 1.0 if len(completions) == 1 else float("nan")
    return [first] + [float(luck(text, 2)) for text in completions[1:]]
def half(completions, **columns):
    return [None if number % 2 else 1.0 for number, _ in enumerate(completions)]
def mixed(completions, log_metric, **columns):
    log_metric("graded", len(completions))
    return [1e300 if len(completions) > 1 and luck(text, 2) else 1e12 for text in completions]
def negative(completions, **columns):
    return [-1.0] * len(completions)
class Partial:
    def grade(self, problems, responses):
        from attnrl.types import Grade
        kinds = [luck(text, 3) for text in responses]
        return [Grade((-3.5, 0.25, 6.0)[kind], ("wrong", "wrong", "correct")[kind]) for kind in kinds]
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    working_folder(tmp_path, tiny_checkpoint, MODULE, monkeypatch)
    (tmp_path / "held_out.jsonl").write_text(
        jsonl({"prompt": "B=7?", "answer": "7"}, {"prompt": "C=8?", "answer": "8"})
    )
    return tmp_path


def rewarded(function: str, *changes: str) -> list[str]:
    files = [*FILE, "data.eval=held_out.jsonl", "eval.problems=2"]
    return train(*files, f"reward.functions=[mine:{function}]", "grader=rules", *changes)


def test_rewards_below_0_and_above_1_train_and_are_no_accuracy(attnrl: Attnrl) -> None:
    """A random model solves nothing: accuracy is 0, and the reward is another number, everywhere."""
    ran = attnrl(*rewarded("signed", "steps=2"))
    assert ran.code == 0, ran.err
    steps = read_jsonl("out/metrics.jsonl")
    for row in steps[1:]:
        assert row["accuracy"] == row["accuracy/initial"] == 0.0
        assert row["reward"] == row["reward/functions/signed"] != 0.0
        assert row["all/solve_none_ratio"] == 1.0
        assert row["all/valid_ratio"] == row["initial/valid_ratio"] == 1.0
        assert row["update_skipped"] == 0.0 and math.isfinite(row["loss/policy"])
    assert all(row["eval/accuracy"] == 0.0 and row["eval/reward"] != 0.0 for row in steps)
    assert "held-out accuracy 0.0%" in ran.out and f"held-out reward {steps[0]['eval/reward']:.3g}" in ran.out
    assert f"{steps[-1]['eval/reward']:.3f}" in ran.out  # the summary
    trees = read_jsonl("out/trees.jsonl")
    rewards = {node["reward"] for row in trees for tree in row["trees"] for node in tree["nodes"]}
    assert rewards == {-3.5, 0.25, 6.0}
    assert not any(node["correct"] for row in trees for tree in row["trees"] for node in tree["nodes"])
    assert attnrl("report", "out", "-o", "report.html").code == 0
    assert attnrl("plot", "out", "-o", "curves.png").code == 0


def test_the_built_in_graders_show_one_number_once(attnrl: Attnrl) -> None:
    ran = attnrl(*train("steps=1"))
    assert ran.code == 0, ran.err
    row = read_jsonl("out/metrics.jsonl")[-1]
    assert row["reward"] == row["accuracy"] and row["eval/reward"] == row["eval/accuracy"]
    assert "held-out accuracy" in ran.out.lower() and "held-out reward" not in ran.out.lower()
    assert not re.search(r"reward \S+  accuracy", ran.out)


def test_none_and_nan_are_not_judged_and_the_run_goes_on(attnrl: Attnrl) -> None:
    ran = attnrl(*rewarded("sometimes", "steps=2", "reward.max_not_judged=0.2"))
    assert ran.code == 3, ran.err  # the run is over, and the grader failed more often than max_not_judged
    for row in read_jsonl("out/metrics.jsonl")[1:]:
        assert 0 < row["not_judged/ratio"] < 1 and row["not_judged/responses"] >= 1
        assert all(math.isfinite(value) for value in row.values())
    for label in ("step 1", "step 2", "evaluation of step 1", "evaluation of step 2"):  # at once, in one line each
        (line,) = [line for line in ran.out.splitlines() if line.startswith(f"{label}: ") and "judged" in line]
        assert ("warning" in line) == ("reward.max_not_judged=0.2" in line) and "returned nan" in line
    assert all("warning: " in line for line in ran.out.splitlines() if re.match(r"step \d: .* judged", line))
    nodes = [node for row in read_jsonl("out/trees.jsonl") for tree in row["trees"] for node in tree["nodes"]]
    assert {node["reward"] for node in nodes} == {None, 1.0, 2.0}
    assert all((node["segments"] == []) == (node["reward"] is None) for node in nodes)
    assert attnrl("report", "out", "-o", "report.html").code == 0


def test_one_nan_neither_ends_the_run_nor_its_resume(attnrl: Attnrl) -> None:
    """The NaN is in the checkpoint, as a response that is not judged."""
    limit = "reward.max_not_judged=0.5"
    whole = attnrl(*rewarded("nan_once", "steps=3", "output_dir=whole", limit))
    assert whole.code == 0, whole.err
    for steps in (1, 3):
        assert attnrl(*rewarded("nan_once", f"steps={steps}", "output_dir=parts", limit)).code == 0
    states = [
        json.loads(next(Path(one).glob("checkpoints/step-000003/*state*.json")).read_text())
        for one in ("whole", "parts")
    ]
    assert states[0] == states[1]
    assert any(row["not_judged/responses"] for row in read_jsonl("whole/metrics.jsonl")[1:])


def test_a_group_without_a_judged_response_is_dropped_and_said(attnrl: Attnrl) -> None:
    ran = attnrl(*rewarded("never", "steps=1"))
    assert ran.code == 0, ran.err  # no fault: the function applies to no response
    row = read_jsonl("out/metrics.jsonl")[-1]
    assert row["not_judged/groups"] == row["prompt_batch_size"] == 2
    assert row["not_judged/ratio"] == 1.0 and row["update_skipped"] == 1.0
    assert not {"reward", "accuracy", "eval/reward"} & row.keys()
    assert row["eval/accuracy"] == 0.0 and row["eval/not_judged/ratio"] == 1.0
    (line,) = [line for line in ran.out.splitlines() if line.startswith("step 1: ") and "judged (" in line]
    assert "6 of 6" in line and "2 of 2 problems dropped" in line and "returned None" in line
    assert read_jsonl("out/trees.jsonl")[0]["root_value"] is None
    assert attnrl("report", "out", "-o", "report.html").code == 0


def test_a_reward_too_large_for_gradients_is_not_judged(attnrl: Attnrl) -> None:
    """Squares of 1e300 are inf, and so are sums; log_metric of an evaluation is no metric of the next step."""
    ran = attnrl(*rewarded("mixed", "steps=2", "reward.max_not_judged=1"))
    assert ran.code == 0, ran.err
    assert "returned 1e+300" in ran.out
    for row in read_jsonl("out/metrics.jsonl")[1:]:
        assert row["reward"] == 1e12 and row["eval/reward/logged/graded"] == 4.0 != row["reward/logged/graded"]
        assert math.isfinite(row.get("loss/policy", 0.0))


def test_equal_negative_rewards_are_no_signal(attnrl: Attnrl) -> None:
    ran = attnrl(*rewarded("negative", "steps=1"))
    assert ran.code == 0, ran.err
    row = read_jsonl("out/metrics.jsonl")[-1]
    assert (row["reward"], row["update_skipped"], row["all/valid_ratio"]) == (-1.0, 1.0, 0.0)


def test_truncated_responses_are_masked_and_a_note_names_the_way_out(attnrl: Attnrl) -> None:
    short = [*rewarded("signed", "steps=1"), "sampling.max_new_tokens=8", "eval.every=100"]
    plain, masked = (attnrl(*short, f"reward.truncated={way}", f"output_dir={way}") for way in ("as_is", "mask"))
    assert (plain.code, masked.code) == (0, 0), plain.err + masked.err
    one, other = read_jsonl("as_is/metrics.jsonl")[-1], read_jsonl("mask/metrics.jsonl")[-1]
    assert one["truncated_ratio"] == other["truncated_ratio"] > 0.5
    assert one["reward"] == other["reward"]  # in the values and baselines
    assert one["masked_responses"] == 0 < other["masked_responses"]
    assert other["trained_responses"] + other["masked_responses"] == one["trained_responses"]
    for ran in (plain, masked):
        assert sum("sampling.max_new_tokens" in line for line in ran.out.splitlines()) >= 1


def test_eval_says_reward_and_correct_apart(attnrl: Attnrl) -> None:
    """A grader of its own verdicts: the mean reward is no accuracy."""
    asked = [*EVAL[:2], "--data", "rows.jsonl", *EVAL[2:], "--grader", "mine:Partial", "--output", "out"]
    ran = attnrl(*asked)
    assert ran.code == 0, ran.err
    samples, results = read_jsonl("out/samples.jsonl"), json.loads(Path("out/results.json").read_text())["results"][0]
    assert {row["reward"] for row in samples} <= {-3.5, 0.25, 6.0}
    correct = [row["verdict"] == "correct" for row in samples]
    assert results["accuracy"] == pytest.approx(sum(correct) / len(correct))
    assert results["reward"] == pytest.approx(sum(row["reward"] for row in samples) / len(samples))
    assert "reward" in ran.out and f"{results['reward']:.3f}" in ran.out


def test_eval_counts_responses_that_are_not_judged_as_not_correct(attnrl: Attnrl) -> None:
    asked = [*EVAL[:2], "--data", "rows.jsonl", *EVAL[2:], "--grader", "mine:half", "--output", "out"]
    for _ in range(2):  # the second time, the rewards that are None are read
        ran = attnrl(*asked)
        assert ran.code == 0, ran.err  # no fault: the function does not apply
        samples, results = (
            read_jsonl("out/samples.jsonl"),
            json.loads(Path("out/results.json").read_text())["results"][0],
        )
        assert [row["reward"] for row in samples].count(None) == results["not_judged"] == 3
        assert (results["accuracy"], results["reward"]) == (0.5, 1.0)
        (line,) = [line for line in ran.out.splitlines() if "judged (" in line]
        assert "3 of 6" in line
    failed = [*asked[:-2], "--output", "failed", "--grader", "mine:nan_once"]
    for _ in range(2):
        ran = attnrl(*failed)
        assert ran.code == 3 and "1 of 6" in ran.err
        (line,) = [line for line in ran.out.splitlines() if "judged (" in line]
        assert "1 of 6" in line and "nan_once: returned nan" in line


def test_an_answer_that_cannot_be_worked_out_is_wrong_with_reward_0(attnrl: Attnrl) -> None:
    """Nobody escapes a penalty by an answer that takes for ever."""
    Path("answers.jsonl").write_text(jsonl({"response": "\\boxed{9^{9^{9^9}}}", "answer": "5", "prompt": "?"}))
    ran = attnrl("grade", "answers.jsonl", "--output", "graded.jsonl", "--workers", "1")
    assert ran.code == 0, ran.err
    [row] = read_jsonl("graded.jsonl")
    assert row["reward"] == 0.0 and row["verdict"] in ("wrong", "timeout", "error")


def test_a_comparison_keeps_a_run_with_responses_not_judged(attnrl: Attnrl, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run is over, so the table is written, with reward and accuracy apart."""
    source = Path(attnrl_package.__file__).parents[1]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((str(source), os.environ.get("PYTHONPATH", ""))))
    small = [part for part in rewarded("sometimes")[2:] if not part.startswith(("steps", "output_dir"))]
    settings = f"settings={json.dumps(small)}"
    ran = attnrl("compare", "grpo", "tokens=200", "seeds=[0]", "workers=1", "output_dir=compared", settings)
    assert ran.code == 3 and ran.err.count("\n") == 1 and "grpo, seed 0" in ran.err
    assert "returned nan" in ran.out and "failed: " not in ran.out
    assert "| reward |" in Path("compared/results.md").read_text()
    assert json.loads(Path("compared/results.json").read_text())["runs"]
    again = attnrl("compare", "grpo", "tokens=200", "seeds=[0]", "workers=1", "output_dir=compared", settings)
    assert again.code == 0, again.err  # finished already


def test_rewards_of_runs_before_are_still_read(attnrl: Attnrl) -> None:
    """Without the metrics and fields of this version."""
    assert attnrl(*train("steps=1")).code == 0
    old = [
        {
            k: v
            for k, v in row.items()
            if not re.search("accuracy$|accuracy/|not_judged|eval/reward", k) or k == "eval/accuracy"
        }
        for row in read_jsonl("out/metrics.jsonl")
    ]
    Path("out/metrics.jsonl").write_text(jsonl(*old))
    trees = read_jsonl("out/trees.jsonl")
    for row in trees:
        for tree in row["trees"]:
            tree["nodes"] = [
                {k: v for k, v in node.items() if k not in ("correct", "verdict")} for node in tree["nodes"]
            ]
    Path("out/trees.jsonl").write_text(jsonl(*trees))
    assert attnrl("report", "out", "-o", "report.html").code == 0
    assert attnrl("plot", "out", "-o", "curves.png").code == 0
