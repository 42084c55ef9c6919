"""Copies of expressions of the problem, quotes of the problem, and work left to the grader."""

from collections.abc import Sequence
from fractions import Fraction

import pytest
from expression_trees import tree
from hypothesis import given, settings
from hypothesis import strategies as st

from attnrl.grading.guards.copies import is_copy, leaves_work, quotes_statement
from attnrl.grading.reading.expressions import Number, Operation
from attnrl.grading.reading.formulas import converted_expressions, statement_expressions
from attnrl.grading.reading.values import Listing, Relation, Value, Words

POWER, SERIES = "2**10 - 24", "ellipsis(1, 2, 3, 100)"
QUADRATIC, FACTORED = "x**2 - 5*x + 6", "(x - 2) * (x - 3)"
COPIES = [
    *[
        (POWER, "1000", copy)
        for copy in (
            "2**10 - 24 + 0",
            "(2**10 - 24) / 1",
            "2**10 - 20 - 4",
            "2**10 - 24 * 1",
            "2**10.0 - 24",
            "2**10 + (-24)",
            "-24 + 2**10",
            "max(2**10 - 24, 0)",
            "abs(2**10 - 24)",
            "abs(abs(24 - 2**10))",
            "floor(2**10 - 24)",
            "mod(2**10 - 24, 10**6)",
            "(2 * 2**10 - 48) / 2",
            "root((2**10 - 24)**2, 2)",
            "2**5 * 2**5 - 24",
            "-(-(2**10 - 24))",
        )
    ],
    *[("2 + 3", "5", copy) for copy in ("2 + 3", "3 + 2", "2 + 3.0", "2 + 3 + 0", "1 + 1 + 3")],
    ("13 * 17 - 4", "217", "13*17 - 4"),
    ("13 * 17 - 4", "217", "17*13 - 2*2"),
    (SERIES, "5050", "100 * 101 / 2"),
    ("sum(k, k, 1, 100)", "5050", "50 * 101"),
    ("sum(k**2, k, 1, 10)", "385", "sum(n**2, n, 1, 10)"),
    ("3 / 6", "1 / 2", "3 / 6"),
    ("3 / 6", "0.5", "-(-3 / 6)"),
    ("6 / 2", "3", "6 / 2"),
    ("3 * 10**4", "30000", "10**4 * 3"),
    ("x**3 * x**4", "x**7", "x**4 * x**3"),
    ("2 * (x + 1)", "2*x + 2", "(1 + x) * 2"),
    ("(x + 1)**3", "x**3 + 3*x**2 + 3*x + 1", "(1 + x)**3"),
    ("(x + 1)**3", "x**3 + 3*x**2 + 3*x + 1", "(x + 1) * (x + 1)**2"),
    (QUADRATIC, FACTORED, "x*x - 5*x + 6"),
    (QUADRATIC, FACTORED, "1 * (x**2 - 5*x + 6)"),
    ("x**2 - 2*x - 3*x + 6", FACTORED, QUADRATIC),
    ("sin(6*x) + sin(4*x)", "2 * sin(5*x) * cos(x)", "sin(6*x) - (-sin(4*x))"),
    ("(root(50, 2) + root(8, 2)) / root(2, 2)", "7", "root(50, 2)/root(2, 2) + root(8, 2)/root(2, 2)"),
    ("root(12, 2)", "2 * root(3, 2)", "12**(1/2)"),
    ("(3 + 2*i) * (3 - 2*i)", "13", "3 * (3 - 2*i) + 2*i * (3 - 2*i)"),
    ("2**100", "2", "mod(2**100, 7)"),
    (POWER, "1000", "4 * 2**8 - 24"),
    (POWER, "1000", "(2**11 - 48) / 2"),
    ("2 * 2**7", "256", "2**7 + 2**7"),
    ("log(125, 5)", "3", "ln(125) / ln(5)"),
    ("log(12, 2) - log(3, 2)", "2", "(log(12) - log(3)) / log(2)"),
    ("ln(125) / ln(5)", "3", "log(125, 5)"),
    ("binomial(10, 3)", "120", "binomial(10, 7)"),
    ("binomial(10, 3)", "120", "factorial(10) / (factorial(3) * factorial(7))"),
    ("sin(degrees(75))", "(root(6, 2) + root(2, 2)) / 4", "cos(degrees(15))"),
    ("sin(degrees(75))", "(root(6, 2) + root(2, 2)) / 4", "sin(7 * pi / 12)"),
    ("tan(pi / 12)", "2 - root(3, 2)", "sin(pi / 12) / cos(pi / 12)"),
    ("tan(pi / 12)", "2 - root(3, 2)", "1 / tan(degrees(75))"),
    ("mod(7**100, 5)", "1", "7**100 - 5 * floor(7**100 / 5)"),
    ("percent(15) * 80", "12", "0.15 * 80"),
    ("x**4 - 16", "(x**2 + 4) * (x + 2) * (x - 2)", "(x**2)**2 - 4**2"),
]
WORKED_OUT = [
    (POWER, "1000", "1024 - 24"),
    (POWER, "1000", "1000"),
    (POWER, "1000", "10**3"),
    (POWER, "2**10 - 24", "2**10 - 24"),
    (POWER, "8 * 125", "125 * 8"),
    ("2**3 * 2**4", "128", "2**7"),
    ("(2**5 + 1) * (2**5 - 1)", "1023", "2**10 - 1"),
    ("(3 + 2*i) * (3 - 2*i)", "13", "9 + 4"),
    ("(3 + root(2, 2)) * (3 - root(2, 2))", "7", "9 - 2"),
    ("2 + 3", "5", "5"),
    ("2 + 3", "5", "5.0"),
    ("1/4 + 1/4", "1/2", "1 / 2"),
    ("1/4 + 1/4", "1/2", "0.5"),
    ("1/4 - 3/4", "-1/2", "-1 / 2"),
    ("15 * 2 * 10**3", "30000", "3 * 10**4"),
    ("2 * 1.5 * 10**4", "30000", "3 * 10**4"),
    ("5", "5", "5"),
    ("1 / 3", "1 / 3", "1 / 3"),
    ("1 / 3", "0.333", "1 / 3"),
    ("-3", "-3", "-3"),
    ("x", "x", "x"),
    (QUADRATIC, FACTORED, "(x - 3) * (x - 2)"),
    (QUADRATIC, FACTORED, "(2 - x) * (3 - x)"),
    ("2 * (x + 1)", "2*x + 2", "2*x + 2"),
    ("2*x + 2", "2 * (x + 1)", "(1 + x) * 2"),
    ("x**2 - 1", "x**2 - 1", "x**2 - 1"),
    ("x**2 - 1", "x**2 - 1", "-1 + x**2"),
    ("3*x + 5 - x + 1", "2 * (x + 3)", "2*x + 6"),
    ("2 * (x + 3) + 4 * (x + 1)", "2 * (3*x + 5)", "6*x + 10"),
    ("(x**2 + x) / x", "x + 1", "1 + x"),
    ("1 / root(2, 2)", "root(2, 2) / 2", "root(2, 2) * 1 / 2"),
    ("x - 3", "abs(3 - x)", "abs(x - 3)"),
    ("36 / 60", "3 / 5", "6 / 10"),
    ("2 + 3", "5", "10 / 2"),
    ("2 * 2**7", "256", "2**8"),
    ("10 * 10**2", "1000", "10**3"),
    ("log(125, 5)", "3", "3"),
    ("log(3, 2)", "ln(3) / ln(2)", "ln(3) / ln(2)"),
    ("tan(x)", "sin(x) / cos(x)", "sin(x) * (1 / cos(x))"),
    ("1 / (sin(x) * cos(x)) - tan(x)", "cot(x)", "cos(x) / sin(x)"),
    ("binomial(10, 3)", "120", "720 / 6"),
    ("tan(degrees(75))", "2 + root(3, 2)", "1 / (2 - root(3, 2))"),
]


@pytest.mark.parametrize(("source", "gold", "answer"), COPIES)
def test_rearranged_and_wrapped_expressions_of_the_problem_are_copies(source: str, gold: str, answer: str) -> None:
    assert is_copy(tree(answer), [tree(gold)], [tree("7"), tree(source)])
    assert not is_copy(tree(answer), [tree(gold)], [])


@pytest.mark.parametrize(("source", "gold", "answer"), WORKED_OUT)
def test_values_and_worked_out_answers_are_not_copies(source: str, gold: str, answer: str) -> None:
    assert not is_copy(tree(answer), [tree(gold)], [tree("7"), tree(source)])


def test_an_answer_written_as_any_gold_is_not_a_copy() -> None:
    golds = [tree(FACTORED), tree(QUADRATIC)]
    assert not is_copy(tree(QUADRATIC), golds, [tree(QUADRATIC)])
    assert is_copy(tree(QUADRATIC), golds[:1], [tree(QUADRATIC)])


@settings(deadline=None, derandomize=True)  # the first value of a process imports mpmath
@given(st.lists(st.integers(2, 99), min_size=2, max_size=6), st.sampled_from(["add", "multiply"]), st.data())
def test_arithmetic_in_any_order_is_a_copy(numbers: list[int], name: str, data: st.DataObject) -> None:
    shuffled = data.draw(st.permutations(numbers))
    orders = ([Number(Fraction(number)) for number in order] for order in (numbers, shuffled))
    source, answer = (Operation(name, tuple(order)) for order in orders)
    total = sum(numbers) if name == "add" else 2**400
    assert is_copy(answer, [tree(str(total))], [source])
    changed = Operation(name, (*answer.operands[:-1], Number(Fraction(shuffled[-1] + 1))))
    assert not is_copy(changed, [tree(str(total))], [source])


@pytest.mark.parametrize(
    ("answer", "gold", "leaves"),
    [
        ("sum(k**2, k, 1, 10)", "385", True),
        ("1 + sum(k**2, k, 1, 10)", "386", True),
        ("sum(k**2, k, 1, n)", "385", False),
        ("sum(k**2, k, 1, 10)", "sum(k**2, k, 1, 10)", False),
        ("product(k, k, 1, 5)", "120", True),
        ("integral(x**2, x, 0, 1)", "1/3", True),
        ("integral(x**2, x)", "x**3/3", False),
        ("limit(1 / x, x, infinity)", "0", True),
        ("gcd(91, 65)", "13", True),
        ("gcd(a, b)", "13", False),
        ("lcm(4, 6)", "12", True),
        ("max(3, pi)", "pi", True),
        ("max(3, pi)", "max(pi, 3)", False),
        ("ellipsis(1, 2, 10)", "55", True),
        ("ellipsis(1, 2, n)", "n * (n + 1) / 2", False),
        ("factorial(5)", "120", False),
        ("2**10", "1024", False),
    ],
)
def test_operations_on_numbers_left_to_carry_out(answer: str, gold: str, leaves: bool) -> None:
    assert leaves_work(tree(answer), [tree(gold)]) == leaves


# ---------------------------------------------------------------------------------------------------------------------
# Expressions of a text
# ---------------------------------------------------------------------------------------------------------------------


def _read(text: str) -> Sequence[Value]:
    """Read Python's notation, with chains of "=" and lists."""
    if "=" in text:
        sides = tuple(tree(side.replace("^", "**")) for side in text.split("="))
        return (Relation(sides, ("=",) * (len(sides) - 1)),)
    try:
        return (Listing(tuple(tree(item.replace("^", "**")) for item in text.split(",")), ","),)
    except (SyntaxError, ValueError):
        return (Words(text),)


@pytest.mark.parametrize(
    ("text", "expressions"),
    [
        ("Compute $2^10 - 24$.", ["2**10 - 24"]),
        ("Compute \\(2+3\\) and \\[4*5\\] and $$6/7$$!", ["2 + 3", "4 * 5", "6 / 7"]),
        ("Calculate 13 * 17 - 4", ["13 * 17 - 4"]),
        ("What is 2^10-24? Or 3*4, or 5?", ["2**10 - 24", "3 * 4"]),
        ("Factor x^2 - 5*x + 6.", [QUADRATIC]),
        ("What is $2+3=$", ["2 + 3"]),
        ("If $y = x + 1 = 5$, find $y$.", ["y", "x + 1", "5"]),
        ("Compare $a+b, b+a$ with $a+b$.", ["a + b", "b + a"]),
        ("Apples cost \\$5 and $3+4$ pears cost \\$6.", ["3 + 4"]),
        ("A well-known town has 7 gates", []),
        ("What is $15*1$ of 80, or 0.5 of 80?", ["15 * 1", "0.5 * 80"]),
        ("The remainder when $7^100$ is divided by 5", ["7**100", "mod(7**100, 5)"]),
        ("Find the sum of 17 and 25.", ["17 + 25"]),
        ("12 minus 3, 12 times 3, 12 divided by 3", ["12 / 3", "12 - 3", "12 * 3"]),
        (
            "5 choose 2, the square root of 144, 30 percent of 50",
            ["percent(30) * 50", "binomial(5, 2)", "root(144, 2)"],
        ),
        ("She has 3 of 10 cards, 7 in Room 5 and 2.", []),
        ("Is $no idea$ right?", []),
        ("", []),
    ],
)
def test_expressions_of_a_statement(text: str, expressions: list[str]) -> None:
    assert statement_expressions(text, _read) == [tree(expression) for expression in expressions]


@pytest.mark.parametrize(
    ("text", "expressions"),
    [
        ("Write $2/5$ as a percent.", ["2 / 5"]),
        ("Express the fraction $84/126$ in lowest terms.", ["84 / 126"]),
        ("Convert 0.375 to a fraction, then write \\(7\\) in base 2.", ["0.375", "7"]),
        ("What is $3/8$ as a decimal?", ["3 / 8"]),
        ("Express your answer as a percent.", []),
        ("Write $x$.", []),
    ],
)
def test_numbers_to_convert(text: str, expressions: list[str]) -> None:
    assert converted_expressions(text, _read) == [tree(expression) for expression in expressions]


def test_the_number_and_the_length_of_segments_are_bounded() -> None:
    assert len(statement_expressions(" ".join(f"$x+{n}$" for n in range(100)), _read)) == 64
    assert statement_expressions("$x" + "+x" * 1000 + "$ $x+1$", _read) == [tree("x + 1")]


LONG = "Let $a$ be the number of ways to tile a row of ten squares with dominoes. Find $a$."


@pytest.mark.parametrize(
    ("answer", "problem", "quotes"),
    [
        (LONG, LONG, True),
        ("the number of ways to tile a row of ten  squares with dominoes", LONG, True),
        (f"The answer: {LONG} is 89", LONG, True),
        ("the number of ways", LONG, False),
        ("89", LONG, False),
        ("What is 2+3", "What is $2+3$?", True),
        ("What is 2+4", "What is $2+3$?", False),
        ("5", "5", False),
        ("", "", False),
        ("", LONG, False),
    ],
)
def test_quotes_of_the_statement(answer: str, problem: str, quotes: bool) -> None:
    assert quotes_statement(answer, problem) == quotes
