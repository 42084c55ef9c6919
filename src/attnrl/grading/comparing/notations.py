"""Comparison of residue classes, ratios, numerals in a base and times of the day."""

from __future__ import annotations

from attnrl.grading.arithmetic.evaluation import same_value
from attnrl.grading.arithmetic.exact import exact_value
from attnrl.grading.comparing.comparison import Compare
from attnrl.grading.comparing.relations import compare_stated
from attnrl.grading.comparing.same_number import same_number
from attnrl.grading.reading.expressions import Expression, Number, Operation, is_operation
from attnrl.grading.reading.values import BaseNumber, Ratio, Relation, Residue, TimeOfDay, Value


def is_remainder(number: Expression, residue: Residue) -> bool:
    """Return True if a number is the remainder, in [0, modulus), of a residue class."""
    value, remainder, modulus = map(exact_value, (number, residue.value, residue.modulus))
    if value is None or remainder is None or not modulus:
        return False
    return value == remainder and 0 <= value < abs(modulus)


def compare_residue(gold: Residue, answer: Value, compare: Compare) -> bool | None:
    """Compare an answer with a residue class: the modulus is equal, or the answer is the remainder."""
    if isinstance(answer, Relation):
        answer = answer.sides[-1]
    if is_operation(answer, "mod"):
        answer = Residue(*answer.operands)
    if isinstance(answer, Number | Operation):
        return is_remainder(answer, gold)
    if not isinstance(answer, Residue) or same_value(gold.modulus, answer.modulus) is not True:
        return False
    one, other, modulus = map(exact_value, (gold.value, answer.value, gold.modulus))
    if one is None or other is None or not modulus:
        return same_value(gold.value, answer.value)
    return (one - other) % modulus == 0


def compare_ratio(gold: Ratio, answer: Value, compare: Compare) -> bool | None:
    """Compare an answer with a ratio; a fraction may stand for a ratio of two parts."""
    if isinstance(answer, Relation):
        return compare_stated(gold, answer, compare)
    if isinstance(answer, Ratio):
        if len(gold.parts) != len(answer.parts):
            return False
        if any(exact_value(part) == 0 for part in (*gold.parts, *answer.parts)):
            return False
        first, other = gold.parts[0], answer.parts[0]
        return all(
            same_value(Operation("multiply", (first, found)), Operation("multiply", (expected, other))) is True
            for expected, found in zip(gold.parts, answer.parts, strict=True)
        )
    if len(gold.parts) == 2 and isinstance(answer, Number | Operation):
        return same_number(Operation("divide", gold.parts), answer)
    return False


def compare_base_number(gold: BaseNumber, answer: Value, compare: Compare) -> bool | None:
    """Compare an answer with a numeral: base and digits are equal."""
    if isinstance(answer, Relation):
        return compare_stated(gold, answer, compare)
    if isinstance(answer, BaseNumber):
        return gold.base == answer.base and gold.digits.lstrip("0") == answer.digits.lstrip("0")
    return isinstance(answer, Number) and gold.base == 10 and str(answer.value) == gold.digits.lstrip("0")


def same_digits(numeral: BaseNumber, number: Value, compare: Compare) -> bool:
    """Compare a numeral with digits without a base: the problem must name the base; base 10 needs no name."""
    if not isinstance(number, Number) or numeral.base not in (compare.statement.bases - {10} or {10}):
        return False
    return str(number.value) == numeral.digits.lstrip("0")


def compare_time(gold: TimeOfDay, answer: Value, compare: Compare) -> bool | None:
    """Compare an answer with a time of the day; without a.m. or p.m., the time counts 24 hours."""
    if isinstance(answer, Relation):
        answer = answer.sides[-1]
    if not isinstance(answer, TimeOfDay):
        return False
    return _minutes(gold) == _minutes(answer)


def _minutes(time: TimeOfDay) -> int:
    return time.minutes + (12 * 60 if time.half == "pm" else 0)
