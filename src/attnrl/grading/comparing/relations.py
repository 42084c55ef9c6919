"""Comparison of equations, inequalities and sets of real numbers."""

from __future__ import annotations

import re

from attnrl.grading.arithmetic.evaluation import real_float
from attnrl.grading.comparing.comparison import Compare, match
from attnrl.grading.comparing.equations import same_equation
from attnrl.grading.comparing.regions import MIRRORED, region_of, same_region
from attnrl.grading.comparing.same_number import same_number
from attnrl.grading.reading.expressions import (
    CONSTANTS,
    Expression,
    Number,
    Operation,
    Symbol,
    free_symbols,
    is_operation,
    parts_of,
)
from attnrl.grading.reading.statement import Statement
from attnrl.grading.reading.values import Brackets, NamedSet, Ratio, Relation, SetOperation, Value, Words

_FUNCTION_NAMES = {"sin": "sine", "cos": "cosine", "tan": "tangent", "cot": "cotangent"}
_EQUATION_ASKED = re.compile(r"(?i)\bequations? (?:of|for)\b")
_IN_WORDS = re.compile(r"[A-Za-z]{2,}(?: [A-Za-z]+)*")
_FUNCTION = re.compile(r"[a-zA-Z](\([a-z]\))?")


def compare_relation(gold: Relation, answer: Value, compare: Compare) -> bool | None:
    """Compare an answer with an equation or an inequality."""
    if gold.operators == ("in",) and isinstance(gold.sides[1], Brackets) and gold.sides[1].left == "{":
        return compare(gold.sides[1], answer)
    if not set(gold.operators) <= {"=", "~"}:
        return compare_region(gold, answer, compare)
    expected = stated_value(gold, compare.statement, trusted=True)
    if isinstance(answer, Relation):
        found = stated_value(answer, compare.statement)
        names = _name_of(gold), _name_of(answer)
        same_name = names[0] == names[1] or "" in names or _may_be_same(*names)
        if expected is not None and found is not None and same_name:
            equal = compare(expected, found)
            if equal is not False:
                return equal
        solved = expected is not None and not free_symbols_of(expected)
        asked = _EQUATION_ASKED.search(compare.statement.text)
        return False if solved and not asked else same_equation(gold, answer)
    if expected is None:
        return False
    return compare(expected, answer)


def compare_region(gold: Value, answer: Value, compare: Compare) -> bool | None:
    """Compare an answer with a set of real numbers: an inequality, an interval, a union."""
    expected, found = region_of(gold), region_of(answer)
    if isinstance(answer, Relation) and found is None:
        stated = stated_value(answer, compare.statement)
        found = None if stated is None else region_of(stated)
    if expected is not None and found is not None:
        return same_region(expected, found)
    if isinstance(gold, SetOperation) and isinstance(answer, SetOperation) and gold.name == answer.name:
        return match(gold.operands, answer.operands, compare, ordered=gold.name == "difference")
    if isinstance(gold, Relation) and isinstance(answer, Relation) and _same_chain(gold, answer, compare):
        return True
    inequality = isinstance(answer, Relation) and not {"=", "in"} & set(answer.operators)
    if (expected is not None and inequality) or (found is not None and isinstance(gold, Relation)):
        return None  # one of two inequalities is not solved for the variable
    return False


def _same_chain(gold: Relation, answer: Relation, compare: Compare) -> bool:
    """Return True if two chains of inequalities agree side by side, in either direction."""
    turned = tuple(MIRRORED.get(operator, "") for operator in reversed(answer.operators))
    for sides, operators in ((answer.sides, answer.operators), (answer.sides[::-1], turned)):
        if operators == gold.operators and match(gold.sides, sides, compare, ordered=True):
            return True
    return False


def _name_of(relation: Relation) -> str:
    first = relation.sides[0]
    return _plain_name(first) if isinstance(first, Symbol) or is_operation(first, "apply") else ""


def _may_be_same(one: str, other: str) -> bool:
    """Return True if a name in words is among two names, or the two may name a function: ``y`` and ``f(x)``."""
    if _IN_WORDS.fullmatch(one) or _IN_WORDS.fullmatch(other):
        return True
    functions = _FUNCTION.fullmatch(one), _FUNCTION.fullmatch(other)
    return all(functions) and any(found[1] for found in functions if found)


def compare_stated(gold: Value, answer: Relation, compare: Compare) -> bool | None:
    """Compare the value that a relation states with a true answer; False for a relation without a value."""
    stated = stated_value(answer, compare.statement)
    return False if stated is None else compare(gold, stated)


def stated_value(relation: Relation, statement: Statement, *, trusted: bool = False) -> Value | None:
    """Return the value that a relation states for a quantity, or None.

    Relations with a value: ``name = value``, a true chain ``2 + 3 = 5``, ``name = working = value``, ``x \\in`` a set.
    A formula of the problem (a quantity asked for) counts as a name; in a ``trusted`` relation (a true answer), the
    quotient of two segments, too.
    """
    if set(relation.operators) == {"in"} and len(relation.sides) == 2:
        is_set = isinstance(relation.sides[1], Brackets | SetOperation | NamedSet)
        return only_member(relation.sides[1]) if is_set and _is_name(relation.sides[0], statement) else None
    if not set(relation.operators) <= {"=", "~"}:
        return None
    sides = _before_approximation(relation)
    named = _is_name(sides[0], statement)
    if not named and len(sides) < len(relation.sides) and not _is_near(sides[-1], relation.sides[len(sides)]):
        return None
    if not trusted and _names_another(relation.sides[0], statement):
        return None
    names = [_is_name(side, statement) or (trusted and _is_quotient(side)) for side in sides]
    values = [side for side, name in zip(sides, names, strict=True) if not name]
    if not values:
        return sides[-1] if isinstance(sides[0], Symbol) else None
    last = values[-1]
    if names[-1] and not names[0] and free_symbols_of(values[0]):
        return None  # an equation with a letter on the right side
    if names[0] and len(values) > 1 and _is_working(values[0]):
        return last
    for value in values[:-1]:
        if not isinstance(value, Expression) or not isinstance(last, Expression):
            return None
        if same_number(value, last) is not True:
            return None
    if isinstance(sides[0], Symbol) and sides[0].name in free_symbols_of(last):
        return None  # x = x^2 - 1
    return last


def only_member(value: Value) -> Value:
    r"""Return the only member of a set such as ``\{5\}``: the set of solutions may stand for the solution."""
    if isinstance(value, Brackets) and value.left == "{" and len(value.items) == 1:
        member = value.items[0]
        return member if isinstance(member, Expression | Relation) else value
    return value


def _names_another(side: Value, statement: Statement) -> bool:
    """Return True for the name of another quantity than the one asked for: ``AC`` if the problem asks for ``AB``."""
    kind = _kind_of_name(side)
    asked = [quantity for quantity in statement.asked if _kind_of_name(quantity) == kind]
    part = any(is_operation(quantity, "add", "divide") and _is_of_symbols(quantity) for quantity in statement.asked)
    if kind == "letter":
        own = _plain_name(side)[-1] not in statement.symbols  # a letter of the answer's own
        return not own and (part or bool(asked)) and side not in statement.asked
    if part and kind == "segment":
        return True
    return bool(kind and asked) and _plain_name(side) not in map(_plain_name, asked)


def _is_of_symbols(quantity: Value) -> bool:
    """Return True for an expression without a number: ``m + n``, of which ``m`` is a part."""
    return isinstance(quantity, Expression) and not any(isinstance(part, Number) for part in parts_of(quantity))


def _kind_of_name(value: Value) -> str:
    if _is_segment(value):
        return "segment"
    if is_operation(value, "apply"):
        return "call"
    if isinstance(value, Symbol):
        if value.name in CONSTANTS:
            return ""
        if len(value.name) == 1 or value.name.startswith(("bar ", "hat ", "tilde ")):
            return "letter"
        if "_" in value.name or " " in value.name:  # x_1, angle ABC
            return re.split("[_ ]", value.name)[0]
        if "(" in value.name:
            return "call"
        return "segment" if value.name.isupper() else ""
    if isinstance(value, Words) and value.text.isupper():
        return "segment"
    return ""


def _plain_name(value: Value) -> str:
    """Return the letters of a name: ``AB``, ``f(3)``."""
    if isinstance(value, Symbol | Words):
        return (value.name if isinstance(value, Symbol) else value.text).replace(" ", "").strip("|")
    if not isinstance(value, Operation):
        return ""
    names = [_plain_name(part) if not isinstance(part, Number) else str(part.value) for part in value.operands]
    return f"{names[0]}({','.join(names[1:])})" if value.name == "apply" else "".join(names)


def _is_near(value: Value, approximation: Value) -> bool:
    """Return True if an approximation after a value is within 5 % of the value; after a name, nothing is checked."""
    if not isinstance(value, Expression) or not isinstance(approximation, Expression):
        return True
    exact, rough = real_float(value), real_float(approximation)
    return exact is None or rough is None or abs(exact - rough) <= 0.05 * max(abs(exact), abs(rough))


def _is_working(value: Value) -> bool:
    """Return True for an operation on numbers: working between a name and a value is not checked."""
    if not isinstance(value, Operation) or value.name == "negate" or free_symbols(value):
        return False
    return value.name != "divide" or not all(isinstance(part, Number) for part in value.operands)


def _before_approximation(relation: Relation) -> tuple[Value, ...]:
    """Return the sides before the first sign of approximation, but for a name before the sign."""
    for place, operator in enumerate(relation.operators):
        if operator == "~" and (place > 0 or isinstance(relation.sides[0], Number | Operation)):
            return relation.sides[: place + 1]
    return relation.sides


def _is_name(side: Value, statement: Statement) -> bool:
    if isinstance(side, Symbol) and side.name.endswith("'"):
        return side in statement.asked
    if isinstance(side, Symbol):
        return side.name not in CONSTANTS
    if isinstance(side, Operation) and (side.name == "apply" or _is_segment(side)):
        return True
    if isinstance(side, Ratio):
        return all(_is_name(part, statement) for part in side.parts)
    if isinstance(side, Brackets) and all(isinstance(item, Symbol) for item in side.items):
        return True
    if not isinstance(side, Operation) or not free_symbols(side):
        return False
    asked_in_words = _FUNCTION_NAMES.get(side.name, "") in statement.words and isinstance(side.operands[0], Symbol)
    return asked_in_words or any(_is_same_quantity(side, asked) for asked in statement.asked)


def _is_same_quantity(side: Operation, asked: Value) -> bool:
    """Return True if an expression is a quantity asked for, in any order of terms: ``n + m`` for ``m + n``."""
    if not isinstance(asked, Operation) or free_symbols(side) != free_symbols(asked):
        return False
    return side == asked or (side.name == asked.name and same_number(asked, side) is True)


def _is_segment(side: Value) -> bool:
    """Return True for a product of capital letters, the name of a segment: ``AB``."""
    if not is_operation(side, "multiply"):
        return False
    return all(isinstance(part, Symbol) and part.name.isupper() for part in side.operands)


def _is_quotient(side: Value) -> bool:
    """Return True for the quotient of two segments: in a true answer, the name of a ratio."""
    return is_operation(side, "divide") and all(map(_is_segment, side.operands))


def free_symbols_of(value: Value) -> frozenset[str]:
    """Return the variables of an expression; of another value, none."""
    return free_symbols(value) if isinstance(value, Expression) else frozenset()
