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

from attnrl.config import TrainConfig, dump_config, validate_config
from attnrl.errors import UserError
from attnrl.evaluate import Evaluation, evaluate
from attnrl.local.checkpoint import Checkpoint, find_checkpoint, load_checkpoint, save_checkpoint
from attnrl.local.engine import (
    SamplerFactory,
    build_policy,
    build_sampler,
    choose_device,
    load_model,
    load_tokenizer,
    model_directory,
    open_samplers,
    require_influence,
    require_sampler,
    require_trees,
)
from attnrl.protocols import Grader
from attnrl.report.display import Display
from attnrl.report.run_directory import METRICS, SAMPLES, TIMELINE, TREES, RunDirectory
from attnrl.report.timeline import timeline_row
from attnrl.report.trackers import check_trackers, open_trackers
from attnrl.report.trees import forest_row
from attnrl.sampling import needs_fci
from attnrl.tasks.datasets import (
    ProblemSet,
    fit_problem_set,
    leave_out_duplicates,
    leave_out_overlap,
    load_problem_set,
    note_conflicts,
    note_unusable,
)
from attnrl.tasks.dependencies import require_dependencies
from attnrl.tasks.fitting import FittedTask
from attnrl.tasks.graders import build_grader, unusable_golds
from attnrl.tasks.grading import AnswerGrader
from attnrl.tasks.problem import Problem
from attnrl.tasks.procedural import draw_distinct, find_task
from attnrl.tasks.reasoning_gym import ReasoningGymGrader, ReasoningGymTask
from attnrl.tasks.stream import ProblemSource, ProceduralProblems, ShuffledProblems
from attnrl.tokens import encode_prompt
from attnrl.trainer import StepResult, Trainer

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
        notes: what was left out of data files, and what is odd about them; see :class:`TaskData`.
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
    notes: Sequence[str] = ()


def prepare(config: TrainConfig) -> PreparedRun:
    """Check everything that can be checked before the first token: nothing is written.

    Raises:
        UserError: a setting, file or model that will not do; it is named.
    """
    if config.threads:
        torch.set_num_threads(config.threads)
    directory = model_directory(config.model)
    device = choose_device(config.device)
    require_sampler(config, device)
    run = RunDirectory(config.output_dir)
    run.check_writable()
    check_trackers(config)
    checkpoint = find_checkpoint(config.resume, run.checkpoints)
    if checkpoint is not None and checkpoint.directory.parent == run.checkpoints:
        refuse_other_settings(config, run)
    if config.resume == "never" and run.holds_a_run():
        raise UserError(f"output_dir {config.output_dir}: holds a run already, and resume is never")
    tokenizer = load_tokenizer(directory)
    with grader_for(config):
        pass  # there is one
    task = load_task(config, tokenizer)
    if config.method.branching.criterion == "oracle":
        require_dependencies(task.source.at(0))
    for problem in task.held_out:
        encode_prompt(tokenizer, problem, config.sampling.max_prompt_tokens)
    model = load_model(checkpoint.directory if checkpoint else directory, device=device, dtype=config.dtype)
    check_length(model, config.sampling.max_prompt_tokens + config.sampling.max_new_tokens)
    if config.sampler == "transformers":
        build_sampler(model, tokenizer, temperature=1.0, top_p=1.0, max_batch=1)  # it takes the model
    if config.optimizer.packing == "tree":
        require_trees(model)
    return PreparedRun(
        config,
        directory,
        checkpoint,
        device,
        tokenizer,
        model,
        task.source,
        task.training_problems,
        task.held_out,
        notes=task.notes,
        without_influence=require_influence(model) if needs_fci(config.method) else {},
    )


# What may differ when a run goes on: how long, where and how it is watched, not what is learned.
MAY_CHANGE = {"steps", "tokens", "resume", "device", "threads", "output_dir", "vllm", "eval", "checkpoint", "log"}


def refuse_other_settings(config: TrainConfig, run: RunDirectory) -> None:
    """Refuse to continue a run with settings under which it would be another run.

    Raises:
        UserError: naming the settings that differ and both values.
    """
    # Settings that came into being since the run began are what they were then: the defaults.
    started = validate_config(TrainConfig, run.read_config(), source=f"output_dir {config.output_dir}: config.yaml")
    before, now = started.model_dump(mode="json"), config.model_dump(mode="json")
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


@dataclass(frozen=True)
class TaskData:
    """The problems of a run.

    Attributes:
        source: training problems.
        training_problems: how many there are; None for a procedural task, which has no end.
        held_out: evaluation problems.
        notes: what was left out of data files, and what is odd about them.
    """

    source: ProblemSource
    training_problems: int | None
    held_out: tuple[Problem, ...]
    notes: tuple[str, ...] = ()


def load_task(config: TrainConfig, tokenizer: PreTrainedTokenizerBase) -> TaskData:
    """The problems of a run, as the tokenizer's model is to see them.

    Raises:
        UserError: an unknown task, a data file that will not do, or none of its problems will.
    """
    held_out = config.eval.problems if config.eval.every else 0
    if config.task is not None:
        task = find_task(config.task)
        if isinstance(task, ReasoningGymTask):  # the others have tokenizers of their own, and prompts of known length
            task = FittedTask(task, tokenizer, config.sampling.max_prompt_tokens, config.data.chat_template)
        evaluation = draw_distinct(task, held_out, random.Random(EVALUATION_SEED))
        source = ProceduralProblems(task, config.seed, frozenset(problem.id for problem in evaluation))
        source.at(0)  # a task of so few problems that all are held out is told now
        return TaskData(source, None, tuple(evaluation))
    return _load_data(config, tokenizer, held_out)


def _load_data(config: TrainConfig, tokenizer: PreTrainedTokenizerBase, held_out: int) -> TaskData:
    data = config.data
    assert data.train is not None  # TrainConfig checks it
    training = _fitted(load_problem_set(data.train, prompt_suffix=data.prompt_suffix), config, tokenizer)
    # A benchmark is all of its rows, so it keeps its duplicates.
    evaluation = None
    if data.eval and held_out:
        evaluation = _fitted(load_problem_set(data.eval, prompt_suffix=data.prompt_suffix), config, tokenizer)
    if data.deduplicate:
        training = leave_out_duplicates(training, data.prompt_suffix)
    training = note_conflicts(training, data.prompt_suffix)
    chosen: tuple[Problem, ...] = ()
    if evaluation is not None:
        # All evaluation problems, not only those drawn below: what is trained on does not depend on eval.problems.
        training = leave_out_overlap(training, evaluation.problems, overlap=data.overlap, suffix=data.prompt_suffix)
        chosen = evaluation.problems
        if len(chosen) > held_out:
            chosen = tuple(random.Random(EVALUATION_SEED).sample(chosen, held_out))
    sets = [one for one in (training, evaluation) if one is not None]
    if config.grader in {None, "math"}:
        sets = [note_unusable(one, unusable_golds(one.problems)) for one in sets]
    notes = tuple(note for one in sets for note in one.notes)
    return TaskData(ShuffledProblems(training.problems, config.seed), len(training.problems), chosen, notes)


def _fitted(data: ProblemSet, config: TrainConfig, tokenizer: PreTrainedTokenizerBase) -> ProblemSet:
    return fit_problem_set(
        data,
        tokenizer,
        max_prompt_tokens=config.sampling.max_prompt_tokens,
        chat_template=config.data.chat_template,
    )


def held_out_problems(task: str, count: int) -> list[Problem]:
    """The first ``count`` evaluation problems of a procedural task.

    Raises:
        UserError: there is no such task, or it has not got so many problems.
    """
    return draw_distinct(find_task(task), count, random.Random(EVALUATION_SEED))


@contextmanager
def grader_for(config: TrainConfig) -> Iterator[Grader]:
    """The grader that ``config.grader`` names, or else the task's own: rules, its scorer, or ``math`` for data files.

    Processes that it works with are ended on leaving.

    Raises:
        UserError: there is no such grader.
    """
    task = find_task(config.task) if config.task is not None else None
    if config.grader is None and isinstance(task, ReasoningGymTask):
        yield ReasoningGymGrader(task, config.flexible_answers)
    elif config.grader is None and task is not None:
        yield AnswerGrader(config.flexible_answers)
    else:
        with build_grader(config.grader or "math", flexible=config.flexible_answers) as grader:
            yield grader


def check_length(model: PreTrainedModel, tokens: int) -> None:
    """Refuse lengths that the model has no positions for.

    Raises:
        UserError: ``tokens`` (prompt and response) are too many.
    """
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if limit is not None and tokens > limit:
        raise UserError(f"max_prompt_tokens + max_new_tokens = {tokens} is more than the model's {limit} positions")
    rope = getattr(model.config.get_text_config(), "rope_parameters", None) or {}
    for parameters in (rope, *(value for value in rope.values() if isinstance(value, dict))):
        kind, original = parameters.get("rope_type"), parameters.get("original_max_position_embeddings") or limit
        if kind in {"longrope", "dynamic"} and original is not None and tokens > original:
            raise UserError(
                f"max_prompt_tokens + max_new_tokens = {tokens} is more than the {original} positions for which the "
                f"model's rotary embedding ({kind}) is the same whatever else is in a batch"
            )


def train(prepared: PreparedRun, display: Display) -> list[dict[str, float]]:
    """Run to its end, or until interrupted, and return the rows of ``metrics.jsonl``.

    The first Ctrl-C (or SIGTERM) finishes the step, saves a checkpoint and returns; a second one leaves at
    once.
    """
    config, checkpoint = prepared.config, prepared.checkpoint
    directory = checkpoint.directory if checkpoint else prepared.model_directory
    with (
        grader_for(config) as grader,
        open_samplers(config, prepared.model, prepared.tokenizer, directory, display.sampled) as sampler_at,
    ):
        return _train(prepared, display, grader, sampler_at)


def _train(
    prepared: PreparedRun, display: Display, grader: Grader, sampler_at: SamplerFactory
) -> list[dict[str, float]]:
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
        sampler=sampler_at(config.sampling.temperature, config.sampling.top_p),
        grader=grader,
        policy=policy,
        tokenizer=prepared.tokenizer,
        source=prepared.source,
        state=state,
        on_phase=display.phase,
    )
    run.open(dump_config(config), trainer.state.step if state else None)

    def over() -> bool:
        return config.is_over(trainer.state.step, trainer.state.sampled_tokens)

    def report(metrics: dict[str, float], step: int) -> None:
        if prepared.held_out and (step % config.eval.every == 0 or over()):
            evaluation = _evaluate(prepared, display, grader, sampler_at)
            metrics |= {f"eval/{name}": value for name, value in evaluation.metrics().items()}
            run.append(SAMPLES, _sample_rows(evaluation, step, config.log.samples))
        run.append(METRICS, [metrics])
        if trackers is not None:
            trackers.log({name: value for name, value in metrics.items() if name != "step"}, step)
        display.step(metrics)

    display.start(config, trainer.state.step, trainer.state.sampled_tokens)
    with display, _interruption(display) as interrupted:
        if state is None:
            report({"step": 0}, 0)
        while not over() and not interrupted.asked:
            result = trainer.step()
            step = trainer.state.step
            report(result.metrics, step)
            run.append(TIMELINE, [timeline_row(step, result.timeline)])
            run.append(TREES, _tree_rows(result, prepared, step))
            last = over() or interrupted.asked
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


def _evaluate(prepared: PreparedRun, display: Display, grader: Grader, sampler_at: SamplerFactory) -> Evaluation:
    display.phase("evaluate")
    settings, limits = prepared.config.eval, prepared.config.sampling
    return evaluate(
        prepared.held_out,
        sampler=sampler_at(settings.temperature, settings.top_p),
        grader=grader,
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
