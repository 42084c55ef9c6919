"""Attention of trees packed into one row: each token attends to its ancestors; the logsumexp of each row is returned.

On a CPU the tiles of :mod:`attnrl.fci.tree` are computed one after another and joined by the logsumexp: only pairs of
tokens on a common path are computed, and no key is copied. On CUDA one FlexAttention call computes the blocks that
contain such a pair.

Shape letters: see CONTRIBUTING.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from attnrl.fci.attention import CPU_PANEL_BYTES, LayerAttention, accumulating, grouped_scores, with_sinks
from attnrl.fci.tree import ScoreTile, TreeLayout
from attnrl.fci.tree_blocks import attend_padded, compiled_flex


def attend_tree(layer: LayerAttention, tree: TreeLayout) -> tuple[Tensor, Tensor]:
    """Compute the attention of each token of the single row of ``layer`` to the token's ancestors and itself.

    Returns:
        output_BHTE in the dtype of the values, with gradient, and the logsumexp lse_BHT of each row's scores
        (nats, sinks included, no gradient), at least fp32.
    """
    if layer.query_BHTD.is_cuda and layer.query_BHTD.dtype != torch.float64:
        return attend_blocks(layer, tree, compiled_flex())
    tensors = (layer.query_BHTD, layer.key_BGTD, layer.value_BGTE, layer.sinks_H)
    settings = _TreeAttentionSettings(tree, layer.window, layer.scaling, layer.softcap)
    attended: tuple[Tensor, Tensor] = _TiledAttention.apply(*tensors, settings)  # type: ignore[no-untyped-call]
    return attended


@dataclass(frozen=True)
class _TreeAttentionSettings:
    """Settings of a layer's attention without the tensors, which autograd saves and frees."""

    tree: TreeLayout
    window: int | None
    scaling: float
    softcap: float | None

    def is_fused(self, query: Tensor, value: Tensor) -> bool:
        """Return True if the CPU operator behind sdpa supports the attention."""
        return query.device.type == "cpu" and self.softcap is None and value.shape[3] == query.shape[3]

    def tiles(self, query: Tensor, value: Tensor) -> Iterator[ScoreTile]:
        """Yield the tiles of the tree, cut into strips if all scores of a tile are materialised."""
        for tile in self.tree.tiles(self.window):
            if self.is_fused(query, value):
                yield tile
            else:
                per_query = query.shape[1] * (tile.last - tile.first) * accumulating(query).itemsize
                yield from tile.strips(max(1, CPU_PANEL_BYTES // per_query))


class _TiledAttention(torch.autograd.Function):
    """Attention computed one tile after another.

    Given the logsumexp of the whole row, the gradient of a tile equals the gradient of the whole row restricted to the
    tile. Therefore the gradients of the tiles add up, and no other token is computed.
    """

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, sinks: Tensor | None, settings: _TreeAttentionSettings
    ) -> tuple[Tensor, Tensor]:
        B, H, T, _ = query.shape
        output_BHTE = torch.empty(B, T, H, value.shape[3], dtype=accumulating(value), device=value.device)
        output_BHTE = output_BHTE.transpose(1, 2)
        lse_BHT = torch.empty(B, H, T, dtype=accumulating(query), device=query.device)
        attend = _fused if settings.is_fused(query, value) else _plain
        for tile in settings.tiles(query, value):
            queries = slice(tile.start, tile.stop)
            output_BHqE, lse_BHq = attend(_TileInputs.of(query, key, value, settings, tile))
            if tile.own:
                output_BHTE[:, :, queries], lse_BHT[:, :, queries] = output_BHqE, lse_BHq
            else:
                share_BHq1 = torch.sigmoid(lse_BHq - lse_BHT[:, :, queries])[..., None]
                output_BHTE[:, :, queries].lerp_(output_BHqE.to(output_BHTE.dtype), share_BHq1)
                lse_BHT[:, :, queries] = torch.logaddexp(lse_BHT[:, :, queries], lse_BHq)
        output_BHTE, lse_BHT = with_sinks(sinks, output_BHTE, lse_BHT)
        output_BHTE = output_BHTE.to(value.dtype)
        ctx.save_for_backward(query, key, value, sinks, output_BHTE, lse_BHT)
        ctx.settings = settings
        ctx.mark_non_differentiable(lse_BHT)
        return output_BHTE, lse_BHT

    @staticmethod
    def backward(ctx: Any, grad_BHTE: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        query, key, value, sinks, output_BHTE, lse_BHT = ctx.saved_tensors
        settings: _TreeAttentionSettings = ctx.settings
        grads = [torch.zeros_like(tensor, dtype=accumulating(tensor)) for tensor in (query, key, value)]
        backward = _fused_backward if settings.is_fused(query, value) else _plain_backward
        for tile in settings.tiles(query, value):
            queries, keys = slice(tile.start, tile.stop), slice(tile.first, tile.last)
            part = _TileInputs.of(query, key, value, settings, tile)
            part_grads = backward(part, grad_BHTE[:, :, queries], output_BHTE[:, :, queries], lse_BHT[:, :, queries])
            for whole, tokens, part_grad in zip(grads, (queries, keys, keys), part_grads, strict=True):
                whole[:, :, tokens] += part_grad
        grad_sinks = None
        if sinks is not None:  # a sink is a key without a value
            along_BHT = (grad_BHTE * output_BHTE).sum(-1, dtype=lse_BHT.dtype)
            grad_sinks = -((sinks[:, None] - lse_BHT).exp() * along_BHT).sum((0, 2)).to(sinks.dtype)
        grads = [grad.to(tensor.dtype) for grad, tensor in zip(grads, (query, key, value), strict=True)]
        return *grads, grad_sinks, None


@dataclass(frozen=True)
class _TileInputs:
    """Slices of a layer's tensors for one tile, with the settings."""

    query_BHqD: Tensor
    key_BGkD: Tensor
    value_BGkE: Tensor
    settings: _TreeAttentionSettings
    tile: ScoreTile

    @classmethod
    def of(
        cls, query: Tensor, key: Tensor, value: Tensor, settings: _TreeAttentionSettings, tile: ScoreTile
    ) -> _TileInputs:
        queries, keys = slice(tile.start, tile.stop), slice(tile.first, tile.last)
        return cls(query[:, :, queries], key[:, :, keys], value[:, :, keys], settings, tile)

    def bias_qk(self, dtype: torch.dtype) -> Tensor:
        return self.tile.bias_qk(dtype, self.query_BHqD.device)


def _fused(part: _TileInputs) -> tuple[Tensor, Tensor]:
    attended: tuple[Tensor, Tensor] = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        part.query_BHqD, part.key_BGkD, part.value_BGkE, **_fused_arguments(part)
    )
    return attended


def _fused_backward(part: _TileInputs, grad_BHqE: Tensor, output_BHqE: Tensor, lse_BHq: Tensor) -> tuple[Tensor, ...]:
    operands = (grad_BHqE, part.query_BHqD, part.key_BGkD, part.value_BGkE, output_BHqE, lse_BHq)
    grads: tuple[Tensor, ...] = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
        *operands, **_fused_arguments(part)
    )
    return grads


def _fused_arguments(part: _TileInputs) -> dict[str, Any]:
    arguments: dict[str, Any] = {"dropout_p": 0.0, "is_causal": part.tile.causal, "scale": part.settings.scaling}
    if part.tile.window is not None:
        arguments["attn_mask"] = part.settings.tree.bias_qk(part.tile, part.query_BHqD.dtype)[None, None]
    return arguments


def _plain(part: _TileInputs) -> tuple[Tensor, Tensor]:
    """Compute one tile by the equations, for layers without a fused operator; materialises all scores of the tile."""
    scores_BHqk = _scores(part, part.query_BHqD, part.key_BGkD)
    return _by_keys(scores_BHqk.softmax(-1), part.value_BGkE.to(scores_BHqk.dtype)), scores_BHqk.logsumexp(-1)


def _plain_backward(part: _TileInputs, grad_BHqE: Tensor, output_BHqE: Tensor, lse_BHq: Tensor) -> tuple[Tensor, ...]:
    B, H, q, _ = part.query_BHqD.shape
    G, k, E = part.value_BGkE.shape[1:]
    with torch.enable_grad():
        query, key = (tensor.detach().requires_grad_() for tensor in (part.query_BHqD, part.key_BGkD))
        scores_BHqk = _scores(part, query, key)
    dtype = scores_BHqk.dtype
    grad_BHqE, output_BHqE = grad_BHqE.to(dtype), output_BHqE.to(dtype)
    probs_BHqk = (scores_BHqk.detach() - lse_BHq[..., None]).exp()
    grad_probs_BHqk = (grad_BHqE.reshape(B, G, -1, E) @ part.value_BGkE.to(dtype).mT).view(B, H, q, k)
    grad_scores_BHqk = probs_BHqk * (grad_probs_BHqk - (grad_BHqE * output_BHqE).sum(-1, keepdim=True))
    grad_value_BGkE = probs_BHqk.view(B, G, -1, k).mT @ grad_BHqE.reshape(B, G, -1, E)
    return *torch.autograd.grad(scores_BHqk, (query, key), grad_scores_BHqk), grad_value_BGkE


def _scores(part: _TileInputs, query_BHqD: Tensor, key_BGkD: Tensor) -> Tensor:
    scores_BHqk = grouped_scores(query_BHqD, key_BGkD, part.settings.scaling, part.settings.softcap)
    return scores_BHqk if part.tile.full else scores_BHqk + part.bias_qk(scores_BHqk.dtype)


def _by_keys(probs_BHqk: Tensor, value_BGkE: Tensor) -> Tensor:
    B, H, q, k = probs_BHqk.shape
    G, E = value_BGkE.shape[1], value_BGkE.shape[3]
    return (probs_BHqk.view(B, G, -1, k) @ value_BGkE).view(B, H, q, E)


def attend_blocks(
    layer: LayerAttention, tree: TreeLayout, attend: Callable[..., tuple[Tensor, Tensor]]
) -> tuple[Tensor, Tensor]:
    """Compute :func:`attend_tree` with FlexAttention, which skips blocks of scores without a visible pair.

    Args:
        layer: the layer's attention.
        tree: the layout of the trees.
        attend: :func:`~attnrl.fci.tree_blocks.flex`, or the compiled :func:`~attnrl.fci.tree_blocks.compiled_flex`.

    Returns:
        output_BHTE and lse_BHT, as :func:`attend_tree`.
    """
    blocks = tree.blocks(layer.window, layer.query_BHTD.device)
    tensors = (layer.query_BHTD, layer.key_BGTD, layer.value_BGTE)
    output_BHTE, lse_BHT = attend_padded(*tensors, blocks, layer.scaling, layer.softcap, attend)
    output_BHTE, lse_BHT = with_sinks(layer.sinks_H, output_BHTE, lse_BHT)
    return output_BHTE, lse_BHT.detach()
