"""Identities keep the value of an expression, and give all restatements of an expression one tree or form."""

from fractions import Fraction

import pytest
from expression_trees import tree
from hypothesis import given, settings
from hypothesis import strategies as st

from attnrl.grading.arithmetic.evaluation import same_value
from attnrl.grading.guards.identities import restated
from attnrl.grading.guards.normal_form import normal_form
from attnrl.grading.reading.expressions import TRIGONOMETRIC, Number, Operation, parts_of


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("log(8, 2)", "ln(8) / ln(2)"),
        ("log(8)", "log(8, 10)"),
        ("binomial(9, 2)", "binomial(9, 7)"),
        ("binomial(n, 2)", "factorial(n) / (factorial(2) * factorial(n - 2))"),
        ("mod(7, 5)", "7 - 5 * floor(7 / 5)"),
        ("tan(x) * cot(x)", "1"),
        ("sin(degrees(200))", "-cos(7 * pi / 18)"),
        ("sec(degrees(60))", "csc(pi / 6)"),
        ("x - 2**3", "x - 8"),
    ],
)
def test_restatements_have_one_form(first: str, second: str) -> None:
    assert normal_form(restated(tree(first))) == normal_form(restated(tree(second)))


@pytest.mark.parametrize(
    "text", ["2**3", "x + 2**100", "x**3 - 2**x", "sin(x)", "sin(1)", "sin(pi**2)", "factorial(5)"]
)
def test_expressions_without_an_identity_stay_as_they_are(text: str) -> None:
    assert restated(tree(text)) == tree(text)


@settings(deadline=None, derandomize=True)  # the first value of a process imports mpmath
@given(st.sampled_from(TRIGONOMETRIC), st.integers(0, 720), st.sampled_from([7, 11, 13]))
def test_a_literal_angle_is_reduced_to_45_degrees(name: str, numerator: int, denominator: int) -> None:
    """Angles in degrees are no multiples of 45 degrees, so all six functions have a value."""
    angle = Operation(
        "degrees", (Operation("divide", (Number(Fraction(45 * numerator + 1)), Number(Fraction(denominator)))),)
    )
    expression = Operation(name, (angle,))
    reduced = restated(expression)
    assert same_value(expression, reduced)
    angles = [
        part.operands[0] for part in parts_of(reduced) if isinstance(part, Operation) and part.name in ("sin", "cos")
    ]
    factors = [part.value for inner in angles for part in parts_of(inner) if isinstance(part, Number)]
    assert factors
    assert max(factors) <= Fraction(1, 4)


@settings(deadline=None, derandomize=True)
@given(st.integers(2, 500), st.integers(2, 50))
def test_logarithms_binomials_and_remainders_keep_the_value(number: int, other: int) -> None:
    for name in ("log", "mod", "binomial"):
        expression = Operation(name, (Number(Fraction(number)), Number(Fraction(min(number, other)))))
        assert same_value(expression, restated(expression))


@pytest.mark.parametrize("function", ["tan(%s)", "binomial(%s, 2)", "mod(%s, 7)"])
def test_nested_identities_keep_an_expression_small(function: str) -> None:
    text = "x"
    for _ in range(40):
        text = function % text
    assert sum(1 for _ in parts_of(restated(tree(text)))) < 1_000
