"""Grading by rules: equal spelling of the boxes and a true answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from attnrl.grading.answers import all_boxes, extract_boxed, last_number, true_answers
from attnrl.grading.base import ClosableGrader
from attnrl.grading.reading.spelling import is_spelled_as, spelling
from attnrl.types import Grade, Problem


@dataclass(frozen=True)
class RulesGrader(ClosableGrader):
    """Grade with reward 1 if every box of the response equals an accepted answer in spelling, else 0.

    A problem without a usable true answer has no reward: not judged.

    Attributes:
        flexible: if the response has no box, take the last number. For models too small to follow the format; if the
            response continues after the answer, the last number is arbitrary.
    """

    flexible: bool = False
    overlaps = True
    compares_answers = True

    def grade(self, problems: Sequence[Problem], responses: Sequence[str]) -> list[Grade]:
        """Return one grade per response, in order."""
        return [self._grade(problem, response) for problem, response in zip(problems, responses, strict=True)]

    def _grade(self, problem: Problem, response: str) -> Grade:
        accepted = true_answers(problem.answers)
        answer = self._extract(response)
        if not accepted:
            return Grade(None, "bad_gold", answer)
        if answer is None or spelling(answer) is None:
            return Grade(0.0, "no_answer", answer)
        correct = all(is_spelled_as(box, accepted, amounts=True) for box in (answer, *all_boxes(response)))
        return Grade(float(correct), "correct" if correct else "wrong", answer)

    def _extract(self, response: str) -> str | None:
        boxed = extract_boxed(response)
        return last_number(response) if boxed is None and self.flexible else boxed
