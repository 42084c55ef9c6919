"""The letters of an answer sorted into functions, words and variables."""

from __future__ import annotations

from collections.abc import Sequence

from attnrl.grading.reading.expressions import HYPERBOLIC, INVERSE, TRIGONOMETRIC
from attnrl.grading.reading.tokens import Token
from attnrl.grading.reading.units import is_spelled_unit, scale_of

#: Functions of one argument, by the name in LaTeX or plain text.
FUNCTIONS = {name: name for name in (*TRIGONOMETRIC, *HYPERBOLIC, *INVERSE, "ln", "log", "exp", "arg")}
FUNCTIONS |= {"arc" + name: "arc" + name for name in ("sinh", "cosh", "tanh")}
FUNCTIONS |= {"a" + name: "arc" + name for name in TRIGONOMETRIC[:3]}
FUNCTIONS |= {
    "arsinh": "arcsinh",
    "arcosh": "arccosh",
    "artanh": "arctanh",
    "tg": "tan",
    "ctg": "cot",
    "arctg": "arctan",
}
FUNCTIONS |= {"Re": "re", "Im": "im", "floor": "floor", "ceil": "ceil", "abs": "abs"}
#: Functions of several arguments.
COLLECTIVES = frozenset({"gcd", "lcm", "max", "min"})
#: Names of commands without a backslash -> command.
_PLAIN_COMMANDS = {"pi": "pi", "sqrt": "sqrt", "infinity": "infty", "infty": "infty", "inf": "infty", "mod": "mod"}
_PLAIN_COMMANDS |= {"theta": "theta", "alpha": "alpha", "beta": "beta", "oo": "infty", "cup": "cup", "union": "cup"}
_SHORT_WORDS_LIST = """
    am an as at be by do go he if in is it me my no of on or so to up us we per not the for
"""
#: Words of at most three letters.
SHORT_WORDS = frozenset(_SHORT_WORDS_LIST.split())


def sort_letters(tokens: Sequence[Token], symbols: frozenset[str]) -> list[Token]:
    """Return the tokens with each run of letters as a function, a word, or variables of one letter each.

    Args:
        tokens: the tokens of an answer.
        symbols: variables of the problem; a run of these variables is a product, never a unit.
    """
    sorted_tokens: list[Token] = []
    for place, token in enumerate(tokens):
        previous = sorted_tokens[-1] if sorted_tokens else None
        if previous and previous.text == "°" and token.kind in ("letters", "text") and token.text in ("C", "F"):
            sorted_tokens[-1] = Token("text", "°" + token.text, previous.gap)
        elif _in_environment_name(tokens, place):
            sorted_tokens.append(token)
        else:
            sorted_tokens += _sorted_run(token, previous, symbols)
    return _without_unit_fractions(sorted_tokens)


def _sorted_run(token: Token, previous: Token | None, symbols: frozenset[str]) -> list[Token]:
    """Return the tokens for a token: a run of letters as a command, a word, or one token for each letter."""
    run = token.text
    is_function = run in FUNCTIONS or run in COLLECTIVES
    if token.kind == "text":
        is_command = run == "mod" or (is_function and not _after_amount(previous))
        return [Token("command", run, token.gap)] if is_command else [token]
    if token.kind != "letters" or len(run) == 1:
        return [token]
    if is_function:
        return [Token("command", run, token.gap)]
    if run.lower() in _PLAIN_COMMANDS:
        return [Token("command", _PLAIN_COMMANDS[run.lower()], token.gap)]
    if _is_word(token, previous, symbols):
        return [Token("text", run, token.gap)]
    return [Token("letters", letter, token.gap and n == 0) for n, letter in enumerate(run)]


def _without_unit_fractions(tokens: list[Token]) -> list[Token]:
    r"""Write ``\frac{\text{km}}{\text{h}}`` as ``km/h``: a fraction of words after an amount is a unit."""
    for place in range(1, len(tokens) - 6):
        kinds = "".join(token.kind[0] for token in tokens[place : place + 7])
        marks = [tokens[place + n].text for n in (0, 1, 3, 4, 6)]
        if kinds == "cmtmmtm" and marks == ["frac", "{", "}", "{", "}"]:
            unit = [tokens[place + 2], Token("mark", "/"), tokens[place + 5]]
            return tokens[:place] + unit + tokens[place + 7 :]
    return tokens


def _in_environment_name(tokens: Sequence[Token], place: int) -> bool:
    return place >= 2 and tokens[place - 2].text in ("begin", "end") and tokens[place - 2].kind == "command"


def _after_amount(previous: Token | None) -> bool:
    """Return True right after a number: ``min`` are minutes."""
    return previous is not None and (previous.kind == "number" or previous.text in (")", "}"))


def _is_word(token: Token, previous: Token | None, symbols: frozenset[str]) -> bool:
    """Return True for a run of letters that is a word or a unit, not a product of variables."""
    run = token.text
    if run.lower() in ("or", "and", "pct", "percent") or scale_of(run) is not None:
        return True
    if symbols.issuperset(run):
        return False
    if previous is None:
        return len(run) > 3 or run.lower() == "the"
    after_amount = previous.kind in ("number", "text") or previous.text in (")", "}", "%", "°", "pi")
    if is_spelled_unit(run) and (after_amount or previous.text == "/"):
        return True
    return token.gap and after_amount and (run.lower() in SHORT_WORDS or (len(run) > 2 and _has_vowel(run)))


def _has_vowel(run: str) -> bool:
    return any(letter in "aeiouAEIOU" for letter in run)
