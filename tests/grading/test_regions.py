"""Sets of real numbers: one region for each spelling, normal form, and membership against a brute-force model."""

from fractions import Fraction
from itertools import pairwise

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from attnrl.grading.comparing.regions import Cut, Region, region_of, same_region
from attnrl.grading.reading.expressions import Expression, Number, Operation, Symbol
from attnrl.grading.reading.values import Brackets, Listing, NamedSet, Relation, SetOperation, Value, Words

INFINITY = Symbol("infinity")
MINUS_INFINITY = Operation("negate", (INFINITY,))
A, B, X, Y = Symbol("a"), Symbol("b"), Symbol("x"), Symbol("y")
REALS, EMPTY = NamedSet("reals"), NamedSet("empty")


Part = int | Fraction | Value


def number(value: int | Fraction) -> Expression:
    size = Number(abs(Fraction(value)))
    return Operation("negate", (size,)) if value < 0 else size


def term(part: Part) -> Value:
    return number(part) if isinstance(part, int | Fraction) else part


def brackets(signs: str, *items: Part) -> Brackets:
    return Brackets(signs[0], signs[1], tuple(map(term, items)))


def chain(*parts: Part | str) -> Relation:
    sides = tuple(term(part) for part in parts if not isinstance(part, str))
    return Relation(sides, tuple(part for part in parts if isinstance(part, str)))


def listing(joint: str, *items: Part) -> Listing:
    return Listing(tuple(map(term, items)), joint)


def union(*operands: Value) -> SetOperation:
    return SetOperation("union", operands)


def without(*operands: Value) -> SetOperation:
    return SetOperation("difference", operands)


def region(value: Value) -> Region:
    found = region_of(value)
    assert found is not None
    return found


SQRT_2 = Operation("root", (Number(Fraction(2)), Number(Fraction(2))))
HUGE = Operation("power", (number(2), number(10**12)))
NOT_3 = union(brackets("()", MINUS_INFINITY, 3), brackets("()", 3, INFINITY))
OUTSIDE = union(brackets("()", MINUS_INFINITY, 2), brackets("()", 3, INFINITY))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (brackets("(]", 1, 2), brackets("]]", 1, 2)),
        (brackets("()", 1, 2), brackets("][", 1, 2)),
        (brackets("(]", 1, 2), chain(1, "<", X, "<=", 2)),
        (brackets("(]", 1, 2), chain(2, ">=", X, ">", 1)),
        (brackets("(]", 1, 2), chain(X, "in", brackets("(]", 1, 2))),
        (brackets("(]", 1, 2), listing("and", chain(X, ">", 1), chain(X, "<=", 2))),
        (brackets("(]", 1, 2), listing(",", chain(X, ">", 1), chain(2, ">=", X))),
        (brackets("(]", 1, 2), union(brackets("()", 1, 2), brackets("{}", 2))),
        (brackets("[]", -2, 7), chain(-2, "<=", Operation("apply", (Symbol("f"), X)), "<=", 7)),
        (brackets("[)", 1, INFINITY), chain(X, ">=", 1)),
        (brackets("[)", 1, INFINITY), chain(1, "<=", X, "<", INFINITY)),
        (brackets("()", 1, 3), union(brackets("(]", 1, 2), brackets("()", 2, 3))),
        (brackets("()", 1, 3), union(brackets("()", 2, 3), brackets("(]", 1, 2))),
        (
            brackets("()", 0, 2),
            union(brackets("(]", 0, SQRT_2), brackets("()", Operation("divide", (number(2), SQRT_2)), 2)),
        ),
        (brackets("{}", 1, 2), brackets("{}", 2, 1, 1)),
        (brackets("{}", 1, 2), listing("or", chain(X, "=", 2), chain(X, "=", 1))),
        (brackets("{}", 1, 2), listing(",", chain(X, "=", 1), chain(X, "=", 2))),
        (brackets("{}", 1, 2), listing("and", chain(X, "=", 1), 2)),
        (brackets("{}", 1), brackets("[]", 1, 1)),
        (brackets("{}"), EMPTY),
        (EMPTY, listing("and", chain(X, ">", 3), chain(X, "<", 2))),
        (OUTSIDE, listing("or", chain(X, "<", 2), chain(X, ">", 3))),
        (OUTSIDE, listing(",", chain(X, "<", 2), chain(X, ">", 3))),
        (OUTSIDE, listing(",", brackets("()", 3, INFINITY), brackets("()", MINUS_INFINITY, 2))),
        (OUTSIDE, without(REALS, brackets("[]", 2, 3))),
        (NOT_3, chain(X, "!=", 3)),
        (NOT_3, without(REALS, brackets("{}", 3))),
        (without(REALS, brackets("{}", 3, 4)), listing(",", chain(X, "!=", 3), 4)),
        (without(REALS, brackets("{}", 3, 4)), listing("and", chain(X, "!=", 3), chain(X, "!=", 4))),
        (without(brackets("()", 0, INFINITY), brackets("{}", 4)), listing(",", chain(X, ">", 0), chain(X, "!=", 4))),
        (REALS, brackets("()", MINUS_INFINITY, INFINITY)),
        (REALS, union(chain(X, "<=", 1), chain(X, ">", 0))),
        (brackets("()", 1, 2), SetOperation("intersection", (brackets("()", 0, 2), brackets("()", 1, 3), REALS))),
        (brackets("(]", A, B), chain(A, "<", X, "<=", B)),
        (brackets("()", MINUS_INFINITY, Operation("add", (A, B))), chain(X, "<", Operation("add", (B, A)))),
    ],
)
def test_spellings_of_a_set_give_one_region(one: Value, other: Value) -> None:
    assert same_region(region(one), region(other))
    assert same_region(region(other), region(one))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (brackets("(]", 1, 2), brackets("[]", 1, 2)),
        (brackets("(]", 1, 2), brackets("()", 1, 2)),
        (brackets("(]", 1, 2), brackets("(]", 1, 3)),
        (brackets("(]", 1, 2), brackets("(]", 0, 2)),
        (brackets("(]", 1, 2), chain(1, "<", X, "<", 2)),
        (brackets("[)", 1, INFINITY), brackets("[)", 1, 10**9)),
        (brackets("()", 1, 3), union(brackets("()", 1, 2), brackets("()", 2, 3))),
        (brackets("()", 1, 2), brackets("{}", 1, 2)),
        (brackets("{}", 1, 2), brackets("{}", 1)),
        (OUTSIDE, listing("and", chain(X, "<", 2), chain(X, ">", 3))),
        (OUTSIDE, listing("or", chain(X, "<", 2), chain(X, ">=", 3))),
        (brackets("()", A, B), brackets("()", B, A)),
        (brackets("()", 1, Number(Fraction(2) + Fraction(1, 10**30))), brackets("()", 1, 2)),
        (chain(X, ">", 1), chain(Y, ">", 1)),
    ],
)
def test_other_sets_are_different(one: Value, other: Value) -> None:
    assert not same_region(region(one), region(other))
    assert not same_region(region(other), region(one))


@pytest.mark.parametrize(
    "value",
    [
        number(1),
        X,
        Words("all real numbers"),
        NamedSet("integers"),
        brackets("()", 2, 1),
        brackets("()", 1, 1),
        brackets("[)", 1, 1),
        brackets("()", INFINITY, MINUS_INFINITY),
        brackets("[)", MINUS_INFINITY, 1),
        brackets("(]", 1, INFINITY),
        brackets("()", 1, 2, 3),
        brackets("()", 1, Words("two")),
        brackets("<>", 1, 2),
        brackets("{}", INFINITY),
        brackets("{}", A, B),
        brackets("{}", HUGE, Operation("add", (HUGE, number(1)))),
        brackets("{}", brackets("()", 1, 2)),
        brackets("()", 1, Operation("add", (INFINITY, number(1)))),
        union(brackets("()", A, B), brackets("()", 1, 2)),
        union(brackets("()", 1, 2), NamedSet("integers")),
        chain(X, "=", Operation("plus_minus", (number(2),))),
        chain(Operation("power", (X, number(2))), "<", 4),
        chain(X, "<", Operation("add", (X, number(1)))),
        chain(X, "<", Y),
        chain(X, "=", A),
        chain(1, "<", 2, "<", 3),
        chain(1, "<", X, "<", Y, "<", 3),
        chain(X, "~", 3),
        chain(X, ">", INFINITY),
        chain(X, "=", INFINITY),
        chain(X, "in", NamedSet("integers")),
        chain(X, "in", chain(Y, ">", 1)),
        listing("and", chain(X, ">", 1), chain(Y, "<", 2)),
        listing("or", chain(X, "=", 1), chain(Y, "=", 2)),
        listing(",", 1, 2),
        listing(",", chain(X, ">", 1), 2),
        listing("or", *(chain(X, "=", number) for number in range(50))),
    ],
)
def test_values_that_are_no_region(value: Value) -> None:
    assert region_of(value) is None


def test_deeply_nested_bounds_and_sets_are_no_region() -> None:
    bound: Expression = X
    sets: Value = REALS
    for _ in range(5000):
        bound = Operation("abs", (bound,))
        sets = union(sets, REALS)
    assert region_of(brackets("()", bound, 2)) is None
    assert region_of(sets) is None


def test_a_region_has_the_name_of_the_variable() -> None:
    assert region(chain(1, "<", X, "<", 2)).variable == "x"
    assert region(chain(X, "in", brackets("()", 1, 2))).variable == "x"
    assert region(listing("or", chain(X, "<", 2), chain(3, "<", X))).variable == "x"
    assert region(chain(Operation("apply", (Symbol("f"), X)), ">", 0)).variable == "f(x)"
    assert region(OUTSIDE).variable is None


# A set as drawn: (lower, upper, lower bound included, upper bound included) with lower < upper, or one number.
Drawn = list[tuple[Fraction, Fraction, bool, bool]]
BOUNDS = st.builds(Fraction, st.integers(-6, 6), st.integers(1, 2))


@st.composite
def intervals(draw: st.DrawFn) -> tuple[Fraction, Fraction, bool, bool]:
    lower, upper = sorted((draw(BOUNDS), draw(BOUNDS)))
    point = lower == upper
    return lower, upper, point or draw(st.booleans()), point or draw(st.booleans())


UNIONS = st.lists(intervals(), min_size=2, max_size=5)
PLACES = [Fraction(place, 8) for place in range(-60, 61)]


def contains(drawn: Drawn, place: Fraction) -> bool:
    return any(
        (lower < place or (closed and lower == place)) and (place < upper or (closed_above and place == upper))
        for lower, upper, closed, closed_above in drawn
    )


def as_brackets(lower: Fraction, upper: Fraction, closed: bool, closed_above: bool) -> Brackets:
    return brackets(("[" if closed else "(") + ("]" if closed_above else ")"), lower, upper)


def as_inequality(lower: Fraction, upper: Fraction, closed: bool, closed_above: bool) -> Relation:
    return chain(lower, "<=" if closed else "<", X, "<=" if closed_above else "<", upper)


def as_union(drawn: Drawn) -> SetOperation:
    return union(*(as_brackets(*interval) for interval in drawn))


def as_inequalities(drawn: Drawn) -> Listing:
    return listing("or", *(as_inequality(*interval) for interval in reversed(drawn)))


def value_of(cut: Cut) -> Fraction:
    bound = cut.bound
    if isinstance(bound, Operation):
        assert isinstance(bound.operands[0], Number)
        return -bound.operands[0].value
    assert isinstance(bound, Number)
    return bound.value


def bounds_of(found: Region) -> Drawn:
    return [
        (value_of(interval.start), value_of(interval.end), not interval.start.after, interval.end.after)
        for interval in found.intervals
    ]


@given(UNIONS)
def test_a_union_holds_the_numbers_of_its_parts_in_normal_form(drawn: Drawn) -> None:
    found = bounds_of(region(as_union(drawn)))
    assert [contains(found, place) for place in PLACES] == [contains(drawn, place) for place in PLACES]
    for (_, upper, _, closed_above), (lower, _, closed, _) in pairwise(found):
        assert upper < lower or (upper == lower and not closed and not closed_above)


@given(UNIONS, UNIONS)
def test_intersection_and_difference_hold_the_right_numbers(one: Drawn, other: Drawn) -> None:
    both = bounds_of(region(SetOperation("intersection", (as_union(one), as_union(other)))))
    rest = bounds_of(region(without(as_union(one), as_union(other))))
    for place in PLACES:
        assert contains(both, place) == (contains(one, place) and contains(other, place))
        assert contains(rest, place) == (contains(one, place) and not contains(other, place))


@given(UNIONS, UNIONS)
def test_regions_are_the_same_if_and_only_if_they_hold_the_same_numbers(one: Drawn, other: Drawn) -> None:
    same = all(contains(one, place) == contains(other, place) for place in PLACES)
    assert same_region(region(as_union(one)), region(as_inequalities(other))) == same
    assert same_region(region(as_inequalities(one)), region(as_union(one)))


@given(UNIONS, st.data())
def test_a_changed_bound_or_bracket_makes_another_region(drawn: Drawn, data: st.DataObject) -> None:
    normal = [interval for interval in bounds_of(region(as_union(drawn))) if interval[0] < interval[1]]
    assume(normal)
    at = data.draw(st.integers(0, len(normal) - 1))
    lower, upper, closed, closed_above = normal[at]
    changes = [
        (lower, upper, not closed, closed_above),
        (lower, upper, closed, not closed_above),
        (lower - Fraction(1, 100), upper, closed, closed_above),
        (lower, upper + Fraction(1, 100), closed, closed_above),
    ]
    changed = [*normal[:at], data.draw(st.sampled_from(changes)), *normal[at + 1 :]]
    assert not same_region(region(as_union(normal)), region(as_union(changed)))
    assert not same_region(region(as_inequalities(changed)), region(as_union(normal)))
