"""The order in which a run sees its problems: reproducible from a seed and one position."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

from attnrl.tasks.registry import DrawnTask, draw_new
from attnrl.types import Problem


class ProblemSource(Protocol):
    """Training problems, by their place in the order of a run."""

    def at(self, position: int) -> Problem:
        """The problem at ``position`` (0, 1, 2, ... without end)."""
        ...


@dataclass(frozen=True)
class ShuffledProblems:
    """A finite set, gone through once an epoch in a new order each time."""

    problems: Sequence[Problem]
    seed: int

    def at(self, position: int) -> Problem:
        """The problem at ``position``; ``seed`` decides each epoch's order."""
        epoch, place = divmod(position, len(self.problems))
        return self.problems[_epoch_order(self.seed, epoch, len(self.problems))[place]]


@lru_cache(maxsize=2)
def _epoch_order(seed: int, epoch: int, size: int) -> Sequence[int]:
    return random.Random(f"{seed}/epoch/{epoch}").sample(range(size), size)


@dataclass(frozen=True)
class ProceduralProblems:
    """A procedural task's problems without end, none of them among ``held_out`` (ids)."""

    task: DrawnTask
    seed: int
    held_out: frozenset[str]

    def at(self, position: int) -> Problem:
        """The problem at ``position``.

        Raises:
            UserError: the task has hardly a problem that is not held out.
        """
        rng = random.Random(f"{self.seed}/problem/{position}")
        return draw_new(self.task, rng, self.held_out)
