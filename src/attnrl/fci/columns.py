"""Forward context influence (paper eq. 5-6) of one attention layer, without a T x T matrix.

Eq. 5-6 sum the step-to-step attention over the steps that lie at least delta ahead:
``y[k] = sum_{j >= k + delta} alpha[j, k]``, where ``alpha[j, k]`` is the mean of the attention probabilities
``P[q, t]`` over the queries q in step j and the keys t in step k. Swapping the sums leaves one weighted
column sum of P for each key and one mean over the keys of each step::

    c[t] = sum_{q >= lo[t]} w[q] P[q, t]     w[q] = 1 / len(step(q)), lo[t] = first token of step(t) + delta
    y[k] = sum_{t in step k} w[t] c[t]

so a layer needs its attention rows only a few at a time. :class:`StepLayout` holds w, lo and the step of each
token; :func:`column_sums` is c, the costly part; :func:`step_means` is y.

Shape letters: B rows of the batch, T tokens, H query heads, G key/value heads, D head dimension, S steps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

#: Bytes that the attention rows held at one time may take, by default: on a CPU few enough to stay near its
#: cache, elsewhere enough to make a block worth its kernel launches.
CPU_MEMORY_BYTES = 16 * 2**20
DEVICE_MEMORY_BYTES = 256 * 2**20


@dataclass(frozen=True)
class StepLayout:
    """What the column sums need to know of the steps of a right-padded batch.

    Attributes:
        weight_BT: w, one over the length of the token's step; 0 for tokens of no step (prompt, padding).
        lo_BT: first query whose attention to this key counts; T (never) for tokens of no step.
        step_BT: index of the token's step in its row; S for tokens of no step.
        steps: S, the largest number of steps in a row.
        first_query, last_query: only queries in ``[first_query, last_query)`` count for any key.
    """

    weight_BT: Tensor
    lo_BT: Tensor
    step_BT: Tensor
    steps: int
    first_query: int
    last_query: int

    @classmethod
    def build(
        cls,
        step_starts: Sequence[Sequence[int]],
        lengths: Sequence[int],
        tokens: int,
        delta: int,
        device: torch.device | str = "cpu",
    ) -> StepLayout:
        """Lay out the steps of each row.

        Args:
            step_starts: for each row, the ascending first tokens of its steps; the last ends with the row.
            lengths: tokens of each row without its padding.
            tokens: T, the padded length.
            delta: how many steps ahead a query must be to count.
            device: where the tensors live.
        """
        steps = max((len(starts) for starts in step_starts), default=0)
        weight_BT = torch.zeros(len(lengths), tokens)
        lo_BT = torch.full((len(lengths), tokens), tokens)
        step_BT = torch.full((len(lengths), tokens), steps)
        first_query, last_query = tokens, 0
        for row, (starts, length) in enumerate(zip(step_starts, lengths, strict=True)):
            for step, (start, end) in enumerate(pairwise([*starts, length])):
                lo = starts[step + delta] if step + delta < len(starts) else tokens
                weight_BT[row, start:end] = 1 / (end - start)
                lo_BT[row, start:end] = lo
                step_BT[row, start:end] = step
                if lo < tokens:
                    first_query, last_query = min(first_query, lo), max(last_query, length)
        return cls(weight_BT.to(device), lo_BT.to(device), step_BT.to(device), steps, first_query, last_query)


def visible_keys(queries: Tensor, keys: Tensor, window: int | None) -> Tensor:
    """Which keys a causal layer lets each query see: ``t <= q``, and ``q - t < window`` where there is one.

    Args:
        queries: token offsets [n].
        keys: token offsets [m].
        window: width of the layer's sliding window in tokens, the query itself included; None for all.

    Returns:
        Booleans [n, m].
    """
    distance_nm = queries[:, None] - keys
    visible_nm = distance_nm >= 0
    return visible_nm if window is None else visible_nm & (distance_nm < window)


def column_sums(
    query_BHTD: Tensor,
    key_BGTD: Tensor,
    layout: StepLayout,
    *,
    scaling: float | None = None,
    window: int | None = None,
    memory_bytes: int | None = None,
) -> Tensor:
    """Weighted column sums of a causal layer's attention: ``c[t] = sum_{q >= lo[t]} w[q] P[q, t]``.

    Attention rows are formed a block of queries at a time, softmaxed in fp32 (fp64 for fp64 inputs), and
    summed; at no time does a T x T matrix exist. Queries that count for no key are not computed.

    Args:
        query_BHTD: queries as they enter the attention (after the rotary embedding).
        key_BGTD: keys likewise; head h attends with key head ``h // (H / G)``.
        layout: w and lo.
        scaling: factor on the scores; ``1 / sqrt(D)`` when None.
        window: width of a sliding window, see :func:`visible_keys`.
        memory_bytes: the attention rows held at one time stay below this (but never under one row); None for
            the default of the device.

    Returns:
        c_BHT, non-negative; 0 where no query counts. For tokens of no step it is 0 too.
    """
    B, H, T, D = query_BHTD.shape
    G = key_BGTD.shape[1]
    scaling = 1 / math.sqrt(D) if scaling is None else scaling
    # bf16 products of long rows lose the small probabilities that the sums are made of.
    dtype = torch.promote_types(query_BHTD.dtype, torch.float32)
    key_BGTD = key_BGTD.to(dtype)
    columns_BHT = torch.zeros(B, H, T, dtype=dtype, device=query_BHTD.device)
    if memory_bytes is None:
        memory_bytes = CPU_MEMORY_BYTES if query_BHTD.device.type == "cpu" else DEVICE_MEMORY_BYTES
    rows = max(1, memory_bytes // (2 * dtype.itemsize * B * H * T))  # 2: the scores and their softmax

    for start in range(layout.first_query, layout.last_query, rows):
        stop = min(start + rows, layout.last_query)
        left = 0 if window is None else max(0, start - window + 1)
        queries = torch.arange(start, stop, device=query_BHTD.device)
        keys = torch.arange(left, stop, device=query_BHTD.device)

        # The query heads that share a key head become extra rows of its product, so keys are never repeated.
        query_BGnD = (query_BHTD[:, :, start:stop].to(dtype) * scaling).reshape(B, G, -1, D)
        scores_BHnm = (query_BGnD @ key_BGTD[:, :, left:stop].transpose(2, 3)).view(B, H, stop - start, -1)
        scores_BHnm.masked_fill_(~visible_keys(queries, keys, window), -torch.inf)
        probs_BHnm = scores_BHnm.softmax(-1)

        counts_Bnm = queries[:, None] >= layout.lo_BT[:, None, left:stop]
        weight_Bnm = counts_Bnm * layout.weight_BT[:, start:stop, None].to(dtype)
        columns_BHT[:, :, left:stop] += probs_BHnm.mul_(weight_Bnm[:, None]).sum(2)
    return columns_BHT


def step_means(columns_BHT: Tensor, layout: StepLayout) -> Tensor:
    """Mean of the column sums over the keys of each step: ``y[k] = sum_{t in k} w[t] c[t]``.

    Returns:
        y_BHS; 0 for the steps that a row has less than S.
    """
    B, H, T = columns_BHT.shape
    weighted_BHT = columns_BHT * layout.weight_BT[:, None].to(columns_BHT.dtype)
    influence_BHS = columns_BHT.new_zeros(B, H, layout.steps + 1)  # the last one takes the tokens of no step
    influence_BHS.scatter_add_(2, layout.step_BT[:, None].expand(B, H, T), weighted_BHT)
    return influence_BHS[:, :, :-1]
