"""The table of graders by name, and the function for building a grader."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from attnrl.grading.base import ClosableGrader
from attnrl.grading.custom import custom_grader
from attnrl.grading.math import MathGrader
from attnrl.grading.rules import RulesGrader
from attnrl.grading.worker_pool import DEADLINE
from attnrl.utils.plugins import resolve


@dataclass(frozen=True)
class GraderOptions:
    """The settings of a grader.

    Attributes:
        flexible: if a response has no box, extract the answer from the text.
        workers: worker processes, at most; None: one per usable core, at most 8.
        deadline: wall-clock seconds for one comparison.
    """

    flexible: bool = False
    workers: int | None = None
    deadline: float = DEADLINE


#: The only list of grader names. A new grader of the package is one class and one row.
GRADERS: dict[str, Callable[[GraderOptions], ClosableGrader]] = {
    "rules": lambda options: RulesGrader(options.flexible),
    "math": lambda options: MathGrader(flexible=options.flexible, workers=options.workers, deadline=options.deadline),
}


def build_grader(
    name: str,
    *,
    flexible: bool = False,
    workers: int | None = None,
    deadline: float = DEADLINE,
) -> ClosableGrader:
    """Return the grader with a name, as a context manager.

    Args:
        name: a row of :data:`GRADERS`: ``rules`` (equal spelling, in this process) or ``math`` (equal spelling, then
            equal values, compared by type in worker processes). Or ``module:object``: a reward function with TRL's
            signature, or an object or class with a method ``grade`` (:func:`attnrl.grading.custom.custom_grader`);
            the module is imported, the working directory included.
        flexible: if a response has no box, take its last number (``rules``), or let math-verify extract an answer from
            the end of the response (``math``).
        workers: worker processes of ``math``, at most; None: one per usable core, at most 8.
        deadline: wall-clock seconds for one comparison of ``math``.

    Raises:
        UserError: the name is unknown, an option is out of range, or the object cannot be imported or is no grader.
    """
    found: Any = resolve(name, GRADERS, "grader")
    if name in GRADERS:
        grader: ClosableGrader = found(GraderOptions(flexible, workers, deadline))
        return grader
    return custom_grader(name, found)
