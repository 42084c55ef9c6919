"""The graders by name: string equality, the paper's hybrid with math-verify, and the user's own functions."""

from __future__ import annotations

import asyncio
import importlib
import inspect
import math
import os
import re
import sys
import threading
import traceback
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Protocol

from attnrl.errors import UserError, one_line
from attnrl.grading.answers import (
    MAX_ANSWER_CHARS,
    AnswerGrader,
    conclusion_of,
    expects_list,
    extract_boxed,
    is_correct,
    normalize_answer,
    offers_alternatives,
    other_boxes,
    question_of,
    repeats_problem,
    true_answers,
)
from attnrl.grading.worker_pool import DEADLINE, Job, Outcome, WorkerPool
from attnrl.types import Grade, Problem, Verdict

MAX_GOLD_CHARS = 20_000  # a worked solution; a true answer itself is short
MAX_BOXES = 8  # with more different boxes than that, a response has no answer to judge
REMEMBERED = 8_192  # comparisons
GOLD_DEADLINE = 2.0  # seconds to parse a true answer when a run starts


class ClosableGrader(Protocol):
    """A :class:`attnrl.types.Grader` that may hold processes: a context manager with ``close()``."""

    @property
    def overlaps(self) -> bool:
        """Whether ``grade`` may be called from a thread beside the main one."""
        ...

    def grade(self, problems: Sequence[Problem], responses: Sequence[str]) -> list[Grade]:
        """Grade each response to its problem, in order."""
        ...

    def close(self) -> None:
        """End what the grader holds; harmless when repeated."""
        ...

    def __enter__(self) -> ClosableGrader:
        """The grader itself."""
        ...

    def __exit__(self, *_: object) -> None:
        """Close it."""
        ...


class _Closing:
    def close(self) -> None:
        """Nothing is held."""

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def build_grader(
    name: str,
    *,
    flexible: bool = False,
    workers: int | None = None,
    deadline: float = DEADLINE,
) -> ClosableGrader:
    """The grader of a name.

    Args:
        name: ``rules``: string equality after normalisation, in this process. ``math``: the same, and what is then
            unequal goes to math-verify in worker processes. ``module:function``: a function of the user with TRL's
            reward signature; its module is imported, the working directory included.
        flexible: where a response boxes nothing, take its last number (``rules``) or what math-verify extracts
            from its end (``math``).
        workers: worker processes of ``math``, at most; None: one per usable core, at most 8.
        deadline: seconds that math-verify may take for one answer.

    Raises:
        UserError: no such grader, or its function cannot be imported or called.
    """
    if name == "rules":
        return RulesGrader(flexible)
    if name == "math":
        return MathGrader(flexible=flexible, workers=workers, deadline=deadline)
    if ":" in name:
        return CustomGrader(name)
    raise UserError(f"grader {name}: expected rules, math or module:function")


class RulesGrader(_Closing):
    """:class:`attnrl.grading.answers.AnswerGrader` that can be closed like the others."""

    overlaps = True

    def __init__(self, flexible: bool = False) -> None:
        """See :func:`build_grader`."""
        self._grader = AnswerGrader(flexible)

    def grade(self, problems: Sequence[Problem], responses: Sequence[str]) -> list[Grade]:
        """Grade each response against the accepted answers of its problem."""
        return self._grader.grade(problems, responses)


@dataclass
class _Pending:
    """A response whose verdict waits for the workers: its jobs all have to be correct."""

    problem: Problem
    answer: str | None
    jobs: list[Job]


class MathGrader(_Closing):
    """The paper's hybrid: the last box, string equality first, math-verify for what is then unequal.

    Not correct, whatever math-verify would say: several boxes of which one is wrong, an offer of alternatives where
    the true answer is one value, and a copy of what the problem asks to work out.
    """

    overlaps = True  # the work is the workers', and their pool takes calls from any thread

    def __init__(self, *, flexible: bool = False, workers: int | None = None, deadline: float = DEADLINE) -> None:
        """See :func:`build_grader`; no worker starts yet."""
        self.flexible = flexible
        self.pool = WorkerPool(workers, deadline=deadline)
        self._known: OrderedDict[Job, Outcome] = OrderedDict()

    def close(self) -> None:
        """End the workers."""
        self.pool.close()

    def grade(self, problems: Sequence[Problem], responses: Sequence[str]) -> list[Grade]:
        """Grade each response against the accepted answers of its problem."""
        first = [self._look(problem, response) for problem, response in zip(problems, responses, strict=True)]
        outcomes = self._compare([job for grade in first if isinstance(grade, _Pending) for job in grade.jobs])
        return [grade if isinstance(grade, Grade) else _settle(grade, outcomes) for grade in first]

    def _look(self, problem: Problem, response: str) -> Grade | _Pending:
        """What can be said of a response without computer algebra."""
        answer = extract_boxed(response)
        accepted = [gold for gold in true_answers(problem.answers) if len(gold) <= MAX_GOLD_CHARS]
        if not accepted:
            return Grade(0.0, "bad_gold", answer)
        if answer is None and self.flexible:
            end = conclusion_of(response)[-MAX_ANSWER_CHARS:]
            return (
                _Pending(problem, None, [Job(tuple(accepted), end, prose=True)])
                if end.strip()
                else Grade(0.0, "no_answer")
            )
        if answer is None or not normalize_answer(answer):
            return Grade(0.0, "no_answer", answer)
        boxes = {normalize_answer(box): box for box in (*reversed(other_boxes(response)), answer)}
        if len(boxes) > MAX_BOXES:
            return Grade(0.0, "wrong", answer)
        jobs = []
        for box in boxes.values():
            if is_correct(box, accepted):
                continue
            if len(boxes) > 1 and expects_list(accepted):  # one value in each box
                together = ", ".join(boxes.values())[:MAX_ANSWER_CHARS]
                return _Pending(problem, answer, [Job(tuple(accepted), together)])
            same = _is_number_of(box, accepted)
            if same is False or offers_alternatives(box, accepted) or repeats_problem(box, question_of(problem)):
                return Grade(0.0, "wrong", answer)
            if same is None:
                jobs.append(Job(tuple(accepted), box))
        return _Pending(problem, answer, jobs) if jobs else Grade(1.0, "correct", answer)

    def _compare(self, jobs: Sequence[Job]) -> dict[Job, Outcome]:
        """Outcomes of jobs; equal jobs are done once, and recent ones are remembered."""
        outcomes = {job: self._known[job] for job in jobs if job in self._known}
        new = list(dict.fromkeys(job for job in jobs if job not in outcomes))
        for job, outcome in zip(new, self.pool.run(new) if new else [], strict=True):
            outcomes[job] = outcome
            # A timeout may be the machine's fault. Long answers hardly come twice and would fill the memory.
            if outcome.verdict in ("correct", "wrong") and len(job.answer or "") <= 200:
                self._known[job] = outcome
        while len(self._known) > REMEMBERED:
            self._known.popitem(last=False)
        return outcomes


def _settle(pending: _Pending, outcomes: dict[Job, Outcome]) -> Grade:
    found = [outcomes[job] for job in pending.jobs]
    answer = pending.answer if pending.answer is not None else found[-1].answer
    failed: list[Verdict] = [outcome.verdict for outcome in found if outcome.verdict != "correct"]
    if not failed:
        # What the workers found in a response without a box is looked at here, as boxes were before.
        if pending.answer is None and answer is not None and not is_correct(answer, pending.problem.answers):
            several = offers_alternatives(answer, true_answers(pending.problem.answers))
            if several or repeats_problem(answer, question_of(pending.problem)):
                return Grade(0.0, "wrong", answer)
        return Grade(1.0, "correct", answer)
    return Grade(0.0, failed[-1] if len(failed) == 1 or "wrong" not in failed else "wrong", answer)


_NUMBER = re.compile(
    r"(?P<decimal>[+-]?(?:\d+(?:\.\d+)?|\.\d+))"
    r"|(?P<sign>[+-]?)(?:\\frac(?:\{(?P<a>\d+)\}\{(?P<b>\d+)\}|(?P<c>\d)(?P<d>\d))|(?P<e>\d+)/(?P<f>\d+))",
    re.ASCII,
)


def _number(text: str) -> Fraction | None:
    """The value of a plain number or fraction; None for anything else, percentages too (they may mean two values)."""
    if len(text) > 100 or "%" in text:
        return None
    match = _NUMBER.fullmatch(normalize_answer(text))
    if match is None:
        return None
    if match["decimal"]:
        return Fraction(match["decimal"])
    over, under = (int(match[x] or match[y] or match[z]) for x, y, z in ("ace", "bdf"))
    if under == 0:
        return None
    return Fraction(-over if match["sign"] == "-" else over, under)


def _is_number_of(answer: str, golds: Sequence[str]) -> bool | None:
    """Whether a plain number (or ``x=`` one) is one of the golds; None where that takes computer algebra to tell."""
    value = _number(re.sub(r"^\s*[a-zA-Z]\s*=", "", answer) if not any("=" in gold for gold in golds) else answer)
    if value is None:
        return None
    others = [_number(gold) for gold in golds]
    if value in others:
        return True
    # math-verify compares decimals to six places.
    return None if any(other is None or abs(value - other) < Fraction(1, 10_000) for other in others) else False


# ---------------------------------------------------------------------------------------------------------------------
# Golds
# ---------------------------------------------------------------------------------------------------------------------


def _easy_gold() -> re.Pattern[str]:
    """Normalised golds that are known to parse: most of a data set, and the parser takes 5 ms for one."""
    integer = r"(?:\{\d+\}|\d)"
    root = rf"\d*\\sqrt{integer}"
    fraction = rf"\d*\\frac(?:\{{(?:\d+|{root}|\d*\\pi)\}}|\d){integer}(?:\\pi)?"
    term = rf"(?:{fraction}|{root}|\d*\\pi|\d+/\d+|\d+(?:\.\d+)?|\.\d+|\\infty|\d*[a-z](?:\^\d|\^\{{\d+\}})?)"
    expression = rf"[+-]?{term}(?:[+-]{term})*"
    several = rf"{expression}(?:,{expression})*"
    interval = rf"[(\[]{several}[)\]]"
    matrix = rf"\\begin\{{pmatrix\}}{expression}(?:(?:&|\\\\){expression})*\\end\{{pmatrix\}}"
    return re.compile(
        rf"(?:[a-z]=)?{expression}|{several}|{interval}(?:\\cup{interval})*|{matrix}|\d+_\d+|(?:\d+)?[A-Za-z]+"
    )


_EASY_GOLD = _easy_gold()


@dataclass(frozen=True)
class UnusableGold:
    """A problem whose true answer no response can be compared with.

    Attributes:
        row: its place in the sequence of problems, from 0.
        id: its id.
        answers: its true answers.
        reason: why.
    """

    row: int
    id: str
    answers: tuple[str, ...]
    reason: str


def unusable_golds(
    problems: Sequence[Problem], *, workers: int | None = None, deadline: float = GOLD_DEADLINE
) -> list[UnusableGold]:
    """The problems none of whose true answers can be parsed, in order. For the ``math`` grader, at a run's start.

    Plain numbers, simple fractions, roots and words need no parser; the others go to worker processes, each once.
    """
    found: dict[int, str] = {}
    jobs: dict[Job, list[int]] = {}
    for row, problem in enumerate(problems):
        accepted = true_answers(problem.answers)
        short = [gold for gold in accepted if len(gold) <= MAX_GOLD_CHARS]
        if not accepted:
            found[row] = "says nothing"
        elif not short:
            found[row] = f"longer than {MAX_GOLD_CHARS} characters"
        elif not any(_EASY_GOLD.fullmatch(normalize_answer(gold)) for gold in short):
            job = Job(tuple(dict.fromkeys(gold.strip() for gold in short)), None)
            jobs.setdefault(job, []).append(row)
    reasons = {"timeout": f"takes longer than {deadline:g} s to parse", "error": "cannot be parsed (memory or depth)"}
    with WorkerPool(workers, deadline=deadline) as pool:
        for (_, rows), outcome in zip(jobs.items(), pool.run(list(jobs)), strict=True):
            if outcome.verdict != "correct":
                found |= dict.fromkeys(rows, reasons.get(outcome.verdict, "cannot be parsed"))
    return [UnusableGold(row, problems[row].id, problems[row].answers, found[row]) for row in sorted(found)]


# ---------------------------------------------------------------------------------------------------------------------
# Custom graders
# ---------------------------------------------------------------------------------------------------------------------

_OWN_COLUMNS = ("prompts", "completions", "answer", "answers")
_ALIASES = ("solution", "ground_truth")  # what TRL's and verl's functions call the true answer


class CustomGrader(_Closing):
    """A function of the user, ``f(prompts, completions, **columns) -> list[float | None]``, plain or async.

    As in TRL, prompts and completions are texts, or lists of chat messages where the problem's prompt is a chat;
    ``columns`` are lists as long: ``answer`` (the first true answer), ``answers`` (all of them) and whatever the
    problems' ``info`` holds, None where a problem has not got it. A function that takes no ``**columns`` gets the
    ones it names; a ``solution`` or ``ground_truth`` it names is the answer where the problems hold no other.

    A reward is in [0, 1]; 1 is correct. None says that the function does not judge this response: no reward,
    verdict ``error``. What the function raises ends the run, with a :class:`UserError` that names it.

    Many such functions may be called from the main thread only (math-verify's own deadline is a signal, a database's
    connection belongs to the thread that opened it), so all responses of a generation are handed over after it. One
    that may be called from any thread says so with an attribute, ``f.overlaps = True``, and grades while the sampler
    still decodes: several calls a generation, each with the responses that have finished since the last.
    """

    def __init__(self, name: str) -> None:
        """Import the function and check that it can be called."""
        self.name = name
        self._function = _load_function(name)
        self.overlaps = bool(getattr(self._function, "overlaps", False))
        self._parameters = self._check_signature()

    def _check_signature(self) -> dict[str, inspect.Parameter]:
        try:
            parameters = dict(inspect.signature(self._function).parameters)
        except (TypeError, ValueError):
            raise UserError(f"grader {self.name}: its signature cannot be read") from None
        takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
        if any(parameter.kind is parameter.POSITIONAL_ONLY for parameter in parameters.values()):
            raise UserError(f"grader {self.name}: its arguments are given by name; it has positional-only ones")
        if "completions" not in parameters and not takes_all:
            raise UserError(f"grader {self.name}: expected a function f(prompts, completions, **columns)")
        return parameters

    def grade(self, problems: Sequence[Problem], responses: Sequence[str]) -> list[Grade]:
        """Call the function once with all of them."""
        if len(problems) != len(responses):
            raise ValueError(f"{len(problems)} problems but {len(responses)} responses")
        if not problems:
            return []
        rewards = self._call(self._arguments(problems, responses))
        if len(rewards) != len(responses):
            raise UserError(f"grader {self.name}: returned {len(rewards)} rewards for {len(responses)} responses")
        return [
            self._grade(reward, response, row)
            for row, (reward, response) in enumerate(zip(rewards, responses, strict=True))
        ]

    def _call(self, arguments: dict[str, Any]) -> list[Any]:
        """What the function returns, as a list.

        Raises:
            UserError: it raised something, or returned no list.
        """
        try:
            rewards = self._function(**arguments)
            if inspect.iscoroutine(rewards):
                rewards = _run_to_end(rewards)
        except Exception as error:  # a caller in Python finds the whole of it in the cause
            message = f"grader {self.name}: raised {type(error).__name__}: {one_line(error)}"
            raise UserError(f"{message} ({_place_of(error, self._function)})") from error
        try:
            if isinstance(rewards, (str, bytes)) or not hasattr(rewards, "__len__"):
                raise TypeError
            return list(rewards)
        except TypeError:  # an array without dimensions has a length that cannot be taken
            kind = type(rewards).__name__
            raise UserError(f"grader {self.name}: returned {kind}, expected a list of numbers") from None

    def _arguments(self, problems: Sequence[Problem], responses: Sequence[str]) -> dict[str, Any]:
        chats = [not isinstance(problem.prompt, str) for problem in problems]
        columns: dict[str, Any] = {
            key: [problem.info.get(key) for problem in problems]
            for key in dict.fromkeys(key for problem in problems for key in problem.info)
        }
        first = [problem.answers[0] if problem.answers else None for problem in problems]
        columns |= {alias: first for alias in _ALIASES if alias in self._parameters and alias not in columns}
        columns |= {
            "prompts": [
                problem.prompt if isinstance(problem.prompt, str) else [dict(message) for message in problem.prompt]
                for problem in problems
            ],
            "completions": [
                [{"role": "assistant", "content": response}] if chat else response
                for chat, response in zip(chats, responses, strict=True)
            ],
            "answer": first,
            "answers": [list(problem.answers) for problem in problems],
        }
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
                f"grader {self.name}: wants {', '.join(missing)}; the problems have {', '.join(sorted(columns))}"
            )
        if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
            return columns
        return {key: column for key, column in columns.items() if key in self._parameters}

    def _grade(self, reward: Any, response: str, row: int) -> Grade:
        answer = extract_boxed(response)
        if reward is None:
            return Grade(0.0, "error", answer)
        try:
            number = float(reward)
        except (TypeError, ValueError):
            raise UserError(f"grader {self.name}: reward {row} is a {type(reward).__name__}, not a number") from None
        if not (math.isfinite(number) and 0 <= number <= 1):
            raise UserError(f"grader {self.name}: reward {row} is {number:g}, expected a number from 0 to 1")
        return Grade(number, "correct" if number == 1 else "wrong", answer)


def _load_function(name: str) -> Callable[..., Any]:
    module_name, _, function_name = name.partition(":")
    if not re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", module_name) or not function_name.isidentifier():
        raise UserError(f"grader {name}: expected module:function")
    working = os.getcwd()
    added = working not in sys.path and "" not in sys.path
    if added:
        sys.path.append(working)  # the command's path does not hold it; python -m's does
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise UserError(f"grader {name}: module {module_name} cannot be imported ({one_line(error)})") from None
    except (Exception, SystemExit) as error:  # SystemExit: a script that runs whenever it is imported
        said = f"{type(error).__name__}: {one_line(error)}"
        raise UserError(f"grader {name}: importing {module_name} raised {said}") from error
    finally:
        if added:
            sys.path.remove(working)
    function = getattr(module, function_name, None)
    if function is None:
        raise UserError(f"grader {name}: module {module_name} has no {function_name}")
    if not callable(function):
        raise UserError(f"grader {name}: {function_name} is a {type(function).__name__}, not a function")
    return function  # type: ignore[no-any-return]


def _place_of(error: Exception, function: Callable[..., Any]) -> str:
    """File and line where an error came up: the innermost in the function's own module, if it passed through that."""
    frames = traceback.extract_tb(error.__traceback__)
    module = sys.modules.get(getattr(function, "__module__", type(function).__module__))
    own = [frame for frame in frames if frame.filename == getattr(module, "__file__", None)]
    place = (own or frames)[-1]
    return f"{Path(place.filename).name}, line {place.lineno}"


def _run_to_end(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Await a coroutine, also where this thread runs an event loop of its own (a notebook)."""
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
