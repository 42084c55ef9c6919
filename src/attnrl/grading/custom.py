"""Graders of the user: a reward function with TRL's signature, or an object with a method ``grade``."""

from __future__ import annotations

import asyncio
import inspect
import math
import sys
import threading
import traceback
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

from attnrl.errors import UserError, one_line
from attnrl.grading.answers import extract_boxed
from attnrl.grading.base import ClosableGrader
from attnrl.types import Grade, Problem

_ALIASES = ("solution", "ground_truth")  # names of the true answer in reward functions written for TRL and verl


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
        return FunctionGrader(name, found)
    if inspect.isclass(found):
        found = _call(name, found, found)
    return ObjectGrader(name, found)


class ObjectGrader(ClosableGrader):
    """An object of the user with a method ``grade(problems, responses)``.

    The method returns a list of :class:`attnrl.types.Grade`, one per response. The attribute ``overlaps`` (default
    False) and the method ``close()`` are optional. An exception of the object ends the run as a :class:`UserError`
    with exception, file and line.
    """

    def __init__(self, name: str, grader: Any) -> None:
        if not callable(grader.grade):
            raise UserError(f"grader: {name}.grade is a {type(grader.grade).__name__}, not a method")
        self.name = name
        self.overlaps = bool(getattr(grader, "overlaps", False))
        self._grader = grader

    def grade(self, problems: Sequence[Problem], responses: Sequence[str]) -> list[Grade]:
        """Call the object and return the grades, in order. Without responses, the object is not called.

        Raises:
            UserError: the object raised an exception, or returned anything but one Grade per response.
        """
        if len(problems) != len(responses):
            raise ValueError(f"{len(problems)} problems but {len(responses)} responses")
        if not problems:
            return []
        grades = _as_list(self.name, _call(self.name, self._grader, self._grader.grade, problems, responses), responses)
        for row, grade in enumerate(grades):
            if not isinstance(grade, Grade):
                raise UserError(f"grader: {self.name}: grade {row} is a {type(grade).__name__}, not a Grade")
            _checked_reward(self.name, grade.reward, row)
        return grades

    def close(self) -> None:
        """Call ``close()`` of the object, if defined."""
        if hasattr(self._grader, "close"):
            self._grader.close()


class FunctionGrader(ClosableGrader):
    """A reward function of the user, ``f(prompts, completions, **columns) -> list[float | None]``, plain or async.

    As in TRL, prompts and completions are texts, or lists of chat messages if the problem's prompt is a chat. The
    ``columns`` are lists of the same length: ``answer`` (the first true answer), ``answers`` (all true answers) and
    every key of the problems' ``info``, with None for a problem without the key. A function without ``**columns`` gets
    the columns named by the parameters. A parameter ``solution`` or ``ground_truth`` gets the first true answer if the
    problems have no column of the same name.

    A reward is in [0, 1]; 1 gives verdict ``correct``, less gives ``wrong``. None (not applicable) gives reward 0 and
    verdict ``error``. An exception of the function ends the run as a :class:`UserError` with exception, file and
    line.

    By default the function is called once per generation, from the main thread, because many reward functions depend
    on the main thread (signals, database connections). With the attribute ``f.overlaps = True`` the function is called
    from a second thread while the sampler still runs: several calls per generation, each with newly finished responses.
    """

    def __init__(self, name: str, function: Any) -> None:
        if not callable(function):
            raise UserError(f"grader: {name} is a {type(function).__name__}, not a function or an object with grade()")
        self.name = name
        self._function: Callable[..., Any] = function
        self.overlaps = bool(getattr(function, "overlaps", False))
        self._parameters = self._check_signature()

    def _check_signature(self) -> dict[str, inspect.Parameter]:
        try:
            parameters = dict(inspect.signature(self._function).parameters)
        except (TypeError, ValueError):
            raise UserError(f"grader: {self.name}: the signature cannot be read") from None
        takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
        if any(parameter.kind is parameter.POSITIONAL_ONLY for parameter in parameters.values()):
            raise UserError(f"grader: {self.name} has positional-only parameters; arguments are passed by keyword")
        if "completions" not in parameters and not takes_all:
            raise UserError(f"grader: {self.name}: expected a function f(prompts, completions, **columns)")
        return parameters

    def grade(self, problems: Sequence[Problem], responses: Sequence[str]) -> list[Grade]:
        """Call the function and return the grades, in order. Without responses, the function is not called.

        Raises:
            UserError: the function requires a missing column, raised an exception, or returned anything but one
                number in [0, 1] (or None) per response.
        """
        if len(problems) != len(responses):
            raise ValueError(f"{len(problems)} problems but {len(responses)} responses")
        if not problems:
            return []
        arguments = self._arguments(problems, responses)
        rewards = _as_list(self.name, _call(self.name, self._function, self._function, **arguments), responses)
        return [
            self._grade(reward, response, row)
            for row, (reward, response) in enumerate(zip(rewards, responses, strict=True))
        ]

    def _arguments(self, problems: Sequence[Problem], responses: Sequence[str]) -> dict[str, Any]:
        """Return the columns named by the function's parameters; all columns for ``**columns``.

        Raises:
            UserError: the function requires a column missing from the problems.
        """
        columns = self._columns(problems, responses)
        parameters = self._parameters.values()
        missing = [
            parameter.name
            for parameter in parameters
            if parameter.name not in columns
            and parameter.default is parameter.empty
            and parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        ]
        if missing:
            raise UserError(
                f"grader: {self.name} requires {', '.join(missing)}; the problems have {', '.join(sorted(columns))}"
            )
        if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
            return columns
        return {key: column for key, column in columns.items() if key in self._parameters}

    def _columns(self, problems: Sequence[Problem], responses: Sequence[str]) -> dict[str, Any]:
        columns: dict[str, Any] = {
            key: [problem.info.get(key) for problem in problems]
            for key in dict.fromkeys(key for problem in problems for key in problem.info)
        }
        first = [problem.answers[0] if problem.answers else None for problem in problems]
        columns |= {alias: first for alias in _ALIASES if alias in self._parameters and alias not in columns}
        return columns | {
            "prompts": [
                problem.prompt if isinstance(problem.prompt, str) else [dict(message) for message in problem.prompt]
                for problem in problems
            ],
            "completions": [
                response if isinstance(problem.prompt, str) else [{"role": "assistant", "content": response}]
                for problem, response in zip(problems, responses, strict=True)
            ],
            "answer": first,
            "answers": [list(problem.answers) for problem in problems],
        }

    def _grade(self, reward: Any, response: str, row: int) -> Grade:
        answer = extract_boxed(response)
        if reward is None:
            return Grade(0.0, "error", answer)
        number = _checked_reward(self.name, reward, row)
        return Grade(number, "correct" if number == 1 else "wrong", answer)


def _call(name: str, owner: Any, function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    """Return the result of a call of the user's code; a coroutine is awaited.

    Raises:
        UserError: the code raised an exception (kept as the cause). ``owner`` gives the module of the line reported.
    """
    try:
        result = function(*arguments, **named)
        return _run_coroutine(result) if inspect.iscoroutine(result) else result
    except Exception as error:
        message = f"grader: {name} raised {type(error).__name__}: {one_line(error)}"
        raise UserError(f"{message} ({_place_of(error, owner)})") from error


def _as_list(name: str, result: Any, responses: Sequence[str]) -> list[Any]:
    """Return ``result`` as a list; the length must be the number of responses.

    Raises:
        UserError: ``result`` is not a sequence, or has another length.
    """
    try:
        if isinstance(result, (str, bytes)) or not hasattr(result, "__len__"):
            raise TypeError
        items = list(result)
    except TypeError:  # also an array without dimensions, whose __len__ raises
        raise UserError(f"grader: {name} returned {type(result).__name__}, expected a list") from None
    if len(items) != len(responses):
        raise UserError(f"grader: {name} returned {len(items)} items for {len(responses)} responses")
    return items


def _checked_reward(name: str, reward: Any, row: int) -> float:
    """Return the reward as a float.

    Raises:
        UserError: the reward is not a number in [0, 1].
    """
    try:
        number = float(reward)
    except (TypeError, ValueError):
        raise UserError(f"grader: {name}: reward {row} is a {type(reward).__name__}, not a number") from None
    if not (math.isfinite(number) and 0 <= number <= 1):
        raise UserError(f"grader: {name}: reward {row} is {number:g}, expected a number from 0 to 1")
    return number


def _place_of(error: Exception, owner: Any) -> str:
    """Return file and line of an error: the innermost frame in the owner's module, or else the innermost frame."""
    frames = traceback.extract_tb(error.__traceback__)
    module = sys.modules.get(getattr(owner, "__module__", type(owner).__module__))
    own = [frame for frame in frames if frame.filename == getattr(module, "__file__", None)]
    place = (own or frames)[-1]
    return f"{Path(place.filename).name}, line {place.lineno}"


def _run_coroutine(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Await a coroutine and return the result; in a second thread if this thread runs an event loop (a notebook)."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(coroutine)
    outcome: dict[str, Any] = {}

    def run() -> None:
        try:
            outcome["result"] = asyncio.run(coroutine)
        except BaseException as error:
            outcome["error"] = error

    thread = threading.Thread(target=run, name="grader")
    thread.start()
    thread.join()
    if "error" in outcome:
        raise outcome["error"]
    return outcome["result"]
