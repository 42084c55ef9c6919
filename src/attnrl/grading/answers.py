"""Grading: what a response put in its last ``\\boxed{}``, compared with the true answer."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from attnrl.types import Grade, Problem

BOX = "\\boxed{"
THINK_END = "</think>"
MAX_ANSWER_CHARS = 2_000  # no true answer is longer; whatever is longer is not an answer
MAX_BOXES = 32  # as many boxes of one response are looked at


def conclusion_of(response: str) -> str:
    """What follows the last ``</think>``; all of it where there is none."""
    return response.rpartition(THINK_END)[2]


def extract_boxed(response: str) -> str | None:
    """The content of the last ``\\boxed{...}`` after the last ``</think>``, or None.

    Braces inside the box may nest. A box that is never closed is no answer.
    """
    conclusion = _with_braces(conclusion_of(response))
    start = conclusion.rfind(BOX)
    return None if start < 0 else _box_content(conclusion, start + len(BOX))


def other_boxes(response: str) -> list[str]:
    """The contents of the boxes before the last one, each once: at most :data:`MAX_BOXES`, latest first.

    A box around another box and a box that is never closed do not count.
    """
    conclusion = _with_braces(conclusion_of(response))
    end = conclusion.rfind(BOX)
    found: dict[str, None] = {}
    for _ in range(MAX_BOXES):
        following, end = end, conclusion.rfind(BOX, 0, max(end, 0))
        if end < 0:
            break
        content = _box_content(conclusion, end + len(BOX))
        if content is not None and end + len(BOX) + len(content) < following:
            found[content] = None
    return list(found)


def _with_braces(text: str) -> str:
    r"""The same text with each ``\boxed {5}``, ``\fbox{5}`` and ``\boxed 5`` as ``\boxed{5}``."""
    text = re.sub(r"\\(?:boxed|fbox) ?\{", r"\\boxed{", text)
    return re.sub(r"\\boxed ([^\s$.,\\{}]+)", r"\\boxed{\1}", text)


def _box_content(text: str, start: int) -> str | None:
    """What stands from ``start`` to the brace that closes it."""
    window = text[start : start + MAX_ANSWER_CHARS]
    # An escaped brace (\\left\\{ with no partner, as before cases) opens nothing. Where that leaves the box
    # open, every brace counts: the answer may end in a backslash.
    for pattern in (r"\\.|[{}]", r"[{}]"):
        depth = 1
        for brace in re.finditer(pattern, window, re.DOTALL):
            depth += {"{": 1, "}": -1}.get(brace.group(), 0)
            if depth == 0:
                return window[: brace.start()]
    return None


def normalize_answer(answer: str) -> str:
    """Spell the same answer the same way: spaces, dollar signs, sizes of brackets and trailing zeros go."""
    text = answer.replace("\\$", "").strip().strip("$").strip()
    text = re.sub(r"\\(?:[,;!:]|(?:left|right|displaystyle)(?![a-zA-Z]))", "", text)
    text = re.sub(r"\\(?:text|mathrm|mbox)\{([^{}]*)\}", r"\1", text)
    text = re.sub(r"\\[dt]frac(?![a-zA-Z])", r"\\frac", text)
    text = re.sub(r"\^\{?\\circ\}?|\\%|%", "", text)
    text = re.sub(r"\s+", "", text).rstrip(".")
    if re.fullmatch(r"[+-]?\d{1,3}(,\d{3})+(\.\d+)?", text):  # thousands; in (100,101) the comma means something
        text = text.replace(",", "")
    if re.fullmatch(r"[+-]?(?:\d+(?:\.\d+)?|\.\d+)", text):
        sign = "-" if text.startswith("-") else ""
        whole, _, fraction = text.lstrip("+-").partition(".")
        fraction = fraction.rstrip("0")
        text = sign + (whole.lstrip("0") or "0") + (f".{fraction}" if fraction else "")
    return "0" if text == "-0" else text


def last_number(response: str) -> str | None:
    """The last number in the response after the last ``</think>``, or None."""
    numbers = re.findall(r"-?\d[\d,]*(?:\.\d+)?", conclusion_of(response)[-MAX_ANSWER_CHARS:])
    return numbers[-1].rstrip(",") if numbers else None


def is_correct(found: str | None, answers: Sequence[str]) -> bool:
    """Whether what was found equals one of the accepted answers after :func:`normalize_answer`."""
    normalized = "" if found is None else normalize_answer(found)
    return normalized != "" and any(normalize_answer(answer) == normalized for answer in answers)


def true_answers(answers: Sequence[str]) -> list[str]:
    """The accepted answers that say something; of a worked solution, what it boxes."""
    found = [_boxed_together(answer) or answer for answer in answers]
    return [answer for answer in found if normalize_answer(answer)]


def _boxed_together(text: str) -> str | None:
    """What a text boxes, several boxes as one list."""
    last = extract_boxed(text) if BOX in text else None
    return None if last is None else ", ".join([*reversed(other_boxes(text)), last])


def offers_alternatives(answer: str, answers: Sequence[str]) -> bool:
    """Whether an answer lists several values ("A or B", "A, B", plus or minus) where every true answer is one value."""
    return _lists_values(answer) and not expects_list(answers)


def expects_list(answers: Sequence[str]) -> bool:
    """Whether one of the true answers is several values: a list, a set, a tuple, an interval, plus or minus."""
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


_VALUE = r"(?:\\frac\{?\d+\}?\{?\d+\}?|\d+/\d+|\d*\.?\d+)"
_TO_WORK_OUT = re.compile(
    r"[\w)}\]|][-+*/^=<>!×·÷]|\\(?:cdot|times|div|sqrt|[a-z]?frac|binom|sum|int|prod|lim|log|ln|exp"
    r"|sin|cos|tan|cot|sec|csc|arc[a-z]+|mod|pmod|bmod|gcd|lfloor|lceil|leq?|geq?|neq?|det|circ)(?![a-zA-Z])"
)
_LONG_QUOTE = 40  # characters; nobody's answer is that long a piece of the problem


def repeats_problem(answer: str, problem: str) -> bool:
    """Whether an answer is a copy of what the problem asks to work out (``2+3``, ``x^2=4``, the whole statement).

    A value that the problem names (a number, a fraction, a word) is no copy: many problems ask which one.
    """
    statement = _spelled(problem)
    whole = _spelled(answer)
    value = whole.rpartition("=")[2]
    named = re.fullmatch(rf"[a-zA-Z]=-?{_VALUE}", whole) is not None
    return _is_copied(value, statement) or (not named and _is_copied(whole, statement))


def _spelled(text: str) -> str:
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
    elif not _TO_WORK_OUT.search(re.sub(rf"(?<![\w.]){_VALUE}(?![\w.])", "1", text)):
        return False
    text, statement = _bare(text), _bare(statement)
    if re.fullmatch(_ARITHMETIC, text):  # 3+2 for 2+3
        return any(_arithmetic(text) == _arithmetic(run) for run in re.findall(_ARITHMETIC, statement))
    return re.search(rf"(?<![0-9.^]){re.escape(text)}(?![0-9^])", statement) is not None


_ARITHMETIC = r"\d+(?:\.\d+)?(?:[-+*/]\d+(?:\.\d+)?)+"


def _bare(text: str) -> str:
    """A spelling without brackets, and with one sign for each operation: in copies they come and go."""
    text = re.sub(r"\\(?:cdot|times|ast)(?![a-zA-Z])|[×·∗]", "*", text)
    text = re.sub(r"\\div(?![a-zA-Z])|÷", "/", text)
    text = re.sub(r"\\[dt]binom", r"\\binom", text)
    return re.sub(r"[(){}\[\]]", "", text.replace("−", "-"))


def _arithmetic(run: str) -> tuple[list[str], list[float]]:
    """What a sum or product of plain numbers is made of, in any order, without what changes nothing."""
    operations = re.findall(r"[-+*/]", run)
    nothing = 1.0 if set(operations) <= {"*", "/"} else 0.0
    numbers = sorted(float(number) for number in re.findall(r"\d+(?:\.\d+)?", run))
    return sorted(set(operations)), [number for number in numbers if number != nothing]


def question_of(problem: Problem) -> str:
    """What the user asks, as one text."""
    if isinstance(problem.prompt, str):
        return problem.prompt
    return "\n".join(message["content"] for message in problem.prompt if message["role"] == "user")


@dataclass(frozen=True)
class AnswerGrader:
    """Reward 1 for a correct answer, else 0; see :class:`attnrl.types.Grader`.

    Attributes:
        flexible: take the last number of a response that boxes nothing. For models too small to follow the
            format; a response that goes on after its answer is then graded by luck.
    """

    flexible: bool = False
    overlaps = True

    def grade(self, problems: Sequence[Problem], responses: Sequence[str]) -> list[Grade]:
        """Grade each response against the accepted answers of its problem."""
        return [self._grade(problem, response) for problem, response in zip(problems, responses, strict=True)]

    def _grade(self, problem: Problem, response: str) -> Grade:
        accepted = true_answers(problem.answers)
        answer = self._extract(response)
        if not accepted:
            return Grade(0.0, "bad_gold", answer)
        if answer is None or not normalize_answer(answer):
            return Grade(0.0, "no_answer", answer)
        # Whoever boxes several answers has not said which one it is.
        correct = all(is_correct(box, accepted) for box in (answer, *other_boxes(response)))
        return Grade(float(correct), "correct" if correct else "wrong", answer)

    def _extract(self, response: str) -> str | None:
        boxed = extract_boxed(response)
        return last_number(response) if boxed is None and self.flexible else boxed
