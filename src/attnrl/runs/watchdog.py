"""A watchdog for the sampler: reports failures as :class:`SamplerError`, and interrupts a stalled sampler.

The sampler sends a heartbeat by calling ``should_stop``. Without a heartbeat for ``seconds``, SIGALRM raises an
exception in the main thread. If the exception is not delivered within :data:`GRACE_SECONDS`, because native code
(a CUDA kernel) never returns to Python, a thread ends the process; the run then resumes from the last checkpoint.
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

GRACE_SECONDS = 60.0  # between SIGALRM and the end of the process


class SamplerError(Exception):
    """A failed or stalled sampler. The message is one line; ``__cause__`` is the sampler's exception, if any."""


class _StallError(BaseException):
    """Raised by the SIGALRM handler; not an Exception, so that no ``except Exception`` swallows the stall."""


class WatchedSampler:
    """A sampler under the watchdog: every exception of the sampler becomes a :class:`SamplerError`.

    Stall detection needs SIGALRM and the main thread; elsewhere only failures are reported.
    """

    def __init__(self, sampler: Sampler, seconds: float | None) -> None:
        """Watch ``sampler``; ``seconds`` without a heartbeat count as a stall, None disables stall detection."""
        self.sampler = sampler
        self.seconds = seconds

    def generate(
        self,
        requests: Sequence[Request],
        *,
        on_completion: Callable[[int, Completion], None] | None = None,
        should_stop: Callable[[Collection[int]], bool] | None = None,
    ) -> list[Completion]:
        """Sample as :meth:`attnrl.types.Sampler.generate`.

        Raises:
            SamplerError: the sampler raised an exception, or stalled.
            BaseException: raised by ``on_completion`` or ``should_stop``, unchanged.
        """
        callback_errors: list[BaseException] = []

        @contextmanager
        def callback() -> Iterator[None]:
            try:
                yield
            except BaseException as error:
                callback_errors.append(error)
                raise

        def completed(index: int, completion: Completion) -> None:
            if on_completion is not None:
                with callback():
                    on_completion(index, completion)

        def heartbeat_and_should_stop(unfinished: Collection[int]) -> bool:
            heartbeat()
            with callback():
                return should_stop is not None and should_stop(unfinished)

        try:
            with _stall_timer(self.seconds) as heartbeat:
                return self.sampler.generate(requests, on_completion=completed, should_stop=heartbeat_and_should_stop)
        except _StallError:
            raise SamplerError(f"the sampler has stalled: no heartbeat for {self.seconds:g} s") from None
        except Exception as error:
            if error in callback_errors:
                raise
            raise SamplerError(f"the sampler has failed ({type(error).__name__}: {one_line(error)})") from error

    def sync(self) -> None:
        """Sync the sampler's weights; see :meth:`attnrl.types.Sampler.sync`."""
        self.sampler.sync()


def retry_on_sampler_error(call: Callable[[], T], retries: int, say: Callable[[str], None]) -> T:
    """Call ``call`` and return its result; on :class:`SamplerError` retry up to ``retries`` times.

    Args:
        call: leaves nothing changed when the sampler fails, so that a retry has the same result.
        retries: retries after the first call.
        say: called with one line for each retry.

    Raises:
        SamplerError: the last call failed too.
    """
    for _ in range(retries):
        try:
            return call()
        except SamplerError as error:
            say(f"{error}; retrying")
    return call()


@contextmanager
def _stall_timer(seconds: float | None) -> Iterator[Callable[[], None]]:
    """Yield a heartbeat function; raise :class:`_StallError` in the block after ``seconds`` without a heartbeat."""
    in_main_thread = threading.current_thread() is threading.main_thread()
    if seconds is None or not hasattr(signal, "setitimer") or not in_main_thread:
        yield lambda: None
        return
    last_heartbeat = time.monotonic()
    done = threading.Event()

    def heartbeat() -> None:
        nonlocal last_heartbeat
        last_heartbeat = time.monotonic()
        signal.setitimer(signal.ITIMER_REAL, seconds)

    def raise_stall(number: int, frame: FrameType | None) -> None:
        raise _StallError

    def end_process_after_grace() -> None:
        while not done.wait(1.0):
            if time.monotonic() - last_heartbeat > seconds + GRACE_SECONDS:
                _end_process(seconds)

    previous = signal.signal(signal.SIGALRM, raise_stall)
    threading.Thread(target=end_process_after_grace, name="watchdog", daemon=True).start()
    try:
        heartbeat()
        yield heartbeat
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
        done.set()


def _end_process(seconds: float) -> None:
    """End the process with exit code 1, without cleanup: the main thread does not return to Python."""
    print(
        f"attnrl: the sampler has stalled: no heartbeat for {seconds:g} s, and the sampler cannot be interrupted; the "
        "same command continues from the last checkpoint",
        file=sys.stderr,
        flush=True,
    )
    os._exit(1)
