"""The verdict on the boxes of a response, without a deadline. Runs in the worker processes.

read both answers -> compare by type -> guards. math-verify decides what the reader does not read and the comparison
leaves undecided.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache

from attnrl.grading.arithmetic.limits import TooLarge
from attnrl.grading.comparing.algebra import extract_from_prose, is_parsed, same_by_algebra
from attnrl.grading.comparing.compare import Comparison
from attnrl.grading.comparing.relations import only_member, stated_value
from attnrl.grading.guards.copies import is_copy, leaves_work, quotes_statement
from attnrl.grading.guards.forms import misses_form
from attnrl.grading.jobs import Job, JobResult
from attnrl.grading.reading.cursor import Unsupported
from attnrl.grading.reading.expressions import Expression, Number, Operation, Symbol, operation_names
from attnrl.grading.reading.reader import read
from attnrl.grading.reading.spelling import spelling
from attnrl.grading.reading.statement import Statement, read_statement
from attnrl.grading.reading.tokens import Unreadable
from attnrl.grading.reading.values import (
    Brackets,
    Counted,
    Labelled,
    Listing,
    Quantity,
    Ratio,
    Relation,
    Residue,
    Value,
)
from attnrl.types import Verdict


def judge(job: Job) -> JobResult:
    """Return the verdict on a job; for prose, also the answer extracted by math-verify."""
    golds = [meaning for gold in job.golds if (meaning := _meaning_of(gold)) is not None]
    if not golds:
        same = bool(job.boxes) and all(_is_spelled_as(box, job.golds) for box in job.boxes)
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


MAX_UNREAD_CHARS = 500  # of a true answer beyond the reader: math-verify parses longer texts slowly
_PROSE = re.compile(r"(?i)answer|\$.*[a-z]{3,}.*\$", re.DOTALL)


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
    if _is_spelled_as(box, golds):
        return "correct"
    verdict: Verdict = "wrong"
    for gold in golds:
        try:
            equal = _same(gold, box, statement)
        except (TooLarge, MemoryError, RecursionError):
            verdict = "error"
            continue
        if equal:
            return "wrong" if _is_guess(golds, box, statement) else "correct"
    return verdict


def _is_spelled_as(box: str, golds: Iterable[str]) -> bool:
    key = spelling(box)
    return key is not None and any(spelling(gold) == key for gold in golds)


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
        for value in _readings(gold, statement)
    )


def _readings(text: str, statement: Statement, *, bare_units: bool = False) -> tuple[Value, ...]:
    try:
        return read(text, statement.symbols, bare_units=bare_units)
    except Unreadable:
        return ()


def _same(gold: str, box: str, statement: Statement) -> bool:
    """Return True if a box has the value of a gold: by type, in units without markup, or by math-verify."""
    compare = Comparison(statement)
    try:
        golds = read(gold, statement.symbols)
        answers = read(box, statement.symbols)
    except Unsupported:
        return _algebra_decides(gold, statement) and same_by_algebra(gold, box)
    except Unreadable:
        return False
    answers = tuple(map(only_member, answers))
    results = [compare(expected, found) for expected in golds for found in answers]
    if any(results):
        return True
    if _same_in_bare_units(gold, box, statement, golds, answers):
        return True
    if None not in results or _calculus_left(answers, golds):
        return False
    return same_by_algebra(gold, box)


def _algebra_decides(gold: str, statement: Statement) -> bool:
    """Return True unless the gold is a plain number: an answer beyond the reader leaves the work to the grader."""
    return not any(_is_plain_number(value) for value in _readings(gold, statement))


def _is_plain_number(value: Value) -> bool:
    if isinstance(value, Operation) and value.name in ("negate", "divide", "percent"):
        return all(_is_plain_number(operand) for operand in value.operands)
    return isinstance(value, Number)


def _same_in_bare_units(
    gold: str, box: str, statement: Statement, golds: Sequence[Value], answers: Sequence[Value]
) -> bool:
    """Compare with letters after a number read as units, of dimensions that the problem or the other text names."""
    named = {unit.dimension for unit in statement.units}
    named |= {value.unit.dimension for value in (*golds, *answers) if isinstance(value, Quantity)}
    if not named:
        return False
    compare = Comparison(statement)
    pairs = [(_bare(gold, statement, named) or golds, _bare(box, statement, named) or answers)]
    return any(compare(expected, found) for left, right in pairs for expected in left for found in right)


def _bare(text: str, statement: Statement, named: set[tuple[tuple[str, int], ...]]) -> list[Value]:
    values = _readings(text, statement, bare_units=True)
    return [value for value in values if isinstance(value, Quantity) and value.unit.dimension in named]


# ---------------------------------------------------------------------------------------------------------------------
# Guards
# ---------------------------------------------------------------------------------------------------------------------


def _is_guess(golds: Sequence[str], box: str, statement: Statement) -> bool:
    """Return True if a box of the right value copies the problem or leaves work to the grader."""
    if statement.text and quotes_statement(box, statement.text):
        return True
    accepted = [
        part for gold in golds for value in _readings(gold, statement) for part in _expressions(value, statement)
    ]
    for value in _readings(box, statement):
        if isinstance(value, Quantity) and _is_given(value, statement):
            return True
        for part in _expressions(value, statement):
            if is_copy(part, accepted, statement.expressions):
                return True
            if misses_form(part, accepted, statement.text, box):
                return True
            if (statement.text and leaves_work(part, accepted)) or _leaves_calculus(part, accepted):
                return True
    return False


def _is_given(quantity: Quantity, statement: Statement) -> bool:
    """Return True if a quantity stands in the problem, and the problem asks for another unit."""
    given = isinstance(quantity.amount, Number) and (quantity.amount.value, quantity.unit) in statement.quantities
    return given and bool(statement.asked_units) and quantity.unit not in statement.asked_units


def _leaves_calculus(answer: Expression, golds: Sequence[Expression]) -> bool:
    """Return True if an answer leaves an integral or a limit that no gold has."""
    left = operation_names(answer) & {"integral", "limit"}
    return bool(left) and not any(left & operation_names(gold) for gold in golds)


def _calculus_left(answers: Sequence[Value], golds: Sequence[Value]) -> bool:
    """Return True if each reading of an answer leaves an integral or a limit that no gold has."""
    expected = [gold for gold in golds if isinstance(gold, Number | Symbol | Operation)]
    found = [answer for answer in answers if isinstance(answer, Number | Symbol | Operation)]
    return bool(found) and all(_leaves_calculus(answer, expected) for answer in found)


def _expressions(value: Value, statement: Statement) -> list[Expression]:
    """Return the expressions that an answer states."""
    if isinstance(value, Relation):
        stated = stated_value(value, statement)
        return [] if stated is None else _expressions(stated, statement)
    if isinstance(value, Labelled):
        return _expressions(value.value, statement)
    if isinstance(value, Quantity | Counted):
        return _expressions(value.amount, statement)
    if isinstance(value, Ratio) and len(value.parts) == 2:
        return [Operation("divide", value.parts)]
    if isinstance(value, Residue):
        return [Operation("mod", (value.value, value.modulus))]
    return [value] if isinstance(value, Number | Symbol | Operation) else []
