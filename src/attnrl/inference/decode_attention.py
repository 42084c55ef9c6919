"""The attention of decoding steps, for transformers' interface, and the context in which a model decodes with it.

Suffixes: ``B`` rows, ``K`` key/value heads, ``G`` query heads for each, ``N`` queries, ``C`` cache columns,
``D`` head dimension, ``U`` groups of rows that share a prefix, ``P`` its columns, ``M`` rows of the largest group.
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
    """Attention for transformers' interface: grouped heads at one query token, else transformers' sdpa.

    Args:
        module: the attention module.
        query: [B, K*G, 1, D] when decoding.
        key: [B, K, C, D], ``value`` likewise; keys from a cache with shared prefixes carry ``decode_layer``.
        attention_mask: additive or boolean [B, 1, 1, C], or None.
        scaling: factor of the scores; D**-0.5 by default.
        kwargs: what else the model passes; anything that changes the result goes to transformers' sdpa.

    Returns:
        ``(output [B, 1, K*G, D], None)``.
    """
    if query.shape[2] > 1 or kwargs.get("softcap") is not None or kwargs.get("position_bias") is not None:
        return sdpa_attention_forward(  # type: ignore[no-any-return]
            module, query, key, value, attention_mask, scaling=scaling, **kwargs
        )
    B, heads, _, D = query.shape
    query_BKGD = query.reshape(B, key.shape[1], -1, D)
    layer: DecodeLayer | None = getattr(key, "decode_layer", None)
    if layer is not None:
        output_BKGD = _shared_prefix_attention(query_BKGD, key, value, attention_mask, layer, scaling)
    elif query.device.type == "cpu" and query.dtype == torch.float32:
        output_BKGD = _attend(query_BKGD, key, value, attention_mask, scaling)[0]
    else:
        output_BKGD = F.scaled_dot_product_attention(query_BKGD, key, value, attn_mask=attention_mask, scale=scaling)
    return output_BKGD.reshape(B, 1, heads, -1), None


def _attend(
    query_BKND: Tensor, key_BKCD: Tensor, value_BKCD: Tensor, mask_B11C: Tensor | None, scaling: float | None
) -> tuple[Tensor, Tensor]:
    """Attention [B, K, N, D] of N queries for each row and head, and the log-sum-exp [B, K, N, 1] of their scores.

    Two batched products beat the CPU's fused kernel, which splits the work by head, when queries are so few.
    """
    B, K, N, D = query_BKND.shape
    C = key_BKCD.shape[2]
    query_HND = query_BKND.reshape(B * K, N, D) * (D**-0.5 if scaling is None else scaling)  # H = B*K
    scores_BNC = torch.bmm(query_HND, key_BKCD.reshape(B * K, C, D).transpose(1, 2)).float().view(B, K * N, C)
    if mask_B11C is not None:
        if mask_B11C.dtype == torch.bool:
            scores_BNC.masked_fill_(~mask_B11C[:, 0], torch.finfo(torch.float32).min)
        else:
            scores_BNC += mask_B11C[:, 0]
    weights_BNC = scores_BNC.softmax(-1)
    # The highest score's weight is exp(highest - lse). (Not exp and sum: exp of masked scores is very slow here.)
    lse_BN1 = scores_BNC.amax(-1, keepdim=True) - weights_BNC.amax(-1, keepdim=True).log_()
    values_HCD = value_BKCD.reshape(B * K, C, -1)
    output_HND = torch.bmm(weights_BNC.view(B * K, N, C).to(values_HCD.dtype), values_HCD)
    return output_HND.view(B, K, N, -1), lse_BN1.view(B, K, N, 1)


def _shared_prefix_attention(
    query_BKGD: Tensor,
    key_BKCD: Tensor,
    value_BKCD: Tensor,
    mask_B11C: Tensor | None,
    layer: DecodeLayer,
    scaling: float | None,
) -> Tensor:
    """Attend to each row's own columns and to its group's prefix, and join the two by their normalisers.

    All rows of a group read the prefix in one product of N = M*G queries.
    """
    assert layer.shared is not None and layer.groups is not None
    groups, (prefix_keys_UKPD, prefix_values_UKPD) = layer.groups, layer.shared
    B, K, G, D = query_BKGD.shape
    U = prefix_keys_UKPD.shape[0]
    own_BKGD, own_lse_BKG1 = _attend(query_BKGD, key_BKCD, value_BKCD, mask_B11C, scaling)
    query_UKND = query_BKGD.reshape(B * K, G * D).index_select(0, groups.gather).view(U, K, -1, D)
    prefix_UKND, prefix_lse_UKN1 = _attend(query_UKND, prefix_keys_UKPD, prefix_values_UKPD, groups.bias, scaling)
    prefix_BKGD = prefix_UKND.view(-1, G * prefix_UKND.shape[3]).index_select(0, groups.scatter).view_as(own_BKGD)
    prefix_lse_BKG1 = prefix_lse_UKN1.view(-1, G).index_select(0, groups.scatter).view_as(own_lse_BKG1)
    layer.unread = False
    prefix_share_BKG1 = torch.sigmoid(prefix_lse_BKG1 - own_lse_BKG1)
    return torch.lerp(own_BKGD, prefix_BKGD, prefix_share_BKG1.to(own_BKGD.dtype))


AttentionInterface.register(DECODE_ATTENTION, decode_attention)
AttentionMaskInterface.register(DECODE_ATTENTION, sdpa_mask)


@contextmanager
def decoding(model: PreTrainedModel) -> Iterator[None]:
    """Evaluation mode, no gradients and the decoding attention, undone in any case."""
    training = [module for module in model.modules() if module.training]
    configs = {id(m.config): m.config for m in model.modules() if isinstance(m, PreTrainedModel)}.values()
    ours = [(config, config._attn_implementation) for config in configs]
    # Another choice than sdpa (eager for soft-capped scores, flash attention) is the model's or the user's: keep it.
    ours = [(config, name) for config, name in ours if name == "sdpa"]
    try:
        for config, _ in ours:
            config._attn_implementation = DECODE_ATTENTION
        model.eval()
        with torch.inference_mode():
            yield
    finally:
        for config, name in ours:
            config._attn_implementation = name
        for module in training:
            module.training = True
