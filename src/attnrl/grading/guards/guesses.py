"""The guards of the judge: answers of the right value that are not worked out."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from attnrl.grading.comparing.relations import stated_value
from attnrl.grading.comparing.same_number import same_number
from attnrl.grading.guards.copies import is_copy, leaves_work, quotes_statement
from attnrl.grading.guards.forms import misses_form
from attnrl.grading.guards.normal_form import normal_form
from attnrl.grading.reading.expressions import (
    Expression,
    Number,
    Operation,
    Symbol,
    difference,
    free_symbols,
    operation_names,
    parts_of,
)
from attnrl.grading.reading.reader import readings
from attnrl.grading.reading.statement import Statement
from attnrl.grading.reading.values import (
    Brackets,
    Counted,
    Labelled,
    Listing,
    Matrix,
    Quantity,
    Ratio,
    Relation,
    Residue,
    Value,
)

_ARITHMETIC = frozenset({"add", "multiply", "negate", "divide", "power", "percent", "degrees"})


def is_guess(golds: Sequence[str], box: str, statement: Statement) -> bool:
    """Return True if a box of the right value copies the problem, misses the form asked for, or leaves work.

    Args:
        golds: the true answers.
        box: an answer, equal in value to a gold.
        statement: the facts of the problem's text.
    """
    if statement.text and not statement.options and quotes_statement(box, statement.text):
        return True
    values = [value for gold in golds for value in readings(gold, statement.symbols)]
    accepted = [part for value in values for part in _expressions(value, statement)]
    found = readings(box, statement.symbols)
    labelled = tuple(value for value in found if isinstance(value, Labelled))
    for value in labelled or found:
        if isinstance(value, Relation) and value not in values and _is_copied_relation(value, statement):
            return True
        if isinstance(value, Quantity) and _is_given(value, statement):
            return True
        for part in _expressions(value, statement):
            if is_copy(part, accepted, statement.expressions) or misses_form(part, accepted, statement.text, box):
                return True
            if _leaves_evaluation(part, accepted, statement):
                return True
            if (statement.text and leaves_work(part, accepted)) or leaves_calculus(part, accepted):
                return True
    return False


def _is_copied_relation(relation: Relation, statement: Statement) -> bool:
    """Return True if an equation or an inequality rearranges the terms of a relation of the problem."""
    form = _form_of_relation(relation)
    return form is not None and any(_form_of_relation(given) == form for given in statement.relations)


def _form_of_relation(relation: Relation) -> frozenset[Hashable] | None:
    """Return the normal forms of the difference of two sides and of the opposite; None for a value or a chain."""
    left, right = relation.sides[0], relation.sides[-1]
    if len(relation.sides) != 2 or isinstance(left, Symbol) or not isinstance(left, Expression):
        return None
    if not isinstance(right, Expression) or not free_symbols(left):
        return None
    return frozenset({normal_form(difference(left, right)), normal_form(difference(right, left))})


def _leaves_evaluation(answer: Expression, golds: Sequence[Expression], statement: Statement) -> bool:
    """Return True if a function is left in an answer to a problem that asks to evaluate an expression.

    The problem asks to evaluate an expression if the expression has the value of a gold and the gold is a plain number.
    Sums, products, quotients and powers of numbers may stay.
    """
    left = operation_names(answer) - _ARITHMETIC
    named = any(isinstance(part, Symbol) and part.name != "i" for part in parts_of(answer))
    if not (left or named) or any(operation_names(gold) - _ARITHMETIC or free_symbols(gold) for gold in golds):
        return False
    sources = [part for part in statement.expressions if isinstance(part, Operation) and not free_symbols(part)]
    return any(isinstance(gold, Number) and same_number(gold, source) is True for gold in golds for source in sources)


def _is_given(quantity: Quantity, statement: Statement) -> bool:
    """Return True if a quantity stands in the problem, and the problem asks for another unit."""
    given = isinstance(quantity.amount, Number) and (quantity.amount.value, quantity.unit) in statement.quantities
    return given and bool(statement.asked_units) and quantity.unit not in statement.asked_units


def leaves_calculus(answer: Expression, golds: Sequence[Expression]) -> bool:
    """Return True if an answer leaves an integral or a limit that no gold has."""
    left = operation_names(answer) & {"integral", "limit"}
    return bool(left) and not any(left & operation_names(gold) for gold in golds)


def _expressions(value: Value, statement: Statement) -> list[Expression]:
    """Return the expressions that an answer states."""
    if isinstance(value, Relation):
        stated = stated_value(value, statement)
        return [] if stated is None else _expressions(stated, statement)
    if isinstance(value, Labelled):
        return _expressions(value.value, statement)
    if isinstance(value, Quantity | Counted):
        return _expressions(value.amount, statement)
    if isinstance(value, Brackets | Listing):
        return [part for item in value.items for part in _expressions(item, statement)]
    if isinstance(value, Matrix):
        return [part for row in value.rows for item in row for part in _expressions(item, statement)]
    if isinstance(value, Ratio) and len(value.parts) == 2:
        return [Operation("divide", value.parts)]
    if isinstance(value, Residue):
        return [Operation("mod", (value.value, value.modulus))]
    return [value] if isinstance(value, Expression) else []
