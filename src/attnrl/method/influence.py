"""Influence of steps from a dense attention matrix: forward context influence (FCI, eq. 4-5) and lookups (ours).

The dense functions are the reference in tests; training uses :mod:`attnrl.fci`, which never builds a T x T matrix.
Reductions over layers and heads (eq. 6) are in :mod:`attnrl.method.measures`.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor


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
    """Return the starts of the steps and the end of the last step; raise ValueError for invalid starts."""
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
    """Count the lookups of each step: later steps with a token that puts over half of its attention on the step (ours).

    ``n[k] = sum over j >= k + delta of [max over tokens q of step j of sum over t in step k of P[q, t] > 1/2]``.
    Eq. 5 averages attention over all tokens of a step, so a single token that reads an earlier step hardly counts,
    and the sum over later steps favours early steps. A lookup counts 1 at any distance of at least ``delta`` steps.

    Args:
        attention: as in :func:`step_attention`, ``[..., T, T]``.
        starts: as in :func:`step_attention`.
        delta: smallest distance in steps that counts, at least 0.

    Returns:
        ``n [..., S]``, whole numbers.

    Raises:
        ValueError: negative ``delta``, or invalid input as in :func:`step_attention`.
    """
    edges = _step_edges(attention, starts)
    mass_TS = torch.stack([attention[..., start:end].sum(-1) for start, end in pairwise(edges)], -1)
    return count_lookups(
        torch.stack([mass_TS[..., start:end, :].amax(-2) for start, end in pairwise(edges)], -2), delta
    )


def count_lookups(most: Tensor, delta: int) -> Tensor:
    """Count lookups ``[..., S]`` from ``most[..., j, k]``, the largest attention of a token of step j to step k.

    Raises:
        ValueError: negative ``delta``.
    """
    return forward_context_influence((most > 0.5).to(most.dtype), delta)
