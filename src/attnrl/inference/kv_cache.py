"""Key/value cache for decoding a changing batch: right-aligned rows, written in place, prefixes held once.

Every row ends at the same column, so a decoding step appends one column for all rows with a slice copy; nothing
is concatenated, as :class:`transformers.DynamicCache` does at each step. Rows live in the first slots of buffers
whose batch dimension leads, so a finished row is dropped by moving the last live row into its slot.

Attention reads the buffers whole, and the mask hides the few columns that are not written yet: a gap after each
row's and head's columns would break the processor's prefetching and cost as much as the reading itself (measured:
twice the time at 64 columns). That is why the buffers are kept hardly wider than their content.

Rows whose prompts begin alike may form a *group*, whose common prefix is held once, in a second store. Reading
keys and values is most of the cost of decoding: a group of six reads its prompt once, not six times.
:class:`Groups` tells :func:`attnrl.inference.sampler.decode_attention` which rows belong to which group.

Suffixes: ``B`` rows, ``K`` key/value heads, ``G`` query heads for each, ``C`` columns, ``D`` head dimension,
``U`` groups, ``M`` rows of the largest group, ``P`` columns of the longest shared prefix, ``T`` prompt tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers.cache_utils import Cache, CacheLayerMixin

KeysValues = tuple[Tensor, Tensor]
"""One layer's keys and values, each [rows, K, tokens, D]."""


@dataclass(frozen=True)
class Groups:
    """Which rows share which prefix, as gather indices over ``row * K + head``.

    Attributes:
        gather: [U*K*M] the rows of each group and head (a short group repeats one; its result is not used).
        scatter: [B*K] where each row's result lies in the gathered order.
        bias: additive [U, 1, 1, P], hides the padding after each prefix; None when there is none.
    """

    gather: Tensor
    scatter: Tensor
    bias: Tensor | None

    @staticmethod
    def plan(group_of: Sequence[int], lengths: Sequence[int], heads: int, like: Tensor) -> Groups:
        """Lay out the rows with group indices ``group_of``; ``lengths`` are the groups' prefix lengths."""
        members: list[list[int]] = [[] for _ in lengths]
        for row, group in enumerate(group_of):
            members[group].append(row)
        largest = max(map(len, members))
        place_B = [0] * len(group_of)
        gather_UM: list[list[int]] = []
        for group, rows in enumerate(members):
            for i, row in enumerate(rows):
                place_B[row] = group * heads * largest + i
            gather_UM.append(rows + [rows[0] if rows else 0] * (largest - len(rows)))
        head_K = torch.arange(heads, device=like.device)
        gather_UKM = torch.tensor(gather_UM, device=like.device)[:, None] * heads + head_K[:, None]
        scatter_BK = torch.tensor(place_B, device=like.device)[:, None] + head_K * largest
        bias = None
        if min(lengths) < like.shape[2]:
            length_U1 = torch.tensor(lengths, device=like.device)[:, None]
            hidden_UP = torch.arange(like.shape[2], device=like.device) >= length_U1
            bias = like.new_zeros(hidden_UP.shape).masked_fill_(hidden_UP, torch.finfo(like.dtype).min)
        return Groups(gather_UKM.flatten(), scatter_BK.flatten(), None if bias is None else bias[:, None, None])


class DecodeLayer(CacheLayerMixin):  # type: ignore[misc]
    """One layer's keys and values [rows, K, capacity, D], of which ``columns`` are written.

    ``shared`` holds the prefixes of ``groups``; ``unread`` is set when they have been offered to the attention
    function and not been taken.
    """

    is_sliding = False  # sliding windows are kept by the mask: the cache itself holds every column
    keys: Tensor
    values: Tensor

    def __init__(self) -> None:
        """Start empty; the buffers take their head count, size, dtype and device from the first prefill."""
        super().__init__()
        self.rows = 0
        self.columns = 0
        self.capacity = 0
        self.shared: KeysValues | None = None
        self.groups: Groups | None = None
        self.unread = False

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing to do: :meth:`rebuild` allocates."""

    def rebuild(self, like: KeysValues, *, new_rows: int = 0, pad: int = 0, drop: int = 0) -> None:
        """Copy to buffers with ``new_rows`` more rows, ``pad`` more columns before and ``drop`` fewer.

        What is not copied is zero: it is masked until written, but masked garbage could still be NaN.
        """
        rows, kept = self.rows, self.columns - drop
        columns = pad + kept
        # Reading unused capacity and copying to a wider buffer balance at a margin of about sqrt(8 columns).
        self.capacity = _aligned(columns + max(1, math.isqrt(8 * columns)))
        for name, sample_BKTD in zip(("keys", "values"), like, strict=True):
            heads, size = sample_BKTD.shape[1], sample_BKTD.shape[3]
            new_BKCD = sample_BKTD.new_empty(rows + new_rows, heads, self.capacity, size)
            new_BKCD[rows:] = 0
            new_BKCD[:rows, :, :pad] = 0
            new_BKCD[:rows, :, columns:] = 0
            if rows:
                new_BKCD[:rows, :, pad:columns] = getattr(self, name)[:rows, :, drop : self.columns]
            setattr(self, name, new_BKCD)
        self.rows, self.columns, self.is_initialized = rows + new_rows, columns, True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write one new column [B, K, 1, D] for all live rows and return the live rows [B, K, capacity, D].

        When rows share prefixes, the keys carry this layer as their attribute ``decode_layer``: that is how the
        attention function finds the rest.
        """
        column, self.columns = self.columns, self.columns + 1
        keys_BKCD, values_BKCD = self.keys[: self.rows], self.values[: self.rows]
        keys_BKCD[:, :, column : self.columns] = key_states
        values_BKCD[:, :, column : self.columns] = value_states
        if self.shared is not None:
            self.unread = True
            keys_BKCD.decode_layer = self  # type: ignore[attr-defined]
        return keys_BKCD, values_BKCD

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Length of the keys that :meth:`update` returns, and the offset of the first column (always 0)."""
        return self.capacity, 0

    def get_seq_length(self) -> int:
        """Columns written so far."""
        return self.columns

    def get_max_length(self) -> int:
        """No limit (-1): the buffers grow."""
        return -1

    get_max_cache_shape = get_max_length  # the name in transformers 5.5


class DecodeCache(Cache):  # type: ignore[misc]
    """The cache of all layers; see the module's docstring for the layout."""

    layers: list[DecodeLayer]

    def __init__(self, layers: int) -> None:
        """Create an empty cache for a model of ``layers`` cached layers."""
        super().__init__(layers=[DecodeLayer() for _ in range(layers)])

    @property
    def columns(self) -> int:
        """Columns written: every live row ends there."""
        return self.layers[0].columns

    @property
    def capacity(self) -> int:
        """Columns that attention reads: those written and those there is room for."""
        return self.layers[0].capacity

    def extend(self, rows: int, columns: int, like: Sequence[KeysValues]) -> None:
        """Append empty rows, and shift all rows right where there are fewer than ``columns`` columns."""
        for layer, pair in zip(self.layers, like, strict=True):
            layer.rebuild(pair, new_rows=rows, pad=max(0, columns - layer.columns))

    def grow(self) -> None:
        """Make room for more columns."""
        for layer in self.layers:
            layer.rebuild((layer.keys, layer.values))

    def trim(self, columns: int) -> None:
        """Forget the first ``columns`` columns, which no live row uses."""
        for layer in self.layers:
            layer.rebuild((layer.keys, layer.values), drop=columns)

    def fill(self, slots: Sequence[int], prefill: Sequence[KeysValues], source: int, tokens: slice) -> None:
        """Put the tokens ``tokens`` of the prefill's row ``source`` at the end of the rows ``slots``."""
        length = tokens.stop - tokens.start
        if not length:
            return
        rows = slots[0] if len(slots) == 1 else slots  # a plain index is a cheaper copy
        for layer, (keys_BKTD, values_BKTD) in zip(self.layers, prefill, strict=True):
            span = slice(layer.columns - length, layer.columns)
            layer.keys[rows, :, span] = keys_BKTD[source, :, tokens]
            layer.values[rows, :, span] = values_BKTD[source, :, tokens]

    def add_groups(self, prefixes: Sequence[tuple[Sequence[KeysValues], int, int]]) -> None:
        """Append groups, each with the first ``length`` tokens of a prefill's row: (prefill, row, length)."""
        width = _aligned(max(length for _, _, length in prefixes))
        for i, layer in enumerate(self.layers):
            stores = []
            for side in (0, 1):
                parts = [prefill[i][side][row, :, :length] for prefill, row, length in prefixes]
                old = () if layer.shared is None else tuple(layer.shared[side])
                width = max([width, *(part.shape[1] for part in old[:1])])
                stores.append(torch.stack([F.pad(p, (0, 0, 0, width - p.shape[1])) for p in (*old, *parts)]))
            layer.shared = (stores[0], stores[1])

    def keep_groups(self, kept: Sequence[int], width: int) -> None:
        """Keep the groups ``kept``, whose longest prefix has ``width`` tokens."""
        for layer in self.layers:
            if layer.shared is not None:
                index_U = torch.tensor(kept, dtype=torch.long, device=layer.shared[0].device)
                keys, values = (tensor[:, :, : _aligned(width)].index_select(0, index_U) for tensor in layer.shared)
                layer.shared = (keys, values) if kept else None

    def set_groups(self, group_of: Sequence[int], lengths: Sequence[int]) -> None:
        """Say which group each row belongs to, and the groups' prefix lengths; no lengths, no groups."""
        first = self.layers[0].shared
        groups = None if first is None else Groups.plan(group_of, lengths, first[0].shape[1], first[0])
        for layer in self.layers:
            layer.groups = groups

    def move(self, sources: Tensor, slots: Tensor, rows: int) -> None:
        """Copy rows ``sources`` into ``slots`` and keep the first ``rows`` slots only."""
        for layer in self.layers:
            if len(sources):
                for buffer in (layer.keys, layer.values):
                    live = buffer[:, :, : layer.columns]
                    live[slots] = live[sources]
            layer.rows = rows
            if not rows:
                layer.columns = 0


def _aligned(columns: int) -> int:
    """Round up to a multiple of 16: the products are up to half as fast again on others."""
    return -(-columns // 16) * 16
