"""Single changes of a gold text that give another value: one digit, sign, symbol letter or interval bracket.

The text is changed, not a parsed value, so that nothing here depends on the grader. Left alone, because the changed
text may have the value of the gold, or no value that can be told without the problem:

- the content of ``\\text``, ``\\mbox``, ``\\mathrm`` and ``\\textbf`` with an exponent behind (units, words, choice
  letters), the argument of ``\\phantom``, names of commands and environments, columns of an array, ``^\\circ C``,
  bare units (``cm``, ``Hz``);
- the left side of ``name = value`` and ``name \\in set``, and a single letter beside an inequality sign: labels;
- trailing zeros of a decimal, a digit that would become a leading zero, a digit that would become the number 0, and
  exponents of 1;
- signs before 0, and unary minus under an even power;
- the constants ``e`` and ``i``, the ``d`` of derivatives, words of three or more letters, golds that are one capital or
  a list of A to E, and the case of a gold that is one letter (choice letters);
- the arbitrary constants ``c``, ``C``, ``C_1`` of solutions with ``e^``, and their signs;
- whole golds: families of solutions (``\\pi k``), approximations, chains of equations, sums and integrals (their index
  is a label), times and ratios but for their digits;
- a bracket beside infinity, and a bound that another interval of the gold includes.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator

KINDS = ("digit", "sign", "letter", "bracket")
GREEK = ("alpha", "beta", "gamma", "theta", "omega", "lambda", "rho", "sigma", "tau", "phi", "hbar", "Delta")
_MASKED = re.compile(
    r"\\(?:text|mbox|mathrm|textbf|textrm|operatorname)\s*\{[^{}]*\}(?:\s*\^\s*\{?-?\d+\}?)?"
    r"|\\(?:begin|end)\s*\{[^{}]*\}(?:\{[clr|]+\})?"
    r"|\^\s*\{?\s*\\circ\s*\}?\s*[CF]\b"
    r"|(?<![A-Za-z\\])(?:cm|km|mm|kg|Hz|ft|in|mi|lb)(?![A-Za-z])(?:\s*\^\s*\{?-?\d+\}?)?"
    r"|\\phantom\s*(?:\{[^{}]*\}|\S)|\\[A-Za-z]+|\\[^A-Za-z]"
)
_LABEL_SIDE = re.compile(r"(?:^|(?<=[,;$]))[^,;=<>]*=(?!=)")
_LABEL_LETTER = re.compile(r"(?<![A-Za-z\\])[A-Za-z](?=\s*(?:\\in\b|[<>]|\\(?:l|g)(?:e|eq|eqslant)\b))")
_WHOLE = re.compile(
    r"\\pi\s*[kn]\b|[kn]\s*\\pi|\\approx|\\sum|\\int|\\prod|\\cdots|\\ldots|\\dots|=[^,;$]*=|^\s*\$?t\("
)
_BEFORE_UNARY = re.compile(r"\\(?:\\|begin\{[a-z]+\}|cup|in|le|ge|quad)$")
_NUMBER = re.compile(r"\d+(?:\.\d*)?|\.\d+")
_INTERVAL = re.compile(r"(?P<left>[(\[])(?P<low>[^,()\[\]]+),(?P<high>[^,()\[\]]+)(?P<right>[)\]])")


def changes(gold: str, rng: random.Random) -> dict[str, list[str]]:
    """Return kind -> the gold with one place changed, for every place that a kind may change."""
    found: dict[str, list[str]] = {kind: [] for kind in KINDS}
    if _WHOLE.search(gold) or len(gold) > 400:
        return found
    free = _free(gold)
    constants = "cC" if "e^" in gold and re.search(r"(?<![A-Za-z\\])[cC]", gold) else ""
    found["digit"] = list(_digits(gold, free, rng))
    if not re.search(r"\d\s*(?:\\!)?:", gold):
        found["sign"] = list(_signs(gold, free, constants))
    if not re.fullmatch(r"(?:[\s$({]*[A-E][\s$)}.]*,?)+|[\s$({]*[A-Z][\s$)}.]*", gold):
        found["letter"] = list(_letters(gold, free, constants, rng))
    found["bracket"] = list(_brackets(gold))
    return {kind: [text for text in texts if text != gold] for kind, texts in found.items()}


def _free(gold: str) -> list[bool]:
    """Return True for each character that stands for a value: no command, unit, word or label."""
    free = [True] * len(gold)
    spans = [*_MASKED.finditer(gold), *_LABEL_LETTER.finditer(gold)]
    # The left side of x = 5 is a label; a side with a sum or a difference is half of an equation.
    spans += [label for label in _LABEL_SIDE.finditer(gold) if not re.search(r"[+\-]", label[0])]
    for span in spans:
        free[span.start() : span.end()] = [False] * (span.end() - span.start())
    return free


def _digits(gold: str, free: list[bool], rng: random.Random) -> Iterator[str]:
    for number in _NUMBER.finditer(gold):
        if re.search(r"(?<![\d.])1\s*\^[ {]*$", gold[: number.start()]):
            continue
        for place in range(number.start(), number.end()):
            trailing_zero = "." in number[0] and not gold[place : number.end()].strip("0")
            if not gold[place].isdigit() or not free[place] or trailing_zero:
                continue
            before, behind = number[0][: place - number.start()], number[0][place - number.start() + 1 :]
            possible = [before + digit + behind for digit in "0123456789" if digit != gold[place]]
            possible = [text for text in possible if float(text) and not re.match(r"0\d", text)]
            if possible:
                yield gold[: number.start()] + rng.choice(possible) + gold[number.end() :]


def _signs(gold: str, free: list[bool], constants: str) -> Iterator[str]:
    for place, sign in enumerate(gold):
        if sign not in "+-" or not free[place]:
            continue
        behind, before = gold[place + 1 :].lstrip(" {"), gold[:place].rstrip()
        if re.match(r"0(?![\d.])", behind) or (constants and behind[:1] in constants):
            continue
        unary = not before or before[-1] in "([{,=^&$|<>;" or _BEFORE_UNARY.search(before)
        if not unary:
            yield gold[:place] + ("-" if sign == "+" else "+") + gold[place + 1 :]
        elif not re.match(r"[^()]*\)\s*\^\s*\{?[2468]\b", gold[place:]):
            yield gold[:place] + ("-" if sign == "+" else "") + gold[place + 1 :]
    start = re.match(r"[\s$]*", gold).end() if gold else 0  # type: ignore[union-attr]
    single = not re.search(
        r"[,;=<>:]|\\(?:in|le|ge|geqslant|cup|text\{ ?or|begin|pm|mp|quad)\b|\d\\!|[A-Za-z]{3,}\s*$", gold
    )
    if single and re.match(r"[1-9.]|0?\.\d|\\(?:[dt]?frac|sqrt|pi)\b|[a-zA-Z](?![A-Za-z])", gold[start:]):
        single = not (constants and gold[start] in constants) and not re.fullmatch(r"[A-Z]\W*", gold[start:])
        yield from [gold[:start] + "-" + gold[start:]] if single else []


def _letters(gold: str, free: list[bool], constants: str, rng: random.Random) -> Iterator[str]:
    others = [letter for letter in "hjkquvwz" if letter not in gold]
    for word in re.finditer(r"[A-Za-z]+", gold):
        if len(word[0]) > 2:
            continue
        for place in range(word.start(), word.end()):
            letter = gold[place]
            differential = letter == "d" and re.search(r"\\frac\s*\{?\s*d", gold)
            if not free[place] or letter in "ei" or differential or letter in constants:
                continue
            yield gold[:place] + rng.choice(others) + gold[place + 1 :]
            if (
                len(word[0]) == 1 < len(gold.strip(" ${}()."))
                and letter.swapcase() not in gold
                and letter.swapcase() not in "EI"
            ):
                yield gold[:place] + letter.swapcase() + gold[place + 1 :]
    label = next((span.end() for span in _LABEL_SIDE.finditer(gold) if not re.search(r"[+\-]", span[0])), 0)
    for command in re.finditer(r"\\(" + "|".join(GREEK) + r")(?![A-Za-z])", gold):
        if command.start() >= label:
            other = rng.choice([name for name in GREEK if f"\\{name}" not in gold])
            yield f"{gold[: command.start()]}\\{other}{gold[command.end() :]}"


def _brackets(gold: str) -> Iterator[str]:
    plain = re.sub(r"\\(?:left|right)(?![A-Za-z])", lambda match: " " * len(match[0]), gold)  # keeps all places
    intervals = list(_INTERVAL.finditer(plain))
    if not intervals or not re.search(r"[\[\]]|\\infty", plain) or re.search(r"\\sqrt\s*\[", plain):
        return
    if re.sub(r"[\s$.]|\\cup|x\\in|\{-?\d+\}", "", _INTERVAL.sub("", plain)):
        return  # more than a union of intervals
    bounds = [(match[name].strip(), match[side] in "[]") for match in intervals for name, side in SIDES]
    for match in intervals:
        for name, side in SIDES:
            bound = match[name].strip()
            if "infty" not in bound and bounds.count((bound, True)) <= (match[side] in "[]"):
                other = {"(": "[", "[": "(", ")": "]", "]": ")"}[match[side]]
                yield gold[: match.start(side)] + other + gold[match.end(side) :]


SIDES = (("low", "left"), ("high", "right"))
