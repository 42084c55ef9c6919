"""The search for true answers (golds) unusable for the ``math`` grader, before a run starts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from attnrl.grading.answers import MAX_ANSWER_CHARS, true_answers
from attnrl.grading.jobs import Job
from attnrl.grading.reading.reader import readings
from attnrl.grading.worker_pool import WorkerPool
from attnrl.types import Problem

MAX_GOLD_CHARS = 20_000  # of a worked solution; a true answer alone is short
GOLD_DEADLINE = 2.0  # seconds to parse one true answer


@dataclass(frozen=True)
class UnusableGold:
    """A problem without a usable true answer.

    Attributes:
        row: index of the problem in the sequence of problems, from 0.
        id: id of the problem.
        answers: true answers of the problem.
        reason: why the true answers cannot be used.
    """

    row: int
    id: str
    answers: tuple[str, ...]
    reason: str


def unusable_golds(
    problems: Sequence[Problem], *, workers: int | None = None, deadline: float = GOLD_DEADLINE
) -> list[UnusableGold]:
    """Return the problems without a true answer that has a meaning, in order.

    The golds beyond :mod:`attnrl.grading.reading` are parsed by math-verify once each, in worker processes, within
    ``deadline`` seconds.

    Raises:
        UserError: no worker process can be started.
    """
    found: dict[int, str] = {}
    jobs: dict[Job, list[int]] = {}
    for row, problem in enumerate(problems):
        accepted = true_answers(problem.answers)
        short = [gold for gold in accepted if len(gold) <= MAX_GOLD_CHARS]
        if not accepted:
            found[row] = "empty"
        elif not short:
            found[row] = f"longer than {MAX_GOLD_CHARS} characters"
        elif not any(map(_is_readable, short)):
            job = Job(tuple(dict.fromkeys(gold.strip() for gold in short)))
            jobs.setdefault(job, []).append(row)
    reasons = {"timeout": f"takes longer than {deadline:g} s to parse", "error": "cannot be parsed (memory or depth)"}
    with WorkerPool(workers, deadline=deadline) as pool:
        for (_, rows), result in zip(jobs.items(), pool.run(list(jobs)), strict=True):
            if result.verdict not in ("correct", "not_judged"):
                found |= dict.fromkeys(rows, reasons.get(result.verdict, "cannot be parsed"))
    return [UnusableGold(row, problems[row].id, problems[row].answers, found[row]) for row in sorted(found)]


def _is_readable(gold: str) -> bool:
    return len(gold) <= MAX_ANSWER_CHARS and bool(readings(gold))
