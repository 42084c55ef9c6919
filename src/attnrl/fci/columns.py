"""Column sums of one layer's attention from the logsumexp of each row: the costly part of FCI (paper eq. 5-6).

Eq. 5-6 sum the step-to-step attention over the steps at least delta ahead:
``y[k] = sum_{j >= k + delta} alpha[j, k]``, where ``alpha[j, k]`` is the mean of the attention probabilities
``P[q, t]`` over the queries q in step j and the keys t in step k. Swapping the sums leaves one weighted
column sum of P for each key and one mean over the keys of each step::

    c[t] = sum_{lo[t] <= q < hi[t]} w[q] P[q, t]     w[q] = 1 / len(step(q))
    y[k] = sum_{t in step k} w[t] c[t]

With the logsumexp of each attention row, which flash attention computes anyway, ``w[q] P[q, t]`` is
``exp(s[q, t] - lse[q] + log w[q])``: one more product of queries and keys, tile by tile, in any order.

Shape letters: see CONTRIBUTING.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

#: Scores in one tile. A CPU tile fits the cache of a core from product to sum; a device tile is large enough to
#: outweigh the kernel launches.
CPU_TILE = 3 * 2**16
DEVICE_TILE = 2**25
TILE_KEYS = 128
#: Number of scores below which starting threads costs more time than the threads save.
THREADED = 2**21


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
    """Return the weighted column sums of the attention: ``c[t] = sum_{lo[t] <= q < hi[t]} w[q] exp(s[q, t] - lse[q])``.

    No mask and no T x T matrix is allocated. On CUDA devices with Triton the sums are one fused kernel
    (:mod:`attnrl.fci.triton_columns`). Otherwise torch computes tiles, on a CPU with one thread for each core, in fp32
    (fp64 for fp64 inputs) whatever the dtype of the inputs.

    Args:
        query_BHTD: queries after the rotary embedding.
        key_BGTD: keys after the rotary embedding; head h attends with key head ``h // (H / G)``.
        lse_BHT: logsumexp of each query's scores over the keys visible to the query, in nats.
        weight_BT: weight w of each query, positive for every query of every interval.
        lo_BT: first query that counts for the key.
        hi_BT: one past the last query that counts; keys with ``lo >= hi`` have no queries.
        scaling: factor of the scores.
        softcap: bound c of soft-capped scores ``c tanh(s / c)``; None for plain scores.

    Returns:
        c_BHT, fp32 (fp64 for fp64 inputs), non-negative; 0 for keys without queries.
    """
    if query_BHTD.is_cuda and query_BHTD.dtype != torch.float64 and 16 <= query_BHTD.shape[3] <= 256 and _has_triton():
        from attnrl.fci import triton_columns

        return triton_columns.column_sums(
            query_BHTD, key_BGTD, lse_BHT, weight_BT, lo_BT, hi_BT, scaling=scaling, softcap=softcap
        )
    B, H, T, _ = query_BHTD.shape
    # bf16 products of long rows would lose the small probabilities of the sums.
    dtype = torch.promote_types(query_BHTD.dtype, torch.float32)
    query_BHTD = query_BHTD.to(dtype)
    # In powers of two: exp2 is the cheapest exponential. Queries of weight 0 are in no interval.
    shift_BHT = lse_BHT.to(dtype) / math.log(2) - weight_BT.to(dtype).clamp_min(1e-30).log2()[:, None]
    columns_BHT = torch.zeros(B, H, T, dtype=dtype, device=query_BHTD.device)

    def fill(tile: ColumnTile) -> None:
        columns_BHT[tile.row, :, tile.start : tile.stop] = _tile_sums(
            query_BHTD[tile.row],
            key_BGTD[tile.row],
            shift_BHT[tile.row],
            lo_BT[tile.row],
            hi_BT[tile.row],
            tile,
            scaling,
            softcap,
        )

    tiles = list(_column_tiles(lo_BT, hi_BT))
    scores = H * sum((tile.last - tile.first) * (tile.stop - tile.start) for tile in tiles)
    _for_each(fill, tiles, threaded=query_BHTD.device.type == "cpu" and scores > THREADED)
    return columns_BHT


@cache
def _has_triton() -> bool:
    return find_spec("triton") is not None


@dataclass(frozen=True)
class ColumnTile:
    """Keys ``[start, stop)`` of a row, and the queries that count for these keys.

    Queries in ``[first, last)`` count for at least one of the keys. Queries in ``[all_from, all_to)``, possibly empty,
    count for every key that has queries.
    """

    row: int
    start: int
    stop: int
    first: int
    all_from: int
    all_to: int
    last: int


def _column_tiles(lo_BT: Tensor, hi_BT: Tensor) -> Iterator[ColumnTile]:
    """Yield the tiles with at least one query, the tiles with the most queries (the earliest keys) first."""
    tokens = lo_BT.shape[1]
    for start in range(0, tokens, TILE_KEYS):
        stop = min(start + TILE_KEYS, tokens)
        lo_Bk, hi_Bk = lo_BT[:, start:stop], hi_BT[:, start:stop]
        counts_Bk = lo_Bk < hi_Bk
        bounds = (
            lo_Bk.where(counts_Bk, tokens).amin(1).tolist(),
            lo_Bk.where(counts_Bk, 0).amax(1).tolist(),
            hi_Bk.where(counts_Bk, tokens).amin(1).tolist(),
            hi_Bk.where(counts_Bk, 0).amax(1).tolist(),
        )
        for row, (first, all_from, all_to, last) in enumerate(zip(*bounds, strict=True)):
            if first < last:
                yield ColumnTile(row, start, stop, first, all_from, all_to, last)


def _tile_sums(
    query_HTD: Tensor,
    key_GTD: Tensor,
    shift_HT: Tensor,
    lo_T: Tensor,
    hi_T: Tensor,
    tile: ColumnTile,
    scaling: float,
    softcap: float | None,
) -> Tensor:
    """Return the column sums c_Hk of one tile; ``shift`` is ``(lse - log w) / log 2``."""
    H, _, D = query_HTD.shape
    G = key_GTD.shape[0]
    k = tile.stop - tile.start
    keys = slice(tile.start, tile.stop)
    lo_k, hi_k = lo_T[keys], hi_T[keys]
    sums_Hk = shift_HT.new_zeros(H, k)
    size = CPU_TILE if query_HTD.device.type == "cpu" else DEVICE_TILE
    groups = max(1, min(G, size * G // (H * k * min(128, tile.last - tile.first))))
    rows = max(16, size * G // (H * k * groups))
    unit = 1 / math.log(2)
    for group in range(0, G, groups):
        some = slice(group, group + groups)
        heads = slice(group * H // G, min(group + groups, G) * H // G)
        factor = scaling if softcap else scaling * unit
        key_GDk = (key_GTD[some, keys].to(shift_HT.dtype) * factor).mT
        key_HDk = key_GDk[:, None].expand(-1, H // G, -1, -1).reshape(-1, D, k)  # still a view for one group
        for start in range(tile.first, tile.last, rows):
            stop = min(start + rows, tile.last)
            scores_Hqk = query_HTD[heads, start:stop] @ key_HDk
            if softcap:
                scores_Hqk.div_(softcap).tanh_().mul_(softcap * unit)
            scores_Hqk.sub_(shift_HT[heads, start:stop, None])
            if start < tile.all_from or stop > tile.all_to:
                queries_q1 = torch.arange(start, stop, device=lo_k.device)[:, None]
                # Mask before the exponential: scores outside the interval may overflow.
                scores_Hqk.masked_fill_((queries_q1 < lo_k) | (queries_q1 >= hi_k), -torch.inf)
            sums_Hk[heads] += scores_Hqk.exp2_().sum(1)
    return sums_Hk.masked_fill_(lo_k >= hi_k, 0)


def _for_each(function: Callable[[ColumnTile], None], tiles: Sequence[ColumnTile], *, threaded: bool) -> None:
    """Call the function for each tile; if ``threaded``, on as many threads as torch uses.

    Each thread computes whole tiles. If all threads shared every small product, as in torch's own parallelism, each
    product would wait for the slowest thread, which on a busy machine takes many times as long.
    """
    threads = min(torch.get_num_threads(), len(tiles))
    if not threaded or threads < 2:
        for tile in tiles:
            function(tile)
        return
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            # Inference mode is thread-local, and the sums may be inference tensors of the caller.
            for _ in pool.map(torch.inference_mode()(function), tiles):
                pass
    finally:
        # The number of threads is thread-local, but new threads inherit the number set last in any thread.
        torch.set_num_threads(torch.get_num_threads())
