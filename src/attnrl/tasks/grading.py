"""Grading: what a response put in its last ``\\boxed{}``, compared with the true answer."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from attnrl.protocols import Grade
from attnrl.tasks.problem import Problem

BOX = "\\boxed{"
THINK_END = "</think>"
MAX_ANSWER_CHARS = 2_000  # no true answer is longer; whatever is longer is not an answer


def extract_boxed(response: str) -> str | None:
    """The content of the last ``\\boxed{...}`` after the last ``</think>``, or None.

    Braces inside the box may nest. A box that is never closed is no answer.
    """
    conclusion = response.rpartition(THINK_END)[2]
    start = conclusion.rfind(BOX)
    if start < 0:
        return None
    start += len(BOX)
    depth = 1
    for end in range(start, min(len(conclusion), start + MAX_ANSWER_CHARS)):
        depth += {"{": 1, "}": -1}.get(conclusion[end], 0)
        if depth == 0:
            return conclusion[start:end]
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
    if re.fullmatch(r"[+-]?\d*\.?\d+", text):
        sign = "-" if text.startswith("-") else ""
        whole, _, fraction = text.lstrip("+-").partition(".")
        fraction = fraction.rstrip("0")
        text = sign + (whole.lstrip("0") or "0") + (f".{fraction}" if fraction else "")
    return "0" if text == "-0" else text


def last_number(response: str) -> str | None:
    """The last number in the response after the last ``</think>``, or None."""
    numbers = re.findall(r"-?\d[\d,]*(?:\.\d+)?", response.rpartition(THINK_END)[2][-MAX_ANSWER_CHARS:])
    return numbers[-1].rstrip(",") if numbers else None


def is_correct(found: str | None, answers: Sequence[str]) -> bool:
    """Whether what was found equals one of the accepted answers after :func:`normalize_answer`."""
    normalized = "" if found is None else normalize_answer(found)
    return normalized != "" and any(normalize_answer(answer) == normalized for answer in answers)


@dataclass(frozen=True)
class AnswerGrader:
    """Reward 1 for a correct answer, else 0; see :class:`attnrl.protocols.Grader`.

    Attributes:
        flexible: take the last number of a response that boxes nothing. For models too small to follow the
            format; a response that goes on after its answer is then graded by luck.
    """

    flexible: bool = False

    def grade(self, problems: Sequence[Problem], responses: Sequence[str]) -> list[Grade]:
        """Grade each response against the accepted answers of its problem."""
        return [self._grade(problem, response) for problem, response in zip(problems, responses, strict=True)]

    def _grade(self, problem: Problem, response: str) -> Grade:
        answer = self._extract(response)
        if answer is None:
            return Grade(0.0, "no_answer")
        correct = is_correct(answer, problem.answers)
        return Grade(float(correct), "correct" if correct else "wrong", answer)

    def _extract(self, response: str) -> str | None:
        boxed = extract_boxed(response)
        return last_number(response) if boxed is None and self.flexible else boxed
