import signal
import threading
import time

import pytest

from attnrl.utils.deadline import DeadlineError, deadline


def spin(seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass


def test_an_endless_body_ends_at_the_deadline() -> None:
    started = time.monotonic()
    with pytest.raises(DeadlineError), deadline(0.1):
        while True:
            try:
                spin(0.01)
            except Exception:
                pytest.fail("an Exception would be swallowed by code that catches Exception")
    assert 0.1 <= time.monotonic() - started < 2


def test_a_body_in_time_leaves_neither_timer_nor_handler() -> None:
    before = signal.getsignal(signal.SIGALRM)
    with deadline(5):
        value = sum(range(10))
    assert value == 45
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    assert signal.getsignal(signal.SIGALRM) is before


def test_the_outer_deadline_holds_inside_and_after_a_longer_inner_deadline() -> None:
    with pytest.raises(DeadlineError), deadline(0.2):
        with deadline(10):
            spin(0.05)
        spin(5)
    started = time.monotonic()
    with pytest.raises(DeadlineError), deadline(0.1), deadline(10):
        spin(5)
    assert time.monotonic() - started < 2


def test_an_inner_deadline_leaves_the_rest_of_the_outer_deadline() -> None:
    with deadline(5):
        with pytest.raises(DeadlineError), deadline(0.05):
            spin(5)
        left, _ = signal.getitimer(signal.ITIMER_REAL)
    assert 3 < left < 4.95


def test_without_effect_outside_the_main_thread() -> None:
    ended = []

    def body() -> None:
        with deadline(0.01):
            time.sleep(0.05)
        ended.append(True)

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    assert ended == [True]
