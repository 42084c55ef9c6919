"""A watch over the sampler: one that fails says so in one way, and one that stalls does not hold up a run for ever.

A generation has stalled when the sampler has given no sign of life, which is asking whether it is ``should_stop``, for
``seconds``. Then an exception ends whatever Python is waiting in; where nothing in Python is, such as in a kernel that
never returns, the process is ended some time later: the run goes on from its last checkpoint.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import TypeVar

from attnrl.errors import one_line
from attnrl.types import Completion, Request, Sampler

T = TypeVar("T")

GRACE_SECONDS = 60.0  # for the exception to be heard


class SamplerError(Exception):
    """The sampler has failed or stalled; its message is one line, and what it raised is the ``__cause__``."""


class _StallError(BaseException):
    """Raised by the signal; no Exception, so that nobody on the way takes it for one of theirs."""


class WatchedSampler:
    """A sampler under watch; see the module. Everything it raises while it samples is a :class:`SamplerError`.

    The watch needs SIGALRM, and so the main thread; in others, and without it, only failures are noticed.
    """

    def __init__(self, sampler: Sampler, seconds: float | None) -> None:
        """``seconds`` without a sign of life are a stall; None waits for ever."""
        self.sampler = sampler
        self.seconds = seconds

    def generate(
        self,
        requests: Sequence[Request],
        *,
        on_completion: Callable[[int, Completion], None] | None = None,
        should_stop: Callable[[Collection[int]], bool] | None = None,
    ) -> list[Completion]:
        """See :meth:`attnrl.types.Sampler.generate`.

        Raises:
            SamplerError: the sampler has raised, or stalled.
            BaseException: what ``on_completion`` or ``should_stop`` has raised, as it is.
        """
        ours: list[BaseException] = []

        @contextmanager
        def callback() -> Iterator[None]:
            try:
                yield
            except BaseException as error:
                ours.append(error)
                raise

        def finished(index: int, completion: Completion) -> None:
            if on_completion is not None:
                with callback():
                    on_completion(index, completion)

        def alive(unfinished: Collection[int]) -> bool:
            beat()
            with callback():
                return should_stop is not None and should_stop(unfinished)

        try:
            with _watch(self.seconds) as beat:
                return self.sampler.generate(requests, on_completion=finished, should_stop=alive)
        except _StallError:
            raise SamplerError(f"the sampler has stalled: nothing for {self.seconds:g} s") from None
        except Exception as error:
            if error in ours:
                raise
            raise SamplerError(f"the sampler has failed ({type(error).__name__}: {one_line(error)})") from error

    def sync(self) -> None:
        """See :meth:`attnrl.types.Sampler.sync`."""
        self.sampler.sync()


def retry_on_sampler_error(take: Callable[[], T], retries: int, say: Callable[[str], None]) -> T:
    """The result of ``take``, which is called so many times more when the sampler fails in it; ``say`` hears of that.

    Raises:
        SamplerError: that of the last time.
    """
    for _ in range(retries):
        try:
            return take()
        except SamplerError as error:
            say(f"{error}; it is begun again")
    return take()


@contextmanager
def _watch(seconds: float | None) -> Iterator[Callable[[], None]]:
    """Raise :class:`_StallError` in the block when what this gives has not been called for so many seconds."""
    in_main_thread = threading.current_thread() is threading.main_thread()
    if seconds is None or not hasattr(signal, "setitimer") or not in_main_thread:
        yield lambda: None
        return
    heard = time.monotonic()
    over = threading.Event()

    def beat() -> None:
        nonlocal heard
        heard = time.monotonic()
        signal.setitimer(signal.ITIMER_REAL, seconds)

    def stalled(number: int, frame: FrameType | None) -> None:
        raise _StallError

    def last_resort() -> None:
        while not over.wait(1.0):
            if time.monotonic() - heard > seconds + GRACE_SECONDS:
                _end_process(seconds)

    former = signal.signal(signal.SIGALRM, stalled)
    threading.Thread(target=last_resort, name="watch", daemon=True).start()
    try:
        beat()
        yield beat
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, former)
        over.set()


def _end_process(seconds: float) -> None:
    """The last resort: not even an exception has been heard."""
    print(
        f"attnrl: the sampler has stalled: nothing for {seconds:g} s, and it cannot be interrupted; the same command "
        "continues from the last checkpoint",
        file=sys.stderr,
        flush=True,
    )
    os._exit(1)
