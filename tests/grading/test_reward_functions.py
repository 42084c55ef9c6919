"""Reward functions of the user: signatures, arguments, faults, time limits."""

from __future__ import annotations

import asyncio
import functools
import threading
import time
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from attnrl.errors import UserError
from attnrl.grading.calls import FunctionCaller
from attnrl.grading.functions import CallContext, Fault, RewardFunction, Value, distinct_names
from attnrl.types import Problem, Response

PROBLEMS = [
    Problem("0", "1+1?", ("2", "two"), "sums", {"level": 3, "answer": "so it is 2\n#### 2"}),
    Problem("1", ({"role": "user", "content": "2+3?"},), ("5",), "sums", {"answer": "#### 5", "extra_info": {"k": 1}}),
]
RESPONSES = [
    Response(PROBLEMS[0], "it is 2<end>", (7, 8), plain_text="it is 2"),
    Response(PROBLEMS[1], "5", (9,), "length"),
]


def function(found: Any, reference: str = "my:object") -> RewardFunction:
    return RewardFunction(reference, found, "reward.functions")


def values(found: Any, responses: Sequence[Response] = RESPONSES, timeout: float | None = 60.0) -> list[Value]:
    caller = FunctionCaller(timeout, 4)
    try:
        return caller.call([function(found)], responses, CallContext(step=4, max_steps=9))[0]
    finally:
        caller.close()


def reasons(found: Any, **settings: Any) -> list[str]:
    return [value.reason for value in values(found, **settings) if isinstance(value, Fault)]


def test_trl_gets_every_argument_of_trl() -> None:
    seen: dict[str, Any] = {}

    def reward(prompts: list[Any], completions: list[Any], **columns: Any) -> list[float]:
        seen.update(columns, prompts=prompts, completions=completions)
        columns["log_metric"]("length", 2.0)
        columns["log_extra"]("column", ["a", "b"])
        return [1.0, 2.0]

    assert values(reward) == [1.0, 2.0]
    assert seen["prompts"] == ["1+1?", [{"role": "user", "content": "2+3?"}]]
    assert seen["completions"] == ["it is 2", [{"role": "assistant", "content": "5"}]]
    assert seen["completion_ids"] == [[7, 8], [9]]
    assert (seen["trainer_state"].global_step, seen["trainer_state"].max_steps) == (4, 9)
    assert seen["answer"] == ["so it is 2\n#### 2", "#### 5"]  # the column of the data, as TRL passes it
    assert seen["answers"] == [["2", "two"], ["5"]]
    assert seen["level"] == [3, None]


def test_text_wrapped_as_a_chat_stays_text() -> None:
    seen: dict[str, Any] = {}

    def reward(prompts: list[Any], completions: list[Any]) -> list[float]:
        seen.update(prompts=prompts, completions=completions)
        return [1.0]

    values(reward, [Response(Problem("0", ({"role": "user", "content": "1+1?"},), ("2",), wrapped=True), "2")])
    assert seen == {"prompts": ["1+1?"], "completions": ["2"]}


def test_the_aliases_of_the_true_answer() -> None:
    seen: dict[str, Any] = {}

    def reward(completions: list[Any], solution: list[str], ground_truth: list[str]) -> list[float]:
        seen.update(solution=solution, ground_truth=ground_truth)
        return [0.0, 0.0]

    values(reward)
    assert seen == {"solution": ["2", "5"], "ground_truth": ["2", "5"]}


def test_verl_gets_one_response_at_a_time() -> None:
    seen: list[dict[str, Any]] = []

    def compute_score(data_source: str, solution_str: str, ground_truth: str, extra_info: Any = None) -> Any:
        seen.append(dict(source=data_source, text=solution_str, truth=ground_truth, extra=extra_info))
        return {"score": -1.5, "acc": 0} if ground_truth == "2" else 2

    async def awaited(solution_str: str, ground_truth: str, **rest: Any) -> Any:
        return compute_score(rest["data_source"], solution_str, ground_truth, rest["extra_info"])

    assert values(compute_score) == [-1.5, 2.0]
    assert seen[0]["source"] == "sums" and seen[0]["text"] == "it is 2"
    assert [row["truth"] for row in seen] == ["2", "5"]
    assert [row["extra"] for row in seen] == [dict(PROBLEMS[0].info), {"k": 1}]
    assert values(awaited) == [-1.5, 2.0]


def test_verl_gets_the_ground_truth_of_verl() -> None:
    problem = Problem("0", "?", ("5",), info={"reward_model": {"ground_truth": [5, "five"], "style": "rule"}})

    def compute_score(data_source: str, solution_str: str, ground_truth: Any, extra_info: Any) -> float:
        return float(ground_truth == [5, "five"])

    assert values(compute_score, [Response(problem, "5")]) == [1.0]


class Callable:
    def __call__(self, completions: list[Any], **columns: Any) -> list[float]:
        return [0.5] * len(completions)

    def method(self, completions: list[Any], **columns: Any) -> list[float]:
        return [0.25] * len(completions)


class AsyncCallable:
    async def __call__(self, completions: list[Any], **columns: Any) -> list[float]:
        await asyncio.sleep(0)
        return [0.5] * len(completions)


def scaled(completions: list[Any], scale: float, **columns: Any) -> list[float]:
    return [scale] * len(completions)


async def later(completions: list[Any], **columns: Any) -> list[float]:
    await asyncio.sleep(0)
    return [0.75] * len(completions)


@pytest.mark.parametrize(
    ("found", "value", "name"),
    [
        (Callable, 0.5, "Callable"),
        (Callable(), 0.5, "Callable"),
        (Callable().method, 0.25, "method"),
        (AsyncCallable, 0.5, "AsyncCallable"),
        (functools.partial(scaled, scale=3.0), 3.0, "scaled"),
        (functools.partial(later), 0.75, "later"),
        (later, 0.75, "later"),
        (lambda completions, **columns: torch.tensor([1.5, 1.5]), 1.5, "object"),
        (lambda completions, **columns: later(completions), 0.75, "object"),
        (lambda completion_ids, **columns: (True, True), 1.0, "object"),
    ],
)
def test_every_kind_of_callable(found: Any, value: float, name: str) -> None:
    assert values(found) == [value, value]
    assert function(found).name == name


def test_repeated_names_get_a_number() -> None:
    assert distinct_names([function(later), function(scaled), function(functools.partial(later)), function(later)]) == [
        "later",
        "scaled",
        "later_2",
        "later_3",
    ]


class NeedsArgument:
    def __init__(self, size: int) -> None:
        pass

    def __call__(self, completions: list[Any]) -> list[float]:
        return []


@pytest.mark.parametrize(
    ("found", "named"),
    [
        (3, "int"),
        (lambda text: 1.0, "text"),
        (lambda completions, /: [1.0], "positional-only"),
        (torch.nn.Linear(2, 2), "Linear"),
        (torch.nn.Linear, "Linear"),
        (NeedsArgument, "size"),
        (type("NotCallable", (), {}), "NotCallable"),
        (print, "print"),
    ],
)
def test_what_cannot_be_called_is_refused(found: Any, named: str) -> None:
    with pytest.raises(UserError) as caught:
        function(found, f"my:{named}")
    assert "reward.functions: my:" in str(caught.value) and named in str(caught.value)


def test_a_missing_column_is_named_with_near_misses() -> None:
    missing = function(lambda completions, levl: [0.0]).missing_columns(PROBLEMS)
    assert missing is not None and "levl" in missing and "did you mean level" in missing
    assert function(lambda completions, level: [0.0]).missing_columns(PROBLEMS) is None


def raising(*bad: str, error: type[BaseException] = ValueError) -> Any:
    def reward(completions: list[Any], **columns: Any) -> list[float]:
        texts = [text if isinstance(text, str) else text[0]["content"] for text in completions]
        if set(texts) & set(bad):
            raise error("boom")
        return [float(len(text)) for text in texts]

    return reward


def test_only_rows_that_raise_are_not_judged() -> None:
    async def awaited(completions: list[Any], **columns: Any) -> list[float]:
        result: list[float] = raising("5")(completions)
        return result

    for found in (raising("5"), awaited, raising("5", error=SystemExit)):
        judged, fault = values(found)
        assert judged == 7.0
        assert isinstance(fault, Fault) and fault.raised
        assert "test_reward_functions.py, line" in fault.reason


@pytest.mark.parametrize(
    ("result", "named"),
    [
        (None, "NoneType"),
        (1.0, "float"),
        ("ab", "str"),
        ([1.0], "1 rewards for 2"),
        ([float("nan"), float("-inf")], "nan"),
        (["1.0", {"score": 1}], "str"),
        (torch.tensor(1.0), "Tensor"),
    ],
)
def test_unusable_results_are_faults(result: Any, named: str) -> None:
    found = reasons(lambda completions, **columns: result)
    assert len(found) == 2 and named in found[0]


def test_a_generator_is_read_and_its_exception_is_a_fault() -> None:
    assert values(lambda completions, **columns: (len(text) for text in completions))[0] == 7.0
    assert "ZeroDivisionError" in reasons(lambda completions, **columns: (1 / 0 for _ in completions))[0]


def test_a_cancelled_async_call_is_a_fault() -> None:
    async def cancelled(completions: list[Any], **columns: Any) -> list[float]:
        raise asyncio.CancelledError

    assert len(reasons(cancelled)) == 2


def test_none_does_not_apply() -> None:
    assert values(lambda completions, **columns: [None, -2]) == [None, -2.0]


def test_time_limits() -> None:
    def slow(completions: list[Any], **columns: Any) -> list[float]:
        time.sleep(20)
        return [1.0, 1.0]

    async def slow_later(completions: list[Any], **columns: Any) -> list[float]:
        await asyncio.sleep(20)
        return [1.0, 1.0]

    def compute_score(solution_str: str, ground_truth: str, **rest: Any) -> float:
        time.sleep(20 if ground_truth == "2" else 0)
        return 1.0

    started = time.monotonic()
    for found in (slow, slow_later):
        assert all("0.05 s" in reason for reason in reasons(found, timeout=0.05))
        assert len(reasons(found, timeout=0.05)) == 2
    late, judged = values(compute_score, timeout=0.05)
    assert isinstance(late, Fault) and judged == 1.0
    threaded: list[str] = []
    thread = threading.Thread(target=lambda: threaded.extend(reasons(slow, timeout=0.05)))
    thread.start()
    thread.join()
    assert len(threaded) == 2
    assert time.monotonic() - started < 10


def test_async_functions_run_side_by_side_within_the_limit() -> None:
    running, most = 0, 0

    async def compute_score(solution_str: str, ground_truth: str, **rest: Any) -> float:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.01)
        running -= 1
        return 1.0

    assert values(compute_score, RESPONSES * 8) == [1.0] * 16
    assert most == 4


def test_one_event_loop_serves_every_call() -> None:
    loops: set[int] = set()

    async def reward(completions: list[Any], **columns: Any) -> list[float]:
        loops.add(id(asyncio.get_running_loop()))
        return [1.0, 1.0]

    caller = FunctionCaller(60.0, 4)
    for _ in range(3):
        assert caller.call([function(reward)], RESPONSES, CallContext()) == [[1.0, 1.0]]
    caller.close()
    assert len(loops) == 1
