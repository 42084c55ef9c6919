"""The ``math`` grader: string equality first, then exact numbers, then math-verify in worker processes."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from attnrl.grading.answers import (
    MAX_ANSWER_CHARS,
    conclusion_of,
    extract_boxed,
    is_correct,
    normalize_answer,
    other_boxes,
    true_answers,
)
from attnrl.grading.base import ClosableGrader
from attnrl.grading.golds import MAX_GOLD_CHARS, UnusableGold, unusable_golds
from attnrl.grading.guesses import expects_list, offers_alternatives, question_of, repeats_problem
from attnrl.grading.jobs import Job, JobResult
from attnrl.grading.worker_pool import DEADLINE, WorkerPool
from attnrl.types import Grade, Problem, Verdict

MAX_DISTINCT_BOXES = 8  # a response with more different boxes is wrong
CACHE_SIZE = 8_192  # comparisons
MAX_CACHED_CHARS = 200  # longer answers rarely repeat and would fill the memory


@dataclass
class _Pending:
    """A response with a verdict still to come from the workers: correct if all jobs are correct."""

    problem: Problem
    answer: str | None
    jobs: list[Job]


class MathGrader(ClosableGrader):
    """The paper's hybrid grader: string equality of the last box, and math-verify for unequal strings.

    Guesses are wrong, even if math-verify finds an equal value: several boxes with a wrong box among the boxes,
    alternatives for a single true value, and a copy of an expression of the problem.

    Args:
        flexible: if the response has no box, let math-verify extract an answer from the end of the response.
        workers: worker processes, at most; None: one per usable core, at most 8. Workers start with the first job.
        deadline: wall-clock seconds for one comparison.

    Raises:
        UserError: ``workers`` or ``deadline`` is out of range.
    """

    overlaps = True  # the worker pool takes calls from any thread

    def __init__(self, *, flexible: bool = False, workers: int | None = None, deadline: float = DEADLINE) -> None:
        self.flexible = flexible
        self.pool = WorkerPool(workers, deadline=deadline)
        self._cache: OrderedDict[Job, JobResult] = OrderedDict()

    def close(self) -> None:
        """End the workers; a later call of ``grade`` starts new workers."""
        self.pool.close()

    def grade(self, problems: Sequence[Problem], responses: Sequence[str]) -> list[Grade]:
        """Return one grade per response, in order; waits for the comparisons of the workers."""
        first = [
            self._without_algebra(problem, response) for problem, response in zip(problems, responses, strict=True)
        ]
        results = self._compare([job for grade in first if isinstance(grade, _Pending) for job in grade.jobs])
        return [grade if isinstance(grade, Grade) else _with_results(grade, results) for grade in first]

    def unusable_golds(self, problems: Sequence[Problem]) -> list[UnusableGold]:
        """Return the problems without a true answer parseable by math-verify; starts worker processes if needed."""
        return unusable_golds(problems)

    def _without_algebra(self, problem: Problem, response: str) -> Grade | _Pending:
        """Return the grade if computer algebra is not needed, or else the jobs for the workers."""
        answer = extract_boxed(response)
        accepted = [gold for gold in true_answers(problem.answers) if len(gold) <= MAX_GOLD_CHARS]
        if not accepted:
            return Grade(0.0, "bad_gold", answer)
        if answer is None and self.flexible:
            end = conclusion_of(response)[-MAX_ANSWER_CHARS:]
            if not end.strip():
                return Grade(0.0, "no_answer")
            return _Pending(problem, None, [Job(tuple(accepted), end, prose=True)])
        if answer is None or not normalize_answer(answer):
            return Grade(0.0, "no_answer", answer)
        boxes = {normalize_answer(box): box for box in (*reversed(other_boxes(response)), answer)}
        if len(boxes) > MAX_DISTINCT_BOXES:
            return Grade(0.0, "wrong", answer)
        jobs = []
        for box in boxes.values():
            if is_correct(box, accepted):
                continue
            if len(boxes) > 1 and expects_list(accepted):  # one value of the list in each box
                together = ", ".join(boxes.values())[:MAX_ANSWER_CHARS]
                return _Pending(problem, answer, [Job(tuple(accepted), together)])
            equal = _equals_number(box, accepted)
            if equal is False or offers_alternatives(box, accepted) or repeats_problem(box, question_of(problem)):
                return Grade(0.0, "wrong", answer)
            if equal is None:
                jobs.append(Job(tuple(accepted), box))
        return _Pending(problem, answer, jobs) if jobs else Grade(1.0, "correct", answer)

    def _compare(self, jobs: Sequence[Job]) -> dict[Job, JobResult]:
        """Return the result of each job. Equal jobs run once; recent results are cached."""
        results = {job: self._cache[job] for job in jobs if job in self._cache}
        new = list(dict.fromkeys(job for job in jobs if job not in results))
        for job, result in zip(new, self.pool.run(new) if new else [], strict=True):
            results[job] = result
            # Timeouts and errors are not cached: the load of the machine may have caused them.
            if result.verdict in ("correct", "wrong") and len(job.answer or "") <= MAX_CACHED_CHARS:
                self._cache[job] = result
        while len(self._cache) > CACHE_SIZE:
            self._cache.popitem(last=False)
        return results


def _with_results(pending: _Pending, results: dict[Job, JobResult]) -> Grade:
    """Return the grade of a response from the results of the jobs."""
    found = [results[job] for job in pending.jobs]
    answer = pending.answer if pending.answer is not None else found[-1].answer
    failed: list[Verdict] = [result.verdict for result in found if result.verdict != "correct"]
    if not failed:
        # An answer extracted by math-verify is checked for guesses here; boxes were checked before.
        if pending.answer is None and answer is not None and not is_correct(answer, pending.problem.answers):
            several = offers_alternatives(answer, true_answers(pending.problem.answers))
            if several or repeats_problem(answer, question_of(pending.problem)):
                return Grade(0.0, "wrong", answer)
        return Grade(1.0, "correct", answer)
    return Grade(0.0, failed[-1] if len(failed) == 1 or "wrong" not in failed else "wrong", answer)


_NUMBER = re.compile(
    r"(?P<decimal>[+-]?(?:\d+(?:\.\d+)?|\.\d+))"
    r"|(?P<sign>[+-]?)(?:\\frac(?:\{(?P<a>\d+)\}\{(?P<b>\d+)\}|(?P<c>\d)(?P<d>\d))|(?P<e>\d+)/(?P<f>\d+))",
    re.ASCII,
)


def _number(text: str) -> Fraction | None:
    """Return the value of a plain number or fraction, or else None. A percentage (two possible values) gives None."""
    if len(text) > 100 or "%" in text:
        return None
    match = _NUMBER.fullmatch(normalize_answer(text))
    if match is None:
        return None
    if match["decimal"]:
        return Fraction(match["decimal"])
    over, under = (int(match[x] or match[y] or match[z]) for x, y, z in ("ace", "bdf"))
    if under == 0:
        return None
    return Fraction(-over if match["sign"] == "-" else over, under)


def _equals_number(answer: str, golds: Sequence[str]) -> bool | None:
    """Compare plain numbers (``5``, ``x=5``) exactly; None if computer algebra has to decide."""
    value = _number(re.sub(r"^\s*[a-zA-Z]\s*=", "", answer) if not any("=" in gold for gold in golds) else answer)
    if value is None:
        return None
    others = [_number(gold) for gold in golds]
    if value in others:
        return True
    # math-verify compares decimals to six places, so it decides between close numbers.
    return None if any(other is None or abs(value - other) < Fraction(1, 10_000) for other in others) else False
