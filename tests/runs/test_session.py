"""A run among faults: what fails, stalls, overflows or is stopped costs no step that was done, and changes none."""

from __future__ import annotations

import errno
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from tiny_runs import HashGrader, read, run, settings, weights

import attnrl.local.checkpoint
import attnrl.runs.session
from attnrl.config.load import load_config
from attnrl.config.schema import TrainConfig
from attnrl.errors import RunError, UserError
from attnrl.inference.sampler import LocalSampler
from attnrl.local.policy import LocalPolicy
from attnrl.runs.directory import RunDirectory
from attnrl.runs.display import Display
from attnrl.runs.prepare import prepare
from attnrl.runs.session import train


def interfere(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, on: set[int], fault: Callable[..., Any]) -> None:
    """Have the calls of ``owner.name`` whose numbers (from 1) are in ``on`` go through ``fault(real, *arguments)``."""
    real, calls = getattr(owner, name), 0

    def call(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        return fault(real, *arguments, **named) if calls in on else real(*arguments, **named)

    monkeypatch.setattr(owner, name, call)


def failing(error: BaseException) -> Callable[..., Any]:
    def fault(*arguments: Any, **named: Any) -> Any:
        raise error

    return fault


def same_as(whole: Path, output: Path) -> None:
    """The run is, to the last bit, the one that nothing happened to."""
    for name in ("metrics.jsonl", "trees.jsonl", "samples.jsonl"):
        assert read(output, name) == read(whole, name)
    assert weights(output / "checkpoints/step-000004") == weights(whole / "checkpoints/step-000004")


# Calls of a run's sampler: 1 evaluates before the first step, which samples in 2 and 3; then come steps of one call,
# and the evaluation after step 2.


@pytest.mark.parametrize("call", [2, 3, 4])
def test_a_sampler_that_fails_once_changes_nothing(whole, tiny_checkpoint, tmp_path, monkeypatch, call):
    interfere(monkeypatch, LocalSampler, "generate", {call}, failing(RuntimeError("lost\nconnection")))
    said = run(tiny_checkpoint, tmp_path)
    step = {2: 1, 3: 1, 4: 2}[call]
    assert re.search(rf"^step {step}: .*RuntimeError: lost connection", said, re.MULTILINE)
    same_as(whole, tmp_path)


def test_a_sampler_that_keeps_failing_ends_the_run_with_a_checkpoint(whole, tiny_checkpoint, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        interfere(patch, LocalSampler, "generate", {4, 5, 6}, failing(RuntimeError("lost connection")))
        with pytest.raises(RunError, match="lost connection") as error:
            run(tiny_checkpoint, tmp_path, "sampling.retries=2")
    message = str(error.value)
    assert f"output_dir {tmp_path}, after step 1:" in message and str(tmp_path / "checkpoints/step-000001") in message
    assert [row["step"] for row in read(tmp_path)] == [0, 1]
    run(tiny_checkpoint, tmp_path, "sampling.retries=2")
    same_as(whole, tmp_path)


@pytest.mark.parametrize(("calls", "step"), [({1, 2}, 0), ({8, 9}, 4)], ids=["first", "last"])
def test_a_sampler_that_keeps_failing_in_an_evaluation_costs_no_step(
    whole, tiny_checkpoint, tmp_path, monkeypatch, calls, step
):
    """The policy has been updated by then: the step is saved, and its evaluation made up for."""
    with monkeypatch.context() as patch:
        interfere(patch, LocalSampler, "generate", calls, failing(RuntimeError("gone")))
        with pytest.raises(RunError, match=rf"step {step}: .*checkpoints/step-00000{step}"):
            run(tiny_checkpoint, tmp_path)
    run(tiny_checkpoint, tmp_path)
    same_as(whole, tmp_path)


def test_an_evaluation_in_which_the_sampler_fails_is_begun_again(whole, tiny_checkpoint, tmp_path, monkeypatch):
    interfere(monkeypatch, LocalSampler, "generate", {8}, failing(RuntimeError("gone")))
    said = run(tiny_checkpoint, tmp_path)
    assert re.search(r"^evaluation of step 4: .*RuntimeError: gone", said, re.MULTILINE)
    same_as(whole, tmp_path)


def test_a_sampler_that_stalls_is_interrupted_and_tried_again(whole, tiny_checkpoint, tmp_path, monkeypatch):
    def stall(*arguments: Any, **named: Any) -> Any:
        time.sleep(600)

    interfere(monkeypatch, LocalSampler, "generate", {4}, stall)
    said = run(tiny_checkpoint, tmp_path, "sampling.stall_seconds=2")
    assert re.search(r"^step 2: .*stalled.* 2 s", said, re.MULTILINE)
    same_as(whole, tmp_path)


# --- numbers that are not finite --------------------------------------------------------------------------------------


def spoil_scores(real: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    first, *others = real(*arguments, **named)
    return [replace(first, logprobs=(float("nan"), *first.logprobs[1:])), *others]


def test_a_problem_with_a_nan_is_left_out_and_kept_for_study(tiny_checkpoint, tmp_path, monkeypatch):
    interfere(monkeypatch, LocalPolicy, "score", {1}, spoil_scores)
    said = run(tiny_checkpoint, tmp_path, steps=2)
    first, second = read(tmp_path)[1:]
    assert (first["nonfinite/problems"], second["nonfinite/problems"]) == (1, 0)
    assert "mismatch/mean" not in first and "mismatch/mean" in second  # a number that is none has no place in JSON
    (row,) = [json.loads(line) for line in (tmp_path / "faults/000001.jsonl").read_text().splitlines()]
    assert row["plan"]["group"]["trunks"][0]["logprobs"][0] is None
    assert row["plan"]["kept"] is False and row["plan"]["points"] == {}
    assert re.search(rf"^step 1: .*1 problems.*{tmp_path}/faults/000001\.jsonl", said, re.MULTILINE)
    for name, tensor in torch_weights(tmp_path / "checkpoints/step-000002").items():
        assert tensor.isfinite().all(), name


def torch_weights(directory: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(directory / "model.safetensors")


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_mini_batch_that_is_not_finite_moves_no_weight(tiny_checkpoint, tmp_path, monkeypatch, where):
    def spoil(real: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        if where == "loss":
            loss, values = real(*arguments, **named)
            return loss * float("nan"), values
        policy = arguments[0]
        values = real(*arguments, **named)
        next(iter(policy.optimizer.masters.values())).grad[0] = float("inf")
        return values

    interfere(monkeypatch, LocalPolicy, "_loss" if where == "loss" else "_accumulate", set(range(1000)), spoil)
    with pytest.raises(RunError, match=r"3 .*optimizer\.max_nonfinite_steps.*step-000003$"):
        run(tiny_checkpoint, tmp_path)
    rows = read(tmp_path)[1:]
    assert [row["nonfinite/mini_batches"] for row in rows] == [2, 2, 2]
    assert all(row["update_skipped"] == 1 and "loss/policy" not in row for row in rows)
    assert sorted(path.name for path in (tmp_path / "faults").iterdir()) == [f"00000{n}.jsonl" for n in (1, 2, 3)]
    assert weights(tmp_path / "checkpoints/step-000003") == weights(tmp_path / "checkpoints/step-000002")
    state = json.loads((tmp_path / "checkpoints/step-000003/trainer_state.json").read_text())
    assert state["updates"] == 0 and state["trainer"]["nonfinite_steps"] == 3


# --- memory and disks that are full -----------------------------------------------------------------------------------


def test_where_memory_runs_out_packs_are_halved(whole, tiny_checkpoint, tmp_path, monkeypatch):
    limit = 150  # tokens that fit, where all packs of this run would have more

    def out_of_memory(real: Callable[..., Any], policy: LocalPolicy, *arguments: Any, **named: Any) -> Any:
        if policy.micro_batch_tokens > limit:
            real(policy, *arguments, **named)  # it fails after the work, and leaves gradients behind
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(policy, *arguments, **named)

    interfere(monkeypatch, LocalPolicy, "_accumulate", set(range(1000)), out_of_memory)
    run(tiny_checkpoint, tmp_path)
    rows, expected = read(tmp_path)[1:], read(whole)[1:]
    assert rows[0]["packing/micro_batch_tokens"] <= limit < expected[0]["packing/micro_batch_tokens"]
    assert rows[0]["loss/policy"] == pytest.approx(expected[0]["loss/policy"], abs=1e-6)
    assert rows[0]["grad_norm"] == pytest.approx(expected[0]["grad_norm"], rel=1e-5)
    state = json.loads((tmp_path / "checkpoints/step-000004/trainer_state.json").read_text())
    assert (
        state["micro_batch_tokens"] == rows[-1]["packing/micro_batch_tokens"]
    )  # a resumed run need not find out again


def test_where_memory_runs_out_in_scoring_packs_are_halved_too(whole, tiny_checkpoint, tmp_path, monkeypatch):
    """The responses of a pack are scored as they were, to rounding; with packs of this size from the start, exactly."""
    budgets: list[int] = []

    def out_of_memory(real: Callable[..., Any], policy: LocalPolicy, *arguments: Any, **named: Any) -> Any:
        budgets.append(policy.micro_batch_tokens)
        if policy.micro_batch_tokens > 400:
            real(policy, *arguments, **named)
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(policy, *arguments, **named)

    with monkeypatch.context() as patch:
        interfere(patch, LocalPolicy, "_score", set(range(1000)), out_of_memory)
        run(tiny_checkpoint, tmp_path / "halved", steps=2)
    halved = next(budget for budget in budgets if budget <= 400)
    assert budgets[0] > 800 and budgets[: budgets.index(halved) + 1] == [
        max(halved, budgets[0] >> times) for times in range(budgets.index(halved) + 1)
    ]
    assert set(budgets[budgets.index(halved) :]) == {halved}
    rows, expected = read(tmp_path / "halved"), read(whole)[:3]
    assert all(row["packing/micro_batch_tokens"] == halved for row in rows[1:])
    assert rows[1]["loss/policy"] == pytest.approx(expected[1]["loss/policy"], abs=1e-6)
    run(tiny_checkpoint, tmp_path / "small", f"optimizer.micro_batch_tokens={halved}", steps=2)
    assert rows == read(tmp_path / "small")


def test_memory_too_small_for_the_optimizer_ends_the_run_before_its_first_step(tiny_checkpoint, tmp_path, monkeypatch):
    real = torch.zeros_like

    def zeros_like(like: torch.Tensor, **named: Any) -> torch.Tensor:
        if like.requires_grad:
            raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate")
        return real(like, **named)

    monkeypatch.setattr(torch, "zeros_like", zeros_like)
    monkeypatch.setattr(LocalSampler, "generate", failing(AssertionError("it has begun")))
    with pytest.raises(RunError, match=r"optimizer.* GiB") as error:
        run(tiny_checkpoint, tmp_path)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "metrics.jsonl").exists()


def test_memory_that_runs_out_in_an_optimizer_step_ends_the_run(whole, tiny_checkpoint, tmp_path, monkeypatch):
    """It may have changed some weights: nothing of it is saved, and the run goes on from before it."""
    with monkeypatch.context() as patch:
        error = torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate")
        interfere(patch, torch.optim.AdamW, "step", {4}, failing(error))
        with pytest.raises(RunError, match=r"step \d.*optimizer") as said:
            run(tiny_checkpoint, tmp_path, "checkpoint.every=1")
    assert "\n" not in str(said.value)
    run(tiny_checkpoint, tmp_path, "checkpoint.every=1")
    same_as(whole, tmp_path)


def test_other_errors_of_the_optimizer_are_no_lack_of_memory(tiny_checkpoint, tmp_path, monkeypatch):
    interfere(monkeypatch, torch.optim.AdamW, "step", {1}, failing(RuntimeError("a fault of ours")))
    with pytest.raises(RuntimeError, match="a fault of ours"):
        run(tiny_checkpoint, tmp_path)


def test_memory_that_holds_not_even_one_response_ends_the_run(tiny_checkpoint, tmp_path, monkeypatch):
    error = RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 4 bytes")
    interfere(monkeypatch, LocalPolicy, "_accumulate", set(range(1000)), failing(error))
    with pytest.raises(RunError, match=r"\d+ tokens.*gradient_checkpointing"):
        run(tiny_checkpoint, tmp_path)


def test_other_errors_are_no_lack_of_memory(tiny_checkpoint, tmp_path, monkeypatch):
    """They come out as they are, after what was done is saved."""
    interfere(monkeypatch, LocalPolicy, "score", {3}, failing(RuntimeError("a fault of ours")))
    with pytest.raises(RuntimeError, match="a fault of ours"):
        run(tiny_checkpoint, tmp_path)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-000001"]


@pytest.mark.parametrize("full", ["checkpoint", "metrics"])
def test_a_full_disk_ends_the_run_and_what_was_saved_stays(whole, tiny_checkpoint, tmp_path, monkeypatch, full):
    error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with monkeypatch.context() as patch:
        if full == "checkpoint":
            interfere(patch, attnrl.local.checkpoint, "save_file", {2}, failing(error))
            message = "step 4.*No space left on device"
        else:
            interfere(patch, RunDirectory, "append", {16}, failing(error))  # four a step, of step 4
            message = "No space left on device"
        with pytest.raises(RunError, match=f"{message}.*checkpoints/step-00000[24]"):
            run(tiny_checkpoint, tmp_path)
    assert not list((tmp_path / "checkpoints").glob(".*"))
    run(tiny_checkpoint, tmp_path)
    same_as(whole, tmp_path)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_disk_that_really_is_full(whole, tiny_checkpoint, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=700k", "tmpfs", disk], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {mounted.stderr.strip()}")
    try:
        with pytest.raises(RunError, match=r"No space left on device.*checkpoints/step-0"):
            run(tiny_checkpoint, disk / "run", "checkpoint.every=1", "checkpoint.keep_last=9", steps=40)
        steps = [row["step"] for row in read(disk / "run") if "reward" in row]
        subprocess.run(["mount", "-o", "remount,size=50m", disk], check=True)
        run(tiny_checkpoint, disk / "run", "checkpoint.every=1", "checkpoint.keep_last=9", steps=max(4, *steps))
        assert read(disk / "run")[:3] == read(whole)[:3]
    finally:
        subprocess.run(["umount", "--lazy", disk], check=True)  # the model's file may still be mapped


# --- stops ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize(
    ("owner", "name", "call", "saved"),
    [
        (LocalSampler, "generate", 1, 0),  # evaluating before the first step: no step is begun
        (LocalSampler, "generate", 2, 0),  # in a generation: the step is given up
        (LocalPolicy, "score", 3, 2),  # all is sampled: the step is finished
        (LocalPolicy, "update", 3, 3),  # in the update: the step is finished
    ],
)
def test_a_signal_ends_the_run_after_the_phase(
    whole, tiny_checkpoint, tmp_path, monkeypatch, number, owner, name, call, saved
):
    def raise_signal(real: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        signal.raise_signal(number)
        return real(*arguments, **named)

    with monkeypatch.context() as patch:
        interfere(patch, owner, name, {call}, raise_signal)
        said = run(tiny_checkpoint, tmp_path)
    assert "Stopping after this phase" in said
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir())[-1] == f"step-00000{saved}"
    assert read(tmp_path)[-1]["step"] == saved
    run(tiny_checkpoint, tmp_path)
    same_as(whole, tmp_path)


def test_a_second_signal_leaves_at_once(tiny_checkpoint, tmp_path, monkeypatch):
    def twice(real: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    interfere(monkeypatch, LocalPolicy, "score", {1}, twice)
    former = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    try:
        with pytest.raises(KeyboardInterrupt):
            run(tiny_checkpoint, tmp_path)
    finally:
        signal.signal(signal.SIGINT, former)
    assert not (tmp_path / "checkpoints").exists()


def test_what_was_stopped_says_how_to_go_on(tiny_checkpoint, tmp_path):
    arguments = ["train", "grpo", *settings(tiny_checkpoint, tmp_path / "a run", 1000), "eval.every=0"]
    process = subprocess.Popen([sys.executable, "-m", "attnrl", *arguments], stdout=subprocess.PIPE, text=True)
    metrics = tmp_path / "a run/metrics.jsonl"
    try:
        while not (metrics.exists() and len(metrics.read_text().splitlines()) > 1):
            assert process.poll() is None
            time.sleep(0.1)
        # Nobody else may train there meanwhile.
        with pytest.raises(UserError, match=rf"^output_dir .*a run: .*\b{process.pid}\b"):
            run(tiny_checkpoint, tmp_path / "a run", "eval.every=0", recipe="grpo", steps=1000)
        process.send_signal(signal.SIGTERM)
        said = process.communicate(timeout=60)[0]
    finally:
        process.kill()
    assert process.returncode == 0
    assert f"To continue: attnrl train grpo model={tiny_checkpoint} 'output_dir={tmp_path}/a run' steps=1000" in said


# --- runs that are no longer what they were ---------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.chdir(tmp_path)
    write_problems(20)
    return ["task=null", "data.train=train.jsonl", "data.prompt_suffix=''", "eval.every=0", "grader=rules"]


def write_problems(count: int) -> None:
    rows = [{"prompt": f"A={n}?", "answer": str(n)} for n in range(count)]
    Path("train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_data_that_changed_is_refused_unless_told(tiny_checkpoint, tmp_path, files, monkeypatch):
    monkeypatch.setattr("attnrl.grading.rules.RulesGrader.grade", lambda self, *asked: HashGrader().grade(*asked))
    output = tmp_path / "run"
    run(tiny_checkpoint, output, *files, steps=1)
    run(tiny_checkpoint, output, *files, steps=2)
    write_problems(21)
    before = read(output)
    with pytest.raises(UserError, match=r"^data\.train: .*data\.allow_changed"):
        run(tiny_checkpoint, output, *files, steps=3)
    assert read(output) == before
    graded: list[tuple[str, tuple[str, ...]]] = []

    def noted(self: Any, problems: Any, responses: Any) -> Any:
        graded.extend((problem.prompt, problem.answers) for problem in problems)
        return HashGrader().grade(problems, responses)

    monkeypatch.setattr("attnrl.grading.rules.RulesGrader.grade", noted)
    said = run(tiny_checkpoint, output, *files, "data.allow_changed=true", steps=3)
    assert re.search(r"^\d+ problems in flight", said, re.MULTILINE)
    assert [row["step"] for row in read(output)] == [0, 1, 2, 3]
    trees = [row for row in read(output, "trees.jsonl") if row["step"] == 3]
    assert trees
    problems = {f"A={n}?": str(n) for n in range(21)}
    assert all(answers == (problems[prompt],) for prompt, answers in graded)
    assert all(problems[tree["prompt"]] == tree["answers"][0] for tree in trees)
    run(tiny_checkpoint, output, *files, steps=4)  # by now they are what the run goes by


def test_a_setting_that_changed_is_shown(whole, tiny_checkpoint):
    with pytest.raises(UserError) as error:
        run(tiny_checkpoint, whole, "method.branching.rho=0.5", "sampling.top_p=0.9", "sampling.retries=7")
    assert "(method.branching.rho 0.2 -> 0.5; sampling.top_p 1.0 -> 0.9)" in str(error.value)


def test_a_run_without_a_checkpoint_is_not_written_over_by_another(tiny_checkpoint, tmp_path, monkeypatch):
    interfere(monkeypatch, LocalPolicy, "update", {1}, failing(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        run(tiny_checkpoint, tmp_path)
    before = (tmp_path / "metrics.jsonl").read_bytes()
    with pytest.raises(UserError, match="seed 0 -> 1"):
        run(tiny_checkpoint, tmp_path, "seed=1")
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


def test_a_run_goes_on_from_the_checkpoint_before_a_damaged_one(whole, tiny_checkpoint, tmp_path):
    run(tiny_checkpoint, tmp_path)
    (tmp_path / "checkpoints/step-000004/optimizer.safetensors").write_bytes(b"")
    run(tiny_checkpoint, tmp_path)
    same_as(whole, tmp_path)


def test_the_best_are_saved_when_they_are_found(tiny_checkpoint, tmp_path, monkeypatch):
    accuracies = iter([0.1, 0.5, 0.3, 0.5, 0.2])
    real = attnrl.runs.session.TrainingSession._evaluate

    def evaluate(session: Any) -> Any:
        return _Fixed(real(session), next(accuracies))

    monkeypatch.setattr(attnrl.runs.session.TrainingSession, "_evaluate", evaluate)
    run(
        tiny_checkpoint,
        tmp_path,
        "eval.every=1",
        "checkpoint.every=0",
        "checkpoint.keep_best=1",
        "checkpoint.keep_last=1",
    )
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step-000003", "step-000004"]


class _Fixed:
    """An evaluation with an accuracy of our choice."""

    def __init__(self, evaluation: Any, accuracy: float) -> None:
        self.samples, self.per_problem = evaluation.samples, evaluation.per_problem
        self.accuracy, self.real, self.not_judged = accuracy, evaluation, evaluation.not_judged

    def metrics(self) -> dict[str, float]:
        return {**self.real.metrics(), "accuracy": self.accuracy}


def test_a_run_that_another_process_has_gone_on_with_is_left_alone(tiny_checkpoint, tmp_path):
    """Between looking for what to resume from and taking the lock."""
    run(tiny_checkpoint, tmp_path, steps=2)
    prepared = prepare(load_config(TrainConfig, "attnrl", settings(tiny_checkpoint, tmp_path)))
    run(tiny_checkpoint, tmp_path, steps=3)
    before = read(tmp_path)
    with pytest.raises(UserError, match=f"^output_dir {tmp_path}: "):
        train(prepared, Display(Console(file=io.StringIO())))
    assert read(tmp_path) == before


def test_checkpoints_without_their_config_are_not_guessed_at(tiny_checkpoint, tmp_path):
    run(tiny_checkpoint, tmp_path, steps=2)
    (tmp_path / "config.yaml").unlink()
    with pytest.raises(UserError, match=r"^output_dir .*config\.yaml.* resume=.*step-000002"):
        run(tiny_checkpoint, tmp_path, "seed=1")


def test_what_a_run_directory_has_lost_is_said(tiny_checkpoint, tmp_path):
    run(tiny_checkpoint, tmp_path, steps=2)
    config = load_config(TrainConfig, "attnrl", settings(tiny_checkpoint, tmp_path))
    assert not prepare(config).notes
    lines = (tmp_path / "metrics.jsonl").read_text()
    (tmp_path / "metrics.jsonl").unlink()
    (note,) = prepare(config).notes
    assert note.startswith(f"{tmp_path / 'metrics.jsonl'}: lacks 3 of 3 rows ")
    (tmp_path / "metrics.jsonl").write_text(lines)
    shutil.rmtree(tmp_path / "checkpoints")
    (note,) = prepare(config).notes
    assert note.startswith(f"{tmp_path}: metrics of 2 steps ") and "no checkpoint" in note
