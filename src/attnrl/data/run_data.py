"""The problems of a run and the rewards of responses, for every engine."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from transformers import PreTrainedTokenizerBase

from attnrl.config.schema import TrainConfig
from attnrl.data.datasets import (
    Answers,
    fit_problem_set,
    leave_out_duplicates,
    leave_out_overlap,
    load_problem_set,
    note_conflicts,
    note_unusable,
    require_columns,
)
from attnrl.data.fitting import FittedTask
from attnrl.data.stream import ProblemSource, ProceduralProblems, ShuffledProblems
from attnrl.grading.base import ClosableGrader
from attnrl.grading.registry import build_grader
from attnrl.grading.rewards import RewardManager
from attnrl.prompts.renderer import PromptRenderer
from attnrl.prompts.settings import PromptSettings
from attnrl.tasks.base import ProblemDrawer, Task, draw_distinct
from attnrl.tasks.dependencies import unknown_dependencies
from attnrl.tasks.registry import find_task
from attnrl.types import Problem

EVALUATION_SEED = 20_250_930  # every run of a task has the same held-out problems, for every seed


@dataclass(frozen=True)
class RunData:
    """The problems of a run and the rewards of responses.

    Attributes:
        renderer: renders the prompts of the problems.
        source: training problems.
        training_problems: number of training problems; None for a procedural task, which has no end.
        held_out: evaluation problems.
        rewards: the rewards, with the grader named by the configuration, the task's own grader, or ``math`` for data
            files. A context manager: processes start at the first grading and end on exit.
        task: the procedural task; None for data files.
        notes: warnings about data files, e.g. rows left out.
        fingerprints: SHA-256 of the problems from data files, by setting.
    """

    renderer: PromptRenderer
    source: ProblemSource
    training_problems: int | None
    held_out: tuple[Problem, ...]
    rewards: RewardManager
    task: Task | None = None
    notes: tuple[str, ...] = ()
    fingerprints: Mapping[str, str] = field(default_factory=dict)

    def first_prompt(self) -> list[str]:
        """Return lines that show the first training prompt as the model sees the prompt."""
        return self.renderer.show(self.source.at(0))

    def require_dependencies(self) -> None:
        """Check that the true dependency graph of every problem is known (for the oracle criterion).

        Raises:
            UserError: the dependency graph is unknown; names the task.
        """
        if self.task is None or not self.task.knows_dependencies:
            raise unknown_dependencies(f"task {self.task.name}" if self.task is not None else "data.train")


def load_run_data(config: TrainConfig, tokenizer: PreTrainedTokenizerBase) -> RunData:
    """Load or draw the problems of a run, fitted to the tokenizer, and build the rewards.

    Raises:
        UserError: unknown task or grader, invalid data file, no problem is left, or a grader or reward function of the
            user fails on a dummy response (:meth:`attnrl.grading.rewards.RewardManager.probe`).
    """
    task = find_task(config.task) if config.task is not None else None
    if task is not None and config.grader is None:
        grader = task.grader(flexible=config.flexible_answers)
    else:
        grader = build_grader(config.grader or "math", flexible=config.flexible_answers)
    rewards = _rewards(config, grader)
    held_out = config.eval.problems if config.eval.every else 0
    if task is None:
        return _load_data(config, PromptRenderer(tokenizer, config.data.prompts), held_out, rewards)
    renderer = PromptRenderer(tokenizer, task_prompts(task, replace(config.data.prompts, suffix="")))
    drawer: ProblemDrawer = task
    if task.fits_prompts:
        drawer = FittedTask(task, renderer, config.sampling.max_prompt_tokens)
    evaluation = draw_distinct(drawer, held_out, random.Random(EVALUATION_SEED))
    source = ProceduralProblems(drawer, config.seed, frozenset(problem.id for problem in evaluation))
    rewards.probe([source.at(0)])  # raises now, too, if every problem of a small task is held out
    return RunData(renderer, source, None, tuple(evaluation), rewards, task, notes=renderer.notes)


def task_prompts(task: Task, settings: PromptSettings) -> PromptSettings:
    """Return the settings for the prompts of a task: no chat template around prompts with a format of their own."""
    return settings if task.fits_prompts else replace(settings, chat_template="never")


def _rewards(config: TrainConfig, grader: ClosableGrader | None) -> RewardManager:
    return RewardManager(
        grader,
        config.reward,
        max_new_tokens=config.sampling.max_new_tokens,
        max_steps=config.steps,
        think_end=config.method.steps.think_marker,
    )


def _load_data(config: TrainConfig, renderer: PromptRenderer, held_out: int, rewards: RewardManager) -> RunData:
    data = config.data
    assert data.train is not None  # TrainConfig checks it
    columns = {str(key): name for key, name in data.columns.items()}
    undecided = config.grader is None and bool(config.reward.functions)
    answers: Answers = "any" if undecided else "required" if rewards.compares_answers else "optional"
    loaded = [load_problem_set(data.train, columns=columns, answers=answers)]
    notes: list[str] = []
    if undecided and not any(problem.answers for problem in loaded[0].problems):
        rewards = _rewards(config, None)
        notes.append(
            f"{loaded[0].name}: no row has a true answer; a reward of at least {config.reward.correct_from:g} "
            "(reward.correct_from) counts as correct"
        )
    if data.eval and held_out:
        answers = "required" if rewards.compares_answers else "optional"
        loaded.append(load_problem_set(data.eval, columns=columns, answers=answers))
    require_columns(loaded)
    longest = config.sampling.max_prompt_tokens
    training, *rest = [fit_problem_set(one, renderer, max_prompt_tokens=longest) for one in loaded]
    evaluation = rest[0] if rest else None  # a benchmark keeps duplicates: every row counts
    if data.deduplicate:
        training = leave_out_duplicates(training, data.prompt_suffix)
    training = note_conflicts(training, data.prompt_suffix)
    chosen: tuple[Problem, ...] = ()
    if evaluation is not None:
        # All evaluation problems, not only the sample below: the training problems do not depend on eval.problems.
        training = leave_out_overlap(training, evaluation.problems, overlap=data.overlap, suffix=data.prompt_suffix)
        chosen = evaluation.problems
        if len(chosen) > held_out:
            chosen = tuple(random.Random(EVALUATION_SEED).sample(chosen, held_out))
    sets = [one for one in (training, evaluation) if one is not None]
    sets = [note_unusable(one, rewards.unusable_golds(one.problems)) for one in sets]
    notes += [*renderer.notes, *(note for one in sets for note in one.notes)]
    rewards.probe(training.problems)
    prints = {"data.train": fingerprint(training.problems)}
    if evaluation is not None:
        prints["data.eval"] = fingerprint(evaluation.problems)
    source = ShuffledProblems(training.problems, config.seed)
    return RunData(renderer, source, len(training.problems), chosen, rewards, notes=tuple(notes), fingerprints=prints)


def fingerprint(problems: Sequence[Problem]) -> str:
    """Return the SHA-256 of the ids, prompts and accepted answers of the problems, in order."""
    digest = hashlib.sha256()
    for problem in problems:
        digest.update(json.dumps([problem.id, problem.prompt, problem.answers], default=dict).encode() + b"\n")
    return digest.hexdigest()


def held_out_problems(task: str, count: int) -> list[Problem]:
    """Return the first ``count`` evaluation problems of a procedural task.

    Raises:
        UserError: unknown task, or the task has too few distinct problems.
    """
    return draw_distinct(find_task(task), count, random.Random(EVALUATION_SEED))
