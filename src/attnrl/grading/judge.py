"""The verdict on the boxes of a response, without a deadline. Runs in the worker processes.

read both answers -> compare by type -> guards. math-verify decides on true answers beyond the reader and on comparisons
left undecided.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from functools import lru_cache

from attnrl.grading.arithmetic.limits import TooLarge
from attnrl.grading.comparing.algebra import extract_from_prose, is_parsed, same_by_algebra
from attnrl.grading.comparing.compare import Comparison
from attnrl.grading.comparing.relations import only_member
from attnrl.grading.guards.guesses import is_guess, leaves_calculus
from attnrl.grading.jobs import Job, JobResult
from attnrl.grading.reading.cursor import Unsupported
from attnrl.grading.reading.expressions import Expression, Operation, operation_names
from attnrl.grading.reading.reader import read, readings
from attnrl.grading.reading.spelling import is_spelled_as
from attnrl.grading.reading.statement import Statement, read_statement
from attnrl.grading.reading.tokens import Unreadable
from attnrl.grading.reading.units import Dimension
from attnrl.grading.reading.values import Brackets, Listing, Matrix, Quantity, Relation, TimeOfDay, Value
from attnrl.types import Verdict

MAX_UNREAD_CHARS = 500  # of a true answer beyond the reader: math-verify parses longer texts slowly
_CLOCK = frozenset({"time", "clock", "hour", "noon", "midnight", "morning", "afternoon", "evening", "when"})
_PROSE = re.compile(r"(?i)answer|\$.*[a-z]{3,}.*\$", re.DOTALL)


def judge(job: Job) -> JobResult:
    """Return the verdict on a job; for prose, also the answer extracted by math-verify."""
    golds = [meaning for gold in job.golds if (meaning := _meaning_of(gold)) is not None]
    if not golds:
        same = bool(job.boxes) and all(is_spelled_as(box, job.golds) for box in job.boxes)
        return JobResult("correct" if same else "bad_gold")
    if not job.boxes:
        return JobResult("correct")
    statement = read_statement(job.problem)
    if not job.prose:
        return JobResult(judge_boxes(golds, job.boxes, statement))
    try:
        answer = extract_from_prose(job.boxes[0])
    except TooLarge:
        return JobResult("error")
    if answer is None:
        return JobResult("no_answer")
    return JobResult(judge_box(golds, answer, statement), answer)


def judge_boxes(golds: Sequence[str], boxes: Sequence[str], statement: Statement) -> Verdict:
    """Return the verdict on all boxes: each is correct, or the boxes together list the values of a gold."""
    verdicts = [judge_box(golds, box, statement) for box in boxes]
    failed = [verdict for verdict in verdicts if verdict != "correct"]
    if not failed:
        return "correct"
    if len(boxes) > 1 and any(_has_several_values(gold, statement) for gold in golds):
        return judge_box(golds, ", ".join(boxes), statement)
    return "wrong" if "wrong" in failed else failed[-1]


def judge_box(golds: Sequence[str], box: str, statement: Statement) -> Verdict:
    """Return the verdict on a single box: equal to a gold, and worked out."""
    if is_spelled_as(box, golds):
        return "correct"
    verdict: Verdict = "wrong"
    for gold in golds:
        try:
            equal = _same(gold, box, statement)
        except (TooLarge, MemoryError, RecursionError):
            verdict = "error"
            continue
        if equal:
            return "wrong" if is_guess(golds, box, statement) else "correct"
    return verdict


@lru_cache(maxsize=1024)
def _meaning_of(gold: str) -> str | None:
    """Return a true answer that has a value; of prose, the answer that math-verify extracts; None without a value."""
    try:
        return gold if read(gold) else None
    except Unreadable:
        if _PROSE.search(gold):
            return extract_from_prose(gold)
        return gold if len(gold) <= MAX_UNREAD_CHARS and is_parsed(gold) else None


def _has_several_values(gold: str, statement: Statement) -> bool:
    return any(
        isinstance(value, Listing | Brackets)
        or (isinstance(value, Operation) and bool(operation_names(value) & {"plus_minus", "minus_plus"}))
        or (isinstance(value, Relation) and isinstance(value.sides[-1], Listing | Brackets))
        for value in readings(gold, statement.symbols)
    )


def _same(gold: str, box: str, statement: Statement) -> bool:
    """Return True if a box has the value of a gold: by type, in units without markup, or by math-verify."""
    compare = Comparison(statement)
    golds = readings(gold, statement.symbols)
    try:
        answers = read(box, statement.symbols)
    except Unsupported:
        matrix = any(isinstance(value, Matrix) for value in golds)
        worked_out = not statement.text or box.count("\\begin") == 1  # a matrix times a number, no sum of matrices
        return (not golds or (matrix and worked_out)) and same_by_algebra(gold, box)
    except Unreadable:
        answers = ()
    if not golds and answers:
        return same_by_algebra(gold, box)
    answers = tuple(map(only_member, answers))
    if any(isinstance(value, TimeOfDay) for value in golds) and "ratio" not in statement.words:
        times = tuple(value for value in answers if isinstance(value, TimeOfDay))
        answers = times or (() if statement.words & _CLOCK else answers)  # 2:30 is no ratio of 1 and 15
    results = [compare(expected, found) for expected in golds for found in answers]
    if any(results):
        return True
    if _same_in_bare_units(gold, box, statement, golds, answers):
        return True
    if None not in results or _calculus_left(answers, golds):
        return False
    return same_by_algebra(gold, box)


def _calculus_left(answers: Sequence[Value], golds: Sequence[Value]) -> bool:
    """Return True if each reading of an answer leaves an integral or a limit that no gold has."""
    expected = [gold for gold in golds if isinstance(gold, Expression)]
    found = [answer for answer in answers if isinstance(answer, Expression)]
    return bool(found) and all(leaves_calculus(answer, expected) for answer in found)


def _same_in_bare_units(
    gold: str, box: str, statement: Statement, golds: Sequence[Value], answers: Sequence[Value]
) -> bool:
    """Compare with letters after a number read as units, of dimensions that the problem or the other text names."""
    named = {unit.dimension for unit in statement.units}
    named |= {value.unit.dimension for value in (*golds, *answers) if isinstance(value, Quantity)}
    if not named:
        return False
    compare = Comparison(statement)
    expected = _in_bare_units(gold, statement, named) or golds
    found = _in_bare_units(box, statement, named) or answers
    return any(compare(one, other) for one in expected for other in found)


def _in_bare_units(text: str, statement: Statement, dimensions: Collection[Dimension]) -> list[Value]:
    """Return the quantities, in units of the dimensions, of a text with bare letters read as units."""
    values = readings(text, statement.symbols, bare_units=True)
    return [value for value in values if isinstance(value, Quantity) and value.unit.dimension in dimensions]
