"""Estimates over problems: pass@k against enumeration, the bootstrap against known distributions."""

import itertools
import math
import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from attnrl.utils.statistics import bootstrap_means, estimate_pass_at_k, pass_ks, percentile_interval


@given(st.integers(1, 8).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n))))
def test_pass_at_k_is_the_share_of_choices_with_a_correct_one(case: tuple[int, int, int]) -> None:
    samples, correct, k = case
    choices = list(itertools.combinations([i < correct for i in range(samples)], k))
    assert estimate_pass_at_k(samples, correct, k) == pytest.approx(sum(map(any, choices)) / len(choices))


@given(st.integers(1, 64), st.data())
def test_pass_at_k_grows_from_the_accuracy_to_any(samples: int, data: st.DataObject) -> None:
    correct = data.draw(st.integers(0, samples))
    values = [estimate_pass_at_k(samples, correct, k) for k in pass_ks(samples)]
    assert values == sorted(values)
    assert values[0] == pytest.approx(correct / samples) and values[-1] == float(correct > 0)


def test_ks_are_powers_of_two_and_all_samples() -> None:
    assert [pass_ks(n) for n in (1, 2, 3, 4, 32)] == [[1], [1, 2], [1, 2, 3], [1, 2, 4], [1, 2, 4, 8, 16, 32]]


def test_bootstrap_means_are_distributed_as_they_should_be() -> None:
    """Of two problems, 0 and 1, a resample's mean is 0, 1/2 or 1 with odds 1:2:1."""
    means = bootstrap_means([0.0, 1.0], seed=1)
    shares = [float((means == value).double().mean()) for value in (0.0, 0.5, 1.0)]
    assert shares == pytest.approx([0.25, 0.5, 0.25], abs=0.02)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=60), st.integers(0, 2**31))
def test_the_bootstrap_agrees_with_one_written_otherwise(values: list[float], seed: int) -> None:
    means = bootstrap_means(values, seed, resamples=2_000)
    assert torch.equal(means, bootstrap_means(values, seed, resamples=2_000))
    spread = math.sqrt(sum((value - sum(values) / len(values)) ** 2 for value in values)) / len(values)
    assert float(means.mean()) == pytest.approx(sum(values) / len(values), abs=6 * spread / math.sqrt(2_000) + 1e-9)
    assert float(means.std()) == pytest.approx(spread, rel=0.2, abs=1e-9)
    rng = random.Random(seed)
    plain = sorted(sum(rng.choices(values, k=len(values))) / len(values) for _ in range(500))
    low, high = percentile_interval(means)
    assert min(values) - 1e-9 <= low <= high <= max(values) + 1e-9
    # The two quantiles of another 500 resamples, give or take their own error.
    assert plain[2] - 1e-9 <= low <= plain[40] + 1e-9 and plain[-41] - 1e-9 <= high <= plain[-3] + 1e-9


def test_many_problems_are_resampled_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    values = [i / 100 for i in range(100)]
    whole = bootstrap_means(values, 0, resamples=500)
    monkeypatch.setattr("attnrl.utils.statistics._RESAMPLED_AT_ONCE", 701)
    blocks = bootstrap_means(values, 0, resamples=500)
    assert len(blocks) == len(whole) == 500
    assert float(blocks.mean()) == pytest.approx(0.495, abs=0.01)
