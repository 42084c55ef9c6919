"""Comparison of listings, sets, tuples and matrices, item by item."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction
from functools import partial

from attnrl.grading.comparing.choices import letters_of_choices, same_choice
from attnrl.grading.comparing.comparison import MAX_ITEMS, Compare, match
from attnrl.grading.comparing.regions import region_of, same_region
from attnrl.grading.comparing.relations import compare_region, compare_stated, stated_value
from attnrl.grading.comparing.signs import expanded
from attnrl.grading.reading.expressions import Number, Operation, Symbol, free_symbols
from attnrl.grading.reading.rewriting import substituted
from attnrl.grading.reading.values import (
    Brackets,
    Listing,
    Matrix,
    NamedSet,
    Relation,
    SetOperation,
    Value,
    Words,
    items_of,
)

#: Words of a problem that make ``(1, 2)`` a point, not an interval.
_POINT = frozenset({"point", "points", "vertex", "coordinates", "pair", "pairs", "intersection", "center", "midpoint"})


def compare_listing(gold: Listing, answer: Value, compare: Compare) -> bool | None:
    """Compare an answer with values between commas, in any order; values of a system in the order of names."""
    expected, found = _assignments(gold), _assignments(answer)
    if expected is not None:
        if found is not None:
            if expected.keys() != found.keys():
                return False
            return match([*expected.values()], [found[name] for name in expected], compare, ordered=True)
        items = _items(answer, compare)
        return items is not None and match([*expected.values()], items, compare, ordered=True)
    region = region_of(gold) if any(isinstance(item, Relation) for item in gold.items) else None
    if region is not None and (other := region_of(answer)) is not None:
        return same_region(region, other)
    if letters_of_choices(gold) and isinstance(answer, Words):
        return same_choice(gold, answer, compare)
    golds, items = _items(gold, compare), _items(answer, compare)
    if found is not None:
        items = _in_order(found, compare)
    if golds is None or items is None:
        return match(gold.items, answer.items, compare, ordered=False) if isinstance(answer, Listing) else False
    is_tuple = isinstance(answer, Brackets) and answer.left != "{"
    if isinstance(answer, Brackets) and _kind(answer) == "interval":
        return False
    if all(isinstance(item, Brackets) for item in items):  # a pair repeated is the same pair
        golds, items = _distinct(golds, compare), _distinct(items, compare)
    return match(golds, items, compare, ordered=is_tuple or found is not None)


def compare_brackets(gold: Brackets, answer: Value, compare: Compare) -> bool | None:
    """Compare an answer with a tuple, an interval or a set."""
    if _kind(gold) == "tuple" and _POINT & compare.statement.words and _is_region(answer):
        return False
    if isinstance(answer, Relation):
        region = region_of(answer)
        if region is None or set(answer.operators) == {"="}:
            return compare_stated(gold, answer, compare)
    if gold.left == "{":
        return compare_set(gold, answer, compare)
    if (named := _assignments(answer)) is not None:
        return match(gold.items, _in_order(named, compare), compare, ordered=True)
    if isinstance(answer, Brackets):
        if (_kind(gold), _kind(answer)) != ("tuple", "tuple"):
            return compare_region(gold, answer, compare)
        return match(gold.items, answer.items, compare, ordered=True)
    if isinstance(answer, Matrix):
        return compare_matrix(answer, gold, compare)
    if isinstance(answer, Operation):
        components = _components(answer, len(gold.items))
        return components is not None and match(gold.items, components, compare, ordered=True)
    if isinstance(answer, SetOperation | NamedSet | Relation):
        return compare_region(gold, answer, compare)
    if isinstance(answer, Listing):
        if (region := region_of(answer)) is not None and (expected := region_of(gold)) is not None:
            return same_region(expected, region)
        items = _items(answer, compare)
        if _kind(gold) != "tuple":
            return False
        if items is not None and answer.joint == "or":
            return all(compare(gold, item) for item in items)
        return items is not None and match(gold.items, items, compare, ordered=True)
    return False


def compare_set(gold: Brackets, answer: Value, compare: Compare) -> bool | None:
    """Compare an answer with a finite set: in any order, repetitions in braces ignored."""
    if isinstance(answer, Brackets) and answer.left != "{":
        return False
    golds = _items(gold, compare)
    if isinstance(answer, Brackets | Listing) and golds is not None:
        items = _items(answer, compare)
        if items is not None and isinstance(answer, Brackets):
            return match(_distinct(golds, compare), _distinct(items, compare), compare, ordered=False)
        if items is not None:
            return match(golds, items, compare, ordered=False)
    if len(gold.items) == 1 and not isinstance(answer, SetOperation | NamedSet | Brackets):
        return compare(gold.items[0], answer)
    return compare_region(gold, answer, compare)


def compare_matrix(gold: Matrix, answer: Value, compare: Compare) -> bool | None:
    """Compare an answer with a matrix, entry by entry; a tuple may stand for a vector."""
    if gold.bars:
        return None
    if isinstance(answer, Matrix):
        if [len(row) for row in gold.rows] != [len(row) for row in answer.rows] or answer.bars:
            return False
        cells = [[cell for row in matrix.rows for cell in row] for matrix in (gold, answer)]
        return match(cells[0], cells[1], compare, ordered=True)
    if isinstance(answer, Relation):
        return compare_stated(gold, answer, compare)
    if isinstance(answer, Operation) and len(gold.rows[0]) == 1:
        components = _components(answer, len(gold.rows))
        return components is not None and match([row[0] for row in gold.rows], components, compare, ordered=True)
    if isinstance(answer, Brackets) and _kind(answer) == "tuple" and 1 in (len(gold.rows), len(gold.rows[0])):
        return match([cell for row in gold.rows for cell in row], answer.items, compare, ordered=True)
    return False


def _assignments(value: Value) -> dict[str, Value] | None:
    """Return name -> value of equations with different names, or None; x_1 and x_2 are values of one name."""
    if not isinstance(value, Listing | Brackets):
        return None
    if isinstance(value, Listing) and value.joint == "or":
        return None
    if isinstance(value, Brackets) and value.left != "{":
        return None
    pairs = [_assignment(item) for item in value.items]
    if any(pair is None for pair in pairs):
        return None
    named = dict(pair for pair in pairs if pair is not None)
    same_name = len({re.sub(r"_\d+$", "", name) for name in named}) == 1
    return named if len(named) == len(pairs) > 1 and not same_name else None


def _assignment(item: Value) -> tuple[str, Value] | None:
    if isinstance(item, Relation) and item.operators == ("=",) and isinstance(item.sides[0], Symbol):
        return item.sides[0].name, item.sides[1]
    return None


def _items(value: Value, compare: Compare) -> list[Value] | None:
    """Return the items of a listing, a set or a tuple, without the name before ``=``; None for another value."""
    if isinstance(value, Relation):
        stated = stated_value(value, compare.statement)
        return None if stated is None else _items(expanded(stated), compare)
    if not isinstance(value, Listing | Brackets):
        return None
    items: list[Value] = []
    for item in value.items:
        signs = expanded(item)
        for part in signs.items if isinstance(signs, Listing) and not isinstance(item, Listing) else [signs]:
            stated = stated_value(part, compare.statement) if isinstance(part, Relation) else part
            if stated is None:
                return None
            items.append(stated)
    return items


def _in_order(named: dict[str, Value], compare: Compare) -> list[Value]:
    """Return the values in the order of the tuple of names in the problem, or else in the order of the alphabet.

    Names of more than a letter stay in the order of the answer.
    """
    for asked in compare.statement.asked:
        names = [item.name for item in items_of(asked) if isinstance(item, Symbol)]
        if sorted(names) == sorted(named):
            return [named[name] for name in names]
    return [named[name] for name in (sorted(named) if all(len(name) == 1 for name in named) else named)]


def _distinct(items: Sequence[Value], compare: Compare) -> list[Value]:
    kept: list[Value] = []
    for item in items[:MAX_ITEMS]:
        if not any(compare(other, item) for other in kept):
            kept.append(item)
    return kept


def _components(vector: Operation, length: int) -> list[Value] | None:
    r"""Return the components of ``2\mathbf{i} - \mathbf{j}``, in the unit vectors i, j, k; None for another value."""
    letters = "ijk"[:length]
    names = free_symbols(vector)
    if length not in (2, 3) or "j" not in names or not names <= set(letters):
        return None
    return [substituted(vector, partial(_unit_vector, letter)) for letter in letters]


def _unit_vector(letter: str, symbol: Symbol) -> Number:
    """Return the component of the unit vector ``symbol`` in the direction of a letter."""
    return Number(Fraction(int(symbol.name == letter)))


def _is_region(value: Value) -> bool:
    """Return True for an interval that is no tuple, and for an inequality."""
    if isinstance(value, Brackets):
        return _kind(value) == "interval"
    return isinstance(value, Relation) and not {"=", "in"} & set(value.operators)


def _kind(brackets: Brackets) -> str:
    if brackets.left == "{":
        return "set"
    return "tuple" if brackets.left + brackets.right in ("()", "<>") else "interval"
