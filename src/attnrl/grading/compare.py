"""Comparison of an answer with a true answer, by type. The type of the true answer decides.

Each function of this module returns True (equal), False (not equal) or None (undecided: computer algebra may know).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from fractions import Fraction

from attnrl.grading.evaluation import rounds_to, same_value
from attnrl.grading.exact import exact_value
from attnrl.grading.expressions import Expression, Number, Operation, Symbol, free_symbols, operation_names, parts_of
from attnrl.grading.quantities import DEGREE, same_quantity
from attnrl.grading.regions import region_of, same_region
from attnrl.grading.statement import Statement
from attnrl.grading.values import (
    BaseNumber,
    Brackets,
    Counted,
    Labelled,
    Listing,
    Matrix,
    NamedSet,
    Quantity,
    Ratio,
    Relation,
    Residue,
    SetOperation,
    TimeOfDay,
    Value,
    Words,
)

MAX_ITEMS = 400  # of a listing
_NUMBER_WORDS = {
    word: Number(Fraction(number))
    for number, word in enumerate("zero one two three four five six seven eight nine ten eleven twelve".split())
}


def same_answer(gold: Value, answer: Value, statement: Statement) -> bool | None:
    """Compare an answer with a true answer.

    Args:
        gold: the true answer.
        answer: the answer of a response.
        statement: the facts of the problem's text.

    Returns:
        True, False, or None if the comparison needs computer algebra.

    Raises:
        TooLarge: a value is too large to be computed.
    """
    gold, answer = _expanded(gold), _expanded(answer)
    if gold == answer:
        return True
    if isinstance(answer, Labelled) and not isinstance(gold, Labelled):
        return _same_choice(gold, answer, statement)
    return _COMPARISONS[type(gold)](gold, answer, statement)


def _expanded(value: Value) -> Value:
    """Write both signs of ``\\pm`` as a listing, an angle in degrees as a quantity, and a number in words as a number."""
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
        last = _expanded(value.sides[-1])
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


# ---------------------------------------------------------------------------------------------------------------------
# Words and choices
# ---------------------------------------------------------------------------------------------------------------------


def phrase(text: str) -> str:
    """Return words in lower case, without articles, punctuation and hyphens."""
    words = re.sub(r"[^\w\s']|_", " ", text.casefold().replace("'", "")).split()
    return " ".join(word for word in words if word not in ("a", "an", "the")) or " ".join(words)


def _letters_of_choices(value: Value) -> str:
    """Return the letters of one or several choices (``B``, ``AC``, ``A, C``), ``""`` for another value."""
    if isinstance(value, Symbol) and re.fullmatch("[A-Za-z]", value.name):
        return value.name
    if isinstance(value, Words) and re.fullmatch("[A-J]{2,}", value.text):
        return value.text
    if isinstance(value, Listing | Brackets):
        letters = [_letters_of_choices(item) for item in value.items]
        return "".join(letters) if all(len(letter) == 1 for letter in letters) else ""
    return ""


def _same_choice(gold: Value, answer: Value, statement: Statement) -> bool | None:
    """Compare the letters of choices; of an answer with letter and value, either may be the true answer."""
    if isinstance(answer, Labelled):
        letter = _letters_of_choices(gold)
        if letter and _is_choice(letter, statement):
            return letter.upper() == answer.label
        return same_answer(gold, answer.value, statement)
    expected, found = _letters_of_choices(gold), _letters_of_choices(answer)
    if not expected or len(found) != len(expected):
        return False
    if expected == found:
        return True
    if not _is_choice(expected, statement):
        return False
    if statement.all_that_apply and sorted(expected.upper()) == sorted(found.upper()):
        return True
    return expected.upper() == found.upper()


def _is_choice(letters: str, statement: Statement) -> bool:
    """Return True if letters name choices of the problem; without choices in the problem, if each is in A to E."""
    if statement.options:
        return statement.options.issuperset(letters.upper())
    return set("ABCDE").issuperset(letters) and not statement.symbols & set(letters)


def _compare_words(gold: Words, answer: Value, statement: Statement) -> bool | None:
    if isinstance(answer, Words) and phrase(gold.text) == phrase(answer.text):
        return True
    return _same_choice(gold, answer, statement)


def _compare_labelled(gold: Labelled, answer: Value, statement: Statement) -> bool | None:
    if isinstance(answer, Labelled):
        return gold.label == answer.label and same_answer(gold.value, answer.value, statement)
    letter = _letters_of_choices(answer)
    return letter.upper() == gold.label if letter else same_answer(gold.value, answer, statement)


# ---------------------------------------------------------------------------------------------------------------------
# Expressions
# ---------------------------------------------------------------------------------------------------------------------


def same_number(gold: Expression, answer: Expression) -> bool | None:
    """Compare the values of two expressions: exactly, as a percentage, or as a decimal rounded to six digits or more.

    The base of a logarithm without a base is 10 or e, equal in both expressions.
    """
    percent = [part.name == "percent" if isinstance(part, Operation) else False for part in (gold, answer)]
    if percent == [True, False]:
        return _any([same_value(gold, answer), same_value(gold.operands[0], answer)])  # type: ignore[union-attr]
    if percent == [False, True]:
        return _any([same_value(gold, answer), same_value(gold, answer.operands[0])])  # type: ignore[union-attr]
    equal = same_value(gold, answer)
    if equal is False and (rounds_to(gold, answer) or rounds_to(answer, gold)):
        return True
    if equal is not True and any(_has_plain_logarithm(part) for part in (gold, answer)):
        return same_value(_natural(gold), _natural(answer))
    return equal


def _any(results: Sequence[bool | None]) -> bool | None:
    return True if True in results else None if None in results else False


def _has_plain_logarithm(expression: Expression) -> bool:
    return any(isinstance(part, Operation) and part.name == "log" and len(part.operands) == 1 for part in parts_of(expression))


def _natural(expression: Expression) -> Expression:
    if not isinstance(expression, Operation):
        return expression
    name = "ln" if expression.name == "log" and len(expression.operands) == 1 else expression.name
    return Operation(name, tuple(map(_natural, expression.operands)))


def _compare_expression(gold: Expression, answer: Value, statement: Statement) -> bool | None:
    if isinstance(answer, Number | Symbol | Operation):
        if isinstance(gold, Symbol) and isinstance(answer, Symbol) and _same_choice(gold, answer, statement):
            return True
        return same_number(gold, answer)
    if isinstance(answer, Quantity | Counted):
        return same_quantity(gold, answer, statement, same_number)
    if isinstance(answer, Relation):
        stated = stated_value(answer, statement)
        return False if stated is None else same_answer(gold, stated, statement)
    if isinstance(answer, Brackets) and answer.left == "{" and len(answer.items) == 1:
        return same_answer(gold, answer.items[0], statement)
    if isinstance(answer, Ratio) and len(answer.parts) == 2:
        return same_number(gold, Operation("divide", answer.parts))
    if isinstance(answer, Residue):
        return _is_remainder(gold, answer)
    if isinstance(answer, BaseNumber):
        return _same_digits(answer, gold, statement)
    return False


# ---------------------------------------------------------------------------------------------------------------------
# Relations
# ---------------------------------------------------------------------------------------------------------------------


def stated_value(relation: Relation, statement: Statement) -> Value | None:
    """Return the value of ``name = value``, of a true chain ``2 + 3 = 5``, or of ``x \\in`` a set; None for another relation.

    A formula of the problem (a quantity asked for) counts as a name.
    """
    if set(relation.operators) == {"in"} and len(relation.sides) == 2:
        return relation.sides[1]
    if not set(relation.operators) <= {"=", "~"}:
        return None
    values = [side for side in relation.sides if not _is_name(side, statement)]
    if not values:
        return relation.sides[-1] if isinstance(relation.sides[0], Symbol) else None
    last = values[-1]
    if len(values) < len(relation.sides) or not any(isinstance(side, Brackets) for side in values):
        for value in values[:-1]:
            if not isinstance(value, Number | Symbol | Operation) or not isinstance(last, Number | Symbol | Operation):
                return None
            if same_number(value, last) is not True:
                return None
    return last


def _is_name(side: Value, statement: Statement) -> bool:
    if isinstance(side, Symbol):
        return side.name not in ("pi", "e", "i", "infinity")
    if isinstance(side, Operation) and side.name == "apply":
        return True
    if isinstance(side, Brackets) and all(isinstance(item, Symbol) for item in side.items):
        return True
    return side in statement.asked and bool(isinstance(side, Operation) and free_symbols(side))


def _name_of(relation: Relation) -> str:
    first = relation.sides[0]
    return first.name if isinstance(first, Symbol) else ""


def _compare_relation(gold: Relation, answer: Value, statement: Statement) -> bool | None:
    if not set(gold.operators) <= {"=", "~"}:
        return _compare_region(gold, answer, statement)
    expected = stated_value(gold, statement)
    if isinstance(answer, Relation):
        found = stated_value(answer, statement)
        names = _name_of(gold), _name_of(answer)
        same_name = names[0] == names[1] or not all(len(name) == 1 for name in names)
        if expected is not None and found is not None and same_name:
            equal = same_answer(expected, found, statement)
            if equal is not False:
                return equal
        return _same_equation(gold, answer)
    if expected is None:
        return False
    return same_answer(expected, answer, statement)


def _same_equation(gold: Relation, answer: Relation) -> bool | None:
    """Compare two equations: equal if the differences of the sides are in a constant ratio other than zero."""
    differences = [_difference(relation) for relation in (gold, answer)]
    if None in differences or not all(free_symbols(difference) for difference in differences if difference):
        return False
    one, other = differences
    assert one is not None and other is not None
    if free_symbols(one) != free_symbols(other):
        return False
    zero = Number(Fraction(0))
    if same_value(one, zero) is not False or same_value(other, zero) is not False:
        return False
    ratio, elsewhere = Operation("divide", (one, other)), Operation("divide", (_renamed(one), _renamed(other)))
    return same_value(ratio, elsewhere)


def _difference(relation: Relation) -> Expression | None:
    if relation.operators != ("=",):
        return None
    left, right = relation.sides
    if not isinstance(left, Number | Symbol | Operation) or not isinstance(right, Number | Symbol | Operation):
        return None
    return Operation("add", (left, Operation("negate", (right,))))


def _renamed(expression: Expression) -> Expression:
    """Rename all variables, for the value of the same expression at another point."""
    if isinstance(expression, Symbol) and free_symbols(expression):
        return Symbol(expression.name + "*")
    if isinstance(expression, Operation):
        return Operation(expression.name, tuple(map(_renamed, expression.operands)))
    return expression


def _compare_region(gold: Value, answer: Value, statement: Statement) -> bool | None:
    expected, found = region_of(gold), region_of(answer)
    if isinstance(answer, Relation) and found is None:
        stated = stated_value(answer, statement)
        found = None if stated is None else region_of(stated)
    if expected is not None and found is not None:
        return same_region(expected, found)
    if isinstance(gold, SetOperation) and isinstance(answer, SetOperation) and gold.name == answer.name:
        return _match(gold.operands, answer.operands, statement, ordered=gold.name == "difference")
    if isinstance(gold, Relation) and isinstance(answer, Relation):
        return _same_chain(gold, answer, statement)
    return False


def _same_chain(gold: Relation, answer: Relation, statement: Statement) -> bool | None:
    """Compare two chains of inequalities side by side, in either direction."""
    mirrored = {"<": ">", ">": "<", "<=": ">=", ">=": "<=", "in": ""}
    turned = tuple(mirrored.get(operator, operator) for operator in reversed(answer.operators))
    for sides, operators in ((answer.sides, answer.operators), (answer.sides[::-1], turned)):
        if operators == gold.operators and _match(gold.sides, sides, statement, ordered=True):
            return True
    return False


# ---------------------------------------------------------------------------------------------------------------------
# Listings, sets, tuples and matrices
# ---------------------------------------------------------------------------------------------------------------------


def _match(gold: Sequence[Value], answer: Sequence[Value], statement: Statement, *, ordered: bool) -> bool | None:
    """Compare the items of two sequences, each item of one with one item of the other."""
    if len(gold) != len(answer) or len(gold) > MAX_ITEMS:
        return False
    if ordered:
        undecided = False
        for expected, found in zip(gold, answer, strict=True):
            equal = same_answer(expected, found, statement)
            if equal is False:
                return False
            undecided = undecided or equal is None
        return None if undecided else True
    left = list(answer)
    for expected in gold:
        place = next((n for n, found in enumerate(left) if same_answer(expected, found, statement)), None)
        if place is None:
            return False
        del left[place]
    return True


def _assignments(value: Value) -> dict[str, Value] | None:
    """Return name -> value of a listing of equations with different names, or None."""
    if not isinstance(value, Listing) or value.joint == "or":
        return None
    pairs = [_assignment(item) for item in value.items]
    if any(pair is None for pair in pairs):
        return None
    named = dict(pair for pair in pairs if pair is not None)
    return named if len(named) == len(pairs) > 1 else None


def _assignment(item: Value) -> tuple[str, Value] | None:
    if isinstance(item, Relation) and item.operators == ("=",) and isinstance(item.sides[0], Symbol):
        return item.sides[0].name, item.sides[1]
    return None


def _items(value: Value, statement: Statement) -> list[Value] | None:
    """Return the items of a listing, a set or a tuple, without the name before ``=``; None for another value."""
    if isinstance(value, Relation):
        stated = stated_value(value, statement)
        return None if stated is None else _items(_expanded(stated), statement)
    if not isinstance(value, Listing | Brackets):
        return None
    items: list[Value] = []
    for item in map(_expanded, value.items):
        stated = stated_value(item, statement) if isinstance(item, Relation) else item
        if stated is None:
            return None
        expanded = _expanded(stated)
        items.extend(expanded.items if isinstance(expanded, Listing) else [expanded])
    return items


def _compare_listing(gold: Listing, answer: Value, statement: Statement) -> bool | None:
    expected, found = _assignments(gold), _assignments(answer)
    if expected is not None:
        if found is not None:
            if expected.keys() != found.keys():
                return False
            return _match([*expected.values()], [found[name] for name in expected], statement, ordered=True)
        items = _items(answer, statement)
        return items is not None and _match([*expected.values()], items, statement, ordered=True)
    region = region_of(gold) if any(isinstance(item, Relation) for item in gold.items) else None
    if region is not None and (other := region_of(answer)) is not None:
        return same_region(region, other)
    if _letters_of_choices(gold) and isinstance(answer, Words):
        return _same_choice(gold, answer, statement)
    golds, items = _items(gold, statement), _items(answer, statement)
    if golds is None or items is None:
        return _match(gold.items, answer.items, statement, ordered=False) if isinstance(answer, Listing) else False
    is_tuple = isinstance(answer, Brackets) and answer.left != "{"
    return _match(golds, items, statement, ordered=is_tuple or found is not None)


def _compare_brackets(gold: Brackets, answer: Value, statement: Statement) -> bool | None:
    if isinstance(answer, Relation):
        region = region_of(answer)
        if region is None or set(answer.operators) == {"="}:
            stated = stated_value(answer, statement)
            return stated is not None and same_answer(gold, stated, statement)
    if gold.left == "{":
        return _compare_set(gold, answer, statement)
    if isinstance(answer, Brackets):
        if (_kind(gold), _kind(answer)) != ("tuple", "tuple"):
            return _compare_region(gold, answer, statement)
        return _match(gold.items, answer.items, statement, ordered=True)
    if isinstance(answer, Matrix):
        return _compare_matrix(answer, gold, statement)
    if isinstance(answer, SetOperation | NamedSet) or (isinstance(answer, Relation)):
        return _compare_region(gold, answer, statement)
    if isinstance(answer, Listing):
        if (region := region_of(answer)) is not None and (expected := region_of(gold)) is not None:
            return same_region(expected, region)
        items = _items(answer, statement)
        if items is not None and answer.joint == "or":
            return all(same_answer(gold, item, statement) for item in items)
        return items is not None and _match(gold.items, items, statement, ordered=True)
    return False


def _kind(brackets: Brackets) -> str:
    shape = brackets.left + brackets.right
    return "set" if shape == "{}" else "tuple" if shape in ("()", "<>") else "interval" if len(brackets.items) == 2 else shape


def _compare_set(gold: Brackets, answer: Value, statement: Statement) -> bool | None:
    if isinstance(answer, Brackets) and answer.left != "{":
        return False
    if isinstance(answer, Brackets | Listing):
        items = _items(answer, statement)
        if items is not None and isinstance(answer, Brackets):
            return _match(_distinct(gold.items, statement), _distinct(items, statement), statement, ordered=False)
        if items is not None:
            return _match(gold.items, items, statement, ordered=False)
    if len(gold.items) == 1 and not isinstance(answer, SetOperation | NamedSet | Brackets):
        return same_answer(gold.items[0], answer, statement)
    return _compare_region(gold, answer, statement)


def _distinct(items: Sequence[Value], statement: Statement) -> list[Value]:
    kept: list[Value] = []
    for item in items[:MAX_ITEMS]:
        if not any(same_answer(other, item, statement) for other in kept):
            kept.append(item)
    return kept


def _compare_matrix(gold: Matrix, answer: Value, statement: Statement) -> bool | None:
    if gold.bars:
        return None
    if isinstance(answer, Matrix):
        if [len(row) for row in gold.rows] != [len(row) for row in answer.rows] or answer.bars:
            return False
        cells = [[cell for row in matrix.rows for cell in row] for matrix in (gold, answer)]
        return _match(*cells, statement, ordered=True)
    if isinstance(answer, Relation):
        stated = stated_value(answer, statement)
        return stated is not None and same_answer(gold, stated, statement)
    if isinstance(answer, Brackets) and _kind(answer) == "tuple" and 1 in (len(gold.rows), len(gold.rows[0])):
        return _match([cell for row in gold.rows for cell in row], answer.items, statement, ordered=True)
    return False


# ---------------------------------------------------------------------------------------------------------------------
# Residues, ratios, numerals and times
# ---------------------------------------------------------------------------------------------------------------------


def _is_remainder(number: Expression, residue: Residue) -> bool:
    """Return True if a number is the remainder, in [0, modulus), of a residue class."""
    value, remainder, modulus = map(exact_value, (number, residue.value, residue.modulus))
    if value is None or remainder is None or not modulus:
        return False
    return value == remainder % modulus


def _compare_residue(gold: Residue, answer: Value, statement: Statement) -> bool | None:
    if isinstance(answer, Relation):
        answer = answer.sides[-1]
    if isinstance(answer, Number | Operation):
        return _is_remainder(answer, gold)
    if not isinstance(answer, Residue) or same_value(gold.modulus, answer.modulus) is not True:
        return False
    values = [exact_value(part) for part in (gold.value, answer.value, gold.modulus)]
    if None in values or not values[2]:
        return same_value(gold.value, answer.value)
    return (values[0] - values[1]) % values[2] == 0  # type: ignore[operator]


def _compare_ratio(gold: Ratio, answer: Value, statement: Statement) -> bool | None:
    if isinstance(answer, Relation):
        stated = stated_value(answer, statement)
        return stated is not None and same_answer(gold, stated, statement)
    if isinstance(answer, Ratio):
        if len(gold.parts) != len(answer.parts):
            return False
        first, other = gold.parts[0], answer.parts[0]
        return all(
            same_value(Operation("multiply", (first, found)), Operation("multiply", (expected, other))) is True
            for expected, found in zip(gold.parts, answer.parts, strict=True)
        )
    if len(gold.parts) == 2 and isinstance(answer, Number | Operation):
        return same_number(Operation("divide", gold.parts), answer)
    return False


def _compare_base_number(gold: BaseNumber, answer: Value, statement: Statement) -> bool | None:
    if isinstance(answer, Relation):
        stated = stated_value(answer, statement)
        return stated is not None and same_answer(gold, stated, statement)
    if isinstance(answer, BaseNumber):
        return gold.base == answer.base and gold.digits.lstrip("0") == answer.digits.lstrip("0")
    return _same_digits(gold, answer, statement)


def _same_digits(numeral: BaseNumber, number: Value, statement: Statement) -> bool:
    """Compare a numeral with digits without a base: the problem must name the base; base 10 needs no name."""
    if not isinstance(number, Number) or numeral.base not in {10, *statement.bases}:
        return False
    return str(number.value) == numeral.digits.lstrip("0")


def _compare_time(gold: TimeOfDay, answer: Value, statement: Statement) -> bool | None:
    if isinstance(answer, Relation):
        answer = answer.sides[-1]
    if not isinstance(answer, TimeOfDay):
        return False
    return _minutes(gold) == _minutes(answer)


def _minutes(time: TimeOfDay) -> int:
    return time.minutes + (12 * 60 if time.half == "pm" else 0)


def _compare_quantity(gold: Quantity | Counted, answer: Value, statement: Statement) -> bool | None:
    if isinstance(answer, Relation):
        stated = stated_value(answer, statement)
        return stated is not None and same_answer(gold, stated, statement)
    if isinstance(answer, Brackets) and answer.left == "{" and len(answer.items) == 1:
        answer = answer.items[0]
    if isinstance(answer, Number | Symbol | Operation | Quantity | Counted):
        return same_quantity(gold, answer, statement, same_number)
    return False


_COMPARISONS: dict[type, Callable[..., bool | None]] = {
    Number: _compare_expression,
    Symbol: _compare_expression,
    Operation: _compare_expression,
    Words: _compare_words,
    Labelled: _compare_labelled,
    Relation: _compare_relation,
    Brackets: _compare_brackets,
    Listing: _compare_listing,
    SetOperation: _compare_region,
    NamedSet: _compare_region,
    Matrix: _compare_matrix,
    Quantity: _compare_quantity,
    Counted: _compare_quantity,
    Residue: _compare_residue,
    Ratio: _compare_ratio,
    BaseNumber: _compare_base_number,
    TimeOfDay: _compare_time,
}
