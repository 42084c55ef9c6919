"""The records of a run, as both engines write them."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerBase

from attnrl.config.load import load_config
from attnrl.config.schema import TrainConfig
from attnrl.errors import RunError
from attnrl.rl.evaluation import EvaluatedSample, Evaluation
from attnrl.rl.trainer import StepResult
from attnrl.runs.directory import METRICS, SAMPLES, TIMELINE, TREES
from attnrl.runs.evaluation import is_evaluation_due
from attnrl.runs.recording import RunRecorder
from attnrl.types import Problem


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def recorder(tmp_path: Path, tokenizer: PreTrainedTokenizerBase, said: list[str]) -> RunRecorder:
    settings = [f"output_dir={tmp_path}", "log.trees_every=2", "log.samples=1", "optimizer.max_nonfinite_steps=2"]
    recorder = RunRecorder(load_config(TrainConfig, "attnrl", settings), tokenizer, said.append)
    recorder.open(None)
    return recorder


def result(step: int, **metrics: float) -> StepResult:
    return StepResult({"step": step, **metrics}, (), (("plan", 0.0, 0.12345),))


def test_rows_hold_the_finite_metrics_of_the_step_and_of_its_evaluation(recorder: RunRecorder) -> None:
    assert recorder.record_initial({"eval/accuracy": 0.5}) == {"step": 0, "eval/accuracy": 0.5}
    row = recorder.record_step(result(1, reward=0.25, entropy=math.nan), {"eval/accuracy": math.inf})
    assert row == {"step": 1, "reward": 0.25} and recorder.recorded_step == 1
    assert recorder.complete_last_row({"eval/accuracy": 0.75}) == {**row, "eval/accuracy": 0.75}
    assert recorder.directory.read(METRICS) == [
        {"step": 0, "eval/accuracy": 0.5},
        {"step": 1, "reward": 0.25, "eval/accuracy": 0.75},
    ]
    assert recorder.directory.read(TIMELINE) == [{"step": 1, "spans": [["plan", 0.0, 0.1235]]}]


def test_a_resumed_run_keeps_the_records_up_to_its_checkpoint(recorder: RunRecorder) -> None:
    recorder.record_initial({})
    for step in (1, 2, 3):
        recorder.record_step(result(step), {})
    recorder.open(2)
    assert recorder.recorded_step == 2
    assert [row["step"] for row in recorder.directory.read(METRICS)] == [0, 1, 2]
    assert recorder.directory.read(TREES) == []


def test_samples_are_the_first_responses_to_the_first_problems(recorder: RunRecorder) -> None:
    samples = tuple(
        EvaluatedSample(problem, k, "1+1?", "2", ("2",), 1.0 - k, "correct" if k == 0 else "wrong", 3, "stop")
        for problem in ("a", "b")
        for k in (0, 1)
    )
    metrics = recorder.record_evaluation(4, Evaluation(samples, 2))
    assert (metrics["eval/accuracy"], metrics["eval/pass_at_k"], metrics["eval/response_length"]) == (0.5, 1.0, 3)
    (row,) = recorder.directory.read(SAMPLES)
    assert (row["step"], row["problem"], row["sample"]) == (4, "a", 0)


def test_steps_with_nan_are_reported_and_too_many_end_the_run(recorder: RunRecorder, said: list[str]) -> None:
    recorder.record_faults(result(1), 0)
    assert said == [] and not (recorder.directory.root / "faults").exists()
    recorder.record_faults(result(1), 1)
    assert len(said) == 1 and str(recorder.directory.root / "faults/000001.jsonl") in said[0]
    with pytest.raises(RunError, match=r"2 .*optimizer\.max_nonfinite_steps"):
        recorder.record_faults(result(2), 2)


def test_every_nth_step_and_the_last_are_evaluated() -> None:
    config = load_config(TrainConfig, "attnrl", ["eval.every=4", "steps=6", "tokens=1000"])
    held_out = [Problem("p", "1+1?", ("2",))]
    due = [step for step in range(7) if is_evaluation_due(config, held_out, step, 0)]
    assert due == [0, 4, 6]
    assert is_evaluation_due(config, held_out, 3, 1000)
    assert not is_evaluation_due(config, [], 4, 0)
