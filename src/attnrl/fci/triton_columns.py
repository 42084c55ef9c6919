"""Weighted column sums of a causal layer's attention on a CUDA device, as one Triton kernel.

The sums are the same as in :mod:`attnrl.fci.columns`, but the scores never leave the chip. Given the logsumexp of
every row, each term is independent::

    c[t] = sum_{lo[t] <= q < hi[t]} w[q] exp(s[q, t] - lse[q])

A program holds a block of keys and streams the queries that count for these keys, so each sum is finished in the
program that started the sum: no atomics, and bit-identical results in every run.

This module imports triton, a dependency of the GPU builds of torch only; import the module no earlier than a CUDA
tensor appears. Under ``TRITON_INTERPRET=1`` the kernel takes CPU tensors instead, for the tests.

Shape letters: see CONTRIBUTING.md.
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
    """Block sizes and Triton's launch options.

    Attributes:
        keys: keys held by a program.
        queries: queries streamed at a time.
        warps: warps of a program.
        stages: blocks of queries in shared memory; with three stages, loading overlaps with the product.
    """

    keys: int
    queries: int
    warps: int
    stages: int


def kernel_tile(head_dim: int, dtype: torch.dtype) -> KernelTile:
    """Return the tile for a head dimension.

    The choice follows the compiler's report, not timings: no register spills on sm_80 and sm_90; two or more programs
    per SM of an H100 (one program computes exponentials while another multiplies; at 128 dimensions both take about
    equally long); and on sm_80, whose code also runs on consumer cards, at most the 99 KiB of shared memory of
    consumer cards. Fewer than 128 keys would request more queries from the L2 cache than the cache can deliver.
    """
    if dtype == torch.float32:  # tensor cores round fp32 inputs; without tensor cores the products are fully unrolled
        return KernelTile(32, 32, 8, 2)
    if head_dim <= 128:
        return KernelTile(128, 64, 4, 3)
    return KernelTile(128, 32, 8, 3)


def head_parts(head_dim: int) -> tuple[int, int]:
    """Return the widths of the one or two parts of a head; 0 for no second part.

    A block's width is a power of two, and at least 16 for a tensor core. Heads of 80, 96 or 192 padded to one power
    of two would waste a quarter of the products or more on zeros; as 64 + 16, 64 + 32 and 128 + 64 no product is
    wasted. For other heads the two parts together are wider than the head (padding).
    """
    first = max(16, 1 << (head_dim.bit_length() - 1))
    second = max(16, 1 << (head_dim - first - 1).bit_length()) if head_dim > first else 0
    return (2 * first, 0) if second == first else (first, second)


@triton.jit
def _load(ptr: tl.tensor, UPCAST: tl.constexpr) -> tl.tensor:
    block = tl.load(ptr)
    if UPCAST:  # the interpreter multiplies bf16 bit patterns as integers
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
    """Add the queries from ``start`` on, in blocks of QUERIES up to at least ``end``, to the sums of the held keys."""
    offset_q = tl.arange(0, QUERIES)
    offset_x = tl.arange(0, X)
    for first in range(start, end, QUERIES):
        query_q = offset_q
        if MASKED:  # clamp to the last query: inside the tensors, and masked below
            query_q = tl.minimum(offset_q, tokens - 1 - first)
        bias_q = tl.load(bias_ptr + first + query_q)  # load before the product to hide the latency
        # 64 bits only for the block's start: offsets within a block are small.
        block_ptr = query_ptr + tl.cast(first, tl.int64) * stride_qt + query_q[None, :] * stride_qt
        score_kq = tl.dot(key_kx, _load(block_ptr + offset_x[:, None], UPCAST), input_precision="ieee")
        if Y > 0:
            offset_y = X + tl.arange(0, Y)
            query_yq = _load(block_ptr + offset_y[:, None], UPCAST)
            score_kq = tl.dot(key_ky, query_yq, score_kq, input_precision="ieee")

        if SOFTCAP:  # tanh(z) = 1 - 2 / (1 + exp(2 z)) is exact also if exp is 0 or inf
            score_kq = cap - 2 * cap / (1 + tl.exp2(score_kq * scale))
            exponent_kq = score_kq + bias_q[None, :]
        else:
            exponent_kq = tl.fma(score_kq, scale, bias_q[None, :])
        if MASKED:  # mask before the exponential: masked queries may have any bias, inf and nan included
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
    """Compute the sums of one block of KEYS keys for one head.

    bias, out: [B, H, T], lo, hi: [B, T], contiguous. shared: query heads per key head. scale: factor of the
    products; cap: bound of the soft-capped scores; both include log2(e), because the exponentials have base two.
    """
    # Blocks of one head run side by side and share the head's queries in the L2 cache; the first block of a causal
    # head has the most queries, so the last blocks to run are short.
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

    # Queries in [last_lo, first_hi) count for every live key. Whole blocks of such queries need no mask; the sums of
    # dead keys are cleared at the end.
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
    """Return the column sums of a layer's attention: ``c[t] = sum_{lo[t] <= q < hi[t]} w[q] exp(s[q, t] - lse[q])``.

    The scores are ``s[q, t] = scaling * query[q] . key[t]``, with a softcap ``softcap * tanh(s / softcap)``.
    Products of fp16 and bf16 are summed in fp32, products of fp32 are not rounded to tf32; everything else is
    fp32. No gradient flows. Equal inputs on the same device give bit-identical results.

    One interval of queries per key expresses causality, packed sequences, the lag delta and windows. The kernel is
    fastest if neighbouring keys have similar intervals; any intervals give correct sums.

    Args:
        query_BHTD: queries after the rotary embedding, fp16, bf16 or fp32, of 16 to 256 dimensions; any strides,
            but a non-contiguous last dimension is copied.
        key_BGTD: keys after the rotary embedding; head h attends with key head ``h // (H / G)``.
        lse_BHT: logsumexp of each query's scores over all keys visible to the query, in nats, fp32. Queries
            outside all intervals may have any value, inf and nan included.
        weight_BT: weight w, fp32, positive for each query within an interval, arbitrary elsewhere.
        lo_BT: first query that counts for the key, int32.
        hi_BT: one past the last query that counts, int32; a key with ``hi <= lo`` has no queries.
        scaling: factor of the products.
        softcap: bound of the scores; None for plain scores.

    Returns:
        c_BHT in fp32, non-negative; 0 for keys without queries.

    Raises:
        ValueError: tensors outside a CUDA device, inconsistent shapes, or an unsupported dtype or head dimension.
    """
    B, H, T, D = query_BHTD.shape
    G = key_BGTD.shape[1]
    if not (query_BHTD.is_cuda or _INTERPRETED):
        raise ValueError(f"the Triton kernel needs tensors on a CUDA device, not on {query_BHTD.device}")
    if key_BGTD.shape != (B, G, T, D) or H % G or lse_BHT.shape != (B, H, T):
        shapes = [tuple(tensor.shape) for tensor in (query_BHTD, key_BGTD, lse_BHT)]
        raise ValueError(f"shapes of queries, keys and logsumexp are inconsistent: {shapes}")
    if not weight_BT.shape == lo_BT.shape == hi_BT.shape == (B, T):
        shapes = [tuple(tensor.shape) for tensor in (weight_BT, lo_BT, hi_BT)]
        raise ValueError(f"weight, lo and hi must have shape {(B, T)}, got {shapes}")
    if query_BHTD.dtype != key_BGTD.dtype or query_BHTD.dtype not in (torch.float16, torch.bfloat16, torch.float32):
        raise ValueError(
            f"dtype of queries and keys must be fp16, bf16 or fp32, got {query_BHTD.dtype}, {key_BGTD.dtype}"
        )
    if not 16 <= D <= 256:
        raise ValueError(f"head dimension must be 16 to 256, got {D}")
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
    # The addend of the exponent that depends on the query alone: log2(w) - lse / ln(2).
    bias_BHT = torch.sub(weight_BT.log2()[:, None], lse_BHT, alpha=_LOG2E).contiguous()
    if softcap is None:
        scale, cap = scaling * _LOG2E, 0.0
    else:  # tanh is computed from exp(2 s / softcap)
        scale, cap = 2 * scaling / softcap * _LOG2E, softcap * _LOG2E

    with torch.cuda.device(query_BHTD.get_device()):  # Triton launches on the current device; -1, the CPU, is ignored
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
