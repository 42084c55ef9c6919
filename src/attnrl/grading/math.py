"""The ``math`` grader: equal spelling first, then plain numbers, then the comparison by type in worker processes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from attnrl.grading.answers import (
    MAX_ANSWER_CHARS,
    all_boxes,
    conclusion_of,
    extract_boxed,
    true_answers,
)
from attnrl.grading.base import ClosableGrader
from attnrl.grading.golds import MAX_GOLD_CHARS, UnusableGold, unusable_golds
from attnrl.grading.jobs import Job, JobResult
from attnrl.grading.reading.spelling import is_spelled_as, spelling
from attnrl.grading.reading.statement import MAX_PROBLEM_CHARS
from attnrl.grading.worker_pool import DEADLINE, WorkerPool
from attnrl.types import Grade, Problem

MAX_DISTINCT_BOXES = 8  # a response with more different boxes is wrong
MAX_PLAIN_CHARS = 100  # of a number compared without the workers
CACHE_SIZE = 8_192  # comparisons
MAX_CACHED_CHARS = 200  # longer answers rarely repeat and would fill the memory


@dataclass
class _Pending:
    """A response with a verdict still to come from the workers."""

    answer: str | None
    job: Job


class MathGrader(ClosableGrader):
    """Grade mathematical answers: equal spelling first, then the comparison by type in worker processes.

    Every box of a response has to be correct, or the boxes together list the values of the true answer. Copies of the
    problem and work not carried out are wrong (:mod:`attnrl.grading.guards.copies`). The reward is 1 for correct; 0 for
    wrong, and for a comparison that takes too long or fails because of the answer; None for a problem without a usable
    true answer (not judged).

    Args:
        flexible: if the response has no box, let math-verify extract an answer from the end of the response.
        workers: worker processes, at most; None: one per usable core, at most 8. Workers start with the first job.
        deadline: wall-clock seconds for one comparison.

    Raises:
        UserError: ``workers`` or ``deadline`` is out of range.
    """

    overlaps = True  # the worker pool takes calls from any thread
    compares_answers = True

    def __init__(self, *, flexible: bool = False, workers: int | None = None, deadline: float = DEADLINE) -> None:
        self.flexible = flexible
        self.pool = WorkerPool(workers, deadline=deadline)
        self._cache: OrderedDict[Job, JobResult] = OrderedDict()

    def close(self) -> None:
        """End the workers; a later call of ``grade`` starts new workers."""
        self.pool.close()

    def grade(self, problems: Sequence[Problem], responses: Sequence[str]) -> list[Grade]:
        """Return one grade per response, in order; waits for the comparisons of the workers."""
        first = [self._by_spelling(problem, response) for problem, response in zip(problems, responses, strict=True)]
        results = self._compare([grade.job for grade in first if isinstance(grade, _Pending)])
        return [grade if isinstance(grade, Grade) else _with_result(grade, results[grade.job]) for grade in first]

    def unusable_golds(self, problems: Sequence[Problem]) -> list[UnusableGold]:
        """Return the problems without a true answer that has a meaning; starts worker processes if needed."""
        return unusable_golds(problems)

    def _by_spelling(self, problem: Problem, response: str) -> Grade | _Pending:
        """Return the grade if spellings or plain numbers decide, or else the job for the workers."""
        answer = extract_boxed(response)
        golds = tuple(gold for gold in true_answers(problem.answers) if len(gold) <= MAX_GOLD_CHARS)
        if not golds:
            return Grade(None, "bad_gold", answer)
        text = question_of(problem)[:MAX_PROBLEM_CHARS]
        if answer is None and self.flexible:
            end = conclusion_of(response)[-MAX_ANSWER_CHARS:]
            if not end.strip():
                return Grade(0.0, "no_answer")
            return _Pending(None, Job(golds, (end,), text, prose=True))
        if answer is None or spelling(answer) is None:
            return Grade(0.0, "no_answer", answer)
        boxes = {spelling(box): box for box in all_boxes(response)}
        if len(boxes) > MAX_DISTINCT_BOXES:
            return Grade(0.0, "wrong", answer)
        open_boxes = [box for box in boxes.values() if not is_spelled_as(box, golds)]
        if not open_boxes:
            return Grade(1.0, "correct", answer)
        if len(boxes) == 1 and (equal := _equals_number(open_boxes[0], golds)) is not None:
            return Grade(float(equal), "correct" if equal else "wrong", answer)
        return _Pending(answer, Job(golds, tuple(boxes.values()), text))

    def _compare(self, jobs: Sequence[Job]) -> dict[Job, JobResult]:
        """Return the result of each job. Equal jobs run once; recent results are cached."""
        results = {job: found for job in jobs if (found := self._cache.get(job)) is not None}
        new = list(dict.fromkeys(job for job in jobs if job not in results))
        for job, result in zip(new, self.pool.run(new) if new else [], strict=True):
            results[job] = result
            # Timeouts and errors are not cached: the load of the machine may have caused them.
            if result.verdict in ("correct", "wrong") and sum(map(len, job.boxes)) <= MAX_CACHED_CHARS:
                self._cache[job] = result
        while len(self._cache) > CACHE_SIZE:
            self._cache.popitem(last=False)
        return results


def question_of(problem: Problem) -> str:
    """Return the text of the prompt; of chat messages, the user's messages, one per line."""
    if isinstance(problem.prompt, str):
        return problem.prompt
    return "\n".join(message["content"] for message in problem.prompt if message["role"] == "user")


def _with_result(pending: _Pending, result: JobResult) -> Grade:
    answer = pending.answer if pending.answer is not None else result.answer
    if result.verdict == "not_judged":
        return Grade(None, "not_judged", answer, fault="grader math: the worker was killed, or workers cannot start")
    if result.verdict == "bad_gold":
        return Grade(None, result.verdict, answer)
    return Grade(float(result.verdict == "correct"), result.verdict, answer)


def _plain_number(text: str) -> tuple[Fraction, bool] | None:
    """Return the value of an integer, a decimal or a fraction in lowest terms, and whether the number is a fraction.

    None for another text, for a percentage (two possible values) and for a fraction to be reduced.
    """
    key = spelling(text)
    if key is None or len(text) > MAX_PLAIN_CHARS:
        return None
    sign = -1 if key[0] == ("mark", "-") else 1
    parts = key[1:] if sign == -1 else key
    kinds, texts = [kind for kind, _ in parts], [part for _, part in parts]
    if not all(part.replace(".", "").isdecimal() for kind, part in parts if kind == "number"):
        return None  # a repeating decimal or an exponent
    if kinds == ["number"]:
        return sign * Fraction(texts[0]), False
    if kinds == ["command", "number", "number"] and texts[0] == "frac":
        over, under = texts[1:]
    elif kinds == ["number", "mark", "number"] and texts[1] == "/":
        over, under = texts[::2]
    else:
        return None
    if "." in over + under or int(under) < 2 or Fraction(int(over), int(under)).denominator != int(under):
        return None
    return Fraction(sign * int(over), int(under)), True


def _equals_number(answer: str, golds: Sequence[str]) -> bool | None:
    """Compare plain numbers exactly; None for a decimal and a fraction, which the judge compares."""
    found = _plain_number(answer)
    others = [_plain_number(gold) for gold in golds]
    if found is None or None in others:
        return None
    if found in others:
        return True
    return None if any(other and other[1] != found[1] for other in others) else False
