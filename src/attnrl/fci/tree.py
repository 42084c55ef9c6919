"""Layout of trees in a packed row, and the rectangles of attention scores that trees need.

Responses with a shared prefix (responses to one prompt, branches of one trunk) form a tree. Each segment of the tree
(tokens shared by the same responses) occupies the row once, in depth-first order: behind a segment follow all segments
that continue the segment. A token attends to its ancestors: earlier tokens of the segment, and the tokens on the path
from the root to the segment. In depth-first order the keys of query q satisfy ``k <= q < subtree_end[k]``. A sliding
window counts tokens along the path, by depth and never by place in the row.

A segment directly behind its parent segment extends the parent's *run*; a run attends to itself like any sequence. All
branches from one place of a run are adjacent in the row, so the scores of the branches with the run form one rectangle:
the queries from the first branch to the end of the last branch's subtree, by the keys from the start of the run to the
branch point. The :class:`ScoreTile` objects cover each pair of a token and an ancestor exactly once.

Shape letters: see CONTRIBUTING.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from attnrl.fci.tree_blocks import FlexBlocks, TokenVisibility

LEAST_STRIP = 256  # smallest number of queries in a strip of a tile with a sliding window


@dataclass(frozen=True)
class Run:
    """Tokens ``[start, stop)`` of the row, each the parent of the next token.

    Attributes:
        start: place of the first token in the row.
        stop: one past the last token.
        depth: tokens above the first token, equal to the first token's position id.
        parent: index of the run above, None at a root.
        cut: one past the last visible token of the run above.
        end: one past the last token of all branches of the run.
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
        stop: one past the last query.
        first: first key.
        last: one past the last key.
        ahead: depth of the first query minus depth of the first key.
        window: width of the sliding window, the query included; None if the window hides no key.
        own: True if the queries are among the keys. Each token is a query of exactly one such tile.
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
        """True if queries and keys are the same tokens and no window hides a key."""
        return self.ahead == 0 and self.window is None

    @property
    def full(self) -> bool:
        """True if every query sees every key."""
        return self.window is None and self.ahead >= self.last - self.first

    def strips(self, rows: int) -> Iterator[ScoreTile]:
        """Yield strips of at most ``rows`` queries, without the keys hidden from every query of the strip."""
        for start in range(self.start, self.stop, rows):
            stop = min(start + rows, self.stop)
            ahead = self.ahead + start - self.start
            hidden = 0 if self.window is None else max(0, ahead - self.window + 1)
            last = min(self.last, self.first + ahead + stop - start)
            yield ScoreTile(start, stop, self.first + hidden, last, ahead - hidden, self.window, self.own)

    def bias_qk(self, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Return the additive mask: 0 for visible keys, minus infinity for hidden keys."""
        queries, keys = torch.arange(self.stop - self.start), torch.arange(self.last - self.first)
        distance_qk = queries[:, None] + self.ahead - keys
        hidden_qk = distance_qk < 0
        if self.window is not None:
            hidden_qk |= distance_qk >= self.window
        return torch.zeros(hidden_qk.shape, dtype=dtype).masked_fill_(hidden_qk, -torch.inf).to(device)


@dataclass(frozen=True)
class TreeLayout:
    """The runs of a packed row, in order; together the runs cover the row."""

    runs: tuple[Run, ...]
    _tiles: dict[int | None, list[ScoreTile]] = field(default_factory=dict, repr=False)
    _biases: dict[tuple[ScoreTile, torch.dtype], Tensor] = field(default_factory=dict, repr=False)
    _blocks: dict[tuple[int | None, torch.device], FlexBlocks] = field(default_factory=dict, repr=False)

    @classmethod
    def build(cls, ranges: Sequence[tuple[int, int]], parents: Sequence[int | None]) -> TreeLayout:
        """Return the layout of segments at ``ranges`` of the row, end to end; segment i continues ``parents[i]``."""
        runs: list[Run] = []
        run_of: list[int] = []  # index of the run of each segment
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
        """Number of tokens of the row."""
        return self.runs[-1].stop

    @property
    def longest(self) -> int:
        """Number of tokens of the longest path."""
        return max(run.depth + run.stop - run.start for run in self.runs)

    def tiles(self, window: int | None) -> list[ScoreTile]:
        """Return all tiles: first each run by itself, then the branches of each run by the run."""
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
        """Return :meth:`ScoreTile.bias_qk` on a CPU, cached for all layers."""
        if (tile, dtype) not in self._biases:
            self._biases[tile, dtype] = tile.bias_qk(dtype, torch.device("cpu"))
        return self._biases[tile, dtype]

    def blocks(self, window: int | None, device: torch.device) -> FlexBlocks:
        """Return the block mask of FlexAttention, cached for all layers."""
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
        """Return the window, or None if the window is at least as long as the longest path."""
        return None if window is None or window >= self.longest else window

    def _branches(self) -> Iterator[tuple[int, int, Run, int]]:
        """Yield ``(start, stop, run, cut)``: tokens ``[start, stop)`` branch from ``run`` behind token ``cut - 1``."""
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
        # With a window, visibility depends on depth; the visible scores of each run form a band of a rectangle.
        last_depth = above.depth + cut - above.start - 1
        for run in self.runs:
            if start <= run.start < stop:
                queries = min(
                    run.stop - run.start, last_depth + window - run.depth
                )  # deeper queries see no key of the run above
                first = max(above.start, above.start + run.depth - window + 1 - above.depth)
                ahead = run.depth - above.depth - (first - above.start)
                if queries > 0:
                    hides = queries - 1 + ahead >= window
                    yield ScoreTile(run.start, run.start + queries, first, cut, ahead, window if hides else None)
