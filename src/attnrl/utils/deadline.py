"""A time limit on a block of code in the main thread, by SIGALRM."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

SHORTEST = 1e-6  # seconds; a timer of 0 seconds would be off


class DeadlineError(BaseException):
    """Deadline exceeded. A BaseException, so that no ``except Exception`` in the limited code swallows the error."""


@contextmanager
def deadline(seconds: float) -> Iterator[None]:
    """Raise :class:`DeadlineError` in the body after ``seconds``; no effect outside the main thread and on Windows.

    An outer deadline (or another SIGALRM timer, such as the watchdog's) keeps running: the body ends at the earlier of
    both times, and afterwards the outer timer is set again to the time left. A call of compiled code that does not
    return to Python is not interrupted, because Python runs signal handlers between bytecodes.

    Raises:
        DeadlineError: the body did not end within ``seconds``.
    """
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return

    def interrupt(number: int, frame: object) -> None:
        raise DeadlineError

    outer_handler = signal.signal(signal.SIGALRM, interrupt)
    started = time.monotonic()
    outer_seconds, outer_interval = signal.setitimer(signal.ITIMER_REAL, seconds)
    if outer_seconds and outer_seconds < seconds:
        signal.setitimer(signal.ITIMER_REAL, outer_seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, outer_handler)
        if outer_seconds:
            left = outer_seconds - (time.monotonic() - started)
            signal.setitimer(signal.ITIMER_REAL, max(left, SHORTEST), outer_interval)
