"""Key/value cache for decoding a changing batch: right-aligned rows, written in place, shared prefixes stored once.

Every row ends at the same column, so a decoding step appends one column for all rows with a slice copy, without the
concatenation of :class:`transformers.DynamicCache`. Live rows occupy the first slots of the buffers, so a finished
row is dropped by moving the last live row into the finished row's slot.

Attention reads whole buffers, and the mask hides the few columns not yet written. Reading only the written columns
would leave a gap after the columns of each row and head, which defeats the processor's prefetching (measured: twice the
time at 64 columns). The buffers are therefore kept only slightly wider than their content.

Rows whose prompts share a prefix can form a *group*; the group's prefix is stored once, in a second buffer. Reading
keys and values dominates the cost of decoding: a group of six rows reads the prompt once, not six times.
:class:`Groups` tells :func:`attnrl.inference.decode_attention.decode_attention` the group of each row.

Shape letters: see CONTRIBUTING.md.
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
"""One layer's keys [B, G, T, D] and values [B, G, T, E]."""


@dataclass(frozen=True)
class Groups:
    """Assignment of rows to shared prefixes, as gather indices over ``row * G + head``.

    Attributes:
        gather: [U*G*M] rows of each group and head; a smaller group repeats its first row, and the result is not used.
        scatter: [B*G] index of each row's result in the gathered order.
        bias: additive mask [U, 1, 1, P] of the padding after each prefix; None without padding.
    """

    gather: Tensor
    scatter: Tensor
    bias: Tensor | None

    @staticmethod
    def plan(group_of: Sequence[int], lengths: Sequence[int], heads: int, like: Tensor) -> Groups:
        """Return the indices for rows with groups ``group_of`` and prefixes of ``lengths`` tokens.

        Args:
            group_of: index of each row's group.
            lengths: tokens of each group's prefix.
            heads: key/value heads.
            like: the stored prefix keys [U, G, P, D], for shape, dtype and device.
        """
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
        head_G = torch.arange(heads, device=like.device)
        gather_UGM = torch.tensor(gather_UM, device=like.device)[:, None] * heads + head_G[:, None]
        scatter_BG = torch.tensor(place_B, device=like.device)[:, None] + head_G * largest
        bias = None
        if min(lengths) < like.shape[2]:
            length_U1 = torch.tensor(lengths, device=like.device)[:, None]
            hidden_UP = torch.arange(like.shape[2], device=like.device) >= length_U1
            bias = like.new_zeros(hidden_UP.shape).masked_fill_(hidden_UP, torch.finfo(like.dtype).min)
        return Groups(gather_UGM.flatten(), scatter_BG.flatten(), None if bias is None else bias[:, None, None])


class DecodeLayer(CacheLayerMixin):  # type: ignore[misc]
    """Keys [B, G, C, D] and values [B, G, C, E] of one layer; only the first rows and columns are in use.

    Attributes:
        rows: live rows.
        columns: columns written.
        capacity: columns allocated.
        shared: keys [U, G, P, D] and values [U, G, P, E] of the groups' prefixes; None without groups.
        groups: the group of each row.
        unread: True after ``update`` until the attention function has read the shared prefixes.
    """

    is_sliding = False  # the mask applies sliding windows; the cache holds every column
    keys: Tensor
    values: Tensor

    def __init__(self) -> None:
        """Start empty; the first prefill sets the buffers' heads, head dimension, dtype and device."""
        super().__init__()
        self.rows = 0
        self.columns = 0
        self.capacity = 0
        self.shared: KeysValues | None = None
        self.groups: Groups | None = None
        self.unread = False

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Do nothing: :meth:`rebuild` allocates the buffers."""

    def rebuild(self, like: KeysValues, *, new_rows: int = 0, pad: int = 0, drop: int = 0) -> None:
        """Copy to new buffers, with ``new_rows`` rows appended, and ``pad`` columns added or ``drop`` removed in front.

        Cells not copied are zero: they are masked until written, but a masked NaN would still spread.
        """
        rows, kept = self.rows, self.columns - drop
        columns = pad + kept
        # The cost of reading unused columns and of copying to wider buffers balances at a margin of sqrt(8 * columns).
        self.capacity = _aligned(columns + max(1, math.isqrt(8 * columns)))
        for name, sample in zip(("keys", "values"), like, strict=True):
            heads, size = sample.shape[1], sample.shape[3]
            buffer = sample.new_empty(rows + new_rows, heads, self.capacity, size)
            buffer[rows:] = 0
            buffer[:rows, :, :pad] = 0
            buffer[:rows, :, columns:] = 0
            if rows:
                buffer[:rows, :, pad:columns] = getattr(self, name)[:rows, :, drop : self.columns]
            setattr(self, name, buffer)
        self.rows, self.columns, self.is_initialized = rows + new_rows, columns, True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write one new column for all live rows; return the live rows' keys [B, G, C, D] and values [B, G, C, E].

        The new keys are [B, G, 1, D], the new values [B, G, 1, E]. If rows share prefixes, the keys carry this layer as
        the attribute ``decode_layer``, from which the attention function reads the shared prefixes.
        """
        column, self.columns = self.columns, self.columns + 1
        keys_BGCD, values_BGCE = self.keys[: self.rows], self.values[: self.rows]
        keys_BGCD[:, :, column : self.columns] = key_states
        values_BGCE[:, :, column : self.columns] = value_states
        if self.shared is not None:
            self.unread = True
            keys_BGCD.decode_layer = self  # type: ignore[attr-defined]
        return keys_BGCD, values_BGCE

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return the number of columns that :meth:`update` returns, and the first column's offset (0)."""
        return self.capacity, 0

    def get_seq_length(self) -> int:
        """Return the number of columns written."""
        return self.columns

    def get_max_length(self) -> int:
        """Return -1, no limit: the buffers grow."""
        return -1

    get_max_cache_shape = get_max_length  # the name in transformers 5.5


class DecodeCache(Cache):  # type: ignore[misc]
    """Cache of all layers; see the module's docstring for the layout."""

    layers: list[DecodeLayer]

    def __init__(self, layers: int) -> None:
        """Create an empty cache for a model of ``layers`` cached layers."""
        super().__init__(layers=[DecodeLayer() for _ in range(layers)])

    @property
    def columns(self) -> int:
        """Columns written; every live row ends at the last written column."""
        return self.layers[0].columns

    @property
    def capacity(self) -> int:
        """Columns allocated and read by attention."""
        return self.layers[0].capacity

    def extend(self, rows: int, columns: int, like: Sequence[KeysValues]) -> None:
        """Append empty rows, and shift all rows right until there are at least ``columns`` columns."""
        for layer, pair in zip(self.layers, like, strict=True):
            layer.rebuild(pair, new_rows=rows, pad=max(0, columns - layer.columns))

    def grow(self) -> None:
        """Allocate wider buffers and copy all rows."""
        for layer in self.layers:
            layer.rebuild((layer.keys, layer.values))

    def trim(self, columns: int) -> None:
        """Drop the first ``columns`` columns, which no live row uses."""
        for layer in self.layers:
            layer.rebuild((layer.keys, layer.values), drop=columns)

    def fill(self, slots: Sequence[int], prefill: Sequence[KeysValues], source: int, tokens: slice) -> None:
        """Copy the tokens ``tokens`` of the prefill's row ``source`` to the end of the rows ``slots``."""
        length = tokens.stop - tokens.start
        if not length:
            return
        rows = slots[0] if len(slots) == 1 else slots  # a plain index is a cheaper copy
        for layer, (keys_BGTD, values_BGTE) in zip(self.layers, prefill, strict=True):
            span = slice(layer.columns - length, layer.columns)
            layer.keys[rows, :, span] = keys_BGTD[source, :, tokens]
            layer.values[rows, :, span] = values_BGTE[source, :, tokens]

    def add_groups(self, prefixes: Sequence[tuple[Sequence[KeysValues], int, int]]) -> None:
        """Append a group per ``(prefill, row, length)``: the prefix is the first ``length`` tokens of the row."""
        width = _aligned(max(1, *(length for _, _, length in prefixes)))
        for i, layer in enumerate(self.layers):
            stores = []
            for side in (0, 1):
                parts = [prefill[i][side][row, :, :length] for prefill, row, length in prefixes]
                old = () if layer.shared is None else tuple(layer.shared[side])
                width = max([width, *(part.shape[1] for part in old[:1])])
                stores.append(torch.stack([F.pad(p, (0, 0, 0, width - p.shape[1])) for p in (*old, *parts)]))
            layer.shared = (stores[0], stores[1])

    def keep_groups(self, kept: Sequence[int], width: int) -> None:
        """Keep only the groups ``kept``; the longest kept prefix has ``width`` tokens."""
        for layer in self.layers:
            if layer.shared is not None:
                index_U = torch.tensor(kept, dtype=torch.long, device=layer.shared[0].device)
                keys, values = (
                    tensor[:, :, : _aligned(max(1, width))].index_select(0, index_U) for tensor in layer.shared
                )
                layer.shared = (keys, values) if kept else None

    def set_groups(self, group_of: Sequence[int], lengths: Sequence[int]) -> None:
        """Set the group of each row and the tokens of each group's prefix."""
        first = self.layers[0].shared
        groups = None if first is None else Groups.plan(group_of, lengths, first[0].shape[1], first[0])
        for layer in self.layers:
            layer.groups = groups

    def move(self, sources: Tensor, slots: Tensor, rows: int) -> None:
        """Copy the rows ``sources`` into ``slots``, then keep only the first ``rows`` slots."""
        for layer in self.layers:
            if len(sources):
                for buffer in (layer.keys, layer.values):
                    live = buffer[:, :, : layer.columns]
                    live[slots] = live[sources]
            layer.rows = rows
            if not rows:
                layer.columns = 0


def _aligned(columns: int) -> int:
    """Round up to a multiple of 16: matrix products with aligned sizes are up to 1.5 times faster."""
    return -(-columns // 16) * 16
