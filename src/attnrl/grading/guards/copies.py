"""Detection of copies: answers that rearrange or wrap an expression of the problem, and leave the work to the grader.

Two expressions are compared as written (order, brackets and neutral elements ignored), with literals folded and like
terms collected, and with sums multiplied out (:func:`attnrl.grading.guards.normal_form.normal_form`); then once more
with identities applied (:func:`attnrl.grading.guards.identities.restated`).
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Hashable, Iterator, Sequence

from attnrl.grading.guards.identities import restated
from attnrl.grading.guards.literals import integer_fraction, is_number, mantissa
from attnrl.grading.guards.normal_form import normal_form
from attnrl.grading.reading.expressions import CONSTANTS, Expression, Number, Operation, Symbol, is_operation, parts_of

_ARITHMETIC = frozenset({"add", "multiply", "negate", "divide", "percent", "degrees"})
_WRAPPERS = frozenset({"abs", "floor", "ceil", "mod", "max", "min", "gcd", "lcm", "ellipsis", "sum"})
_TO_CARRY_OUT = frozenset({"sum", "product", "integral", "limit", "gcd", "lcm", "max", "min", "ellipsis"})


def is_copy(answer: Expression, golds: Sequence[Expression], statement: Sequence[Expression]) -> bool:
    """Return True if an answer only rearranges or wraps an expression of the problem.

    A value (a number, a fraction in lowest terms, a symbol) is never a copy, because many problems name the value asked
    for. An answer with the terms and factors of a gold is never a copy.

    Args:
        answer: the answer, equal in value to a gold.
        golds: the true answers.
        statement: the expressions of the problem (:func:`attnrl.grading.reading.formulas.statement_expressions`).
    """
    if _is_value(answer):
        return False
    form = functools.cache(normal_form)
    written_golds = {form(gold, fold=False) for gold in golds}
    if form(answer, fold=False) in written_golds:
        return False
    sources = [source for source in statement if not _is_value(source)]
    for inner in _without_wrappers(answer):
        if form(inner, fold=False) in written_golds or _is_value(inner):
            continue
        if any(_rearranges(inner, golds, source, form) or _restates(inner, golds, source, form) for source in sources):
            return True
    return False


def leaves_work(answer: Expression, golds: Sequence[Expression]) -> bool:
    """Return True if an answer leaves an operation on numbers to the grader.

    The operations are sum, product, integral, limit, gcd, lcm, max, min and ellipsis, without free symbols. An
    operation of a gold does not count.
    """
    accepted = {part.name for gold in golds for part in parts_of(gold) if isinstance(part, Operation)}
    return any(
        isinstance(part, Operation)
        and part.name in _TO_CARRY_OUT
        and part.name not in accepted
        and not _unbound_symbols(part)
        for part in parts_of(answer)
    )


def _restates(
    answer: Expression, golds: Sequence[Expression], source: Expression, form: Callable[..., Hashable]
) -> bool:
    """Return True if an answer is a source but for identities (:func:`restated`), and no gold but for identities."""
    if (restated(answer), restated(source)) == (answer, source):
        return False
    answer, source, *golds = map(restated, (answer, source, *golds))
    if any(form(gold, fold=False) == form(answer, fold=False) for gold in golds):
        return False
    return _rearranges(answer, golds, source, form, hard=lambda expression: len(set(_hard_parts(expression))))


def _rearranges(
    answer: Expression,
    golds: Sequence[Expression],
    source: Expression,
    form: Callable[..., Hashable],
    hard: Callable[[Expression], int] = lambda expression: len(_hard_parts(expression)),
) -> bool:
    """Return True if an answer, not written as a gold, has a normal form of a source without work done."""
    if form(answer, fold=False) == form(source, fold=False):
        return True
    if mantissa(answer) is not None or hard(answer) < hard(source):
        return False
    collected = _count_operations(answer) < _count_operations(source)  # x + x + 2 -> 2x + 2
    for distribute in (False, True):
        if form(answer, distribute=distribute) != form(source, distribute=distribute):
            continue
        if any(map(is_number, golds)):  # 10/4 for 10/8 + 10/8 and 2^8 for 2 * 2^7 are worked out
            return not (is_number(answer) or (collected and _is_product_of_powers(answer)))
        if collected and any(form(gold, distribute=True) == form(source, distribute=True) for gold in golds):
            return False
        return all(form(gold, distribute=distribute) != form(source, distribute=distribute) for gold in golds)
    return False


def _without_wrappers(answer: Expression) -> Iterator[Expression]:
    """Yield an answer and, of an answer without variables, the inside of each wrapper around the answer.

    A wrapper is an absolute value, a floor, a ceiling, a remainder, a percent sign, a real part, a conjugate, or the
    root of a power with the same exponent.
    """
    yield answer
    while isinstance(answer, Operation) and not _unbound_symbols(answer):
        inner = answer.operands[0]
        if answer.name == "root" and is_operation(inner, "power"):
            if inner.operands[1] != answer.operands[1]:
                return
            inner = inner.operands[0]
        elif answer.name not in ("abs", "floor", "ceil", "mod", "percent", "re", "conjugate"):
            return
        answer = inner
        yield answer


# ---------------------------------------------------------------------------------------------------------------------
# Properties of expressions
# ---------------------------------------------------------------------------------------------------------------------


def _is_value(expression: Expression) -> bool:
    """Return True for a number, a fraction in lowest terms or a symbol, possibly with a sign, in percent or degrees."""
    if is_operation(expression, "negate", "percent", "degrees", "plus_minus"):
        return len(expression.operands) == 1 and _is_value(expression.operands[0])
    fraction = integer_fraction(expression)
    if fraction is not None:
        return fraction[1] > 1 and math.gcd(*fraction) == 1
    return not isinstance(expression, Operation)


def _is_product_of_powers(expression: Expression) -> bool:
    """Return True for a power of a literal, and for a product of literals with a power."""
    names = [part.name for part in parts_of(expression) if isinstance(part, Operation)]
    return "power" in names and {"power", "multiply"}.issuperset(names)


def _is_hard(part: Expression) -> bool:
    """Return True for an operation that a normal form does not carry out: a power of a number, a root, a function."""
    if is_operation(part, "power") and isinstance(part.operands[1], Number):
        return not _unbound_symbols(part.operands[0])  # x^2 is x times x
    return isinstance(part, Operation) and part.name not in _ARITHMETIC and part.name not in _WRAPPERS


def _hard_parts(expression: Expression) -> list[Expression]:
    return [part for part in parts_of(expression) if _is_hard(part)]


def _count_operations(expression: Expression) -> int:
    return sum(isinstance(part, Operation) for part in parts_of(expression))


def _unbound_symbols(expression: Expression) -> frozenset[str]:
    """Return the variables of an expression without the bound symbols of sums, products, integrals and limits."""
    if isinstance(expression, Symbol):
        return frozenset({expression.name}) - CONSTANTS
    if isinstance(expression, Number):
        return frozenset()
    if expression.name in ("sum", "product", "integral", "limit") and len(expression.operands) > 2:
        body, index, *bounds = expression.operands
        inside = _unbound_symbols(body) - {index.name if isinstance(index, Symbol) else ""}
        return inside.union(*map(_unbound_symbols, bounds))
    return frozenset[str]().union(*map(_unbound_symbols, expression.operands))


# ---------------------------------------------------------------------------------------------------------------------
# Quotes of the problem's text
# ---------------------------------------------------------------------------------------------------------------------

_QUOTE = 40  # characters of a problem that make a quote


def quotes_statement(answer_text: str, problem_text: str) -> bool:
    """Return True if an answer quotes 40 or more characters of the problem, or the whole problem.

    White space and dollars do not count.
    """
    answer, problem = (re.sub(r"[\s$]", "", text).rstrip(".?!:") for text in (answer_text, problem_text))
    if len(answer) >= _QUOTE and answer in problem:
        return True
    if len(problem) >= _QUOTE and problem in answer:
        return True
    return answer == problem and re.search(r"(?<!\\)\b[a-zA-Z]{2,}\s", problem_text) is not None
