"""Advantages: of a segment of a tree (eq. 3) and of a response in a group (GRPO)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, stdev

from attnrl.method.influence import rank_steps, share_of
from attnrl.method.steps import Steps


def tree_advantage(value: float, parent_value: float, root_value: float, leaves: int) -> float:
    """Return the advantage of every token of a segment (eq. 3).

    ``A = (V(s) - V(root) + V(s) - V(parent(s))) / sqrt(leaves)``: how much better than the problem's
    average, plus how much this segment improved on the one before. The root dampens segments that many
    leaves share, whose tokens are trained once for each leaf.

    Args:
        value: V(s), mean reward of the leaves below the segment (eq. 2).
        parent_value: V of the segment before it; the root's for the first.
        root_value: V(root), mean reward of all leaves of the problem.
        leaves: number of leaves below the segment.

    Raises:
        ValueError: fewer than one leaf.
    """
    if leaves < 1:
        raise ValueError(f"a segment has at least one leaf below it, got {leaves}")
    return ((value - root_value) + (value - parent_value)) / math.sqrt(leaves)


def grpo_advantages(rewards: Sequence[float], normalize_std: bool = True, eps: float = 1e-6) -> list[float]:
    """Return the advantage of each response of one problem: ``(R_i - mean R) / (std R + eps)``.

    The standard deviation is the sample one (divisor G - 1), as torch and verl have it. Equal rewards, and
    so a group of one, give exact zeros.

    Args:
        rewards: rewards of the G responses.
        normalize_std: whether to divide at all (False: "Dr. GRPO").
        eps: keeps the quotient finite when rewards hardly differ.
    """
    if len(set(rewards)) < 2:
        return [0.0] * len(rewards)
    mean = fmean(rewards)
    scale = stdev(rewards) + eps if normalize_std else 1.0
    return [(reward - mean) / scale for reward in rewards]


def influence_weights(
    influence: Sequence[float], steps: Steps, top_share: float, rest_weight: float
) -> tuple[float, ...]:
    """Return how much each token's advantage counts, by the influence of its step (ours).

    Most tokens of a response have no part in how it ends, but an advantage moves them all the same, which is noise. So
    the tokens of the ``ceil(top_share * S)`` steps of highest influence (of equal ones the earlier) count in full, all
    others as ``rest_weight``.

    Args:
        influence: of each of the S steps, before any masking: the first step may well be the one that decides.
        steps: the steps of T tokens.
        top_share: share of steps that count in full, in (0, 1].
        rest_weight: weight of the others.

    Returns:
        One weight for each token, length T.

    Raises:
        ValueError: not one value for each step.
    """
    if len(influence) != len(steps):
        raise ValueError(f"{len(influence)} values of influence for {len(steps)} steps")
    full = set(rank_steps(influence, range(len(steps)))[: share_of(top_share, len(steps))])
    return tuple(
        1.0 if step in full else rest_weight for step, length in enumerate(steps.lengths) for _ in range(length)
    )


def weigh_advantages(advantages: Sequence[float], weights: Sequence[float]) -> list[float]:
    """Return the advantages of one response times its weights, scaled so that the weights' mean is 1.

    The scale keeps a response as important as it was beside others, whatever share of its tokens counts in full.

    Raises:
        ValueError: not one weight for each advantage.
    """
    scale = len(weights) / sum(weights) if weights else 1.0
    return [advantage * weight * scale for advantage, weight in zip(advantages, weights, strict=True)]
