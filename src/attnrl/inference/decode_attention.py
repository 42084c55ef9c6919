"""The attention function of decoding steps, registered in transformers, and the context manager that switches it on.

Shape letters: see CONTRIBUTING.md.
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
from attnrl.utils.model_outputs import logits_only

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
        value: [B, G, C, E].
        attention_mask: additive or boolean [B, 1, 1, C], or None.
        scaling: factor of the scores; D**-0.5 by default.
        kwargs: further arguments of the model; transformers' sdpa computes softcap and position bias.

    Returns:
        ``(output [B, 1, G*R, E], None)``.
    """
    if query.shape[2] > 1 or kwargs.get("softcap") is not None or kwargs.get("position_bias") is not None:
        return sdpa_attention_forward(  # type: ignore[no-any-return]
            module, query, key, value, attention_mask, scaling=scaling, **kwargs
        )
    B, heads, _, D = query.shape
    query_BGRD = query.reshape(B, key.shape[1], -1, D)
    layer: DecodeLayer | None = getattr(key, "decode_layer", None)
    if layer is not None:
        output_BGRE = _shared_prefix_attention(query_BGRD, key, value, attention_mask, layer, scaling)
    elif query.device.type == "cpu" and query.dtype == torch.float32:
        output_BGRE = _attend(query_BGRD, key, value, attention_mask, scaling)[0]
    else:
        output_BGRE = F.scaled_dot_product_attention(query_BGRD, key, value, attn_mask=attention_mask, scale=scaling)
    return output_BGRE.reshape(B, 1, heads, -1), None


def _attend(
    query_BGqD: Tensor, key_BGCD: Tensor, value_BGCE: Tensor, mask_B11C: Tensor | None, scaling: float | None
) -> tuple[Tensor, Tensor]:
    """Return the attention [B, G, q, E] of q queries per row and head, and the scores' log-sum-exp [B, G, q, 1].

    Shapes within the function: queries [B * G, q, D], scores and weights [B, G * q, C], values [B * G, C, E]. For
    few queries two batched products are faster than the CPU's fused kernel, which splits the work by head.
    """
    B, G, q, D = query_BGqD.shape
    C = key_BGCD.shape[2]
    queries = query_BGqD.reshape(B * G, q, D) * (D**-0.5 if scaling is None else scaling)
    scores = torch.bmm(queries, key_BGCD.reshape(B * G, C, D).transpose(1, 2)).float().view(B, G * q, C)
    if mask_B11C is not None:
        if mask_B11C.dtype == torch.bool:
            scores.masked_fill_(~mask_B11C[:, 0], torch.finfo(torch.float32).min)
        else:
            scores += mask_B11C[:, 0]
    weights = scores.softmax(-1)
    # The weight of the highest score is exp(highest - lse). (Summing exp(score) is slow: masked scores underflow.)
    lse = scores.amax(-1, keepdim=True) - weights.amax(-1, keepdim=True).log_()
    values = value_BGCE.reshape(B * G, C, -1)
    output = torch.bmm(weights.view(B * G, q, C).to(values.dtype), values)
    return output.view(B, G, q, -1), lse.view(B, G, q, 1)


def _shared_prefix_attention(
    query_BGRD: Tensor,
    key_BGCD: Tensor,
    value_BGCE: Tensor,
    mask_B11C: Tensor | None,
    layer: DecodeLayer,
    scaling: float | None,
) -> Tensor:
    """Return the attention [B, G, R, E] over each row's own columns and the prefix of the row's group.

    The two attentions are merged by their log-sum-exps. All rows of a group read the prefix in one product of q = M * R
    queries.
    """
    assert layer.shared is not None and layer.groups is not None
    groups, (prefix_keys_UGPD, prefix_values_UGPE) = layer.groups, layer.shared
    B, G, R, D = query_BGRD.shape
    U = prefix_keys_UGPD.shape[0]
    own_BGRE, own_lse_BGR1 = _attend(query_BGRD, key_BGCD, value_BGCE, mask_B11C, scaling)
    query_UGqD = query_BGRD.reshape(B * G, R * D).index_select(0, groups.gather).view(U, G, -1, D)
    prefix_UGqE, prefix_lse_UGq1 = _attend(query_UGqD, prefix_keys_UGPD, prefix_values_UGPE, groups.bias, scaling)
    prefix_BGRE = prefix_UGqE.view(-1, R * prefix_UGqE.shape[3]).index_select(0, groups.scatter).view_as(own_BGRE)
    prefix_lse_BGR1 = prefix_lse_UGq1.view(-1, R).index_select(0, groups.scatter).view_as(own_lse_BGR1)
    layer.unread = False
    prefix_share_BGR1 = torch.sigmoid(prefix_lse_BGR1 - own_lse_BGR1)
    return torch.lerp(own_BGRE, prefix_BGRE, prefix_share_BGR1.to(own_BGRE.dtype))


AttentionInterface.register(DECODE_ATTENTION, decode_attention)
AttentionMaskInterface.register(DECODE_ATTENTION, sdpa_mask)


@contextmanager
def decoding(model: PreTrainedModel) -> Iterator[None]:
    """Switch to evaluation mode, inference mode, logits only and the decoding attention; restore the model on exit."""
    training = [module for module in model.modules() if module.training]
    configs = {id(m.config): m.config for m in model.modules() if isinstance(m, PreTrainedModel)}.values()
    # Only sdpa is replaced: another implementation (eager for soft-capped scores, flash attention) is a choice.
    replaced = [config for config in configs if config._attn_implementation == "sdpa"]
    try:
        for config in replaced:
            config._attn_implementation = DECODE_ATTENTION
        model.eval()
        with torch.inference_mode(), logits_only(model):
            yield
    finally:
        for config in replaced:
            config._attn_implementation = "sdpa"
        for module in training:
            module.training = True
