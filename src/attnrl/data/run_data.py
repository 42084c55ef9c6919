"""The problems of a run and their grader, whichever engine runs it."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from transformers import PreTrainedTokenizerBase

from attnrl.config.schema import TrainConfig
from attnrl.data.datasets import (
    ProblemSet,
    fit_problem_set,
    leave_out_duplicates,
    leave_out_overlap,
    load_problem_set,
    note_conflicts,
    note_unusable,
)
from attnrl.data.fitting import FittedTask
from attnrl.data.stream import ProblemSource, ProceduralProblems, ShuffledProblems
from attnrl.grading.golds import unusable_golds
from attnrl.grading.registry import build_grader
from attnrl.grading.rules import RulesGrader
from attnrl.tasks.reasoning_gym import ReasoningGymGrader, ReasoningGymTask
from attnrl.tasks.registry import draw_distinct, find_task
from attnrl.types import Grader, Problem

EVALUATION_SEED = 20_250_930  # held-out problems are the same for every run of a task, whatever its seed


@dataclass(frozen=True)
class TaskData:
    """The problems of a run.

    Attributes:
        source: training problems.
        training_problems: how many there are; None for a procedural task, which has no end.
        held_out: evaluation problems.
        notes: what was left out of data files, and what is odd about them.
        fingerprints: of the problems that came from data files, by the setting that names them.
    """

    source: ProblemSource
    training_problems: int | None
    held_out: tuple[Problem, ...]
    notes: tuple[str, ...] = ()
    fingerprints: Mapping[str, str] = field(default_factory=dict)


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
    prints = {"data.train": fingerprint(training.problems)}
    if evaluation is not None:
        prints["data.eval"] = fingerprint(evaluation.problems)
    return TaskData(ShuffledProblems(training.problems, config.seed), len(training.problems), chosen, notes, prints)


def fingerprint(problems: Sequence[Problem]) -> str:
    """A SHA-256 of all that a run sees of problems: what they ask, what is accepted, and their order."""
    digest = hashlib.sha256()
    for problem in problems:
        digest.update(json.dumps([problem.id, problem.prompt, problem.answers], default=dict).encode() + b"\n")
    return digest.hexdigest()


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
        yield RulesGrader(config.flexible_answers)
    else:
        with build_grader(config.grader or "math", flexible=config.flexible_answers) as grader:
            yield grader
