"""Shared prefixes of prompts: prefill a prefix once, and store and read it once for a group of rows."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

GROUP_ROWS = 8  # rows that read a shared prefix together


@dataclass
class _Branch:
    """A node of the trie of prefixes.

    Attributes:
        depth: tokens from the root.
        rows: rows below the node.
        groups: best grouping of ``rows``: the shared length and the rows of each group.
        saved: tokens saved by ``groups``: the sum of (rows - 1) * shared length.
    """

    depth: int
    rows: list[int]
    groups: list[tuple[int, list[int]]]
    saved: int

    def absorb(self, other: _Branch) -> None:
        self.rows += other.rows
        self.groups += other.groups
        self.saved += other.saved

    def settled(self) -> _Branch:
        """Return the branch regrouped as a single group at ``depth`` if that saves as much, else unchanged."""
        saved = self.depth * (len(self.rows) - 1)
        return _Branch(self.depth, self.rows, [(self.depth, self.rows)], saved) if saved >= self.saved else self


def shared_prefixes(prefixes: Sequence[tuple[int, ...]]) -> list[tuple[int, list[int]]]:
    """Group rows by shared prefixes, so that most tokens are stored and read once for several rows.

    The grouping maximises the sum of (rows - 1) * shared length, in one walk over the trie of the sorted prefixes.
    Groups are then cut to at most ``GROUP_ROWS`` rows, because attention pads every group to the largest group.

    Returns:
        ``(shared length, row indices)`` of each group; every row is in exactly one group.
    """
    rows: dict[tuple[int, ...], list[int]] = {}
    for i, prefix in enumerate(prefixes):
        rows.setdefault(prefix, []).append(i)
    root = _Branch(0, [], [], 0)
    path = [root]  # branches from the root to the last prefix
    previous: tuple[int, ...] = ()

    def close(depth: int) -> None:
        while path[-1].depth > depth:
            done = path.pop().settled()
            if path[-1].depth < depth:
                path.append(_Branch(depth, [], [], 0))
            path[-1].absorb(done)

    for prefix in sorted(rows):
        close(common_length(previous, prefix))
        leaf = _Branch(len(prefix), rows[prefix], [(len(prefix), rows[prefix])], 0)
        if path[-1].depth < len(prefix):
            path.append(_Branch(len(prefix), [], [], 0))
        path[-1].absorb(leaf.settled())
        previous = prefix
    close(0)
    groups = []
    for length, members in root.groups:
        parts = -(-len(members) // GROUP_ROWS)
        groups += [(length, members[part::parts]) for part in range(parts)]
    return groups


def common_length(a: Sequence[int], b: Sequence[int]) -> int:
    """Return the length of the longest common prefix of two sequences."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def worth_grouping(prefixes: Sequence[tuple[int, ...]]) -> bool:
    """Return True if grouping saves at least a quarter of the columns, enough to pay for merging two attentions."""
    saved = sum(length * (len(members) - 1) for length, members in shared_prefixes(prefixes))
    return 4 * saved >= sum(map(len, prefixes)) > 0


def carriers(prefixes: Collection[tuple[int, ...]]) -> dict[tuple[int, ...], list[tuple[int, ...]]]:
    """Group prefixes under a carrier: the longest prefix that starts with all of the group.

    In sorted order a prefix comes immediately before the prefixes that it starts.
    """
    found: dict[tuple[int, ...], list[tuple[int, ...]]] = {}
    carrier: tuple[int, ...] | None = None
    for prefix in sorted(prefixes, reverse=True):
        if carrier is None or carrier[: len(prefix)] != prefix:
            carrier = prefix
            found[carrier] = []
        found[carrier].append(prefix)
    return found
