"""Fit problems to a tokenizer: leave out prompts that are too long, and count what happens to the other prompts."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from attnrl.errors import UserError
from attnrl.prompts.renderer import PromptRenderer
from attnrl.tasks.base import MAX_REPEATED_DRAWS, ProblemDrawer
from attnrl.types import Problem

MAX_NAMED = 3  # places named in a remark


@dataclass(frozen=True)
class FittedProblems:
    """Problems with prompts of an allowed length.

    Attributes:
        problems: the problems as asked (:meth:`attnrl.prompts.renderer.PromptRenderer.asked`).
        remarks: remarks on the prompts, one line each, with the number of prompts and the first places.
    """

    problems: tuple[Problem, ...]
    remarks: tuple[str, ...]


def fit_problems(problems: Sequence[Problem], renderer: PromptRenderer, *, max_prompt_tokens: int) -> FittedProblems:
    """Return the problems as asked, without prompts of more than ``max_prompt_tokens`` tokens.

    Raises:
        UserError: the chat template or the tokenizer fails, or a prompt has no tokens; names file and row.
    """
    fitting = []
    tally = PromptTally(renderer)
    for problem in problems:
        ids = renderer.encode(problem)
        if len(ids) <= max_prompt_tokens:
            tally.add(problem, ids)
            fitting.append(renderer.asked(problem))
    return FittedProblems(tuple(fitting), tally.remarks())


class PromptTally:
    """Counts the remarks of a renderer on many prompts."""

    def __init__(self, renderer: PromptRenderer) -> None:
        self._renderer = renderer
        self._places: dict[str, list[str]] = {}

    def add(self, problem: Problem, ids: Sequence[int]) -> None:
        """Count the remarks on the prompt of ``problem`` with the token ids ``ids``."""
        for remark in self._renderer.remarks(problem, ids):
            self._places.setdefault(remark, []).append(problem.where)

    def remarks(self) -> tuple[str, ...]:
        """Return one line per remark: number of prompts, remark, and the first places."""
        return tuple(
            f"{len(places):,} prompt{'' if len(places) == 1 else 's'} {remark} "
            f"({'; '.join(places[:MAX_NAMED])}{'; ...' if len(places) > MAX_NAMED else ''})"
            for remark, places in self._places.items()
        )


@dataclass(frozen=True)
class FittedTask:
    """A task with problems fitted to a tokenizer: problems with a prompt that is too long are drawn again."""

    task: ProblemDrawer
    renderer: PromptRenderer
    max_prompt_tokens: int

    @property
    def name(self) -> str:
        """The name of the task."""
        return self.task.name

    def draw(self, rng: random.Random) -> Problem:
        """Return one problem as asked, with a prompt of at most ``max_prompt_tokens`` tokens.

        Raises:
            UserError: :data:`MAX_REPEATED_DRAWS` consecutive draws had longer prompts.
        """
        for _ in range(MAX_REPEATED_DRAWS):
            problem = self.renderer.asked(self.task.draw(rng))
            if len(self.renderer.encode(problem)) <= self.max_prompt_tokens:
                return problem
        limit = f"max_prompt_tokens = {self.max_prompt_tokens}"
        raise UserError(f"task {self.name}: {MAX_REPEATED_DRAWS:,} prompts in a row exceed {limit}")
