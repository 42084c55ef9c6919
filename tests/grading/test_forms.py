"""Answers of the right value that miss the form that a problem asks for."""

import pytest
from expression_trees import tree

from attnrl.grading.guards.forms import misses_form

FACTOR, EXPAND, SIMPLIFY = "Factor completely: $x^4-16$.", "Expand the product.", "Simplify the quotient."
LOWEST, MIXED = "Write $\\frac{84}{126}$ in lowest terms.", "Write $\\frac74$ as a mixed number."
SCIENTIFIC, PERCENT = "Write $0.00045$ in scientific notation.", "Express $\\frac25$ as a percent."
QUARTIC = "(x**2 + 4) * (x - 2) * (x + 2)"


@pytest.mark.parametrize(
    ("problem", "gold", "answer", "misses"),
    [
        (FACTOR, QUARTIC, "(x**2 - 4) * (x**2 + 4)", True),
        (FACTOR, QUARTIC, "x**4 - 16", True),
        (FACTOR, QUARTIC, "x**2 * (x**2 - 4) + 4 * (x**2 - 4)", True),
        (FACTOR, QUARTIC, "-(2 - x) * (x + 2) * (x**2 + 4)", False),
        (FACTOR, "(x + 1)**3", "(x + 1) * (x + 1)**2", False),
        (FACTOR, "(x + 1)**3", "(x + 1) * (x**2 + 2*x + 1)", True),
        (FACTOR, "9 * (2 - x) * (2 + x)", "(6 - 3*x) * (6 + 3*x)", False),
        (FACTOR, "x**2 + 1", "x**2 + 1", False),
        ("Find the prime factorization of 360.", "2**3 * 3**2 * 5", "8 * 9 * 5", True),
        ("Find the prime factorization of 360.", "2**3 * 3**2 * 5", "2 * 2 * 2 * 9 * 5", True),
        ("Find the prime factorization of 360.", "2**3 * 3**2 * 5", "2 * 2 * 2 * 3 * 3 * 5", False),
        ("What is the scale factor?", "2 * root(3, 2)", "root(12, 2)", False),
        ("Find the largest factor of $x^2-4$ squared.", "(x - 2) * (x + 2)", "x**2 - 4", False),
        (EXPAND, "4*x**2 - 12*x + 9", "2*x*(2*x - 3) - 3*(2*x - 3)", True),
        (EXPAND, "4*x**2 - 12*x + 9", "(3 - 2*x)**2", True),
        (EXPAND, "4*x**2 - 12*x + 9", "9 - 12*x + 4*x*x", False),
        (EXPAND, "x**2 + a*x + b*x + a*b", "x**2 + (a + b)*x + a*b", False),
        (EXPAND, "x*(a + 1)**2", "x*(a + 1)*(a + 1)", False),
        (SIMPLIFY, "x + 3", "x**2 / (x - 3) - 9 / (x - 3)", True),
        (SIMPLIFY, "3*x**2 + 5*x", "x**2 + 2*x**2 + 5*x", True),
        (EXPAND, "x**2 + 5*x + 6", "x**2 + 2*x + 3*x + 6", True),
        (EXPAND, "x**2 + 5*x + 6", "6 + 5*x + x**2", False),
        (SIMPLIFY, "6*root(2, 2)", "3*root(8, 2)", True),
        (SIMPLIFY, "6*root(2, 2)", "root(2, 2)*6", False),
        (SIMPLIFY, "x + 3", "(x**2 - 9) * (x - 3)**(-1)", True),
        (SIMPLIFY, "x / 2 + 3", "(x + 6) / 2", False),
        (SIMPLIFY, "1 / (x + 1)", "1 - x / (x + 1)", False),
        (SIMPLIFY, "tan(x)", "sin(x) / cos(x)", False),
        (SIMPLIFY, "root(x, 2)", "x / root(x, 2)", False),
        (LOWEST, "2 / 3", "42 / 63", True),
        (LOWEST, "2 / 3", "84 / 126", True),
        (LOWEST, "2 / 3", "-(-2) / 3", False),
        (LOWEST, "0.5", "42 / 84", False),
        (MIXED, "1.75", "7 / 4", True),
        (SCIENTIFIC, "4.5 * 10**(-4)", "45 * 10**(-5)", True),
        (SCIENTIFIC, "4.5 * 10**(-4)", "0.00045", True),
        (SCIENTIFIC, "4.5 * 10**(-4)", "4.50 * 10**(-4)", False),
        (PERCENT, "percent(40)", "2 / 5", True),
        (PERCENT, "percent(40)", "0.4", True),
        (PERCENT, "percent(40)", "2 / 5 * percent(100)", True),
        (PERCENT, "percent(40)", "40", False),
        (PERCENT, "percent(40)", "percent(80 / 2)", False),
        ("Find the chance. Express your answer as a percent.", "percent(40)", "2 / 5", False),
        ("Write $0.375$ as a fraction.", "3 / 8", "0.375", True),
        ("Write $0.375$ as a fraction.", "3 / 8", "375 / 1000", False),
        ("Write $\\frac58$ as a decimal.", "0.625", "5 / 8", True),
        ("Write $\\frac58$ as a decimal.", "5 / 8", "5 / 8", False),
        ("In how many ways can you write $12$ as a sum?", "12", "12", False),
        ("", QUARTIC, "x**4 - 16", False),
    ],
)
def test_answers_that_miss_the_form_asked_for(problem: str, gold: str, answer: str, misses: bool) -> None:
    assert misses_form(tree(answer), [tree(gold)], problem, answer) == misses


def test_a_gold_of_another_form_turns_a_rule_off() -> None:
    assert not misses_form(tree("x**4 - 16"), [tree(QUARTIC), tree("x**4 - 16")], FACTOR, "x^4-16")
    assert not misses_form(tree("x**4 - 16"), [], FACTOR, "x^4-16")


def test_a_number_with_an_exponent_is_no_copy_of_the_decimal() -> None:
    gold = [tree("4.5 * 10**(-4)")]
    assert not misses_form(tree("0.00045"), gold, SCIENTIFIC, "4.5e-4")
    assert misses_form(tree("0.00045"), gold, SCIENTIFIC, "0.00045")
