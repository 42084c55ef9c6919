"""From samples to forests and training rows, on one problem small enough to work out by hand."""

from __future__ import annotations

import math
from statistics import stdev

import pytest

from attnrl.method.advantage import ADVANTAGES
from attnrl.method.steps import Steps
from attnrl.rl.rollout import BranchPlan, Group, RolloutTree, Sample, Trunk
from attnrl.types import FinishReason, Verdict

OLD, NEW = -1.0, -2.0  # log-probs of the policies that sampled trunks and branches


def verdict(reward: float | None) -> Verdict:
    return "not_judged" if reward is None else "correct" if reward == 1 else "wrong"


def sample(tokens: list[int], reward: float | None, finish: FinishReason = "stop") -> Sample:
    size = len(tokens)
    return Sample(
        tuple(tokens), (NEW,) * size, (NEW - 0.1,) * size, (0.5,) * size, reward, verdict(reward), finish
    )  # fmt: skip


def trunk(
    tokens: list[int], reward: float | None, starts: tuple[int, ...] = (0, 2), fci: tuple[float, ...] = ()
) -> Trunk:
    size = len(tokens)
    return Trunk(
        tuple(tokens), (OLD,) * size, (OLD - 0.1,) * size, (0.5,) * size, reward, verdict(reward), "stop",
        steps=Steps(starts, size), influence=fci,
    )  # fmt: skip


@pytest.fixture
def rollout_tree() -> RolloutTree:
    """Three trunks; the first has branches after 2 and 4 tokens, the second none, the third is not expanded.

    The branches after 4 tokens come first, as nothing says that points are in order.
    """
    trunks = (
        trunk([10, 11, 12, 13, 14, 15], 1.0),
        trunk([20, 21, 22], 0.0),
        trunk([30, 31, 32, 33], 0.0),
    )
    plan = BranchPlan(Group(7, "p7", ("42",), (1, 2), trunks), True, {0: (4, 2), 1: ()}, 2)
    branches = (sample([40], 1.0), sample([50, 51], 0.0), sample([60, 61, 62], 0.0), sample([70], 0.0))
    return RolloutTree(plan, branches)


def test_continuations_are_asked_for_trunk_by_trunk_and_point_by_point(rollout_tree):
    assert rollout_tree.plan.branches == [(0, 4), (0, 4), (0, 2), (0, 2)]


def test_the_forest_holds_every_trunk_and_its_own_branches(rollout_tree):
    forest = rollout_tree.forest
    assert [len(tree.nodes) for tree in forest.trees] == [5, 1, 1]
    assert [tree.trained for tree in forest.trees] == [True, True, False]
    assert [(node.at, node.length, node.reward) for node in forest.trees[0].nodes] == [
        (0, 6, 1.0), (4, 1, 1.0), (4, 2, 0.0), (2, 3, 0.0), (2, 1, 0.0),
    ]  # fmt: skip


def test_branches_go_to_the_trunk_they_grew_from(rollout_tree):
    """Also when several trunks are expanded."""
    plan = BranchPlan(rollout_tree.plan.group, True, {0: (1,), 2: (3,)}, 2)
    both = RolloutTree(plan, rollout_tree.branches)
    assert [s.tokens for s in both.node_samples(0)[1:]] == [(40,), (50, 51)]
    assert both.node_samples(1) == [rollout_tree.plan.group.trunks[1]]
    assert [s.tokens for s in both.node_samples(2)[1:]] == [(60, 61, 62), (70,)]


def test_rows_are_whole_responses_with_the_logprobs_of_whoever_sampled_each_token(rollout_tree):
    rows = rollout_tree.training_rows(ADVANTAGES["tree"])
    assert [row.response for row in rows] == [
        (10, 11, 12, 13, 14, 15),
        (10, 11, 12, 13, 40),
        (10, 11, 12, 13, 50, 51),
        (10, 11, 60, 61, 62),
        (10, 11, 70),
        (20, 21, 22),
    ]
    for row in rows:
        assert row.sampler_logprobs == tuple(logprob - 0.1 for logprob in row.old_logprobs)
    assert [row.old_logprobs for row in rows] == [
        (OLD,) * 6,
        (OLD,) * 4 + (NEW,),
        (OLD,) * 4 + (NEW,) * 2,
        (OLD,) * 2 + (NEW,) * 3,
        (OLD,) * 2 + (NEW,),
        (OLD,) * 3,
    ]
    assert {row.prompt for row in rows} == {(1, 2)}


def test_tree_advantages_are_those_of_equation_3(rollout_tree):
    """V(root) is over all seven leaves, the trunk that is not trained on included."""
    root = 2 / 7
    first = ((2 / 5 - root) + (2 / 5 - root)) / math.sqrt(5)  # tokens 0-1: five leaves below
    second = ((2 / 3 - root) + (2 / 3 - 2 / 5)) / math.sqrt(3)  # tokens 2-3: three leaves below

    def leaf(reward: float, parent: float) -> float:
        return (reward - root) + (reward - parent)

    advantages = [row.advantages for row in rollout_tree.training_rows(ADVANTAGES["tree"])]
    assert advantages[0] == pytest.approx([first, first, second, second, leaf(1, 2 / 3), leaf(1, 2 / 3)])
    assert advantages[1] == pytest.approx([first, first, second, second, leaf(1, 2 / 3)])
    assert advantages[2] == pytest.approx([first, first, second, second, leaf(0, 2 / 3), leaf(0, 2 / 3)])
    assert advantages[3] == pytest.approx([first, first, *[leaf(0, 2 / 5)] * 3])
    assert advantages[4] == pytest.approx([first, first, leaf(0, 2 / 5)])
    assert advantages[5] == pytest.approx([leaf(0, root)] * 3)


def test_grpo_gives_every_token_of_a_response_its_standing_in_the_group():
    rewards = [1.0, 0.0, 0.0, 1.0, 1.0]
    trunks = tuple(trunk([i] * (i + 3), reward) for i, reward in enumerate(rewards))
    rollout_tree = RolloutTree(BranchPlan(Group(0, "p", ("1",), (9,), trunks), True, {i: () for i in range(5)}, 2), ())
    for advantage, scale in (("grpo", stdev(rewards)), ("grpo_no_std", 1.0)):
        for i, row in enumerate(rollout_tree.training_rows(ADVANTAGES[advantage])):
            assert row.advantages == pytest.approx([(rewards[i] - 0.6) / scale] * (i + 3), rel=1e-5)


def test_grpo_advantages_stay_with_their_response_when_some_are_not_trained():
    trunks = (trunk([1, 1, 1], 1.0), trunk([2, 2, 2], 0.0), trunk([3, 3, 3], 0.0), trunk([4, 4, 4], 1.0))
    rollout_tree = RolloutTree(BranchPlan(Group(0, "p", ("1",), (9,), trunks), True, {1: (), 3: ()}, 2), ())
    rows = rollout_tree.training_rows(ADVANTAGES["grpo_no_std"])
    assert [(row.response[0], row.advantages[0]) for row in rows] == [(2, -0.5), (4, 0.5)]


def test_a_dropped_problem_has_no_rows(rollout_tree):
    dropped = RolloutTree(BranchPlan(rollout_tree.plan.group, False, {}, 2), ())
    assert dropped.plan.branches == []
    assert dropped.training_rows(ADVANTAGES["tree"]) == []
    assert dropped.forest.leaf_rewards == [1.0, 0.0, 0.0]


def test_group_numbers():
    trunks = (trunk([1, 1, 1, 1], 1.0, (0, 2), (0.0, 3.0)), trunk([2, 2, 2], 0.0, (0, 1, 2), (0.0, 0.0, 1.5)))
    group = Group(0, "p", ("1",), (9,), trunks)
    assert group.accuracy == 0.5
    assert group.mean_influence == pytest.approx((1.5 + 0.5) / 2)


def test_the_numbers_of_a_group_are_those_of_its_judged_trunks():
    judged = (trunk([1] * 4, 1.0, (0, 2), (0.0, 3.0)), trunk([2] * 3, -7.0, (0, 1, 2), (0.0, 0.0, 1.5)))
    group = Group(0, "p", ("1",), (9,), (judged[0], trunk([3] * 4, None, (0, 2), (0.0, 100.0)), judged[1]))
    assert (group.judged, group.correct, group.accuracy) == ([0, 2], [True, False], 0.5)
    assert group.mean_influence == Group(0, "p", ("1",), (9,), judged).mean_influence
    with pytest.raises(ValueError):
        _ = Group(0, "p", ("1",), (9,), (trunk([1], None, (0,)),)).accuracy


def test_a_branch_that_is_not_judged_has_no_row_and_leaves_no_trace(rollout_tree):
    """The advantages of the other rows are those of a tree without the branch."""
    plan = rollout_tree.plan
    three = (sample([40], 1.0), sample([60, 61, 62], 0.0), sample([70], 0.0))
    without = RolloutTree(BranchPlan(plan.group, True, {0: (4, 2, 2), 1: ()}, 1), three)
    with_it = RolloutTree(plan, (three[0], sample([50, 51], None), *three[1:]))
    assert with_it.training_rows(ADVANTAGES["tree"]) == without.training_rows(ADVANTAGES["tree"])


def test_the_prefix_of_a_trunk_that_is_not_judged_is_trained_on_through_its_branches():
    group = Group(0, "p", ("1",), (9,), (trunk([10, 11, 12, 13], None), trunk([20, 21], 0.0, (0,))))
    branches = (sample([40], 1.0), sample([50], 0.0))
    tree = RolloutTree(BranchPlan(group, True, {0: (2,), 1: ()}, 2), branches)
    rows = tree.training_rows(ADVANTAGES["tree"])
    assert [row.response for row in rows] == [(10, 11, 40), (10, 11, 50), (20, 21)]
    assert rows[0].old_logprobs == (OLD, OLD, NEW)
    prefix = 2 * (1 / 2 - 1 / 3) / math.sqrt(2)
    assert rows[0].advantages == pytest.approx([prefix, prefix, (1 - 1 / 3) + (1 - 1 / 2)])


def test_a_truncated_response_is_masked_but_counts_in_the_values(rollout_tree):
    cut = (*rollout_tree.branches[:1], sample([50, 51], 0.0, "length"), *rollout_tree.branches[2:])
    tree = RolloutTree(rollout_tree.plan, cut)
    rows, masked = (tree.training_rows(ADVANTAGES["tree"], mask_truncated=mask) for mask in (False, True))
    assert rows == rollout_tree.training_rows(ADVANTAGES["tree"])
    assert masked == rows[:2] + rows[3:]
    assert len(tree.trained_paths()) == 6 and len(tree.trained_paths(mask_truncated=True)) == 5


def test_a_problem_with_no_judged_response_has_no_rows():
    tree = RolloutTree(BranchPlan(Group(0, "p", ("1",), (9,), (trunk([1, 1], None, (0,)),)), True, {0: ()}, 2), ())
    assert not tree.forest.has_signal and tree.forest.paths() == []
    for advantage in ADVANTAGES.values():
        assert tree.training_rows(advantage) == []
    with pytest.raises(ValueError, match="judged"):
        _ = tree.forest.root_value
