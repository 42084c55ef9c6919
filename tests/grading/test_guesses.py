"""Guesses: alternatives and copies of the problem."""

import pytest

from attnrl.grading.guesses import offers_alternatives, repeats_problem


@pytest.mark.parametrize(
    ("answer", "gold", "offers"),
    [
        ("5", "5", False),
        ("5, 6", "5", True),
        ("5 or 6", "5", True),
        ("5 \\text{ or } 6", "5", True),
        ("5;6", "5", True),
        ("\\pm 5", "5", True),
        ("1,000", "1000", False),
        ("1{,}000", "1000", False),
        ("32,\\!348", "32348", False),
        ("f(x, y)", "z", False),
        ("(1, 2)", "3", False),
        ("5, 6", "6, 5", False),
        ("5, 6", "\\{5, 6\\}", False),
        ("5, 6", "$(5, 6)$.", False),
        ("5, -5", "\\pm 5", False),
        ("\\text{orange}", "5", False),
        ("\\text{Anderson}", "5", False),
    ],
)
def test_alternatives(answer: str, gold: str, offers: bool) -> None:
    assert offers_alternatives(answer, [gold]) == offers


@pytest.mark.parametrize(
    ("answer", "problem", "repeats"),
    [
        ("2+3", "What is $2 + 3$?", True),
        ("$2+3$", "What is \\(2+3\\)?", True),
        ("x=2+3", "What is $2+3$?", True),
        ("2+3", "What is $12+3$?", False),
        ("2+3", "What is $2+35$?", False),
        ("5", "Is it 5?", False),
        ("\\frac{1}{3}", "Is it $\\frac{1}{3}$ or $\\frac{1}{2}$?", False),
        ("\\frac{3}{6}", "Simplify $\\dfrac{3}{6}$.", True),
        ("6/2", "What is 6/2?", True),
        ("\\text{Alice}", "Alice or Bob?", False),
        ("x=5", "Is it $x=5$?", False),
        ("x^2=4", "Solve $x^2=4$.", True),
        ("2+3", "", False),
    ],
)
def test_copies_of_the_problem(answer: str, problem: str, repeats: bool) -> None:
    assert repeats_problem(answer, problem) == repeats
