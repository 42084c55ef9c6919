import json
import os
from pathlib import Path as FilePath
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attnrl.method.forest import Forest, Node, Tree

GOLDEN = "golden/tree_advantages.json"


def golden_cases() -> list[dict[str, Any]]:
    """Read the golden cases from $ATTNRL_SHARED, or from a folder ``shared`` beside or above the checkout."""
    if "ATTNRL_SHARED" in os.environ:
        places = [FilePath(os.environ["ATTNRL_SHARED"])]
    else:
        places = [above / "shared" for above in FilePath(__file__).resolve().parents[3:]]
    for place in places:
        if (place / GOLDEN).is_file():
            cases: list[dict[str, Any]] = json.loads((place / GOLDEN).read_text())
            return cases
    pytest.skip(f"no shared/{GOLDEN} above the checkout, and ATTNRL_SHARED does not point to one")


def test_golden_cases() -> None:
    cases = golden_cases()
    assert len(cases) == 60
    for case in cases:
        forest, expected = Forest.from_dict(case), case["expected"]
        assert forest.root_value == pytest.approx(expected["root_value"], abs=1e-12)
        for path, leaf in zip(forest.paths(), expected["leaves"], strict=True):
            assert (path.tree, path.node, path.reward) == (leaf["tree"], leaf["node"], leaf["reward"])
            for segment, golden in zip(path.segments, leaf["segments"], strict=True):
                assert segment.length == golden["length"]
                assert segment.value == pytest.approx(golden["value"], abs=1e-12)
                assert segment.advantage == pytest.approx(golden["advantage"], abs=1e-12)


@st.composite
def trees(draw: st.DrawFn) -> Tree:
    """A tree of any depth; cuts at 0, at a node's own start and at the full length come up often."""
    nodes: list[Node] = []
    for index in range(draw(st.integers(1, 9))):
        length = draw(st.integers(0, 5))
        reward = draw(st.sampled_from([0.0, 1.0, 0.3]))
        if index == 0:
            nodes.append(Node(None, 0, length, reward))
            continue
        parent = draw(st.integers(0, index - 1))
        own, full = nodes[parent].at, nodes[parent].at + nodes[parent].length
        at = draw(st.sampled_from([0, own, full]) | st.integers(0, full))
        nodes.append(Node(parent, at, length, reward))
    return Tree(tuple(nodes), draw(st.booleans()))


forests = st.builds(Forest, st.lists(trees(), min_size=1, max_size=3).map(tuple))

Token = tuple[int, int]
"""``(node, offset)``: which completion sampled the token, and the how-manieth it was."""


def explicit_paths(tree: Tree) -> list[list[Token]]:
    """Spell out each path token by token, straight from the definition of a node."""
    paths: list[list[Token]] = []
    for index, node in enumerate(tree.nodes):
        kept = [] if node.parent is None else paths[node.parent][: node.at]
        paths.append(kept + [(index, offset) for offset in range(node.length)])
    return paths


@given(forests)
def test_paths_partition_the_tokens(forest: Forest) -> None:
    explicit = [path for tree in forest.trees for path in explicit_paths(tree)]
    paths = forest.paths()
    assert [(p.tree, p.node) for p in paths] == [
        (t, n) for t, tree in enumerate(forest.trees) for n in range(len(tree.nodes))
    ]
    for path, tokens in zip(paths, explicit, strict=True):
        node = forest.trees[path.tree].nodes[path.node]
        assert all(segment.length > 0 for segment in path.segments)
        assert [(s.owner, i) for s in path.segments for i in range(s.start, s.end)] == tokens
        assert [(owner, i) for owner, start, end in path.spans() for i in range(start, end)] == tokens
        assert path.length == len(tokens) == len(path.token_advantages()) == node.at + node.length
        assert (path.reward, path.trained) == (node.reward, forest.trees[path.tree].trained)


@given(forests)
def test_values_and_advantages_are_those_of_a_brute_force_over_tokens(forest: Forest) -> None:
    """A token's value is the mean over leaves whose path holds it; a segment is a run with equal leaves."""
    root_value = sum(forest.leaf_rewards) / len(forest.leaf_rewards)
    assert forest.root_value == pytest.approx(root_value, abs=1e-12)
    paths = iter(forest.paths())
    for tree in forest.trees:
        explicit = explicit_paths(tree)
        for tokens in explicit:
            path, before, expected, segments = next(paths), None, [], 0
            value = root_value
            for token in tokens:
                leaves = frozenset(leaf for leaf, other in enumerate(explicit) if token in other)
                if leaves != before:
                    parent_value, before, segments = value, leaves, segments + 1
                    value = sum(tree.nodes[leaf].reward for leaf in leaves) / len(leaves)
                expected.append((2 * value - root_value - parent_value) / len(leaves) ** 0.5)
            assert len(path.segments) == segments
            assert path.token_advantages() == pytest.approx(expected, abs=1e-12)


@given(forests, st.sampled_from([0.0, 0.1, 1.0]))
def test_equal_rewards_have_no_advantage(forest: Forest, reward: float) -> None:
    equal = Forest(tuple(Tree(tuple(Node(n.parent, n.at, n.length, reward) for n in t.nodes)) for t in forest.trees))
    assert not equal.has_signal
    assert all(advantage == 0 for path in equal.paths() for advantage in path.token_advantages())


def test_a_nested_tree_by_hand() -> None:
    trunk = Node(None, 0, 6, 1.0)
    branch = Node(0, 4, 3, 0.0)
    nested = Node(1, 6, 2, 1.0)  # keeps 4 of the trunk and 2 of the branch
    early = Node(1, 2, 1, 0.0)  # a cut of the branch's path that lies in the trunk
    empty = Node(2, 6, 0, 0.0)  # keeps up to the nested node's own start, adds nothing
    forest = Forest((Tree((trunk, branch, nested, early, empty)),))
    spans = [[(s.owner, s.start, s.end) for s in path.segments] for path in forest.paths()]
    assert spans == [
        [(0, 0, 2), (0, 2, 4), (0, 4, 6)],
        [(0, 0, 2), (0, 2, 4), (1, 0, 2), (1, 2, 3)],
        [(0, 0, 2), (0, 2, 4), (1, 0, 2), (2, 0, 2)],
        [(0, 0, 2), (3, 0, 1)],
        [(0, 0, 2), (0, 2, 4), (1, 0, 2)],
    ]
    assert [s.value for s in forest.paths()[2].segments] == [2 / 5, 2 / 4, 1 / 3, 1.0]
    assert [s.leaves for s in forest.paths()[2].segments] == [5, 4, 3, 1]
    assert forest.paths()[2].spans() == [(0, 0, 4), (1, 0, 2), (2, 0, 2)]
    assert forest.has_signal


def test_from_dict_reads_optional_keys() -> None:
    forest = Forest.from_dict(
        {
            "trees": [
                {
                    "length": 2,
                    "reward": 1.0,
                    "branches": [
                        {"at": 1, "length": 2, "reward": 0.0},
                        {"parent": 1, "at": 2, "length": 1, "reward": 0.0},
                    ],
                },
                {"length": 3, "reward": 0.0, "trained": False},
            ]
        }
    )
    assert forest == Forest(
        (
            Tree((Node(None, 0, 2, 1.0), Node(0, 1, 2, 0.0), Node(1, 2, 1, 0.0))),
            Tree((Node(None, 0, 3, 0.0),), trained=False),
        )
    )
    assert forest.root_value == 0.25
    assert [path.trained for path in forest.paths()] == [True, True, True, False]
    with pytest.raises(ValueError, match="'reward'"):
        Forest.from_dict({"trees": [{"length": 2}]})


@pytest.mark.parametrize(
    ("nodes", "keys"),
    [
        ((), "tree 1"),
        ((Node(0, 0, 1, 0.0),), "tree 1 node 0"),
        ((Node(None, 1, 1, 0.0),), "tree 1 node 0"),
        ((Node(None, 0, -1, 0.0),), "tree 1 node 0: .*-1"),
        ((Node(None, 0, 1, float("nan")),), "tree 1 node 0: .*nan"),
        ((Node(None, 0, 4, 0.0), Node(1, 1, 1, 0.0)), "tree 1 node 1: .*parent 1"),
        ((Node(None, 0, 4, 0.0), Node(None, 0, 1, 0.0)), "tree 1 node 1: .*parent None"),
        ((Node(None, 0, 4, 0.0), Node(0, 5, 1, 0.0)), "tree 1 node 1: .*at 5"),
        ((Node(None, 0, 4, 0.0), Node(0, -1, 1, 0.0)), "tree 1 node 1: .*at -1"),
    ],
)
def test_nodes_that_are_no_tree_are_named(nodes: tuple[Node, ...], keys: str) -> None:
    with pytest.raises(ValueError, match=keys):
        Forest((Tree((Node(None, 0, 1, 0.0),)), Tree(nodes)))
    with pytest.raises(ValueError, match="tree"):
        Forest(())
