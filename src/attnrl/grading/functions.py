"""Reward functions of the user: the signatures of TRL and verl, the arguments of a call, and the values returned.

====================  ======================================================  =============================
signature             call                                                    result
====================  ======================================================  =============================
TRL                   once for all responses, every argument a list           a number or None per response
verl                  once per response: ``data_source``, ``solution_str``,   a number, or a dict with the
                      ``ground_truth``, ``extra_info``                        key ``score``
====================  ======================================================  =============================
"""

from __future__ import annotations

import functools
import inspect
import math
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from attnrl.errors import UserError, one_line
from attnrl.types import Problem, Response
from attnrl.utils.near import did_you_mean

LARGEST = 1e12  # rewards beyond overflow the squares of gradients in float32
ALIASES = ("solution", "ground_truth")  # names of the true answer in reward functions written for TRL and verl
VERL_ARGUMENTS = ("data_source", "solution_str", "ground_truth", "extra_info")
EXPECTED = (
    "expected f(prompts, completions, **columns) (TRL) or "
    "compute_score(data_source, solution_str, ground_truth, extra_info) (verl)"
)


@dataclass(frozen=True)
class Fault:
    """The reason why a reward function did not judge a response: an exception, a timeout, or an unusable value.

    Attributes:
        reason: one line, for messages.
        raised: the function raised an exception.
    """

    reason: str
    raised: bool = False


Value = float | None | Fault
"""The value of a reward function for one response; None: the function does not apply to the response (TRL)."""


@dataclass(frozen=True)
class CallContext:
    """The arguments of TRL that do not depend on the responses.

    Attributes:
        step: training steps done so far, TRL's ``trainer_state.global_step``.
        max_steps: training steps of the run; 0 outside of a run.
        log_metric: receives the name and the value, a number, of a metric (TRL's ``log_metric``).
    """

    step: int = 0
    max_steps: int = 0
    log_metric: Callable[[str, float], None] = field(default=lambda name, value: _ignore(name, [float(value)]))

    def trainer_state(self) -> Any:
        """Return the ``transformers.TrainerState`` of the step."""
        from transformers import TrainerState  # not at import: grading alone loads neither torch nor transformers

        return TrainerState(global_step=self.step, max_steps=self.max_steps)


class RewardFunction:
    """A reward function of the user: a function, a method, a ``functools.partial``, a callable object or a class.

    Attributes:
        name: name in metrics, as in TRL: ``__name__``, or the name of the class of an object.
        label: setting and ``module:object``, for messages.
        function: the callable.
        is_async: the call returns a coroutine.
        per_response: verl's signature: one call per response.
        overlaps: the attribute ``overlaps`` of the function: calls may run beside sampling, in a second thread.
    """

    def __init__(self, reference: str, found: Any, setting: str) -> None:
        """Read the signature; instantiate a class without arguments.

        Args:
            reference: ``module:object``.
            found: the object.
            setting: the setting that names the function, for messages.

        Raises:
            UserError: the object is not callable, is a torch module, or has another signature.
        """
        self.label = f"{setting}: {reference}"
        self.function: Callable[..., Any] = self._callable(reference, found)
        self._parameters = self._read_signature()
        self.per_response = "solution_str" in self._parameters and "completions" not in self._parameters
        self._takes_all = any(one.kind is one.VAR_KEYWORD for one in self._parameters.values())
        if not self.per_response and not self._takes_all and not self._parameters.keys() & _COMPLETIONS:
            raise UserError(f"{self.label}: {EXPECTED}, found ({', '.join(self._parameters)})")
        inner = self.function
        while isinstance(inner, functools.partial):
            inner = inner.func
        self.is_async = inspect.iscoroutinefunction(inner) or inspect.iscoroutinefunction(type(inner).__call__)
        name = str(getattr(inner, "__name__", type(inner).__name__))
        self.name = name if name.isidentifier() else reference.rpartition(":")[2]  # a lambda has no name
        self.overlaps = bool(getattr(self.function, "overlaps", False))
        self._columns: set[str] = set()  # of the problems seen so far
        self._module = getattr(inner, "__module__", type(inner).__module__)

    def _callable(self, reference: str, found: Any) -> Callable[..., Any]:
        kind = found if inspect.isclass(found) else type(found)
        if any(base.__module__.startswith("torch.nn.") for base in kind.__mro__):
            raise UserError(
                f"{self.label}: {kind.__name__} is a torch module; reward models are not supported: "
                "name a function that calls the model"
            )
        if inspect.isclass(found):
            try:
                found = found()
            except Exception as error:
                said = described(error, kind.__module__)
                raise UserError(f"{self.label}: {kind.__name__}() raised {said}") from error
        if not callable(found):
            way_out = f"; for an object with a method grade, set grader={reference}" if hasattr(found, "grade") else ""
            raise UserError(f"{self.label}: {kind.__name__} is not callable{way_out}")
        callable_object: Callable[..., Any] = found
        return callable_object

    def _read_signature(self) -> dict[str, inspect.Parameter]:
        try:
            parameters = dict(inspect.signature(self.function).parameters)
        except (TypeError, ValueError):
            raise UserError(f"{self.label}: the signature cannot be read; {EXPECTED}") from None
        if any(one.kind is one.POSITIONAL_ONLY for one in parameters.values()):
            raise UserError(f"{self.label}: positional-only parameters, but arguments are passed by keyword")
        return parameters

    def missing_columns(self, problems: Iterable[Problem]) -> str | None:
        """Return a message about the required parameters without a column; None without any.

        A column counts if any problem has the column, in this call or an earlier call.
        """
        self._columns.update(key for problem in problems for key in problem.info)
        columns = self._columns | _GIVEN | set(VERL_ARGUMENTS if self.per_response else ALIASES)
        missing = [
            name
            for name, one in self._parameters.items()
            if name not in columns
            and one.default is one.empty
            and one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)
        ]
        if not missing:
            return None
        suggestion = "".join(did_you_mean(name, columns) for name in missing)
        return f"requires {', '.join(missing)}, but the columns are {', '.join(sorted(columns))}{suggestion}"

    def arguments(self, responses: Sequence[Response], context: CallContext) -> dict[str, Any]:
        """Return the arguments of one call in TRL's signature, by name; every column has an item per response.

        The columns are those of :meth:`missing_columns`, with None for a problem without the column. A function without
        ``**columns`` gets the columns named by the parameters only.
        """
        problems = [one.problem for one in responses]
        first = [problem.answers[0] if problem.answers else None for problem in problems]
        columns: dict[str, Any] = {
            "answer": first,
            "answers": [list(problem.answers) for problem in problems],
            **{alias: first for alias in ALIASES if alias in self._parameters},
        }
        columns |= {key: [problem.info.get(key) for problem in problems] for key in self._columns}
        columns |= {
            "prompts": [_prompt(problem) for problem in problems],
            "completions": [_completion(one) for one in responses],
            "completion_ids": [list(one.tokens) for one in responses],
            "log_metric": context.log_metric,
            "log_extra": _ignore,
        }
        if self._takes_all or "trainer_state" in self._parameters:
            columns["trainer_state"] = context.trainer_state()
        return {name: column for name, column in columns.items() if self._takes_all or name in self._parameters}

    def response_arguments(self, response: Response) -> dict[str, Any]:
        """Return the arguments of one call in verl's signature, by name."""
        problem = response.problem
        reward_model, extra = problem.info.get("reward_model"), problem.info.get("extra_info")
        answer: Any = problem.answers[0] if problem.answers else None
        if isinstance(reward_model, Mapping) and "ground_truth" in reward_model:
            answer = reward_model["ground_truth"]
        arguments = {name: problem.info.get(name) for name in self._columns if name in self._parameters} | {
            "data_source": problem.info.get("data_source", problem.source),
            "solution_str": response.completion,
            "ground_truth": problem.info.get("ground_truth", answer),
            "extra_info": dict(extra) if isinstance(extra, Mapping) else dict(problem.info),
        }
        return {name: value for name, value in arguments.items() if self._takes_all or name in self._parameters}

    def values(self, result: Any, count: int) -> list[Value]:
        """Return the value of each of ``count`` responses from the result of a call in TRL's signature."""
        if isinstance(result, (str, bytes, Mapping)):
            return [Fault(f"returned {type(result).__name__}, expected a list of {count} rewards")] * count
        try:
            items = list(result)
        except TypeError:  # not iterable, or an array without dimensions
            return [Fault(f"returned {type(result).__name__}, expected a list of {count} rewards")] * count
        except Exception as error:  # a generator that raises
            return [self.fault(error)] * count
        if len(items) != count:
            return [Fault(f"returned {len(items)} rewards for {count} completions")] * count
        return [finite_value(item) for item in items]

    def response_value(self, result: Any) -> Value:
        """Return the value of a response from the result of a call in verl's signature."""
        if isinstance(result, Mapping):
            if "score" not in result:
                return Fault(f"returned a dict without score (keys: {', '.join(map(str, result))})")
            result = result["score"]
        return finite_value(result)

    def fault(self, error: BaseException) -> Fault:
        """Return the fault for an exception of the function: type, place and message."""
        return Fault(described(error, self._module), raised=True)


_GIVEN = frozenset(
    ("prompts", "completions", "completion_ids", "trainer_state", "log_metric", "log_extra", "answer", "answers")
)
_COMPLETIONS = frozenset(("completions", "completion_ids"))


def described(error: BaseException, module: str | None) -> str:
    """Return type, message and place of an exception; the place is the innermost frame in ``module``, if any."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if frame.filename == getattr(sys.modules.get(module or ""), "__file__", None)]
    place = (own or frames)[-1:]
    where = f" ({Path(place[0].filename).name}, line {place[0].lineno})" if place else ""
    said = one_line(error)
    return type(error).__name__ + (f": {said}" if said else "") + where


def distinct_names(functions: Sequence[RewardFunction]) -> list[str]:
    """Return the names of the functions, with ``_2``, ``_3``, ... after a repeated name."""
    names: list[str] = []
    for function in functions:
        name, number = function.name, 1
        while name in names:
            number += 1
            name = f"{function.name}_{number}"
        names.append(name)
    return names


def finite_value(item: Any) -> Value:
    """Return a reward as a float, None for None, or a fault for NaN, inf, a huge number and anything but a number."""
    if item is None:
        return None
    try:
        if isinstance(item, (str, bytes)):
            raise TypeError
        number = float(item)
    except (TypeError, ValueError, OverflowError):
        return Fault(f"returned {type(item).__name__} {str(item)[:40]!r}, expected a number or None")
    if not math.isfinite(number):
        return Fault(f"returned {number}")
    return number if abs(number) <= LARGEST else Fault(f"returned {number:g}, beyond the limits of -1e12 and 1e12")


def _prompt(problem: Problem) -> str | list[dict[str, str]]:
    if isinstance(problem.prompt, str):
        return problem.prompt
    return problem.prompt[0]["content"] if problem.wrapped else [dict(message) for message in problem.prompt]


def _completion(response: Response) -> str | list[dict[str, str]]:
    if isinstance(response.problem.prompt, str) or response.problem.wrapped:
        return response.completion
    return [{"role": "assistant", "content": response.completion}]


def _ignore(column: str, values: Sequence[object]) -> None:
    """Accept TRL's ``log_extra``; there is no table of completions to add a column to."""
