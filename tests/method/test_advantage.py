import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from attnrl.method.advantage import grpo_advantages, influence_weights, weigh_advantages
from attnrl.method.forest import tree_advantage
from attnrl.method.steps import Steps

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


# --- credit by influence ----------------------------------------------------------------------------------------------


def test_tokens_of_the_most_influential_steps_count_in_full() -> None:
    steps = Steps((0, 2, 3, 6, 7), 8)
    weights = influence_weights((0.1, 0.9, 0.5, 0.5, 0.0), steps, top_share=0.4, rest_weight=0.25)
    assert weights == (0.25, 0.25, 1.0, 1.0, 1.0, 1.0, 0.25, 0.25)  # steps 1 and 2: of the equal ones the earlier


def test_the_first_step_may_count_in_full() -> None:
    assert influence_weights((3.0, 1.0), Steps((0, 1), 3), top_share=0.5, rest_weight=0.5) == (1.0, 0.5, 0.5)


def test_influence_of_other_steps_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\b2 .*influence.*\b1\b"):
        influence_weights((0.1, 0.2), Steps((0,), 3), top_share=0.5, rest_weight=0.5)


@given(st.data())
def test_weights_in_general(data: st.DataObject) -> None:
    length = data.draw(st.integers(1, 20))
    later = data.draw(st.sets(st.integers(1, length - 1))) if length > 1 else set()
    steps = Steps((0, *sorted(later)), length)
    influence = data.draw(st.lists(st.floats(-5, 5), min_size=len(steps), max_size=len(steps)))
    share, rest = data.draw(st.floats(0.01, 1)), data.draw(st.floats(0.01, 1))
    weights = influence_weights(influence, steps, share, rest)
    assert len(weights) == length and set(weights) <= {1.0, rest}
    full = {step for step in range(len(steps)) if weights[steps.starts[step]] == 1.0}
    assert rest == 1.0 or len(full) == math.ceil(share * len(steps) - 1e-9)
    if rest < 1.0:
        assert min(influence[step] for step in full) >= max(
            [influence[step] for step in range(len(steps)) if step not in full], default=-math.inf
        )
    # Of equal advantages the sum stays what it was.
    weighed = weigh_advantages([0.5] * length, weights)
    assert sum(weighed) == pytest.approx(0.5 * length)


def test_nothing_to_weigh() -> None:
    assert weigh_advantages([], []) == []
