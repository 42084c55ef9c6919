"""The reader of one side of a relation: an expression or a set, with the unit or the noun after it."""

from __future__ import annotations

import re
from fractions import Fraction

from attnrl.grading.reading.cursor import Cursor, Unsupported, expression
from attnrl.grading.reading.expressions import Expression, Number, Operation, Symbol, is_operation
from attnrl.grading.reading.letters import SHORT_WORDS
from attnrl.grading.reading.sums import read_sum
from attnrl.grading.reading.tokens import Unreadable
from attnrl.grading.reading.units import read_unit, scale_of
from attnrl.grading.reading.values import BaseNumber, Brackets, Counted, NamedSet, Quantity, SetOperation, Value

MAX_NAME_TOKENS = 24  # before an equality sign
MAX_NOUN_WORDS = 5  # after a number
_SET_COMMANDS = {"cup": "union", "cap": "intersection", "setminus": "difference"}
_CURRENCY_WORDS = frozenset({"USD", "EUR", "GBP", "JPY"})
_CURRENCIES = {"$": "dollars", "euro": "euros", "pounds": "pounds sterling", "yen": "yen"}
_NOT_NOUNS_LIST = """
    wrong correct maybe perhaps probably possibly not never nothing none times squared cubed factorial over mod
    plus minus divided half halves third thirds quarter quarters tenth tenths hundredth hundredths percent base
    more less fewer greater than least most was were has have are will would could should this that these those
    but else otherwise unless except with without guess wait
"""
#: Words after a number that make another number or no answer.
_NOT_NOUNS = SHORT_WORDS | frozenset(_NOT_NOUNS_LIST.split())
#: Words that make a name the name of another quantity.
OTHER_QUANTITY = re.compile(r"(?i)\b(?:not|except|anything|twice|double|half|triple|square|wrong)\b")
#: Names of quantities: segments, angles, areas, values of functions, probabilities, words.
_NAME = re.compile(
    r"[A-Z]{2,4}|m?\\angle\{?[A-Za-z\d]+\}?|\\triangle[A-Z]+|\|[A-Z]{2}\||\[[A-Z]{3,}\]|m?\\overline\{[A-Z]+\}"
    r"|[A-Za-z](?:_\{?\w+\}?)?'*\((?:[a-z]|\d+)(?:,(?:[a-z]|\d+))*\)|[nd]\([A-Z][A-Z,\\a-z]*\)|\|[A-Z]\|"
    r"|(?:\\mathbb\{)?(?:P|E|Var)\}?(?:_\{?\w+\}?)?[(\[][^=()\[\]]*(?:\([^=()]*\))?[^=()\[\]]*[)\]]"
)


def read_name(cursor: Cursor) -> Symbol | None:
    r"""Read the name of a quantity before an equality sign: ``AB``, ``\angle ABC``, ``P(A)``, ``\text{Area}``."""
    text, place, words = "", cursor.place, True
    while place < min(len(cursor.tokens), cursor.place + MAX_NAME_TOKENS):
        token = cursor.tokens[place]
        if (token.kind == "number" and not text) or (token.kind == "mark" and token.text in ("<", ">", "<=", ">=")):
            return None
        if (token.kind == "mark" and token.text == "=") or (token.kind == "command" and token.text == "approx"):
            break
        words = words and token.kind == "text"
        text += ("\\" if token.kind == "command" else "") + token.text + (" " if token.kind == "text" else "")
        place += 1
    else:
        return None
    text = text.strip()
    if not text or not (words or (_NAME.fullmatch(text.replace(" ", "")) and len(text) > 1)):
        return None
    if re.fullmatch(r"(\w)\(\1\)", text) or OTHER_QUANTITY.search(text):
        return None
    cursor.place = place
    return Symbol(text)


def read_side(cursor: Cursor) -> Value:
    """Read an expression or a set with the unit or noun after the expression; sets may be joined by ``\\cup``."""
    value = _with_suffix(cursor, _read_amount(cursor))
    while name := _set_operation(cursor, value):
        cursor.take()
        joined = value.operands if isinstance(value, SetOperation) and value.name == name == "union" else (value,)
        value = SetOperation(name, (*joined, _read_amount(cursor)))
    return value


def _set_operation(cursor: Cursor, left: Value) -> str:
    """Return the name of the operation on sets at the position, ``""`` for another token."""
    token = cursor.peek()
    if token.kind == "command":
        return _SET_COMMANDS.get(token.text, "")
    if isinstance(left, Brackets | SetOperation) and token.text in ("U", "∪"):
        return "union"
    return "difference" if isinstance(left, NamedSet) and cursor.at("-", "/") else ""


def _read_amount(cursor: Cursor) -> Value:
    r"""Read an expression or a set; after a currency sign (``\$3.50``, ``-\$5``), a quantity."""
    sign = cursor.at("-", "+") and cursor.peek(1).text in _CURRENCIES
    negative = sign and cursor.peek().text == "-"
    cursor.place += sign
    token = cursor.peek()
    before = token.text in _CURRENCIES and token.kind in ("mark", "command")
    if not before and token.text not in _CURRENCY_WORDS:
        amount = read_sum(cursor)
        after = cursor.at("$") and isinstance(amount, Number | Operation)
        unit = read_unit(_CURRENCIES[cursor.take().text]) if after else None
        return amount if unit is None else Quantity(expression(amount), unit)
    cursor.take()
    amount = expression(read_sum(cursor))
    unit = read_unit(_CURRENCIES.get(token.text, token.text))
    if unit is None:
        raise Unsupported("a currency")
    if cursor.peek().kind == "text" and (scale := scale_of(cursor.peek().text)):
        cursor.take()
        amount = _scaled(amount, scale)
    return Quantity(Operation("negate", (amount,)) if negative else amount, unit)


def _scaled(amount: Value, scale: int) -> Operation:
    return Operation("multiply", (expression(amount), Number(Fraction(scale))))


def _with_suffix(cursor: Cursor, amount: Value) -> Value:
    """Read the words after an amount: a scale (``million``), a unit, or the noun of the things counted."""
    if isinstance(amount, Expression):
        while cursor.peek().kind == "text" and (scale := scale_of(cursor.peek().text)):
            cursor.take()
            amount = _scaled(amount, scale)
    base = re.match(r"\(?base(\d{1,2})\)?(?!\d)", cursor.texts(0, 4))
    if base and isinstance(amount, Number):
        cursor.place += 4 if base[0].startswith("(") else 2
        return BaseNumber(str(amount.value), int(base[1]))
    words = _suffix_words(cursor)
    if not words:
        return amount
    if isinstance(amount, Quantity):
        if read_unit(words) != amount.unit and words.lower() not in ("usd", "dollars"):
            raise Unreadable("two units")
        return amount
    if is_operation(amount, "degrees"):
        unit = read_unit(words)
        if unit is None:
            raise Unreadable("words after degrees")
        return Quantity(amount.operands[0], unit)
    if words.lower() in ("percent", "per cent", "pct", "percentage"):
        return Operation("percent", (expression(amount),))
    unit = read_unit(words)
    if unit is not None:
        return _compound(cursor, Quantity(expression(amount), unit))
    nouns = words.lower().split()
    if not all(re.fullmatch(r"[a-z][a-z'-]*\.?", noun) for noun in nouns) or len(nouns) > MAX_NOUN_WORDS:
        raise Unreadable("prose after a number")
    if any(noun in _NOT_NOUNS or scale_of(noun) for noun in nouns):
        raise Unreadable("prose after a number")
    return Counted(expression(amount), " ".join(nouns))


def _suffix_words(cursor: Cursor) -> str:
    """Return the words and signs of a unit after an amount, ``""`` if no word follows."""
    first = cursor.peek()
    reciprocal = first.text == "/" and cursor.peek(1).kind == "text"
    if not (first.kind == "text" or reciprocal) or first.text.lower() in ("and", "or", "to"):
        return ""
    words = ""
    while cursor.place < len(cursor.tokens):
        token = cursor.peek()
        after_power = words.endswith(("^", "^{", "-"))
        unit_mark = token.kind == "mark" and token.text in ("^", "/", "*", ".", "'", "-")
        exponent = ((token.text in ("{", "-") or token.kind == "number") and after_power) or (
            token.text == "}" and "{" in words
        )
        if token.kind == "text" and token.text.lower() in ("and", "or"):
            break
        if not (token.kind == "text" or unit_mark or exponent):
            break
        words += (" " if words and token.kind == "text" and (token.gap or words[-1].isalpha()) else "") + token.text
        cursor.take()
    return words.strip().rstrip(".")


def _compound(cursor: Cursor, quantity: Quantity) -> Quantity:
    r"""Add the parts of a compound quantity: ``1 \text{ hour } 30 \text{ minutes}``."""
    start = cursor.place
    if cursor.peek().kind == "text" and cursor.peek().text == "and":
        cursor.take()
    if cursor.peek().kind == "number":
        amount = read_sum(cursor)
        unit = read_unit(_suffix_words(cursor))
        if unit is not None and unit.dimension == quantity.unit.dimension:
            ratio = Number(unit.factor / quantity.unit.factor)
            part = Operation("multiply", (expression(amount), ratio))
            return Quantity(Operation("add", (expression(quantity.amount), part)), quantity.unit)
    cursor.place = start
    return quantity
