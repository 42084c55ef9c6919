"""Tasks of the user: an object or class with a method ``draw``, named by ``module:object``."""

from __future__ import annotations

import inspect
import random
from typing import Any

from attnrl.errors import UserError, one_line
from attnrl.grading.base import ClosableGrader
from attnrl.grading.registry import build_grader
from attnrl.tasks.base import Task
from attnrl.types import Problem


def custom_task(name: str, found: Any) -> Task:
    """Return the task for an object of the user.

    Args:
        name: ``module:object``; the name of the task in messages.
        found: a :class:`Task`, or any object with a method ``draw(rng)`` (see :class:`CustomTask`); or a class of
            either kind, instantiated here without arguments.

    Raises:
        UserError: ``found`` has no method ``draw``, or the class cannot be instantiated.
    """
    if inspect.isclass(found):
        try:
            found = found()
        except Exception as error:
            raise UserError(f"task {name}: raised {type(error).__name__}: {one_line(error)}") from error
    if isinstance(found, Task):
        return found
    if not callable(getattr(found, "draw", None)):
        raise UserError(f"task {name}: {type(found).__name__} is not a task: a method draw(rng) -> Problem is expected")
    return CustomTask(name, found)


class CustomTask(Task):
    """An object of the user with a method ``draw(rng)``, which returns a :class:`attnrl.types.Problem`.

    The attribute ``grader`` is optional: a name known to :func:`attnrl.grading.registry.build_grader` (default
    ``rules``).
    """

    def __init__(self, name: str, task: Any) -> None:
        self.name = name
        self._task = task

    def draw(self, rng: random.Random) -> Problem:
        """Call the object and return the problem.

        Raises:
            UserError: the object raised an exception, or returned anything but a Problem.
        """
        try:
            problem = self._task.draw(rng)
        except Exception as error:
            raise UserError(f"task {self.name}: draw raised {type(error).__name__}: {one_line(error)}") from error
        if not isinstance(problem, Problem):
            raise UserError(f"task {self.name}: draw returned {type(problem).__name__}, expected attnrl.types.Problem")
        return problem

    def grader(self, *, flexible: bool) -> ClosableGrader:
        """Return the grader named by the object, or the rules grader."""
        return build_grader(getattr(self._task, "grader", "rules"), flexible=flexible)
