"""Grade finished responses in a second thread, concurrently with sampling."""

from __future__ import annotations

import threading
import time
from types import TracebackType

from attnrl.types import Grade, Grader, Problem


class OverlappedGrading:
    """A context manager that grades the responses of one generation; the grades do not depend on the timing.

    A thread passes all waiting responses to the grader, repeatedly. With a grader that does not overlap,
    :meth:`results` grades all responses in the caller's thread, in one call.

    Leaving the ``with`` block drops waiting responses and ends the thread after the grader's current call.

    Attributes:
        spans: start and end of each call of the grader in the thread, from ``time.perf_counter()``.
    """

    def __init__(self, grader: Grader) -> None:
        """Create the thread, if the grader overlaps; entering the ``with`` block starts the thread."""
        self.spans: list[tuple[float, float]] = []
        self._grader = grader
        self._submitted = 0
        self._waiting: dict[int, tuple[Problem, str]] = {}
        self._grades: dict[int, Grade] = {}
        self._error: BaseException | None = None
        self._ended = False
        self._changed = threading.Condition()
        # A daemon thread: an interrupted run ends even if the grader never returns.
        self._thread = threading.Thread(target=self._work, name="grading", daemon=True) if grader.overlaps else None

    def __enter__(self) -> OverlappedGrading:
        """Start the thread, if the grader overlaps."""
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

    def submit(self, index: int, problem: Problem, response: str) -> None:
        """Queue a response for grading; ``index``, unique, is the key of the response's grade in :meth:`results`.

        Raises:
            BaseException: the exception of the grader, as in :meth:`check`.
        """
        self.check()
        with self._changed:
            self._submitted += 1
            self._waiting[index] = (problem, response)
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

    def _grade(self, batch: dict[int, tuple[Problem, str]]) -> dict[int, Grade]:
        problems, responses = [problem for problem, _ in batch.values()], [response for _, response in batch.values()]
        return dict(zip(batch, self._grader.grade(problems, responses), strict=True))
