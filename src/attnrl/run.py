"""One training run with the local engine, from a recipe to a finished run directory."""

from __future__ import annotations

import random
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from attnrl.config import DataConfig, TrainConfig, dump_config
from attnrl.errors import UserError
from attnrl.evaluate import Evaluation, evaluate
from attnrl.local.checkpoint import Checkpoint, find_checkpoint, load_checkpoint, save_checkpoint
from attnrl.local.engine import (
    build_policy,
    build_sampler,
    choose_device,
    load_model,
    load_tokenizer,
    model_directory,
    require_influence,
)
from attnrl.local.sampler import LocalSampler
from attnrl.report.display import Display
from attnrl.report.run_directory import METRICS, SAMPLES, TREES, RunDirectory
from attnrl.report.trackers import check_trackers, open_trackers
from attnrl.report.trees import forest_row
from attnrl.tasks.datasets import load_problems
from attnrl.tasks.grading import AnswerGrader
from attnrl.tasks.problem import Problem
from attnrl.tasks.procedural import TASKS, draw_distinct
from attnrl.tasks.stream import ProblemSource, ProceduralProblems, ShuffledProblems
from attnrl.tokens import encode_prompt
from attnrl.trainer import StepResult, Trainer, needs_fci

EVALUATION_SEED = 20_250_930  # held-out problems are the same for every run of a task, whatever its seed


@dataclass(frozen=True)
class PreparedRun:
    """A run that has been checked and not started: what ``--dry-run`` shows.

    Attributes:
        config: the recipe.
        model_directory: the model the run starts from.
        checkpoint: what it resumes from, if anything.
        device: where it runs.
        tokenizer: the model's.
        model: the model, with the checkpoint's weights when resuming.
        source: training problems.
        training_problems: how many there are; None for a procedural task, which has no end.
        held_out: evaluation problems; none when there is no evaluation.
        without_influence: kinds of the model's layers that have no softmax attention and so no part in FCI, by
            index; empty too when the method does not look at FCI.
    """

    config: TrainConfig
    model_directory: Path
    checkpoint: Checkpoint | None
    device: torch.device
    tokenizer: PreTrainedTokenizerBase
    model: PreTrainedModel
    source: ProblemSource
    training_problems: int | None
    held_out: Sequence[Problem]
    without_influence: dict[int, str]


def prepare(config: TrainConfig) -> PreparedRun:
    """Check everything that can be checked before the first token: nothing is written.

    Raises:
        UserError: a setting, file or model that will not do; it is named.
    """
    if config.threads:
        torch.set_num_threads(config.threads)
    directory = model_directory(config.model)
    device = choose_device(config.device)
    run = RunDirectory(config.output_dir)
    run.check_writable()
    check_trackers(config)
    checkpoint = find_checkpoint(config.resume, run.checkpoints)
    if checkpoint is not None and checkpoint.directory.parent == run.checkpoints:
        refuse_other_settings(config, run)
    if config.resume == "never" and run.holds_a_run():
        raise UserError(f"output_dir {config.output_dir}: holds a run already, and resume is never")
    tokenizer = load_tokenizer(directory)
    source, training_problems, held_out = load_task(config.task, config.data, config.seed, _held_out_count(config))
    checked = [*held_out, *(source.problems if isinstance(source, ShuffledProblems) else [])]
    for problem in checked:
        encode_prompt(tokenizer, problem, config.sampling.max_prompt_tokens)
    model = load_model(checkpoint.directory if checkpoint else directory, device=device, dtype=config.dtype)
    check_length(model, config.sampling.max_prompt_tokens + config.sampling.max_new_tokens)
    return PreparedRun(
        config,
        directory,
        checkpoint,
        device,
        tokenizer,
        model,
        source,
        training_problems,
        tuple(held_out),
        without_influence=require_influence(model) if needs_fci(config.method) else {},
    )


# What may differ when a run goes on: how long, where and how it is watched, not what is learned.
MAY_CHANGE = {"steps", "resume", "device", "threads", "output_dir", "eval", "checkpoint", "log"}


def refuse_other_settings(config: TrainConfig, run: RunDirectory) -> None:
    """Refuse to continue a run with settings under which it would be another run.

    Raises:
        UserError: naming the settings that differ and both values.
    """
    before, now = run.read_config(), config.model_dump(mode="json")
    changed = [
        f"{key} {before.get(key)!r} -> {value!r}"
        for key, value in now.items()
        if key not in MAY_CHANGE and before.get(key) != value
    ]
    if changed:
        raise UserError(
            f"output_dir {config.output_dir}: holds a run with other settings ({'; '.join(changed)}): "
            "choose another output_dir"
        )


def _held_out_count(config: TrainConfig) -> int:
    return config.eval.problems if config.eval.every else 0


def load_task(
    task: str | None, data: DataConfig, seed: int, held_out: int
) -> tuple[ProblemSource, int | None, list[Problem]]:
    """Training problems, how many there are (None: without end), and at most ``held_out`` evaluation problems.

    Raises:
        UserError: an unknown task, or a data file that will not do.
    """
    if task is not None:
        evaluation = held_out_problems(task, held_out)
        ids = frozenset(problem.id for problem in evaluation)
        return ProceduralProblems(TASKS[task], seed, ids), None, evaluation
    assert data.train is not None  # TrainConfig checks it
    problems = load_problems(data.train, prompt_suffix=data.prompt_suffix)
    evaluation = load_problems(data.eval, prompt_suffix=data.prompt_suffix) if data.eval and held_out else []
    if len(evaluation) > held_out:
        evaluation = random.Random(EVALUATION_SEED).sample(evaluation, held_out)
    return ShuffledProblems(problems, seed), len(problems), evaluation


def held_out_problems(task: str, count: int) -> list[Problem]:
    """The first ``count`` evaluation problems of a procedural task.

    Raises:
        UserError: there is no such task.
    """
    if task not in TASKS:
        raise UserError(f"task {task!r}: no such task (known: {', '.join(sorted(TASKS))})")
    return draw_distinct(TASKS[task], count, random.Random(EVALUATION_SEED))


def check_length(model: PreTrainedModel, tokens: int) -> None:
    """Refuse lengths that the model has no positions for.

    Raises:
        UserError: ``tokens`` (prompt and response) are too many.
    """
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if limit is not None and tokens > limit:
        raise UserError(f"max_prompt_tokens + max_new_tokens = {tokens} is more than the model's {limit} positions")


def train(prepared: PreparedRun, display: Display) -> list[dict[str, float]]:
    """Run to the last step, or until interrupted, and return the rows of ``metrics.jsonl``.

    The first Ctrl-C (or SIGTERM) finishes the step, saves a checkpoint and returns; a second one leaves at
    once.
    """
    config = prepared.config
    run = RunDirectory(config.output_dir)
    trackers = open_trackers(config)
    reference = None
    if config.loss.kl > 0:
        reference = load_model(prepared.model_directory, device=prepared.device, dtype=config.dtype)
        reference.requires_grad_(False)
    policy = build_policy(config, prepared.model, reference)
    state = load_checkpoint(prepared.checkpoint, policy) if prepared.checkpoint else None
    trainer = Trainer(
        config,
        sampler=_sampler(prepared, config.sampling.temperature, config.sampling.top_p, display),
        grader=AnswerGrader(config.flexible_answers),
        policy=policy,
        tokenizer=prepared.tokenizer,
        source=prepared.source,
        state=state,
        on_phase=display.phase,
    )
    run.open(dump_config(config), trainer.state.step if state else None)

    def report(metrics: dict[str, float], step: int) -> None:
        if prepared.held_out and (step % config.eval.every == 0 or step == config.steps):
            evaluation = _evaluate(prepared, display)
            metrics |= {f"eval/{name}": value for name, value in evaluation.metrics().items()}
            run.append(SAMPLES, _sample_rows(evaluation, step, config.log.samples))
        run.append(METRICS, [metrics])
        if trackers is not None:
            trackers.log({name: value for name, value in metrics.items() if name != "step"}, step)
        display.step(metrics)

    display.start(config, trainer.state.step)
    with display, _interruption(display) as interrupted:
        if state is None:
            report({"step": 0}, 0)
        while trainer.state.step < config.steps and not interrupted.asked:
            result = trainer.step()
            step = trainer.state.step
            report(result.metrics, step)
            run.append(TREES, _tree_rows(result, prepared, step))
            last = step == config.steps or interrupted.asked
            if last or (config.checkpoint.every and step % config.checkpoint.every == 0):
                display.phase("save")
                save_checkpoint(
                    run.checkpoints,
                    trainer.state,
                    policy,
                    prepared.tokenizer,
                    keep_last=config.checkpoint.keep_last,
                )
    if trackers is not None:
        trackers.end_training()
    return run.read(METRICS)


def _sampler(prepared: PreparedRun, temperature: float, top_p: float, display: Display) -> LocalSampler:
    return build_sampler(
        prepared.model,
        prepared.tokenizer,
        temperature=temperature,
        top_p=top_p,
        max_batch=prepared.config.sampling.max_batch,
        on_progress=display.sampled,
    )


def _evaluate(prepared: PreparedRun, display: Display) -> Evaluation:
    display.phase("evaluate")
    settings, limits = prepared.config.eval, prepared.config.sampling
    return evaluate(
        prepared.held_out,
        sampler=_sampler(prepared, settings.temperature, settings.top_p, display),
        grader=AnswerGrader(prepared.config.flexible_answers),
        tokenizer=prepared.tokenizer,
        samples=settings.samples,
        max_new_tokens=limits.max_new_tokens,
        max_prompt_tokens=limits.max_prompt_tokens,
        seed=EVALUATION_SEED,
    )


def _sample_rows(evaluation: Evaluation, step: int, count: int) -> list[dict[str, Any]]:
    """The first response to each of ``count`` problems."""
    firsts = evaluation.samples[:: evaluation.per_problem]
    return [{"step": step, **sample.as_dict()} for sample in firsts[:count]]


def _tree_rows(result: StepResult, prepared: PreparedRun, step: int) -> list[dict[str, Any]]:
    every = prepared.config.log.trees_every
    if not every or (step - 1) % every:
        return []
    return [forest_row(grown, prepared.tokenizer, step) for grown in result.problems]


@dataclass
class _Interruption:
    asked: bool = False


@contextmanager
def _interruption(display: Display) -> Iterator[_Interruption]:
    """Turn the first SIGINT or SIGTERM into a request to stop; the next one acts as it always does."""
    interruption = _Interruption()
    former = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for number, handler in former.items():
            signal.signal(number, handler)

    def ask(number: int, frame: object) -> None:
        interruption.asked = True
        restore()
        display.console.print("Stopping after this step. Again to leave at once.")

    for number in former:
        signal.signal(number, ask)
    try:
        yield interruption
    finally:
        restore()
