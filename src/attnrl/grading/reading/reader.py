"""The reader of answers: a text to its typed values.

text -> tokens (:mod:`attnrl.grading.reading.tokens`) -> letters sorted (:mod:`attnrl.grading.reading.cursor`) -> values. A listing has
items, an item is a chain of sides, a side is an expression or a set with a unit or a noun after it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache

from attnrl.grading.reading.brackets import with_bar
from attnrl.grading.reading.cursor import SHORT_WORDS, Cursor, Unsupported, expression, sort_letters
from attnrl.grading.reading.expression_reader import read_atom, read_sum
from attnrl.grading.reading.expressions import Number, Operation, Symbol
from attnrl.grading.reading.tokens import Token, Unreadable, tokenize
from attnrl.grading.reading.units import Unit, is_spelled_unit, read_unit, scale_of
from attnrl.grading.reading.values import (
    BaseNumber,
    Brackets,
    Counted,
    Labelled,
    Listing,
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

_RELATIONS = {"=": "=", "!=": "!=", "<": "<", "<=": "<=", ">": ">", ">=": ">=", "≡": "="}
_RELATION_COMMANDS = {"in": "in", "approx": "~", "sim": "~", "equiv": "=", "cong": "=", "simeq": "~"}
_SET_COMMANDS = {"cup": "union", "cap": "intersection", "setminus": "difference"}
#: Words before a value without a meaning for the value.
_PREFIXES = frozenset(
    [
        "the",
        "answer",
        "answers",
        "is",
        "are",
        "about",
        "approximately",
        "approx",
        "roughly",
        "exactly",
        "final",
        "value",
        "values",
        "equals",
        "total",
        "therefore",
        "thus",
        "hence",
        "result",
        "solution",
        "solutions",
        "only",
        "x",
        "y",
        "n",
    ]
) - {"x", "y", "n"}
_CURRENCIES = {"$": "dollars", "euro": "euros", "pounds": "pounds sterling", "yen": "yen"}
#: Words after a number that make the number another one, or no answer.
_NOT_NOUNS = SHORT_WORDS | frozenset(
    [
        "wrong",
        "correct",
        "maybe",
        "perhaps",
        "probably",
        "possibly",
        "not",
        "never",
        "nothing",
        "none",
        "times",
        "squared",
        "cubed",
        "factorial",
        "over",
        "mod",
        "plus",
        "minus",
        "divided",
        "half",
        "halves",
        "third",
        "thirds",
        "quarter",
        "quarters",
        "tenth",
        "tenths",
        "hundredth",
        "hundredths",
        "percent",
        "base",
        "more",
        "less",
        "fewer",
        "greater",
        "than",
        "least",
        "most",
        "was",
        "were",
        "has",
        "have",
        "are",
        "will",
        "would",
        "could",
        "should",
        "this",
        "that",
        "these",
        "those",
        "but",
        "else",
        "otherwise",
        "unless",
        "except",
        "with",
        "without",
        "guess",
        "wait",
    ]
)
_TIME = re.compile(
    r"(?P<hour>\d{1,2})(?::(?P<minute>[0-5]\d))?\s*(?P<half>[ap])\.?\s?m\b\.?|(?P<h24>[01]?\d|2[0-3]):(?P<m24>[0-5]\d)",
    re.IGNORECASE | re.ASCII,
)


@lru_cache(maxsize=1024)
def read(text: str, symbols: frozenset[str] = frozenset(), *, bare_units: bool = False) -> tuple[Value, ...]:
    """Return the possible values of an answer, the most likely first: usually a single value.

    ``1,234`` is a number or a listing, ``cat`` words, ``3:45`` a ratio or a time of the day.

    Args:
        text: the answer, without the box around it.
        symbols: variables of the problem; a run of these letters is a product, not a word or a unit.
        bare_units: read a letter after a number as a unit where a unit of that letter exists (``5 m``).

    Raises:
        Unreadable: the text has no value.
        Unsupported: the text is mathematics beyond the reader.
    """
    tokens = tokenize(text)
    if not tokens:
        raise Unreadable("an empty answer")
    found: list[Value] = []
    time = _time_of_day(text)
    if time:
        found.append(time)
    label = _label(tokens)
    if label:
        found.append(Labelled(label[0], read_tokens(label[1], symbols, bare_units)))
    words = _words(tokens, symbols)
    if words:
        found.append(words)
    if comma := re.fullmatch(r"(-?0),(\d+)", text.strip()):
        found.append(read_tokens(tokenize(f"{comma[1]}.{comma[2]}"), symbols))
    failure: Unreadable | None = None
    if not (words and _only_words(tokens, symbols)):
        plain = tokenize(text, thousands=False)
        for variant in (tokens, plain) if plain != tokens else (tokens,):
            try:
                value = read_tokens(variant, symbols, bare_units)
            except Unreadable as error:
                failure = failure or error
            else:
                found.append(value)
    if not found:
        raise failure or Unreadable("no value")
    return tuple(found)


def read_tokens(tokens: Sequence[Token], symbols: frozenset[str], bare_units: bool = False) -> Value:
    """Return the value of the tokens of an answer.

    Raises:
        Unreadable: the tokens have no value.
    """
    sorted_tokens = sort_letters(tokens, symbols)
    if bare_units:
        sorted_tokens = _mark_bare_units(sorted_tokens, symbols)
    while sorted_tokens and sorted_tokens[0].text.lower() in _PREFIXES and sorted_tokens[0].kind == "text":
        sorted_tokens = sorted_tokens[1:]
    if sorted_tokens and sorted_tokens[0].text == ":":
        sorted_tokens = sorted_tokens[1:]
    cursor = Cursor(sorted_tokens, read_listing)
    value = with_bar(cursor, read_listing(cursor))
    if cursor.place < len(cursor.tokens):
        raise Unreadable(f"unexpected {cursor.peek().text!r}")
    return value


def _mark_bare_units(tokens: Sequence[Token], symbols: frozenset[str]) -> list[Token]:
    marked = list(tokens)
    for place, token in enumerate(tokens[1:], start=1):
        after = marked[place - 1].kind in ("number", "text") or marked[place - 1].text in ("/", "}", ")", "pi")
        if token.kind == "letters" and after and token.text not in symbols and read_unit(token.text) is not None:
            marked[place] = Token("text", token.text, token.gap)
    return marked


# ---------------------------------------------------------------------------------------------------------------------
# Words, labels and times
# ---------------------------------------------------------------------------------------------------------------------


def _only_words(tokens: Sequence[Token], symbols: frozenset[str]) -> bool:
    """Return True if the tokens are words and cannot be a product of variables or an amount with a unit."""
    runs = [token for token in tokens if token.kind in ("letters", "text")]
    if any(token.kind in ("number", "command") for token in tokens):
        return False
    return any(
        len(token.text) > 1 and (_is_capital_run(token.text) or not symbols.issuperset(token.text)) for token in runs
    )


def _is_capital_run(run: str) -> bool:
    return len(run) > 2 and run.isupper()


def _words(tokens: Sequence[Token], symbols: frozenset[str]) -> Words | None:
    """Return the answer as words, or None if the tokens are mathematics only."""
    kept = [token for token in tokens if token.text not in ("{", "}")]
    if not kept or any(token.kind == "command" or token.text in "=+*^_<>|/" for token in kept):
        return None
    runs = [token for token in kept if token.kind in ("letters", "text")]
    if not runs or kept[0].kind == "number" or not any(_is_word(token, len(runs) > 1, symbols) for token in runs):
        return None
    return Words("".join((" " if token.gap and n else "") + token.text for n, token in enumerate(kept)))


def _is_word(token: Token, several: bool, symbols: frozenset[str]) -> bool:
    run = token.text
    if len(run) == 1:
        return False
    if symbols.issuperset(run) and token.kind == "letters" and not _is_capital_run(run):
        return False
    if run in ("pi", "or", "and") or (run in ("sin", "cos", "tan", "log", "ln", "sqrt", "exp", "infinity") and several):
        return False
    return token.kind == "text" or len(run) > 2 or run.isupper() or run.lower() in SHORT_WORDS


def _label(tokens: Sequence[Token]) -> tuple[str, Sequence[Token]] | None:
    r"""Return the letter of a choice and the tokens after the letter, as in ``\textbf{(E) } 42``."""
    texts = [token.text for token in tokens[:3]]
    bracketed = len(tokens) > 3 and texts[0] == "(" and texts[2] == ")"
    letter, rest = (texts[1], tokens[3:]) if bracketed else ((texts[0], tokens[2:]) if len(tokens) > 2 else ("", ()))
    if not re.fullmatch("[A-J]", letter) or not (bracketed or texts[1] in (")", ".", ":")):
        return None
    starts = rest[0].kind != "mark" or rest[0].text in ("$", "-", "(", "{", "\\{", "[")
    return (letter, rest) if starts and (rest[0].gap or tokens[1].kind == "text") else None


def _time_of_day(text: str) -> TimeOfDay | None:
    plain = re.sub(r"\\(?:text|mathrm|textbf|mbox)\s*\{([^{}]*)\}|\\[ ,;:]|~", r" \1 ", text)
    plain = re.sub(r"[${}]", "", plain)
    found = _TIME.fullmatch(re.sub(r"\s+", " ", plain).strip().rstrip(","))
    if not found:
        return None
    if found["h24"]:
        return TimeOfDay(60 * int(found["h24"]) + int(found["m24"]), "")
    if not 1 <= int(found["hour"]) <= 12:
        return None
    return TimeOfDay(60 * (int(found["hour"]) % 12) + int(found["minute"] or 0), found["half"].lower() + "m")


# ---------------------------------------------------------------------------------------------------------------------
# Listings and items
# ---------------------------------------------------------------------------------------------------------------------


def read_listing(cursor: Cursor) -> Value:
    """Read values joined by commas, semicolons, ``and`` or ``or``; a single value is returned as the value."""
    groups, joints = [[_read_item(cursor)]], set[str]()
    while joint := _joint(cursor):
        joints.add(joint)
        if _at_end(cursor) and joint in (",", ";"):
            break
        if joint == ";":
            groups.append([])
        groups[-1].append(_read_item(cursor))
    joint = "or" if "or" in joints else "and" if "and" in joints else ","
    if len(groups) > 1 and joint == ",":  # a semicolon separates groups: p=5, q=2; p=7, q=2
        return Listing(tuple(group[0] if len(group) == 1 else Listing(tuple(group), ",") for group in groups), ",")
    items = [item for group in groups for item in group]
    return items[0] if len(items) == 1 else Listing(tuple(items), joint)


def _joint(cursor: Cursor) -> str:
    joint = ""
    while True:
        token = cursor.peek()
        if cursor.at(",", ";") or (token.kind == "mark" and token.text == "\\\\" and cursor.depth == 0):
            joint = joint or (";" if token.text == ";" else ",")
        elif token.kind == "text" and token.text.lower() in ("and", "or"):
            joint = token.text.lower()
        else:
            return joint
        cursor.take()


def _at_end(cursor: Cursor) -> bool:
    return cursor.place >= len(cursor.tokens) or cursor.at(")", "]", "}", "\\}")


def _read_item(cursor: Cursor) -> Value:
    if cursor.accept("..."):
        return Symbol("...")
    sides, operators = [_read_name(cursor) or _with_ratio(cursor, _read_side(cursor))], list[str]()
    while operator := _operator(cursor):
        operators.append(operator)
        sides.append(_read_name(cursor) or _with_ratio(cursor, _read_side(cursor)))
    modulus = _modulus(cursor)
    if modulus is not None:
        sides[-1] = Residue(expression(sides[-1]), expression(modulus))
    return Relation(tuple(sides), tuple(operators)) if operators else sides[0]


def _operator(cursor: Cursor) -> str:
    token = cursor.peek()
    table = _RELATIONS if token.kind == "mark" else _RELATION_COMMANDS if token.kind == "command" else {}
    operator = table.get(token.text, "")
    cursor.place += bool(operator)
    return operator


def _modulus(cursor: Cursor) -> Value | None:
    r"""Read ``\pmod 7``, ``\pmod{7}`` or ``(\bmod 7)``."""
    if cursor.at_command("pmod"):
        cursor.take()
        return read_atom(cursor)
    if cursor.at("(") and cursor.peek(1).kind == "command" and cursor.peek(1).text in ("mod", "bmod"):
        cursor.place += 2
        modulus = read_sum(cursor)
        cursor.expect(")")
        return modulus
    return None


def _with_ratio(cursor: Cursor, first: Value) -> Value:
    if cursor.depth or not (cursor.at(":") or cursor.peek() == Token("text", "to", True)):
        return first
    parts = [expression(first)]
    while cursor.accept(":") or cursor.peek().text == "to":
        cursor.place += cursor.peek().text == "to"
        parts.append(expression(read_sum(cursor)))
    return Ratio(tuple(parts))


_NAME = re.compile(
    r"[A-Z]{2,4}|m?\\angle\{?[A-Za-z\d]+\}?|\\triangle[A-Z]+|\|[A-Z]{2}\||\[[A-Z]{3,}\]|m?\\overline\{[A-Z]+\}"
    r"|[A-Za-z](?:_\{?\w+\}?)?'*\((?:[a-z]|\d+)(?:,(?:[a-z]|\d+))*\)|(?:\\mathbb\{)?(?:P|E|Var)\}?(?:_\{?\w+\}?)?[(\[][^=]*[)\]]"
    r"|[A-Za-z]_\{[^{}=]*\}|(?:[A-Za-z]{2,} ?)+"
)


def _read_name(cursor: Cursor) -> Symbol | None:
    r"""Read the name of a quantity before an equality sign: ``AB``, ``\angle ABC``, ``P(A)``, ``f(3)``, ``\text{Area}``."""
    text, place, words = "", cursor.place, True
    while place < len(cursor.tokens) and place < cursor.place + 24:
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
    if re.fullmatch(r"(\w)\(\1\)", text) or re.match(r"(?i)not\b", text):
        return None
    cursor.place = place
    return Symbol(text)


# ---------------------------------------------------------------------------------------------------------------------
# Sides
# ---------------------------------------------------------------------------------------------------------------------


def _read_side(cursor: Cursor) -> Value:
    value = _with_suffix(cursor, _read_amount(cursor))
    while True:
        token = cursor.peek()
        if token.kind == "command" and token.text in _SET_COMMANDS:
            name = _SET_COMMANDS[token.text]
        elif isinstance(value, Brackets | SetOperation) and token.text in ("U", "∪"):
            name = "union"
        elif isinstance(value, NamedSet) and cursor.at("-", "/"):
            name = "difference"
        else:
            return value
        cursor.take()
        other = _read_amount(cursor)
        same = isinstance(value, SetOperation) and value.name == name == "union"
        value = SetOperation(name, (*(value.operands if same else (value,)), other))  # type: ignore[union-attr]


def _read_amount(cursor: Cursor) -> Value:
    r"""Read an expression or a set; after a currency sign (``\$3.50``, ``-\$5``), a quantity."""
    sign = cursor.at("-", "+") and cursor.peek(1).text in _CURRENCIES
    negative = sign and cursor.peek().text == "-"
    cursor.place += sign
    token = cursor.peek()
    if token.text not in _CURRENCIES or token.kind not in ("mark", "command"):
        return read_sum(cursor)
    cursor.take()
    amount = expression(read_sum(cursor))
    unit = read_unit(_CURRENCIES[token.text])
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
    if isinstance(amount, Number | Operation | Symbol):
        while cursor.peek().kind == "text" and (scale := scale_of(cursor.peek().text)):
            cursor.take()
            amount = _scaled(amount, scale)
    start = cursor.place
    words = _suffix_words(cursor)
    if not words:
        return amount
    if isinstance(amount, Quantity):
        if read_unit(words) != amount.unit and words.lower() not in ("usd", "dollars"):
            raise Unreadable("two units")
        return amount
    if isinstance(amount, Operation) and amount.name == "degrees":
        unit = read_unit(words)
        if unit is None:
            raise Unreadable("words after degrees")
        return Quantity(amount.operands[0], unit)
    if words.lower() in ("percent", "per cent", "pct", "percentage"):
        return Operation("percent", (expression(amount),))
    unit = read_unit(words)
    if unit is not None:
        return _compound(cursor, Quantity(expression(amount), unit))
    base = re.fullmatch(r"(?:in )?base ?(\w+)", words.strip("() "))
    if base and isinstance(amount, Number) and base[1].isdigit():
        return BaseNumber(str(amount.value), int(base[1]))
    nouns = words.lower().split()
    if not all(re.fullmatch(r"[a-z][a-z'-]*\.?", noun) for noun in nouns) or len(nouns) > 5:
        raise Unreadable("prose after a number")
    if any(noun in _NOT_NOUNS or scale_of(noun) for noun in nouns):
        raise Unreadable("prose after a number")
    del start
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


def unit_of(text: str) -> Unit | None:
    """Return the unit of a word without markup, or None."""
    return read_unit(text) if is_spelled_unit(text) else None
