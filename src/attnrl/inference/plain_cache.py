"""Transformers' own cache of a decoder with states beside keys and values: made, merged, and cut to the live rows.

Layers of linear attention, state spaces and convolutions keep a state per row, which has no columns. Softmax layers
keep keys and values, which do. Rows end at the same column, so that rows of different lengths decode together: keys
and values of shorter rows are padded on the left, and a mask hides the padding from softmax layers. States never see
padding: prompts are prefilled together only if the prompts have the same length.

Shape letters: see CONTRIBUTING.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel, cache_utils
from transformers.cache_utils import (
    DynamicCache,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionAndFullAttentionLayer,
    LinearAttentionLayer,
)

from attnrl.inference.base import UnsupportedModelError

_DUMMY = getattr(cache_utils, "DummyLayer", None)  # of a layer without a cache; not in transformers 5.5
_KINDS = {DynamicLayer, LinearAttentionLayer, LinearAttentionAndFullAttentionLayer, _DUMMY}
_STATES = ("conv_states", "recurrent_states")


def plain_cache(model: PreTrainedModel) -> DynamicCache:
    """Return an empty cache of the model's text decoder; sliding layers keep every column.

    Raises:
        UnsupportedModelError: the model is an encoder-decoder, or a layer has a cache of another kind.
    """
    name = type(model).__name__
    if getattr(model.config, "is_encoder_decoder", False):
        raise UnsupportedModelError(f"{name}: an encoder-decoder cannot be sampled")
    try:
        cache = DynamicCache(config=model.config.get_text_config(decoder=True))
    except Exception as error:
        raise UnsupportedModelError(f"{name}: transformers has no cache for the layers ({error})") from error
    # A sliding layer drops columns that shorter rows need; the model's mask applies the window.
    cache.layers = [DynamicLayer() if type(layer) is DynamicSlidingWindowLayer else layer for layer in cache.layers]
    unknown = sorted({type(layer).__name__ for layer in cache.layers if type(layer) not in _KINDS})
    if unknown:
        raise UnsupportedModelError(f"{name}: a cache with {', '.join(unknown)} cannot be sampled")
    return cache


def has_columns(cache: DynamicCache) -> bool:
    """Return True if any layer keeps keys and values, False for states alone."""
    return any(isinstance(layer, DynamicLayer) for layer in cache.layers)


def merge_caches(caches: Sequence[DynamicCache], columns: Sequence[int]) -> DynamicCache:
    """Return the first cache with the rows of all caches, in order; shorter rows are padded on the left.

    Args:
        caches: caches of one model.
        columns: tokens of each cache.
    """
    width = max(columns)
    for layers in zip(*(cache.layers for cache in caches), strict=True):
        if isinstance(layers[0], DynamicLayer):
            for side in ("keys", "values"):
                parts = [getattr(layer, side) for layer in layers]
                padded = [F.pad(part, (0, 0, width - n, 0)) for part, n in zip(parts, columns, strict=True)]
                setattr(layers[0], side, torch.cat(padded))
        for name in _STATES:
            if hasattr(layers[0], name):
                setattr(layers[0], name, _concatenated([getattr(layer, name) for layer in layers]))
    return caches[0]


def _concatenated(states: Sequence[Any]) -> Any:
    """Concatenate the states of a layer: tensors, or tensors by index (since transformers 5.13); None stays None."""
    first = states[0]
    if isinstance(first, dict):
        return {index: _concatenated([state[index] for state in states]) for index in first}
    return None if first is None else torch.cat(list(states))


def keep_rows(cache: DynamicCache, rows_B: Tensor, unused: int = 0) -> None:
    """Keep the rows ``rows_B`` (indices; a row may be repeated), without the first ``unused`` columns."""
    cache.reorder_cache(rows_B)
    for layer in cache.layers:
        if unused and isinstance(layer, DynamicLayer):
            layer.keys, layer.values = layer.keys[:, :, unused:], layer.values[:, :, unused:]
