"""The numbers of a step, on four problems small enough to count by hand, and their documentation."""

from __future__ import annotations

import copy
import math
import re
from dataclasses import replace
from pathlib import Path

import helpers
import pytest
from helpers import fake_loop

from attnrl.config.method import BranchingConfig
from attnrl.config.schema import LossConfig, OptimizerConfig
from attnrl.grading.rewards import OVERLONG
from attnrl.local.policy import LocalPolicy
from attnrl.method.steps import Steps
from attnrl.rl.clock import PhaseClock
from attnrl.rl.evaluation import EvaluatedSample, Evaluation
from attnrl.rl.metrics import step_metrics
from attnrl.rl.rollout import BranchPlan, Group, RolloutTree, Sample, Trunk
from attnrl.types import TrainingRow

DOCUMENT = Path(__file__).parents[2] / "docs" / "metrics.md"


SETTINGS = {
    "mask_truncated": False,
    "prompt_batch_size": 1,
    "generated_tokens": 8,
    "sampled_tokens": 8,
    "carried_over": 0,
    "phases": {},
}
VERDICTS = {0.0: "wrong", 0.5: "wrong", 1.0: "correct"}


def sample(length: int, reward: float, finish: str = "stop", drift: float = 0.0) -> Sample:
    return Sample(
        (5,) * length, (-1.0 + drift,) * length, (-1.0,) * length, (0.4,) * length, reward, VERDICTS[reward], finish
    )


def trunk(length: int, reward: float, starts: tuple[int, ...] = (0, 2), entropy: float = 0.4) -> Trunk:
    return Trunk(
        (5,) * length,
        (-1.0,) * length,
        (-1.0,) * length,
        (entropy,) * length,
        reward,
        VERDICTS[reward],
        "stop",
        steps=Steps(starts, length),
        influence=(),
    )


def problem(
    trunks: list[Trunk], points: dict[int, tuple[int, ...]], branches: list[Sample], *, kept: bool = True
) -> RolloutTree:
    return RolloutTree(BranchPlan(Group(0, "p", ("1",), (9,), tuple(trunks)), kept, points, 1), tuple(branches))


@pytest.fixture
def metrics() -> dict[str, float]:
    # Solved by both initial responses; a continuation fails. The second trunk is not expanded.
    rescued = problem(
        [trunk(10, 1.0, (0, 3, 6), entropy=1.0), trunk(5, 1.0)],
        {0: (3, 6)},
        [sample(4, 0.0, "length"), sample(2, 1.0)],
    )
    filtered = problem([trunk(4, 1.0), trunk(6, 1.0)], {}, [], kept=False)
    hopeless = problem([trunk(4, 0.0), trunk(4, 0.0)], {0: (2,)}, [sample(3, 0.0)])
    mixed = problem(
        [trunk(8, 1.0, (0, 2, 4, 6)), trunk(8, 0.0, (0, 2, 4, 6))],
        {0: (2, 6), 1: (2, 4)},
        [sample(1, 1.0), sample(1, 1.0, drift=0.5), sample(1, 0.0), sample(1, 1.0, drift=-0.25)],
    )
    return step_metrics(
        [rescued, filtered, hopeless, mixed],
        [mixed, rescued],
        {"loss/policy": 0.25},
        mask_truncated=False,
        prompt_batch_size=4,
        generated_tokens=120,
        sampled_tokens=500,
        carried_over=3,
        phases={"generate": 2.0, "step": 3.0},
    )


def test_rewards_and_lengths(metrics):
    assert metrics["reward"] == pytest.approx((3 + 2 + 0 + 4) / 15)  # per leaf, not per problem
    assert metrics["reward/initial"] == pytest.approx(5 / 8)
    assert metrics["reward/mc"] == pytest.approx(4 / 7)
    for suffix in ("", "/initial", "/mc"):  # every reward is 1 for correct and 0 otherwise
        assert metrics[f"accuracy{suffix}"] == metrics[f"reward{suffix}"]
    whole_responses = [10, 5, 3 + 4, 6 + 2, 4, 6, 4, 4, 2 + 3, 8, 8, 2 + 1, 6 + 1, 2 + 1, 4 + 1]
    assert metrics["response_length"] == pytest.approx(sum(whole_responses) / 15)
    assert metrics["truncated_ratio"] == pytest.approx(1 / 15)
    assert metrics["entropy"] == pytest.approx((1.0 + 14 * 0.4) / 15)


def test_rewards_and_correctness_are_two_things():
    """Rewards beside the verdicts, a response not judged, functions that do not always apply."""
    trunks = [
        replace(trunk(4, 0.0), reward=-1.0, rewards={"length": -3.0, "format": None}),
        replace(trunk(4, 1.0), reward=2.5, rewards={"length": 1.0, "format": 0.5}),
        replace(trunk(4, 0.0), reward=None, verdict="bad_gold"),
    ]
    mixed = problem(trunks, {0: (2,), 1: (2,)}, [replace(sample(3, 1.0), reward=-1.0), sample(2, 0.0)])
    lost = problem([replace(trunk(4, 0.0), reward=None, verdict="not_judged")] * 2, {}, [], kept=False)
    metrics = step_metrics([mixed, lost], [mixed], {}, **SETTINGS)
    assert metrics["reward"] == pytest.approx((-1 + 2.5 - 1 + 0) / 4)
    assert metrics["accuracy"] == pytest.approx(2 / 4)
    assert (metrics["reward/initial"], metrics["accuracy/initial"]) == (0.75, 0.5)
    assert (metrics["reward/mc"], metrics["accuracy/mc"]) == (-0.5, 0.5)
    assert metrics["reward/functions/length"] == -1.0
    assert metrics["reward/functions/format"] == 0.5
    assert metrics["not_judged/responses"] == 3
    assert metrics["not_judged/ratio"] == pytest.approx(3 / 7)
    assert metrics["not_judged/groups"] == 1
    assert metrics["grade/bad_gold_ratio"] == pytest.approx(1 / 7)
    assert metrics["filtered_ratio"] == 0.0  # not by eq. 8
    assert metrics["initial/valid_ratio"] == 1.0  # of the problems with a judged response
    assert metrics["trained_responses"] == 4
    assert metrics["tokens/valid"] == 4 + 4 + 3 + 2
    assert metrics["branch/agreement_ratio"] == 0.5  # -1 at the first point; 2.5 against 0 at the second


def test_wrong_responses_with_different_rewards_are_valid_and_equal_rewards_are_not():
    def ratios(rewards: list[float], verdict: str) -> list[float]:
        one = problem([replace(trunk(4, 0.0), reward=reward, verdict=verdict) for reward in rewards], {}, [])
        metrics = step_metrics([one], [], {}, **SETTINGS)
        return [metrics[f"all/{name}_ratio"] for name in ("solve_all", "solve_none", "valid")]

    assert ratios([-1.0, -0.2], "wrong") == [0, 1, 1]
    assert ratios([-1.0, -1.0], "wrong") == [0, 1, 0]
    assert ratios([0.8, 1.0], "correct") == [1, 0, 1]


def test_masked_responses_are_counted_and_their_shared_tokens_are_trained_on():
    branches = [sample(3, 0.0, "length"), sample(2, 1.0)]
    one = problem([trunk(6, 1.0), trunk(4, 0.0)], {0: (2, 4)}, branches)
    metrics = step_metrics([one], [one], {}, **SETTINGS | {"mask_truncated": True})
    assert (metrics["trained_responses"], metrics["masked_responses"]) == (2, 1)
    assert metrics["tokens/valid"] == 6 + 2


def test_tokens(metrics):
    assert metrics["tokens/valid"] == (10 + 4 + 2) + (8 + 8 + 4)  # each sampled token once, trained trees only
    assert metrics["tokens/valid_ratio"] == pytest.approx(36 / (21 + 10 + 11 + 20))
    assert metrics["tokens/generated"] == 120
    assert metrics["tokens/total"] == 500
    assert metrics["trained_responses"] == 3 + 6
    assert metrics["carried_over"] == 3


def test_solve_ratios(metrics):
    def ratios(of: str) -> list[float]:
        return [metrics[f"{of}/{name}"] for name in ("solve_all_ratio", "solve_none_ratio", "valid_ratio")]

    assert ratios("initial") == pytest.approx([2 / 4, 1 / 4, 1 / 4])
    assert ratios("mc") == pytest.approx([0, 1 / 3, 2 / 3])  # the filtered problem has no continuations
    assert ratios("all") == pytest.approx([1 / 4, 1 / 4, 2 / 4])
    assert metrics["all_correct_then_valid_ratio"] == pytest.approx(1 / 2)
    assert metrics["filtered_ratio"] == pytest.approx(1 / 4)


def test_mismatch_of_sampler_and_policy(metrics):
    """Two of 62 tokens differ: by 0.5, and by -0.25."""
    assert metrics["mismatch/mean"] == pytest.approx(0.75 / 62)
    assert metrics["mismatch/max"] == 0.5
    expected = (math.exp(0.5) - 1 - 0.5 + math.exp(-0.25) - 1 + 0.25) / 62
    assert metrics["mismatch/k3"] == pytest.approx(expected)


def test_a_mismatch_beyond_the_range_of_floats_is_a_number():
    far = problem([trunk(4, 0.0), trunk(4, 1.0)], {0: (2,)}, [sample(3, 0.0, drift=5_000.0)])
    assert math.isfinite(step_metrics([far], [far], {}, **SETTINGS)["mismatch/k3"])


def test_branch_places(metrics):
    assert metrics["branch/position"] == pytest.approx(sum([0.3, 0.6, 2 / 4, 2 / 8, 6 / 8, 2 / 8, 4 / 8]) / 7)
    assert metrics["branch/beyond_first_steps_ratio"] == pytest.approx(1 / 4)  # only (2, 6)
    assert metrics["branch/agreement_ratio"] == pytest.approx(5 / 7)  # all but 3 of the first and 4 of the last


def test_update_and_times_are_passed_on(metrics):
    assert metrics["loss/policy"] == 0.25
    assert metrics["update_skipped"] == 0.0
    assert metrics["time/step"] == 3.0
    assert metrics["time/generated_tokens_per_second"] == 60.0


def test_names_without_a_meaning_are_absent():
    """GRPO: no continuations, and here nothing to update with."""
    flat = problem([trunk(4, 0.0), trunk(4, 0.0)], {0: (), 1: ()}, [])
    metrics = step_metrics([flat], [], {}, **SETTINGS)
    assert not [name for name in metrics if name.startswith(("mc/", "branch/", "loss/", "reward/mc"))]
    assert metrics["update_skipped"] == 1.0
    assert metrics["tokens/valid_ratio"] == 0.0
    assert metrics["all_correct_then_valid_ratio"] == 0.0


def test_generated_tokens_are_those_of_the_step(tokenizer):
    """Both for this batch and for the next; in the first step also for its own initial responses."""
    loop = fake_loop(tokenizer)
    done = 0
    for calls in (2, 3, 4):
        metrics = loop.trainer.step().metrics
        sampled = [loop.sampler._complete(r).tokens for call in loop.sampler.calls[done:calls] for r in call]
        assert metrics["tokens/generated"] == sum(map(len, sampled))
        done = calls
    every = [loop.sampler._complete(r).tokens for call in loop.sampler.calls for r in call]
    assert metrics["tokens/total"] == sum(map(len, every))


def test_phases_are_announced_in_order_and_timed(tokenizer):
    heard: list[str] = []
    loop = fake_loop(tokenizer)
    loop.trainer.clock = PhaseClock(heard.append)
    first = loop.trainer.step().metrics
    assert heard == [
        *("generate", "grade", "score"),  # the first batch's initial responses
        *("plan", "generate", "grade", "score", "train", "sync"),
    ]
    second = loop.trainer.step().metrics
    for metrics in (first, second):
        phases = [metrics[f"time/{phase}"] for phase in ("plan", "generate", "grade", "score", "train", "sync")]
        assert all(seconds >= 0 for seconds in phases)
        assert sum(phases) <= metrics["time/step"]


def test_work_beside_a_phase_counts_as_far_as_it_fell_into_it(monkeypatch):
    """The clock's zero is at 100 s; two generations, the second from 110 to 120."""
    now = iter([100.0, 101.0, 105.0, 110.0, 120.0, 120.0, 121.0])
    monkeypatch.setattr("attnrl.rl.clock.time.perf_counter", lambda: next(now))
    clock = PhaseClock()
    for name in ("generate", "generate", "grade"):
        with clock.phase(name):
            pass
    clock.overlapped("grade", [(104.0, 106.0), (112.0, 113.0), (119.0, 120.5), (120.6, 121.0)], during="generate")
    assert clock.seconds == {"generate": 14.0, "grade": 1.0, "step": 21.0, "grade_overlapped": 2.0}
    assert clock.spans == [
        ("generate", 1.0, 5.0),
        ("generate", 10.0, 20.0),
        ("grade", 20.0, 21.0),
        ("grade (overlapped)", 12.0, 13.0),
        ("grade (overlapped)", 19.0, 20.0),
    ]
    clock.overlapped("grade", [(111.0, 111.5)], during="generate")
    assert clock.seconds["grade_overlapped"] == 2.5


# --- docs/metrics.md ------------------------------------------------------------------------------------------------


def every_name(tokenizer) -> set[str]:
    """The names that a run with everything switched on writes into metrics.jsonl."""
    model = helpers.tiny_model()
    policy = LocalPolicy(
        model,
        copy.deepcopy(model),
        loss=LossConfig(kl=0.1, tis=2.0),
        optimizer=OptimizerConfig(),
        branching=BranchingConfig(),
        temperature=1.0,
    )
    updated = policy.update([TrainingRow((1, 2), (3, 4), (-1.0, -1.0), (-1.0, -1.0), (1.0, 1.0))])
    evaluated = EvaluatedSample("p", 0, "", "", ("1",), 1.0, "correct", 3, "stop", rewards={"NAME": 0.5})
    evaluated = Evaluation((evaluated,), 1, {"reward/logged/NAME": 1.0}).metrics()
    loop = fake_loop(tokenizer)
    loop.grader.rewards = {"NAME": 0.5, OVERLONG: -0.5}
    loop.trainer.rewards._log_metric("NAME", 1.0)
    stepped = loop.trainer.step().metrics
    return {*stepped, *updated, *(f"eval/{name}" for name in evaluated)}


def documented_names() -> set[str]:
    rows = [line for line in DOCUMENT.read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    return {name for row in rows for name in re.findall(r"`([^`]+)`", row.split("|")[1])}


def test_every_metric_is_documented_and_nothing_else_is(tokenizer):
    names, documented = every_name(tokenizer), documented_names()
    assert names - documented == set(), "not in docs/metrics.md"
    assert documented - names == set(), "in docs/metrics.md, but never written"
