r"""Answers of the right value that stop short of the form asked for: ``x(x+8)-5(x+8)`` for "Factor".

A problem asks for a form in words, and the gold has the form. Each rule names the words, the form of a gold, and the
answers that miss the form. A problem that converts ``\frac25`` to a percent is answered neither by ``\frac25`` nor by
``\frac25 \cdot 100\%``. "Express your answer as a percent" after another task does not count: the value is the work.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

from attnrl.grading.guards.literals import integer_fraction, is_number, mantissa, number_value, without_sign
from attnrl.grading.guards.normal_form import normal_form
from attnrl.grading.reading.expressions import Expression, Number, Operation, free_symbols, is_operation, parts_of
from attnrl.grading.reading.formulas import converted_expressions
from attnrl.grading.reading.reader import readings

_MOST_FACTORS = 1_000
_LARGEST_ROOT = 200  # of a square below a square root
_POLYNOMIAL = frozenset({"add", "multiply", "negate", "power"})


def misses_form(answer: Expression, golds: Sequence[Expression], problem: str, written: str) -> bool:
    """Return True if a problem asks for a form that every gold has and the answer does not have.

    Args:
        answer: the answer, equal in value to a gold.
        golds: the true answers.
        problem: the text of the problem.
        written: the text of the answer.
    """
    if not golds or not problem:
        return False
    converted = _converted(problem)
    rules = [rule for rule in RULES if rule.asked.search(problem) and (converted or not rule.only_conversions)]
    if any(all(rule.has_form(gold) and rule.misses(answer, gold) for gold in golds) for rule in rules):
        return True
    return any(_repeats(answer, golds, given, written) for given in converted)


@lru_cache(maxsize=256)
def _converted(problem: str) -> tuple[Expression, ...]:
    return tuple(converted_expressions(problem, readings))


def _repeats(answer: Expression, golds: Sequence[Expression], given: Expression, written: str) -> bool:
    """Return True if an answer is the number to convert, as given or with arithmetic left to do."""
    if not is_number(given):
        return False
    form = normal_form(answer, fold=False)
    if any(normal_form(gold, fold=False) == form for gold in golds):
        return False
    if form == normal_form(given, fold=False):
        return not re.search(r"\de[-+\d]", written)  # 4.5e-4 is read as the number 0.00045
    return not is_number(answer) and normal_form(answer) == normal_form(given)


# ---------------------------------------------------------------------------------------------------------------------
# Forms of polynomials
# ---------------------------------------------------------------------------------------------------------------------


def _count_factors(expression: Expression) -> int:
    """Return the number of factors with variables, with multiplicity; of literals only, the number of factors."""
    return min(_factors(expression, with_variables=bool(free_symbols(expression))), _MOST_FACTORS)


def _factors(expression: Expression, *, with_variables: bool) -> int:
    if is_operation(expression, "multiply", "negate", "divide"):
        return sum(_factors(operand, with_variables=with_variables) for operand in expression.operands)
    if is_operation(expression, "power"):
        base, exponent = expression.operands
        times = exponent.value.numerator if isinstance(exponent, Number) and exponent.value.denominator == 1 else 1
        return min(times, _MOST_FACTORS) * _factors(base, with_variables=with_variables)
    if with_variables:
        return int(bool(free_symbols(expression)))
    return int(expression != Number(Fraction(1)))


def _is_factored(expression: Expression) -> bool:
    """Return True for a product of several factors with variables, or of several literal integers."""
    literal = all(isinstance(part, Number) or is_operation(part, "multiply", "power") for part in parts_of(expression))
    return (literal or bool(free_symbols(expression))) and _count_factors(expression) > 1


def _has_fewer_factors(answer: Expression, gold: Expression) -> bool:
    return _count_factors(answer) < _count_factors(gold)


def _is_unexpanded(part: Expression) -> bool:
    """Return True for a power of a sum, and for a product of a sum with a sum or with a factor of the same variable.

    A sum of other variables is a coefficient: ``(a + b) x``.
    """
    if not is_operation(part, "power", "multiply"):
        return False
    sums = [operand for operand in part.operands if _is_sum(operand)]
    if part.name == "power":
        exponent = part.operands[1]
        return bool(sums) and isinstance(exponent, Number) and exponent.value.denominator == 1 and exponent.value > 1
    rest = frozenset[str]().union(*(free_symbols(operand) for operand in part.operands if not _is_sum(operand)))
    return len(sums) > 1 or any(not rest or rest & free_symbols(factor) for factor in sums)


def _is_sum(expression: Expression) -> bool:
    expression = without_sign(expression)
    return is_operation(expression, "add") and bool(free_symbols(expression))


def _is_expanded(expression: Expression) -> bool:
    return not any(map(_is_unexpanded, parts_of(expression)))


def _is_polynomial_divisor(part: Expression) -> bool:
    """Return True for a quotient with a polynomial in variables below the line, or a negative power of a polynomial."""
    if not is_operation(part, "divide", "power"):
        return False
    divisor = part.operands[1 if part.name == "divide" else 0]
    if part.name == "power" and part.operands[1] == without_sign(part.operands[1]):
        return False
    if not free_symbols(divisor):
        return False
    return all(
        inner.name in _POLYNOMIAL and (inner.name != "power" or isinstance(inner.operands[1], Number))
        for inner in parts_of(divisor)
        if isinstance(inner, Operation)
    )


def _has_no_divisor(expression: Expression) -> bool:
    return not any(map(_is_polynomial_divisor, parts_of(expression)))


def _count_terms(expression: Expression) -> int:
    """Return the number of terms of a sum; of an expression without a variable, 1."""
    if not is_operation(expression, "add") or not free_symbols(expression):
        return 1
    return sum(_count_terms(term) for term in expression.operands)


def _has_more_terms(answer: Expression, gold: Expression) -> bool:
    return _has_no_divisor(answer) and _count_terms(answer) > _count_terms(gold)


# ---------------------------------------------------------------------------------------------------------------------
# Forms of numbers
# ---------------------------------------------------------------------------------------------------------------------


def _is_reduced(expression: Expression) -> bool:
    return integer_fraction(expression) is not None and not _is_reducible(expression)


def _is_reducible(expression: Expression) -> bool:
    """Return True for a fraction of integers with a common divisor."""
    fraction = integer_fraction(expression)
    return fraction is not None and math.gcd(*fraction) > 1


def _is_mixed(expression: Expression) -> bool:
    """Return True for a mixed number, in the reader's tree: a rational number without a decimal point."""
    number = without_sign(expression)
    return isinstance(number, Number) and number.digits is None and number.value > 1 and number.value.denominator > 1


def _is_scientific(expression: Expression) -> bool:
    """Return True for a number from 1 to below 10 times a power of ten."""
    factor = mantissa(expression)
    return factor is not None and 1 <= factor < 10


def _percentage(expression: Expression) -> Fraction | None:
    """Return the absolute number before a percent sign; None for an expression without a percent sign at the end."""
    inner = without_sign(expression)
    return number_value(inner.operands[0]) if is_operation(inner, "percent") else None


def _is_no_percentage(answer: Expression, gold: Expression) -> bool:
    """Return True for a number without a percent sign, other than the percentage of the gold."""
    return number_value(answer) not in (None, _percentage(gold))


def _radicands(expression: Expression) -> list[int]:
    """Return the integers under the square roots of an expression."""
    roots = [part.operands for part in parts_of(expression) if is_operation(part, "root")]
    return [
        radicand.value.numerator
        for radicand, index in roots
        if index == Number(Fraction(2)) and isinstance(radicand, Number) and radicand.value.denominator == 1
    ]


def _has_square(number: int) -> bool:
    """Return True for an integer with a square divisor above 1; divisors up to a bound are tried."""
    return any(number % (divisor * divisor) == 0 for divisor in range(2, _LARGEST_ROOT) if divisor * divisor <= number)


def _has_simple_roots(expression: Expression) -> bool:
    return not any(map(_has_square, _radicands(expression)))


@dataclass(frozen=True)
class Rule:
    """A form that a problem asks for.

    Attributes:
        asked: the words of a problem.
        has_form: True for a gold of the form; a gold of another form turns the rule off.
        misses: True for an answer, given with the gold, that misses the form.
        only_conversions: the rule holds for problems that convert a number, not for the form of the answer to a task.
    """

    asked: re.Pattern[str]
    has_form: Callable[[Expression], bool]
    misses: Callable[[Expression, Expression], bool]
    only_conversions: bool = False


_START = r"(?:^|[.?!:;,(]|\b(?:to|then|and|please|fully|completely))\s*"  # before an imperative
RULES = (
    Rule(  # as many factors as the gold
        re.compile(
            rf"(?i){_START}(?:factor|factori[sz]e)\b(?! of)|factored form"
            r"|(?:find|give|write|is) the prime factori[sz]ation"
        ),
        _is_factored,
        _has_fewer_factors,
    ),
    Rule(  # no product and no power of sums
        re.compile(rf"(?i)\bexpand|\bmultiply out|{_START}multiply\b|\bas a polynomial"),
        _is_expanded,
        lambda answer, _: not _is_expanded(answer),
    ),
    Rule(  # no division by a polynomial
        re.compile(r"(?i)\bsimplif"),
        _has_no_divisor,
        lambda answer, _: not _has_no_divisor(answer),
    ),
    Rule(  # like terms collected
        re.compile(r"(?i)\bsimplif|\bexpand|\bmultiply out"),
        _is_expanded,
        _has_more_terms,
    ),
    Rule(  # no square below a square root
        re.compile(r"(?i)\bsimplif|\bsimplest radical"),
        _has_simple_roots,
        lambda answer, _: not _has_simple_roots(answer),
    ),
    Rule(  # no common divisor above and below the line
        re.compile(r"(?i)(?:lowest|simplest) (?:terms|form)|(?:fully|completely) reduced|\breduced (?:fraction|form)"),
        _is_reduced,
        lambda answer, _: _is_reducible(answer),
    ),
    Rule(  # a whole number before the fraction
        re.compile(r"(?i)\bmixed (?:number|numeral|fraction)"),
        _is_mixed,
        lambda answer, _: integer_fraction(answer) is not None,
        only_conversions=True,
    ),
    Rule(  # a number from 1 to 10 before the power of ten
        re.compile(r"(?i)\bscientific notation"),
        _is_scientific,
        lambda answer, _: mantissa(answer) is not None and not _is_scientific(answer),
        only_conversions=True,
    ),
    Rule(  # a percent sign, or the number before a percent sign
        re.compile(r"(?i)\b(?:as|to|in|into) an? (?:\w+ )?percent"),
        lambda gold: _percentage(gold) is not None,
        _is_no_percentage,
        only_conversions=True,
    ),
)
