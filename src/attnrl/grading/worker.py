"""A worker process: reads batches of jobs from standard input, writes the result of each job to standard output.

Each batch and each result is a line of JSON. The parent, :mod:`attnrl.grading.worker_pool`, starts the process as
``python -P -c "...; main()" SYS_PATH MEMORY_MB``.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import selectors
import signal
import sys
from collections.abc import Iterator
from dataclasses import asdict

from attnrl.grading.jobs import Job, JobResult
from attnrl.grading.judge import judge

RECYCLE_ANSWERS = 20_000  # results after which the worker ends, so that leaks of the parser stay bounded
RECYCLE_RSS_MB = 400  # resident memory above which the worker ends


def main() -> None:
    """Judge the jobs of standard input until standard input or the parent ends."""
    replies = os.dup(1)
    os.dup2(2, 1)  # output of libraries goes to standard error, which the parent discards
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = os.getppid()
    logging.disable(logging.CRITICAL)
    import math_verify  # noqa: F401 - before the memory limit, and before the parent's deadline runs

    _limit_memory(int(sys.argv[2]))
    os.write(replies, b'{"ready": true}\n')
    answered = 0
    for line in _lines(parent):
        batch = json.loads(line)
        jobs = [Job(tuple(job["golds"]), tuple(job["boxes"]), job["problem"], job["prose"]) for job in batch["jobs"]]
        for number, job in enumerate(jobs, start=1):
            # The parent kills the worker at the deadline. If the parent is gone, SIGALRM (default action: terminate)
            # ends the worker, also inside a C function.
            signal.setitimer(signal.ITIMER_REAL, 2 * batch["deadline"] + 10)
            reply = asdict(_judge_safely(job))
            signal.setitimer(signal.ITIMER_REAL, 0)
            answered += 1
            last = number == len(jobs) and (answered >= RECYCLE_ANSWERS or _rss_mb() > RECYCLE_RSS_MB)
            try:
                os.write(replies, json.dumps(reply | {"last": True} if last else reply).encode() + b"\n")
            except OSError:
                return
            if last:
                return


def _lines(parent: int) -> Iterator[bytes]:
    """Yield the lines of standard input until standard input closes or the parent ends.

    The parent's end is polled, because another child of the parent may hold the pipe open.
    """
    received = bytearray()
    with selectors.DefaultSelector() as selector:
        selector.register(0, selectors.EVENT_READ)
        while os.getppid() == parent:
            if not selector.select(5.0):
                continue
            piece = os.read(0, 65536)
            if not piece:
                return
            received += piece
            *lines, rest = received.split(b"\n")
            received = bytearray(rest)
            yield from (bytes(line) for line in lines)


def _limit_memory(megabytes: int) -> None:
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (megabytes << 20, megabytes << 20))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _rss_mb() -> float:
    """Return the resident memory of this process in MB; 0 without ``/proc``."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
    except OSError:
        return 0.0


def _judge_safely(job: Job) -> JobResult:
    try:
        return judge(job)
    except Exception:  # MemoryError and RecursionError among them
        return JobResult("error")
