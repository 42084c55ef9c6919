"""Graders of the user: a reward function, or an object with a method ``grade``.

A fault of a grader never raises during a run: the responses are not judged (:attr:`attnrl.types.Grade.fault`).
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, get_args

from attnrl.config.reward import RewardConfig
from attnrl.errors import UserError
from attnrl.grading.answers import extract_boxed
from attnrl.grading.base import ClosableGrader
from attnrl.grading.calls import FunctionCaller
from attnrl.grading.functions import CallContext, Fault, RewardFunction, Value, described, finite_value
from attnrl.types import Grade, Problem, Response, Verdict

DEFAULTS = RewardConfig()


def custom_grader(name: str, found: Any) -> ClosableGrader:
    """Return the grader for an object of the user.

    Args:
        name: ``module:object``, for messages.
        found: an object with a method ``grade(problems, responses)`` (see :class:`ObjectGrader`); a class with the
            method, instantiated here without arguments; or a reward function (see :class:`FunctionGrader`).

    Raises:
        UserError: ``found`` is not a grader, or the class cannot be instantiated.
    """
    if not hasattr(found, "grade"):
        return FunctionGrader(RewardFunction(name, found, "grader"))
    if inspect.isclass(found):
        try:
            found = found()
        except Exception as error:
            raise UserError(f"grader: {name}() raised {described(error, found.__module__)}") from error
    return ObjectGrader(name, found)


class FunctionGrader(ClosableGrader):
    """A reward function as grader: a reward of at least 1 is ``correct``, less is ``wrong``.

    A :class:`attnrl.grading.rewards.RewardManager` calls :attr:`function` among the reward functions of a run, with
    token ids, trainer state and the settings of the run; :meth:`grade` knows texts only.
    """

    def __init__(self, function: RewardFunction) -> None:
        self.function = function
        self.overlaps = function.overlaps
        self._caller = FunctionCaller(DEFAULTS.timeout, DEFAULTS.concurrency)

    def grade(self, problems: Sequence[Problem], responses: Sequence[str]) -> list[Grade]:
        """Call the function and return the grades, in order. Without responses, the function is not called."""
        known = [Response(problem, text) for problem, text in zip(problems, responses, strict=True)]
        (values,) = self._caller.call([self.function], known, CallContext())
        return [
            grade_of_value(value, extract_boxed(text), DEFAULTS.correct_from, self.function.name)
            for value, text in zip(values, responses, strict=True)
        ]

    def close(self) -> None:
        """End the event loop of async calls."""
        self._caller.close()


def grade_of_value(value: Value, answer: str | None, correct_from: float, name: str) -> Grade:
    """Return the grade for the value of a function without verdicts; ``name`` is the name of the function."""
    if value is None:  # the function does not apply
        return Grade(None, "not_judged", answer)
    if isinstance(value, Fault):
        return Grade(None, "not_judged", answer, fault=f"{name}: {value.reason}")
    return Grade(value, "correct" if value >= correct_from else "wrong", answer)


class ObjectGrader(ClosableGrader):
    """An object of the user with a method ``grade(problems, responses)``.

    The method returns a list of :class:`attnrl.types.Grade`, one per response; a reward is any finite number, or None
    (not judged). The attribute ``overlaps`` (default False) and the method ``close()`` are optional. After an exception
    the object is called again response by response.
    """

    def __init__(self, name: str, grader: Any) -> None:
        if not callable(grader.grade):
            raise UserError(f"grader: {name}.grade is a {type(grader.grade).__name__}, not a method")
        self.name = name
        self.overlaps = bool(getattr(grader, "overlaps", False))
        self._grader = grader

    def grade(self, problems: Sequence[Problem], responses: Sequence[str]) -> list[Grade]:
        """Call the object and return the grades, in order. Without responses, the object is not called."""
        if len(problems) != len(responses):
            raise ValueError(f"{len(problems)} problems but {len(responses)} responses")
        if not problems:
            return []
        try:
            result = self._grader.grade(problems, responses)
        except Exception as error:
            if len(problems) == 1:
                return [self._fault(described(error, type(self._grader).__module__))]
            rows = zip(problems, responses, strict=True)
            return [grade for problem, response in rows for grade in self.grade([problem], [response])]
        if not isinstance(result, (list, tuple)) or len(result) != len(responses):
            size = f"{len(result)} grades" if isinstance(result, (list, tuple)) else type(result).__name__
            return [self._fault(f"returned {size} for {len(responses)} responses")] * len(responses)
        return [self._checked(grade) for grade in result]

    def _checked(self, grade: Any) -> Grade:
        if not isinstance(grade, Grade):
            return self._fault(f"returned {type(grade).__name__}, expected attnrl.types.Grade")
        if grade.verdict not in get_args(Verdict):
            known = ", ".join(get_args(Verdict))
            return self._fault(f"returned the verdict {grade.verdict!r}, expected one of {known}")
        value = finite_value(grade.reward)
        if isinstance(value, Fault):
            return self._fault(f"reward: {value.reason}")
        return replace(grade, reward=value)

    def _fault(self, reason: str) -> Grade:
        return Grade(None, "not_judged", fault=f"{self.name}: {reason}")

    def close(self) -> None:
        """Call ``close()`` of the object, if defined."""
        if hasattr(self._grader, "close"):
            self._grader.close()
