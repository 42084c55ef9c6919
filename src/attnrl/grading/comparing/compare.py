"""Comparison of an answer with a true answer, by type: the type of the true answer decides."""

from __future__ import annotations

from collections.abc import Callable

from attnrl.grading.comparing.choices import compare_labelled, compare_words, same_choice
from attnrl.grading.comparing.comparison import Compare
from attnrl.grading.comparing.derivatives import same_notation
from attnrl.grading.comparing.listings import compare_brackets, compare_listing, compare_matrix
from attnrl.grading.comparing.notations import (
    compare_base_number,
    compare_ratio,
    compare_residue,
    compare_time,
    is_remainder,
    same_digits,
)
from attnrl.grading.comparing.quantities import same_quantity
from attnrl.grading.comparing.relations import compare_region, compare_relation, compare_stated
from attnrl.grading.comparing.same_number import same_number, with_constant
from attnrl.grading.comparing.signs import expanded
from attnrl.grading.reading.expressions import Expression, Number, Operation, Symbol, is_operation
from attnrl.grading.reading.statement import Statement
from attnrl.grading.reading.values import (
    BaseNumber,
    Brackets,
    Counted,
    Labelled,
    Listing,
    Matrix,
    NamedSet,
    Quantity,
    Ratio,
    Relation,
    Residue,
    SetOperation,
    TimeOfDay,
    Value,
    Words,
)


class Comparison:
    """Compares answers to one problem.

    Args:
        statement: the facts of the problem's text.
    """

    def __init__(self, statement: Statement) -> None:
        self.statement = statement

    def __call__(self, gold: Value, answer: Value) -> bool | None:
        """Compare an answer with a true answer.

        Returns:
            True, False, or None if the comparison needs computer algebra.

        Raises:
            TooLarge: a value is too large to be computed.
        """
        gold, answer = same_notation(expanded(gold), expanded(answer))
        if gold == answer:
            return True
        if isinstance(answer, Labelled) and not isinstance(gold, Labelled):
            return same_choice(gold, answer, self)
        return COMPARISONS[type(gold)](gold, answer, self)


def compare_expression(gold: Expression, answer: Value, compare: Compare) -> bool | None:
    """Compare an answer with an expression: the answer may add a name, a unit or a noun."""
    if isinstance(answer, Expression):
        if isinstance(gold, Symbol) and same_choice(gold, answer, compare):
            return True
        return _same_in_problem(gold, answer, compare.statement)
    if isinstance(answer, Words):
        return _is_product_of(gold, answer.text)
    if isinstance(answer, Quantity | Counted):
        return same_quantity(gold, answer, compare.statement)
    if isinstance(answer, Relation):
        return compare_stated(gold, answer, compare)
    if isinstance(answer, Ratio) and len(answer.parts) == 2:
        return same_number(gold, Operation("divide", answer.parts))
    if isinstance(answer, Residue):
        return is_remainder(gold, answer)
    if isinstance(answer, BaseNumber):
        return same_digits(answer, gold, compare)
    return False


def _is_product_of(gold: Expression, letters: str) -> bool:
    """Return True if a run of letters is the product of the gold's variables: ``IR`` or ``RI`` for ``I R``."""
    if not is_operation(gold, "multiply"):
        return False
    names = [factor.name if isinstance(factor, Symbol) else "" for factor in gold.operands]
    return all(len(name) == 1 for name in names) and sorted(names) == sorted(letters)


def _same_in_problem(gold: Expression, answer: Expression, statement: Statement) -> bool | None:
    """Compare two numbers; the problem decides on a percent sign of the answer, and on the name of a constant."""
    equal = same_number(gold, answer)
    sign = is_operation(answer, "percent") and not is_operation(gold, "percent")
    if equal is False and sign and (statement.asks_percent or not statement.text):
        return same_number(answer, gold)
    if equal is False and with_constant(gold) != gold and not {"c", "C"} & statement.symbols:
        return same_number(with_constant(gold), with_constant(answer))
    return equal


def compare_quantity(gold: Quantity | Counted, answer: Value, compare: Compare) -> bool | None:
    """Compare an answer with an amount with a unit or a noun."""
    if isinstance(answer, Relation):
        return compare_stated(gold, answer, compare)
    if isinstance(answer, Brackets) and answer.left == "{" and len(answer.items) == 1:
        answer = answer.items[0]
    if isinstance(answer, Expression | Quantity | Counted):
        return same_quantity(gold, answer, compare.statement)
    return False


#: Type of the true answer -> comparison. A new type of :mod:`attnrl.grading.reading.values` is one row.
COMPARISONS: dict[type, Callable[..., bool | None]] = {
    Number: compare_expression,
    Symbol: compare_expression,
    Operation: compare_expression,
    Words: compare_words,
    Labelled: compare_labelled,
    Relation: compare_relation,
    Brackets: compare_brackets,
    Listing: compare_listing,
    SetOperation: compare_region,
    NamedSet: compare_region,
    Matrix: compare_matrix,
    Quantity: compare_quantity,
    Counted: compare_quantity,
    Residue: compare_residue,
    Ratio: compare_ratio,
    BaseNumber: compare_base_number,
    TimeOfDay: compare_time,
}
