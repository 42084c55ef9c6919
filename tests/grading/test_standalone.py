"""The grader as a function: ``from attnrl.grading import grade, grade_batch``."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import attnrl.grading
from attnrl.grading import grade, grade_batch
from attnrl.grading.math import MathGrader
from attnrl.types import Grade

COMPUTED = r"\boxed{\sqrt{36}}"  # needs a worker
FORK_SECONDS = 60


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def assistant(content: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content}


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [
        ("5", "correct"),
        (5, "correct"),
        (5.0, "correct"),
        (np.float32(5), "correct"),
        (np.int64(5), "correct"),
        (["4", 5], "correct"),
        (("4", "5"), "correct"),
        (np.array(["4", "5"]), "correct"),
        (["4", "6"], "wrong"),
        ("2 + 3 = 5\n#### 5", "correct"),
        (r"So $x = \boxed{5}$.", "correct"),
        ("", "bad_gold"),
        ([], "bad_gold"),
    ],
)
def test_an_answer_is_text_a_number_or_several(answer: Any, verdict: str) -> None:
    assert grade(r"It is \boxed{5}.", answer).verdict == verdict


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        (r"\boxed{5}", Grade(1.0, "correct", "5")),
        ("none", Grade(0.0, "no_answer")),
        ([assistant(r"\boxed{5}")], Grade(1.0, "correct", "5")),
        ([assistant(r"\boxed{5}"), user("sure?"), assistant(r"\boxed{6}")], Grade(0.0, "wrong", "6")),
        ([assistant(r"\boxed{6}"), {"role": "tool", "content": r"\boxed{5}"}], Grade(0.0, "wrong", "6")),
        ([assistant([{"type": "image"}, {"type": "text", "text": r"\boxed{5}"}])], Grade(1.0, "correct", "5")),
        ([assistant(None)], Grade(0.0, "no_answer")),
        ([], Grade(0.0, "no_answer")),
        ([SimpleNamespace(role="assistant", content=r"\boxed{5}")], Grade(1.0, "correct", "5")),
    ],
)
def test_a_response_is_text_or_chat_messages(response: Any, expected: Grade) -> None:
    assert grade(response, "5") == expected


@pytest.mark.parametrize(
    "prompt",
    [
        "What is $2+3$?",
        [{"role": "system", "content": "Think."}, user("What is $2+3$?")],
        (SimpleNamespace(role="user", content="What is $2+3$?"),),
        [user([{"type": "text", "text": "What is $2+3$?"}, {"type": "image"}])],
    ],
)
def test_a_copy_of_the_prompt_is_wrong(prompt: Any) -> None:
    assert grade(r"\boxed{2+3}", "5").verdict == "correct"
    assert grade(r"\boxed{2+3}", "5", prompt).verdict == "wrong"


def test_a_batch_is_graded_in_order() -> None:
    responses = [r"\boxed{2+3}", r"\boxed{2+3}", COMPUTED, [assistant(r"\boxed{7}")], "none"]
    answers = ["5", 5, ["1", "6"], "8", "9"]
    prompts = ["What is $2+3$?", "", [user("?")], "", ""]
    expected = [grade(*row) for row in zip(responses, answers, prompts, strict=True)]
    assert [row.verdict for row in expected] == ["wrong", "correct", "correct", "wrong", "no_answer"]
    assert grade_batch(responses, answers, prompts) == expected
    assert [row.verdict for row in grade_batch(responses[:2], answers[:2])] == ["correct", "correct"]
    assert grade_batch([], []) == []


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (([r"\boxed{5}"], ["5", "6"]), ValueError),
        (([r"\boxed{5}"], ["5"], []), ValueError),
        ((["5", "6"], ["5", "6"], ["?"]), ValueError),
        (([[user(r"\boxed{5}")]], ["5"]), ValueError),
        ((r"\boxed{5}", ["5"]), TypeError),
        (([r"\boxed{5}"], "5"), TypeError),
        (([r"\boxed{5}"], 5), TypeError),
        (([r"\boxed{5}"], ["5"], "?"), TypeError),
        (([None], ["5"]), TypeError),
        (([5], ["5"]), TypeError),
        (([assistant("5")], ["5"]), TypeError),
        (([["5"]], ["5"]), TypeError),
        (([[assistant(5)]], ["5"]), TypeError),
        (([r"\boxed{5}"], [None]), TypeError),
        (([r"\boxed{5}"], [True]), TypeError),
        (([r"\boxed{5}"], [["5", None]]), TypeError),
        (([r"\boxed{5}"], [b"5"]), TypeError),
        (([r"\boxed{5}"], [{"5": "5"}]), TypeError),
        (([r"\boxed{5}"], ["5"], [None]), TypeError),
        (([r"\boxed{5}"], ["5"], [[{"content": "?"}]]), TypeError),
    ],
)
def test_bad_arguments_are_refused(arguments: tuple[Any, ...], error: type[Exception]) -> None:
    with pytest.raises(error):
        grade_batch(*arguments)


def test_threads_share_the_workers() -> None:
    texts = [rf"\boxed{{\sqrt{{{n * n}}}}}" for n in range(2, 14)]
    with ThreadPoolExecutor(6) as threads:
        grades = list(threads.map(grade, texts, range(2, 14)))
    assert [row.verdict for row in grades] == ["correct"] * 12


@pytest.fixture
def slow_grader(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Hold the lock of the shared grader in a second thread, as during a long comparison."""
    entered, leave = threading.Event(), threading.Event()

    def wait(*_: Any) -> list[Grade]:
        entered.set()
        leave.wait(FORK_SECONDS)
        return [Grade(0.0, "error")]

    with monkeypatch.context() as patch:
        patch.setattr(MathGrader, "grade", wait)
        thread = threading.Thread(target=grade, args=("", "5"))
        thread.start()
        assert entered.wait(FORK_SECONDS)
    yield leave
    leave.set()
    thread.join()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_the_child_of_a_fork_grades_while_a_thread_of_the_parent_holds_the_lock(slow_grader: threading.Event) -> None:
    child = os.fork()
    if child == 0:
        signal.alarm(FORK_SECONDS)  # a deadlock ends with a signal
        os._exit(0 if grade(COMPUTED, 6).verdict == "correct" else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_the_workers_start_at_first_need_and_end_with_the_process() -> None:
    code = f"""
import os
from attnrl.grading import grade, standalone
assert standalone._SHARED._grader is None
assert grade("\\\\boxed{{5}}", 5).reward == 1
assert standalone._SHARED._grader.pool.started == 0
assert grade({COMPUTED!r}, 6).reward == 1
print(*(worker.process.pid for worker in standalone._SHARED._grader.pool._workers))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    processes = [int(word) for word in done.stdout.split()]
    assert processes
    for process in processes:
        with pytest.raises(ProcessLookupError):
            os.kill(process, 0)


def test_the_names_of_the_package() -> None:
    assert [getattr(attnrl.grading, name).__name__ for name in attnrl.grading.__all__] == ["grade", "grade_batch"]
    with pytest.raises(AttributeError, match="nothing"):
        _ = attnrl.grading.nothing
