"""Wall-clock time of the phases of a training step."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

#: Name of a phase, and the start and end of the phase in seconds since the start of the step.
Span = tuple[str, float, float]


class PhaseClock:
    """Measures the wall-clock time of each phase of a training step.

    Attributes:
        seconds: duration of each phase, of concurrent work as ``<name>_overlapped``, and of the ``step`` so far.
        spans: every interval of a phase, and of concurrent work as ``<name> (overlapped)``.
    """

    def __init__(self, on_phase: Callable[[str], None] | None = None) -> None:
        """``on_phase`` is called with the name of each phase at the start of the phase."""
        self._on_phase = on_phase
        self.restart()

    def restart(self) -> None:
        """Reset the clock at the start of a step."""
        self.seconds: dict[str, float] = {}
        self.spans: list[Span] = []
        self._started = time.perf_counter()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the duration of the block to phase ``name``, and update the duration of ``step``."""
        if self._on_phase is not None:
            self._on_phase(name)
        entered = time.perf_counter()
        yield
        left = time.perf_counter()
        self.seconds[name] = self.seconds.get(name, 0.0) + left - entered
        self.seconds["step"] = left - self._started
        self.spans.append((name, entered - self._started, left - self._started))

    def overlapped(self, name: str, spans: Sequence[tuple[float, float]], *, during: str) -> None:
        """Add the work of another thread for ``name``, clipped to the last interval of phase ``during``.

        Args:
            name: the phase that the thread works for.
            spans: start and end of each piece of work, from ``time.perf_counter()``, in order.
            during: a phase that has ended.
        """
        _, begun, ended = next(span for span in reversed(self.spans) if span[0] == during)
        inside = [(max(start - self._started, begun), min(end - self._started, ended)) for start, end in spans]
        worked = [(f"{name} (overlapped)", start, end) for start, end in inside if end > start]
        total = self.seconds.get(f"{name}_overlapped", 0.0) + sum(end - start for _, start, end in worked)
        self.seconds[f"{name}_overlapped"] = total
        self.spans += worked
