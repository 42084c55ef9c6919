"""Tasks of the package reasoning-gym, by name, graded with their own scorers.

``reasoning_gym:chain_sum?min_terms=2&max_terms=3`` is the data set ``chain_sum`` with two of its parameters set.
A problem is decided by one number: the seed with which its data set is made, of which it is the only entry. So the
grader makes the entry again, and nothing of it has to be kept.
"""

from __future__ import annotations

import ast
import difflib
import hashlib
import random
import re
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from attnrl.config.base import PROMPT_SUFFIX
from attnrl.errors import UserError
from attnrl.grading.answers import extract_boxed, last_number
from attnrl.tasks.registry import REASONING_GYM
from attnrl.types import Grade, Problem
from attnrl.utils.yaml import load_yaml

INSTRUCTION = "\n" + PROMPT_SUFFIX.strip()

# Their entries depend on the order of Python sets of strings, which differs from process to process: a resumed run
# would see other problems than the run that it continues.
NOT_REPRODUCIBLE = frozenset({"isomorphic_strings", "polynomial_multiplication", "ransom_note"})

# Their scorers run the answer as Python, by themselves or by way of sympy's parse_expr.
EVALUATED_AS_PYTHON = frozenset({"binary_matrix", "n_queens", "spiral_matrix", "string_insertion"})
PARSED_BY_SYMPY = frozenset({"countdown", "intermediate_integration", "puzzle24", "simple_integration"})

_FUNCTIONS = frozenset(
    {
        "sin",
        "cos",
        "tan",
        "cot",
        "sec",
        "csc",
        "asin",
        "acos",
        "atan",
        "sinh",
        "cosh",
        "tanh",
        "exp",
        "log",
        "ln",
        "sqrt",
    }
)
_CONSTANTS = frozenset({"pi", "E", "C"})
MAX_EXPRESSION_CHARS = 300
TRIES_TO_MAKE = 10
DEADLINE = 5.0  # seconds to score one answer
MAX_SIZE = 100  # digits of the largest number, or degree, that an expression may come to


@dataclass(frozen=True)
class ReasoningGymTask:
    """One data set of reasoning-gym with its parameters, as a procedural task.

    Attributes:
        name: as recipes give it, parameters included.
        data_set: its name in reasoning-gym.
        parameters: of its configuration, by name.
    """

    name: str
    data_set: str
    parameters: tuple[tuple[str, Any], ...] = ()

    def draw(self, rng: random.Random) -> Problem:
        """Draw one problem: ``info["seed"]`` decides it, and :meth:`entry` gives the whole of it.

        Raises:
            UserError: reasoning-gym cannot make one with these parameters.
        """
        for tries_left in reversed(range(TRIES_TO_MAKE)):
            seed = rng.getrandbits(31)
            try:
                entry = self.entry(seed)
                break
            except UserError:  # some data sets fail with some seeds
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
        """The entry of reasoning-gym that ``seed`` decides.

        Raises:
            UserError: it cannot be made.
        """
        return _make(self, seed)[1]

    def score(self, answer: str, seed: int) -> float:
        """What the data set's own scorer gives an answer; 0 for one that it would run as code and should not."""
        if self.data_set in EVALUATED_AS_PYTHON and not runs_no_code(answer):
            return 0.0
        if self.data_set in PARSED_BY_SYMPY and not is_small_expression(answer):
            return 0.0
        data_set, entry = _make(self, seed)
        return float(data_set.score_answer(answer, deepcopy(entry)))  # a copy, should the scorer change it


@lru_cache(maxsize=1024)  # an entry is asked for again with each response, and may be slow to make
def _make(task: ReasoningGymTask, seed: int) -> tuple[Any, Mapping[str, Any]]:
    """The data set of one entry that ``seed`` decides, and the entry."""
    try:
        # Not entry number ``seed`` of one data set: some have no more entries than they were made for.
        data_set = _package().create_dataset(task.data_set, seed=seed, size=1, **dict(task.parameters))
        return data_set, data_set[0]
    except Exception as error:  # assertions, type errors and whatever else a configuration may raise
        raise UserError(f"task {task.name}: {' '.join(str(error).split()) or type(error).__name__}") from None


def _package() -> Any:
    try:
        import reasoning_gym
    except ImportError:
        raise UserError(f"tasks {REASONING_GYM}NAME need: pip install attnrl[reasoning-gym]") from None
    return reasoning_gym


def find_reasoning_gym_task(name: str) -> ReasoningGymTask:
    """The task ``reasoning_gym:NAME?KEY=VALUE&...``; the values are YAML.

    Raises:
        UserError: there is no such data set, it does not take these parameters, its problems cannot be reproduced,
            or the package is not installed.
    """
    data_set, _, query = name.removeprefix(REASONING_GYM).partition("?")
    parameters: dict[str, Any] = {}
    for part in filter(None, query.split("&")):
        key, equals, value = part.partition("=")
        if not equals or not key or key in parameters:
            raise UserError(f"task {name}: expected {REASONING_GYM}NAME?KEY=VALUE&..., each key once")
        if key in {"seed", "size"}:
            raise UserError(f"task {name}: {key} is not a parameter here, the run decides it")
        try:
            parameters[key] = _hashable(load_yaml(value))
        except ValueError as error:
            raise UserError(f"task {name}: the value of {key} is not valid YAML ({error})") from None
    known = _package().factory.DATASETS
    if data_set not in known:
        near = difflib.get_close_matches(data_set, known, n=3)
        raise UserError(
            f"task {name}: reasoning-gym has no data set {data_set!r}" + (f" (near: {', '.join(near)})" if near else "")
        )
    if data_set in NOT_REPRODUCIBLE:
        raise UserError(f"task {name}: its problems differ from process to process, so a run could not be resumed")
    task = ReasoningGymTask(name, data_set, tuple(parameters.items()))
    task.draw(random.Random(0))  # finds faulty parameters now
    return task


def _hashable(value: Any) -> Any:
    if isinstance(value, (dict, set)):
        raise ValueError("a mapping, expected text, a number or a list of them")
    return tuple(_hashable(item) for item in value) if isinstance(value, list) else value


@dataclass(frozen=True)
class ReasoningGymGrader:
    """Grades with a data set's own scorer what a response boxes last; see :class:`attnrl.types.Grader`.

    The reward is the score, which may be part of 1; correct is a score of 1.

    Attributes:
        task: whose problems it grades.
        flexible: take the last number of a response that boxes nothing.
    """

    task: ReasoningGymTask
    flexible: bool = False
    overlaps = False  # signals, which keep a scorer's deadline, reach the main thread only

    def grade(self, problems: Sequence[Problem], responses: Sequence[str]) -> list[Grade]:
        """Grade each response; the problems must be this task's."""
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
            with _deadline(DEADLINE):
                score = min(1.0, max(0.0, self.task.score(answer, problem.info["seed"])))
        except _TimeoutError:
            return Grade(0.0, "timeout", answer)
        except Exception:  # a scorer that stumbles over an answer is no reason to end a run
            return Grade(0.0, "error", answer)
        return Grade(score, "correct" if score >= 1.0 else "wrong", answer)


class _TimeoutError(BaseException):
    """Not an Exception, which scorers catch."""


@contextmanager
def _deadline(seconds: float) -> Iterator[None]:
    """Interrupt Python code that takes longer; without effect outside the main thread and on Windows.

    The scorers are Python, and the numbers that they get are small: no C function keeps them from being interrupted.
    """
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return

    def interrupt(number: int, frame: object) -> None:
        raise _TimeoutError

    former = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, former)


def runs_no_code(answer: str) -> bool:
    """Whether Python can evaluate the answer without running anything: a literal, a bare name, or no Python at all."""
    try:
        tree = ast.parse(answer, mode="eval")
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return True  # evaluating it fails in the same way
    plain = (ast.Expression, ast.Constant, ast.List, ast.Tuple, ast.Name, ast.Load, ast.UnaryOp, ast.USub)
    return all(isinstance(node, plain) for node in ast.walk(tree))


def is_small_expression(answer: str) -> bool:
    """Whether the answer is arithmetic and known functions only, and cannot come to a huge number or polynomial."""
    if len(answer) > MAX_EXPRESSION_CHARS:
        return False
    try:
        return _size(ast.parse(answer.strip(), mode="eval").body) <= MAX_SIZE
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return False


def _size(node: ast.expr) -> float:
    """A bound on the digits of a number, or the degree of a polynomial; ValueError for what is neither."""
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
            # A power that is an expression: e^(-x). Of a number it might be huge, so the base must be e.
            if isinstance(left, ast.Name) and not any(isinstance(inner, ast.Pow) for inner in ast.walk(right)):
                return 1 + _size(right)
        case ast.Call(func=ast.Name(id=name), args=[argument], keywords=[]) if name in _FUNCTIONS:
            return 1 + _size(argument)
    raise ValueError("not plain arithmetic")
