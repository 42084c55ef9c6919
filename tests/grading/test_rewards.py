"""The reward of a response: weights, verdicts, truncation, the overlong penalty, thoughts that never end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attnrl.config.reward import RewardConfig
from attnrl.errors import GraderError, UserError
from attnrl.grading.answers import without_unfinished_thought
from attnrl.grading.registry import build_grader
from attnrl.grading.rewards import OVERLONG, RewardManager, soft_overlong_penalty
from attnrl.grading.rules import RulesGrader
from attnrl.types import Grade, Grader, Problem, Response

PROBLEM = Problem("p", "2+3?", ("5",))


def length(completions: Sequence[str], **columns: Any) -> list[float]:
    return [float(len(text)) for text in completions]


def digits_only(completions: Sequence[str], **columns: Any) -> list[float | None]:
    return [-2.0 if text.isdigit() else None for text in completions]


def fails(completions: Sequence[str], **columns: Any) -> list[float]:
    raise RuntimeError("the judge is away")


def names_itself(completions: Sequence[str], **columns: Any) -> list[float]:
    raise RuntimeError(completions[0])


def logs(completions: Sequence[str], log_metric: Any, trainer_state: Any) -> list[float]:
    log_metric("mine", float(len(completions)))
    return [float(trainer_state.global_step)] * len(completions)


def rewards(*names: str, grader: Grader | None = None, limit: int = 0, **settings: Any) -> RewardManager:
    functions = tuple(f"{__name__}:{name}" for name in names)
    return RewardManager(grader, RewardConfig(functions=functions, **settings), max_new_tokens=limit, max_steps=10)


def grade(manager: RewardManager, *texts: str, **fields: Any) -> list[Grade]:
    with manager:
        return manager.grade([Response(PROBLEM, text, **fields) for text in texts], step=3)


def test_the_weighted_sum_is_the_reward_and_the_grader_gives_the_verdict() -> None:
    manager = rewards("length", "digits_only", grader=RulesGrader(), weights=(0.5, 2.0))
    box, number = grade(manager, "\\boxed{5}", "123")
    assert (box.reward, box.verdict, box.answer) == (4.5, "correct", "5")  # the second does not apply
    assert (number.reward, number.verdict, number.answer) == (1.5 - 4.0, "no_answer", None)
    assert box.rewards == {"length": 9.0, "digits_only": None}
    assert number.rewards == {"length": 3.0, "digits_only": -2.0}


@pytest.mark.parametrize(("correct_from", "verdicts"), [(1.0, ["wrong", "correct"]), (4.0, ["wrong", "wrong"])])
def test_without_a_grader_the_reward_decides(correct_from: float, verdicts: list[str]) -> None:
    grades = grade(rewards("length", correct_from=correct_from), "", "abc")
    assert [one.reward for one in grades] == [0.0, 3.0]
    assert [one.verdict for one in grades] == verdicts


def test_a_function_as_grader_decides_both() -> None:
    manager = rewards(grader=build_grader(f"{__name__}:length"), correct_from=2.0)
    grades = grade(manager, "a", "ab")
    assert [(one.reward, one.verdict, one.rewards) for one in grades] == [(1.0, "wrong", {}), (2.0, "correct", {})]


def test_a_response_that_no_function_applies_to_has_no_reward() -> None:
    (nothing,) = grade(rewards("digits_only", grader=RulesGrader()), "\\boxed{5}")
    assert (nothing.reward, nothing.verdict, nothing.fault) == (None, "correct", None)
    for manager in (rewards("digits_only"), rewards(grader=build_grader(f"{__name__}:digits_only"))):
        (nothing,) = grade(manager, "none")
        assert (nothing.reward, nothing.verdict, nothing.fault) == (None, "not_judged", None)
        manager.require_few_faults(0.0)  # no fault: the function does not apply


def test_a_function_that_fails_leaves_no_reward_and_the_reasons_are_counted() -> None:
    manager = rewards("length", "fails", grader=RulesGrader())
    grades = grade(manager, "\\boxed{5}", "7")
    assert [(one.reward, one.verdict) for one in grades] == [(None, "correct"), (None, "no_answer")]
    assert grades[0].rewards == {"length": 9.0, "fails": None}
    manager.require_few_faults(1.0)
    with pytest.raises(GraderError) as failed:
        manager.require_few_faults(0.9)
    said = str(failed.value)
    assert "2 of 2" in said and "fails: RuntimeError" in said and "the judge is away" in said


def test_faults_with_a_text_of_their_own_take_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("attnrl.grading.rewards.MAX_KNOWN", 3)
    manager = rewards("names_itself")
    grade(manager, *map(str, range(20)))
    with pytest.raises(GraderError) as failed:
        manager.require_few_faults(0.5)
    assert "20 of 20" in str(failed.value) and "17 x other reasons" in str(failed.value)


def test_metrics_of_a_function_and_the_step() -> None:
    manager = rewards("logs")
    assert grade(manager, "a", "b")[0].reward == 3.0
    assert manager.take_metrics() == {"reward/logged/mine": 2.0}
    assert manager.take_metrics() == {}


class Broken:
    overlaps = True

    def __init__(self) -> None:
        self.calls = 0

    def grade(self, problems: Sequence[Problem], responses: Sequence[str]) -> list[Grade]:
        self.calls += 1
        if self.calls > 1:
            raise UserError("grading workers: 3 could not start")
        return [Grade(1.0, "correct")] * len(responses)


def test_workers_that_cannot_start_end_no_run_that_has_begun() -> None:
    manager = rewards(grader=Broken())
    assert grade(manager, "\\boxed{5}")[0].reward == 1.0
    (one,) = grade(manager, "\\boxed{5}")
    assert (one.reward, one.verdict) == (None, "not_judged")
    assert one.fault is not None and "could not start" in one.fault
    with_function = rewards("length", grader=Broken())
    assert [grade(with_function, "\\boxed{5}")[0].reward for _ in range(2)] == [9.0, None]  # no verdict for the filters
    broken = Broken()
    broken.calls = 1
    with pytest.raises(UserError, match="could not start"):
        grade(rewards(grader=broken), "\\boxed{5}")


def test_truncated_responses_get_zero() -> None:
    for setting, reward in (("zero", 0.0), ("as_is", 9.0), ("mask", 9.0)):
        manager = rewards("length", grader=RulesGrader(), truncated=setting)
        (cut,) = grade(manager, "\\boxed{5}", finish_reason="length")
        assert (cut.reward, cut.verdict) == (reward, "correct")
        assert grade(manager, "\\boxed{5}")[0].reward == 9.0


@pytest.mark.parametrize(("tokens", "penalty"), [(10, 0.0), (60, 0.0), (80, -0.5), (100, -1.0)])
def test_the_soft_overlong_penalty(tokens: int, penalty: float) -> None:
    assert soft_overlong_penalty(tokens, 100, 40) == penalty
    manager = rewards(grader=RulesGrader(), limit=100, overlong_buffer=40, overlong_penalty=3.0)
    (one,) = grade(manager, "\\boxed{5}", tokens=(0,) * tokens)
    assert (one.reward, one.verdict) == (1.0 + 3.0 * penalty, "correct")
    assert one.rewards == {OVERLONG: 3.0 * penalty}


@given(st.integers(1, 50), st.integers(1, 100), st.integers(0, 120))
def test_the_penalty_never_rewards_length(buffer: int, longest: int, length: int) -> None:
    here, next_one = (soft_overlong_penalty(n, longest, buffer) for n in (length, length + 1))
    assert -1.0 <= next_one <= here <= 0.0
    assert here - next_one <= 1 / buffer + 1e-12


@pytest.mark.parametrize(
    ("text", "thinking", "left"),
    [
        ("<think> \\boxed{5}", False, ""),
        ("<think> a </think> \\boxed{5}", False, "<think> a </think> \\boxed{5}"),
        ("<think> a </think> \\boxed{5} <think> \\boxed{6}", False, "<think> a </think> \\boxed{5} "),
        ("first \\boxed{5}", True, ""),
        ("first \\boxed{5} </think> \\boxed{6}", True, "first \\boxed{5} </think> \\boxed{6}"),
        ("\\boxed{5}", False, "\\boxed{5}"),
    ],
)
def test_a_thought_that_never_ends_is_no_answer(text: str, thinking: bool, left: str) -> None:
    assert without_unfinished_thought(text, thinking=thinking) == left
    for grader in (RulesGrader(), RulesGrader(flexible=True)):
        (found,) = grade(rewards(grader=grader), text, thinking=thinking)
        assert (found.verdict == "no_answer") == (not left)
    (accepted,) = grade(rewards(grader=RulesGrader(), while_thinking=True), text, thinking=thinking)
    assert accepted.verdict != "no_answer"


def test_another_mark_of_thinking() -> None:
    assert without_unfinished_thought("[THINK] \\boxed{5}", think_end="[/THINK]") == ""
    assert without_unfinished_thought("a <think> b", think_end="[/THINK]") == "a <think> b"


def test_a_function_reads_the_whole_text() -> None:
    manager = rewards(grader=build_grader(f"{__name__}:length"))
    assert grade(manager, "<think> \\boxed{5}", thinking=True)[0].reward == 17.0


@pytest.mark.parametrize(("name", "named"), [("fails", "RuntimeError"), ("missing", "missing")])
def test_the_probe_names_function_and_fault(name: str, named: str) -> None:
    with pytest.raises(UserError) as caught:
        rewards(name).probe([PROBLEM])
    assert f"{__name__}:{name}" in str(caught.value) or name == "missing"
    assert named in str(caught.value)


def test_the_probe_calls_with_the_boxed_answer() -> None:
    rewards("length", "logs").probe([PROBLEM])
    with pytest.raises(UserError, match="123"):
        rewards("fails").probe([Problem("q", "?", ("123",))])


@pytest.mark.parametrize(
    "settings",
    [
        {"weights": (1.0,)},
        {"weights": (1.0, float("nan"))},
        {"timeout": 0},
        {"concurrency": 0},
        {"overlong_buffer": -1},
    ],
)
def test_settings_are_checked(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        RewardConfig(functions=("a:b", "a:c"), **settings)
