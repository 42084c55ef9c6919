"""Packing of sequences for the forwards of scoring and training: as trees of shared prefixes, or one sequence per row.

Responses share their prompt, and branches share a prefix of the trunk. :func:`pack_trees` finds shared prefixes by
comparing tokens, so each shared token is computed once, for any sequences: trees of any depth, GRPO groups,
continuations of one trunk. :func:`pack_rows` shares nothing, for models that cannot attend along trees.

Shape letters: see CONTRIBUTING.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel

from attnrl.fci import Capture, CaptureSpec, capture
from attnrl.inference.prefixes import common_length

Packing = Literal["tree", "none"]
"""``tree``: packs of trees (:func:`pack_trees`); ``none``: packs of rows (:func:`pack_rows`)."""


@dataclass(frozen=True)
class Pack:
    """Sequences laid out for one forward.

    Attributes:
        sequences: index of each sequence in the whole batch.
        lengths: tokens of each sequence.
        input_ids_BT: token ids. Rows are padded on the right with arbitrary ids; attention is causal, so no token
            attends to the padding, and no mask is needed.
        position_ids_BT: position of each token in the token's sequence.
        paths: for each sequence the ranges ``[start, stop)`` of the flattened ids (row * T + column), in order.
        segments: for trees, ``(length, parent)`` of each segment, a range of the row shared by the same sequences;
            ``parent`` is the index of the preceding segment. Empty for rows.
        last: for each sequence the index of the last segment; for rows the row.
    """

    sequences: tuple[int, ...]
    lengths: tuple[int, ...]
    input_ids_BT: Tensor
    position_ids_BT: Tensor
    paths: tuple[tuple[tuple[int, int], ...], ...]
    segments: tuple[tuple[int, int | None], ...]
    last: tuple[int, ...]

    @property
    def is_tree(self) -> bool:
        """True for a pack of trees, False for a pack of rows."""
        return bool(self.segments)

    @property
    def tokens(self) -> int:
        """Tokens of the forward, padding included."""
        return self.input_ids_BT.numel()

    def places(self, index: int) -> Tensor:
        """Return the positions in the flattened ids of the tokens of the pack's ``index``-th sequence."""
        return torch.cat([torch.arange(start, stop) for start, stop in self.paths[index]])

    def attending(
        self,
        model: PreTrainedModel,
        step_starts: Mapping[int, Sequence[int]] | None = None,
        delta: int = 0,
        *,
        lookups: bool = False,
    ) -> AbstractContextManager[Capture | None]:
        """Return the context manager in which forward and backward passes of the pack must run.

        Args:
            model: the model of the forward.
            step_starts: offsets of the steps whose influence is computed, by the sequence's index in the pack. Tokens
                from the first step on must not be shared with other sequences.
            delta: Delta of eq. 5.
            lookups: True to count lookups too.

        Returns:
            A context manager that gives the capture, with the influence of a sequence at index :attr:`last`; None
            for rows without ``step_starts``.
        """
        steps = step_starts or {}
        if not self.is_tree:
            spec = CaptureSpec(
                [steps.get(index, ()) for index in range(len(self.sequences))], self.lengths, delta, lookups=lookups
            )
            return capture(model, spec) if steps else nullcontext()
        starts: list[list[int]] = [[] for _ in self.segments]
        for index, its_steps in steps.items():
            start, stop = self.paths[index][-1]
            depth = self.lengths[index] - (stop - start)  # tokens before the last segment
            starts[self.last[index]] = [step - depth for step in its_steps]
        lengths = [length for length, _ in self.segments]
        parents = [parent for _, parent in self.segments]
        return capture(model, CaptureSpec(starts, lengths, delta, packed=True, parents=parents, lookups=lookups))


def pack_rows(sequences: Sequence[Sequence[int]], budget: int) -> Iterator[Pack]:
    """Yield packs of one sequence per row, longest first, of at most ``budget`` tokens, padding included.

    A sequence longer than the budget is a pack of its own.
    """
    lengths = [len(sequence) for sequence in sequences]
    chosen: list[int] = []
    for index in sorted(range(len(sequences)), key=lambda index: -lengths[index]):
        if chosen and (len(chosen) + 1) * lengths[chosen[0]] > budget:
            yield _rows(chosen, sequences)
            chosen = []
        chosen.append(index)
    if chosen:
        yield _rows(chosen, sequences)


def _rows(chosen: Sequence[int], sequences: Sequence[Sequence[int]]) -> Pack:
    lengths = [len(sequences[index]) for index in chosen]
    width = max(lengths)
    input_ids_BT = torch.zeros(len(chosen), width, dtype=torch.long)
    for row, index in enumerate(chosen):
        input_ids_BT[row, : lengths[row]] = torch.tensor(sequences[index])
    return Pack(
        sequences=tuple(chosen),
        lengths=tuple(lengths),
        input_ids_BT=input_ids_BT,
        position_ids_BT=torch.arange(width).expand(len(chosen), -1),
        paths=tuple(((row * width, row * width + length),) for row, length in enumerate(lengths)),
        segments=(),
        last=tuple(range(len(chosen))),
    )


def pack_trees(
    sequences: Sequence[Sequence[int]], budget: int, shareable: Sequence[int] | None = None
) -> Iterator[Pack]:
    """Yield packs of trees, concatenated in one row, of at most ``budget`` distinct tokens.

    A sequence longer than the budget is a pack of its own. A tree larger than the budget is cut into several packs, and
    shared tokens are computed in each pack.

    Args:
        sequences: token ids, at least one token each.
        budget: tokens of a pack.
        shareable: for each sequence the length of the prefix that may be shared; by default the whole sequence.
    """
    limits = [len(sequence) for sequence in sequences] if shareable is None else shareable
    # Sorting puts sequences with a shared prefix next to each other. The prefix shared by a run of sequences is the
    # shortest prefix shared by two neighbours of the run.
    order = sorted(range(len(sequences)), key=lambda index: tuple(sequences[index]))
    chosen: list[int] = []
    shared: list[int] = []  # tokens shared by each sequence with the previous sequence
    tokens = 0
    for index in order:
        common = 0
        if chosen:
            before = chosen[-1]
            common = min(common_length(sequences[before], sequences[index]), limits[before], limits[index])
            if tokens + len(sequences[index]) - common > budget:
                yield _tree(chosen, shared, sequences)
                chosen, shared, tokens, common = [], [], 0, 0
        chosen.append(index)
        shared.append(common)
        tokens += len(sequences[index]) - common
    if chosen:
        yield _tree(chosen, shared, sequences)


def _tree(chosen: Sequence[int], shared: Sequence[int], sequences: Sequence[Sequence[int]]) -> Pack:
    segments: list[tuple[int, int | None]] = []
    tokens: list[int] = []
    positions: list[int] = []
    segment_paths: list[list[int]] = [[] for _ in chosen]

    # A stack of work: ``chosen[first:end]`` share ``depth`` tokens, and ``parent`` is the segment that ends there. The
    # first entries are whole trees: a root shares nothing with the previous sequence.
    roots = [index for index in range(len(chosen)) if shared[index] == 0]
    left: list[tuple[int, int, int, int | None]] = [
        (first, end, 0, None) for first, end in reversed(list(pairwise([*roots, len(chosen)])))
    ]
    while left:
        first, end, depth, parent = left.pop()
        common = min(shared[first + 1 : end], default=len(sequences[chosen[first]]))
        if common > depth:
            tokens.extend(sequences[chosen[first]][depth:common])
            positions.extend(range(depth, common))
            for index in range(first, end):
                segment_paths[index].append(len(segments))
            segments.append((common - depth, parent))
            parent = len(segments) - 1
        if end - first > 1:
            cuts = [first, *(index for index in range(first + 1, end) if shared[index] == common), end]
            left += [(start, stop, common, parent) for start, stop in reversed(list(pairwise(cuts)))]
    starts = [0, *accumulate(length for length, _ in segments)]
    return Pack(
        sequences=tuple(chosen),
        lengths=tuple(len(sequences[index]) for index in chosen),
        input_ids_BT=torch.tensor([tokens]),
        position_ids_BT=torch.tensor([positions]),
        paths=tuple(tuple((starts[s], starts[s + 1]) for s in path) for path in segment_paths),
        segments=tuple(segments),
        last=tuple(path[-1] for path in segment_paths),
    )
