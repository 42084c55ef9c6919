"""Tasks of the package reasoning-gym, graded by reasoning-gym's scorers.

``reasoning_gym:chain_sum?min_terms=2&max_terms=3`` is the dataset ``chain_sum`` with two parameters. A problem is the
only entry of a dataset of size 1, so the seed of the dataset determines the problem: the grader creates the entry
again from ``Problem.info["seed"]``.
"""

from __future__ import annotations

import ast
import hashlib
import random
import re
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, fields
from functools import lru_cache
from types import MappingProxyType
from typing import Any

from attnrl.config.base import PROMPT_SUFFIX
from attnrl.errors import UserError
from attnrl.grading.answers import extract_boxed, last_number
from attnrl.grading.base import ClosableGrader
from attnrl.tasks.base import Task
from attnrl.types import Grade, Problem
from attnrl.utils.deadline import DeadlineError, deadline
from attnrl.utils.near import did_you_mean, near_names
from attnrl.utils.yaml import load_yaml

REASONING_GYM = "reasoning_gym:"
INSTRUCTION = "\n" + PROMPT_SUFFIX.strip()

# Datasets with entries that depend on the iteration order of sets of strings, which differs between processes: a
# resumed run would see other problems.
NOT_REPRODUCIBLE = frozenset({"isomorphic_strings", "polynomial_multiplication", "ransom_note"})

# Datasets with scorers that evaluate the answer as Python code: with eval, or in sympy's parse_expr.
EVALUATED_AS_PYTHON = frozenset({"binary_matrix", "n_queens", "spiral_matrix", "string_insertion"})
PARSED_BY_SYMPY = frozenset({"countdown", "intermediate_integration", "puzzle24", "simple_integration"})

_FUNCTIONS = frozenset({"sin", "cos", "tan", "cot", "sec", "csc", "asin", "acos", "atan", "sinh", "cosh", "tanh"})
_FUNCTIONS |= {"exp", "log", "ln", "sqrt"}
_CONSTANTS = frozenset({"pi", "E", "C"})
MAX_EXPRESSION_CHARS = 300
FIXED_PARAMETERS = frozenset({"seed", "size"})
TRIES_TO_MAKE = 10
DEADLINE = 5.0  # seconds per answer; scorers are Python code with small numbers, so no long C call delays the signal
MAX_SIZE = 100  # largest number of digits, or largest degree, of an expression's value


@dataclass(frozen=True)
class ReasoningGymTask(Task):
    """A dataset of reasoning-gym with parameters, as a procedural task.

    Attributes:
        name: value of the setting ``task``, with the parameters.
        data_set: name of the dataset in reasoning-gym.
        parameters: names and values of the dataset's parameters.
    """

    name: str
    data_set: str
    parameters: tuple[tuple[str, Any], ...] = ()

    def draw(self, rng: random.Random) -> Problem:
        """Return one problem; ``info["seed"]`` determines :meth:`entry`.

        Raises:
            UserError: reasoning-gym failed with the parameters for :data:`TRIES_TO_MAKE` seeds.
        """
        for tries_left in reversed(range(TRIES_TO_MAKE)):
            seed = rng.getrandbits(31)
            try:
                entry = self.entry(seed)
                break
            except UserError:  # some datasets fail with some seeds
                if not tries_left:
                    raise
        question, answer = str(entry["question"]), entry["answer"]
        return Problem(
            id=f"{self.data_set}:{hashlib.sha256(question.encode()).hexdigest()[:16]}",
            prompt=question + INSTRUCTION,
            answers=() if answer is None else (str(answer),),
            source=f"{REASONING_GYM}{self.data_set}",
            info={"seed": seed},
        )

    def entry(self, seed: int) -> Mapping[str, Any]:
        """Return reasoning-gym's entry for ``seed``.

        Raises:
            UserError: reasoning-gym raised an exception.
        """
        return _make(self, seed)[1]

    def score(self, answer: str, seed: int) -> float:
        """Return the scorer's score of ``answer``; 0 for an answer that is unsafe to evaluate as Python code."""
        if self.data_set in EVALUATED_AS_PYTHON and not runs_no_code(answer):
            return 0.0
        if self.data_set in PARSED_BY_SYMPY and not is_small_expression(answer):
            return 0.0
        data_set, entry = _make(self, seed)
        return float(data_set.score_answer(answer, deepcopy(entry)))  # a copy, because a scorer may change the entry

    def grader(self, *, flexible: bool) -> ClosableGrader:
        """Return the grader that calls :meth:`score`."""
        return ReasoningGymGrader(self, flexible)


@lru_cache(maxsize=1024)  # grading needs the entry again for every response, and some entries are slow to create
def _make(task: ReasoningGymTask, seed: int) -> tuple[Any, Mapping[str, Any]]:
    """Return the dataset of size 1 for ``seed``, and the only entry."""
    try:
        # Not the entry ``seed`` of a large dataset: some datasets have only ``size`` entries.
        data_set = _package().create_dataset(task.data_set, seed=seed, size=1, **dict(task.parameters))
        return data_set, data_set[0]
    except Exception as error:  # datasets raise many types for invalid parameters
        raise UserError(f"task {task.name}: {' '.join(str(error).split()) or type(error).__name__}") from None


def _package() -> Any:
    try:
        import reasoning_gym
    except ImportError:
        raise UserError(f"tasks {REASONING_GYM}NAME need: pip install attnrl[reasoning-gym]") from None
    return reasoning_gym


def find_reasoning_gym_task(
    name: str, *, demonstrated: Mapping[str, type[ReasoningGymTask]] = MappingProxyType({})
) -> ReasoningGymTask:
    """Return the task ``reasoning_gym:NAME?KEY=VALUE&...``; the values are YAML.

    Args:
        name: name of the task, with the prefix and the parameters.
        demonstrated: classes of the datasets with demonstrations, by dataset.

    Raises:
        UserError: unknown dataset, invalid parameters, a dataset of :data:`NOT_REPRODUCIBLE`, or reasoning-gym is not
            installed.
    """
    data_set, _, query = name.removeprefix(REASONING_GYM).partition("?")
    parameters: dict[str, Any] = {}
    for part in filter(None, query.split("&")):
        key, equals, value = part.partition("=")
        if not equals or not key or key in parameters:
            raise UserError(f"task {name}: expected {REASONING_GYM}NAME?KEY=VALUE&..., each key once")
        if key in FIXED_PARAMETERS:
            raise UserError(f"task {name}: {key} is not a parameter, the seed of the run determines {key}")
        try:
            parameters[key] = _hashable(load_yaml(value))
        except ValueError as error:
            raise UserError(f"task {name}: the value of {key} is not valid YAML ({error})") from None
    known = _package().factory.DATASETS
    if data_set not in known:
        suggestion = did_you_mean(data_set, known) or f" (known: {', '.join(sorted(known))})"
        raise UserError(f"task {name}: reasoning-gym has no dataset {data_set!r}{suggestion}")
    _, configuration = known[data_set]
    accepted = [field.name for field in fields(configuration) if field.name not in FIXED_PARAMETERS]
    for key in parameters:
        if key not in accepted:
            suggestion = did_you_mean(key, accepted)
            raise UserError(f"task {name}: no parameter {key!r} (known: {', '.join(accepted) or 'none'}){suggestion}")
    if data_set in NOT_REPRODUCIBLE:
        raise UserError(f"task {name}: the problems differ between processes, so a run cannot be resumed")
    task = demonstrated.get(data_set, ReasoningGymTask)(name, data_set, tuple(parameters.items()))
    task.draw(random.Random(0))  # raises for invalid parameters
    return task


def nearest_task(name: str) -> str | None:
    """Return the task of reasoning-gym nearest to a wrong name; None if none is near or reasoning-gym is missing."""
    try:
        known = _package().factory.DATASETS
    except UserError:
        return None
    wrong = name.partition("?")[0]
    prefix, _, data_set = wrong.rpartition(":") if ":" in wrong else wrong.rpartition(".")
    if data_set in known:
        return REASONING_GYM + data_set
    if not prefix:
        return None
    near = near_names(wrong, [REASONING_GYM + one for one in known])
    return near[0] if near else None


def _hashable(value: Any) -> Any:
    if isinstance(value, (dict, set)):
        raise ValueError("a mapping, expected text, a number or a list of them")
    return tuple(_hashable(item) for item in value) if isinstance(value, list) else value


@dataclass(frozen=True)
class ReasoningGymGrader(ClosableGrader):
    """Grade the last box of a response with the scorer of the dataset.

    The reward is the score, in [0, 1]; the verdict is ``correct`` for a score of 1.

    Attributes:
        task: the task of the problems.
        flexible: if a response has no box, take the last number.
    """

    task: ReasoningGymTask
    flexible: bool = False
    overlaps = False  # the deadline needs signals, which only the main thread receives
    compares_answers = True

    def grade(self, problems: Sequence[Problem], responses: Sequence[str]) -> list[Grade]:
        """Return one grade per response, in order; the problems must come from :attr:`task`."""
        return [self._grade(problem, response) for problem, response in zip(problems, responses, strict=True)]

    def _grade(self, problem: Problem, response: str) -> Grade:
        answer = extract_boxed(response)
        if answer is None and self.flexible:
            answer = last_number(response)
        if answer is None or not answer.strip():
            return Grade(0.0, "no_answer")
        answer = answer.strip()
        if wrapped := re.fullmatch(r"\\(?:text|mathrm|texttt)\{([^{}]*)\}", answer):
            answer = wrapped[1].strip()
        try:
            with deadline(DEADLINE):
                score = min(1.0, max(0.0, self.task.score(answer, problem.info["seed"])))
        except DeadlineError:
            return Grade(0.0, "timeout", answer)
        except Exception:  # an exception in a scorer does not end the run
            return Grade(0.0, "error", answer)
        return Grade(score, "correct" if score >= 1.0 else "wrong", answer)


def runs_no_code(answer: str) -> bool:
    """Return True if evaluating ``answer`` runs no code: a literal, a name, or invalid Python syntax."""
    try:
        tree = ast.parse(answer, mode="eval")
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return True  # evaluation fails with the same error
    plain = (ast.Expression, ast.Constant, ast.List, ast.Tuple, ast.Name, ast.Load, ast.UnaryOp, ast.USub)
    return all(isinstance(node, plain) for node in ast.walk(tree))


def is_small_expression(answer: str) -> bool:
    """Return True if ``answer`` holds only arithmetic and known functions, with a value of at most :data:`MAX_SIZE`."""
    if len(answer) > MAX_EXPRESSION_CHARS:
        return False
    try:
        return _size(ast.parse(answer.strip(), mode="eval").body) <= MAX_SIZE
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return False


def _size(node: ast.expr) -> float:
    """Return a bound on the digits of a number or the degree of a polynomial; raise ValueError for other syntax."""
    match node:
        case ast.Constant(value=int() | float()) if not isinstance(node.value, bool):
            return len(str(node.value))
        case ast.Name(id=name) if name.isascii() and (len(name) == 1 or name in _CONSTANTS):
            return 1
        case ast.UnaryOp(op=ast.USub() | ast.UAdd(), operand=operand):
            return _size(operand)
        case ast.BinOp(left=left, op=ast.Add() | ast.Sub(), right=right):
            return max(_size(left), _size(right)) + 1
        case ast.BinOp(left=left, op=ast.Mult() | ast.Div(), right=right):
            return _size(left) + _size(right)
        case ast.BinOp(left=left, op=ast.Pow(), right=right):
            power = right.operand if isinstance(right, ast.UnaryOp) else right
            if isinstance(power, ast.Constant) and isinstance(power.value, int) and power.value <= MAX_SIZE:
                return _size(left) * max(1, power.value)
            # An expression as exponent: e^(-x). The base must be a name, because a power of a number may be huge.
            if isinstance(left, ast.Name) and not any(isinstance(inner, ast.Pow) for inner in ast.walk(right)):
                return 1 + _size(right)
        case ast.Call(func=ast.Name(id=name), args=[argument], keywords=[]) if name in _FUNCTIONS:
            return 1 + _size(argument)
    raise ValueError("not arithmetic")
