"""FlexAttention over trees packed into one row, on blocks of 128 queries by 128 keys.

One compiled graph serves all rows of one kind of layer: rows are padded to a multiple of :data:`MULTIPLE` tokens, the
length of a row is a dynamic size, and windows are numbers in a tensor. FlexAttention outside a compiled graph
materialises all T x T scores, so :func:`compiled_flex` raises an error if torch does not compile the call.

Shape letters: see CONTRIBUTING.md.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import AuxRequest, BlockMask, flex_attention
from torch.nn.functional import pad

BLOCK = 128  # queries and keys of a block
MULTIPLE = 256  # tokens; a shorter row would have a single block, which needs a separate graph
PAIRS = 2**24  # pairs of query and key in one strip of the block mask's computation
GRAPHS = 64  # compiled graphs per process: kinds of layers, with and without gradient

MaskMod = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class TokenVisibility:
    """Visibility between the tokens of a padded row, as three int32 numbers per token.

    Attributes:
        end_T: one past the last descendant of the token.
        depth_T: tokens above the token.
        reach_T: depth at which the token leaves the window.
    """

    end_T: Tensor
    depth_T: Tensor
    reach_T: Tensor

    @classmethod
    def build(cls, end_T: Tensor, depth_T: Tensor, window: int | None) -> TokenVisibility:
        """Return the visibility in a row under ``window``, padded by tokens that see only themselves."""
        tokens = len(end_T)
        padding = -tokens % MULTIPLE
        own_end_T = torch.arange(tokens, tokens + padding, device=end_T.device) + 1
        end_T = torch.cat([end_T, own_end_T]).int()
        depth_T = pad(depth_T, (0, padding)).int()
        return cls(end_T, depth_T, depth_T + (len(end_T) if window is None else min(window, len(end_T))))

    def mask_mod(self) -> MaskMod:
        """Return the function of (batch, head, query, key) that returns True if the query sees the key."""
        end_T, depth_T, reach_T = self.end_T, self.depth_T, self.reach_T

        def sees(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            return (key <= query) & (query < end_T[key]) & (depth_T[query] < reach_T[key])

        return sees

    def block_mask(self) -> BlockMask:
        """Return the same block mask as ``create_block_mask``, from at most :data:`PAIRS` pairs at a time."""
        T, device, sees = len(self.end_T), self.end_T.device, self.mask_mod()
        blocks = T // BLOCK
        place_T = torch.arange(T, dtype=torch.int32, device=device)
        seen_ij = torch.zeros(blocks, blocks, dtype=torch.int32, device=device)
        rows = max(1, PAIRS // (BLOCK * T))
        for first in range(0, blocks, rows):
            last = min(first + rows, blocks)
            queries, keys = place_T[first * BLOCK : last * BLOCK, None], place_T[: last * BLOCK]
            seen_iqjk = sees(place_T, place_T, queries, keys).view(last - first, BLOCK, last, BLOCK)
            seen_ij[first:last, :last] = seen_iqjk.sum((1, 3), dtype=torch.int32)
        full_ij = seen_ij == BLOCK * BLOCK
        lists = (*_listed((seen_ij > 0) & ~full_ij), *_listed(full_ij))
        return BlockMask.from_kv_blocks(*lists, BLOCK_SIZE=BLOCK, mask_mod=sees, seq_lengths=(T, T))


def _listed(blocks_ij: Tensor) -> tuple[Tensor, Tensor]:
    """Return the number of set blocks in each row of blocks, and all block indices, set blocks first."""
    order_ij = blocks_ij.int().argsort(dim=-1, descending=True, stable=True)
    return blocks_ij.sum(-1, dtype=torch.int32)[None, None], order_ij.int()[None, None]


@dataclass(frozen=True)
class FlexBlocks:
    """Tensors that FlexAttention reads besides a layer's own; the length of the row is a dynamic size in each tensor.

    Attributes:
        visibility: end_T, depth_T and reach_T of :class:`TokenVisibility`.
        lists: the eight tensors of a block mask, in the order of its constructor.
    """

    visibility: tuple[Tensor, Tensor, Tensor]
    lists: tuple[Tensor, ...]

    @classmethod
    def build(cls, visibility: TokenVisibility) -> FlexBlocks:
        """Return the tensors of rows with the given visibility."""
        mask = visibility.block_mask()
        by_query = (mask.kv_num_blocks, mask.kv_indices, mask.full_kv_num_blocks, mask.full_kv_indices)
        by_key = (mask.q_num_blocks, mask.q_indices, mask.full_q_num_blocks, mask.full_q_indices)
        lists = tuple(tensor for tensor in (*by_query, *by_key) if tensor is not None)
        for tensor in lists:
            _mark_dynamic(tensor, *range(2, tensor.dim()))
        for tensor in (visibility.end_T, visibility.depth_T, visibility.reach_T):
            _mark_dynamic(tensor, 0)
        return cls((visibility.end_T, visibility.depth_T, visibility.reach_T), lists)


def attend_padded(
    query_BHTD: Tensor,
    key_BGTD: Tensor,
    value_BGTE: Tensor,
    blocks: FlexBlocks,
    scaling: float,
    softcap: float | None,
    attend: Callable[..., tuple[Tensor, Tensor]],
) -> tuple[Tensor, Tensor]:
    """Pad a row, call ``attend`` (:func:`flex` or :func:`compiled_flex`), and remove the padding again.

    Returns:
        output_BHTE and lse_BHT (nats) of the tokens without padding; both with gradient.
    """
    tokens, padding = query_BHTD.shape[2], len(blocks.visibility[0]) - query_BHTD.shape[2]
    padded = [_padded(tensor, padding) for tensor in (query_BHTD, key_BGTD, value_BGTE)]
    with torch._dynamo.config.patch(recompile_limit=GRAPHS, specialize_float=True):
        output_BHTE, lse_BHT = attend(*padded, blocks.visibility, blocks.lists, scaling, softcap)
    return output_BHTE[:, :, :tokens], lse_BHT[:, :, :tokens]


def _padded(tensor_BHTD: Tensor, padding: int) -> Tensor:
    """Return the tensor padded with zeros, in the same memory layout for every padding (one layout, one graph)."""
    tensor_BTHD = tensor_BHTD.transpose(1, 2)
    padded_BTHD = pad(tensor_BTHD, (0, 0, 0, 0, 0, padding)) if padding else tensor_BTHD.contiguous()
    return _mark_dynamic(padded_BTHD.transpose(1, 2), 2)


def _mark_dynamic(tensor: Tensor, *dims: int) -> Tensor:
    for dim in dims:
        torch._dynamo.maybe_mark_dynamic(tensor, dim)  # type: ignore[no-untyped-call]
    return tensor


def flex(
    query_BHTD: Tensor,
    key_BGTD: Tensor,
    value_BGTE: Tensor,
    visibility: tuple[Tensor, Tensor, Tensor],
    lists: tuple[Tensor, ...],
    scaling: float,
    softcap: float | None,
) -> tuple[Tensor, Tensor]:
    """Return output_BHTE and lse_BHT of FlexAttention; the block mask is assembled here, inside a compiled graph.

    If the block mask were an argument, each new length and each new ``mask_mod`` would need a new graph.
    """

    def capped(score: Tensor, *_: Tensor) -> Tensor:
        assert softcap is not None
        return softcap * torch.tanh(score / softcap)

    T = query_BHTD.shape[2]
    kv_num_blocks, kv_indices, full_kv_num_blocks, full_kv_indices, *by_key = lists
    q_num_blocks, q_indices, full_q_num_blocks, full_q_indices = by_key
    output_BHTE, aux = flex_attention(
        query_BHTD,
        key_BGTD,
        value_BGTE,
        score_mod=None if softcap is None else capped,
        block_mask=BlockMask(
            (T, T),
            kv_num_blocks=kv_num_blocks,
            kv_indices=kv_indices,
            full_kv_num_blocks=full_kv_num_blocks,
            full_kv_indices=full_kv_indices,
            q_num_blocks=q_num_blocks,
            q_indices=q_indices,
            full_q_num_blocks=full_q_num_blocks,
            full_q_indices=full_q_indices,
            BLOCK_SIZE=(BLOCK, BLOCK),
            mask_mod=TokenVisibility(*visibility).mask_mod(),
        ),
        scale=scaling,
        enable_gqa=key_BGTD.shape[1] != query_BHTD.shape[1],
        return_aux=AuxRequest(lse=True),
    )
    assert aux.lse is not None
    return output_BHTE, aux.lse


def _flex_in_graph(*arguments: Any) -> tuple[Tensor, Tensor]:
    if not torch.compiler.is_compiling():
        raise RuntimeError(
            "torch did not compile FlexAttention, which would make all T x T scores of a packed row; "
            "turn torch.compile on (TORCHDYNAMO_DISABLE, torch.compiler.set_stance), or set optimizer.packing=none"
        )
    return flex(*arguments)


@cache
def compiled_flex(backend: str | Callable[..., Any] = "inductor") -> Callable[..., tuple[Tensor, Tensor]]:
    """Return :func:`flex` compiled by ``backend``: one graph for all lengths and windows.

    The compiled function raises an error, and never computes all T x T scores, if torch does not compile a call (more
    than :data:`GRAPHS` graphs, or compilation turned off).
    """
    compiled: Callable[..., tuple[Tensor, Tensor]] = torch.compile(_flex_in_graph, fullgraph=True, backend=backend)
    return compiled
