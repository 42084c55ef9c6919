"""Causal attention that also gives the logsumexp of each row, from which FCI follows.

:func:`attend` is the attention of a layer: torch's flash attention, which has the logsumexp at no cost, where it
computes what the layer asks for, and otherwise (soft-capped scores, values of another head dimension, sliding
windows on a CPU) :func:`panels`, which form a few attention rows at a time. Neither holds a T x T matrix. Both
carry gradients; for those of panels autograd keeps each panel, as it would keep the whole matrix of eager attention.

Shape letters: B rows of the batch, T tokens, L tokens of one sequence, H query heads, G key/value heads,
D head dimension, V head dimension of the values; in a panel n queries and m keys.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from attnrl.fci.layout import Span, StepLayout
from attnrl.fci.spec import FciUnsupportedError

#: Bytes of the scores in one panel.
CPU_PANEL_BYTES = 4 * 2**20
DEVICE_PANEL_BYTES = 128 * 2**20


@dataclass(frozen=True)
class LayerAttention:
    """The attention one layer asks for.

    Attributes:
        query_BHTD: queries as they enter the attention (after the rotary embedding).
        key_BGTD: keys likewise; head h attends with key head ``h // (H / G)``.
        value_BGTV: values.
        scaling: factor on the scores.
        window: width of the sliding window, the query itself included; None for all earlier tokens.
        softcap: bound c of soft-capped scores ``c tanh(s / c)``; None for plain ones.
        sinks_H: score of the attention sink of each head, a key of no value that every row has; None for none.
    """

    query_BHTD: Tensor
    key_BGTD: Tensor
    value_BGTV: Tensor
    scaling: float
    window: int | None = None
    softcap: float | None = None
    sinks_H: Tensor | None = None

    def of_heads(self, heads: Sequence[int]) -> LayerAttention:
        """The attention of some query heads, each with a key head of its own."""
        chosen = list(heads)
        shared = [head * self.key_BGTD.shape[1] // self.query_BHTD.shape[1] for head in chosen]
        return replace(
            self,
            query_BHTD=self.query_BHTD[:, chosen],
            key_BGTD=self.key_BGTD[:, shared],
            value_BGTV=self.value_BGTV[:, shared],
            sinks_H=None if self.sinks_H is None else self.sinks_H[chosen],
        )


def attend(layer: LayerAttention, layout: StepLayout) -> tuple[Tensor, Tensor]:
    """Attention of each sequence to itself.

    Returns:
        output_BHTV in the type of the values, and the logsumexp lse_BHT of each row's scores (nats, sinks
        included, no gradient), fp32 or fp64. Tokens of no sequence have some finite output.
    """
    flashed = _flash(layer, layout)
    if flashed is not None:
        return flashed
    query_BHTD, value_BGTV = layer.query_BHTD, layer.value_BGTV
    output_BHTV = value_BGTV.new_zeros(*query_BHTD.shape[:3], value_BGTV.shape[3])
    lse_BHT = torch.zeros(query_BHTD.shape[:3], dtype=accumulating(query_BHTD), device=query_BHTD.device)
    for span in layout.spans:
        for panel in panels(layer, span):
            value_GmV = value_BGTV[span.row, :, panel.left : panel.stop].to(panel.probs_Hnm.dtype)
            H, n, m = panel.probs_Hnm.shape
            output_HnV = (panel.probs_Hnm.reshape(len(value_GmV), -1, m) @ value_GmV).view(H, n, -1)
            output_BHTV[span.row, :, panel.start : panel.stop] = output_HnV.to(output_BHTV.dtype)
            lse_BHT[span.row, :, panel.start : panel.stop] = panel.lse_Hn
    return output_BHTV, lse_BHT


def _flash(layer: LayerAttention, layout: StepLayout) -> tuple[Tensor, Tensor] | None:
    """Flash attention, or None where torch has none that returns the logsumexp for this layer."""
    query_BHTD, value_BGTV = layer.query_BHTD, layer.value_BGTV
    if layer.softcap is not None or value_BGTV.shape[3] != query_BHTD.shape[3]:
        return None
    if layer.sinks_H is not None and torch.is_grad_enabled():
        return None  # the logsumexp, by which the output is rescaled, carries no gradient
    window = None if layer.window is None or layer.window >= layout.longest else layer.window
    if query_BHTD.device.type == "cpu" and window is None:
        output_BHTV, lse_BHT = _cpu_flash(layer, layout)
    elif _varlen_takes(query_BHTD):
        output_BHTV, lse_BHT = _varlen_flash(layer, layout, window)
    else:
        return None
    return with_sinks(layer.sinks_H, output_BHTV, lse_BHT.detach())


def with_sinks(sinks_H: Tensor | None, output_BHTV: Tensor, lse_BHT: Tensor) -> tuple[Tensor, Tensor]:
    """What remains of the output when the sinks, if any, have taken their share, and the logsumexp with them."""
    if sinks_H is None:
        return output_BHTV, lse_BHT
    sinks_H1 = sinks_H[:, None].to(lse_BHT.dtype)
    kept_BHT1 = torch.sigmoid(lse_BHT - sinks_H1)[..., None]
    return output_BHTV * kept_BHT1.to(output_BHTV.dtype), torch.logaddexp(lse_BHT, sinks_H1)


def _cpu_flash(layer: LayerAttention, layout: StepLayout) -> tuple[Tensor, Tensor]:
    """The operator that sdpa calls on a CPU, asked for its second output too."""
    query_BHTD, key_BGTD, value_BGTV = layer.query_BHTD, layer.key_BGTD, layer.value_BGTV

    def attend(rows: slice, tokens: slice) -> tuple[Tensor, Tensor]:
        operands = (tensor[rows, :, tokens] for tensor in (query_BHTD, key_BGTD, value_BGTV))
        output_BHTV, lse_BHT = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            *operands, 0.0, True, scale=layer.scaling
        )
        return output_BHTV, lse_BHT

    if all(span.start == 0 for span in layout.spans):  # behind a sequence, padding harms nobody
        return attend(slice(None), slice(None))
    output_BHTV = query_BHTD.new_zeros(query_BHTD.shape)
    lse_BHT = torch.zeros(query_BHTD.shape[:3], dtype=accumulating(query_BHTD))
    for span in layout.spans:
        row, tokens = slice(span.row, span.row + 1), slice(span.start, span.stop)
        output_BHTV[row, :, tokens], lse_BHT[row, :, tokens] = attend(row, tokens)
    return output_BHTV, lse_BHT


def _varlen_takes(query_BHTD: Tensor) -> bool:
    """Whether torch's variable-length flash attention takes such queries."""
    return (
        query_BHTD.is_cuda
        and query_BHTD.dtype in (torch.float16, torch.bfloat16)
        and query_BHTD.shape[3] <= 256
        and query_BHTD.shape[3] % 8 == 0
        and torch.cuda.get_device_capability(query_BHTD.device) >= (8, 0)
    )


def _varlen_flash(layer: LayerAttention, layout: StepLayout, window: int | None) -> tuple[Tensor, Tensor]:
    """Variable-length flash attention over the batch laid end to end; padding becomes sequences of its own."""
    from torch.nn.attention.varlen import AuxRequest, varlen_attn  # CUDA only

    B, H, T, _ = layer.query_BHTD.shape
    # Before it had the argument it took fewer key heads without being told.
    told: dict[str, Any] = {}
    if "enable_gqa" in inspect.signature(varlen_attn).parameters:
        told["enable_gqa"] = layer.key_BGTD.shape[1] != H
    query_NHD, key_NGD, value_NGV = (
        tensor.transpose(1, 2).reshape(B * T, tensor.shape[1], tensor.shape[3])
        for tensor in (layer.query_BHTD, layer.key_BGTD, layer.value_BGTV)
    )
    output_NHV, lse_HN = varlen_attn(
        query_NHD,
        key_NGD,
        value_NGV,
        layout.bounds,
        layout.bounds,
        layout.longest,
        layout.longest,
        return_aux=AuxRequest(lse=True),
        scale=layer.scaling,
        window_size=(-1 if window is None else window - 1, 0),  # tokens to the left of the query, not its own
        **told,
    )
    if lse_HN.shape != (H, B * T):  # its own documentation has the two the other way round
        raise FciUnsupportedError(f"varlen_attn of torch {torch.__version__} gives a logsumexp {list(lse_HN.shape)}")
    return output_NHV.view(B, T, H, -1).transpose(1, 2), lse_HN.view(H, B, T).transpose(0, 1)


@dataclass(frozen=True)
class Panel:
    """Attention rows of the queries ``[start, stop)`` of a sequence over its keys ``[left, stop)``.

    Offsets count in the sequence's row. ``probs_Hnm``, 0 for keys that a query does not see, and ``lse_Hn``
    (without gradient) are fp32, fp64 for fp64 inputs.
    """

    start: int
    stop: int
    left: int
    probs_Hnm: Tensor
    lse_Hn: Tensor


def panels(layer: LayerAttention, span: Span, panel_bytes: int | None = None) -> Iterator[Panel]:
    """The attention of one sequence to itself, a few rows at a time.

    Args:
        layer: the layer's attention.
        span: the sequence.
        panel_bytes: bound on the scores of one panel (but never under one row); None for the device's default.
    """
    device, dtype = layer.query_BHTD.device, accumulating(layer.query_BHTD)
    key_GLD = layer.key_BGTD[span.row, :, span.start : span.stop].to(dtype)
    H, length, window = layer.query_BHTD.shape[1], span.stop - span.start, layer.window
    if panel_bytes is None:
        panel_bytes = CPU_PANEL_BYTES if device.type == "cpu" else DEVICE_PANEL_BYTES
    budget = panel_bytes // (dtype.itemsize * H)  # in pairs of query and key
    n = max(1, budget // length)
    if window is not None:  # n queries see n + window keys at most
        n = max(n, int(((window**2 + 4 * budget) ** 0.5 - window) / 2))
    for start in range(0, length, n):
        stop = min(start + n, length)
        left = 0 if window is None else max(0, start - window + 1)
        query_HnD = layer.query_BHTD[span.row, :, span.start + start : span.start + stop]
        scores_Hnm = grouped_scores(query_HnD, key_GLD[:, left:stop], layer.scaling, layer.softcap)
        hidden_nm = unseen(range(start, stop), range(left, stop), window, device)
        scores_Hnm = scores_Hnm.masked_fill(hidden_nm, -torch.inf)
        if layer.sinks_H is not None:
            sinks_Hn1 = layer.sinks_H.to(dtype)[:, None, None].expand(-1, stop - start, 1)
            scores_Hnm = torch.cat([scores_Hnm, sinks_Hn1], -1)
        probs_Hnm = scores_Hnm.softmax(-1)
        lse_Hn = (scores_Hnm.amax(-1) - probs_Hnm.amax(-1).log()).detach()
        yield Panel(span.start + start, span.start + stop, span.start + left, probs_Hnm[..., : stop - left], lse_Hn)


def grouped_scores(query_HnD: Tensor, key_GmD: Tensor, scaling: float, softcap: float | None) -> Tensor:
    """Scores [..., H, n, m] of queries [..., H, n, D] to keys [..., G, m, D], soft-capped or not; at least fp32."""
    *batch, H, n, D = query_HnD.shape
    dtype = accumulating(query_HnD)
    # The query heads that share a key head become extra rows of its product, so keys are never repeated.
    query_GRD = (query_HnD.to(dtype) * scaling).reshape(*batch, key_GmD.shape[-3], -1, D)
    scores_Hnm = (query_GRD @ key_GmD.to(dtype).mT).view(*batch, H, n, -1)
    return scores_Hnm if softcap is None else softcap * torch.tanh(scores_Hnm / softcap)


def unseen(queries: range, keys: range, window: int | None, device: torch.device) -> Tensor:
    """Which keys each query does not see, [n, m]: those after it, and those before its sliding window."""
    distance_nm = torch.arange(queries.start, queries.stop, device=device)[:, None] - torch.arange(
        keys.start, keys.stop, device=device
    )
    return distance_nm < 0 if window is None else (distance_nm < 0) | (distance_nm >= window)


def accumulating(tensor: Tensor) -> torch.dtype:
    """At least fp32: bf16 products of long rows lose the small probabilities that FCI is made of."""
    return torch.promote_types(tensor.dtype, torch.float32)
