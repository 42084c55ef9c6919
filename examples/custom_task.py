"""A task: harder ledgers, the longest of four draws, graded by the package.

    cd examples
    attnrl train attnrl task=custom_task:LongLedgers output_dir=../runs/task

A task is an object or a class with a method ``draw(rng) -> Problem``; a subclass of ``Task`` may name a grader too. The
state of ``rng`` decides the problem, so a resumed run draws the same problems; equal prompts have equal ids.
"""

from __future__ import annotations

import random

from attnrl.grading.base import ClosableGrader
from attnrl.grading.registry import build_grader
from attnrl.tasks.base import Task
from attnrl.tasks.registry import find_task
from attnrl.types import Problem

DRAWS = 4


class LongLedgers(Task):
    """The longest prompt of several draws of ``ledger``."""

    name = "long_ledgers"
    fits_prompts = False  # the model reads a ledger as plain text, without a chat template

    def __init__(self) -> None:
        self.ledger = find_task("ledger")

    def draw(self, rng: random.Random) -> Problem:
        """Return the problem with the longest prompt of several draws."""
        return max((self.ledger.draw(rng) for _ in range(DRAWS)), key=lambda problem: len(problem.prompt))

    def grader(self, *, flexible: bool) -> ClosableGrader:
        """Return the grader ``rules``: string equality after normalisation."""
        return build_grader("rules", flexible=flexible)
