"""The specification of a capture, and the errors of this package."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from attnrl.fci.layout import Span, packed_spans, padded_spans


class StepStartsError(ValueError):
    """Step starts that are unsorted, repeated, or outside the sequence."""


class FciUnsupportedError(RuntimeError):
    """A model or layer whose attention cannot be captured correctly; the message gives the reason."""


@dataclass(frozen=True)
class CaptureSpec:
    """The sequences and steps of a batch, and the results to capture.

    A batch has one sequence per row, with padding on the right or on both sides, or (``packed``) is one row that holds
    all sequences end to end, the format of variable-length flash attention; position ids then restart at each sequence.
    Packed sequences may also form trees (``parents``): a sequence with a parent attends to the parent and to the
    parent's ancestors as if placed behind the parent, and position ids continue from the parent's. A shared prefix of
    several responses is then computed once.

    Attributes:
        step_starts: for each sequence the ascending offsets of the first token of each step, counted from the
            start of the sequence; the last step ends with the sequence, and tokens before the first step (the prompt)
            belong to no step. A sequence may have no steps.
        lengths: tokens of each sequence without padding.
        delta: Delta of eq. 5: step j counts for step k if ``j >= k + delta``.
        packed: True if all sequences are in one row.
        left_padding: padding tokens before each sequence; an empty sequence means no padding.
        layers: indices of the layers to capture, ascending; None for all.
        heads: indices of the query heads to capture, in the order of the results; None for all.
        matrix: also keep the step-to-step attention (eq. 4); costs a separate pass.
        lookups: also count the lookups of each step (:mod:`attnrl.fci.lookups`); costs a separate pass.
        parents: for each packed sequence the index of the sequence that the packed sequence continues, None for a root,
            in depth-first order; an empty sequence means no trees.

    Raises:
        StepStartsError: unsorted or repeated starts, or a start outside the sequence.
        ValueError: another inconsistency; the message names the field or the sequence.
    """

    step_starts: Sequence[Sequence[int]]
    lengths: Sequence[int]
    delta: int = 4
    packed: bool = False
    left_padding: Sequence[int] = ()
    layers: Sequence[int] | None = None
    heads: Sequence[int] | None = None
    matrix: bool = False
    lookups: bool = False
    parents: Sequence[int | None] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.delta, int) or self.delta < 0:
            raise ValueError(f"delta must be an integer of at least 0, got {self.delta}")
        if len(self.step_starts) != len(self.lengths):
            raise ValueError(f"{len(self.step_starts)} sequences of step starts for {len(self.lengths)} lengths")
        if self.layers is not None and list(self.layers) != sorted(self.layers):
            raise ValueError(f"layers must ascend, got {list(self.layers)}")
        for name, chosen in (("layers", self.layers), ("heads", self.heads)):
            if chosen is not None and (len(chosen) == 0 or min(chosen) < 0 or len(set(chosen)) < len(chosen)):
                raise ValueError(f"{name} must be distinct indices of at least 0, got {list(chosen)}")
        for sequence, (starts, length) in enumerate(zip(self.step_starts, self.lengths, strict=True)):
            if length < 1:
                raise ValueError(f"sequence {sequence} has a length of {length}")
            if not all(isinstance(start, int) for start in starts):
                raise StepStartsError(f"sequence {sequence}: step starts must be integers, got {list(starts)}")
            if any(left >= right for left, right in pairwise(starts)):
                raise StepStartsError(f"sequence {sequence}: step starts must ascend, got {list(starts)}")
            if starts and not 0 <= starts[0] <= starts[-1] < length:
                outside = starts[0] if starts[0] < 0 else starts[-1]
                raise StepStartsError(
                    f"sequence {sequence}: step start {outside} is outside the sequence of {length} tokens"
                )
        if self.parents:
            self._check_parents()
        if self.left_padding and (self.packed or len(self.left_padding) != len(self.lengths)):
            raise ValueError("left_padding must have one number per row, and none for packed sequences")
        if any(left < 0 for left in self.left_padding):
            raise ValueError(f"left_padding must be at least 0, got {list(self.left_padding)}")

    def _check_parents(self) -> None:
        if not self.packed or len(self.parents) != len(self.lengths):
            raise ValueError("parents must have one index (or None) per packed sequence")
        if self.matrix:
            raise ValueError("matrix: step-to-step attention is not available with parents")
        path: list[int] = []  # the possible parents of the next sequence
        for sequence, parent in enumerate(self.parents):
            if parent is None:
                path = []
            elif parent not in path:
                raise ValueError(f"parents: sequence {sequence} cannot continue {parent}: not in depth-first order")
            else:
                path = path[: path.index(parent) + 1]
            path.append(sequence)

    @property
    def rows(self) -> int:
        """Number of rows of the batch."""
        return 1 if self.packed else len(self.lengths)

    @property
    def spans(self) -> tuple[Span, ...]:
        """Position of each sequence in the batch."""
        if self.packed:
            return packed_spans(self.step_starts, self.lengths)
        return padded_spans(self.step_starts, self.lengths, self.left_padding or [0] * len(self.lengths))
