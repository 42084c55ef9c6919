import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from attnrl.method.loss import PolicyLoss, cut_mini_batches, kl_k3, policy_loss


def random_batch(seed: int, rows: int = 4, tokens: int = 6) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Log-probs that often leave the clip range, old log-probs, advantages, mask."""
    generator = torch.Generator().manual_seed(seed)
    old = -torch.rand(rows, tokens, generator=generator, dtype=torch.float64) * 3
    new = old + torch.randn(rows, tokens, generator=generator, dtype=torch.float64)
    advantages = torch.randn(rows, tokens, generator=generator, dtype=torch.float64)
    mask = torch.rand(rows, tokens, generator=generator) < 0.7
    mask[0, 0] = True
    return new, old, advantages, mask


def numpy_loss(new: np.ndarray, old: Tensor, advantages: Tensor, mask: Tensor, dual_clip: float | None) -> float:
    """The same loss token by token, in plain arithmetic."""
    total = 0.0
    for i in np.ndindex(new.shape):
        if not mask[i]:
            continue
        ratio, advantage = math.exp(new[i] - float(old[i])), float(advantages[i])
        objective = min(ratio * advantage, min(max(ratio, 0.8), 1.28) * advantage)
        if dual_clip is not None and advantage < 0:
            objective = max(objective, dual_clip * advantage)
        total -= objective
    return total / int(mask.sum())


@pytest.mark.parametrize("dual_clip", [None, 3.0])
@pytest.mark.parametrize("seed", range(3))
def test_loss_and_gradient_against_plain_arithmetic(seed: int, dual_clip: float | None) -> None:
    new, old, advantages, mask = random_batch(seed)
    new.requires_grad_()
    result = policy_loss(new, old, advantages, mask, denominator=int(mask.sum()), dual_clip=dual_clip)
    result.loss.backward()
    values = new.detach().numpy()
    assert result.loss.item() == pytest.approx(numpy_loss(values, old, advantages, mask, dual_clip))

    step, numeric = 1e-6, np.zeros_like(values)
    for i in np.ndindex(values.shape):
        losses = []
        for sign in (1, -1):
            moved = values.copy()
            moved[i] += sign * step
            losses.append(numpy_loss(moved, old, advantages, mask, dual_clip))
        numeric[i] = (losses[0] - losses[1]) / (2 * step)
    assert new.grad is not None
    np.testing.assert_allclose(new.grad.numpy(), numeric, atol=1e-8)


def one_token(ratio: float, advantage: float, dual_clip: float | None = None) -> tuple[float, bool]:
    """Loss of a single token, and whether it is clipped; a clipped token must have no gradient."""
    new = torch.tensor([math.log(ratio)], dtype=torch.float64, requires_grad=True)
    result = policy_loss(
        new,
        torch.zeros(1).double(),
        torch.tensor([advantage]).double(),
        torch.ones(1, dtype=torch.bool),
        denominator=1,
        dual_clip=dual_clip,
    )
    result.loss.backward()
    assert new.grad is not None
    assert bool(result.clip_fraction) == (new.grad.item() == 0)
    return result.loss.item(), bool(result.clip_fraction)


def test_clip_higher() -> None:
    assert one_token(1.25, 1.0) == (pytest.approx(-1.25), False)  # would be clipped at 1.2
    assert one_token(1.5, 1.0) == (pytest.approx(-1.28), True)
    assert one_token(0.5, -1.0) == (pytest.approx(0.8), True)
    assert one_token(0.5, 1.0) == (pytest.approx(-0.5), False)  # the pessimistic side is never clipped
    assert one_token(1.5, -1.0) == (pytest.approx(1.5), False)


def test_dual_clip() -> None:
    assert one_token(10.0, -1.0) == (pytest.approx(10.0), False)
    assert one_token(10.0, -1.0, dual_clip=3.0) == (pytest.approx(3.0), True)
    assert one_token(2.0, -1.0, dual_clip=3.0) == (pytest.approx(2.0), False)
    assert one_token(10.0, 1.0, dual_clip=3.0) == (pytest.approx(-1.28), True)


def test_on_policy_gradient_is_that_of_the_policy_gradient() -> None:
    new, _, advantages, mask = random_batch(0)
    old = new.clone()
    new.requires_grad_()
    result = policy_loss(new, old, advantages, mask, denominator=10)
    result.loss.backward()
    torch.testing.assert_close(new.grad, -advantages.where(mask, 0.0) / 10)
    assert result.clip_fraction == result.old_kl == 0
    assert result.ratio.item() == pytest.approx(int(mask.sum()) / 10)


@given(st.integers(0, 999), st.integers(1, 3))
def test_micro_batches_add_up(seed: int, cut: int) -> None:
    batch = random_batch(seed)
    denominator = int(batch[3].sum())

    def fields(result: PolicyLoss) -> Tensor:
        return torch.stack([result.loss, result.clip_fraction.double(), result.ratio, result.old_kl])

    whole = fields(policy_loss(*batch, denominator=denominator))
    parts = [
        fields(policy_loss(*(tensor[rows] for tensor in batch), denominator=denominator))
        for rows in (slice(None, cut), slice(cut, None))
    ]
    torch.testing.assert_close(parts[0] + parts[1], whole)


@pytest.mark.parametrize("junk", [math.nan, math.inf, -math.inf])
def test_padding_does_not_leak(junk: float) -> None:
    new, old, advantages, mask = random_batch(1)
    new.requires_grad_()
    clean = policy_loss(new, old, advantages, mask, denominator=7)
    clean_kl = kl_k3(new, old, mask)
    (clean.loss + clean_kl.sum()).backward()
    clean_grad, new.grad = new.grad, None

    dirty_new = new.detach().where(mask, junk).requires_grad_()
    dirty_old, dirty_advantages = old.where(mask, junk), advantages.where(mask, junk)
    dirty = policy_loss(dirty_new, dirty_old, dirty_advantages, mask, denominator=7)
    dirty_kl = kl_k3(dirty_new, dirty_old, mask)
    (dirty.loss + dirty_kl.sum()).backward()
    torch.testing.assert_close(dirty_new.grad, clean_grad)
    for name in ("loss", "clip_fraction", "ratio", "old_kl"):
        torch.testing.assert_close(getattr(dirty, name), getattr(clean, name))


def test_extreme_ratios_stay_finite() -> None:
    new = torch.tensor([0.0, -2000.0], requires_grad=True)
    old = torch.tensor([-2000.0, 0.0])
    mask = torch.ones(2, dtype=torch.bool)
    result = policy_loss(new, old, torch.tensor([-1.0, 1.0]), mask, denominator=2)
    (result.loss + kl_k3(new, old).sum()).backward()
    assert result.loss.isfinite()
    assert new.grad is not None
    assert new.grad.isfinite().all()


@given(st.integers(0, 999))
def test_k3_is_never_negative(seed: int) -> None:
    new, old, _, mask = random_batch(seed)
    assert (kl_k3(new, old) >= 0).all()
    assert (kl_k3(new, old, mask)[~mask] == 0).all()
    assert (kl_k3(new, new) == 0).all()


def test_k3_is_unbiased() -> None:
    """Weighted by the policy's probabilities, the estimates add up to the exact KL divergence."""
    policy, reference = torch.randn(2, 9, generator=torch.Generator().manual_seed(0)).double().log_softmax(-1)
    exact = (policy.exp() * (policy - reference)).sum()
    torch.testing.assert_close((policy.exp() * kl_k3(policy, reference)).sum(), exact)


def test_bad_arguments_are_refused() -> None:
    new, old, advantages, mask = random_batch(0)
    for setting, value in {"denominator": 0, "clip_low": 1.5, "clip_high": -0.1, "dual_clip": 1.0}.items():
        with pytest.raises(ValueError, match=setting):
            policy_loss(new, old, advantages, mask, **{"denominator": 1, setting: value})
    with pytest.raises(ValueError, match="advantages"):
        policy_loss(new, old, advantages[0], mask, denominator=1)
    with pytest.raises(ValueError, match="ref_logprobs"):
        kl_k3(new, old[0])


# --- how batches are cut ------------------------------------------------------------------------------------------

row_lengths = st.lists(st.integers(1, 50), min_size=1, max_size=30)


@given(row_lengths, st.integers(1, 8))
def test_mini_batches_hold_every_row_once_in_order(lengths, count):
    runs = cut_mini_batches(lengths, count)
    assert [row for run in runs for row in run] == list(range(len(lengths)))
    assert 1 <= len(runs) <= count
    assert all(len(run) > 0 for run in runs)


@given(row_lengths, st.integers(1, 8))
def test_mini_batches_end_within_a_row_of_their_share(lengths, count):
    runs = cut_mini_batches(lengths, count)
    for number, run in enumerate(runs[:-1], start=1):
        done, share = sum(lengths[: run.stop]), sum(lengths) * number / count
        assert share <= done
        # Without its last row the run would have stayed below, unless an earlier run took this share as well.
        assert done - lengths[run.stop - 1] < share or len(run) == 1


def test_equal_rows_make_equal_mini_batches():
    assert cut_mini_batches([7] * 12, 3) == [range(0, 4), range(4, 8), range(8, 12)]


def test_no_rows_make_no_batches():
    assert cut_mini_batches([], 2) == []
