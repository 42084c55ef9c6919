"""Properties of forests with leaves that are not judged, of any finite rewards, and of rules that read correctness."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attnrl.method.adaptive import RunningMean, choose_trunks, expansion_count, keep_problem
from attnrl.method.advantage import grpo_advantages, tree_advantages
from attnrl.method.forest import Forest, Node, Tree

REWARDS = st.sampled_from([-2.0, -0.5, 0.0, 0.3, 1.0, 7.5])


@st.composite
def trees(draw: st.DrawFn) -> Tree:
    """A tree of any depth; each leaf is judged or not."""
    nodes: list[Node] = []
    for index in range(draw(st.integers(1, 8))):
        length, reward = draw(st.integers(0, 4)), draw(st.none() | REWARDS)
        if index == 0:
            nodes.append(Node(None, 0, length, reward))
            continue
        parent = draw(st.integers(0, index - 1))
        nodes.append(Node(parent, draw(st.integers(0, nodes[parent].at + nodes[parent].length)), length, reward))
    return Tree(tuple(nodes))


forests = st.builds(Forest, st.lists(trees(), min_size=1, max_size=3).map(tuple))


def never_sampled(tree: Tree) -> Tree | None:
    """The tree without the nodes that have no judged leaf at or below; None if nothing is left."""
    kept: list[int] = []
    for index in reversed(range(len(tree.nodes))):
        is_needed = any(tree.nodes[child].parent == index for child in kept)
        if tree.nodes[index].reward is not None or is_needed:
            kept.append(index)
    kept.reverse()
    places = {index: place for place, index in enumerate(kept)}
    nodes = [tree.nodes[index] for index in kept]
    return (
        Tree(tuple(replace(n, parent=n.parent if n.parent is None else places[n.parent]) for n in nodes))
        if nodes
        else None
    )


@given(forests)
def test_a_leaf_that_is_not_judged_was_never_sampled(forest: Forest) -> None:
    """Values, parents and advantages of all other paths, and the joined segments, are those of a forest without it."""
    left = [tree for tree in map(never_sampled, forest.trees) if tree is not None]
    if not left:
        assert forest.paths() == [] and not forest.has_signal
        return
    without = Forest(tuple(left))
    assert forest.root_value == without.root_value
    assert forest.has_signal == without.has_signal
    mine, others = forest.paths(), without.paths()
    assert [path.reward for path in mine] == [path.reward for path in others]
    for path, other in zip(mine, others, strict=True):
        assert path.token_advantages() == other.token_advantages()
        numbers = [[(s.length, s.leaves, s.value, s.parent_value) for s in one.segments] for one in (path, other)]
        assert numbers[0] == numbers[1]


@given(forests)
def test_advantages_are_those_of_a_brute_force_over_judged_leaves(forest: Forest) -> None:
    """The parent of a token is the last token before it with more judged leaves below; the trunk may be unjudged."""
    paths = iter(forest.paths())
    for tree in forest.trees:
        explicit: list[list[tuple[int, int]]] = []
        for index, node in enumerate(tree.nodes):
            kept = [] if node.parent is None else explicit[node.parent][: node.at]
            explicit.append(kept + [(index, offset) for offset in range(node.length)])
        for leaf, tokens in zip(tree.nodes, explicit, strict=True):
            if leaf.reward is None:
                continue
            path = next(paths)
            expected, value, parent_value, before = [], forest.root_value, forest.root_value, None
            for token in tokens:
                rewards = [
                    node.reward
                    for node, other in zip(tree.nodes, explicit, strict=True)
                    if node.reward is not None and token in other
                ]
                if before is not None and len(rewards) < before:
                    parent_value = value
                value, before = sum(rewards) / len(rewards), len(rewards)
                expected.append((2 * value - forest.root_value - parent_value) / len(rewards) ** 0.5)
            assert path.reward == leaf.reward
            assert path.token_advantages() == pytest.approx(expected, abs=1e-9)
            assert [(s.owner, i) for s in path.segments for i in range(s.start, s.end)] == tokens
    assert next(paths, None) is None


def with_rewards(forest: Forest, change) -> Forest:  # type: ignore[no-untyped-def]
    return Forest(
        tuple(
            replace(
                tree, nodes=tuple(replace(n, reward=None if n.reward is None else change(n.reward)) for n in tree.nodes)
            )
            for tree in forest.trees
        )
    )


@given(forests, st.sampled_from([-4.0, 0.25, 100.0]))
def test_advantages_do_not_change_with_a_constant_added_to_all_rewards(forest: Forest, shift: float) -> None:
    moved = with_rewards(forest, lambda reward: reward + shift)
    assert moved.has_signal == forest.has_signal
    for path, other in zip(tree_advantages(forest), tree_advantages(moved), strict=True):
        assert path == pytest.approx(other, abs=1e-9)
    for normalize in (True, False):
        before, after = (grpo_advantages(one.leaf_rewards, normalize) for one in (forest, moved))
        assert before == pytest.approx(after, abs=1e-4)


@given(forests, st.sampled_from([-3.0, -0.1, 0.0, 0.5, 12.0]))
def test_equal_rewards_of_any_sign_are_no_signal(forest: Forest, reward: float) -> None:
    equal = with_rewards(forest, lambda _: reward)
    assert not equal.has_signal
    assert all(advantage == 0 for path in tree_advantages(equal) for advantage in path)
    assert all(advantage == 0 for advantage in grpo_advantages(equal.leaf_rewards))


def test_nan_and_inf_are_no_rewards() -> None:
    for reward in (float("nan"), float("inf"), float("-inf")):
        with pytest.raises(ValueError, match=r"tree 0 node 0: .*not finite"):
            Forest((Tree((Node(None, 0, 1, reward),)),))


@given(st.lists(st.booleans(), min_size=1, max_size=8), st.integers(0, 99), st.floats(0, 2))
def test_all_correct_means_every_verdict_and_nothing_else(correct: list[bool], seed: int, influence: float) -> None:
    running = RunningMean(1, 1.0)
    kept, after = keep_problem(correct, influence, running)
    assert kept == (not all(correct) or influence > 1.0)
    assert after.count == 1 + all(correct)
    count = expansion_count(sum(correct) / len(correct), len(correct))
    chosen = choose_trunks(correct, count, random.Random(seed))
    minority = min(sum(correct), len(correct) - sum(correct))
    if minority > 0:
        sides = {sum(correct[index] for index in chosen), sum(not correct[index] for index in chosen)}
        assert min(minority, count) in sides
