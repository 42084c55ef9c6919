"""Sets of real numbers, read from intervals, finite sets, set operations and inequalities in one variable.

A region is a union of intervals in normal form: ``1 < x \\le 2``, ``(1, 2]`` and ``]1, 1.5] \\cup (3/2, 2]``
are the same region. An interval lies between two cuts: places on the real line just before or after a number.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cmp_to_key, lru_cache, reduce
from typing import TypeGuard

from attnrl.grading.arithmetic.evaluation import infinite_sign, real_float, same_value
from attnrl.grading.arithmetic.limits import TooLarge
from attnrl.grading.reading.expressions import (
    Expression,
    Operation,
    Symbol,
    difference,
    free_symbols,
    is_operation,
    parts_of,
)
from attnrl.grading.reading.values import Brackets, Listing, NamedSet, Relation, SetOperation, Value


@dataclass(frozen=True, slots=True)
class Cut:
    """A place on the real line beside a number.

    Attributes:
        bound: the number, or plus or minus infinity.
        after: the place is just after the number: an interval up to the cut includes the number.
    """

    bound: Expression
    after: bool


@dataclass(frozen=True, slots=True)
class Interval:
    """The real numbers between two cuts; a single number lies between the cuts before and after the number."""

    start: Cut
    end: Cut


@dataclass(frozen=True, slots=True)
class Region:
    """A set of real numbers.

    Attributes:
        intervals: non-empty intervals in ascending order with gaps between them. The order is known if there are two or
            more intervals; the bounds of a single interval may be symbolic (``a < x < b``).
        variable: name of the variable (``x``, ``f(x)``), or None if no variable is written.
    """

    intervals: tuple[Interval, ...]
    variable: str | None = None


class _UnknownOrderError(Exception):
    """Two bounds without a known order, such as ``a`` and ``b``."""


_MAX_INTERVALS = 32
_FLOAT_ACCURACY = 1e-9  # relative, and absolute near 0
_INFINITY = Symbol("infinity")
_MINUS_INFINITY = Operation("negate", (_INFINITY,))
_FIRST_CUT, _LAST_CUT = Cut(_MINUS_INFINITY, True), Cut(_INFINITY, False)
_REALS = Region((Interval(_FIRST_CUT, _LAST_CUT),))
_EMPTY = Region(())
_SEVERAL_VALUES = frozenset({"plus_minus", "minus_plus", "ellipsis"})
#: Operator of a relation -> operator of the same relation read from right to left.
MIRRORED = {"<": ">", "<=": ">=", ">": "<", ">=": "<=", "=": "=", "!=": "!="}


def region_of(value: Value) -> Region | None:
    """Return the set of real numbers that a value describes, or None.

    - Brackets: intervals with increasing bounds, finite sets; ``(1, 2)`` is read as an interval, not as a point.
    - Inequalities and equations of one variable with bounds free of the variable, chains of two or three sides.
    - A list of inequalities: the union around ``or``, else the intersection. A comma between inequalities without a
      common number is an ``or``. Equations (``x = 1, x = 2``) and intervals are united by each word. A number after
      ``x = 1`` or ``x \\ne 1`` belongs to the same relation.

    None for values of further types, two variables, two intervals with symbolic bounds, and bounds without a known
    order (complex, symbolic, nested too deeply, or beyond the limits of :mod:`attnrl.grading.arithmetic.limits`).
    """
    try:
        region = _read(value)
    except (_UnknownOrderError, TooLarge, RecursionError):
        return None
    return region if region and len(region.intervals) <= _MAX_INTERVALS else None


def same_region(one: Region, other: Region) -> bool:
    """Return True if two sets are equal, and the names of the variables if both sets have a name.

    Raises:
        TooLarge: if two bounds are beyond the limits of :mod:`attnrl.grading.arithmetic.limits`.
    """
    named = one.variable is not None and other.variable is not None
    if (named and one.variable != other.variable) or len(one.intervals) != len(other.intervals):
        return False
    return all(
        _same_cut(first.start, second.start) and _same_cut(first.end, second.end)
        for first, second in zip(one.intervals, other.intervals, strict=True)
    )


def _same_cut(one: Cut, other: Cut) -> bool:
    return one.after == other.after and _same_bound(one.bound, other.bound)


def _same_bound(one: Expression, other: Expression) -> bool:
    return one == other or same_value(one, other) is True


def _read(value: Value) -> Region | None:
    match value:
        case Brackets():
            return _read_brackets(value)
        case NamedSet("reals"):
            return _REALS
        case NamedSet("empty"):
            return _EMPTY
        case SetOperation(name, operands):
            regions = _read_all(operands)
            return reduce(_SET_OPERATIONS[name], regions) if regions else None
        case Relation():
            return _read_relation(value)
        case Listing():
            return _read_listing(value)
    return None


def _read_all(values: Sequence[Value]) -> list[Region] | None:
    """Read regions of one variable; None for two variables, or if a value is no region."""
    regions = [region for value in values if (region := _read(value)) is not None]
    variables = {region.variable for region in regions} - {None}
    return regions if len(regions) == len(values) <= _MAX_INTERVALS and len(variables) <= 1 else None


def _read_brackets(value: Brackets) -> Region | None:
    bounds = [item for item in value.items if _is_bound(item)]
    if len(bounds) != len(value.items):
        return None
    if (value.left, value.right) == ("{", "}"):
        if len(bounds) > _MAX_INTERVALS or any(map(infinite_sign, bounds)):
            return None
        return _merge(map(_point, bounds), None)
    if value.left not in ("(", "[", "]") or value.right not in (")", "]", "[") or len(bounds) != 2:
        return None
    start, end = Cut(bounds[0], value.left != "["), Cut(bounds[1], value.right == "]")
    closed = (infinite_sign(start.bound) and not start.after) or (infinite_sign(end.bound) and end.after)
    return None if closed or _is_empty(Interval(start, end)) else Region((Interval(start, end),))


def _is_bound(value: Value) -> TypeGuard[Expression]:
    """Return True for an expression with a single value, and for plus and minus infinity."""
    if not isinstance(value, Expression):
        return False
    parts = list(parts_of(value))
    several = any(isinstance(part, Operation) and part.name in _SEVERAL_VALUES for part in parts)
    return not several and (infinite_sign(value) != 0 or _INFINITY not in parts)


def _read_relation(relation: Relation) -> Region | None:
    sides, operators = relation.sides, relation.operators
    if operators == ("in",):
        variable, region = _variable_of(sides[0]), _read(sides[1])
        return replace(region, variable=variable) if region and variable and not region.variable else None
    if len(sides) == 3:
        conditions = [(sides[1], MIRRORED.get(operators[0]), sides[0]), (sides[1], operators[1], sides[2])]
    elif len(sides) != 2 or (_variable_of(sides[0]) and _variable_of(sides[1])):
        return None
    elif _variable_of(sides[0]):
        conditions = [(sides[0], operators[0], sides[1])]
    else:
        conditions = [(sides[1], MIRRORED.get(operators[0]), sides[0])]
    regions = [_read_condition(*condition) for condition in conditions]
    known = [region for region in regions if region]
    return reduce(_intersection, known) if known and len(known) == len(regions) else None


def _variable_of(value: Value) -> str | None:
    """Return the name of a variable or of a function's value (``f(x)``), or None."""
    if is_operation(value, "apply"):
        names = [part.name for part in value.operands if isinstance(part, Symbol)]
        return f"{names[0]}({', '.join(names[1:])})" if len(names) == len(value.operands) else None
    return value.name if isinstance(value, Symbol) and free_symbols(value) else None


def _read_condition(subject: Value, operator: str | None, bound: Value) -> Region | None:
    """Read one comparison of a variable with a bound."""
    variable = _variable_of(subject)
    if variable is None or not _is_bound(subject) or not _is_bound(bound):
        return None
    if free_symbols(subject) & free_symbols(bound):
        return None
    if infinite_sign(bound) and (operator, infinite_sign(bound)) not in (("<", 1), (">", -1)):
        return None
    match operator:
        case "<" | "<=":
            region = Region((Interval(_FIRST_CUT, Cut(bound, operator == "<=")),))
        case ">" | ">=":
            region = Region((Interval(Cut(bound, operator == ">"), _LAST_CUT),))
        case "=":
            region = Region((_point(bound),))
        case "!=":
            region = _complement(Region((_point(bound),)))
        case _:
            return None
    return replace(region, variable=variable)


def _read_listing(listing: Listing) -> Region | None:
    items = list(_with_relations(listing))
    regions = _read_all(items)
    if not regions:
        return None
    if listing.joint == "or" or all(map(_is_enumerated, items)):
        return reduce(_union, regions)
    region = reduce(_intersection, regions)
    return reduce(_union, regions) if listing.joint == "," and not region.intervals else region


def _is_enumerated(value: Value) -> bool:
    """Return True for an equation or a set (a part of a list of solutions), False for an inequality."""
    return not isinstance(value, Relation | Listing) or (isinstance(value, Relation) and set(value.operators) == {"="})


def _with_relations(listing: Listing) -> Iterator[Value]:
    """Yield the items of a list, and a number after ``x = 1`` or ``x \\ne 1`` as a relation."""
    last: Relation | None = None
    for item in listing.items:
        if isinstance(item, Relation):
            repeats = item.operators == ("=",) or (item.operators == ("!=",) and listing.joint != "or")
            last = item if repeats else None
            yield item
        elif last and isinstance(item, Expression):
            yield Relation((last.sides[0], item), last.operators)
        else:
            yield item


def _point(bound: Expression) -> Interval:
    return Interval(Cut(bound, False), Cut(bound, True))


def _is_empty(interval: Interval) -> bool:
    """Return True if no number lies between the cuts; False if the order of the cuts is unknown."""
    try:
        return _compare(interval.start, interval.end) >= 0
    except _UnknownOrderError:
        return False


def _compare(one: Cut, other: Cut) -> int:
    """Return a negative number, 0 or a positive number if the first cut is before, at or after the second.

    Raises:
        _UnknownOrderError: the bounds are different and at least one bound has no real value.
    """
    left_sign, right_sign = infinite_sign(one.bound), infinite_sign(other.bound)
    if left_sign or right_sign:
        return left_sign - right_sign
    left, right = _float_of(one.bound), _float_of(other.bound)
    if left is None or right is None or _are_close(left, right):
        if _same_bound(one.bound, other.bound):
            return one.after - other.after
        left, right = _float_of(difference(one.bound, other.bound)), 0.0
    if left is None or left == right:
        raise _UnknownOrderError
    return -1 if left < right else 1


@lru_cache(maxsize=8 * _MAX_INTERVALS)
def _float_of(bound: Expression) -> float | None:
    return real_float(bound)


def _are_close(left: float, right: float) -> bool:
    return math.isclose(left, right, rel_tol=_FLOAT_ACCURACY, abs_tol=_FLOAT_ACCURACY)


_cut_order = cmp_to_key(_compare)


def _merge(intervals: Iterable[Interval], variable: str | None) -> Region:
    """Return the union of intervals in normal form: sorted, overlapping and touching intervals joined.

    Raises:
        _UnknownOrderError: two of the bounds have no known order.
    """
    merged: list[Interval] = []
    for interval in sorted(intervals, key=lambda interval: _cut_order(interval.start)):
        if merged and _compare(interval.start, merged[-1].end) <= 0:
            merged[-1] = Interval(merged[-1].start, max(merged[-1].end, interval.end, key=_cut_order))
        else:
            merged.append(interval)
    return Region(tuple(merged), variable)


def _union(one: Region, other: Region) -> Region:
    return _merge((*one.intervals, *other.intervals), one.variable or other.variable)


def _intersection(one: Region, other: Region) -> Region:
    common = []
    at, other_at = 0, 0
    while at < len(one.intervals) and other_at < len(other.intervals):
        first, second = one.intervals[at], other.intervals[other_at]
        end = min(first.end, second.end, key=_cut_order)
        part = Interval(max(first.start, second.start, key=_cut_order), end)
        if not _is_empty(part):
            common.append(part)
        at += end == first.end
        other_at += end == second.end
    return Region(tuple(common), one.variable or other.variable)


def _complement(region: Region) -> Region:
    ends = (_FIRST_CUT, *(interval.end for interval in region.intervals))
    starts = (*(interval.start for interval in region.intervals), _LAST_CUT)
    gaps = (Interval(end, start) for end, start in zip(ends, starts, strict=True))
    return Region(tuple(gap for gap in gaps if not _is_empty(gap)), region.variable)


def _difference(one: Region, other: Region) -> Region:
    return _intersection(one, _complement(other))


_SET_OPERATIONS = {"union": _union, "intersection": _intersection, "difference": _difference}
