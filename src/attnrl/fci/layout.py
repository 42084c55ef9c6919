"""Where the sequences and steps of a forward lie, and which queries count for each key.

Everything that decides whether the attention of a query q to a key t counts is an interval of queries:

- the model shows key t to ``t <= q < hi[t]``: causality from below, and from above the end of the sequence
  (packing, padding) or of the sliding window;
- eq. 5 counts ``q >= lo[t]``, the first token of the step that lies delta steps after the step of t.

so no mask is ever needed, whatever the batch looks like. Shape letters: B rows of the batch, T tokens of a row,
S steps of all sequences together.
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
    """The place of one sequence: tokens ``[start, stop)`` of a row, and the offsets in the row of its steps."""

    row: int
    start: int
    stop: int
    steps: tuple[int, ...]


@dataclass(frozen=True)
class StepLayout:
    """What the attention pass needs to know of sequences and steps.

    Attributes:
        spans: the sequences, ordered by row and start; they do not overlap.
        weight_BT: fp32, one over the length of the token's step; 0 for tokens of no step (prompt, padding).
        lo_BT: int32, first query of the row that counts for this key; T (never) for tokens of no step.
        end_BT: int32, end of the token's sequence; the next token for padding, which sees itself alone.
        step_BT: index of the token's step among those of all sequences; S for tokens of no step.
        steps: S.
        bounds: int32, the ends of sequences and of the padding between them when all rows are laid end to end,
            from 0 to B * T: the ``cu_seqlens`` of variable-length attention.
        longest: tokens of the longest sequence (or padding between two).
        tree: which sequences continue which; None where that was not said.
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
        """Lay out the sequences of ``rows`` rows of ``tokens`` tokens; a last step ends with its sequence.

        ``delta`` is how many steps ahead a query must be to count (eq. 5); ``parents`` is as in
        :class:`attnrl.fci.spec.CaptureSpec`. Queries count for the steps of their own sequence only.
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
                    # With delta 0 a step counts for itself, but a token never for those after it.
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
        """The spans that a mask which heeds position ids keeps apart: sequences, or in a tree its runs."""
        if self.tree is None:
            return self.spans
        return tuple(Span(0, run.start, run.stop, ()) for run in self.tree.runs)

    def hi_BT(self, window: int | None) -> Tensor:
        """One past the last query that sees each key through a sliding window (None: without one), int32."""
        if window is None:
            return self.end_BT
        keys = torch.arange(self.end_BT.shape[1], dtype=torch.int32, device=self.end_BT.device)
        return self.end_BT.minimum(keys + window)

    def step_means(self, columns_BHT: Tensor) -> Tensor:
        """Mean of the column sums over the keys of each step: ``y[k] = sum_{t in k} w[t] c[t]``; y_HS."""
        heads = columns_BHT.shape[1]
        weighted_HN = (columns_BHT * self.weight_BT[:, None]).transpose(0, 1).reshape(heads, -1)
        influence_HS = columns_BHT.new_zeros(heads, self.steps + 1)  # the last one takes the tokens of no step
        influence_HS.index_add_(1, self.step_BT.flatten(), weighted_HN)
        return influence_HS[:, :-1]


def padded_spans(
    step_starts: Sequence[Sequence[int]], lengths: Sequence[int], left_padding: Sequence[int]
) -> tuple[Span, ...]:
    """One sequence a row, behind so many tokens of padding; step starts count from the sequence's start."""
    return tuple(
        Span(row, left, left + length, tuple(left + start for start in starts))
        for row, (starts, length, left) in enumerate(zip(step_starts, lengths, left_padding, strict=True))
    )


def packed_spans(step_starts: Sequence[Sequence[int]], lengths: Sequence[int]) -> tuple[Span, ...]:
    """All sequences one after another in a single row; step starts count from each sequence's start."""
    firsts = accumulate(lengths, initial=0)
    return tuple(
        Span(0, first, first + length, tuple(first + start for start in starts))
        for first, starts, length in zip(firsts, step_starts, lengths, strict=False)
    )
