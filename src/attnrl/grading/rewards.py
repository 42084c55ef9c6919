"""Rewards of finished responses: the verdict of the grader, and the reward that the loop learns from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

from attnrl.grading.base import ClosableGrader
from attnrl.grading.golds import UnusableGold
from attnrl.types import Grade, Grader, Problem, Response


class RewardManager:
    """Computes the grades of finished responses; a context manager that closes the grader on exit."""

    def __init__(self, grader: Grader) -> None:
        self.grader = grader

    @property
    def overlaps(self) -> bool:
        """True if :meth:`grade` may be called from a second thread, concurrently with sampling."""
        return self.grader.overlaps

    def grade(self, responses: Sequence[Response], *, step: int) -> list[Grade]:
        """Return one grade per response, in order.

        Args:
            responses: finished responses.
            step: the training step, from 1; 0 for an evaluation before training.
        """
        return self.grader.grade([one.problem for one in responses], [one.text for one in responses])

    def unusable_golds(self, problems: Sequence[Problem]) -> list[UnusableGold]:
        """Return the problems without a true answer usable by the grader."""
        return self.grader.unusable_golds(problems) if isinstance(self.grader, ClosableGrader) else []

    def close(self) -> None:
        """End the processes of the grader."""
        if isinstance(self.grader, ClosableGrader):
            self.grader.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
