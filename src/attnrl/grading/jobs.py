"""The records exchanged between the worker pool and the worker processes, as JSON."""

from __future__ import annotations

from dataclasses import dataclass

from attnrl.types import Verdict


@dataclass(frozen=True)
class Job:
    """A comparison of the answers of a response with the golds of a problem.

    Attributes:
        golds: the accepted answers.
        boxes: the distinct contents of the response's boxes, in order; empty asks whether the golds have a meaning
            (``correct``) or not (``bad_gold``).
        problem: the text of the problem; ``""`` if unknown.
        prose: the only box is running text; math-verify extracts the answer from the text.
    """

    golds: tuple[str, ...]
    boxes: tuple[str, ...] = ()
    problem: str = ""
    prose: bool = False


@dataclass(frozen=True)
class JobResult:
    """The verdict of a job, and the answer extracted by math-verify if the job's box was prose."""

    verdict: Verdict
    answer: str | None = None
