"""The base classes of procedural tasks: tasks that draw problems without end."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Container, Sequence
from typing import TYPE_CHECKING, Protocol

from attnrl.errors import UserError
from attnrl.grading.base import ClosableGrader
from attnrl.grading.rules import RulesGrader
from attnrl.types import Problem

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MAX_REPEATED_DRAWS = 1_000  # consecutive draws without a new problem, before a task counts as exhausted


class ProblemDrawer(Protocol):
    """Anything with a name that draws problems: a :class:`Task`, or a task fitted to a tokenizer."""

    @property
    def name(self) -> str:
        """The name of the task, for messages."""
        ...

    def draw(self, rng: random.Random) -> Problem:
        """Return one problem; ``rng`` is the only source of randomness."""
        ...


class Task(ABC):
    """A procedural task.

    Attributes:
        name: value of the setting ``task``, for messages.
        fits_prompts: whether prompts are wrapped as a chat (``data.chat_template``) and prompts longer than
            ``sampling.max_prompt_tokens`` are drawn again. False for tasks with a tokenizer and a prompt format of
            their own.
        knows_dependencies: whether ``Problem.info["needs"]`` holds the true dependency graph
            (:mod:`attnrl.tasks.dependencies`), needed by ``method.branching.criterion=oracle``.
    """

    name: str
    fits_prompts: bool = True
    knows_dependencies: bool = False

    @abstractmethod
    def draw(self, rng: random.Random) -> Problem:
        """Return one problem; ``rng`` is the only source of randomness. Equal prompts have equal ids."""

    def grader(self, *, flexible: bool) -> ClosableGrader:
        """Return the grader of the task, used unless the setting ``grader`` names another grader.

        Args:
            flexible: accept an answer outside of a box (the setting ``flexible_answers``).
        """
        return RulesGrader(flexible)


class DemonstratedTask(Task):
    """A procedural task with demonstrations and a tokenizer, for supervised training of a small model."""

    @abstractmethod
    def demonstrate(self, problem: Problem, rng: random.Random) -> str:
        """Return a worked response to ``problem``."""

    @abstractmethod
    def build_tokenizer(self) -> PreTrainedTokenizerBase:
        """Return the tokenizer of models trained on the demonstrations."""


def draw_new(task: ProblemDrawer, rng: random.Random, seen: Container[str]) -> Problem:
    """Draw until the id of the problem is not in ``seen``, and return the problem.

    Raises:
        UserError: :data:`MAX_REPEATED_DRAWS` consecutive draws gave no new problem.
    """
    for _ in range(MAX_REPEATED_DRAWS):
        problem = task.draw(rng)
        if problem.id not in seen:
            return problem
    raise UserError(f"task {task.name}: too few distinct problems ({MAX_REPEATED_DRAWS:,} draws in a row gave no new)")


def draw_distinct(
    task: ProblemDrawer, count: int, rng: random.Random, exclude: Sequence[Problem] = ()
) -> list[Problem]:
    """Draw ``count`` problems with distinct ids, none of an id in ``exclude``.

    Raises:
        UserError: the task has too few distinct problems.
    """
    seen = {problem.id for problem in exclude}
    problems: list[Problem] = []
    while len(problems) < count:
        problem = draw_new(task, rng, seen)
        seen.add(problem.id)
        problems.append(problem)
    return problems
