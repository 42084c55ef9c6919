"""Adaptive sampling: which problems and trunks to spend samples on, and how many problems to draw.

Eq. 8, eq. 9 and the choice of trunks read correctness, never rewards: "all correct" means that every judged initial
response has the verdict ``correct``, whatever the rewards; a partial reward is not correct. The discarding of problems
without signal reads rewards, never correctness (:attr:`attnrl.method.forest.Forest.has_signal`).
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

Rounding = Literal["ceil", "round"]


@dataclass(frozen=True)
class RunningMean:
    """Running mean of a sequence of values."""

    count: int = 0
    mean: float = 0.0

    def add(self, value: float) -> RunningMean:
        """Return the mean with ``value`` added."""
        count = self.count + 1
        return RunningMean(count, self.mean + (value - self.mean) / count)


def keep_problem(correct: Sequence[bool], mean_influence: float, running: RunningMean) -> tuple[bool, RunningMean]:
    """Decide whether a problem is worth expanding (eq. 8).

    A problem whose initial responses are all correct is kept if the problem's mean influence is above the running mean
    over earlier all-correct problems; the first all-correct problem is kept. Every all-correct problem, kept or not,
    enters the running mean. A problem with an initial response that is not correct is always kept.

    Args:
        correct: whether each judged initial response is correct.
        mean_influence: the problem's :func:`~attnrl.method.ranking.mean_influence`.
        running: the mean over the all-correct problems so far.

    Returns:
        Whether to keep the problem, and the running mean to pass on.

    Raises:
        ValueError: no judged initial response.
    """
    if not correct:
        raise ValueError("keep_problem needs at least one judged response")
    if not all(correct):
        return True, running
    return running.count == 0 or mean_influence > running.mean, running.add(mean_influence)


def expansion_count(accuracy: float, trunks: int, rounding: Rounding = "ceil") -> int:
    """Return how many trunks of a problem to expand (eq. 9): ``exp(-accuracy) * trunks``, rounded.

    With six trunks, for 0..6 correct: ``ceil`` (the released code) gives 6, 6, 5, 4, 4, 3, 3; ``round``
    (the paper; halves go up) gives 6, 5, 4, 4, 3, 3, 2. Never below 1.

    Args:
        accuracy: share z of correct initial responses among the judged, in [0, 1].
        trunks: number n of judged initial responses, at least 1.
        rounding: ``ceil`` or ``round``.

    Raises:
        ValueError: a value out of range.
    """
    if not 0.0 <= accuracy <= 1.0 or trunks < 1:
        raise ValueError(f"need 0 <= accuracy <= 1 and trunks >= 1, got {accuracy} and {trunks}")
    exact = math.exp(-accuracy) * trunks
    if rounding == "ceil":
        return math.ceil(exact)
    if rounding == "round":
        return max(1, _round_half_up(exact))
    raise ValueError(f"unknown rounding {rounding!r}, choose ceil or round")


def choose_trunks(correct: Sequence[bool], count: int, rng: random.Random) -> list[int]:
    """Choose the trunks to expand.

    All correct or none correct: the first ``count`` trunks. Mixed: all trunks of the minority side (correct or not) and
    random trunks of the majority side; if ``count`` is below the size of the minority, random trunks of the minority.
    The generator breaks a tie between the sides.

    Args:
        correct: whether each judged trunk is correct.
        count: how many to choose, between 0 and the number of trunks.
        rng: makes the random choices.

    Returns:
        Sorted indices of the chosen trunks.

    Raises:
        ValueError: ``count`` out of range.
    """
    if not 0 <= count <= len(correct):
        raise ValueError(f"cannot choose {count} of {len(correct)} trunks")
    right = [trunk for trunk, is_correct in enumerate(correct) if is_correct]
    wrong = [trunk for trunk, is_correct in enumerate(correct) if not is_correct]
    if not right or not wrong:
        return list(range(count))
    sides = [right, wrong]
    rng.shuffle(sides)
    minority, majority = sorted(sides, key=len)  # stable: the shuffle decides a tie
    of_minority = min(count, len(minority))
    return sorted(rng.sample(minority, of_minority) + rng.sample(majority, count - of_minority))


@dataclass(frozen=True, kw_only=True)
class BatchSizeController:
    """Adapts how many problems to draw so that the target number of responses is trained on (eq. 10).

    In a steady process the batch settles where B'' meets B', a little above when B'' is noisy, because the
    mean of 1 / B'' exceeds 1 / mean of B'' (under 1 % with hundreds of problems, up to a fifth with seven).

    Attributes:
        batch: number of problems, as a float. It is kept unrounded between steps: rounded at every step, a
            small batch would freeze (with lambda 0.9, a change below half a problem is lost each time).
        target: B', training responses wanted in a step.
        smoothing: lambda, weight of the previous size.
        minimum: fewest problems.
        maximum: most problems.
        max_ratio: bound on B' / B''. It stands for the ratio when nothing was left to train on, and keeps
            one unlucky step from multiplying the batch: by default it grows by at most 10 %.

    Raises:
        ValueError: a value out of range.
    """

    batch: float
    target: float
    maximum: int
    minimum: int = 1
    smoothing: float = 0.9
    max_ratio: float = 2.0

    def __post_init__(self) -> None:
        if not 1 <= self.minimum <= self.batch <= self.maximum:
            raise ValueError(f"need 1 <= minimum <= batch <= maximum, got {self.minimum}, {self.batch}, {self.maximum}")
        if self.target <= 0 or not 0 <= self.smoothing <= 1 or self.max_ratio < 1:
            raise ValueError(
                "need target > 0, 0 <= smoothing <= 1, max_ratio >= 1, "
                f"got {self.target}, {self.smoothing}, {self.max_ratio}"
            )

    @property
    def size(self) -> int:
        """Number of problems to draw, B_m."""
        return _round_half_up(self.batch)

    def update(self, trained: int) -> BatchSizeController:
        """Return the controller for the next step (eq. 10).

        ``B_m = lambda * B_{m-1} + (1 - lambda) * (B' / B'') * B_{m-1}``, within the bounds.

        Args:
            trained: B'', responses left to train on after discarding in the last step, at least 0.

        Raises:
            ValueError: negative ``trained``.
        """
        if trained < 0:
            raise ValueError(f"trained must not be negative, got {trained}")
        ratio = min(self.target / trained, self.max_ratio) if trained else self.max_ratio
        batch = self.smoothing * self.batch + (1 - self.smoothing) * ratio * self.batch
        return replace(self, batch=min(max(batch, self.minimum), self.maximum))


def _round_half_up(value: float) -> int:
    return math.floor(value + 0.5)
