"""How trees lie in a packed row, and which rectangles of attention scores that makes.

Responses that begin alike, as those to one prompt and the branches of one trunk do, form a tree. Its segments
(tokens that the same responses go through) stand in the row once each, depth first: behind a segment come all that
continue it. A token attends to its ancestors: earlier tokens of its segment and those on the path from the root to
it. In that order they are the keys ``k <= q < subtree_end[k]``; a sliding window counts tokens along the path, by
depth, never by place in the row.

A segment that stands right behind the one that it continues goes on with it as one *run*, which attends to itself
like any sequence. All that branches from a run at one place stands together, so what it sees of the run is one
rectangle: queries from the first such branch to the end of the last one's subtree, keys from the run's beginning to
the place. These :class:`ScoreTile` objects hold each pair of a token and its ancestor exactly once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from attnrl.fci.tree_blocks import FlexBlocks, TokenVisibility

LEAST_STRIP = 256  # queries of a strip that a sliding window is cut into


@dataclass(frozen=True)
class Run:
    """Tokens ``[start, stop)`` of the row, each continued by the next.

    Attributes:
        start: place of its first token in the row.
        stop: one past its last.
        depth: tokens above the first one: its position id.
        parent: index of the run it branches from; None at a root.
        cut: one past the last token of that run which it keeps.
        end: one past the last token of all that branches from it.
    """

    start: int
    stop: int
    depth: int
    parent: int | None
    cut: int
    end: int


@dataclass(frozen=True)
class ScoreTile:
    """A rectangle of scores: queries ``[start, stop)`` of the row by keys ``[first, last)``.

    Attributes:
        start: first query.
        stop: one past the last.
        first: first key.
        last: one past the last.
        ahead: how much deeper the first query is than the first key.
        window: a query sees keys fewer than this many tokens above it; None where it sees all.
        own: whether the queries are among the keys. Each token is a query of one such tile.
    """

    start: int
    stop: int
    first: int
    last: int
    ahead: int
    window: int | None
    own: bool = False

    @property
    def causal(self) -> bool:
        """Whether queries and keys are the same tokens, with nothing hidden by a window."""
        return self.ahead == 0 and self.window is None

    @property
    def full(self) -> bool:
        """Whether every query sees every key."""
        return self.window is None and self.ahead >= self.last - self.first

    def strips(self, rows: int) -> Iterator[ScoreTile]:
        """The tile in strips of at most ``rows`` queries, without the keys that none of them sees."""
        for start in range(self.start, self.stop, rows):
            stop = min(start + rows, self.stop)
            ahead = self.ahead + start - self.start
            hidden = 0 if self.window is None else max(0, ahead - self.window + 1)
            last = min(self.last, self.first + ahead + stop - start)
            yield ScoreTile(start, stop, self.first + hidden, last, ahead - hidden, self.window, self.own)

    def bias_qk(self, dtype: torch.dtype, device: torch.device) -> Tensor:
        """0 where a query sees a key, minus infinity elsewhere."""
        queries, keys = torch.arange(self.stop - self.start), torch.arange(self.last - self.first)
        distance_qk = queries[:, None] + self.ahead - keys
        hidden_qk = distance_qk < 0
        if self.window is not None:
            hidden_qk |= distance_qk >= self.window
        return torch.zeros(hidden_qk.shape, dtype=dtype).masked_fill_(hidden_qk, -torch.inf).to(device)


@dataclass(frozen=True)
class TreeLayout:
    """All runs of a packed row, in order; together they are the whole row."""

    runs: tuple[Run, ...]
    _tiles: dict[int | None, list[ScoreTile]] = field(default_factory=dict, repr=False)
    _biases: dict[tuple[ScoreTile, torch.dtype], Tensor] = field(default_factory=dict, repr=False)
    _blocks: dict[tuple[int | None, torch.device], FlexBlocks] = field(default_factory=dict, repr=False)

    @classmethod
    def build(cls, ranges: Sequence[tuple[int, int]], parents: Sequence[int | None]) -> TreeLayout:
        """Lay out segments that stand in ``ranges`` of the row, end to end, each continuing ``parents[i]``."""
        runs: list[Run] = []
        run_of: list[int] = []  # of each segment
        for index, ((start, stop), parent) in enumerate(zip(ranges, parents, strict=True)):
            if parent is not None and parent == index - 1:
                runs[-1] = replace(runs[-1], stop=stop, end=stop)
            elif parent is None:
                runs.append(Run(start, stop, 0, None, 0, stop))
            else:
                above, cut = runs[run_of[parent]], ranges[parent][1]
                runs.append(Run(start, stop, above.depth + cut - above.start, run_of[parent], cut, stop))
            run_of.append(len(runs) - 1)
        for run in reversed(runs):
            if run.parent is not None:
                above = runs[run.parent]
                runs[run.parent] = replace(above, end=max(above.end, run.end))
        return cls(tuple(runs))

    @property
    def tokens(self) -> int:
        """Tokens of the row."""
        return self.runs[-1].stop

    @property
    def longest(self) -> int:
        """Tokens of the longest path."""
        return max(run.depth + run.stop - run.start for run in self.runs)

    def tiles(self, window: int | None) -> list[ScoreTile]:
        """All rectangles; first each run by itself, then what branches see of the run that they branch from."""
        window = self._hiding(window)
        if window not in self._tiles:
            self._tiles[window] = [
                *(tile for run in self.runs for tile in self._within(run, window)),
                *(
                    tile
                    for start, stop, run, cut in self._branches()
                    for tile in self._across(start, stop, run, cut, window)
                ),
            ]
        return self._tiles[window]

    def bias_qk(self, tile: ScoreTile, dtype: torch.dtype) -> Tensor:
        """:meth:`ScoreTile.bias_qk` on a CPU, made once for all layers."""
        if (tile, dtype) not in self._biases:
            self._biases[tile, dtype] = tile.bias_qk(dtype, torch.device("cpu"))
        return self._biases[tile, dtype]

    def blocks(self, window: int | None, device: torch.device) -> FlexBlocks:
        """What FlexAttention has to compute, made once for all layers."""
        window = self._hiding(window)
        if (window, device) not in self._blocks:
            depth_T = torch.cat([torch.arange(run.stop - run.start) + run.depth for run in self.runs])
            end_T = torch.empty(self.tokens, dtype=torch.long)
            for run in self.runs:
                end_T[run.start : run.stop] = run.end
            for start, _, run, cut in self._branches():
                end_T[cut : run.stop] = end_T[cut : run.stop].clamp(max=start)
            self._blocks[window, device] = FlexBlocks.build(
                TokenVisibility.build(end_T.to(device), depth_T.to(device), window)
            )
        return self._blocks[window, device]

    def _hiding(self, window: int | None) -> int | None:
        """The window, or None where it hides nothing."""
        return None if window is None or window >= self.longest else window

    def _branches(self) -> Iterator[tuple[int, int, Run, int]]:
        """``(start, stop, run, cut)``: all of ``[start, stop)`` branches from ``run`` behind token ``cut - 1``."""
        found: dict[tuple[int, int], tuple[int, int]] = {}
        for run in self.runs:
            if run.parent is not None:
                start, _ = found.get((run.parent, run.cut), (run.start, run.end))
                found[run.parent, run.cut] = (start, run.end)
        for (parent, cut), (start, stop) in found.items():
            yield start, stop, self.runs[parent], cut

    def _within(self, run: Run, window: int | None) -> Iterator[ScoreTile]:
        whole = ScoreTile(run.start, run.stop, run.start, run.stop, 0, None, own=True)
        if window is None or run.stop - run.start <= window:
            yield whole
        else:
            yield from replace(whole, window=window).strips(max(window, LEAST_STRIP))

    def _across(self, start: int, stop: int, above: Run, cut: int, window: int | None) -> Iterator[ScoreTile]:
        if window is None:
            yield ScoreTile(start, stop, above.start, cut, cut - above.start, None)
            return
        # With a window what is seen depends on the depth, which along each run is that of a rectangle's band.
        last_depth = above.depth + cut - above.start - 1
        for run in self.runs:
            if start <= run.start < stop:
                queries = min(run.stop - run.start, last_depth + window - run.depth)  # further down, none sees any
                first = max(above.start, above.start + run.depth - window + 1 - above.depth)
                ahead = run.depth - above.depth - (first - above.start)
                if queries > 0:
                    hides = queries - 1 + ahead >= window
                    yield ScoreTile(run.start, run.start + queries, first, cut, ahead, window if hides else None)
