"""Both signs of ``\\pm`` as a listing, and the spellings of a value that compare as another type."""

from __future__ import annotations

from fractions import Fraction
from functools import partial

from attnrl.grading.comparing.quantities import DEGREE
from attnrl.grading.reading.expressions import Expression, Number, Operation, Symbol, is_operation, operation_names
from attnrl.grading.reading.rewriting import rewritten
from attnrl.grading.reading.values import Listing, NamedSet, Quantity, Relation, Value, Words, phrase
from attnrl.grading.reading.words import NUMBER_WORDS

_NO_SOLUTION = (
    *("no solution", "no real solution", "no solutions exist", "the empty set", "none", "there is no solution"),
    *("there are no solutions", "there is no real solution", "there are no real solutions", "no real roots"),
)
#: Words with a value of another type.
_PHRASES: dict[str, Value] = {word: Number(Fraction(number)) for word, number in NUMBER_WORDS.items()}
_PHRASES |= {
    f"{tens} {unit}": Number(Fraction(NUMBER_WORDS[tens] + NUMBER_WORDS[unit]))
    for tens in NUMBER_WORDS
    for unit in NUMBER_WORDS
    if NUMBER_WORDS[tens] >= 20 and 0 < NUMBER_WORDS[unit] < 10
}
_PHRASES |= {"hundred": Number(Fraction(100)), "one hundred": Number(Fraction(100)), "half": Number(Fraction(1, 2))}
_PHRASES |= dict.fromkeys(
    map(phrase, ("all real numbers", "real numbers", "all reals", "the reals")), NamedSet("reals")
)
_PHRASES |= dict.fromkeys(map(phrase, _NO_SOLUTION), NamedSet("empty"))
_PHRASES |= dict.fromkeys(
    map(phrase, ("DNE", "does not exist", "the limit does not exist", "it does not exist")), Words("does not exist")
)
_PHRASES |= {"infinity": Symbol("infinity")}


def expanded(value: Value) -> Value:
    """Return a value with ``\\pm`` as a listing, degrees as a quantity, and a number in words as a number."""
    if isinstance(value, Operation):
        if (amount := _without_degrees(value)) != value:
            return Quantity(amount, DEGREE)
        if operation_names(value) & {"plus_minus", "minus_plus"}:
            return _both_signs(value)
    if isinstance(value, Words):
        return _PHRASES.get(phrase(value.text), value)
    if isinstance(value, Listing):
        return _without_parameter(value)
    if isinstance(value, Relation) and isinstance(value.sides[-1], Operation) and value.operators[-1] == "=":
        last = expanded(value.sides[-1])
        if isinstance(last, Listing):
            return Listing(tuple(Relation((*value.sides[:-1], item), value.operators) for item in last.items), "or")
    return value


def _without_degrees(expression: Expression) -> Expression:
    """Return the amount of an angle in degrees, under a sign or with factors; a further expression unchanged."""
    if is_operation(expression, "degrees"):
        return expression.operands[0]
    if is_operation(expression, "negate", "multiply"):
        return Operation(expression.name, tuple(map(_without_degrees, expression.operands)))
    return expression


def _without_parameter(listing: Listing) -> Value:
    r"""Remove ``k \in \mathbb{Z}`` from a family of values, and give the parameter a name common to all families."""
    for place, item in enumerate(listing.items):
        if isinstance(item, Relation) and item.operators == ("in",) and item.sides[1] == NamedSet("integers"):
            parameter = item.sides[0]
            rest = [other for n, other in enumerate(listing.items) if n != place]
            if isinstance(parameter, Symbol) and rest:
                items = tuple(rewritten(other, partial(_renamed, parameter)) for other in rest)
                return items[0] if len(items) == 1 else Listing(items, listing.joint)
    return listing


def _renamed(parameter: Symbol, symbol: Symbol) -> Symbol:
    return Symbol("integer parameter") if symbol == parameter else symbol


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
