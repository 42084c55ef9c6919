import random
from collections import Counter
from dataclasses import replace
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attnrl.method.adaptive import (
    BatchSizeController,
    RunningMean,
    choose_trunks,
    expansion_count,
    keep_problem,
)


@given(st.lists(st.floats(-100, 100), min_size=1))
def test_running_mean(values: list[float]) -> None:
    running = RunningMean()
    for value in values:
        running = running.add(value)
    assert running.count == len(values)
    assert running.mean == pytest.approx(fmean(values), abs=1e-9)


def test_only_all_correct_problems_are_judged() -> None:
    running = RunningMean()
    assert keep_problem([True, False], 0.1, running) == (True, running)
    assert keep_problem([False, False], 0.1, running) == (True, running)

    solved = [True, True]
    decisions = []
    for mean_fci in (2.0, 1.0, 1.6, 1.4):  # against nothing, 2.0, 1.5, 1.533
        kept, running = keep_problem(solved, mean_fci, running)
        decisions.append(kept)
    assert decisions == [True, False, True, False]
    assert running == RunningMean(4, pytest.approx(1.5))
    with pytest.raises(ValueError, match="judged"):
        keep_problem([], 0.0, running)


def test_expansion_counts_of_the_paper_and_of_the_code() -> None:
    assert [expansion_count(k / 6, 6, "ceil") for k in range(7)] == [6, 6, 5, 4, 4, 3, 3]
    assert [expansion_count(k / 6, 6, "round") for k in range(7)] == [6, 5, 4, 4, 3, 3, 2]
    assert expansion_count(1.0, 1, "round") == 1


@given(st.integers(1, 32), st.floats(0, 1), st.sampled_from(["ceil", "round"]))
def test_expansion_is_possible(trunks: int, accuracy: float, rounding: str) -> None:
    assert 1 <= expansion_count(accuracy, trunks, rounding) <= trunks  # type: ignore[arg-type]


def test_expansion_refuses_bad_arguments() -> None:
    for accuracy, trunks in ((-0.1, 6), (1.1, 6), (0.5, 0)):
        with pytest.raises(ValueError, match=rf"{accuracy}.*{trunks}"):
            expansion_count(accuracy, trunks)
    with pytest.raises(ValueError, match="floor"):
        expansion_count(0.5, 6, "floor")  # type: ignore[arg-type]


@given(st.lists(st.booleans(), min_size=1, max_size=10), st.data(), st.integers(0, 99))
def test_trunks(correct: list[bool], data: st.DataObject, seed: int) -> None:
    count = data.draw(st.integers(0, len(correct)))
    chosen = choose_trunks(correct, count, random.Random(seed))
    assert chosen == choose_trunks(correct, count, random.Random(seed))
    assert chosen == sorted(set(chosen))
    assert len(chosen) == count
    right = sum(correct)
    if right in (0, len(correct)):
        assert chosen == list(range(count))
    elif 2 * right != len(correct):
        minority = {i for i, c in enumerate(correct) if c == (2 * right < len(correct))}
        assert len(minority & set(chosen)) == min(count, len(minority))


def test_trunks_are_drawn_evenly() -> None:
    correct = [True, False, False, True, False, True]  # a tie
    drawn = Counter(i for seed in range(600) for i in choose_trunks(correct, 4, random.Random(seed)))
    assert all(330 < drawn[i] < 470 for i in range(6))
    minority_too_large = Counter(
        i for seed in range(600) for i in choose_trunks([True, True, True, False] * 2, 1, random.Random(seed))
    )
    assert set(minority_too_large) == {3, 7}


def test_trunks_refuse_a_count_that_does_not_fit() -> None:
    for count in (-1, 3):
        with pytest.raises(ValueError, match=rf"{count} of 2\b"):
            choose_trunks([True, False], count, random.Random(0))


def test_batch_size_by_hand() -> None:
    controller = BatchSizeController(batch=64, target=1920, maximum=512)
    assert controller.update(1920) == controller
    assert controller.update(1280).batch == pytest.approx(0.9 * 64 + 0.1 * 1.5 * 64)
    assert controller.update(1280).size == 67
    assert controller.update(3840).batch == pytest.approx(0.9 * 64 + 0.1 * 0.5 * 64)
    assert controller.update(0).batch == pytest.approx(0.9 * 64 + 0.1 * 2 * 64)
    assert controller.update(1) == controller.update(0)  # the ratio is bounded
    assert replace(controller, smoothing=1.0).update(1).batch == 64
    with pytest.raises(ValueError, match="trained"):
        controller.update(-1)


def test_batch_size_stays_within_its_bounds() -> None:
    controller = BatchSizeController(batch=8, target=100, minimum=4, maximum=16)
    up = down = controller
    for _ in range(100):
        up, down = up.update(0), down.update(10**6)
    assert (up.size, down.size) == (16, 4)


@given(st.integers(2, 300), st.integers(1, 30), st.integers(2, 300))
def test_batch_size_converges_however_small(wanted: int, per_problem: int, start: int) -> None:
    """Each problem yields the same: after enough steps the batch is the one that yields the target."""
    controller = BatchSizeController(batch=start, target=wanted * per_problem, maximum=1000)
    for _ in range(300):
        controller = controller.update(controller.size * per_problem)
    assert abs(controller.size - wanted) <= 1


@pytest.mark.parametrize(("target", "tolerance"), [(1920, 0.03), (60, 0.2)])
def test_batch_size_converges_in_a_random_stationary_process(target: int, tolerance: float) -> None:
    """Half of the problems are discarded, the others yield 5 to 30 responses: 8.75 a problem on average."""
    rng = random.Random(0)
    controller = BatchSizeController(batch=4, target=target, maximum=1000)
    trained = []
    for _ in range(600):
        trained.append(sum(rng.randint(1, 6) * 5 for _ in range(controller.size) if rng.random() < 0.5))
        controller = controller.update(trained[-1])
    assert fmean(trained[100:]) == pytest.approx(target, rel=tolerance)


@pytest.mark.parametrize(
    "bad",
    [
        {"minimum": 0},
        {"batch": 0.5},
        {"maximum": 3},
        {"target": 0},
        {"smoothing": 1.1},
        {"max_ratio": 0.5},
    ],
)
def test_batch_size_refuses_bad_settings(bad: dict[str, float]) -> None:
    (setting,) = bad
    with pytest.raises(ValueError, match=rf"\b{setting}\b"):
        BatchSizeController(**{"batch": 4, "target": 10, "maximum": 8, **bad})  # type: ignore[arg-type]
