"""Graceful shutdown: the first SIGINT, SIGTERM or SIGHUP asks the run to stop, a second signal acts at once."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

#: SIGINT is Ctrl-C, SIGHUP a closed terminal (absent on Windows).
STOP_SIGNALS = frozenset({signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)})


@dataclass
class StopRequest:
    """A signal's request to stop the run; set by the signal handler."""

    requested: bool = False


@contextmanager
def stop_on_signal(say: Callable[[str], None]) -> Iterator[StopRequest]:
    """Handle :data:`STOP_SIGNALS` inside the block.

    The first signal sets ``requested``, calls ``say`` with one line and restores the previous handlers, so that the
    second signal acts as usual (Ctrl-C raises KeyboardInterrupt, SIGTERM ends the process).
    """
    stop = StopRequest()
    previous = {number: signal.getsignal(number) for number in STOP_SIGNALS}

    def restore() -> None:
        for number, handler in previous.items():
            signal.signal(number, handler)

    def request(number: int, frame: object) -> None:
        stop.requested = True
        restore()
        say("Stopping after this phase. Press Ctrl-C again to stop immediately.")

    for number in STOP_SIGNALS:
        signal.signal(number, request)
    try:
        yield stop
    finally:
        restore()
