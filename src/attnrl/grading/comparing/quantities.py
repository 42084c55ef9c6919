"""Comparison of amounts with a unit, or with the name of the things counted."""

from __future__ import annotations

from fractions import Fraction

from attnrl.grading.comparing.same_number import same_number
from attnrl.grading.reading.expressions import Expression, Number, Operation, Symbol, is_operation, parts_of
from attnrl.grading.reading.statement import Statement
from attnrl.grading.reading.units import Unit, read_unit
from attnrl.grading.reading.values import Counted, Quantity, Value

_IRREGULAR_PLURALS_LIST = """
    people men women children mice geese feet teeth sheep fish dice vertices indices matrices
"""
#: Nouns after an amount without a plural in "s".
_IRREGULAR_PLURALS = frozenset(_IRREGULAR_PLURALS_LIST.split())
_PARTS_LIST = """
    tens hundreds pairs couples gross scores squares cubes roots radicals factorials fold
"""
#: Nouns for whatever a problem counts, without the plural.
_GENERAL_NOUNS = frozenset({"way", "different", "possibiliti", "solution", "valu", "number", "integer", "arrangement"})
#: Nouns that make another number, unless the problem counts them.
_PARTS = frozenset(_PARTS_LIST.split())


def _known_unit(name: str) -> Unit:
    unit = read_unit(name)
    assert unit is not None, name
    return unit


DEGREE = _known_unit("degrees")
RADIAN = _known_unit("radians")


def same_quantity(gold: Value, answer: Value, statement: Statement) -> bool | None:
    """Compare two amounts, at least one with a unit or a noun.

    - Two units of one dimension: the amounts are converted; of two dimensions: not equal. Degrees and radians are
      converted, too.
    - A unit of the true answer alone may be left out in an answer.
    - A unit of the answer alone is converted to the unit of the dimension named in the problem; without a unit in the
      problem, the amount alone counts.
    - A noun after an amount must be a word of the problem or of the true answer; without a problem text, a plural.
    """
    one, other = _amount(gold), _amount(answer)
    if one is None or other is None:
        return False
    if isinstance(gold, Counted) or isinstance(answer, Counted):
        return _nouns_agree(gold, answer, statement) and same_number(one, other)
    unit, found = _unit_of(gold), _unit_of(answer)
    if (unit or found) and any(is_operation(part, "percent") for part in (one, other)):
        return False
    if unit is None:
        return same_number(one, other) if found is None else _with_extra_unit(one, other, found, statement)
    if found is None:
        return _without_unit(one, unit, other)
    return _same_in_units(one, unit, other, found)


def _amount(value: Value) -> Expression | None:
    amount = value.amount if isinstance(value, Quantity | Counted) else value
    return amount if isinstance(amount, Expression) else None


def _unit_of(value: Value) -> Unit | None:
    """Return the unit of a value; ``5 units`` has no unit."""
    if not isinstance(value, Quantity) or any(name == "unit" for name, _ in value.unit.dimension):
        return None
    return value.unit


def _same_in_units(one: Expression, unit: Unit, other: Expression, found: Unit) -> bool | None:
    if {unit, found} == {DEGREE, RADIAN}:
        degrees, radians = (one, other) if unit == DEGREE else (other, one)
        return same_number(Operation("degrees", (degrees,)), radians)
    if unit.dimension != found.dimension:
        return False
    return same_number(one, _times(other, found.factor / unit.factor))


def _times(amount: Expression, factor: Fraction) -> Expression:
    return amount if factor == 1 else Operation("multiply", (amount, Number(factor)))


def _without_unit(one: Expression, unit: Unit, other: Expression) -> bool | None:
    equal = same_number(one, other)
    if equal is False and unit == DEGREE and Symbol("pi") in parts_of(other):
        return same_number(Operation("degrees", (one,)), other)
    return equal


def _with_extra_unit(gold: Expression, other: Expression, found: Unit, statement: Statement) -> bool | None:
    if found == DEGREE and Symbol("pi") in parts_of(gold):
        return same_number(gold, Operation("degrees", (other,)))
    asked = statement.asked_units
    if found != DEGREE and asked and all(unit.dimension != found.dimension for unit in asked):
        return False
    if found == RADIAN and RADIAN not in statement.units and Symbol("pi") not in parts_of(gold):
        return False
    named = {name for unit in statement.units if unit != DEGREE for name, _ in unit.dimension}
    if found != DEGREE and named and not named & {name for name, _ in found.dimension}:
        return False
    if statement.counts_things and found.dimension not in {unit.dimension for unit in statement.units}:
        return False
    factors = {unit.factor for unit in asked or statement.units if unit.dimension == found.dimension}
    if not factors and len(found.dimension) == 1:
        ((base, exponent),) = found.dimension
        factors = {unit.factor**exponent for unit in statement.units if unit.dimension == ((base, 1),)}
    if not factors or found.factor in factors:
        return same_number(gold, other)
    return any(same_number(gold, _times(other, found.factor / factor)) for factor in factors)


def _nouns_agree(gold: Value, answer: Value, statement: Statement) -> bool:
    """Return True if the noun of the answer names the things counted."""
    if not isinstance(answer, Counted):
        return not isinstance(answer, Quantity) or _unit_of(answer) is None
    nouns = {_stem(noun) for noun in answer.noun.split()}
    if isinstance(gold, Counted):
        return bool(nouns & {_stem(noun) for noun in gold.noun.split()})
    if isinstance(gold, Quantity) and _unit_of(gold) is not None:
        return False
    if nouns <= _GENERAL_NOUNS:
        return True
    if statement.words:
        return bool(nouns & {_stem(word) for word in statement.words})
    last = answer.noun.split()[-1]
    if last in _PARTS or last.endswith(("ths", "ieth", "ieths")):
        return False
    return last in _IRREGULAR_PLURALS or (last.endswith("s") and len(last) > 2)


def _stem(noun: str) -> str:
    return noun.rstrip(".").removesuffix("s").removesuffix("e")
