"""The reader of answers: a text to its typed values.

text -> tokens (``tokens``) -> letters sorted (``letters``) -> values. A listing has items (this module), an item is a
chain of sides (``sides``), a side is an expression (``sums``, ``atoms``, ``functions``) or a set (``brackets``), with a
unit or a noun after the expression.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

from attnrl.grading.reading.atoms import read_atom
from attnrl.grading.reading.brackets import with_bar
from attnrl.grading.reading.cursor import Cursor, Grammar, expression
from attnrl.grading.reading.expressions import Symbol, is_operation
from attnrl.grading.reading.letters import sort_letters
from attnrl.grading.reading.sides import OTHER_QUANTITY, read_name, read_side
from attnrl.grading.reading.sums import read_power, read_product, read_sum
from attnrl.grading.reading.tokens import Token, Unreadable, tokenize
from attnrl.grading.reading.units import read_unit
from attnrl.grading.reading.values import Labelled, Listing, Ratio, Relation, Residue, Value
from attnrl.grading.reading.words import only_words, read_label, read_time, read_words

_RELATIONS = frozenset({"=", "!=", "<", "<=", ">", ">="})
_RELATION_COMMANDS = {"in": "in", "approx": "~", "equiv": "≡", "cong": "≡"}
_DECIMAL_COMMA = re.compile(r"(-?0),(\d{3,})")
_PREFIXES_LIST = """
    the answer answers is are about approximately approx roughly exactly final value values equals total
    therefore thus hence result solution solutions only
"""
#: Words before a value without a meaning for the value.
_PREFIXES = frozenset(_PREFIXES_LIST.split())


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
    if len(tokens) == 2 and tokens[1].text == ")":  # the letter of a choice
        tokens = tokens[:1]
    if not tokens:
        raise Unreadable("an empty answer")
    found: list[Value] = []
    if time := read_time(text):
        found.append(time)
    if label := read_label(tokens):
        option = read_words(label[1], symbols) if only_words(label[1], symbols) else None
        found.append(Labelled(label[0], option or read_tokens(label[1], symbols, bare_units)))
    if words := read_words(tokens, symbols):
        found += [words, *_listing_of_words(tokens, symbols)]
    if comma := _DECIMAL_COMMA.fullmatch(text.strip()):
        found.append(read_tokens(tokenize(f"{comma[1]}.{comma[2]}"), symbols))
    failure: Unreadable | None = None
    for variant in () if words and only_words(tokens, symbols) else _with_and_without_thousands(text, tokens):
        try:
            found.append(read_tokens(variant, symbols, bare_units))
        except Unreadable as error:
            failure = failure or error
        except (ValueError, OverflowError, RecursionError) as error:  # digits or functions beyond all measure
            failure = failure or Unreadable(str(error))
    if not found:
        raise failure or Unreadable("no value")
    return tuple(found)


def _with_and_without_thousands(text: str, tokens: Sequence[Token]) -> list[Sequence[Token]]:
    """Return the tokens of ``1,234`` as a number, then as a listing if the text can be a listing."""
    plain = tokenize(text, thousands=False)
    return [tokens, plain] if plain != tokens and not re.search(r",0\d", text) else [tokens]  # 1,048 is no listing


def readings(text: str, symbols: frozenset[str] = frozenset(), *, bare_units: bool = False) -> tuple[Value, ...]:
    """Return the possible values of a text as :func:`read` does, and no value for an unreadable text."""
    try:
        return read(text, symbols, bare_units=bare_units)
    except Unreadable:
        return ()


def _listing_of_words(tokens: Sequence[Token], symbols: frozenset[str]) -> list[Listing]:
    """Return words between commas, ``and`` or ``or`` as a listing; nothing for a single item."""
    items: list[list[Token]] = [[]]
    joint = ","
    for token in tokens:
        if token.text in (",", ";", "and", "or"):
            joint = token.text if token.text in ("and", "or") else joint
            items.append([])
        else:
            items[-1].append(token)
    words = [read_words(item, symbols) for item in items if item]
    return [Listing(tuple(filter(None, words)), joint)] if len(words) > 1 and all(words) else []


def read_tokens(tokens: Sequence[Token], symbols: frozenset[str], bare_units: bool = False) -> Value:
    """Return the value of the tokens of an answer.

    Raises:
        Unreadable: the tokens have no value.
    """
    sorted_tokens = sort_letters(_mark_bare_units(tokens, symbols) if bare_units else tokens, symbols)
    while sorted_tokens and sorted_tokens[0].text.lower() in _PREFIXES and sorted_tokens[0].kind == "text":
        sorted_tokens = sorted_tokens[1:]
    sorted_tokens = _without_sentence(sorted_tokens)
    if sorted_tokens and sorted_tokens[0].text in (":", "="):
        sorted_tokens = sorted_tokens[1:]
    cursor = Cursor(sorted_tokens, GRAMMAR)
    value = with_bar(cursor, read_listing(cursor))
    if cursor.place < len(cursor.tokens):
        raise Unreadable(f"unexpected {cursor.peek().text!r}")
    return value


def _without_sentence(tokens: list[Token]) -> list[Token]:
    r"""Remove words that end in ``is`` before a value: ``\text{The number of ways is } 17``."""
    length = next((n for n, token in enumerate(tokens) if token.kind != "text"), 0)
    words = [token.text.lower() for token in tokens[:length]]
    states = length > 1 and words[-1] in ("is", "are", "equals") and not OTHER_QUANTITY.search(" ".join(words))
    return tokens[length:] if states else tokens


def _mark_bare_units(tokens: Sequence[Token], symbols: frozenset[str]) -> list[Token]:
    marked = list(tokens)
    for place, token in enumerate(tokens[1:], start=1):
        after = marked[place - 1].kind in ("number", "text") or marked[place - 1].text in ("/", "}", ")", "pi")
        is_unit = token.kind == "letters" and not symbols.issuperset(token.text) and read_unit(token.text) is not None
        if is_unit and after:
            marked[place] = Token("text", token.text, token.gap)
    return marked


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
    joint = next((word for word in ("or", "and") if word in joints), ",")
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
    return (
        cursor.place >= len(cursor.tokens) or cursor.at(")", "]", "}", "\\}", "&", "\\\\") or cursor.at_command("end")
    )


def _read_item(cursor: Cursor) -> Value:
    if cursor.accept("..."):
        return Symbol("...")
    sides, operators = [read_name(cursor) or _with_ratio(cursor, read_side(cursor))], list[str]()
    while operator := _operator(cursor):
        operators.append(operator)
        sides.append(read_name(cursor) or _with_ratio(cursor, read_side(cursor)))
    modulus = _modulus(cursor)
    last = sides[-1]
    if modulus is None and "≡" in operators and is_operation(last, "mod"):
        sides[-1], modulus = last.operands
    if modulus is not None:
        operators = ["=" if operator == "≡" else operator for operator in operators]
        if isinstance(sides[-1], Symbol) and not isinstance(sides[0], Symbol):
            sides.reverse()  # 5 = x (mod 9)
        sides[-1] = Residue(expression(sides[-1]), expression(modulus))
    return Relation(tuple(sides), tuple(operators)) if operators else sides[0]


def _operator(cursor: Cursor) -> str:
    token = cursor.peek()
    operator = ""
    if token.kind == "mark" and token.text in _RELATIONS:
        operator = token.text
    elif token.kind == "command":
        operator = _RELATION_COMMANDS.get(token.text, "")
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
    if cursor.brackets or not (cursor.at(":") or cursor.peek() == Token("text", "to", True)):
        return first
    parts = [expression(first)]
    while cursor.accept(":") or cursor.peek().text == "to":
        cursor.place += cursor.peek().text == "to"
        parts.append(expression(read_sum(cursor)))
    return Ratio(tuple(parts))


GRAMMAR = Grammar(read_listing, read_sum, read_product, read_power, read_atom)
