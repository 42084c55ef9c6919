"""Attention as its definition says, with explicit masks and the whole matrix; differentiable."""

from collections.abc import Sequence

import torch
from torch import Tensor


def dense_attention(
    query_BHTD: Tensor,
    key_BGTD: Tensor,
    value_BGTE: Tensor,
    sequences: Sequence[tuple[int, int, int]],
    scaling: float,
    window: int | None = None,
    softcap: float | None = None,
    sinks_H: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Output, logsumexp and probabilities; each (row, start, stop) attends to itself, other tokens to themselves."""
    B, H, T, _ = query_BHTD.shape
    mask_BTT = torch.eye(T, dtype=torch.bool).repeat(B, 1, 1)
    for row, start, stop in sequences:
        mask_BTT[row, start:stop, start:stop] = torch.ones(stop - start, stop - start, dtype=torch.bool).tril()
    if window is not None:
        mask_BTT &= torch.ones(T, T, dtype=torch.bool).triu(1 - window)
    key_BHTD, value_BHTE = (x.repeat_interleave(H // x.shape[1], dim=1) for x in (key_BGTD, value_BGTE))
    scores = query_BHTD @ key_BHTD.mT * scaling
    if softcap is not None:
        scores = softcap * (scores / softcap).tanh()
    scores = scores.masked_fill(~mask_BTT[:, None], -torch.inf)
    if sinks_H is not None:
        scores = torch.cat([scores, sinks_H[:, None, None].expand(B, -1, T, 1)], -1)
    probs = scores.softmax(-1)[..., :T]
    return probs @ value_BHTE, scores.logsumexp(-1), probs
