"""The trees of one problem: values and advantages of segments (eq. 2 and 3), and the paths used for training.

A node is a sampled completion, and ends in a leaf. Node 0 of a tree is the trunk (an initial response). Every other
node is a branch: the first ``at`` tokens of the path of an earlier node (the parent), followed by the node's own
tokens. The owner of a token is the node that sampled the token; owner and offset in the owner's own tokens identify a
token. The own tokens of a node are cut into segments at every branch point.

A reward is any finite number. A leaf without a reward is not judged: values and advantages are those of the same forest
with the unjudged leaf never sampled.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import mean  # exact: the mean of equal rewards is the reward; fmean rounds twice
from typing import Any

Span = tuple[int, int, int]
"""``(node, start, end)``: a range of the node's own tokens, end exclusive."""


def tree_advantage(value: float, parent_value: float, root_value: float, leaves: int) -> float:
    """Return the advantage of every token of a segment (eq. 3).

    ``A = (V(s) - V(root) + V(s) - V(parent(s))) / sqrt(leaves)``: the gain over the problem's average, plus the
    gain over the parent segment. The square root dampens segments shared by many leaves, because the tokens of a
    shared segment are trained once per leaf.

    Args:
        value: V(s), mean reward of the judged leaves below the segment (eq. 2).
        parent_value: V of the parent segment; V(root) for a trunk's first segment.
        root_value: V(root), mean reward of all judged leaves of the problem.
        leaves: number of judged leaves below the segment.

    Raises:
        ValueError: fewer than one leaf.
    """
    if leaves < 1:
        raise ValueError(f"a segment has at least one leaf below it, got {leaves}")
    return ((value - root_value) + (value - parent_value)) / math.sqrt(leaves)


@dataclass(frozen=True)
class Node:
    """A sampled completion with a leaf.

    Attributes:
        parent: index of the parent, the node with the path that this node continues; None for a trunk.
        at: the branch point: number of kept tokens of the parent's path; 0 for a trunk.
        length: number of own tokens; 0 for an empty completion.
        reward: reward of the leaf, any finite number; None if the leaf is not judged.
    """

    parent: int | None
    at: int
    length: int
    reward: float | None


@dataclass(frozen=True)
class Segment:
    """A range of tokens with the same judged leaves below, therefore with the same value and advantage.

    Attributes:
        owner: index of the node that sampled the tokens.
        start: offset of the first token in the owner's own tokens.
        end: offset after the last token.
        leaves: number of judged leaves below the segment, at least 1.
        value: V(s), the mean reward of the judged leaves below the segment (eq. 2).
        parent_value: V of the parent, the last segment before with more judged leaves below; without such a segment
            V(root).
        advantage: advantage of each token (eq. 3).
    """

    owner: int
    start: int
    end: int
    leaves: int
    value: float
    parent_value: float
    advantage: float

    @property
    def length(self) -> int:
        """Return the number of tokens of the segment."""
        return self.end - self.start


@dataclass(frozen=True)
class Path:
    """A whole response, from the root to the judged leaf of a node.

    Attributes:
        tree: index of the tree.
        node: index of the node at the end of the path.
        reward: reward of the leaf.
        trained: True if the tree is used for training.
        segments: segments of the response, in order.
    """

    tree: int
    node: int
    reward: float
    trained: bool
    segments: tuple[Segment, ...]

    @property
    def length(self) -> int:
        """Return the number of response tokens."""
        return sum(segment.length for segment in self.segments)

    def spans(self) -> list[Span]:
        """Return the ranges ``(node, start, end)`` of own tokens along the path, in order."""
        spans: list[Span] = []
        for segment in self.segments:
            if spans and spans[-1][0] == segment.owner:  # the next segment of the same owner is adjacent
                spans[-1] = (segment.owner, spans[-1][1], segment.end)
            else:
                spans.append((segment.owner, segment.start, segment.end))
        return spans

    def token_advantages(self) -> list[float]:
        """Return the advantage of each token of the response."""
        return [segment.advantage for segment in self.segments for _ in range(segment.length)]


@dataclass(frozen=True)
class Tree:
    """A trunk with branches.

    Attributes:
        nodes: the trunk, then the branches; a parent precedes the parent's branches.
        trained: False for a trunk not chosen for expansion; the reward of the trunk then counts in V(root) only.
    """

    nodes: tuple[Node, ...]
    trained: bool = True

    def path_length(self, node: int) -> int:
        """Return the number of response tokens from the root to the leaf of ``node``."""
        return self.nodes[node].at + self.nodes[node].length

    def anchor(self, node: int) -> tuple[int, int] | None:
        """Return ``(owner, cut)`` of the last token kept by ``node``; None if ``node`` keeps no token.

        ``cut`` is the number of the owner's own tokens up to and including the last kept token, at least 1.
        """
        at, owner = self.nodes[node].at, self.nodes[node].parent
        # Before the first own token of a node, the path is the path of the parent: climb to the owner of the last kept
        # token. The trunk has at == 0, so the climb ends at the trunk at the latest.
        while owner is not None and at <= self.nodes[owner].at:
            owner = self.nodes[owner].parent
        return None if owner is None else (owner, at - self.nodes[owner].at)

    @cached_property
    def _segment_ends(self) -> list[list[int]]:
        """Return the ends of the segments of each node's own tokens, ascending; empty for a node without tokens."""
        ends = [{node.length} - {0} for node in self.nodes]
        for node in range(len(self.nodes)):
            anchor = self.anchor(node)
            if anchor is not None:
                owner, cut = anchor
                ends[owner].add(cut)
        return [sorted(cuts) for cuts in ends]

    def segment_spans(self, node: int) -> list[Span]:
        """Return the ranges of the segments from the root to the leaf of ``node``."""
        spans: list[Span] = []
        place: tuple[int, int] | None = (node, self.nodes[node].length)
        while place is not None:
            owner, kept = place
            ends = [end for end in self._segment_ends[owner] if end <= kept]
            spans = [(owner, start, end) for start, end in zip([0, *ends], ends, strict=False)] + spans
            place = self.anchor(owner)
        return spans


@dataclass(frozen=True)
class Forest:
    """All trees of one problem.

    Raises:
        ValueError: no trees, or an invalid node; the message names tree and node.
    """

    trees: tuple[Tree, ...]

    def __post_init__(self) -> None:
        if not self.trees:
            raise ValueError("a forest needs at least one tree")
        for index, tree in enumerate(self.trees):
            _check_tree(tree, f"tree {index}")

    @classmethod
    def from_dict(cls, case: Mapping[str, Any]) -> Forest:
        """Read ``{"trees": [{"length", "reward", "branches": [{"at", "length", "reward"}]}]}``.

        Optional keys: ``parent`` of a branch (default 0, the trunk), ``trained`` of a tree (default true). A reward of
        None: not judged.

        Raises:
            ValueError: a missing key, or trees that are not valid.
        """
        try:
            return cls(tuple(_read_tree(tree) for tree in case["trees"]))
        except KeyError as missing:
            raise ValueError(f"forest without key {missing}") from None

    @property
    def leaf_rewards(self) -> list[float]:
        """Return the rewards of all judged leaves, in the order tree, then node."""
        return [node.reward for tree in self.trees for node in tree.nodes if node.reward is not None]

    @property
    def root_value(self) -> float:
        """Return V(root): the mean reward of all judged leaves, trunks without branches included (eq. 2).

        Raises:
            ValueError: no leaf is judged.
        """
        if not self.leaf_rewards:
            raise ValueError("no leaf of the forest is judged, so the root has no value")
        return mean(self.leaf_rewards)

    @property
    def has_signal(self) -> bool:
        """Return True if the rewards of the judged leaves differ; otherwise every advantage is 0: no training signal.

        Correctness does not matter: wrong leaves with partial or negative rewards that differ are a signal.
        """
        return len(set(self.leaf_rewards)) > 1

    def paths(self) -> list[Path]:
        """Return the path to every judged leaf, in the order tree, then node, with values and advantages."""
        if not self.leaf_rewards:
            return []
        root_value = self.root_value
        return [path for index in range(len(self.trees)) for path in self._tree_paths(index, root_value)]

    def _tree_paths(self, index: int, root_value: float) -> list[Path]:
        tree = self.trees[index]
        spans_of_node = [tree.segment_spans(node) for node in range(len(tree.nodes))]
        rewards_below: defaultdict[Span, list[float]] = defaultdict(list)
        for node, spans in zip(tree.nodes, spans_of_node, strict=True):
            if node.reward is not None:
                for span in spans:
                    rewards_below[span].append(node.reward)
        below = {span: (len(rewards), mean(rewards)) for span, rewards in rewards_below.items()}
        return [
            Path(index, number, node.reward, tree.trained, tuple(_segments(spans, below, root_value)))
            for number, (node, spans) in enumerate(zip(tree.nodes, spans_of_node, strict=True))
            if node.reward is not None
        ]


def _segments(spans: Sequence[Span], below: Mapping[Span, tuple[int, float]], root_value: float) -> list[Segment]:
    """Return the segments of one path, with values and advantages; spans cut by unjudged leaves only are joined.

    ``below`` maps a span to the number of judged leaves below the span, and to their mean reward.
    """
    segments: list[Segment] = []
    parent_value = root_value
    for owner, start, end in spans:
        leaves, value = below[owner, start, end]
        if segments and leaves == segments[-1].leaves:  # the same leaves: no judged leaf branches off at the cut
            if owner == segments[-1].owner:
                start = segments.pop().start
        elif segments:
            parent_value = segments[-1].value
        advantage = tree_advantage(value, parent_value, root_value, leaves)
        segments.append(Segment(owner, start, end, leaves, value, parent_value, advantage))
    return segments


def _read_tree(tree: Mapping[str, Any]) -> Tree:
    trunk = Node(None, 0, tree["length"], _read_reward(tree))
    branches = (
        Node(branch.get("parent", 0), branch["at"], branch["length"], _read_reward(branch))
        for branch in tree.get("branches", ())
    )
    return Tree((trunk, *branches), tree.get("trained", True))


def _read_reward(node: Mapping[str, Any]) -> float | None:
    return None if node["reward"] is None else float(node["reward"])


def _check_tree(tree: Tree, name: str) -> None:
    """Raise ValueError with the names of tree and node, if the nodes do not form a tree."""
    if not tree.nodes:
        raise ValueError(f"{name} has no nodes")
    for index, node in enumerate(tree.nodes):
        where = f"{name} node {index}"
        if node.length < 0:
            raise ValueError(f"{where}: length {node.length} is negative")
        if node.reward is not None and not math.isfinite(node.reward):
            raise ValueError(f"{where}: reward {node.reward} is not finite")
        if index == 0:
            if node.parent is not None or node.at != 0:
                raise ValueError(f"{where}: a trunk has no parent and keeps nothing, got {node}")
        elif node.parent is None or not 0 <= node.parent < index:
            raise ValueError(f"{where}: parent {node.parent} is not an earlier node")
        elif not 0 <= node.at <= tree.path_length(node.parent):
            length = tree.path_length(node.parent)
            raise ValueError(f"{where}: at {node.at} is outside its parent's {length} tokens")
