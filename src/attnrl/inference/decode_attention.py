"""The attention function of decoding steps, registered in transformers, and the context manager that switches it on.

Shape letters: B rows, G key/value heads, R query heads of each key/value head, D head dimension, C cache columns,
N queries, U groups of rows with a shared prefix, P columns of the shared prefix, M rows of the largest group, X = B * G
products of a batched matrix product.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from attnrl.inference.kv_cache import DecodeLayer

DECODE_ATTENTION = "attnrl_decode"


def decode_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Return the attention output: grouped heads for one query token, else transformers' sdpa.

    The signature is that of transformers' attention interface.

    Args:
        module: the attention module.
        query: [B, G*R, 1, D] when decoding.
        key: [B, G, C, D]; keys from a cache with shared prefixes carry the attribute ``decode_layer``.
        value: [B, G, C, D].
        attention_mask: additive or boolean [B, 1, 1, C], or None.
        scaling: factor of the scores; D**-0.5 by default.
        kwargs: further arguments of the model; transformers' sdpa computes softcap and position bias.

    Returns:
        ``(output [B, 1, G*R, D], None)``.
    """
    if query.shape[2] > 1 or kwargs.get("softcap") is not None or kwargs.get("position_bias") is not None:
        return sdpa_attention_forward(  # type: ignore[no-any-return]
            module, query, key, value, attention_mask, scaling=scaling, **kwargs
        )
    B, heads, _, D = query.shape
    query_BGRD = query.reshape(B, key.shape[1], -1, D)
    layer: DecodeLayer | None = getattr(key, "decode_layer", None)
    if layer is not None:
        output_BGRD = _shared_prefix_attention(query_BGRD, key, value, attention_mask, layer, scaling)
    elif query.device.type == "cpu" and query.dtype == torch.float32:
        output_BGRD = _attend(query_BGRD, key, value, attention_mask, scaling)[0]
    else:
        output_BGRD = F.scaled_dot_product_attention(query_BGRD, key, value, attn_mask=attention_mask, scale=scaling)
    return output_BGRD.reshape(B, 1, heads, -1), None


def _attend(
    query_BGND: Tensor, key_BGCD: Tensor, value_BGCD: Tensor, mask_B11C: Tensor | None, scaling: float | None
) -> tuple[Tensor, Tensor]:
    """Return the attention [B, G, N, D] of N queries per row and head, and the scores' log-sum-exp [B, G, N, 1].

    For few queries two batched products are faster than the CPU's fused kernel, which splits the work by head.
    """
    B, G, N, D = query_BGND.shape
    C = key_BGCD.shape[2]
    query_XND = query_BGND.reshape(B * G, N, D) * (D**-0.5 if scaling is None else scaling)
    scores_BNC = torch.bmm(query_XND, key_BGCD.reshape(B * G, C, D).transpose(1, 2)).float().view(B, G * N, C)
    if mask_B11C is not None:
        if mask_B11C.dtype == torch.bool:
            scores_BNC.masked_fill_(~mask_B11C[:, 0], torch.finfo(torch.float32).min)
        else:
            scores_BNC += mask_B11C[:, 0]
    weights_BNC = scores_BNC.softmax(-1)
    # The weight of the highest score is exp(highest - lse). (Summing exp(score) is slow: masked scores underflow.)
    lse_BN1 = scores_BNC.amax(-1, keepdim=True) - weights_BNC.amax(-1, keepdim=True).log_()
    values_XCD = value_BGCD.reshape(B * G, C, -1)
    output_XND = torch.bmm(weights_BNC.view(B * G, N, C).to(values_XCD.dtype), values_XCD)
    return output_XND.view(B, G, N, -1), lse_BN1.view(B, G, N, 1)


def _shared_prefix_attention(
    query_BGRD: Tensor,
    key_BGCD: Tensor,
    value_BGCD: Tensor,
    mask_B11C: Tensor | None,
    layer: DecodeLayer,
    scaling: float | None,
) -> Tensor:
    """Return the attention [B, G, R, D] over each row's own columns and the prefix of the row's group.

    The two attentions are merged by their log-sum-exps. All rows of a group read the prefix in one product of N = M * R
    queries.
    """
    assert layer.shared is not None and layer.groups is not None
    groups, (prefix_keys_UGPD, prefix_values_UGPD) = layer.groups, layer.shared
    B, G, R, D = query_BGRD.shape
    U = prefix_keys_UGPD.shape[0]
    own_BGRD, own_lse_BGR1 = _attend(query_BGRD, key_BGCD, value_BGCD, mask_B11C, scaling)
    query_UGND = query_BGRD.reshape(B * G, R * D).index_select(0, groups.gather).view(U, G, -1, D)
    prefix_UGND, prefix_lse_UGN1 = _attend(query_UGND, prefix_keys_UGPD, prefix_values_UGPD, groups.bias, scaling)
    prefix_BGRD = prefix_UGND.view(-1, R * prefix_UGND.shape[3]).index_select(0, groups.scatter).view_as(own_BGRD)
    prefix_lse_BGR1 = prefix_lse_UGN1.view(-1, R).index_select(0, groups.scatter).view_as(own_lse_BGR1)
    layer.unread = False
    prefix_share_BGR1 = torch.sigmoid(prefix_lse_BGR1 - own_lse_BGR1)
    return torch.lerp(own_BGRD, prefix_BGRD, prefix_share_BGR1.to(own_BGRD.dtype))


AttentionInterface.register(DECODE_ATTENTION, decode_attention)
AttentionMaskInterface.register(DECODE_ATTENTION, sdpa_mask)


@contextmanager
def decoding(model: PreTrainedModel) -> Iterator[None]:
    """Switch to evaluation mode, inference mode and the decoding attention; restore the model on exit."""
    training = [module for module in model.modules() if module.training]
    configs = {id(m.config): m.config for m in model.modules() if isinstance(m, PreTrainedModel)}.values()
    # Only sdpa is replaced: another implementation (eager for soft-capped scores, flash attention) is a choice.
    replaced = [config for config in configs if config._attn_implementation == "sdpa"]
    try:
        for config in replaced:
            config._attn_implementation = DECODE_ATTENTION
        model.eval()
        with torch.inference_mode():
            yield
    finally:
        for config in replaced:
            config._attn_implementation = "sdpa"
        for module in training:
            module.training = True
