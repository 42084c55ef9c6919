"""Answers in words, the letters of choices before an answer, and times of the day."""

from __future__ import annotations

import re
from collections.abc import Sequence

from attnrl.grading.reading.expressions import Symbol
from attnrl.grading.reading.letters import SHORT_WORDS
from attnrl.grading.reading.tokens import Token
from attnrl.grading.reading.values import TimeOfDay, Words

_NUMBERS_LIST = """
    zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen
    eighteen nineteen
"""
_TENS_LIST = "twenty thirty forty fifty sixty seventy eighty ninety"
#: Word -> integer below 20, and the tens.
NUMBER_WORDS = {word: number for number, word in enumerate(_NUMBERS_LIST.split())}
NUMBER_WORDS |= {word: 10 * number for number, word in enumerate(_TENS_LIST.split(), start=2)}

_TIME = re.compile(
    r"(?P<hour>\d{1,2})(?:\s?:\s?(?P<minute>[0-5]\d))?\s*(?P<half>[ap])\.?\s?m\b\.?|(?P<h24>[01]?\d|2[0-3]):(?P<m24>[0-5]\d)",
    re.IGNORECASE | re.ASCII,
)


def only_words(tokens: Sequence[Token], symbols: frozenset[str]) -> bool:
    """Return True if the tokens are words and cannot be a product of variables or an amount with a unit."""
    runs = [token for token in tokens if token.kind in ("letters", "text")]
    if any(token.kind in ("number", "command") for token in tokens):
        return False
    return any(
        _is_word(token, False, symbols) and (_is_capital_run(token.text) or not symbols.issuperset(token.text))
        for token in runs
    )


def _is_product(run: str, symbols: frozenset[str]) -> bool:
    return symbols.issuperset(run) and not _is_capital_run(run)


def _is_capital_run(run: str) -> bool:
    return len(run) > 2 and run.isupper()


_CHOICE = re.compile(r"(?:the )?(?:option|choice|answer|statement) \(?([A-J])\)?", re.IGNORECASE)


_ANSWER_IS = re.compile(r"(?i)^(?:the )?(?:final )?answer(?: is|:) ")
_PUNCTUATION = frozenset("-',.;:?!()&#")


def read_words(tokens: Sequence[Token], symbols: frozenset[str]) -> Words | Symbol | None:
    """Return the answer as words, or None if the tokens are mathematics only; of ``option B``, the letter."""
    kept = [token for token in tokens if token.text not in ("{", "}")]
    if not kept or any(
        token.kind == "command" or (token.kind == "mark" and token.text not in _PUNCTUATION) for token in kept
    ):
        return None
    runs = [token for token in kept if token.kind in ("letters", "text")]
    if (
        kept[0].text in ("-", "!")
        or kept[-1].text in ("-", "!")
        or any(token.text == "-" and token.gap for token in kept)
    ):
        return None
    if not runs or kept[0].kind == "number" or not any(_is_word(token, len(runs) > 1, symbols) for token in runs):
        return None
    text = "".join((" " if token.gap and n else "") + token.text for n, token in enumerate(kept))
    text = _ANSWER_IS.sub("", text)
    choice = _CHOICE.fullmatch(text)
    return Symbol(choice[1].upper()) if choice else Words(text)


def _is_word(token: Token, several: bool, symbols: frozenset[str]) -> bool:
    run = token.text
    if len(run) == 1:
        return False
    if token.kind == "letters" and _is_product(run, symbols):
        return False
    if run in ("pi", "or", "and") or (run in ("sin", "cos", "tan", "log", "ln", "sqrt", "exp", "infinity") and several):
        return False
    if token.kind == "letters" and run.islower() and (set("xyz").issuperset(run) or not set("aeiouy") & set(run)):
        return False  # no word has a spelling like that
    return token.kind == "text" or len(run) > 2 or run.isupper() or run.lower() in SHORT_WORDS


def read_label(tokens: Sequence[Token]) -> tuple[str, Sequence[Token]] | None:
    r"""Return the letter of a choice and the tokens after the letter, as in ``\textbf{(E) } 42``."""
    texts = [token.text for token in tokens[:3]]
    if len(tokens) > 3 and texts[0] == "(" and texts[2] == ")":
        letter, rest = texts[1], tokens[3:]
    elif len(tokens) > 2 and texts[1] in (")", ".", ":"):
        letter, rest = texts[0], tokens[2:]
    else:
        return None
    if not re.fullmatch("[A-J]", letter):
        return None
    starts = rest[0].kind != "mark" or rest[0].text in ("$", "-", "(", "{", "\\{", "[")
    return (letter, rest) if starts and (rest[0].gap or tokens[1].kind == "text") else None


def read_time(text: str) -> TimeOfDay | None:
    """Return the time of the day that a text states, or None."""
    plain = re.sub(r"\\(?:text|mathrm|textbf|mbox)\s*\{([^{}]*)\}|\\[ ,;:]|~", r" \1 ", text)
    plain = re.sub(r"[${}]|\\!", "", plain)
    plain = re.sub(r"in the (morning|afternoon|evening)", lambda part: "am" if part[1] == "morning" else "pm", plain)
    words = " ".join(plain.lower().split())
    if words.removeprefix("12 ").removeprefix("12:00 ") in ("noon", "midnight"):
        return TimeOfDay(0, "pm" if words.endswith("noon") else "am")
    found = _TIME.fullmatch(re.sub(r"\s+", " ", plain).strip().rstrip(","))
    if not found:
        return None
    if found["h24"]:
        return TimeOfDay(60 * int(found["h24"]) + int(found["m24"]), "")
    if not 1 <= int(found["hour"]) <= 12:
        return None
    return TimeOfDay(60 * (int(found["hour"]) % 12) + int(found["minute"] or 0), found["half"].lower() + "m")
