"""Forward context influence (FCI): how much later steps attend to a step.

This is the plain, dense definition, which needs the attention matrix; passes that never build that matrix
are checked against it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from statistics import fmean

import torch
from torch import Tensor

from attnrl.method.steps import Steps


def step_attention(attention: Tensor, starts: Sequence[int]) -> Tensor:
    """Average token attention to step-to-step attention (eq. 4).

    ``alpha[j, k]`` is the mean of ``attention[q, t]`` over query tokens q in step j and key tokens t in
    step k, the zeros of the causal mask included.

    Args:
        attention: softmax probabilities ``[..., T, T]``, query by key, prompt tokens included.
        starts: absolute offset of each step's first token; the last step ends with the sequence. Tokens
            before the first step (the prompt) belong to no step.

    Returns:
        ``alpha [..., S, S]``.

    Raises:
        ValueError: the matrix is not square, or the offsets do not increase within it.
    """
    edges = _step_edges(attention, starts)
    average_ST = attention.new_zeros(len(starts), attention.shape[-1])
    for step, (start, end) in enumerate(pairwise(edges)):
        average_ST[step, start:end] = 1.0 / (end - start)
    return average_ST @ attention @ average_ST.T


def _step_edges(attention: Tensor, starts: Sequence[int]) -> list[int]:
    """The starts of the steps and the end of the last; ValueError if they are not those of such attention."""
    tokens = attention.shape[-1]
    if attention.ndim < 2 or attention.shape[-2] != tokens:
        raise ValueError(f"attention must be [..., T, T], got {list(attention.shape)}")
    edges = [*starts, tokens]
    if edges[0] < 0 or any(start >= end for start, end in pairwise(edges)):
        raise ValueError(f"starts must increase within 0..{tokens - 1}, got {list(starts)}")
    return edges


def forward_context_influence(alpha: Tensor, delta: int = 4) -> Tensor:
    """Sum the attention a step receives from steps at least ``delta`` later (eq. 5).

    ``y[k] = sum over j >= k + delta of alpha[j, k]``.

    Args:
        alpha: step-to-step attention ``[..., S, S]``.
        delta: smallest distance that counts, at least 0.

    Returns:
        ``y [..., S]``, in practice ``[L, H, S]``; the last ``delta`` steps have 0.

    Raises:
        ValueError: negative ``delta``.
    """
    if delta < 0:
        raise ValueError(f"delta must not be negative, got {delta}")
    return torch.tril(alpha, diagonal=-delta).sum(dim=-2)


def lookups(attention: Tensor, starts: Sequence[int], delta: int = 4) -> Tensor:
    """Count the later steps that look a step up: of which some token gives it over half of its attention (ours).

    ``n[k] = sum over j >= k + delta of [max over tokens q of step j of sum over t in step k of P[q, t] > 1/2]``.
    Eq. 5 averages attention over all tokens of a step, which drowns the one that reads an earlier step; and any
    head's sum over late steps favours early ones. A lookup is counted once, wherever it comes from.

    Args:
        attention: as in :func:`step_attention`, ``[..., T, T]``.
        starts: as in :func:`step_attention`.
        delta: smallest distance in steps that counts, at least 0.

    Returns:
        ``n [..., S]``, whole numbers.

    Raises:
        ValueError: negative ``delta``; or as :func:`step_attention`.
    """
    edges = _step_edges(attention, starts)
    mass_TS = torch.stack([attention[..., start:end].sum(-1) for start, end in pairwise(edges)], -1)
    return count_lookups(
        torch.stack([mass_TS[..., start:end, :].amax(-2) for start, end in pairwise(edges)], -2), delta
    )


def count_lookups(most: Tensor, delta: int) -> Tensor:
    """Count lookups from ``most[..., j, k]``, the most attention that a token of step j gives to step k.

    Raises:
        ValueError: negative ``delta``.
    """
    return forward_context_influence((most > 0.5).to(most.dtype), delta)


def reduce_max(influence_LHS: Tensor) -> Tensor:
    """Reduce ``[L, H, S]`` to ``[S]``: the largest value over layers and heads (eq. 6)."""
    return influence_LHS.amax(dim=(0, 1))


def reduce_zscore_max(influence_LHS: Tensor) -> Tensor:
    """Reduce ``[L, H, S]`` to ``[S]``: z-score over the steps within each head, then the largest value.

    Eq. 6 lets the head with the largest scale decide; z-scores let every head speak, however weakly it
    attends. A head that is constant over steps prefers none of them and gives 0.
    """
    centred = influence_LHS - influence_LHS.mean(dim=-1, keepdim=True)
    spread = influence_LHS.std(dim=-1, correction=0, keepdim=True)
    # The mean of equal numbers is off by rounding, so a constant head has a spread of some ulps, not of 0.
    rounding = 8 * torch.finfo(influence_LHS.dtype).eps * influence_LHS.abs().amax(dim=-1, keepdim=True)
    varies = spread > rounding
    return reduce_max(torch.where(varies, centred / spread.where(varies, 1.0), 0.0))


REDUCTIONS: dict[str, Callable[[Tensor], Tensor]] = {"max": reduce_max, "zscore_max": reduce_zscore_max}


def eligible_steps(steps: Steps) -> list[int]:
    """Return the steps worth branching at: all but the first, and but ``</think>``'s and those after it."""
    end = len(steps) if steps.think_end is None else steps.think_end
    return list(range(1, end))


def rank_steps(values: Sequence[float], among: Iterable[int]) -> list[int]:
    """Return the steps ``among``, those of highest value first, of equal ones the earlier first."""
    return sorted(among, key=lambda step: (-values[step], step))


def share_of(share: float, count: int) -> int:
    """Return how many a share of ``count`` steps is, rounded up."""
    # 1e-9: a product that is whole on paper, 0.07 * 100, may be a little more in floating point.
    return math.ceil(share * count - 1e-9)


def mask_influence(fci: Sequence[float], steps: Steps) -> tuple[float, ...]:
    """Set the FCI of steps that are not eligible to 0, as the mean of eq. 8 wants it.

    0 is the least value of the ``max`` reduction but a middling one among z-scores, so a masked FCI alone
    does not keep a step from being preferred: branch criteria rank the :func:`eligible_steps` only.

    Raises:
        ValueError: not one value for each step.
    """
    if len(fci) != len(steps):
        raise ValueError(f"{len(fci)} FCI values for {len(steps)} steps")
    eligible = set(eligible_steps(steps))
    return tuple(value if step in eligible else 0.0 for step, value in enumerate(fci))


def mean_influence(fci_of_responses: Sequence[Sequence[float]]) -> float:
    """Return a problem's mean FCI: the mean over responses of the mean over steps (used by eq. 8).

    A response without steps counts as 0.

    Raises:
        ValueError: no responses.
    """
    if not fci_of_responses:
        raise ValueError("mean_influence needs at least one response")
    return fmean(fmean(fci) if fci else 0.0 for fci in fci_of_responses)
