"""A task: a curriculum of ledgers, the longest of four draws, with the grader of the package.

    cd examples
    attnrl train attnrl task=custom_task:LongLedgers output_dir=../runs/task

A task is an object or a class with a method ``draw(rng) -> Problem``. The state of ``rng`` decides the problem, so a
resumed run draws the same problems; equal prompts have equal ids.
"""

from __future__ import annotations

import random

from attnrl.tasks.registry import find_task
from attnrl.types import Problem


class LongLedgers:
    """The longest prompt of several draws of ``ledger``: harder problems, more often mixed in outcome."""

    grader = "rules"  # a name, or module:object
    fit_prompts = False  # a ledger is fed to the model as plain text, without a chat template

    def __init__(self, draws: int = 4) -> None:
        self.draws = draws
        self.ledger = find_task("ledger")

    def draw(self, rng: random.Random) -> Problem:
        """Draw one problem."""
        return max((self.ledger.draw(rng) for _ in range(self.draws)), key=lambda problem: len(problem.prompt))
