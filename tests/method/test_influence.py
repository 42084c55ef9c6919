import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from attnrl.method.influence import forward_context_influence, step_attention
from attnrl.method.measures import MEASURES, REDUCTIONS
from attnrl.method.ranking import eligible_steps, mask_influence, mean_influence
from attnrl.method.steps import Steps


def random_attention(*shape: int, tokens: int, seed: int) -> torch.Tensor:
    logits = torch.randn(*shape, tokens, tokens, generator=torch.Generator().manual_seed(seed))
    future = torch.ones(tokens, tokens, dtype=torch.bool).triu(1)
    return logits.double().masked_fill(future, -torch.inf).softmax(-1)


@given(st.sets(st.integers(0, 11), min_size=1), st.integers(0, 6), st.integers(0, 99))
def test_influence_is_its_definition(starts_set: set[int], delta: int, seed: int) -> None:
    tokens, starts = 12, sorted(starts_set)
    attention = random_attention(2, 3, tokens=tokens, seed=seed)
    alpha = step_attention(attention, starts)
    influence = forward_context_influence(alpha, delta)

    edges = [*starts, tokens]
    steps = range(len(starts))
    for j in steps:
        for k in steps:
            block = attention[..., edges[j] : edges[j + 1], edges[k] : edges[k + 1]]
            torch.testing.assert_close(alpha[..., j, k], block.mean(dim=(-1, -2)))
    for k in steps:
        later = sum((alpha[..., j, k] for j in steps if j >= k + delta), torch.zeros(2, 3).double())
        torch.testing.assert_close(influence[..., k], later)


def test_bad_attention_is_refused() -> None:
    with pytest.raises(ValueError, match="attention"):
        step_attention(torch.zeros(2, 3), [0])
    for starts in ([-1], [2, 2], [4]):
        with pytest.raises(ValueError, match="starts"):
            step_attention(torch.zeros(4, 4), starts)
    with pytest.raises(ValueError, match="delta"):
        forward_context_influence(torch.zeros(2, 2), -1)


def test_reductions_on_one_loud_and_one_quiet_head() -> None:
    loud, quiet = [10.0, 11.0, 12.0], [0.02, 0.01, 0.0]
    influence = torch.tensor([[loud, quiet]])
    torch.testing.assert_close(REDUCTIONS["max"](influence), torch.tensor(loud))
    z = 1.5**0.5
    torch.testing.assert_close(REDUCTIONS["zscore_max"](influence), torch.tensor([z, 0.0, z]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_constant_head_has_zero_zscore(dtype: torch.dtype) -> None:
    """Also where rounding puts the mean beside the constant, as it does for 0.3 seven times."""
    for value in (0.0, 0.1, 0.3, 0.7, 1.0):
        for steps in (1, 3, 7, 11, 1000):
            influence = torch.full((1, 1, steps), value, dtype=dtype)
            assert REDUCTIONS["zscore_max"](influence).tolist() == [0.0] * steps


def test_zscore_does_not_depend_on_the_scale_of_a_head() -> None:
    influence = torch.rand(2, 3, 7, generator=torch.Generator().manual_seed(0)).double()
    scale = torch.tensor([[1.0, 1e-4, 1e3], [0.1, 5.0, 1e-6]]).double()[..., None]
    zscore_max = REDUCTIONS["zscore_max"]
    torch.testing.assert_close(zscore_max(influence * scale), zscore_max(influence))


@pytest.mark.parametrize(
    ("think_end", "masked"),
    [(None, (0.0, 2.0, 3.0, 4.0)), (2, (0.0, 2.0, 0.0, 0.0)), (0, (0.0, 0.0, 0.0, 0.0))],
)
def test_masking(think_end: int | None, masked: tuple[float, ...]) -> None:
    steps = Steps((0, 5, 6, 8), 9, think_end)
    assert mask_influence((1.0, 2.0, 3.0, 4.0), steps) == masked
    assert eligible_steps(steps) == [step for step, value in enumerate(masked) if value]
    with pytest.raises(ValueError, match=r"\b1\b.*\b4\b"):
        mask_influence((1.0,), steps)


def test_mean_influence_weighs_responses_not_steps() -> None:
    assert mean_influence([(1.0, 3.0), (0.0,), ()]) == pytest.approx(2 / 3)
    with pytest.raises(ValueError, match="response"):
        mean_influence([])


def test_each_measure_reduces_layers_and_heads_in_its_own_way() -> None:
    influence = torch.tensor([[[1.0, 2.0], [3.0, 1.0]]])
    fci, counted = MEASURES["fci"](REDUCTIONS["max"]), MEASURES["lookups"](REDUCTIONS["max"])
    assert (fci.uses_lookups, fci.reduce(influence).tolist()) == (False, [3.0, 2.0])
    assert (counted.uses_lookups, counted.reduce(influence).tolist()) == (True, [4.0, 3.0])
