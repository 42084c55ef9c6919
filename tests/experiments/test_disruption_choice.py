"""Chosen steps and summary statistics, against cases worked out by hand."""

import pytest

from attnrl.experiments.disruption.choice import choose_steps, condition_names, hideable_steps, position_bins, top_share
from attnrl.experiments.disruption.summary import HiddenStep, mean_over_problems, summarize_hidden_steps
from attnrl.method.steps import Steps


def test_a_step_is_hideable_when_the_lag_leaves_a_step_to_sample() -> None:
    steps = Steps(tuple(range(8)), 8)
    assert hideable_steps(steps, 4) == [1, 2, 3]  # behind step 3 there are 4, 5, 6 kept and 7 to sample
    assert hideable_steps(steps, 1) == [1, 2, 3, 4, 5, 6]
    assert hideable_steps(steps, 7) == []
    assert hideable_steps(Steps(tuple(range(8)), 8, think_end=3), 1) == [1, 2]


def test_bins_are_runs_of_about_equal_length() -> None:
    assert position_bins([1, 2, 3, 4, 5, 6, 7], 3) == {1: 0, 2: 0, 3: 0, 4: 1, 5: 1, 6: 2, 7: 2}
    for count in range(10, 30):
        bin_of = position_bins(range(count), 5)
        sizes = [list(bin_of.values()).count(b) for b in range(5)]
        assert min(sizes) >= 2 and max(sizes) - min(sizes) <= 1


def test_the_top_share_is_of_eligible_steps_and_the_earlier_of_equals() -> None:
    values = [9.0, 1.0, 5.0, 5.0, 3.0, 5.0]
    assert top_share(values, [1, 2, 3, 4, 5], 0.2) == [2]
    assert top_share(values, [1, 2, 3, 4, 5], 0.4) == [2, 3]
    assert top_share(values, [1, 4], 0.2) == [4]


ELIGIBLE = list(range(1, 11))
FCI = (0.0, 0.1, 0.2, 0.9, 0.0, 0.0, 0.0, 0.8, 0.0, 0.0, 0.05, 0.0)  # the top two: steps 3 and 7
SIGNALS = {
    "fci": FCI,
    "zscore_fci": tuple(-value for value in FCI),
    "lookups": (0.0, 3.0) * 6,
    "entropy": tuple(range(12)),
}


def test_each_condition_gets_the_step_it_says() -> None:
    for trial in range(50):
        chosen = choose_steps(ELIGIBLE, SIGNALS, bins=5, rho=0.2, name=f"{trial}")
        assert list(chosen) == condition_names(5)
        assert chosen["fci"].step in (3, 7)
        assert chosen["fci_matched"].step == {3: 4, 7: 8}[chosen["fci"].step]  # the bins are 1-2, 3-4, 5-6, 7-8, 9-10
        assert chosen["fci_matched"].contrasts
        assert chosen["entropy"].step in (9, 10)
        assert chosen["entropy_matched"].step == 19 - chosen["entropy"].step
        assert not chosen["entropy_matched"].contrasts  # both of the last bin are in the top share
        assert chosen["random"].step not in (3, 7)
        high, low = chosen["bin_top_fci"], chosen["bin_low_fci"]
        assert high.bin == low.bin and high.step != low.step and FCI[high.step] >= FCI[low.step]
        assert high.contrasts == (FCI[high.step] > FCI[low.step])
        for b in range(5):
            assert chosen[f"bin_{b + 1}"].step in (2 * b + 1, 2 * b + 2)


def test_choices_depend_on_the_name_alone() -> None:
    def steps(name: str, rho: float = 0.2) -> list[int]:
        return [choice.step for choice in choose_steps(ELIGIBLE, SIGNALS, bins=5, rho=rho, name=name).values()]

    assert steps("a") == steps("a")
    assert len({tuple(steps(str(n))) for n in range(20)}) > 10
    assert steps("a")[-5:] == steps("a", rho=0.5)[-5:]  # random steps of bins, whatever the others are


def record(problem: str, conditions: dict[str, bool], seen: list[int], hidden: list[int], **more: int) -> HiddenStep:
    return HiddenStep(
        problem=problem,
        sample=more.get("sample", 0),
        step=more.get("step", 1),
        steps=9,
        tokens=4,
        conditions=conditions,
        signals={},
        undisturbed=tuple(map(bool, seen)),
        disrupted=tuple(map(bool, hidden)),
        undisturbed_rewards=(None,) * len(seen),  # accuracy does not depend on rewards
        disrupted_rewards=(None,) * len(hidden),
        undisturbed_agrees=(True,) * len(seen),
        disrupted_agrees=tuple(reward > 0 for reward in hidden),
    )


def test_estimates_weigh_problems_alike() -> None:
    found = mean_over_problems([("a", 1.0), ("a", 0.0), ("b", 1.0)], seed=0)
    assert found["mean"] == pytest.approx(0.75)
    assert found["interval"] == [pytest.approx(0.5), pytest.approx(1.0)]
    assert mean_over_problems([("a", 0.25)], seed=0) == {"mean": 0.25, "interval": [0.25, 0.25]}


def test_summary_by_hand() -> None:
    shared = {name: True for name in condition_names(1) if name not in {"fci", "fci_matched"}}
    records = [
        record("a", {"fci": True, **shared}, [1, 1], [0, 0], step=2),  # all is lost
        record("a", {"fci_matched": True}, [1, 1], [1, 0], step=3),  # half is
        record("b", {"fci": True}, [1, 0], [1, 0], step=4),  # nothing is
        record("b", {"fci_matched": False, **shared}, [1, 0], [0, 0], step=5),
    ]
    found = summarize_hidden_steps(records, bins=1, seed=0)
    assert (found["problems"], found["responses"]) == (2, 2)
    fci = found["conditions"]["fci"]
    assert fci["mean_step"] == 3.0
    assert fci["accuracy_undisturbed"]["mean"] == pytest.approx(0.75)
    assert fci["accuracy_disrupted"]["mean"] == pytest.approx(0.25)
    assert fci["accuracy_drop"]["mean"] == pytest.approx(0.5)
    assert fci["accuracy_drop"]["interval"] == [pytest.approx(0.0), pytest.approx(1.0)]
    assert fci["agreement_drop"]["mean"] == pytest.approx((1.0 + 0.5) / 2)
    matched, strict = (c for c in found["contrasts"] if (c["more"], c["than"]) == ("fci", "fci_matched"))
    assert (matched["responses"], matched["strict"]) == (2, False)
    assert matched["accuracy_drop"]["mean"] == pytest.approx(((1.0 - 0.5) + (0.0 - 0.5)) / 2)
    assert (strict["responses"], strict["strict"]) == (1, True)  # of b the control is none
    assert strict["accuracy_drop"] == {"mean": 0.5, "interval": [0.5, 0.5]}
    assert len([c for c in found["contrasts"] if (c["more"], c["than"]) == ("fci", "entropy")]) == 1


def test_one_step_may_serve_several_conditions() -> None:
    everything = dict.fromkeys(condition_names(2), True)
    found = summarize_hidden_steps([record("a", everything, [1.0], [0.0])], bins=2, seed=0)
    assert {row["accuracy_drop"]["mean"] for row in found["conditions"].values()} == {1.0}
    assert {contrast["accuracy_drop"]["mean"] for contrast in found["contrasts"]} == {0.0}
