"""Normal forms of expressions: what order, brackets and neutral elements do not change."""

import time
from fractions import Fraction

import pytest
from expression_trees import tree
from hypothesis import given, settings
from hypothesis import strategies as st

from attnrl.grading.guards.normal_form import normal_form
from attnrl.grading.reading.expressions import Expression, Number, Operation, Symbol, parts_of

EQUAL = [
    ("2**10 - 24", "2**10 - 20 - 4"),
    ("2**10 - 24", "-24 + 2**10"),
    ("2**10 - 24", "(2**10 - 24) / 1"),
    ("2**10 - 24", "-(24 - 2**10)"),
    ("2**10 - 24", "2**10.0 - 24 * 1 + 0"),
    ("2**10 - 24", "(2**10 - 24)**1"),
    ("2**10 - 24", "max(2**10 - 24, 0)"),
    ("2**10 - 24", "max(min(2**10 - 24, 5000 * 2), 0)"),
    ("2**10 - 24", "gcd(2**10 - 24, 0)"),
    ("2**10 - 24", "lcm(2**10 - 24)"),
    ("2**10 - 24", "abs(2**10 - 24)"),
    ("2**10 - 24", "abs(24 - 2**10)"),
    ("2**10 - 24", "floor(ceil(2**10 - 24))"),
    ("2**10 - 24", "(2**10 - 24)**2 / (2**10 - 24)"),
    ("2**10 - 24", "2 * (2**10 - 24) / 2"),
    ("2**10 - 24", "2**5 * 2**5 - 24"),
    ("13 * 17 - 4", "217"),
    ("3 / 6", "1 / 2"),
    ("0.5 * x", "x / 2"),
    ("x**2 - 2*x - 3*x + 6", "x**2 - 5*x + 6"),
    ("x * x", "x**2"),
    ("(x + 1) * (1 + x)**2", "(x + 1)**3"),
    ("(x - 2) * (x - 3)", "(2 - x) * (3 - x)"),
    ("sin(6*x) + sin(4*x)", "sin(6*x) - (-sin(2*2*x))"),
    ("1 / (2*x)", "x**(-1) / 2"),
    ("root(50, 2)", "50**(1/2)"),
    ("exp(2*x)", "(e**x)**2"),
    ("log(x, 10)", "log(x)"),
    ("log(x, e)", "ln(x)"),
    ("percent(50)", "1 / 2"),
    ("degrees(30) + degrees(15)", "degrees(45)"),
    ("sin(degrees(30))", "sin(pi / 6)"),
    ("x + 1", "ln(e**(x + 1))"),
    ("2*x + 2*y", "log(10**(2*x + 2*y), 10)"),
    ("2 * x", "ln(exp(2*x))"),
    ("2**10 - 24", "e**ln(2**10 - 24)"),
    ("x", "2**log(x, 2)"),
    ("sum(k**2, k, 1, 10)", "sum(n*n, n, 1, 11 - 1)"),
    ("sum(product(j + k, j, 1, k), k, 1, 10)", "sum(product(a + b, b, 1, a), a, 1, 10)"),
    ("sum(2*k - 1, k, 1, 10)", "100"),
    ("ellipsis(1, 2, 3, 100)", "100 * 101 / 2"),
    ("ellipsis(1, 100)", "5050"),
    ("ellipsis(100, 98, 2)", "51 * 50"),
]
DIFFERENT = [
    ("2**10 - 24", "1024 - 24"),
    ("2**10 - 24", "24 - 2**10"),
    ("2**10 - 24", "2**11 - 24"),
    ("root(12, 2)", "2 * root(3, 2)"),
    ("factorial(5)", "120"),
    ("gcd(91, 65)", "13"),
    ("x", "y"),
    ("a - b", "b - a"),
    ("a / b", "b / a"),
    ("a**b", "b**a"),
    ("(a + b)**2", "a**2 + b**2"),
    ("2 * (x + 1)", "2*x + 2"),
    ("sum(k, k, 1, n)", "sum(n, k, 1, n)"),
    ("ellipsis(1, 2, 4, 100)", "5050"),
    ("ellipsis(1, 3, 100)", "2500"),
    ("degrees(30)", "30"),
    ("log(x)", "ln(x)"),
    ("x", "e**log(x, 2)"),
    ("x", "ln(2**x)"),
    ("ln(1)", "0"),
    ("x / 0", "0"),
    ("abs(x)", "x"),
    ("floor(7 / 2)", "7 / 2"),
    ("max(x, y)", "x"),
]


@pytest.mark.parametrize(("first", "second"), EQUAL)
def test_rearranged_and_wrapped_expressions_have_one_form(first: str, second: str) -> None:
    distribute = second == "2 * (2**10 - 24) / 2"
    assert normal_form(tree(first), distribute=distribute) == normal_form(tree(second), distribute=distribute)


@pytest.mark.parametrize(("first", "second"), DIFFERENT)
def test_work_changes_the_form(first: str, second: str) -> None:
    assert normal_form(tree(first)) != normal_form(tree(second))


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("2 * (x + 1)", "2*x + 2"),
        ("(root(50, 2) + root(8, 2)) / root(2, 2)", "root(50, 2)/root(2, 2) + root(8, 2)/root(2, 2)"),
        ("x * (y * (a + b) + c) / 2", "x*y*a/2 + x*y*b/2 + x*c/2"),
    ],
)
def test_a_sum_times_a_monomial_is_multiplied_out_on_request(first: str, second: str) -> None:
    assert normal_form(tree(first), distribute=True) == normal_form(tree(second), distribute=True)
    assert normal_form(tree(first)) != normal_form(tree(second))


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("(3 + 2*i) * (3 - 2*i)", "3 * (3 - 2*i) + 2*i * (3 - 2*i)"),
        ("(1 + root(2, 2))**2", "1 + 2*root(2, 2) + root(2, 2)**2"),
        ("(2**5 + 1) * (2**5 - 1)", "2**10 - 1"),
    ],
)
def test_sums_without_variables_are_multiplied_out_on_request(first: str, second: str) -> None:
    assert normal_form(tree(first), distribute=True) == normal_form(tree(second), distribute=True)
    assert normal_form(tree(first)) != normal_form(tree(second))


def test_two_sums_with_variables_are_never_multiplied_out() -> None:
    pair = tree("(x - 2) * (x - 3)"), tree("x**2 - 5*x + 6")
    assert len({normal_form(expression, distribute=True) for expression in pair}) == 2


@pytest.mark.parametrize(
    ("first", "second", "equal"),
    [
        ("a + b", "b + (a)", True),
        ("2 * (x + 1) - y", "-y + (1 + x) * 2", True),
        ("x**2 - 1 + 0", "-1 + 1 * x**2", True),
        ("x * x", "x**2", False),
        ("2**10 - 20 - 4", "2**10 - 24", False),
        ("x + x", "2 * x", False),
        ("3 / 6", "1 / 2", False),
        ("max(a, 0)", "a", False),
    ],
)
def test_without_folding_terms_and_factors_stay_as_written(first: str, second: str, equal: bool) -> None:
    assert (normal_form(tree(first), fold=False) == normal_form(tree(second), fold=False)) == equal


# ---------------------------------------------------------------------------------------------------------------------
# Properties
# ---------------------------------------------------------------------------------------------------------------------

ZERO, ONE = Number(Fraction(0)), Number(Fraction(1))
LEAVES = st.one_of(
    st.integers(2, 30).map(lambda n: Number(Fraction(n))),
    st.sampled_from("xyz").map(Symbol),
)


def _operations(children: st.SearchStrategy[Expression]) -> st.SearchStrategy[Expression]:
    return st.one_of(
        *[
            st.lists(children, min_size=2, max_size=4).map(lambda parts, n=name: Operation(n, tuple(parts)))
            for name in ("add", "multiply", "max")
        ],
        *[
            st.tuples(*[children] * count).map(lambda parts, n=name: Operation(n, parts))
            for name, count in (("negate", 1), ("divide", 2), ("sin", 1), ("abs", 1))
        ],
        st.tuples(children, st.integers(2, 4)).map(
            lambda pair: Operation("power", (pair[0], Number(Fraction(pair[1]))))
        ),
        children.map(lambda part: Operation("root", (part, Number(Fraction(2))))),
    )


TREES = st.recursive(LEAVES, _operations, max_leaves=12)


@st.composite
def rearranged(draw: st.DrawFn, expression: Expression) -> Expression:
    """Return an expression with operands shuffled and put into brackets, and with neutral elements put in."""
    if isinstance(expression, Operation):
        operands = [draw(rearranged(operand)) for operand in expression.operands]
        if expression.name in ("add", "multiply", "max"):
            operands = draw(st.permutations(operands))
        if expression.name in ("add", "multiply") and len(operands) > 2 and draw(st.booleans()):
            operands = [Operation(expression.name, tuple(operands[:2])), *operands[2:]]
        expression = Operation(expression.name, tuple(operands))
    wrap = draw(st.sampled_from(["", "", "", "+0", "*1", "/1", "^1", "--", "max"]))
    match wrap:
        case "+0":
            return Operation("add", (expression, ZERO))
        case "*1":
            return Operation("multiply", (ONE, expression))
        case "/1":
            return Operation("divide", (expression, ONE))
        case "^1":
            return Operation("power", (expression, ONE))
        case "--":
            return Operation("negate", (Operation("negate", (expression,)),))
        case "max":
            return Operation("max", (expression,))
    return expression


@settings(deadline=None, derandomize=True)  # the first value of a process imports mpmath
@given(st.data(), TREES, st.sampled_from([(False, False), (True, False), (True, True)]))
def test_order_brackets_and_neutral_elements_keep_the_form(
    data: st.DataObject, expression: Expression, level: tuple[bool, bool]
) -> None:
    other = data.draw(rearranged(expression))
    fold, distribute = level
    form = normal_form(expression, fold=fold, distribute=distribute)
    assert normal_form(other, fold=fold, distribute=distribute) == form


def _with_number(expression: Expression, place: int, change: int) -> Expression:
    """Return an expression with the literal number at a place, in the order of parents, changed."""
    numbers = [part for part in parts_of(expression) if isinstance(part, Number)]
    count = -1

    def rebuilt(part: Expression) -> Expression:
        nonlocal count
        if isinstance(part, Number):
            count += 1
            return Number(part.value + change) if count == place % len(numbers) else part
        if isinstance(part, Operation):
            return Operation(part.name, tuple(rebuilt(operand) for operand in part.operands))
        return part

    return rebuilt(expression)


SUMS_OF_PRODUCTS = st.lists(st.lists(LEAVES, min_size=1, max_size=3), min_size=2, max_size=5).map(
    lambda terms: Operation("add", tuple(Operation("multiply", tuple(factors)) for factors in terms))
)


@settings(deadline=None, derandomize=True)  # the first value of a process imports mpmath
@given(SUMS_OF_PRODUCTS, st.integers(0, 20), st.integers(1, 40))
def test_another_literal_changes_the_form(expression: Expression, place: int, change: int) -> None:
    if any(isinstance(part, Number) for part in parts_of(expression)):
        other = _with_number(expression, place, change)
        for fold in (False, True):
            assert normal_form(other, fold=fold) != normal_form(expression, fold=fold)


# ---------------------------------------------------------------------------------------------------------------------
# Hostile expressions
# ---------------------------------------------------------------------------------------------------------------------


def _nested(depth: int, width: int) -> Expression:
    """Return nested sines, each times a sum of symbols: expanded naively, the form grows exponentially."""
    expression: Expression = Symbol("x")
    for level in range(depth):
        terms = tuple(Symbol(f"a{level}_{number}") for number in range(width))
        expression = Operation("multiply", (Operation("sin", (expression,)), Operation("add", terms)))
    return expression


@pytest.mark.parametrize(
    "expression",
    [
        tree("9**(9**(9**(9**99)))"),
        tree("2**1e300 * 2**1e300 + 1"),
        tree("((x**1e300)**1e300)**1e300"),
        tree("*".join(["1e300"] * 200)),
        tree("+".join(f"1/{n}" for n in range(1001, 1400))),
        tree("1e300**1e300**0.5"),
        Number(Fraction(10**9999)),
        Number(Fraction(1, 10**9999)),
        tree("factorial(1e300)"),
        tree("ellipsis(1, 1e300)"),
        tree("sum(k, k, 1, 1e300)"),
        _nested(40, 8),
        _nested(4, 100),
        tree("(" * 30 + "x" + " + y) * z" * 30),
        tree("*".join(f"(pi + {n} * e)" for n in range(2, 200))),
        tree("(" * 30 + "pi" + " + e) * (1 + pi)" * 30),
    ],
    ids=range(16),
)
def test_hostile_expressions_are_quick(expression: Expression) -> None:
    for distribute in (False, True):
        start = time.process_time()
        assert normal_form(expression, distribute=distribute) == normal_form(expression, distribute=distribute)
        assert time.process_time() - start < 2
