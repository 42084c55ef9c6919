"""Weighted column sums of a causal layer's attention on a CUDA device, as one Triton kernel.

The same sums as :mod:`attnrl.fci.columns` forms with torch, but from scores that never leave
the chip. With the logsumexp of every row known, each term stands alone::

    c[t] = sum_{lo[t] <= q < hi[t]} w[q] exp(s[q, t] - lse[q])

A program holds a block of keys and streams the queries that count for it, so each sum is finished where it is
begun: no atomics, and the same bits every time.

This module imports triton, which only the GPU builds of torch bring along, so import it no earlier than a
CUDA tensor shows up. Under ``TRITON_INTERPRET=1`` it takes CPU tensors instead, for the tests.

Shape letters: B rows of the batch, T tokens, H query heads, G key/value heads, D head dimension; in the
kernel N keys of the block that is held, M queries of a block that streams by.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

_LOG2E = math.log2(math.e)


class KernelTile(NamedTuple):
    """How the work is cut, and Triton's launch options.

    Attributes:
        keys: N, held by a program.
        queries: M, streamed at a time.
        warps: of a program.
        stages: blocks of queries in shared memory; with three, one is on its way while another is multiplied.
    """

    keys: int
    queries: int
    warps: int
    stages: int


def kernel_tile(head_dim: int, dtype: torch.dtype) -> KernelTile:
    """The tile for a head dimension.

    Chosen by what the compiler reports, not yet by timings: no register spills on sm_80 and sm_90, two or more
    programs on an SM of an H100 (one takes exponentials while another multiplies: at 128 dimensions both take
    about as long), and on sm_80, whose code consumer cards run likewise, no more than their 99 KiB of shared
    memory. Fewer than 128 keys would ask the L2 cache for more queries than it can deliver.
    """
    if dtype == torch.float32:  # no tensor core multiplies exactly, and the products are unrolled whole
        return KernelTile(32, 32, 8, 2)
    if head_dim <= 128:
        return KernelTile(128, 64, 4, 3)
    return KernelTile(128, 32, 8, 3)


def head_parts(head_dim: int) -> tuple[int, int]:
    """Widths of the one or two parts in which a head is multiplied; 0 for no second part.

    A block is a power of two wide, and at least 16 for a tensor core. Heads of 80, 96 or 192 padded to one
    power would spend a quarter of the products or more on zeros; as 64 + 16, 64 + 32 and 128 + 64 they spend
    none. Together the parts are wider than a head that cannot be cut so.
    """
    first = max(16, 1 << (head_dim.bit_length() - 1))
    second = max(16, 1 << (head_dim - first - 1).bit_length()) if head_dim > first else 0
    return (2 * first, 0) if second == first else (first, second)


@triton.jit
def _load(ptr: tl.tensor, UPCAST: tl.constexpr) -> tl.tensor:
    block = tl.load(ptr)
    if UPCAST:  # the interpreter multiplies the bits of bf16 as if they were integers
        block = block.to(tl.float32)
    return block


@triton.jit
def _add_queries(
    sum_k: tl.tensor,
    key_kx: tl.tensor,
    key_ky: tl.tensor,
    lo_k: tl.tensor,
    hi_k: tl.tensor,
    query_ptr: tl.tensor,
    bias_ptr: tl.tensor,
    stride_qt: tl.tensor,
    start: tl.tensor,
    end: tl.tensor,
    tokens: tl.tensor,
    scale: tl.tensor,
    cap: tl.tensor,
    X: tl.constexpr,
    Y: tl.constexpr,
    QUERIES: tl.constexpr,
    MASKED: tl.constexpr,
    SOFTCAP: tl.constexpr,
    UPCAST: tl.constexpr,
) -> tl.tensor:
    """Add the queries from start on, in blocks of M up to at least end, to the sums of the held keys."""
    offset_q = tl.arange(0, QUERIES)
    offset_x = tl.arange(0, X)
    for first in range(start, end, QUERIES):
        query_q = offset_q
        if MASKED:  # past the last query, the last one again: it stays within the tensors and counts for no key
            query_q = tl.minimum(offset_q, tokens - 1 - first)
        bias_q = tl.load(bias_ptr + first + query_q)  # ahead of the product, so as not to wait for it after
        # 64 bits for the block's start only: within a block the offsets are small.
        block_ptr = query_ptr + tl.cast(first, tl.int64) * stride_qt + query_q[None, :] * stride_qt
        score_kq = tl.dot(key_kx, _load(block_ptr + offset_x[:, None], UPCAST), input_precision="ieee")
        if Y > 0:
            offset_y = X + tl.arange(0, Y)
            query_yq = _load(block_ptr + offset_y[:, None], UPCAST)
            score_kq = tl.dot(key_ky, query_yq, score_kq, input_precision="ieee")

        if SOFTCAP:  # tanh(z) = 1 - 2 / (1 + exp(2 z)), which is right where exp is 0 or inf too
            score_kq = cap - 2 * cap / (1 + tl.exp2(score_kq * scale))
            exponent_kq = score_kq + bias_q[None, :]
        else:
            exponent_kq = tl.fma(score_kq, scale, bias_q[None, :])
        if MASKED:  # before the exponential: what does not count may have any bias, inf and nan among them
            token_q = first + offset_q
            counts_kq = (token_q[None, :] >= lo_k[:, None]) & (token_q[None, :] < hi_k[:, None])
            exponent_kq = tl.where(counts_kq, exponent_kq, float("-inf"))
        sum_k += tl.sum(tl.exp2(exponent_kq), 1)
    return sum_k


@triton.jit(do_not_specialize=["tokens"])
def _kernel(
    query_ptr: tl.tensor,
    key_ptr: tl.tensor,
    bias_ptr: tl.tensor,
    lo_ptr: tl.tensor,
    hi_ptr: tl.tensor,
    out_ptr: tl.tensor,
    stride_qb: tl.tensor,
    stride_qh: tl.tensor,
    stride_qt: tl.tensor,
    stride_kb: tl.tensor,
    stride_kg: tl.tensor,
    stride_kt: tl.tensor,
    tokens: tl.tensor,
    heads: tl.tensor,
    shared: tl.tensor,
    scale: tl.tensor,
    cap: tl.tensor,
    X: tl.constexpr,
    Y: tl.constexpr,
    KEYS: tl.constexpr,
    QUERIES: tl.constexpr,
    SOFTCAP: tl.constexpr,
    UPCAST: tl.constexpr,
) -> None:
    """The sums of one block of N keys for one head.

    bias, out: [B, H, T], lo, hi: [B, T], contiguous. shared: query heads to a key head. scale: on the
    products, cap: on the squashed scores; both with log2(e), for the exponentials are of base two.
    """
    # Blocks of one head run side by side and so share its queries in the L2 cache; a causal head's first
    # block has the most queries, so that the blocks left for the end are short.
    blocks = tl.cdiv(tokens, KEYS)
    first_key = tl.program_id(0) % blocks * KEYS
    head_row = tl.program_id(0) // blocks
    row = tl.cast(head_row // heads, tl.int64)
    head = tl.cast(head_row % heads, tl.int64)
    token_k = first_key + tl.arange(0, KEYS)
    exists_k = token_k < tokens

    lo_k = tl.maximum(tl.load(lo_ptr + row * tokens + token_k, mask=exists_k, other=0), 0)
    hi_k = tl.minimum(tl.load(hi_ptr + row * tokens + token_k, mask=exists_k, other=0), tokens)
    live_k = lo_k < hi_k
    first_lo = tl.min(tl.where(live_k, lo_k, tokens))
    last_lo = tl.max(tl.where(live_k, lo_k, 0))
    first_hi = tl.min(tl.where(live_k, hi_k, tokens))
    last_hi = tl.max(tl.where(live_k, hi_k, 0))
    out_ptrs = out_ptr + tl.cast(head_row, tl.int64) * tokens + token_k
    if last_hi == 0:  # every key is dead
        tl.store(out_ptrs, tl.zeros([KEYS], tl.float32), mask=exists_k)
        return

    query_ptr += row * stride_qb + head * stride_qh
    bias_ptr += tl.cast(head_row, tl.int64) * tokens
    within_k = tl.minimum(tl.arange(0, KEYS), tokens - 1 - first_key)
    key_ptr += row * stride_kb + head // shared * stride_kg + tl.cast(first_key, tl.int64) * stride_kt
    key_ptrs = key_ptr + within_k[:, None] * stride_kt
    key_kx = _load(key_ptrs + tl.arange(0, X)[None, :], UPCAST)
    key_ky = key_kx
    if Y > 0:
        key_ky = _load(key_ptrs + (X + tl.arange(0, Y))[None, :], UPCAST)

    # Queries in [last_lo, first_hi) count for every live key. Whole blocks of them go without a mask, which
    # also adds them to dead keys; those are cleared in the end.
    inner = first_lo + tl.cdiv(last_lo - first_lo, QUERIES) * QUERIES
    inner_end = inner + tl.maximum(first_hi - inner, 0) // QUERIES * QUERIES
    sum_k = tl.zeros([KEYS], tl.float32)
    sum_k = _add_queries(
        sum_k, key_kx, key_ky, lo_k, hi_k, query_ptr, bias_ptr, stride_qt,
        first_lo, tl.minimum(inner, last_hi), tokens, scale, cap, X, Y, QUERIES, True, SOFTCAP, UPCAST,
    )  # fmt: skip
    sum_k = _add_queries(
        sum_k, key_kx, key_ky, lo_k, hi_k, query_ptr, bias_ptr, stride_qt,
        inner, inner_end, tokens, scale, cap, X, Y, QUERIES, False, SOFTCAP, UPCAST,
    )  # fmt: skip
    sum_k = _add_queries(
        sum_k, key_kx, key_ky, lo_k, hi_k, query_ptr, bias_ptr, stride_qt,
        inner_end, last_hi, tokens, scale, cap, X, Y, QUERIES, True, SOFTCAP, UPCAST,
    )  # fmt: skip
    tl.store(out_ptrs, tl.where(live_k, sum_k, 0.0), mask=exists_k)


_INTERPRETED = not isinstance(_kernel, triton.JITFunction)


def column_sums(
    query_BHTD: Tensor,
    key_BGTD: Tensor,
    lse_BHT: Tensor,
    weight_BT: Tensor,
    lo_BT: Tensor,
    hi_BT: Tensor,
    *,
    scaling: float,
    softcap: float | None = None,
) -> Tensor:
    """Column sums of a layer's attention: ``c[t] = sum_{lo[t] <= q < hi[t]} w[q] exp(s[q, t] - lse[q])``.

    The scores are ``s[q, t] = scaling * query[q] . key[t]``, and with a softcap ``softcap * tanh(s / softcap)``
    of that. Products of fp16 and bf16 are summed in fp32, those of fp32 are not rounded to tf32; the rest is
    fp32. No gradient flows. The same inputs on the same device give the same bits.

    One interval of queries for each key says it all: causality, packed sequences, the lag and windows. It
    costs least where neighbouring keys have much the same interval; any others are right too.

    Args:
        query_BHTD: queries as they enter the attention (after the rotary embedding), fp16, bf16 or fp32, of
            16 to 256 dimensions; any strides, but a last dimension that is not contiguous is copied.
        key_BGTD: keys likewise; head h attends with key head ``h // (H / G)``.
        lse_BHT: natural logarithm of the sum of ``exp(s)`` over all the keys that a query sees, fp32. Anything,
            inf and nan included, for queries outside all intervals.
        weight_BT: w, fp32, above 0 for each query within an interval and anything elsewhere.
        lo_BT: first query that counts for the key, int32.
        hi_BT: first query after those, int32; a key with ``hi <= lo`` has none.
        scaling: factor on the products.
        softcap: bound on the scores; None for none.

    Returns:
        c_BHT in fp32, non-negative; 0 for keys that no query counts for.

    Raises:
        ValueError: tensors on no CUDA device, of unlike shapes, or of a dtype or a head dimension other than
            those above.
    """
    B, H, T, D = query_BHTD.shape
    G = key_BGTD.shape[1]
    if not (query_BHTD.is_cuda or _INTERPRETED):
        raise ValueError(f"the Triton kernel needs tensors on a CUDA device, not on {query_BHTD.device}")
    if key_BGTD.shape != (B, G, T, D) or H % G or lse_BHT.shape != (B, H, T):
        shapes = [tuple(tensor.shape) for tensor in (query_BHTD, key_BGTD, lse_BHT)]
        raise ValueError(f"queries, keys and logsumexp do not belong together: {shapes}")
    if not weight_BT.shape == lo_BT.shape == hi_BT.shape == (B, T):
        shapes = [tuple(tensor.shape) for tensor in (weight_BT, lo_BT, hi_BT)]
        raise ValueError(f"weight, lo and hi must be {(B, T)}, not {shapes}")
    if query_BHTD.dtype != key_BGTD.dtype or query_BHTD.dtype not in (torch.float16, torch.bfloat16, torch.float32):
        raise ValueError(f"queries and keys must both be fp16, bf16 or fp32: {query_BHTD.dtype}, {key_BGTD.dtype}")
    if not 16 <= D <= 256:
        raise ValueError(f"a head dimension of 16 to 256 is needed, not {D}")
    sums_BHT = torch.empty(B, H, T, dtype=torch.float32, device=query_BHTD.device)
    if sums_BHT.numel() == 0:
        return sums_BHT

    cut, (first_part, second_part) = kernel_tile(D, query_BHTD.dtype), head_parts(D)
    if padding := first_part + second_part - D:
        query_BHTD, key_BGTD = (torch.nn.functional.pad(tensor, (0, padding)) for tensor in (query_BHTD, key_BGTD))
    if query_BHTD.stride(-1) != 1:
        query_BHTD = query_BHTD.contiguous()
    if key_BGTD.stride(-1) != 1:
        key_BGTD = key_BGTD.contiguous()
    # All that depends on the query alone, as one addend of the exponent: log2(w) - lse / ln(2).
    bias_BHT = torch.sub(weight_BT.log2()[:, None], lse_BHT, alpha=_LOG2E).contiguous()
    if softcap is None:
        scale, cap = scaling * _LOG2E, 0.0
    else:  # tanh is taken from exp(2 s / softcap)
        scale, cap = 2 * scaling / softcap * _LOG2E, softcap * _LOG2E

    with torch.cuda.device(query_BHTD.get_device()):  # Triton launches on the current one; -1, the CPU, is ignored
        _kernel[(triton.cdiv(T, cut.keys) * B * H,)](
            query_BHTD,
            key_BGTD,
            bias_BHT,
            lo_BT.contiguous(),
            hi_BT.contiguous(),
            sums_BHT,
            *query_BHTD.stride()[:3],
            *key_BGTD.stride()[:3],
            T,
            H,
            H // G,
            scale,
            cap,
            X=first_part,
            Y=second_part,
            KEYS=cut.keys,
            QUERIES=cut.queries,
            SOFTCAP=softcap is not None,
            UPCAST=_INTERPRETED,
            num_warps=cut.warps,
            num_stages=cut.stages,
        )
    return sums_BHT
