"""Grade finished responses in a second thread, concurrently with sampling."""

from __future__ import annotations

import threading
import time
from types import TracebackType

from attnrl.grading.rewards import RewardManager
from attnrl.types import Grade, Response


class OverlappedGrading:
    """A context manager that grades the responses of one generation; the grades do not depend on the timing.

    A thread passes all waiting responses to the grader, repeatedly. With a grader that does not overlap,
    :meth:`results` grades all responses in the caller's thread, in one call.

    Leaving the ``with`` block drops waiting responses and ends the thread after the grader's current call.

    Attributes:
        spans: start and end of each call of the grader in the thread, from ``time.perf_counter()``.
    """

    def __init__(self, rewards: RewardManager, step: int) -> None:
        """Create the thread, if the rewards overlap; entering the ``with`` block starts the thread.

        Args:
            rewards: computes the grades.
            step: number of training steps done.
        """
        self.spans: list[tuple[float, float]] = []
        self._rewards = rewards
        self._step = step
        self._submitted = 0
        self._waiting: dict[int, Response] = {}
        self._grades: dict[int, Grade] = {}
        self._error: BaseException | None = None
        self._ended = False
        self._changed = threading.Condition()
        # A daemon thread: an interrupted run ends even if the grader never returns.
        self._thread = threading.Thread(target=self._work, name="grading", daemon=True) if rewards.overlaps else None

    def __enter__(self) -> OverlappedGrading:
        """Start the thread, if the rewards overlap."""
        if self._thread is not None:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Drop the waiting responses, and end the thread."""
        with self._changed:
            self._ended = True
            self._waiting.clear()
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()

    def submit(self, index: int, response: Response) -> None:
        """Queue a response for grading; ``index``, unique, is the key of the response's grade in :meth:`results`.

        Raises:
            BaseException: the exception of the grader, as in :meth:`check`.
        """
        self.check()
        with self._changed:
            self._submitted += 1
            self._waiting[index] = response
            self._changed.notify_all()

    def check(self) -> None:
        """Raise the exception of the grader in the caller's thread, if the grader failed.

        Raises:
            BaseException: the exception of the grader.
        """
        if self._error is not None:
            raise self._error

    def results(self) -> dict[int, Grade]:
        """Wait for the last grade, and return the grade of every submitted response by index.

        Raises:
            BaseException: the exception of the grader.
        """
        if self._thread is None:
            return self._grade(dict(sorted(self._waiting.items())))
        with self._changed:
            self._changed.wait_for(lambda: self._error is not None or len(self._grades) == self._submitted)
        self.check()
        return self._grades

    def _work(self) -> None:
        """Grade the waiting responses in batches, until the ``with`` block is left or the grader fails."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._ended)
                if self._ended:
                    return
                batch, self._waiting = self._waiting, {}
            started = time.perf_counter()
            grades: dict[int, Grade] = {}
            error: BaseException | None = None
            try:
                grades = self._grade(batch)
            except BaseException as raised:  # check() raises the exception in the main thread
                error = raised
            with self._changed:
                self.spans.append((started, time.perf_counter()))
                self._grades |= grades
                self._error = error
                self._changed.notify_all()
            if error is not None:
                return

    def _grade(self, batch: dict[int, Response]) -> dict[int, Grade]:
        return dict(zip(batch, self._rewards.grade(list(batch.values()), step=self._step), strict=True))
