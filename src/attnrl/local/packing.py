"""How sequences are laid out for the forwards of scoring and training: as trees, or one to a row.

Responses to one prompt share it, and branches share what they keep of their trunk. :func:`pack_trees` finds the
common beginnings by the tokens themselves, so that each common token is computed once, whatever the sequences
are: trees of any depth, groups of GRPO, continuations of one trunk. :func:`pack_rows` is the layout without
sharing, for models that cannot attend along trees.

Shape letters: B rows of the forward, T tokens of a row.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
from torch import Tensor
from transformers import PreTrainedModel

from attnrl.fci import Capture, CaptureSpec, capture
from attnrl.inference.prefixes import common_length


@dataclass(frozen=True)
class Pack:
    """Some sequences, laid out for one forward.

    Attributes:
        sequences: which of the whole batch these are.
        lengths: tokens of each.
        input_ids_BT: token ids. Where a row is padded, on the right, any id stands; attention is causal, so no
            token sees the padding behind its sequence, and no mask is needed.
        position_ids_BT: depth of each token in its sequence.
        paths: for each sequence the ranges ``[start, stop)`` of the flattened ids (row * T + column) that it
            consists of.
        segments: of trees, for each range of the row that the same sequences go through, its length and the index
            of the segment that it continues; empty for rows.
        last: for each sequence the index of the segment it ends in; its row for rows.
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
        """Whether it is laid out as trees."""
        return bool(self.segments)

    @property
    def tokens(self) -> int:
        """Tokens of the forward, padding included."""
        return self.input_ids_BT.numel()

    def places(self, index: int) -> Tensor:
        """Places in the flattened ids of the tokens of the ``index``-th sequence of the pack."""
        return torch.cat([torch.arange(start, stop) for start, stop in self.paths[index]])

    def attending(
        self,
        model: PreTrainedModel,
        step_starts: Mapping[int, Sequence[int]] | None = None,
        delta: int = 0,
        *,
        lookups: bool = False,
    ) -> AbstractContextManager[Capture | None]:
        """What a forward of this pack, and its backward pass, must run in.

        Args:
            model: whose forward it is.
            step_starts: where the influence of steps is wanted: for a sequence's index in the pack the offset of
                each step in it. The sequence must share no token behind the first of them.
            delta: Delta of eq. 5.
            lookups: whether lookups are wanted too.

        Returns:
            A context that gives the capture, in which the influence of a sequence is that of :attr:`last`; None
            where neither trees nor influence are asked for.
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
            depth = self.lengths[index] - (stop - start)  # tokens before its last segment
            starts[self.last[index]] = [step - depth for step in its_steps]
        lengths = [length for length, _ in self.segments]
        parents = [parent for _, parent in self.segments]
        return capture(model, CaptureSpec(starts, lengths, delta, packed=True, parents=parents, lookups=lookups))


def pack_rows(sequences: Sequence[Sequence[int]], budget: int) -> Iterator[Pack]:
    """One sequence to a row, padded on the right; longest first, rows times longest row within ``budget`` tokens.

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
    """Trees of all sequences, end to end in one row, within ``budget`` distinct tokens.

    A sequence longer than the budget is a pack of its own; a tree that does not fit is cut, and what its parts
    share is computed in each.

    Args:
        sequences: token ids, each of at least one token.
        budget: tokens of a pack.
        shareable: for each sequence how many of its first tokens it may have in common with others; all by default.
    """
    limits = [len(sequence) for sequence in sequences] if shareable is None else shareable
    # Sorted, sequences that begin alike are neighbours, and what a run of them shares is the least two neighbours do.
    order = sorted(range(len(sequences)), key=lambda index: tuple(sequences[index]))
    chosen: list[int] = []
    shared: list[int] = []  # by each with the one before
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

    # What is left to lay out, the next at the end: ``chosen[first:end]`` are alike up to ``depth``, where ``parent``
    # ends. At first the trees themselves: sequences that share nothing with those before.
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
