"""The reader of atoms: numbers, symbols, fractions, roots, and anything in brackets."""

from __future__ import annotations

import re
from collections.abc import Callable
from fractions import Fraction

from attnrl.grading.reading.brackets import read_brackets, read_environment, read_group
from attnrl.grading.reading.cursor import Cursor, Unsupported, WorkLeft, expression
from attnrl.grading.reading.expressions import (
    Expression,
    Number,
    Operation,
    Symbol,
    difference,
    free_symbols,
    is_operation,
)
from attnrl.grading.reading.factors import ACCENTS, BIG_OPERATORS, GREEK
from attnrl.grading.reading.functions import read_argument, read_big_operator, read_collective, read_function
from attnrl.grading.reading.letters import COLLECTIVES, FUNCTIONS
from attnrl.grading.reading.tokens import Unreadable
from attnrl.grading.reading.values import NamedSet, Value, items_of

_MAX_DIGITS = 4_000
_MAX_EXPONENT_CHARS = 5  # of scientific notation, the sign included
_SETS = {"R": "reals", "Z": "integers", "N": "naturals", "Q": "rationals", "C": "complex"}
_UNKNOWN_FUNCTIONS = frozenset("fghFGH")
#: Commands without an argument.
_VALUES: dict[str, Value] = {
    "pi": Symbol("pi"),
    "infty": Symbol("infinity"),
    "emptyset": NamedSet("empty"),
    "reals": NamedSet("reals"),
}
#: Opening command -> closing command and operation.
_CLOSING = {"lfloor": ("rfloor", "floor"), "lceil": ("rceil", "ceil")}


def read_atom(cursor: Cursor) -> Value:
    """Read a number, a symbol, a function with its argument, or anything in brackets."""
    token = cursor.peek()
    if token.kind == "number":
        cursor.take()
        return number(token.text)
    if token.kind == "letters" or (token.kind == "text" and len(token.text) == 1):
        return _read_symbol(cursor)
    if cursor.at("{"):
        return read_group(cursor)
    if cursor.at("(", "[", "]", "\\{") or cursor.at_command("langle"):
        return _read_composition(cursor) or read_brackets(cursor)
    if token.kind == "command":
        return _read_command(cursor)
    if cursor.accept("|"):
        return _read_absolute_value(cursor)
    raise Unreadable(f"unexpected {token.text!r}")


def _read_absolute_value(cursor: Cursor) -> Operation:
    cursor.enter()
    cursor.bars += 1
    content = expression(cursor.grammar.sum(cursor))
    cursor.bars -= 1
    cursor.expect("|")
    cursor.leave()
    return Operation("abs", (content,))


def _read_composition(cursor: Cursor) -> Operation | None:
    r"""Read ``(g \circ f)(x)`` as ``g(f(x))``."""
    names = re.fullmatch(r"\(([a-zA-Z])circ([a-zA-Z])\)\(", cursor.texts(0, 6))
    if names is None:
        return None
    cursor.place += 5
    argument = expression(read_brackets(cursor))
    return Operation("apply", (Symbol(names[1]), Operation("apply", (Symbol(names[2]), argument))))


def number(text: str) -> Number:
    """Return the number of a token: ``12``, ``0.5``, ``0.1(6)`` (1/6) or ``3e-5``."""
    if "(" in text:
        start, _, block = text.rstrip(")").partition("(")
        whole, _, fixed = start.partition(".")
        shift = 10 ** len(fixed)
        return Number(Fraction(int(whole + fixed), shift) + Fraction(int(block), shift * (10 ** len(block) - 1)))
    mantissa, _, exponent = text.partition("e")
    if len(mantissa) > _MAX_DIGITS:
        raise Unreadable("a number of too many digits")
    if len(exponent) > _MAX_EXPONENT_CHARS:
        raise Unreadable("an exponent of too many digits")
    digits = len(mantissa.replace(".", "").lstrip("0")) if "." in mantissa else None
    return Number(Fraction(mantissa) * Fraction(10) ** int(exponent or 0), digits)


def subscript(cursor: Cursor) -> str:
    """Read the subscript after ``_`` as a name: ``1``, ``max``, ``n+1``."""
    if not cursor.accept("{"):
        return cursor.take().text
    depth, name = 1, ""
    while depth:
        token = cursor.take()
        if cursor.place > len(cursor.tokens):
            raise Unreadable("an open subscript")
        depth += (token.text == "{") - (token.text == "}")
        name += (" " if token.gap and name else "") + token.text if depth and token.text not in "{}" else ""
    return name


def _primes(cursor: Cursor) -> str:
    primes = ""
    while cursor.accept("'"):
        primes += "'"
    return primes


def _order_of_derivative(cursor: Cursor, name: str) -> str:
    """Read ``^{(2)}`` after the name of an unknown function as two primes."""
    order = re.match(r"\^\{\((\d)\)\}", cursor.texts(0, 6))
    if name not in _UNKNOWN_FUNCTIONS or not order:
        return ""
    cursor.place += 6
    return "'" * int(order[1])


def _read_symbol(cursor: Cursor, name: str = "") -> Value:
    name = name or cursor.take().text
    before = _primes(cursor) or _order_of_derivative(cursor, name)
    if cursor.accept("_"):
        name += "_" + subscript(cursor)
    name += before + _primes(cursor)
    applied = "'" in name or (name[0] in _UNKNOWN_FUNCTIONS and (len(name) == 1 or name[1] == "_"))
    at_number = cursor.peek(1).kind == "number" and cursor.peek(2).text == ")" and " " not in name  # I(0)
    if (applied or at_number) and cursor.at("(") and not cursor.peek().gap:
        arguments = items_of(read_brackets(cursor))
        return Operation("apply", (Symbol(name), *map(expression, arguments)))
    return Symbol(name)


def _read_command(cursor: Cursor) -> Value:
    name = cursor.take().text
    if name in _READERS:
        return _READERS[name](cursor)
    if name in FUNCTIONS:
        return read_function(cursor, FUNCTIONS[name])
    if name in COLLECTIVES:
        return read_collective(cursor, name)
    if name in BIG_OPERATORS:
        return read_big_operator(cursor, name)
    if name in _VALUES:
        return _VALUES[name]
    if name == "Gamma" and cursor.at("("):
        return _gamma(expression(read_brackets(cursor)))
    if name in GREEK:
        return _read_symbol(cursor, name)
    if name in ACCENTS:
        return _read_accent(cursor, name)
    if name in _CLOSING:
        return _read_rounded(cursor, name)
    if name in ("angle", "triangle"):
        return _read_figure(cursor, name)
    raise Unsupported(f"\\{name}")


def _read_rounded(cursor: Cursor, opening: str) -> Operation:
    r"""Read ``\lfloor x \rfloor`` or ``\lceil x \rceil`` after the opening command."""
    closing, operation = _CLOSING[opening]
    cursor.enter()
    content = expression(cursor.grammar.sum(cursor))
    cursor.leave()
    if cursor.take().text != closing:
        raise Unreadable(f"{opening} without {closing}")
    return Operation(operation, (content,))


def _read_figure(cursor: Cursor, figure: str) -> Symbol:
    r"""Read the letters of an angle or a triangle as one name: ``\angle ABC``."""
    letters = ""
    while cursor.peek().kind in ("letters", "text") and len(cursor.peek().text) == 1:
        letters += cursor.take().text
    return Symbol(f"{figure} {letters or _expression_name(read_argument(cursor))}")


def _read_binomial(cursor: Cursor) -> Operation:
    return Operation("binomial", (expression(read_argument(cursor)), expression(read_argument(cursor))))


def _read_blackboard(cursor: Cursor) -> Value:
    r"""Read the letter after ``\mathbb``: a set of numbers, or a symbol."""
    braces = cursor.accept("{")
    letter = cursor.take().text
    cursor.place += braces
    return NamedSet(_SETS[letter]) if letter in _SETS else Symbol(letter)


def _gamma(argument: Expression) -> Operation:
    """Return the factorial for Euler's function of an integer or a variable."""
    if not free_symbols(argument) and not (isinstance(argument, Number) and argument.value.denominator == 1):
        return Operation("apply", (Symbol("Gamma"), argument))
    return Operation("factorial", (difference(argument, Number(Fraction(1))),))


def _expression_name(value: Value) -> str:
    """Return the name of a symbol, or of a product of symbols such as ``AB``.

    Raises:
        Unsupported: the value is neither.
    """
    if isinstance(value, Symbol):
        return value.name
    if is_operation(value, "multiply"):
        return "".join(_expression_name(factor) for factor in value.operands)
    raise Unsupported("an accent over an expression")


def _read_accent(cursor: Cursor, accent: str) -> Value:
    content = read_argument(cursor)
    if accent in ("bar", "overline") and not isinstance(content, Symbol) and not _is_segment(content):
        return Operation("conjugate", (expression(content),))
    name = _expression_name(content)
    if (len(name) > 1 and name.isupper()) or (accent == "hat" and name in ("i", "j", "k")):
        return Symbol(name)  # a segment, or a unit vector
    return _read_symbol(cursor, f"{'bar' if accent == 'overline' else accent} {name}")


def _is_segment(value: Value) -> bool:
    return is_operation(value, "multiply") and all(isinstance(factor, Symbol) for factor in value.operands)


_DERIVATIVE = re.compile(
    r"\{(?P<above>(?:d|partial)(?:\^\{?\d+\}?)?[a-zA-Z]+)\}\{(?P<below>(?:d|partial)[a-zA-Z]+(?:\^\{?\d+\}?)?)\}"
)


def _read_fraction(cursor: Cursor) -> Value:
    derivative = _DERIVATIVE.match(cursor.texts(0, 24))
    if derivative:
        end = cursor.place
        while len("".join(token.text for token in cursor.tokens[cursor.place : end])) < derivative.end():
            end += 1
        cursor.place = end
        return Symbol(re.sub(r"[{}]", "", f"{derivative['above']}/{derivative['below']}"))
    over = read_argument(cursor)
    under = read_argument(cursor)
    if isinstance(over, Symbol) and over.name in ("d", "partial"):
        raise WorkLeft("a derivative")
    return Operation("divide", (expression(over), expression(under)))


def _read_root(cursor: Cursor) -> Operation:
    index: Expression = Number(Fraction(2))
    if cursor.accept("["):
        cursor.enter()
        index = expression(cursor.grammar.sum(cursor))
        cursor.expect("]")
        cursor.leave()
    radicand = read_atom(cursor) if cursor.peek().kind == "number" else read_argument(cursor)
    return Operation("root", (expression(radicand), index))


#: Command -> reader of the rest, after the command.
_READERS: dict[str, Callable[[Cursor], Value]] = {
    "frac": _read_fraction,
    "sqrt": _read_root,
    "binom": _read_binomial,
    "mathbb": _read_blackboard,
    "begin": read_environment,
}
