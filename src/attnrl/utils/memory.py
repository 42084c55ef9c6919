"""A memory limit on a block of code, by RLIMIT_AS."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def memory_limit(size: int) -> Iterator[None]:
    """Let allocations in the body fail once the process has ``size`` bytes of address space more than before.

    All threads share the limit. No effect on systems without ``/proc`` (macOS, Windows).

    Raises:
        MemoryError: the body needs more than ``size`` bytes.
    """
    try:
        import resource

        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    except (ImportError, OSError, ValueError):
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    set_before = [limit for limit in (soft, hard) if limit != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_AS, (min([pages * resource.getpagesize() + size, *set_before]), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
