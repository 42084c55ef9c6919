"""The reader of mathematical expressions: tokens to trees, by recursive descent.

sum -> product -> power -> atom. Brackets with commas, sets and matrices are values and may stand alone only.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction

from attnrl.grading.reading.brackets import is_value_start, read_brackets, read_environment, read_group
from attnrl.grading.reading.cursor import COLLECTIVES, FUNCTIONS, Cursor, Unsupported, WorkLeft, expression
from attnrl.grading.reading.expressions import Expression, Number, Operation, Symbol
from attnrl.grading.reading.tokens import Token, Unreadable
from attnrl.grading.reading.values import BaseNumber, NamedSet, Value

_GREEK = frozenset(
    [
        "alpha",
        "beta",
        "gamma",
        "delta",
        "epsilon",
        "zeta",
        "eta",
        "theta",
        "iota",
        "kappa",
        "lambda",
        "mu",
        "nu",
        "xi",
        "omicron",
        "rho",
        "varsigma",
        "sigma",
        "tau",
        "upsilon",
        "phi",
        "chi",
        "psi",
        "omega",
        "Alpha",
        "Beta",
        "Gamma",
        "Delta",
        "Epsilon",
        "Zeta",
        "Eta",
        "Theta",
        "Iota",
        "Kappa",
        "Lambda",
        "Mu",
        "Nu",
        "Xi",
        "Omicron",
        "Pi",
        "Rho",
        "Sigma",
        "Tau",
        "Upsilon",
        "Phi",
        "Chi",
        "Psi",
        "Omega",
        "vartheta",
        "ell",
        "hbar",
        "nabla",
        "aleph",
    ]
)
_ACCENTS = frozenset(["hat", "tilde", "dot", "ddot", "bar", "overline", "widehat"])
_SETS = {"R": "reals", "Z": "integers", "N": "naturals", "Q": "rationals", "C": "complex"}
_UNKNOWN_FUNCTIONS = frozenset("fghFGH")
_CLOSING = {"lfloor": ("rfloor", "floor"), "lceil": ("rceil", "ceil")}


def is_dots(token: Token) -> bool:
    """Return True for an ellipsis."""
    return token.kind == "mark" and token.text == "..."


# ---------------------------------------------------------------------------------------------------------------------
# Sums
# ---------------------------------------------------------------------------------------------------------------------


def read_sum(cursor: Cursor) -> Value:
    """Read terms joined by ``+``, ``-`` and ``\\pm``.

    Raises:
        Unreadable: the tokens are no expression.
    """
    terms: list[Value] = []
    dots = False
    while True:
        sign = cursor.take().text if cursor.at("+", "-", "±", "∓") else ""
        if not sign and terms:
            break
        if is_dots(cursor.peek()) and terms:
            cursor.take()
            dots = True
            continue
        if cursor.at("+", "-"):  # 2 + -3
            sign = "-" if (cursor.take().text == "-") != (sign == "-") else "+"
        term = read_product(cursor)
        if sign in ("±", "∓"):
            name = "plus_minus" if sign == "±" else "minus_plus"
            operands = (_add(terms), expression(term)) if terms else (expression(term),)
            terms = [Operation(name, operands)]
        else:
            terms.append(_negative(term) if sign == "-" else term)
    if dots:
        return Operation("ellipsis", tuple(expression(term) for term in terms))
    return terms[0] if len(terms) == 1 else _add(terms)


def _add(terms: Sequence[Value]) -> Expression:
    return expression(terms[0]) if len(terms) == 1 else Operation("add", tuple(expression(term) for term in terms))


def _negative(term: Value) -> Value:
    if isinstance(term, BaseNumber):
        return BaseNumber("-" + term.digits, term.base)
    return Operation("negate", (expression(term),))


# ---------------------------------------------------------------------------------------------------------------------
# Products
# ---------------------------------------------------------------------------------------------------------------------


def read_product(cursor: Cursor) -> Value:
    """Read factors joined by a sign of multiplication or division, by ``\\bmod`` or by nothing."""
    factors: list[Value] = [_first_factor(cursor)]
    while True:
        if cursor.accept("*"):
            if is_dots(cursor.peek()):
                raise Unsupported("a product with an ellipsis")
            factors.append(_signed_power(cursor))
        elif cursor.at("/") and cursor.peek(1).kind != "text":
            cursor.take()
            factors = [Operation("divide", (_multiply(factors), expression(_signed_power(cursor))))]
        elif cursor.at_command("bmod", "mod"):
            cursor.take()
            factors = [Operation("mod", (_multiply(factors), expression(read_product(cursor))))]
        elif _starts_factor(cursor):
            _refuse_digits_side_by_side(cursor, factors[-1])
            factors.append(read_power(cursor))
        else:
            return factors[0] if len(factors) == 1 else _multiply(factors)


def _multiply(factors: Sequence[Value]) -> Expression:
    if len(factors) == 1:
        return expression(factors[0])
    return Operation("multiply", tuple(expression(factor) for factor in factors))


def _first_factor(cursor: Cursor) -> Value:
    texts = [cursor.peek(n).text for n in range(5)]
    plain = re.fullmatch(r"d[a-zA-Z]/d[a-zA-Z]", "".join(texts))
    if plain and not any(cursor.peek(n).gap for n in (1, 2, 3, 4)):
        cursor.place += 5
        return Symbol(plain[0])
    return _mixed_number(cursor) or read_power(cursor)


def _mixed_number(cursor: Cursor) -> Number | None:
    r"""Read ``1 1/2`` or ``1\frac{1}{2}``: a whole number before a proper fraction of whole numbers."""
    whole, after = cursor.peek(), cursor.peek(1)
    if whole.kind != "number" or not whole.text.isdigit():
        return None
    if after.kind == "number" and after.gap and cursor.peek(2).text == "/" and cursor.peek(3).kind == "number":
        over, under, length = after.text, cursor.peek(3).text, 4
    elif after.kind == "command" and after.text == "frac":
        found = re.match(r"\{(\d+)\}\{(\d+)\}|(\d)(\d)(?!\d)|(\d)\{(\d+)\}", _texts(cursor, 2, 8))
        if not found:
            return None
        over, under = (part for part in found.groups() if part is not None)
        length = 2 + sum(1 for _ in re.finditer(r"\d+|[{}]", found[0]))
        if found[3]:
            length = 3 if cursor.peek(2).text == found[0] else 4
    else:
        return None
    if not (over.isdigit() and under.isdigit() and 0 < int(over) < int(under)):
        return None
    if cursor.peek(length).text in ("/", "^", "!"):
        return None
    cursor.place += length
    return Number(int(whole.text) + Fraction(int(over), int(under)))


def _texts(cursor: Cursor, start: int, count: int) -> str:
    return "".join(cursor.peek(start + n).text for n in range(count))


def _starts_factor(cursor: Cursor) -> bool:
    token = cursor.peek()
    if cursor.integrals and token.text == "d" and cursor.peek(1).kind in ("letters", "text", "command"):
        return False
    if token.kind == "text":
        return len(token.text) == 1 and token.text in "eixyzndpr" and not token.gap
    if token.kind == "mark":
        if token.text == "[" and (cursor.peek(1).kind == "mark" and cursor.peek(1).text in ("", ")", "}", ",", "\\}")):
            return False  # the open bound of [1, 2[
        if token.text == "[" and cursor.peek(1).text.lower() in ("cup", "cap", "or", "and", "u"):
            return False
        return token.text in ("(", "{", "[") or (token.text == "|" and not cursor.bars)
    if token.kind == "command":
        return (
            is_value_start(token)
            or token.text in _GREEK | _ACCENTS | {"pi", "infty", "frac", "sqrt", "binom"}
            or (
                token.text in FUNCTIONS
                or token.text in COLLECTIVES
                or token.text in ("sum", "prod", "int", "lim", "log")
            )
        )
    return token.kind in ("number", "letters")


def _refuse_digits_side_by_side(cursor: Cursor, previous: Value) -> None:
    """Raise Unreadable for a number right after a number: ``1 2`` is no number."""
    if cursor.peek().kind != "number":
        return
    if isinstance(previous, Number) or (isinstance(previous, Operation) and previous.name == "divide"):
        raise Unreadable("digits side by side")


# ---------------------------------------------------------------------------------------------------------------------
# Powers
# ---------------------------------------------------------------------------------------------------------------------


def _signed_power(cursor: Cursor) -> Value:
    if cursor.accept("-"):
        return _negative(_signed_power(cursor))
    cursor.accept("+")
    return _mixed_number(cursor) or read_power(cursor)


def read_power(cursor: Cursor) -> Value:
    """Read an atom with the signs after the atom: powers, factorials, ``%`` and degrees."""
    value = read_atom(cursor)
    while True:
        if cursor.accept("^"):
            value = Operation("power", (expression(value), expression(_read_exponent(cursor))))
        elif cursor.at("!") and not cursor.peek().gap:
            cursor.take()
            double = cursor.accept("!")
            value = Operation("double_factorial" if double else "factorial", (expression(value),))
        elif cursor.accept("°"):
            value = Operation("degrees", (expression(value),))
        elif cursor.accept("%"):
            value = Operation("percent", (expression(value),))
        elif cursor.at("_") and not isinstance(value, Symbol):
            cursor.take()
            value = _in_base(value, cursor)
        else:
            return value


def _read_exponent(cursor: Cursor) -> Value:
    if cursor.at("{"):
        return read_group(cursor)
    if cursor.accept("-"):
        return _negative(read_atom(cursor))
    return read_atom(cursor)


def _in_base(value: Value, cursor: Cursor) -> BaseNumber:
    base = subscript(cursor)
    words = {"two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9, "ten": 10}
    number = words.get(base.lower(), int(base) if base.isdigit() and len(base) < 3 else 0)
    if isinstance(value, Number) and value.value.denominator == 1 and 2 <= number <= 36:
        return BaseNumber(str(value.value.numerator), number)
    raise Unsupported("a subscript after a value")


# ---------------------------------------------------------------------------------------------------------------------
# Atoms
# ---------------------------------------------------------------------------------------------------------------------


def read_atom(cursor: Cursor) -> Value:
    """Read a number, a symbol, a function with its argument, or anything in brackets."""
    token = cursor.peek()
    if token.kind == "number":
        cursor.take()
        return number(token.text)
    if token.kind == "letters" or (token.kind == "text" and len(token.text) == 1):
        return _read_symbol(cursor)
    if token.kind == "command":
        return _read_command(cursor)
    if cursor.at("{"):
        return read_group(cursor)
    if cursor.at("(", "[", "]", "\\{"):
        return read_brackets(cursor)
    if cursor.accept("|"):
        cursor.enter()
        cursor.bars += 1
        content = expression(read_sum(cursor))
        cursor.bars -= 1
        cursor.expect("|")
        cursor.leave()
        return Operation("abs", (content,))
    raise Unreadable(f"unexpected {token.text!r}")


def number(text: str) -> Number:
    """Return the number of a token: ``12``, ``0.5``, ``0.1(6)`` (1/6) or ``3e-5``."""
    if "(" in text:
        start, _, block = text.rstrip(")").partition("(")
        whole, _, fixed = start.partition(".")
        shift = 10 ** len(fixed)
        return Number(Fraction(int(whole + fixed), shift) + Fraction(int(block), shift * (10 ** len(block) - 1)))
    mantissa, _, exponent = text.partition("e")
    if len(exponent) > 5:
        raise Unreadable("an exponent of more than four digits")
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
        name += token.text if depth and token.text not in "{}" else ""
    return name


def _primes(cursor: Cursor) -> str:
    primes = ""
    while cursor.accept("'"):
        primes += "'"
    return primes


def _order_of_derivative(cursor: Cursor, name: str) -> str:
    """Read ``^{(2)}`` after the name of an unknown function as two primes."""
    order = re.match(r"\^\{\((\d)\)\}", _texts(cursor, 0, 6))
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
    applied = name[0] in _UNKNOWN_FUNCTIONS and (len(name) == 1 or name[1] in "_'")
    if (applied or "'" in name) and cursor.at("(") and not cursor.peek().gap:
        arguments = read_brackets(cursor)
        items = getattr(arguments, "items", (arguments,))
        return Operation("apply", (Symbol(name), *(expression(item) for item in items)))
    return Symbol(name)


def _read_command(cursor: Cursor) -> Value:
    name = cursor.take().text
    if name == "frac":
        return _read_fraction(cursor)
    if name == "sqrt":
        return _read_root(cursor)
    if name == "binom":
        return Operation("binomial", (expression(_argument(cursor)), expression(_argument(cursor))))
    if name in FUNCTIONS:
        return _read_function(cursor, FUNCTIONS[name])
    if name in COLLECTIVES:
        return _read_collective(cursor, name)
    if name in _CLOSING:
        closing, operation = _CLOSING[name]
        cursor.enter()
        content = expression(read_sum(cursor))
        cursor.leave()
        if cursor.take().text != closing:
            raise Unreadable(f"{name} without {closing}")
        return Operation(operation, (content,))
    if name in ("pi", "infty"):
        return Symbol("pi") if name == "pi" else Symbol("infinity")
    if name in _GREEK:
        return _read_symbol(cursor, name)
    if name in _ACCENTS:
        return _read_accent(cursor, name)
    if name in ("angle", "triangle"):
        letters = ""
        while cursor.peek().kind in ("letters", "text") and len(cursor.peek().text) == 1:
            letters += cursor.take().text
        return Symbol(f"{name} {letters or expression_name(_argument(cursor))}")
    if name in ("emptyset", "reals"):
        return NamedSet("empty" if name == "emptyset" else "reals")
    if name == "mathbb":
        letter = _texts(cursor, 0, 1) if not cursor.at("{") else _texts(cursor, 1, 1)
        cursor.place += 3 if cursor.at("{") else 1
        if letter in _SETS:
            return NamedSet(_SETS[letter])
        return Symbol(letter)
    if name == "begin":
        return read_environment(cursor)
    if name == "langle":
        cursor.place -= 1
        return read_brackets(cursor)
    if name in ("sum", "prod", "int", "lim"):
        from attnrl.grading.reading.big_operators import read_big_operator

        return read_big_operator(cursor, name)
    raise Unsupported(f"\\{name}")


def expression_name(value: Value) -> str:
    """Return the name of a symbol, or of a product of symbols such as ``AB``.

    Raises:
        Unsupported: the value is neither.
    """
    if isinstance(value, Symbol):
        return value.name
    if isinstance(value, Operation) and value.name == "multiply":
        return "".join(expression_name(factor) for factor in value.operands)
    raise Unsupported("an accent over an expression")


def _read_accent(cursor: Cursor, accent: str) -> Value:
    content = _argument(cursor)
    if accent in ("bar", "overline") and not isinstance(content, Symbol) and not _is_segment(content):
        return Operation("conjugate", (expression(content),))
    name = expression_name(content)
    return Symbol(
        name if len(name) > 1 and name.isupper() else f"{accent.removeprefix('wide')} {name}" + _primes(cursor)
    )


def _is_segment(value: Value) -> bool:
    return (
        isinstance(value, Operation) and value.name == "multiply" and all(isinstance(o, Symbol) for o in value.operands)
    )


def _argument(cursor: Cursor) -> Value:
    """Read the argument of a command: a group, or a single digit, letter or command."""
    if cursor.at("{"):
        return read_group(cursor)
    token = cursor.peek()
    if token.kind == "number" and token.text.isdigit() and len(token.text) > 1:  # \frac12: one digit each
        cursor.tokens = [
            *cursor.tokens[: cursor.place],
            *(Token("number", digit) for digit in token.text),
            *cursor.tokens[cursor.place + 1 :],
        ]
    return read_atom(cursor)


def _read_fraction(cursor: Cursor) -> Value:
    derivative = re.match(
        r"\{?((?:d|partial)(?:\^\{?\d+\}?)?[a-zA-Z]+)\}?\{((?:d|partial)[a-zA-Z]+(?:\^\{?\d+\}?)?)\}",
        _texts(cursor, 0, 24),
    )
    if derivative and cursor.at("{"):
        length = 0
        for length in range(1, 25):
            if _texts(cursor, 0, length) == derivative[0]:
                break
        cursor.place += length
        return Symbol(re.sub(r"[{}]", "", f"{derivative[1]}/{derivative[2]}"))
    over = _argument(cursor)
    under = _argument(cursor)
    if isinstance(over, Symbol) and over.name in ("d", "partial"):
        raise WorkLeft("a derivative")
    return Operation("divide", (expression(over), expression(under)))


def _read_root(cursor: Cursor) -> Operation:
    index: Expression = Number(Fraction(2))
    if cursor.accept("["):
        cursor.enter()
        index = expression(read_sum(cursor))
        cursor.expect("]")
        cursor.leave()
    radicand = read_atom(cursor) if cursor.peek().kind == "number" else _argument(cursor)
    return Operation("root", (expression(radicand), index))


def _read_function(cursor: Cursor, name: str) -> Expression:
    power = base = None
    for _ in range(2):
        if power is None and cursor.accept("^"):
            power = expression(_read_exponent(cursor))
        elif base is None and name == "log" and cursor.accept("_"):
            base = expression(_argument(cursor))
    argument = _function_argument(cursor)
    inverse = power == _negative(Number(Fraction(1))) and f"arc{name}" in FUNCTIONS
    if inverse:
        return Operation(f"arc{name}", (argument,))
    result = Operation(name, (argument,) if base is None else (argument, base))
    return result if power is None else Operation("power", (result, power))


def _function_argument(cursor: Cursor) -> Expression:
    """Read the argument of a function: brackets, or factors up to the next function or sign."""
    if cursor.at("(", "{", "[", "|"):
        return expression(read_atom(cursor))
    negative = cursor.accept("-")
    factors: list[Expression] = []
    while True:
        token = cursor.peek()
        is_function = token.kind == "command" and (token.text in FUNCTIONS or token.text in COLLECTIVES)
        if factors and (is_function or not _starts_factor(cursor) or cursor.at("(", "[")):
            break
        if factors:
            _refuse_digits_side_by_side(cursor, factors[-1])
        factors.append(expression(read_power(cursor)))
    argument = _multiply(factors)
    if factors[-1] == Symbol("pi") and cursor.at("/") and cursor.peek(1).kind == "number":
        cursor.take()
        argument = Operation("divide", (argument, expression(read_power(cursor))))
    return expression(_negative(argument)) if negative else argument


def _read_collective(cursor: Cursor, name: str) -> Operation:
    value = read_atom(cursor)
    items = getattr(value, "items", (value,))
    return Operation(name, tuple(expression(item) for item in items))
