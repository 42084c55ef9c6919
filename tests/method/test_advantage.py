import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from attnrl.method.advantage import grpo_advantages, tree_advantage

reward_lists = st.lists(st.sampled_from([0.0, 0.1, 0.5, 1.0]), min_size=2, max_size=12)


def test_tree_advantage_by_hand() -> None:
    assert tree_advantage(0.75, 0.5, 0.25, leaves=4) == (0.5 + 0.25) / 2
    assert tree_advantage(0.5, 0.5, 0.5, leaves=3) == 0
    with pytest.raises(ValueError, match="leaf"):
        tree_advantage(0.5, 0.5, 0.5, leaves=0)


@given(reward_lists)
def test_grpo_is_torch(rewards: list[float]) -> None:
    reward = torch.tensor(rewards, dtype=torch.float64)
    centred = reward - reward.mean()
    expected = centred / (reward.std() + 1e-6)
    assert grpo_advantages(rewards) == pytest.approx(expected.tolist(), abs=1e-9)
    assert grpo_advantages(rewards, normalize_std=False) == pytest.approx(centred.tolist(), abs=1e-12)


@given(reward_lists)
def test_grpo_sums_to_zero(rewards: list[float]) -> None:
    assert math.fsum(grpo_advantages(rewards)) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("rewards", [[], [1.0], [0.1, 0.1, 0.1]])
def test_grpo_without_signal_is_exactly_zero(rewards: list[float]) -> None:
    assert grpo_advantages(rewards) == [0.0] * len(rewards)
