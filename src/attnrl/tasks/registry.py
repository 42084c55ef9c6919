"""The procedural tasks, by name: problems without end.

Those of :data:`TASKS` are ours, with demonstrations and a tokenizer of their own; ``reasoning_gym:NAME`` are those of
the package reasoning-gym (:mod:`attnrl.tasks.reasoning_gym`), one of which we demonstrate too
(:mod:`attnrl.tasks.chain_sum`).
"""

from __future__ import annotations

import random
from collections.abc import Container, Sequence
from typing import TYPE_CHECKING, Protocol

from attnrl.errors import UserError
from attnrl.tasks.chain_sum import ChainSumTask
from attnrl.tasks.ledger import SHAPES, SINGLE_SECTION, LedgerTask
from attnrl.types import Problem

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


REASONING_GYM = "reasoning_gym:"
DEMONSTRATED = f"{REASONING_GYM}chain_sum"
TRIES = 1_000  # draws in a row that give nothing new, before a task is taken to have no more


class DrawnTask(Protocol):
    """A task whose problems are drawn at random."""

    @property
    def name(self) -> str:
        """The name under which recipes ask for it."""
        ...

    def draw(self, rng: random.Random) -> Problem:
        """Draw one problem; problems with the same prompt have the same id."""
        ...


class ProceduralTask(DrawnTask, Protocol):
    """A drawn task that a small model can be trained for from nothing."""

    def demonstrate(self, problem: Problem, rng: random.Random) -> str:
        """Write a worked response to a problem of this task, for supervised training."""
        ...

    def build_tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer that a small model of this task is trained with."""
        ...


TASKS: dict[str, ProceduralTask] = {
    "ledger_single": LedgerTask("ledger_single", SINGLE_SECTION),
    **{name: LedgerTask(name, shape) for name, shape in SHAPES.items()},
}


def find_task(name: str) -> DrawnTask:
    """The task of that name: one of :data:`TASKS`, or ``reasoning_gym:NAME?KEY=VALUE&...``.

    Raises:
        UserError: there is no such task, or it does not take these parameters.
    """
    if name.startswith(REASONING_GYM):
        from attnrl.tasks.reasoning_gym import find_reasoning_gym_task

        return find_reasoning_gym_task(name)
    if name not in TASKS:
        raise UserError(f"task {name!r}: no such task (known: {', '.join(sorted(TASKS))}, {REASONING_GYM}NAME)")
    return TASKS[name]


def find_demonstrated_task(name: str) -> ProceduralTask:
    """The task of that name, with demonstrations: one of :data:`TASKS`, or ``reasoning_gym:chain_sum?KEY=VALUE&...``.

    Raises:
        UserError: there is no such task, or it has no demonstrations.
    """
    if name in TASKS:
        return TASKS[name]
    task = find_task(name)
    if name.partition("?")[0] == DEMONSTRATED:
        return ChainSumTask(task)
    raise UserError(f"task {name!r}: has no demonstrations (those that have: {', '.join(TASKS)}, {DEMONSTRATED})")


def draw_new(task: DrawnTask, rng: random.Random, seen: Container[str]) -> Problem:
    """Draw until a problem is not among ``seen`` (ids).

    Raises:
        UserError: :data:`TRIES` draws gave none.
    """
    for _ in range(TRIES):
        problem = task.draw(rng)
        if problem.id not in seen:
            return problem
    raise UserError(f"task {task.name}: has no more different problems ({TRIES:,} draws in a row gave none)")


def draw_distinct(task: DrawnTask, count: int, rng: random.Random, exclude: Sequence[Problem] = ()) -> list[Problem]:
    """Draw ``count`` problems that differ from each other and from ``exclude`` (by id).

    Raises:
        UserError: the task has not got that many.
    """
    seen = {problem.id for problem in exclude}
    problems: list[Problem] = []
    while len(problems) < count:
        problem = draw_new(task, rng, seen)
        seen.add(problem.id)
        problems.append(problem)
    return problems
