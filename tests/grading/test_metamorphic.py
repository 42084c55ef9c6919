"""Other spellings of a value stay ``correct``; one digit, sign, letter or bound changed is ``wrong``; swapping is fair.

hypothesis draws values and spellings, always the same; the pairs of a kind are graded in one call. ``spellings.py``
writes values and judges by computing with 40 digits whether a change gives another value.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st
from spellings import (
    COLLECTIONS,
    IMAGINARY,
    INFINITY,
    NOTATIONS,
    PI,
    UNITS,
    WRAPPERS,
    Node,
    Speller,
    add,
    changes,
    dec,
    finish,
    frac,
    mul,
    negate,
    num,
    power,
    root,
    same,
    symbol,
)

from attnrl.grading.base import ClosableGrader
from attnrl.grading.registry import build_grader
from attnrl.types import Problem

Draw = Any
Strategy = st.SearchStrategy[Any]
SPELLINGS, CHANGES, SWAPS, SPLITS = 100, 80, 30, 25  # pairs of a kind
WORDS = ("even", "odd", "ellipse", "parabola", "Tuesday", "Thursday", "yes", "no", "east", "seat", "west", "stew")


# --- Values: a strategy draws a list of trees of one value, the first as a gold is written ---------------------------


def signed(low: int, high: int) -> Strategy:
    return st.integers(low, high).flatmap(lambda number: st.sampled_from([number, number, -number]))


SMALL = signed(1, 19)


@st.composite
def integers(draw: Draw) -> list[Node]:
    number = draw(st.one_of(signed(0, 99), signed(100, 99_999)))
    times = draw(st.integers(2, 9))
    shift = draw(st.integers(1, 9))
    return [
        num(number),
        num(number),
        dec(f"{number}.0"),
        frac(number * times, times),
        add(num(number - shift), num(shift)),
    ]


@st.composite
def large_integers(draw: Draw) -> list[Node]:
    """Integers of seven digits or more: the test gives them thousands separators."""
    return [num(draw(signed(1_000_000, 9_999_999_999)))]


@st.composite
def decimals(draw: Draw) -> list[Node]:
    places = draw(st.integers(1, 3))
    number = draw(signed(1, 20_000).filter(lambda n: n % 10))
    text = f"{'-' if number < 0 else ''}{abs(number) // 10**places}.{abs(number) % 10**places:0{places}d}"
    common = math.gcd(number, 10**places)
    return [dec(text), frac(number, 10**places), frac(number // common, 10**places // common)]


@st.composite
def fractions(draw: Draw) -> list[Node]:
    over, under = draw(st.integers(1, 99)), draw(st.integers(2, 99))
    common, times = math.gcd(over, under), draw(st.integers(2, 5))
    over, under = over // common, under // common
    assume(under > 1)
    plain = [frac(over, under), frac(over * times, under * times)]
    if 1000 % under == 0:
        plain.append(dec(f"{over / under:.3f}".rstrip("0")))
    if draw(st.booleans()):
        return [negate(node) for node in plain] + [frac(-over, under)]
    return plain


@st.composite
def repeating_decimals(draw: Draw) -> list[Node]:
    whole, period = draw(st.integers(0, 12)), draw(st.integers(1, 98).filter(lambda n: n % 11))
    digits = str(period) if period < 9 else f"{period:02d}"
    nines = 10 ** len(digits) - 1
    assume(period != nines)
    common = math.gcd(period, nines)
    over, under = whole * nines + period, nines
    return [frac(over // common, under // common), Node("repeating", (num(whole), num(int(digits)), num(under)))]


@st.composite
def angles(draw: Draw) -> list[Node]:
    number = draw(st.integers(1, 359))
    return [Node("degrees", (num(number),))]


@st.composite
def numerals(draw: Draw) -> list[Node]:
    """Numerals in a written base."""
    base = draw(st.integers(3, 9))
    digits = [draw(st.integers(1, base - 1)), *draw(st.lists(st.integers(0, base - 1), min_size=1, max_size=4))]
    return [Node("base", ("".join(map(str, digits)), base))]


@st.composite
def mixed_numbers(draw: Draw) -> list[Node]:
    whole, under = draw(st.integers(1, 20)), draw(st.sampled_from([2, 3, 4, 5, 7, 8, 10]))
    over = draw(st.integers(1, under - 1).filter(lambda n: math.gcd(n, under) == 1))
    nodes = [Node("mixed", (num(whole), num(over), num(under))), frac(whole * under + over, under)]
    if 1000 % under == 0:
        nodes.append(dec(f"{whole + over / under:.3f}".rstrip("0")))
    return [negate(node) for node in nodes] if draw(st.booleans()) else nodes


@st.composite
def surds(draw: Draw) -> list[Node]:
    outside, inside = draw(st.integers(2, 12)), draw(st.sampled_from([2, 3, 5, 6, 7, 10, 11, 13]))
    shape = draw(st.sampled_from(["single", "sum", "over", "rational", "cube"]))
    if shape == "single":
        return [mul(num(outside), root(inside)), root(outside**2 * inside), mul(root(inside), num(outside))]
    if shape == "sum":
        first = num(draw(SMALL))
        terms = mul(num(outside), root(inside))
        terms = negate(terms) if draw(st.booleans()) else terms
        return [add(first, terms), add(terms, first)]
    if shape == "over":
        under = draw(st.sampled_from([n for n in range(2, 12) if math.gcd(n, outside) == 1]))
        half = frac(mul(num(outside), root(inside)), num(under))
        return [half, mul(frac(outside, under), root(inside)), frac(root(outside**2 * inside), num(under))]
    if shape == "rational":
        return [frac(root(inside), num(inside)), frac(num(1), root(inside)), root(frac(1, inside))]
    return [mul(num(outside), root(inside, 3)), root(outside**3 * inside, 3)]


@st.composite
def multiples_of_pi(draw: Draw) -> list[Node]:
    over, under = draw(st.integers(1, 30)), draw(st.integers(1, 12))
    common = math.gcd(over, under)
    over, under = over // common, under // common
    top = PI if over == 1 else mul(num(over), PI)
    nodes = [top, mul(PI, num(over))] if under == 1 else [frac(top, num(under)), mul(frac(over, under), PI)]
    if draw(st.integers(0, 3)) == 0:
        shift = num(draw(SMALL))
        return [add(node, shift) for node in nodes]
    return [negate(node) for node in nodes] if draw(st.integers(0, 2)) == 0 else nodes


@st.composite
def scientific(draw: Draw) -> list[Node]:
    digits, exponent = draw(st.integers(11, 999).filter(lambda n: n % 10)), draw(signed(3, 24))
    text = str(digits)
    mantissa = dec(f"{text[0]}.{text[1:]}")
    nodes = [Node("scientific", (mantissa, num(exponent)))]
    shifted = dec(f"{text[:2]}.{text[2:] or '0'}")
    nodes.append(Node("scientific", (shifted, num(exponent - 1))))
    if 0 < exponent < 10:
        nodes.append(num(digits * 10 ** (exponent - len(text) + 1)))
    if -7 < exponent < 0:
        nodes.append(dec(f"0.{'0' * (-exponent - 1)}{digits}"))
    return nodes


@st.composite
def percentages(draw: Draw) -> list[Node]:
    number = draw(st.integers(1, 99))
    return [Node("percent", (num(number),)), dec(f"{number / 100:.2f}"), frac(number, 100)]


@st.composite
def complex_numbers(draw: Draw) -> list[Node]:
    real, imaginary = draw(SMALL), draw(SMALL)
    part = IMAGINARY if abs(imaginary) == 1 else mul(num(abs(imaginary)), IMAGINARY)
    if draw(st.integers(0, 3)) == 0:
        part = mul(root(draw(st.sampled_from([2, 3, 5]))), IMAGINARY)
    part = negate(part) if imaginary < 0 else part
    nodes = [add(num(real), part), add(part, num(real))]
    if draw(st.booleans()):
        under = draw(st.integers(2, 9))
        return [frac(nodes[0], num(under)), add(frac(real, under), frac(part, num(under)))]
    return nodes


def term(coefficient: int, *letters: Node) -> Node:
    """A coefficient with letters: never ``1 x``, and the sign outside."""
    factors = letters if abs(coefficient) == 1 and letters else (num(abs(coefficient)), *letters)
    return negate(mul(*factors)) if coefficient < 0 else mul(*factors)


@st.composite
def polynomials(draw: Draw) -> list[Node]:
    """A product of linear factors in one symbol, and the same multiplied out."""
    x = symbol(draw(st.sampled_from("xtnyzpq")))
    factors = draw(st.lists(st.tuples(st.integers(1, 4), SMALL), min_size=2, max_size=3))
    coefficients = [1]
    for lead, constant in factors:
        longer = [0, *coefficients]
        coefficients = [lead * high + constant * low for high, low in zip(longer, [*coefficients, 0], strict=True)]
    written = [(number, degree) for degree, number in enumerate(coefficients) if number][::-1]
    powers = [() if degree == 0 else (x,) if degree == 1 else (power(x, degree),) for _, degree in written]
    expanded = add(*(term(number, *letters) for (number, _), letters in zip(written, powers, strict=True)))
    product = mul(*(add(term(lead, x), num(constant)) for lead, constant in factors))
    return [expanded, product] if draw(st.booleans()) else [product, expanded]


@st.composite
def polynomials_in_two_symbols(draw: Draw) -> list[Node]:
    one, other = (symbol(name) for name in draw(st.sampled_from(["xy", "ab", "pq", "nk", "Rr"])))
    a, b, c = draw(SMALL), draw(SMALL), draw(SMALL)
    if draw(st.booleans()):
        terms = [term(a, power(one, 2)), term(b, one, other), term(c, power(other, 3))]
        return [add(*terms), add(*terms[::-1])]
    sign = draw(st.sampled_from([1, -1]))
    square = power(add(one, term(sign * abs(b), other)), 2)
    return [square, add(power(one, 2), term(2 * sign * abs(b), one, other), term(b * b, power(other, 2)))]


@st.composite
def rational_functions(draw: Draw) -> list[Node]:
    one, other = (symbol(name) for name in draw(st.sampled_from(["xy", "ab", "nk", "Mb"])))
    a, b = draw(st.integers(2, 9)), draw(SMALL)
    bottom = add(one, num(b))
    return draw(
        st.sampled_from(
            [
                [frac(term(a, other), bottom), mul(num(a), frac(other, bottom))],
                [frac(add(other, num(a)), bottom), add(frac(other, bottom), frac(num(a), bottom))],
                [frac(num(1), add(num(b), term(a, one))), power(add(term(a, one), num(b)), -1)],
            ]
        )
    )


@st.composite
def functions(draw: Draw) -> list[Node]:
    t, a, b = symbol(draw(st.sampled_from("xt"))), draw(st.integers(2, 9)), draw(st.integers(2, 9))

    def call(name: str, argument: Node) -> Node:
        return Node("function", (name, argument))

    wave = call(draw(st.sampled_from(["sin", "cos", "tan"])), mul(num(a), t))
    return draw(
        st.sampled_from(
            [
                [mul(num(b), wave), mul(wave, num(b))],
                [add(wave, num(b)), add(num(b), wave)],
                [mul(num(b), call("ln", num(a))), call("ln", num(a**b))],
                [call("exp", negate(mul(num(a), t))), frac(num(1), call("exp", mul(num(a), t)))],
                [add(call("ln", num(a)), call("ln", num(b))), call("ln", num(a * b))],
            ]
        )
    )


ITEMS = st.one_of(
    SMALL.map(lambda n: [num(n)]),
    fractions(),
    multiples_of_pi(),
    surds(),
)


@st.composite
def collections_of(draw: Draw, kind: str) -> list[Node]:
    items = draw(st.lists(ITEMS, min_size=2, max_size=4, unique_by=lambda nodes: str(nodes[0])))
    plain = Node(kind, tuple(nodes[0] for nodes in items))
    return [plain, Node(kind, tuple(draw(st.sampled_from(nodes)) for nodes in items))]


@st.composite
def equations(draw: Draw) -> list[Node]:
    name = draw(st.sampled_from(["x", "y", "f(x)", "k"]))
    values = draw(polynomials() if name == "f(x)" else fractions())
    return [Node("equation", (name, node)) for node in values]


@st.composite
def intervals(draw: Draw) -> list[Node]:
    low = draw(st.integers(-20, 20))
    high = low + draw(st.integers(1, 20))
    left, right = draw(st.booleans()), draw(st.booleans())
    end = draw(st.integers(0, 4))
    if end == 0:
        return [Node("interval", (False, negate(INFINITY), num(high), right))]
    if end == 1:
        return [Node("interval", (left, num(low), INFINITY, False))]
    upper = [num(high), dec(f"{high}.0")] if end == 2 else [frac(2 * high + 1, 2), dec(f"{high}.5")]
    upper = upper if high > 0 else [num(high)]
    return [Node("interval", (left, num(low), node, right)) for node in upper]


@st.composite
def unions(draw: Draw) -> list[Node]:
    bounds = draw(st.lists(st.integers(-30, 30), min_size=4, max_size=4, unique=True).map(sorted))
    closed = draw(st.lists(st.booleans(), min_size=4, max_size=4))
    one = Node("interval", (closed[0], num(bounds[0]), num(bounds[1]), closed[1]))
    other = Node("interval", (closed[2], num(bounds[2]), num(bounds[3]), closed[3]))
    if draw(st.booleans()):
        one = Node("interval", (False, negate(INFINITY), num(bounds[1]), closed[1]))
    if draw(st.booleans()):
        other = Node("interval", (closed[2], num(bounds[2]), INFINITY, False))
    return [Node("union", (one, other))]


@st.composite
def matrices(draw: Draw) -> list[Node]:
    rows, columns = draw(st.sampled_from([(2, 2), (2, 3), (3, 3), (3, 2)]))
    cells = [
        [draw(st.one_of(signed(0, 19).map(lambda n: [num(n)]), fractions())) for _ in range(columns)]
        for _ in range(rows)
    ]
    first = Node("matrix", tuple(tuple(cell[0] for cell in row) for row in cells))
    return [first, Node("matrix", tuple(tuple(draw(st.sampled_from(cell)) for cell in row) for row in cells))]


@st.composite
def ratios(draw: Draw) -> list[Node]:
    numbers = draw(st.lists(st.integers(1, 60), min_size=2, max_size=3))
    common, times = math.gcd(*numbers), draw(st.integers(2, 9))
    reduced = [number // common for number in numbers]
    return [Node("ratio", tuple(num(times * number) for number in reduced)) for times in (1, times)]


@st.composite
def residues(draw: Draw) -> list[Node]:
    modulus = draw(st.integers(3, 60))
    number = draw(st.integers(1, modulus - 1))
    return [Node("residue", (num(other), num(modulus))) for other in (number, number, number + modulus)]


@st.composite
def money(draw: Draw) -> list[Node]:
    cents = draw(st.integers(101, 99_999))
    texts = [f"{cents // 100}.{cents % 100:02d}"] if cents % 100 else [f"{cents // 100}", f"{cents // 100}.00"]
    dollars = [Node("unit", (dec(text) if "." in text else num(int(text)), "dollars")) for text in texts]
    return [*dollars, Node("unit", (num(cents), "cents"))]


@st.composite
def quantities(draw: Draw) -> list[Node]:
    amount, unit = draw(st.integers(1, 400)), draw(st.sampled_from(sorted(UNITS)))
    nodes = [Node("unit", (num(amount), unit))]
    if unit == "m":
        nodes.append(Node("unit", (num(100 * amount), "cm")))
    return nodes


KINDS: dict[str, Strategy] = {
    "integer": integers(),
    "large integer": large_integers(),
    "decimal": decimals(),
    "fraction": fractions(),
    "repeating decimal": repeating_decimals(),
    "angle": angles(),
    "base": numerals(),
    "mixed number": mixed_numbers(),
    "surd": surds(),
    "pi": multiples_of_pi(),
    "scientific": scientific(),
    "percent": percentages(),
    "complex": complex_numbers(),
    "polynomial": polynomials(),
    "two symbols": polynomials_in_two_symbols(),
    "rational function": rational_functions(),
    "function": functions(),
    "list": collections_of("list"),
    "set": collections_of("set"),
    "tuple": collections_of("tuple"),
    "equation": equations(),
    "interval": intervals(),
    "union": unions(),
    "matrix": matrices(),
    "unit": quantities(),
    "money": money(),
    "ratio": ratios(),
    "residue": residues(),
    "words": st.sampled_from(WORDS).map(lambda word: [Node("words", (word, WORDS))]),
    "choice": st.sampled_from("ABCDE").map(lambda letter: [Node("choice", (letter, "ABCDE"))]),
}
SINGLE = [kind for kind in KINDS if kind not in {*COLLECTIONS, "large integer", "percent", "money"}]
NO_PLAIN = {
    "repeating decimal",
    "angle",
    "base",
    "list",
    "set",
    "tuple",
    "interval",
    "union",
    "matrix",
    "unit",
    "money",
    "ratio",
    "residue",
    "words",
    "choice",
    "percent",
    "equation",
}


# --- Pairs ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pair:
    """A gold and an answer, with a name for what was changed."""

    gold: str
    answer: str
    change: str


def as_gold(node: Node) -> str:
    """The plainest spelling of a value."""
    return finish(Speller(lambda texts: texts[0], lambda length: list(range(length))).spell(node))


def respelled(draw: Draw, kind: str, node: Node, *, wrapped: bool = True) -> tuple[str, str]:
    """Return (spelling, its name): each part, the notation and what is around the answer are drawn."""
    rng = draw(st.randoms(use_true_random=True))  # seeded by hypothesis; drawing each part would repeat choices
    plain = kind not in NO_PLAIN and rng.random() < 0.2
    shuffled = rng.random() < 0.5
    speller = Speller(
        rng.choice, lambda length: rng.sample(range(length), length) if shuffled else list(range(length)), plain
    )
    text = speller.spell(node)
    names = ["as written", "no spaces", "wide spaces"] if plain or kind in {"words", "choice"} else list(NOTATIONS)
    notation = rng.choice(names)
    wrapper = rng.choice(list(WRAPPERS)) if wrapped else "nothing"
    if "*" in text and wrapper == "asterisks":
        wrapper = "nothing"
    name = f"{'plain text' if plain else notation}, {wrapper}"
    return WRAPPERS[wrapper].replace("@", finish(NOTATIONS[notation](text))), name


@st.composite
def equal_pairs(draw: Draw, kind: str) -> Pair:
    nodes = draw(KINDS[kind])
    gold = as_gold(nodes[0])
    if kind == "large integer":
        separator = draw(st.sampled_from([",", "{,}", ",\\!", "\\,", "\\;", " ", "_"]))
        answer = f"{abs(int(gold)):,}".replace(",", separator)
        return Pair(gold, ("-" if gold.startswith("-") else "") + answer, f"separator {separator!r}")
    other = draw(st.sampled_from(nodes))
    answer, name = respelled(draw, kind, other)
    if kind in SINGLE and draw(st.integers(0, 7)) == 0 and "=" not in answer:
        letter = next(letter for letter in "xSvm" if letter not in gold)
        return Pair(gold, f"{letter} = {as_gold(other)}", "name = value")
    return Pair(gold, answer, name)


@st.composite
def changed_pairs(draw: Draw, kind: str) -> Pair:
    nodes = draw(KINDS[kind])
    by_name: dict[str, list[Node]] = {}
    for name, node in changes(nodes[0]):
        by_name.setdefault(name, []).append(node)
    name = draw(st.sampled_from(sorted(by_name)))
    node = draw(st.sampled_from(by_name[name]))
    assume(not same(node, nodes[0]))
    spelling, notation = respelled(draw, kind, node) if draw(st.booleans()) else (as_gold(node), "as gold")
    return Pair(as_gold(nodes[0]), spelling, f"{name}; {notation}")


SPACES = (" ", "  ", "~", "\\,", "\\;", "\\ ", "\\quad ")


@st.composite
def split_pairs(draw: Draw, kind: str) -> Pair:
    """A gold, and the gold with white space inside a number, but not between thousands."""
    gold = as_gold(draw(KINDS[kind].flatmap(st.sampled_from)))
    places = [
        number.start() + place
        for number in re.finditer(r"\d{2,}", gold)
        for place in range(1, len(number[0]))
        if not (place <= 3 and len(number[0]) - place == 3)
    ]
    assume(places)
    place, space = draw(st.sampled_from(places)), draw(st.sampled_from(SPACES))
    return Pair(gold, gold[:place] + space + gold[place:], f"white space {space!r}")


@st.composite
def joined_pairs(draw: Draw) -> Pair:
    """A value with two numbers side by side, and the text without the space, or with nothing but the space."""
    (mixed, *_) = draw(mixed_numbers())
    mixed = mixed.parts[0] if mixed.kind == "negate" else mixed
    whole, over, under = (int(part.parts[0]) for part in mixed.parts)
    improper = frac(int(f"{whole}{over}"), under)
    assume(not same(mixed, improper))
    texts = [f"{whole} {over}/{under}", f"{whole}\\frac{{{over}}}{{{under}}}", f"{whole}~\\frac{{{over}}}{{{under}}}"]
    joined = [f"{whole}{over}/{under}", f"\\frac{{{whole}{over}}}{{{under}}}", as_gold(improper)]
    apart, together = draw(st.sampled_from(texts)), draw(st.sampled_from(joined))
    if draw(st.booleans()):
        swapped = draw(st.booleans())
        return Pair(together if swapped else apart, apart if swapped else together, "mixed number")
    number, other = draw(st.integers(2, 99)), draw(st.integers(2, 99))
    gold = draw(st.sampled_from([str(number * other), str(number + other), f"{number}, {other}", f"{number}.{other}"]))
    return Pair(gold, f"{number}{draw(st.sampled_from(SPACES))}{other}", "side by side")


@st.composite
def swappable_pairs(draw: Draw, kind: str) -> Pair:
    """Two values that are equal, nearly equal or written alike, without anything around them."""
    nodes = draw(KINDS[kind])
    other = draw(st.sampled_from(nodes))
    if draw(st.booleans()):
        other = draw(st.sampled_from([node for _, node in changes(other)]))
    answer, name = respelled(draw, kind, other, wrapped=False)
    return Pair(as_gold(nodes[0]), answer, name)


def drawn(strategy: Strategy, count: int) -> list[Any]:
    """Return distinct values that hypothesis draws, the same in each run: to be graded in one call."""
    found: dict[Any, None] = {}

    @settings(
        max_examples=count,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def collect(value: Any) -> None:
        found[value] = None

    collect()
    return list(found)


@pytest.fixture(scope="module")
def grader() -> Iterator[ClosableGrader]:
    with build_grader("math", workers=1, deadline=10) as built:
        yield built


def verdicts(grader: ClosableGrader, pairs: list[tuple[str, str]]) -> list[str]:
    problems = [Problem(str(number), "?", (gold,)) for number, (gold, _) in enumerate(pairs)]
    return [grade.verdict for grade in grader.grade(problems, [f"So \\boxed{{{answer}}}." for _, answer in pairs])]


def unlike(grader: ClosableGrader, pairs: list[Pair], wanted: str) -> list[tuple[str, str, str, str]]:
    """Return (gold, answer, change, verdict) of each pair with another verdict."""
    found = verdicts(grader, [(pair.gold, pair.answer) for pair in pairs])
    return [
        (pair.gold, pair.answer, pair.change, verdict)
        for pair, verdict in zip(pairs, found, strict=True)
        if verdict != wanted
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_another_spelling_stays_correct(grader: ClosableGrader, kind: str) -> None:
    assert unlike(grader, drawn(equal_pairs(kind), SPELLINGS), "correct") == []


@pytest.mark.parametrize("kind", KINDS)
def test_a_changed_value_is_wrong(grader: ClosableGrader, kind: str) -> None:
    assert unlike(grader, drawn(changed_pairs(kind), CHANGES), "wrong") == []


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in {"words", "choice"}])
def test_white_space_inside_a_number_is_significant(grader: ClosableGrader, kind: str) -> None:
    assert unlike(grader, drawn(split_pairs(kind), SPLITS), "wrong") == []


def test_numbers_side_by_side_are_no_product_and_no_longer_number(grader: ClosableGrader) -> None:
    assert unlike(grader, drawn(joined_pairs(), CHANGES), "wrong") == []


@pytest.mark.parametrize("kind", SINGLE)
def test_swapping_gold_and_answer_keeps_the_verdict(grader: ClosableGrader, kind: str) -> None:
    pairs = drawn(swappable_pairs(kind), SWAPS)
    forth = verdicts(grader, [(pair.gold, pair.answer) for pair in pairs])
    back = verdicts(grader, [(pair.answer, pair.gold) for pair in pairs])
    differ = [(pair, one, other) for pair, one, other in zip(pairs, forth, back, strict=True) if one != other]
    assert differ == []
    assert {"correct", "wrong"} <= set(forth)


def test_changes_are_changes_and_spellings_are_not() -> None:
    """The judge of this file itself: equal trees have one key, changed trees another."""
    for strategy in KINDS.values():
        for nodes in drawn(strategy.map(tuple), 20):
            assert all(same(node, nodes[0]) for node in nodes), nodes
    assert not same(frac(1, 2), frac(1, 3))
    assert not same(symbol("x"), symbol("X"))
    assert same(root(12), mul(num(2), root(3)))
