"""Both signs of ``\\pm`` as a listing, and the spellings of a value that compare as another type."""

from __future__ import annotations

from fractions import Fraction

from attnrl.grading.comparing.quantities import DEGREE
from attnrl.grading.reading.expressions import Expression, Number, Operation, operation_names
from attnrl.grading.reading.values import Listing, Quantity, Relation, Value, Words

_WORDS = "zero one two three four five six seven eight nine ten eleven twelve"
_NUMBER_WORDS = {word: Number(Fraction(number)) for number, word in enumerate(_WORDS.split())}


def expanded(value: Value) -> Value:
    """Return a value with ``\\pm`` as a listing, degrees as a quantity, and a number in words as a number."""
    if isinstance(value, Operation):
        if value.name == "degrees":
            return Quantity(value.operands[0], DEGREE)
        if value.name == "negate" and isinstance(value.operands[0], Operation) and value.operands[0].name == "degrees":
            return Quantity(Operation("negate", value.operands[0].operands), DEGREE)
        if operation_names(value) & {"plus_minus", "minus_plus"}:
            return _both_signs(value)
    if isinstance(value, Words):
        return _NUMBER_WORDS.get(value.text.lower(), value)
    if isinstance(value, Relation) and isinstance(value.sides[-1], Operation) and value.operators[-1] == "=":
        last = expanded(value.sides[-1])
        if isinstance(last, Listing):
            return Listing(tuple(Relation((*value.sides[:-1], item), value.operators) for item in last.items), "or")
    return value


def _both_signs(expression: Expression) -> Listing:
    return Listing((_with_sign(expression, 1), _with_sign(expression, -1)), "or")


def _with_sign(expression: Expression, sign: int) -> Expression:
    """Return an expression with the upper (1) or the lower (-1) sign of each ``\\pm`` and ``\\mp``."""
    if not isinstance(expression, Operation):
        return expression
    operands = tuple(_with_sign(operand, sign) for operand in expression.operands)
    if expression.name not in ("plus_minus", "minus_plus"):
        return Operation(expression.name, operands)
    positive = (sign == 1) == (expression.name == "plus_minus")
    last = operands[-1] if positive else Operation("negate", (operands[-1],))
    return Operation("add", (operands[0], last)) if len(operands) == 2 else last
