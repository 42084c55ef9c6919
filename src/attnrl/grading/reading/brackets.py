"""The reader of brackets: groups, tuples, intervals, sets, matrices and systems."""

from __future__ import annotations

from collections.abc import Sequence

from attnrl.grading.reading.cursor import Cursor, Unsupported, expression
from attnrl.grading.reading.expressions import Operation
from attnrl.grading.reading.tokens import Token, Unreadable
from attnrl.grading.reading.values import Brackets, Listing, Matrix, NamedSet, Relation, Value

_MATRICES = frozenset({"matrix", "pmatrix", "bmatrix", "Bmatrix", "vmatrix", "Vmatrix", "smallmatrix", "array"})
_SYSTEMS = frozenset({"cases", "aligned", "align", "align*", "gathered", "split", "rcases", "dcases"})
_CONDITIONS = frozenset({"if", "when", "for"})
_ALIGNED = frozenset({"=", "<", ">", "<=", ">=", "!=", "in"})
_CLOSERS = {"(": (")", "]", "["), "[": ("]", ")", "["), "]": ("[", "]", ")"), "\\{": ("\\}",)}


def is_value_start(token: Token) -> bool:
    """Return True for a command that starts a value in brackets."""
    return token.text in ("lfloor", "lceil", "begin", "langle")


def read_group(cursor: Cursor) -> Value:
    """Read a group in braces; the braces have no meaning for the value."""
    cursor.expect("{")
    cursor.enter()
    bars, cursor.bars = cursor.bars, 0
    value = with_bar(cursor, cursor.grammar.listing(cursor))
    cursor.bars = bars
    cursor.expect("}")
    cursor.leave()
    return value


def with_bar(cursor: Cursor, above: Value) -> Value:
    r"""Read the value below the bar of ``a \over b`` or ``n \choose k``; without a bar, return the value above."""
    if not cursor.at_command("over", "choose"):
        return above
    name = "divide" if cursor.take().text == "over" else "binomial"
    return Operation(name, (expression(above), expression(cursor.grammar.listing(cursor))))


def read_brackets(cursor: Cursor) -> Value:
    """Read a tuple, an interval or a set; of round or square brackets around a single value, the value.

    Raises:
        Unreadable: the closing bracket is missing or belongs to another opening bracket.
    """
    opening = cursor.take().text
    cursor.enter()
    cursor.brackets += 1
    outer, cursor.bars, cursor.integrals = (cursor.bars, cursor.integrals), 0, 0
    if opening == "\\{" and cursor.accept("\\}"):
        value: Value = NamedSet("empty")
    elif opening == "\\{" and cursor.at_command("begin"):
        cursor.take()  # a system behind a brace
        value = read_environment(cursor)
        cursor.accept("\\}")
    elif opening == "langle":
        value = Brackets("<", ">", _items(cursor.grammar.listing(cursor)))
        if cursor.take().text != "rangle":
            raise Unreadable("an angle bracket without a partner")
    else:
        cursor.bars = int(opening == "\\{")  # a bar after the element of a set is no absolute value
        content = cursor.grammar.listing(cursor)
        if opening == "\\{" and cursor.at(":", "|"):
            cursor.take()
            content = _condition(content, cursor.grammar.listing(cursor))
            cursor.expect("\\}")
            value = content
        else:
            value = _closed(opening, content, cursor.expect(*_CLOSERS[opening]))
    cursor.leave()
    cursor.brackets -= 1
    cursor.bars, cursor.integrals = outer
    return value


def _items(content: Value) -> tuple[Value, ...]:
    if isinstance(content, Listing):
        if content.joint != ",":
            raise Unreadable("words between brackets")
        return content.items
    return (content,)


def _closed(opening: str, content: Value, closing: str) -> Value:
    if opening == "\\{":
        return Brackets("{", "}", _items(content))
    if not isinstance(content, Listing):
        if (opening, closing) in (("(", ")"), ("[", "]")):
            return content
        raise Unreadable("brackets of two kinds around a single value")
    return Brackets(opening, closing, _items(content))


def _condition(element: Value, condition: Value) -> Value:
    r"""Return the condition of ``\{x : x > 3\}``; ``x \in \mathbb{R}`` before the colon adds nothing."""
    if isinstance(element, Relation) and element.operators == ("in",):
        element = element.sides[0]
    if not isinstance(condition, Relation | Listing):
        raise Unsupported("a set without a condition")
    return condition


def read_environment(cursor: Cursor) -> Value:
    """Read the rows between ``\\begin{}`` and ``\\end{}``: a matrix, or a system of equations as a listing.

    Raises:
        Unsupported: another environment.
    """
    name = _environment_name(cursor)
    if name == "array" and cursor.at("{"):
        while cursor.place < len(cursor.tokens) and not cursor.accept("}"):
            cursor.take()
    if name not in _MATRICES | _SYSTEMS:
        raise Unsupported(f"\\begin{{{name}}}")
    cursor.enter()
    if name in _SYSTEMS:
        _drop_alignment(cursor)
    rows: list[list[Value]] = [[]]
    while not cursor.at_command("end"):
        if cursor.place >= len(cursor.tokens):
            raise Unreadable("\\begin without \\end")
        if cursor.accept("\\\\"):
            rows.append([])
        elif cursor.peek().kind == "text" and cursor.peek().text in _CONDITIONS:
            cursor.take()
        elif not cursor.accept("&", ",", ";", "."):
            rows[-1].append(cursor.grammar.listing(cursor))
    cursor.take()
    _environment_name(cursor)
    cursor.leave()
    rows = [row for row in rows if row]
    if name in _SYSTEMS or (rows and all(len(row) == 1 and isinstance(row[0], Relation) for row in rows)):
        return _system(rows)
    if not rows or len({len(row) for row in rows}) != 1:
        raise Unreadable("rows of several lengths")
    return Matrix(tuple(map(tuple, rows)), bars=name == "vmatrix")


def _drop_alignment(cursor: Cursor) -> None:
    """Remove the signs ``&`` before a relation from the tokens of a system."""
    kept = [
        token
        for place, token in enumerate(cursor.tokens)
        if token.text != "&"
        or place < cursor.place
        or place + 1 == len(cursor.tokens)
        or cursor.tokens[place + 1].text not in _ALIGNED
    ]
    cursor.tokens = kept


def _system(rows: Sequence[Sequence[Value]]) -> Value:
    if rows and all(len(row) == 2 for row in rows):  # a function by cases: a set of pairs of value and condition
        return Brackets("{", "}", tuple(Brackets("(", ")", tuple(row)) for row in rows))
    items: list[Value] = []
    for row in rows:
        if len(row) != 1:
            raise Unsupported("a system of rows of several lengths")
        items.extend(row[0].items if isinstance(row[0], Listing) else row)
    return items[0] if len(items) == 1 else Listing(tuple(items), ",")


def _environment_name(cursor: Cursor) -> str:
    cursor.expect("{")
    name = cursor.take().text
    while not cursor.accept("}"):
        if cursor.place >= len(cursor.tokens):
            raise Unreadable("an environment without a name")
        name += cursor.take().text
    return name
