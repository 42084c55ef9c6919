"""The line about responses that are not judged: number, share, and the most frequent reasons."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Protocol

from attnrl.types import Verdict

MAX_REASONS = 3  # named in a line
OUT_OF_THE_REWARD = "left out of the mean reward, not of the accuracy"  # consequence in an evaluation

#: Reason for a missing reward without a fault, by the verdict of the response.
REASONS: Mapping[str, str] = {
    "bad_gold": "the problem has no usable true answer (bad_gold)",
    "not_judged": "the grader gave neither verdict nor reward",
}


class Graded(Protocol):
    """A response with the fields of its grade (:class:`attnrl.types.Grade`)."""

    @property
    def reward(self) -> float | None:
        """Return the reward; None: not judged."""

    @property
    def verdict(self) -> Verdict:
        """Return the verdict of the grader."""

    @property
    def rewards(self) -> Mapping[str, float | None]:
        """Return the reward of each reward function."""

    @property
    def fault(self) -> str | None:
        """Return the reason why the response, or a part of the reward, is not judged."""


def not_judged_line(graded: Sequence[Graded], limit: float | None = None, *, consequence: str = "") -> str | None:
    """Return a line about the responses without a reward; None if every response is judged.

    Args:
        graded: responses with grades.
        limit: share of responses (``reward.max_not_judged``) above which the line is a warning; None: no limit.
        consequence: what follows for the responses, inserted before the reasons.
    """
    missing = [one for one in graded if one.reward is None]
    if not missing:
        return None
    share = len(missing) / len(graded)
    above = limit is not None and share > limit
    parts = [
        f"{'warning: ' if above else ''}{len(missing):,} of {len(graded):,} responses not judged ({share:.1%}"
        f"{f', more than reward.max_not_judged={limit:g}' if above else ''})",
        *([consequence] if consequence else []),
    ]
    return f"{', '.join(parts)}: {frequent_reasons(Counter(map(_reason, missing)))}"


def frequent_reasons(reasons: Counter[str]) -> str:
    """Return the most frequent reasons with their numbers, and the number of further reasons."""
    named = [f"{count:,} x {reason}" for reason, count in reasons.most_common(MAX_REASONS)]
    more = len(reasons) - len(named)
    return "; ".join([*named, *([f"{more:,} more reason{'s' if more > 1 else ''}"] if more else [])])


def _reason(graded: Graded) -> str:
    if graded.fault is not None:
        return graded.fault
    if graded.rewards:
        return "every reward function returned None"
    return REASONS.get(graded.verdict, "the grader gave no reward")
