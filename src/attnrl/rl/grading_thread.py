"""Grade finished responses in a second thread, concurrently with sampling."""

from __future__ import annotations

import threading
import time
from types import TracebackType

from attnrl.types import Grade, Grader, Problem


class OverlappedGrading:
    """The grading of one generation, as a context manager; the grades do not depend on the timing.

    A thread passes all waiting responses to the grader, repeatedly. With a grader that does not overlap,
    :meth:`results` grades all responses in the caller's thread, in one call.

    Leaving the block drops waiting responses and ends the thread after the grader's current call.

    Attributes:
        spans: start and end of each call of the grader in the thread, from ``time.perf_counter()``.
    """

    def __init__(self, grader: Grader) -> None:
        """Nothing starts before the block is entered."""
        self.spans: list[tuple[float, float]] = []
        self._grader = grader
        self._submitted = 0
        self._waiting: dict[int, tuple[Problem, str]] = {}
        self._grades: dict[int, Grade] = {}
        self._error: BaseException | None = None
        self._ended = False
        self._changed = threading.Condition()
        # A daemon: a grader that never returns must not keep an interrupted run from ending.
        self._thread = threading.Thread(target=self._work, name="grading", daemon=True) if grader.overlaps else None

    def __enter__(self) -> OverlappedGrading:
        """Start the thread, where the grader may be called from one."""
        if self._thread is not None:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Drop what waits, and end the thread."""
        with self._changed:
            self._ended = True
            self._waiting.clear()
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()

    def submit(self, index: int, problem: Problem, response: str) -> None:
        """Have a response graded; ``index``, different for each, is its name in :meth:`results`.

        Raises:
            BaseException: what the grader has raised, see :meth:`check`.
        """
        self.check()
        with self._changed:
            self._submitted += 1
            self._waiting[index] = (problem, response)
            self._changed.notify_all()

    def check(self) -> None:
        """Raise here what the grader has raised in the thread.

        Raises:
            BaseException: that.
        """
        if self._error is not None:
            raise self._error

    def results(self) -> dict[int, Grade]:
        """The grade of every response submitted, by index; waits for those that are not graded yet.

        Raises:
            BaseException: what the grader has raised.
        """
        if self._thread is None:
            return self._grade(dict(sorted(self._waiting.items())))
        with self._changed:
            self._changed.wait_for(lambda: self._error is not None or len(self._grades) == self._submitted)
        self.check()
        return self._grades

    def _work(self) -> None:
        """The thread: grade what has gathered, until the block is left or the grader fails."""
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
            except BaseException as raised:  # whatever it is, it is the main thread's to handle
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
