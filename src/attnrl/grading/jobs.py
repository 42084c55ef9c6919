"""The records that the worker pool and its worker processes exchange as JSON."""

from __future__ import annotations

from dataclasses import dataclass

from attnrl.types import Verdict


@dataclass(frozen=True)
class Job:
    """One comparison of an answer with its golds.

    Attributes:
        golds: the accepted answers.
        answer: the answer to compare; None asks whether the golds can be parsed (``correct``) or not (``bad_gold``).
        prose: the answer is running text, from which math-verify extracts the answer.
    """

    golds: tuple[str, ...]
    answer: str | None
    prose: bool = False


@dataclass(frozen=True)
class JobResult:
    """The verdict of one job, and the answer that math-verify extracted if the job's answer was prose."""

    verdict: Verdict
    answer: str | None = None
