"""Values of expressions: exact, at several precisions, at points of variables, and within limits."""

import subprocess
import sys
import time
from fractions import Fraction

import pytest
import sympy
from hypothesis import given, settings
from hypothesis import strategies as st

from attnrl.grading.arithmetic.evaluation import ROUNDING_DIGITS, real_float, rounds_to, same_value
from attnrl.grading.arithmetic.exact import exact_value
from attnrl.grading.arithmetic.limits import TooLarge
from attnrl.grading.reading.expressions import Expression, Number, Operation, Symbol, free_symbols

Written = Expression | int | str


def tree(written: Written) -> Expression:
    if isinstance(written, int):
        number = Number(Fraction(abs(written)))
        return number if written >= 0 else Operation("negate", (number,))
    return Symbol(written) if isinstance(written, str) else written


def op(name: str, *operands: Written) -> Operation:
    return Operation(name, tuple(map(tree, operands)))


def add(*terms: Written) -> Operation:
    return op("add", *terms)


def sub(one: Written, other: Written) -> Operation:
    return op("add", one, op("negate", other))


def mul(*factors: Written) -> Operation:
    return op("multiply", *factors)


def div(dividend: Written, divisor: Written) -> Operation:
    return op("divide", dividend, divisor)


def power(base: Written, exponent: Written) -> Operation:
    return op("power", base, exponent)


def sqrt(radicand: Written) -> Operation:
    return op("root", radicand, 2)


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        (div(add(1, mul(2, 3)), -4), Fraction(-7, 4)),
        (sqrt(div(4, 9)), Fraction(2, 3)),
        (op("root", -8, 3), Fraction(-2)),
        (power(-8, div(2, 3)), Fraction(4)),
        (power(2, -2017), Fraction(1, 2**2017)),
        (op("log", 8, 2), Fraction(3)),
        (op("log", 4, 8), Fraction(2, 3)),
        (op("log", 1000), Fraction(3)),
        (op("sin", op("degrees", 30)), Fraction(1, 2)),
        (op("cos", div(mul(2, "pi"), 3)), Fraction(-1, 2)),
        (op("tan", op("degrees", -45)), Fraction(-1)),
        (op("mod", -7, 3), Fraction(2)),
        (op("gcd", 91, 65), Fraction(13)),
        (op("lcm", 4, 6, 10), Fraction(60)),
        (op("binomial", 10, 3), Fraction(120)),
        (op("double_factorial", 7), Fraction(105)),
        (op("sum", power("i", 2), "i", 1, 10), Fraction(385)),
        (op("product", "k", "k", 1, 5), Fraction(120)),
        (op("ellipsis", 1, 2, 3, 100), Fraction(5050)),
        (op("ellipsis", 1, 2, 4, 1024), Fraction(2047)),
        (op("percent", 25), Fraction(1, 4)),
        (op("max", 3, div(7, 2)), Fraction(7, 2)),
        (op("floor", div(-7, 2)), Fraction(-4)),
        (sqrt(2), None),
        (op("sin", 30), None),
        (div(1, 0), None),
        (op("ellipsis", 1, 4, 9, 100), None),
        (add("x", 1), None),
    ],
)
def test_exact_values(expression: Expression, value: Fraction | None) -> None:
    assert exact_value(expression) == value


GOLDEN = div(add(1, sqrt(5)), 2)
TOWER = power(9, power(9, power(9, 9)))
SECONDS = 1.0  # of processor time for one comparison


def apply(*arguments: Written) -> Operation:
    return op("apply", "f", *arguments)


def decimal(text: str) -> Number:
    return Number(Fraction(text), len(text.replace(".", "").lstrip("0")))


@pytest.mark.parametrize(
    ("one", "other", "verdict"),
    [
        (div(17, 2), div(34, 4), True),
        (power(2, -600), power(2, -601), False),
        (power(2, -1009), power(2, -1010), False),
        (sub(1, power(2, -100)), sub(1, power(2, -99)), False),
        (div(1, op("factorial", 2004)), div(1, op("factorial", 2006)), False),
        (mul(sqrt(2), sub(1, power(2, -600))), sqrt(2), False),
        (mul(sqrt(2), add(power(2, 600), 1)), mul(sqrt(2), power(2, 600)), False),
        (sqrt(8), mul(2, sqrt(2)), True),
        (sub(add(sqrt(2), 1), 1), sqrt(2), True),
        (sub(sqrt(2), sqrt(2)), 0, True),
        (sub(sqrt(3), sqrt(2)), 0, False),
        (add(power(op("sin", 1), 2), power(op("cos", 1), 2)), 1, True),
        (sub(add(power(10, 40), "pi"), power(10, 40)), "pi", True),
        (sub(add(power(10, 400), "pi"), power(10, 400)), "pi", True),
        (power("e", mul("i", "pi")), -1, True),
        (power("i", 2), -1, True),
        (sqrt(-4), mul(2, "i"), True),
        (power(GOLDEN, 2), add(GOLDEN, 1), True),
        (power(GOLDEN, 2), add(GOLDEN, 2), False),
        (op("exp", mul("pi", sqrt(163))), add(power(640320, 3), 744), False),
        (op("exp", -5000), 0, False),
        (op("cosh", 1000), op("sinh", 1000), False),
        (op("tanh", 1000), 1, False),
        (op("root", op("negate", "pi"), 3), op("negate", op("root", "pi", 3)), True),
        (op("arccos", div(1, 2)), div("pi", 3), True),
        (op("sin", 30), op("sin", op("degrees", 30)), False),
        (op("log", "e", 10), op("log", "e"), True),
        (op("floor", power(sqrt(2), 2)), 2, True),
        (op("sum", div(1, add(sqrt("k"), sqrt(add("k", 1)))), "k", 1, 99), 9, True),
        ("infinity", "infinity", True),
        ("infinity", op("negate", "infinity"), False),
        ("infinity", 5, False),
        (div(1, 0), div(1, 0), None),
        (op("tan", div("pi", 2)), 0, None),
        (div(1, sub(sqrt(8), mul(2, sqrt(2)))), 1, None),
        (op("plus_minus", 1), 1, None),
        (op("integral", "x", "x", 0, 1), div(1, 2), None),
        (op("sum", div(1, power(2, "k")), "k", 0, "infinity"), 2, None),
    ],
)
def test_constants_compare_by_value(one: Written, other: Written, verdict: bool | None) -> None:
    assert same_value(tree(one), tree(other)) is verdict
    assert same_value(tree(other), tree(one)) is verdict


@pytest.mark.parametrize(
    ("one", "other", "verdict"),
    [
        (power(add("x", "y"), 2), add(power("x", 2), mul(2, "x", "y"), power("y", 2)), True),
        (power(add("x", "y"), 2), add(power("x", 2), mul(3, "x", "y"), power("y", 2)), False),
        (sub(add("x", "y"), "y"), "x", True),
        ("x", "X", False),
        (add("x", power(2, -2017)), "x", False),
        (mul(sqrt(2), add("x", power(2, -2017))), mul(sqrt(2), "x"), False),
        (op("abs", "x"), "x", False),
        (sqrt(power("x", 2)), "x", False),
        (sqrt(power("x", 2)), op("abs", "x"), True),
        (op("abs", mul("a", "b")), mul("a", "b"), False),
        (op("abs", mul("a", "b")), mul(op("abs", "a"), op("abs", "b")), True),
        (sqrt(mul("a", "b")), mul(sqrt("a"), sqrt("b")), True),
        (mul(sqrt(sub("x", 7)), sqrt(sub("x", 8))), sqrt(mul(sub("x", 7), sub("x", 8))), True),
        (op("ln", power("x", 2)), mul(2, op("ln", "x")), True),
        (power(power("x", 2), div(1, 3)), power("x", div(2, 3)), True),
        (op("sin", mul(2, "x")), mul(2, op("sin", "x"), op("cos", "x")), True),
        (op("sin", mul(2, "x")), mul(2, op("sin", "x"), op("sin", "x")), False),
        (op("exp", mul("i", "x")), add(op("cos", "x"), mul("i", op("sin", "x"))), True),
        (op("conjugate", "z"), "z", False),
        (mul("z", op("conjugate", "z")), power(op("abs", "z"), 2), True),
        (op("floor", div(add("n", 1), 2)), op("ceil", div("n", 2)), True),
        (op("floor", "n"), "n", True),
        (op("floor", "x"), "x", False),
        (op("cos", mul("n", "pi")), power(-1, "n"), True),
        (power("i", mul(4, "n")), 1, True),
        (div(op("factorial", "n"), op("factorial", sub("n", 1))), "n", True),
        (mul(op("factorial", "n"), op("abs", "x")), mul(op("factorial", "n"), "x"), False),
        (op("binomial", "n", 2), div(mul("n", sub("n", 1)), 2), True),
        (op("binomial", "n", "k"), op("binomial", "n", sub("n", "k")), True),
        (op("sum", "k", "k", 1, "n"), div(mul("n", add("n", 1)), 2), True),
        (op("sum", "i", "i", 1, "n"), div(mul("n", sub("n", 1)), 2), False),
        (op("ellipsis", 1, 2, 3, "n"), div(mul("n", add("n", 1)), 2), True),
        (op("gcd", "n", add("n", 1)), 1, True),
        (op("mod", power("n", 2), 2), op("mod", "n", 2), True),
        (apply(add("a", "b")), apply(add("b", "a")), True),
        (apply("x"), apply("y"), False),
        (apply("x"), apply(mul(2, "x")), False),
        (apply(power(sqrt("x"), 2)), apply("x"), True),
        (div("x", 0), "x", None),
    ],
)
def test_functions_compare_at_points(one: Written, other: Written, verdict: bool | None) -> None:
    assert same_value(tree(one), tree(other)) is verdict
    assert same_value(tree(other), tree(one)) is verdict


def nested(name: str, depth: int) -> Expression:
    expression = tree("x")
    for _ in range(depth):
        expression = op(name, expression)
    return expression


@pytest.mark.parametrize(
    "expression",
    [
        TOWER,
        power("x", TOWER),
        op("sin", TOWER),
        power(div(1, 3), 200_000),
        op("factorial", 10_001),
        op("factorial", op("factorial", 100)),
        op("binomial", 10**6, 5 * 10**5),
        op("sum", "k", "k", 1, 20_001),
        op("sum", op("factorial", 10_000), "k", 1, 20_000),
        op("sum", op("sum", "k", "k", 1, 2_000), "j", 1, 2_000),
        op("sum", op("sin", "k"), "k", 1, 20_000),
        op("product", op("factorial", "k"), "k", 1, 10_000),
        op("exp", op("exp", op("exp", 100))),
        op("sin", power(10, 50_000)),
        power("pi", power(10, 8)),
        op("root", 10**90_000 + 1, 3),
        Number(Fraction(10**100_000)),
        nested("negate", 100_000),
        add(*(op("sin", mul(k, "x")) for k in range(1, 2_000))),
    ],
)
def test_hostile_expressions_are_found_in_time(expression: Expression) -> None:
    start = time.process_time()
    with pytest.raises(TooLarge):
        same_value(expression, tree(1))
    assert real_float(expression) is None
    assert not rounds_to(decimal("1.234567"), expression)
    assert time.process_time() - start < 3 * SECONDS


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        (sqrt(2), 2**0.5),
        (div(-7, 4), -1.75),
        (sub(add(power(10, 400), "pi"), power(10, 400)), 3.141592653589793),
        (power(10, 400), float("inf")),
        (op("negate", "infinity"), float("-inf")),
        (power("e", mul("i", "pi")), -1.0),
        ("i", None),
        ("x", None),
        (div(1, 0), None),
    ],
)
def test_real_values_for_sorting(expression: Written, value: float | None) -> None:
    assert real_float(tree(expression)) == value


@pytest.mark.parametrize(
    ("written", "expression", "right"),
    [
        (decimal("3.14159"), "pi", True),
        (decimal("3.14160"), "pi", False),
        (decimal("3.1416"), "pi", False),
        (decimal("0.333333"), div(1, 3), True),
        (decimal("0.333334"), div(1, 3), False),
        (decimal("0.666667"), div(2, 3), True),
        (decimal("0.666666"), div(2, 3), False),
        (op("negate", decimal("1.41421")), op("negate", sqrt(2)), True),
        (op("negate", decimal("1.41421")), sqrt(2), False),
        (mul(decimal("3.14159"), power(10, -5)), div("pi", power(10, 5)), True),
        (mul(decimal("3.14159"), power(10, 5)), mul("pi", power(10, 5)), True),
        (mul(decimal("3.14159"), power(10, 5)), mul("pi", power(10, 4)), False),
        (decimal("3.14159"), decimal("3.141592"), False),
        (decimal("3.14159"), "x", False),
        (decimal("3.14159"), div(1, 0), False),
        (tree(3141593), mul("pi", power(10, 6)), False),
    ],
)
def test_decimals_stand_for_the_rounded_value(written: Expression, expression: Written, right: bool) -> None:
    assert rounds_to(written, tree(expression)) is right


@given(st.integers(1, 10**9), st.integers(1, 10**9), st.integers(ROUNDING_DIGITS, 15))
def test_each_decimal_but_the_rounded_one_is_refused(above: int, below: int, places: int) -> None:
    nearest = round(Fraction(above, below) * 10**places)
    for numerator in (nearest - 1, nearest, nearest + 1):
        written = Number(Fraction(numerator, 10**places), len(str(numerator)))
        if len(str(numerator)) < ROUNDING_DIGITS or numerator <= 0:
            continue
        close = abs(Fraction(above, below) - written.value) <= Fraction(1, 2 * 10**places)
        assert rounds_to(written, div(above, below)) is close


def rational_trees() -> st.SearchStrategy[Expression]:
    leaves = st.integers(-12, 12).map(tree)
    return st.recursive(
        leaves,
        lambda inner: st.one_of(
            st.builds(add, inner, inner),
            st.builds(mul, inner, inner),
            st.builds(div, inner, inner),
            st.builds(lambda base, exponent: power(base, exponent), inner, st.integers(-3, 4)),
            st.builds(lambda x: op("abs", x), inner),
            st.builds(lambda x: op("floor", x), inner),
            st.builds(lambda x: op("ceil", x), inner),
            st.builds(lambda x, y: op("max", x, y), inner, inner),
        ),
        max_leaves=8,
    )


def algebraic_trees(symbols: str) -> st.SearchStrategy[Expression]:
    leaves = st.one_of(st.integers(1, 9).map(tree), st.sampled_from([*symbols]).map(tree))
    return st.recursive(
        leaves,
        lambda inner: st.one_of(
            st.builds(add, inner, inner),
            st.builds(sub, inner, inner),
            st.builds(mul, inner, inner),
            st.builds(sqrt, inner),
            st.builds(lambda x: op("sin", x), inner),
            st.builds(lambda x: power(x, 2), inner),
        ),
        max_leaves=6,
    )


SYMPY = {
    "add": sympy.Add,
    "multiply": sympy.Mul,
    "negate": lambda x: -x,
    "divide": lambda x, y: x / y,
    "power": sympy.Pow,
    "root": lambda x, n: sympy.real_root(x, n) if n != 2 else sympy.sqrt(x),
    "abs": sympy.Abs,
    "floor": sympy.floor,
    "ceil": sympy.ceiling,
    "max": sympy.Max,
    "sin": sympy.sin,
}


def to_sympy(expression: Expression) -> sympy.Expr:
    if isinstance(expression, Number):
        return sympy.Rational(expression.value.numerator, expression.value.denominator)
    if isinstance(expression, Symbol):
        return sympy.Symbol(expression.name, positive=True)
    operands = [to_sympy(operand) for operand in expression.operands]
    if any(operand.has(sympy.zoo, sympy.nan) for operand in operands):
        return sympy.nan
    return SYMPY[expression.name](*operands)


@settings(max_examples=150, deadline=None)
@given(rational_trees())
def test_exact_values_are_those_of_sympy(expression: Expression) -> None:
    expected = to_sympy(expression)
    value = exact_value(expression)
    if value is None:
        assert expected.has(sympy.zoo, sympy.nan)
    else:
        assert sympy.Rational(value.numerator, value.denominator) == expected


@settings(max_examples=60, deadline=None)
@given(algebraic_trees("xy"), algebraic_trees("xy"))
def test_verdicts_agree_with_values_of_sympy(one: Expression, other: Expression) -> None:
    verdict = same_value(one, other)
    if verdict is None:
        return
    names = sorted(free_symbols(one) | free_symbols(other))
    at = {sympy.Symbol(name, positive=True): sympy.Rational(7, 5) + place for place, name in enumerate(names)}
    difference = (to_sympy(one) - to_sympy(other)).subs(at).evalf(40, maxn=400, chop=True)
    if verdict:
        assert abs(complex(difference)) < 1e-30 or not to_sympy(one).subs(at).is_real
    else:
        assert to_sympy(one) != to_sympy(other)


@settings(max_examples=25, deadline=None)
@given(algebraic_trees("xyz"), algebraic_trees("xyz"), algebraic_trees("xyz"))
def test_algebraic_laws(a: Expression, b: Expression, c: Expression) -> None:
    for one, other in (
        (add(a, b), add(b, a)),
        (mul(a, add(b, c)), add(mul(a, b), mul(a, c))),
        (sub(add(a, b), b), a),
        (mul(sub(a, b), add(a, b)), sub(power(a, 2), power(b, 2))),
    ):
        assert same_value(one, other) in (True, None)
        assert same_value(one, other) == same_value(other, one)
        assert same_value(one, add(other, power(2, -300))) in (False, None)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 50), min_size=2, max_size=5), st.data())
def test_a_changed_literal_turns_the_verdict(literals: list[int], data: st.DataObject) -> None:
    def build(numbers: list[int]) -> Expression:
        return add(*(mul(number, power("x", place), sqrt(place + 2)) for place, number in enumerate(numbers)))

    place = data.draw(st.integers(0, len(literals) - 1))
    changed = [*literals]
    changed[place] += data.draw(st.sampled_from([-1, 1, 10]))
    assert same_value(build(literals), build([*literals])) is True
    assert same_value(build(literals), build(changed)) is False


@settings(max_examples=50, deadline=None)
@given(st.integers(2, 4000), st.integers(1, 3))
def test_small_differences_are_seen(exponent: int, radicand: int) -> None:
    value = sqrt(radicand)
    assert same_value(value, add(value, power(2, -exponent))) is False
    assert same_value(value, sub(add(value, power(2, -exponent)), power(2, -exponent))) is True


def test_an_undefined_side_counts_before_a_large_side() -> None:
    large = op("sinh", op("exp", op("exp", mul(9, "x"))))
    undefined = op("ln", op("negate", op("abs", "x")))
    assert same_value(undefined, large) is False
    assert same_value(large, undefined) is False


def test_verdicts_do_not_depend_on_the_process() -> None:
    code = """
from attnrl.grading.arithmetic.points import integer_points, random_value, real_points
print(random_value("x"), list(real_points(["x", "y"])), list(integer_points(["k", "n"], frozenset({"n"}))))
"""
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(outputs) == 1
    assert outputs != {""}
