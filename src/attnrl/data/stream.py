"""The order of the training problems of a run, determined by the seed and the position."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

from attnrl.tasks.base import ProblemDrawer, draw_new
from attnrl.types import Problem

CACHED_PROBLEMS = 1_024


class ProblemSource(Protocol):
    """Training problems by their position in the order of a run."""

    def at(self, position: int) -> Problem:
        """Return the problem at ``position`` (0, 1, 2, ... without end)."""
        ...


@dataclass(frozen=True)
class ShuffledProblems:
    """A finite set of problems, shuffled anew every epoch."""

    problems: Sequence[Problem]
    seed: int

    def at(self, position: int) -> Problem:
        """Return the problem at ``position``; ``seed`` determines the order of every epoch."""
        epoch, place = divmod(position, len(self.problems))
        return self.problems[_epoch_order(self.seed, epoch, len(self.problems))[place]]


@lru_cache(maxsize=2)
def _epoch_order(seed: int, epoch: int, size: int) -> Sequence[int]:
    return random.Random(f"{seed}/epoch/{epoch}").sample(range(size), size)


class ProceduralProblems:
    """Problems drawn from a procedural task without end; none has an id in ``held_out``.

    The last :data:`CACHED_PROBLEMS` problems are cached: a training step asks several times for the same positions.
    """

    def __init__(self, task: ProblemDrawer, seed: int, held_out: frozenset[str]) -> None:
        self.task = task
        self.seed = seed
        self.held_out = held_out
        self._cached_draw = lru_cache(CACHED_PROBLEMS)(self._draw)

    def at(self, position: int) -> Problem:
        """Return the problem at ``position``.

        Raises:
            UserError: the task has too few problems that are not held out.
        """
        return self._cached_draw(position)

    def _draw(self, position: int) -> Problem:
        rng = random.Random(f"{self.seed}/problem/{position}")
        return draw_new(self.task, rng, self.held_out)
