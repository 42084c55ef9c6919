"""Position of the sequences and steps of a forward pass, and the interval of queries that count for each key.

Two intervals decide whether the attention of query q to key t counts:

- the model shows key t to ``t <= q < hi[t]``: the lower bound is causality, the upper bound the end of the sequence
  (packing, padding) or of the sliding window;
- eq. 5 counts ``q >= lo[t]``, the first token of the step that lies delta steps after the step of t.

Therefore no mask is needed, whatever the layout of the batch. Shape letters: see CONTRIBUTING.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, chain, pairwise

import torch
from torch import Tensor

from attnrl.fci.tree import TreeLayout


@dataclass(frozen=True)
class Span:
    """Position of one sequence: tokens ``[start, stop)`` of a row, and the offset of each step in the row."""

    row: int
    start: int
    stop: int
    steps: tuple[int, ...]


@dataclass(frozen=True)
class StepLayout:
    """Sequences and steps of a forward pass, in the form that the attention functions read.

    Attributes:
        spans: the sequences, ordered by row and start, without overlap.
        weight_BT: fp32, one over the length of the token's step; 0 for tokens of no step (prompt, padding).
        lo_BT: int32, first query of the row that counts for this key; T (never) for tokens of no step.
        end_BT: int32, end of the token's sequence; for padding the next token (padding sees only itself).
        step_BT: index of the token's step among the steps of all sequences; S for tokens of no step.
        steps: S.
        bounds: int32, the ends of sequences and of the padding between sequences when all rows are laid end to end,
            from 0 to B * T: the ``cu_seqlens`` of variable-length attention.
        longest: tokens of the longest sequence (or of the longest padding between two sequences).
        tree: layout of packed trees; None without ``parents``.
    """

    spans: tuple[Span, ...]
    weight_BT: Tensor
    lo_BT: Tensor
    end_BT: Tensor
    step_BT: Tensor
    steps: int
    bounds: Tensor
    longest: int
    tree: TreeLayout | None = None

    @classmethod
    def build(
        cls,
        spans: Sequence[Span],
        rows: int,
        tokens: int,
        delta: int,
        device: torch.device | str = "cpu",
        parents: Sequence[int | None] = (),
    ) -> StepLayout:
        """Lay out the sequences of ``rows`` rows of ``tokens`` tokens; the last step ends with the sequence.

        Args:
            spans: the sequences, ordered by row and start.
            rows: rows of the batch.
            tokens: tokens of a row, padding included.
            delta: smallest distance in steps at which a query counts (eq. 5).
            device: device of the tensors.
            parents: as in :class:`attnrl.fci.spec.CaptureSpec`; queries count only for steps of their own sequence.
        """
        steps = sum(len(span.steps) for span in spans)
        weight_BT = torch.zeros(rows, tokens, dtype=torch.float32)
        lo_BT = torch.full((rows, tokens), tokens, dtype=torch.int32)
        end_BT = torch.arange(1, tokens + 1, dtype=torch.int32).repeat(rows, 1)
        step_BT = torch.full((rows, tokens), steps)
        first = 0
        for span in spans:
            end_BT[span.row, span.start : span.stop] = span.stop
            for index, (start, stop) in enumerate(pairwise([*span.steps, span.stop])):
                weight_BT[span.row, start:stop] = 1 / (stop - start)
                step_BT[span.row, start:stop] = first + index
                if index + delta < len(span.steps):
                    # With delta 0 a step counts for itself, but never a query for a later key.
                    lo_BT[span.row, start:stop] = span.steps[index + delta]
            first += len(span.steps)
        lo_BT = lo_BT.maximum(torch.arange(tokens, dtype=torch.int32))
        edges = chain.from_iterable((span.row * tokens + span.start, span.row * tokens + span.stop) for span in spans)
        bounds = sorted({*edges, *range(0, rows * tokens + 1, tokens)})
        return cls(
            spans=tuple(spans),
            weight_BT=weight_BT.to(device),
            lo_BT=lo_BT.to(device),
            end_BT=end_BT.to(device),
            step_BT=step_BT.to(device),
            steps=steps,
            bounds=torch.tensor(bounds, dtype=torch.int32, device=device),
            longest=max(stop - start for start, stop in pairwise(bounds)),
            tree=TreeLayout.build([(span.start, span.stop) for span in spans], parents) if parents else None,
        )

    @property
    def unbroken(self) -> tuple[Span, ...]:
        """Spans separated by a mask that restarts with the position ids: the sequences, or the runs of trees."""
        if self.tree is None:
            return self.spans
        return tuple(Span(0, run.start, run.stop, ()) for run in self.tree.runs)

    def hi_BT(self, window: int | None) -> Tensor:
        """Return one past the last query that sees each key under a sliding window (None: no window), int32."""
        if window is None:
            return self.end_BT
        keys = torch.arange(self.end_BT.shape[1], dtype=torch.int32, device=self.end_BT.device)
        return self.end_BT.minimum(keys + window)

    def step_means(self, columns_BHT: Tensor) -> Tensor:
        """Return the mean of the column sums over the keys of each step: ``y[k] = sum_{t in k} w[t] c[t]``; y_HS."""
        heads = columns_BHT.shape[1]
        weighted_HN = (columns_BHT * self.weight_BT[:, None]).transpose(0, 1).reshape(heads, -1)
        influence_HS = columns_BHT.new_zeros(heads, self.steps + 1)  # the last column takes the tokens of no step
        influence_HS.index_add_(1, self.step_BT.flatten(), weighted_HN)
        return influence_HS[:, :-1]


def padded_spans(
    step_starts: Sequence[Sequence[int]], lengths: Sequence[int], left_padding: Sequence[int]
) -> tuple[Span, ...]:
    """Return the spans of one sequence per row behind the left padding; step starts count from the sequence's start."""
    return tuple(
        Span(row, left, left + length, tuple(left + start for start in starts))
        for row, (starts, length, left) in enumerate(zip(step_starts, lengths, left_padding, strict=True))
    )


def packed_spans(step_starts: Sequence[Sequence[int]], lengths: Sequence[int]) -> tuple[Span, ...]:
    """Return the spans of all sequences end to end in one row; step starts count from each sequence's start."""
    firsts = accumulate(lengths, initial=0)
    return tuple(
        Span(0, first, first + length, tuple(first + start for start in starts))
        for first, starts, length in zip(firsts, step_starts, lengths, strict=False)
    )
