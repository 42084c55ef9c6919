"""The procedural tasks, by name: problems without end, with demonstrations and a tokenizer of their own."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from attnrl.tasks.ledger import SHAPES, SINGLE_SECTION, LedgerTask
from attnrl.tasks.problem import Problem

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class ProceduralTask(Protocol):
    """What a procedural task offers."""

    @property
    def name(self) -> str:
        """The name under which recipes ask for it."""
        ...

    def draw(self, rng: random.Random) -> Problem:
        """Draw one problem."""
        ...

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


def draw_distinct(
    task: ProceduralTask, count: int, rng: random.Random, exclude: Sequence[Problem] = ()
) -> list[Problem]:
    """Draw ``count`` problems that differ from each other and from ``exclude`` (by id)."""
    seen = {problem.id for problem in exclude}
    problems: list[Problem] = []
    while len(problems) < count:
        problem = task.draw(rng)
        if problem.id not in seen:
            seen.add(problem.id)
            problems.append(problem)
    return problems
