"""Lookups of one layer: later steps with a token that gives a step most of the token's attention.

FCI averages attention over the tokens of a step; lookups ask whether a single token reads the earlier step. In
reasoning that looks up a plan, one token reads the plan, and the other tokens of the step dilute the average. The
dense definition is :func:`attnrl.method.influence.lookups`.

Shape letters: see CONTRIBUTING.md.
"""

from __future__ import annotations

import torch
from torch import Tensor

from attnrl.fci.attention import (
    CPU_PANEL_BYTES,
    DEVICE_PANEL_BYTES,
    LayerAttention,
    accumulating,
    grouped_scores,
    unseen,
)
from attnrl.fci.layout import Span, StepLayout
from attnrl.method.influence import count_lookups


def layer_lookups(layer: LayerAttention, lse_BHT: Tensor, layout: StepLayout, delta: int) -> Tensor:
    """Return the number of lookups of each step at each head, the steps of all sequences concatenated: fp32 [H, S].

    Args:
        layer: the layer's attention.
        lse_BHT: logsumexp of each query's scores over the keys visible to the query, in nats.
        layout: the sequences and their steps; only tokens of the same sequence look up a step.
        delta: smallest distance in steps at which a lookup counts.
    """
    counts = [_of_sequence(layer, lse_BHT, span, delta) for span in layout.spans if span.steps]
    return torch.cat(counts, dim=-1)


def _of_sequence(layer: LayerAttention, lse_BHT: Tensor, span: Span, delta: int) -> Tensor:
    """Return the lookups of the steps of one sequence, from a few attention rows at a time."""
    device, dtype, H = layer.query_BHTD.device, accumulating(layer.query_BHTD), layer.query_BHTD.shape[1]
    first, stop, steps = span.steps[0], span.stop, len(span.steps)
    key_GND = layer.key_BGTD[span.row, :, first:stop].to(dtype)
    edges_S = torch.tensor([*span.steps[1:], stop], device=device)
    step_N = torch.searchsorted(edges_S, torch.arange(first, stop, device=device), right=True)
    belongs_NS = torch.nn.functional.one_hot(step_N, steps).to(dtype)
    most_HSS = torch.zeros(H, steps, steps, dtype=dtype, device=device)
    panel_bytes = CPU_PANEL_BYTES if device.type == "cpu" else DEVICE_PANEL_BYTES
    rows = max(1, panel_bytes // (dtype.itemsize * H * (stop - first)))
    for start in range(first, stop, rows):
        end = min(start + rows, stop)
        query_HqD = layer.query_BHTD[span.row, :, start:end]
        scores_HqN = grouped_scores(query_HqD, key_GND, layer.scaling, layer.softcap)
        probs_HqN = (scores_HqN - lse_BHT[span.row, :, start:end, None]).exp()
        hidden_qN = unseen(range(start, end), range(first, stop), layer.window, device)
        mass_HqS = probs_HqN.masked_fill(hidden_qN, 0.0) @ belongs_NS
        step_HqS = step_N[start - first : end - first, None].expand_as(mass_HqS)
        most_HSS.scatter_reduce_(1, step_HqS, mass_HqS, "amax")
    return count_lookups(most_HSS, delta)
