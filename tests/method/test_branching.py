import math
import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attnrl.method.branching import CRITERIA, RolloutSignals, branch_points
from attnrl.method.steps import Steps


def ten_steps(fci: tuple[float, ...], think_end: int | None = None) -> RolloutSignals:
    """Ten steps of ten tokens each; entropy highest at tokens 37, 0, 36, 90."""
    entropy = [0.0] * 100
    entropy[37], entropy[0], entropy[36], entropy[90] = 4.0, 3.0, 2.0, 1.0
    return RolloutSignals(Steps(tuple(range(0, 100, 10)), 100, think_end), fci, tuple(entropy))


@st.composite
def signals_of_any_shape(draw: st.DrawFn) -> RolloutSignals:
    length = draw(st.integers(0, 30))
    starts = tuple(sorted({0} | draw(st.sets(st.integers(1, length - 1))))) if length > 1 else (0,) * length
    think_end = draw(st.none() | st.integers(0, len(starts) - 1)) if starts else None
    values = st.floats(-3, 3)
    fci = draw(st.lists(values, min_size=len(starts), max_size=len(starts)))
    entropy = draw(st.lists(values, min_size=length, max_size=length))
    dependents = draw(st.lists(st.integers(0, 5).map(float), min_size=len(starts), max_size=len(starts)))
    return RolloutSignals(Steps(starts, length, think_end), tuple(fci), tuple(entropy), tuple(dependents))


FCI = (9.0, 0.1, 0.5, 0.2, 0.9, 0.3, 0.8, 0.7, 0.0, 0.0)


@pytest.mark.parametrize(
    ("settings", "points"),
    [
        ({"count": 2}, (40, 60)),  # the top 2 of 10
        ({"count": 2, "rho": 0.4}, (20, 40)),  # the earliest 2 of the top 4
        ({"count": 4}, (20, 40, 60, 70)),  # more than candidates: next highest
        ({"count": 2, "spacing": 30}, (40, 70)),  # 60 is too near to 40
        ({"count": 2, "rho": 0.4, "spacing": 25}, (40, 70)),  # 20 is too near to the start
        ({"count": 3, "spacing": 50}, (40, 60, 70)),  # only 60 keeps the spacing: it is given up for two
        ({"count": 0}, ()),
    ],
)
def test_fci_takes_the_earliest_of_the_highest(settings: dict[str, float], points: tuple[int, ...]) -> None:
    assert branch_points(ten_steps(FCI), criterion=CRITERIA["fci"], rng=random.Random(0), **settings) == points


def test_fci_ties_go_to_the_earlier_step() -> None:
    signals = ten_steps((0.0,) * 10)
    assert branch_points(signals, criterion=CRITERIA["fci"], count=2, rng=random.Random(0)) == (10, 20)


def test_the_oracle_takes_the_steps_that_most_others_depend_on() -> None:
    signals = replace(ten_steps(FCI), dependents=(9.0, 0.0, 1.0, 3.0, 1.0, 5.0, 0.0, 0.0, 0.0, 0.0))
    assert branch_points(signals, criterion=CRITERIA["oracle"], count=3, rng=random.Random(0)) == (20, 30, 50)
    with pytest.raises(ValueError, match="dependents"):
        branch_points(ten_steps(FCI), criterion=CRITERIA["oracle"], count=1, rng=random.Random(0))


def test_number_of_candidates_is_not_raised_by_rounding() -> None:
    assert 0.07 * 100 > 7
    signals = RolloutSignals(Steps(tuple(range(100)), 100), tuple(float(step) for step in range(100)))
    assert branch_points(signals, criterion=CRITERIA["fci"], count=1, rho=0.07, rng=random.Random(0)) == (93,)


def test_masked_steps_are_never_preferred_even_to_negative_influence() -> None:
    masked = ten_steps((0.0, -1.0, -2.0, *[0.0] * 7), think_end=3)
    assert branch_points(masked, criterion=CRITERIA["fci"], count=2, rng=random.Random(0)) == (10, 20)
    assert branch_points(masked, criterion=CRITERIA["fci"], count=3, rng=random.Random(0)) == (10, 20, 30)
    for seed in range(20):
        assert branch_points(masked, criterion=CRITERIA["random"], count=2, rng=random.Random(seed)) == (10, 20)


def test_entropy_takes_tokens_but_never_the_first() -> None:
    signals = ten_steps(FCI)
    assert branch_points(signals, criterion=CRITERIA["entropy"], count=2, rng=random.Random(0)) == (36, 37)
    assert branch_points(signals, criterion=CRITERIA["entropy"], count=2, spacing=2, rng=random.Random(0)) == (37, 90)


def test_random_is_decided_by_the_seed_and_reaches_every_step() -> None:
    signals = ten_steps(FCI)

    def choose(seed: int) -> tuple[int, ...]:
        return branch_points(signals, criterion=CRITERIA["random"], count=2, rng=random.Random(seed))

    chosen = [choose(seed) for seed in range(100)]
    assert chosen == [choose(seed) for seed in range(100)]
    assert {at for points in chosen for at in points} == set(range(10, 100, 10))


@pytest.mark.parametrize("criterion", ["fci", "random"])
def test_too_few_steps(criterion: str) -> None:
    one = RolloutSignals(Steps((0,), 5), (0.0,))
    two = RolloutSignals(Steps((0, 3), 5), (0.0, 0.0))
    assert branch_points(one, criterion=CRITERIA[criterion], count=2, rng=random.Random(0)) == ()
    assert branch_points(two, criterion=CRITERIA[criterion], count=2, rng=random.Random(0)) == (3, 3)


@given(
    signals_of_any_shape(),
    st.sampled_from(sorted(CRITERIA)),
    st.integers(0, 6),
    st.floats(0.01, 1),
    st.integers(0, 40),
    st.integers(0, 99),
)
def test_any_response_terminates_with_points_to_branch_at(
    signals: RolloutSignals, criterion: str, count: int, rho: float, spacing: int, seed: int
) -> None:
    points = branch_points(
        signals, criterion=CRITERIA[criterion], count=count, rho=rho, spacing=spacing, rng=random.Random(seed)
    )
    assert points == branch_points(
        signals, criterion=CRITERIA[criterion], count=count, rho=rho, spacing=spacing, rng=random.Random(seed)
    )
    steps = signals.steps
    places = set(range(1, steps.length)) if criterion == "entropy" else set(steps.starts[1:])
    assert len(points) == (count if places else 0)
    assert list(points) == sorted(points)
    assert set(points) <= places
    assert len(set(points)) == min(count, len(places))


@given(signals_of_any_shape(), st.integers(1, 4), st.floats(0.01, 1))
def test_eq_7_where_nothing_is_in_the_way(signals: RolloutSignals, count: int, rho: float) -> None:
    steps, fci = signals.steps, signals.influence
    eligible = range(1, len(steps) if steps.think_end is None else steps.think_end)
    threshold_rank = math.ceil(rho * len(steps) - 1e-9)
    candidates = sorted(sorted(eligible, key=lambda k: fci[k], reverse=True)[:threshold_rank])
    if len(candidates) >= count:
        points = branch_points(signals, criterion=CRITERIA["fci"], count=count, rho=rho, rng=random.Random(0))
        assert points == tuple(steps.starts[k] for k in candidates[:count])


def test_bad_arguments_are_refused() -> None:
    signals = ten_steps(FCI)
    bad: list[dict[str, float]] = [{"count": -1}, {"spacing": -1}, {"rho": 0.0}, {"rho": 1.1}]
    for settings in bad:
        with pytest.raises(ValueError, match="|".join(settings)):
            branch_points(signals, **{"criterion": CRITERIA["fci"], "count": 1, "rng": random.Random(0), **settings})
    for criterion, signal in {"fci": "influence", "entropy": "entropy"}.items():
        with pytest.raises(ValueError, match=signal):
            branch_points(RolloutSignals(signals.steps), criterion=CRITERIA[criterion], count=1, rng=random.Random(0))
    for signal, values in {"influence": (0.0, 1.0), "entropy": (0.0,), "dependents": (1.0,)}.items():
        with pytest.raises(ValueError, match=signal):
            RolloutSignals(signals.steps, **{signal: values})
