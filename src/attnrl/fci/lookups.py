"""Lookups of one layer: later steps of which some token gives a step most of its attention.

Where FCI averages attention over the tokens of a step, this asks whether a single token of it reads the earlier step:
in reasoning that looks up what was planned, one token does, and the others of its step dilute it. The dense
definition is :func:`attnrl.method.influence.lookups`.

Shape letters: those of :mod:`attnrl.fci.attention`; S steps of a sequence, N tokens in its steps.
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
    """Number of lookups of each step at each head, steps of all sequences one after another: fp32 [H, S].

    Args:
        layer: the layer's attention.
        lse_BHT: logsumexp of each query's scores over the keys that it sees, in nats.
        layout: the sequences and their steps; a sequence's steps are looked up from its own tokens only.
        delta: how many steps ahead a lookup must come from to count.
    """
    counts = [_of_sequence(layer, lse_BHT, span, delta) for span in layout.spans if span.steps]
    return torch.cat(counts, dim=-1)


def _of_sequence(layer: LayerAttention, lse_BHT: Tensor, span: Span, delta: int) -> Tensor:
    """Lookups of the steps of one sequence; a few attention rows are held at a time."""
    device, dtype, H = layer.query_BHTD.device, accumulating(layer.query_BHTD), layer.query_BHTD.shape[1]
    first, stop, steps = span.steps[0], span.stop, len(span.steps)
    key_GND = layer.key_BGTD[span.row, :, first:stop].to(dtype)
    edges_S = torch.tensor([*span.steps[1:], stop], device=device)
    step_N = torch.searchsorted(edges_S, torch.arange(first, stop, device=device), right=True)
    belongs_NS = torch.nn.functional.one_hot(step_N, steps).to(dtype)
    most_HSS = torch.zeros(H, steps, steps, dtype=dtype, device=device)
    panel_bytes = CPU_PANEL_BYTES if device.type == "cpu" else DEVICE_PANEL_BYTES
    q = max(1, panel_bytes // (dtype.itemsize * H * (stop - first)))
    for start in range(first, stop, q):
        end = min(start + q, stop)
        query_HqD = layer.query_BHTD[span.row, :, start:end]
        scores_HqN = grouped_scores(query_HqD, key_GND, layer.scaling, layer.softcap)
        probs_HqN = (scores_HqN - lse_BHT[span.row, :, start:end, None]).exp()
        hidden_qN = unseen(range(start, end), range(first, stop), layer.window, device)
        mass_HqS = probs_HqN.masked_fill(hidden_qN, 0.0) @ belongs_NS
        step_HqS = step_N[start - first : end - first, None].expand_as(mass_HqS)
        most_HSS.scatter_reduce_(1, step_HqS, mass_HqS, "amax")
    return count_lookups(most_HSS, delta)
