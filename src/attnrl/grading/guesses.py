"""Detection of guesses: answers accepted by computer algebra although the response has not worked out an answer.

Two kinds of guesses: alternatives ("5 or 6"), and copies of an expression of the problem.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from attnrl.grading.answers import normalize_answer
from attnrl.types import Problem

# ---------------------------------------------------------------------------------------------------------------------
# Alternatives
# ---------------------------------------------------------------------------------------------------------------------


def offers_alternatives(answer: str, answers: Sequence[str]) -> bool:
    """Return True if an answer lists several values ("A or B", "A, B", ±A) and every true answer is a single value."""
    return _lists_values(answer) and not expects_list(answers)


def expects_list(answers: Sequence[str]) -> bool:
    """Return True if any true answer has several values: a list, a set, a tuple, an interval, ±A."""
    return any(_lists_values(accepted) or _lists_values(_without_brackets(accepted)) for accepted in answers)


def _lists_values(text: str) -> bool:
    text = re.sub(r"\\[,;: ]|\$", " ", text.replace("\\!", ""))
    text = re.sub(r"\\(?:text|textbf|mathrm|mathbf|mbox)\{([^{}]*)\}", r" \1 ", text)
    text = re.sub(r"(?<=\d)(?:\{,\}|,)(?=\d{3}(?!\d))", "", text)  # thousands
    if re.search(r"\bor\b|\band\b|\\(?:lor|vee|pm|mp)(?![a-zA-Z])|±", text):
        return True
    if len(re.findall(r"(?<![\\a-zA-Z])[a-zA-Z]\s*=\s*[-+]?\.?\d", text)) > 1:  # x=4 x=5
        return True
    sides = [side.strip() for side in text.split("=")]
    numbers = {side for side in sides if re.fullmatch(r"[-+]?\d*\.?\d+", side)}
    if len(numbers) > 1 and all(side in numbers or re.fullmatch(r"[a-zA-Z]", side) for side in sides):  # x=4=5
        return True
    depth = 0
    for character in text:
        if character in "([{":
            depth += 1
        elif character in ")]}":
            depth -= 1
        elif character in ",;" and depth <= 0:
            return True
    return False


def _without_brackets(text: str) -> str:
    text = re.sub(r"\\(?:left|right)(?![a-zA-Z])|\$|\\(?=[{}])", "", text).strip().rstrip(".")
    return text[1:-1] if text[:1] in "([{" and text[-1:] in ")]}" else text


# ---------------------------------------------------------------------------------------------------------------------
# Copies of the problem
# ---------------------------------------------------------------------------------------------------------------------

_VALUE = r"(?:\\frac\{?\d+\}?\{?\d+\}?|\d+/\d+|\d*\.?\d+)"
_ARITHMETIC = r"\d+(?:\.\d+)?(?:[-+*/]\d+(?:\.\d+)?)+"
_OPERATION = re.compile(
    r"[\w)}\]|][-+*/^=<>!×·÷]|\\(?:cdot|times|div|sqrt|[a-z]?frac|binom|sum|int|prod|lim|log|ln|exp"
    r"|sin|cos|tan|cot|sec|csc|arc[a-z]+|mod|pmod|bmod|gcd|lfloor|lceil|leq?|geq?|neq?|det|circ)(?![a-zA-Z])"
)
_LONG_QUOTE = 40  # characters; an answer that quotes as much of the problem is a copy, with or without an operation


def question_of(problem: Problem) -> str:
    """Return the text of the prompt; of chat messages, the user's messages, one per line."""
    if isinstance(problem.prompt, str):
        return problem.prompt
    return "\n".join(message["content"] for message in problem.prompt if message["role"] == "user")


def repeats_problem(answer: str, problem: str) -> bool:
    """Return True if an answer copies an expression of the problem (``2+3``, ``x^2=4``) or the whole statement.

    A value that the problem names (a number, a fraction in lowest terms, a word) is not a copy, because many problems
    ask to choose between named values.
    """
    statement = _plain(problem)
    whole = _plain(answer)
    value = whole.rpartition("=")[2]
    named = re.fullmatch(rf"[a-zA-Z]=-?{_VALUE}", whole) is not None
    return _is_copied(value, statement) or (not named and _is_copied(whole, statement))


def _plain(text: str) -> str:
    text = normalize_answer(re.sub(r"\\[()\[\]]|\$", "", text))
    return re.sub(r"\\text\{[^{}]*\}", "", text)


def _is_copied(text: str, statement: str) -> bool:
    if len(text) < 3:
        return False
    if len(text) >= _LONG_QUOTE:
        return text in statement or (len(statement) >= _LONG_QUOTE and statement in text)
    fraction = re.fullmatch(r"-?(?:\\frac\{?(\d+)\}?\{?(\d+)\}?|(\d+)/(\d+))", text)
    if fraction and len(text) <= _LONG_QUOTE:
        over, under = (int(part) for part in fraction.groups() if part)
        reducible = math.gcd(over, under) > 1 or under == 1
        if not reducible:
            return False
    elif not _OPERATION.search(re.sub(rf"(?<![\w.]){_VALUE}(?![\w.])", "1", text)):
        return False
    text, statement = _without_grouping(text), _without_grouping(statement)
    if re.fullmatch(_ARITHMETIC, text):  # 3+2 copies 2+3
        return any(_operands(text) == _operands(run) for run in re.findall(_ARITHMETIC, statement))
    return re.search(rf"(?<![0-9.^]){re.escape(text)}(?![0-9^])", statement) is not None


def _without_grouping(text: str) -> str:
    """Remove brackets and braces and use the same sign for each operation, because copies vary in both."""
    text = re.sub(r"\\(?:cdot|times|ast)(?![a-zA-Z])|[×·∗]", "*", text)
    text = re.sub(r"\\div(?![a-zA-Z])|÷", "/", text)
    text = re.sub(r"\\[dt]binom", r"\\binom", text)
    return re.sub(r"[(){}\[\]]", "", text.replace("−", "-"))


def _operands(arithmetic: str) -> tuple[list[str], list[float]]:
    """Return the distinct operations and the sorted operands of plain arithmetic, without neutral elements."""
    operations = re.findall(r"[-+*/]", arithmetic)
    neutral = 1.0 if set(operations) <= {"*", "/"} else 0.0
    numbers = sorted(float(number) for number in re.findall(r"\d+(?:\.\d+)?", arithmetic))
    return sorted(set(operations)), [number for number in numbers if number != neutral]
