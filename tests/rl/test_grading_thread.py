"""Grading beside sampling: the same grades whatever the timing, errors in the main thread, no thread left behind."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attnrl.grading.math import MathGrader
from attnrl.grading.registry import build_grader
from attnrl.grading.rewards import RewardManager
from attnrl.grading.rules import RulesGrader
from attnrl.rl.grading_thread import OverlappedGrading
from attnrl.tasks.reasoning_gym import ReasoningGymGrader
from attnrl.types import Grade, Problem, Response

PROBLEM = Problem("p", "?", ("1",))


class Grader:
    """Gives a response its own number as its answer, after doing what it is told to do first."""

    def __init__(self, first: Callable[[Sequence[str]], object] = lambda responses: None, *, overlaps: bool = True):
        self.overlaps = overlaps
        self.first = first
        self.batches: list[list[str]] = []
        self.threads: set[threading.Thread] = set()

    def grade(self, problems: Sequence[Problem], responses: Sequence[str]) -> list[Grade]:
        self.threads.add(threading.current_thread())
        self.batches.append(list(responses))
        self.first(responses)
        return [Grade(0.5, "wrong", response) for response in responses]


def grading_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "grading"]


@pytest.fixture(autouse=True)
def _no_thread_is_left():
    yield
    assert grading_threads() == []


@given(
    st.permutations(range(12)),
    st.lists(st.sampled_from([0.0, 0.0, 0.0005]), min_size=12, max_size=12),
    st.booleans(),
)
def test_every_response_gets_its_own_grade_once_whatever_the_timing(order, pauses, overlaps):
    grader = Grader(lambda responses: time.sleep(0.0003 * len(responses)), overlaps=overlaps)
    with OverlappedGrading(RewardManager(grader), 1) as grading:
        for index, pause in zip(order, pauses, strict=True):
            time.sleep(pause)
            grading.submit(index, Response(PROBLEM, f"response {index}"))
        grades = grading.results()
    assert grades == {index: Grade(0.5, "wrong", f"response {index}") for index in range(12)}
    assert sorted(response for batch in grader.batches for response in batch) == sorted(
        f"response {index}" for index in range(12)
    )


def test_what_gathers_while_the_grader_works_is_handed_over_together():
    begun, go_on = threading.Event(), threading.Event()

    def wait(responses: Sequence[str]) -> None:
        begun.set()
        assert go_on.wait(10)

    grader = Grader(wait)
    with OverlappedGrading(RewardManager(grader), 1) as grading:
        grading.submit(0, Response(PROBLEM, "0"))
        assert begun.wait(10)  # it works before all responses are there
        for index in (3, 1, 2):
            grading.submit(index, Response(PROBLEM, str(index)))
        go_on.set()
        grading.results()
    assert grader.batches == [["0"], ["3", "1", "2"]]
    assert threading.main_thread() not in grader.threads
    assert len(grading.spans) == 2
    assert all(start <= end for start, end in grading.spans)


def test_a_grader_that_does_not_overlap_is_called_once_in_order_in_the_main_thread():
    grader = Grader(overlaps=False)
    with OverlappedGrading(RewardManager(grader), 1) as grading:
        for index in (2, 0, 1):
            grading.submit(index, Response(PROBLEM, str(index)))
        assert grader.batches == []
        grading.results()
    assert grader.batches == [["0", "1", "2"]]
    assert grader.threads == {threading.main_thread()}
    assert grading.spans == []


def test_nothing_to_grade():
    for overlaps in (True, False):
        with OverlappedGrading(RewardManager(Grader(overlaps=overlaps)), 1) as grading:
            assert grading.results() == {}


class GraderError(Exception):
    """The failure of a grader."""


def fail(responses: Sequence[str]) -> None:
    raise GraderError


@pytest.mark.parametrize("overlaps", [True, False])
def test_an_error_of_the_grader_is_raised_by_results(overlaps):
    with pytest.raises(GraderError), OverlappedGrading(RewardManager(Grader(fail, overlaps=overlaps)), 1) as grading:
        grading.submit(0, Response(PROBLEM, "0"))
        grading.results()


@pytest.mark.parametrize("ask", ["check", "submit"])
def test_an_error_of_the_grader_is_raised_while_sampling_goes_on(ask):
    """Long before the last response: the sampler asks now and then."""
    with pytest.raises(GraderError), OverlappedGrading(RewardManager(Grader(fail)), 1) as grading:
        grading.submit(0, Response(PROBLEM, "0"))
        for index in range(1, 10_000):
            time.sleep(0.001)
            if ask == "check":
                grading.check()
            else:
                grading.submit(index, Response(PROBLEM, "later"))


def test_too_few_grades_are_an_error():
    grader = Grader()
    grader.grade = lambda problems, responses: []
    with pytest.raises(ValueError, match="zip"), OverlappedGrading(RewardManager(grader), 1) as grading:
        grading.submit(0, Response(PROBLEM, "0"))
        grading.results()


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_an_interrupted_generation_drops_what_waits_and_ends_the_thread(error):
    begun, go_on = threading.Event(), threading.Event()

    def wait(responses: Sequence[str]) -> None:
        begun.set()
        assert go_on.wait(10)

    grader = Grader(wait)
    with pytest.raises(error), OverlappedGrading(RewardManager(grader), 1) as grading:
        grading.submit(0, Response(PROBLEM, "in hand"))
        assert begun.wait(10)
        grading.submit(1, Response(PROBLEM, "waits"))
        threading.Timer(0.02, go_on.set).start()
        raise error
    assert grader.batches == [["in hand"]]


# --- which graders may ------------------------------------------------------------------------------------------------


def rewards(completions: Sequence[str], **columns: object) -> list[float]:
    return [float("1" in completion) for completion in completions]


async def awaited(completions: Sequence[str], **columns: object) -> list[float]:
    return rewards(completions)


awaited.overlaps = True  # type: ignore[attr-defined]


def test_which_graders_overlap():
    assert RulesGrader.overlaps
    assert MathGrader.overlaps
    assert not ReasoningGymGrader.overlaps  # its deadline is a signal
    assert not build_grader(f"{__name__}:rewards").overlaps  # nobody knows what it does
    assert build_grader(f"{__name__}:awaited").overlaps


@pytest.mark.parametrize("name", ["rewards", "awaited"])
def test_functions_of_the_user_grade_as_they_do_afterwards(name):
    grader = build_grader(f"{__name__}:{name}")
    responses = ["1", "2", "11"]
    with OverlappedGrading(RewardManager(grader), 1) as grading:
        for index, response in enumerate(responses):
            grading.submit(index, Response(PROBLEM, response))
        grades = grading.results()
    assert [grades[index] for index in range(3)] == grader.grade([PROBLEM] * 3, responses)


def test_math_with_its_workers_grades_as_it_does_afterwards():
    problems = [Problem("p", "?", ("\\frac{1}{2}",))] * 4
    responses = ["\\boxed{0.5}", "\\boxed{\\frac{3}{6}}", "\\boxed{3}", "none"]
    with MathGrader(workers=1) as grader:
        with OverlappedGrading(RewardManager(grader), 1) as grading:
            for index, response in enumerate(responses):
                grading.submit(index, Response(problems[index], response))
            grades = grading.results()
        assert [grades[index] for index in range(4)] == grader.grade(problems, responses)
    assert [grades[index].verdict for index in range(4)] == ["correct", "correct", "wrong", "no_answer"]
