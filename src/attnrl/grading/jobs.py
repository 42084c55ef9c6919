"""The records exchanged between the worker pool and the worker processes, as JSON."""

from __future__ import annotations

from dataclasses import dataclass

from attnrl.types import Verdict


@dataclass(frozen=True)
class Job:
    """A comparison of an answer with the golds of a problem.

    Attributes:
        golds: the accepted answers.
        answer: the answer to compare; None asks whether the golds can be parsed (``correct``) or not (``bad_gold``).
        prose: the answer is running text; math-verify extracts the answer from the text.
    """

    golds: tuple[str, ...]
    answer: str | None
    prose: bool = False


@dataclass(frozen=True)
class JobResult:
    """The verdict of a job, and the answer extracted by math-verify if the job's answer was prose."""

    verdict: Verdict
    answer: str | None = None
