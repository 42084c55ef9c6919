"""The base class of the graders."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Self

from attnrl.grading.golds import UnusableGold
from attnrl.types import Grade, Problem


class ClosableGrader(ABC):
    """A :class:`attnrl.types.Grader` with resources: a context manager that calls :meth:`close` on exit.

    Attributes:
        overlaps: ``grade`` may be called from a thread beside the main thread, while the sampler still runs.
        compares_answers: the grader reads the answer from the response and compares the answer with the problem's true
            answers: problems need true answers, and an answer inside of an unfinished thought does not count unless
            ``reward.while_thinking`` is set.
    """

    overlaps: bool = False
    compares_answers: bool = False

    @abstractmethod
    def grade(self, problems: Sequence[Problem], responses: Sequence[str]) -> list[Grade]:
        """Return one grade per response, in order; ``problems`` and ``responses`` have the same length."""

    def unusable_golds(self, problems: Sequence[Problem]) -> list[UnusableGold]:
        """Return the problems without a true answer usable by the grader. By default, every true answer is usable."""
        return []

    def close(self) -> None:  # noqa: B027 - most graders hold nothing
        """End the processes of the grader. May be called more than once."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
