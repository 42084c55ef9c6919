"""Rank steps by influence, and average influence over a problem; free of torch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from statistics import fmean

from attnrl.method.steps import Steps


def eligible_steps(steps: Steps) -> list[int]:
    """Return the steps that may become branch points: no first step, no step from ``</think>`` on."""
    end = len(steps) if steps.think_end is None else steps.think_end
    return list(range(1, end))


def rank_steps(values: Sequence[float], among: Iterable[int]) -> list[int]:
    """Return the steps ``among`` in descending order of value; the earlier step first on a tie."""
    return sorted(among, key=lambda step: (-values[step], step))


def share_of(share: float, count: int) -> int:
    """Return ``share * count``, rounded up to a whole number."""
    # 1e-9 absorbs rounding: 0.07 * 100 is a little over 7 in floating point.
    return math.ceil(share * count - 1e-9)


def mask_influence(influence: Sequence[float], steps: Steps) -> tuple[float, ...]:
    """Return the influence of each step with 0 for steps that are not eligible, for the mean of eq. 8.

    0 is the minimum of the ``max`` reduction but a middle value of z-scores, so masking alone does not keep a step
    from a high rank: branch criteria rank the :func:`eligible_steps` only.

    Raises:
        ValueError: the number of values is not the number of steps.
    """
    if len(influence) != len(steps):
        raise ValueError(f"{len(influence)} values of influence for {len(steps)} steps")
    eligible = set(eligible_steps(steps))
    return tuple(value if step in eligible else 0.0 for step, value in enumerate(influence))


def mean_influence(influence_of_responses: Sequence[Sequence[float]]) -> float:
    """Return a problem's mean influence for eq. 8: the mean over responses of the mean over steps.

    A response without steps counts as 0.

    Raises:
        ValueError: no responses.
    """
    if not influence_of_responses:
        raise ValueError("mean_influence needs at least one response")
    return fmean(fmean(influence) if influence else 0.0 for influence in influence_of_responses)
