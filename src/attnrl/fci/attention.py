"""Causal attention that also returns the logsumexp of each attention row, from which FCI follows.

:func:`attend` computes the attention of a layer: with torch's flash attention, which returns the logsumexp at no cost,
if flash attention supports the layer; otherwise (soft-capped scores, another head dimension of the values, sliding
windows on a CPU) with :func:`panels`, which compute a few attention rows at a time. Neither allocates a T x T matrix.
Both carry gradients; with gradients, autograd keeps every panel, the memory of eager attention.

Shape letters: see CONTRIBUTING.md.
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
    """Tensors and settings of the attention of one layer.

    Attributes:
        query_BHTD: queries after the rotary embedding.
        key_BGTD: keys after the rotary embedding; head h attends with key head ``h // (H / G)``.
        value_BGTE: values.
        scaling: factor of the scores.
        window: width of the sliding window, the query included; None for all earlier tokens.
        softcap: bound c of soft-capped scores ``c tanh(s / c)``; None for plain scores.
        sinks_H: score of the attention sink of each head, a key without a value that every row has; None without sinks.
    """

    query_BHTD: Tensor
    key_BGTD: Tensor
    value_BGTE: Tensor
    scaling: float
    window: int | None = None
    softcap: float | None = None
    sinks_H: Tensor | None = None

    def of_heads(self, heads: Sequence[int]) -> LayerAttention:
        """Return the attention of the query heads ``heads``, each with a key head of its own."""
        chosen = list(heads)
        shared = [head * self.key_BGTD.shape[1] // self.query_BHTD.shape[1] for head in chosen]
        return replace(
            self,
            query_BHTD=self.query_BHTD[:, chosen],
            key_BGTD=self.key_BGTD[:, shared],
            value_BGTE=self.value_BGTE[:, shared],
            sinks_H=None if self.sinks_H is None else self.sinks_H[chosen],
        )


def attend(layer: LayerAttention, layout: StepLayout) -> tuple[Tensor, Tensor]:
    """Compute the attention of each sequence to itself.

    Returns:
        output_BHTE in the dtype of the values, and the logsumexp lse_BHT of each row's scores (nats, sinks included,
        no gradient), fp32 or fp64. Padding tokens have an arbitrary finite output.

    Raises:
        FciUnsupportedError: torch's variable-length attention returned a logsumexp of an unknown shape.
    """
    flashed = _flash(layer, layout)
    if flashed is not None:
        return flashed
    query_BHTD, value_BGTE = layer.query_BHTD, layer.value_BGTE
    output_BHTE = value_BGTE.new_zeros(*query_BHTD.shape[:3], value_BGTE.shape[3])
    lse_BHT = torch.zeros(query_BHTD.shape[:3], dtype=accumulating(query_BHTD), device=query_BHTD.device)
    for span in layout.spans:
        for panel in panels(layer, span):
            value_GkE = value_BGTE[span.row, :, panel.left : panel.stop].to(panel.probs_Hqk.dtype)
            H, q, k = panel.probs_Hqk.shape
            output_HqE = (panel.probs_Hqk.reshape(len(value_GkE), -1, k) @ value_GkE).view(H, q, -1)
            output_BHTE[span.row, :, panel.start : panel.stop] = output_HqE.to(output_BHTE.dtype)
            lse_BHT[span.row, :, panel.start : panel.stop] = panel.lse_Hq
    return output_BHTE, lse_BHT


def _flash(layer: LayerAttention, layout: StepLayout) -> tuple[Tensor, Tensor] | None:
    """Return the result of flash attention, or None if torch has no flash attention with logsumexp for the layer."""
    query_BHTD, value_BGTE = layer.query_BHTD, layer.value_BGTE
    if layer.softcap is not None or value_BGTE.shape[3] != query_BHTD.shape[3]:
        return None
    if layer.sinks_H is not None and torch.is_grad_enabled():
        return None  # the logsumexp, which rescales the output, carries no gradient
    window = None if layer.window is None or layer.window >= layout.longest else layer.window
    if query_BHTD.device.type == "cpu" and window is None:
        output_BHTE, lse_BHT = _cpu_flash(layer, layout)
    elif _varlen_takes(query_BHTD):
        output_BHTE, lse_BHT = _varlen_flash(layer, layout, window)
    else:
        return None
    return with_sinks(layer.sinks_H, output_BHTE, lse_BHT.detach())


def with_sinks(sinks_H: Tensor | None, output_BHTE: Tensor, lse_BHT: Tensor) -> tuple[Tensor, Tensor]:
    """Return output and logsumexp after adding the attention sinks to each row; unchanged without sinks."""
    if sinks_H is None:
        return output_BHTE, lse_BHT
    sinks_H1 = sinks_H[:, None].to(lse_BHT.dtype)
    kept_BHT1 = torch.sigmoid(lse_BHT - sinks_H1)[..., None]
    return output_BHTE * kept_BHT1.to(output_BHTE.dtype), torch.logaddexp(lse_BHT, sinks_H1)


def _cpu_flash(layer: LayerAttention, layout: StepLayout) -> tuple[Tensor, Tensor]:
    """Call the CPU operator behind sdpa, which returns the logsumexp as a second output."""
    query_BHTD, key_BGTD, value_BGTE = layer.query_BHTD, layer.key_BGTD, layer.value_BGTE

    def attend(rows: slice, tokens: slice) -> tuple[Tensor, Tensor]:
        operands = (tensor[rows, :, tokens] for tensor in (query_BHTD, key_BGTD, value_BGTE))
        output_BHTE, lse_BHT = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            *operands, 0.0, True, scale=layer.scaling
        )
        return output_BHTE, lse_BHT

    if all(span.start == 0 for span in layout.spans):  # causal: right padding is never attended to
        return attend(slice(None), slice(None))
    output_BHTE = query_BHTD.new_zeros(query_BHTD.shape)
    lse_BHT = torch.zeros(query_BHTD.shape[:3], dtype=accumulating(query_BHTD))
    for span in layout.spans:
        row, tokens = slice(span.row, span.row + 1), slice(span.start, span.stop)
        output_BHTE[row, :, tokens], lse_BHT[row, :, tokens] = attend(row, tokens)
    return output_BHTE, lse_BHT


def _varlen_takes(query_BHTD: Tensor) -> bool:
    """Return True if torch's variable-length flash attention supports these queries."""
    return (
        query_BHTD.is_cuda
        and query_BHTD.dtype in (torch.float16, torch.bfloat16)
        and query_BHTD.shape[3] <= 256
        and query_BHTD.shape[3] % 8 == 0
        and torch.cuda.get_device_capability(query_BHTD.device) >= (8, 0)
    )


def _varlen_flash(layer: LayerAttention, layout: StepLayout, window: int | None) -> tuple[Tensor, Tensor]:
    """Call variable-length flash attention on all rows end to end; padding becomes extra sequences."""
    from torch.nn.attention.varlen import AuxRequest, varlen_attn  # CUDA only

    B, H, T, _ = layer.query_BHTD.shape
    # torch versions without the argument enable grouped heads by themselves.
    grouped: dict[str, Any] = {}
    if "enable_gqa" in inspect.signature(varlen_attn).parameters:
        grouped["enable_gqa"] = layer.key_BGTD.shape[1] != H
    query_NHD, key_NGD, value_NGE = (
        tensor.transpose(1, 2).reshape(B * T, tensor.shape[1], tensor.shape[3])
        for tensor in (layer.query_BHTD, layer.key_BGTD, layer.value_BGTE)
    )
    output_NHE, lse_HN = varlen_attn(
        query_NHD,
        key_NGD,
        value_NGE,
        layout.bounds,
        layout.bounds,
        layout.longest,
        layout.longest,
        return_aux=AuxRequest(lse=True),
        scale=layer.scaling,
        window_size=(-1 if window is None else window - 1, 0),  # tokens to the left of the query
        **grouped,
    )
    if lse_HN.shape != (H, B * T):  # torch's documentation has the dimensions reversed
        shapes = f"{list(lse_HN.shape)}, not {[H, B * T]}"
        raise FciUnsupportedError(f"varlen_attn of torch {torch.__version__} returns a logsumexp of {shapes}")
    return output_NHE.view(B, T, H, -1).transpose(1, 2), lse_HN.view(H, B, T).transpose(0, 1)


@dataclass(frozen=True)
class Panel:
    """Attention rows of the queries ``[start, stop)`` of a sequence over the keys ``[left, stop)``.

    Offsets count within the row. ``probs_Hqk`` (0 for hidden keys) and ``lse_Hq`` (without gradient) are fp32, or fp64
    for fp64 inputs.
    """

    start: int
    stop: int
    left: int
    probs_Hqk: Tensor
    lse_Hq: Tensor


def panels(layer: LayerAttention, span: Span, panel_bytes: int | None = None) -> Iterator[Panel]:
    """Yield the attention of one sequence to itself, a few rows at a time.

    Args:
        layer: the layer's attention.
        span: the sequence.
        panel_bytes: bound on the scores of one panel (at least one row); None for the default of the device.
    """
    device, dtype = layer.query_BHTD.device, accumulating(layer.query_BHTD)
    key_GND = layer.key_BGTD[span.row, :, span.start : span.stop].to(dtype)
    H, length, window = layer.query_BHTD.shape[1], span.stop - span.start, layer.window
    if panel_bytes is None:
        panel_bytes = CPU_PANEL_BYTES if device.type == "cpu" else DEVICE_PANEL_BYTES
    budget = panel_bytes // (dtype.itemsize * H)  # in pairs of query and key
    rows = max(1, budget // length)
    if window is not None:  # r rows see at most r + window keys
        rows = max(rows, int(((window**2 + 4 * budget) ** 0.5 - window) / 2))
    for start in range(0, length, rows):
        stop = min(start + rows, length)
        left = 0 if window is None else max(0, start - window + 1)
        query_HqD = layer.query_BHTD[span.row, :, span.start + start : span.start + stop]
        scores_Hqk = grouped_scores(query_HqD, key_GND[:, left:stop], layer.scaling, layer.softcap)
        hidden_qk = unseen(range(start, stop), range(left, stop), window, device)
        scores_Hqk = scores_Hqk.masked_fill(hidden_qk, -torch.inf)
        if layer.sinks_H is not None:
            sinks_Hq1 = layer.sinks_H.to(dtype)[:, None, None].expand(-1, stop - start, 1)
            scores_Hqk = torch.cat([scores_Hqk, sinks_Hq1], -1)
        probs_Hqk = scores_Hqk.softmax(-1)
        lse_Hq = (scores_Hqk.amax(-1) - probs_Hqk.amax(-1).log()).detach()
        yield Panel(span.start + start, span.start + stop, span.start + left, probs_Hqk[..., : stop - left], lse_Hq)


def grouped_scores(query_HqD: Tensor, key_GkD: Tensor, scaling: float, softcap: float | None) -> Tensor:
    """Return the scores [..., H, q, k] of queries [..., H, q, D] and keys [..., G, k, D], at least fp32.

    ``softcap`` bounds the scores; None for plain scores.
    """
    *batch, H, q, D = query_HqD.shape
    dtype = accumulating(query_HqD)
    # The R query heads of a key head become extra rows of one product, so keys are never repeated.
    stacked_query = (query_HqD.to(dtype) * scaling).reshape(*batch, key_GkD.shape[-3], -1, D)
    scores_Hqk = (stacked_query @ key_GkD.to(dtype).mT).view(*batch, H, q, -1)
    return scores_Hqk if softcap is None else softcap * torch.tanh(scores_Hqk / softcap)


def unseen(queries: range, keys: range, window: int | None, device: torch.device) -> Tensor:
    """Return the mask [q, k] of the keys hidden from each query: later keys, and keys before the sliding window."""
    distance_qk = torch.arange(queries.start, queries.stop, device=device)[:, None] - torch.arange(
        keys.start, keys.stop, device=device
    )
    return distance_qk < 0 if window is None else (distance_qk < 0) | (distance_qk >= window)


def accumulating(tensor: Tensor) -> torch.dtype:
    """Return the dtype of ``tensor``, but at least fp32: bf16 would lose the small probabilities that FCI sums."""
    return torch.promote_types(tensor.dtype, torch.float32)
