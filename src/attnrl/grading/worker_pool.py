"""A pool of worker processes for comparisons of answers, each comparison under a hard deadline.

Computer algebra on the text of a model can run forever or exhaust memory, and neither an exception nor a signal handler
interrupts a big-integer power. The comparisons therefore run in worker processes, killed by the parent at the deadline.

A worker (:mod:`attnrl.grading.worker`) is a fresh interpreter: never a fork, and the user's main module is not imported
again. Jobs and results are lines of JSON over pipes; nothing is pickled.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

from attnrl.errors import UserError
from attnrl.grading.jobs import Job, JobResult
from attnrl.types import Verdict

DEADLINE = 5.0  # seconds for one answer
MAX_DEADLINE = 86_400.0
MEMORY_MB = 1024  # address space of one worker
MIN_MEMORY_MB = 256  # math-verify and sympy take 100 MB
MAX_DEFAULT_WORKERS = 8
BATCH = 16  # jobs sent to a worker at once, at most
START_SECONDS = 120.0  # for the imports of a worker on a busy machine
START_TRIES = 3
MAX_WORKER_DEATHS = 2  # by one job, before its verdict is "error", or "not_judged" if killed from outside
KILLED_FROM_OUTSIDE = (-signal.SIGKILL, -signal.SIGTERM)  # exit status; the kernel's OOM killer sends SIGKILL

# ``-P`` and the parent's path at the end: a file of the working directory never shadows the standard library.
_BOOT = (
    "import json, sys; sys.path += [p for p in json.loads(sys.argv[1]) if p not in sys.path]; "
    "from attnrl.grading.worker import main; main()"
)


@dataclass(eq=False)
class _Worker:
    """The parent's record of a worker process.

    Attributes:
        clock: monotonic time of the last message from, or batch to, the worker, in seconds.
        ready: the worker has finished the imports.
        retired: the worker has sent the last result and is about to end.
        received: bytes of an incomplete line.
        to_send: bytes not yet accepted by the pipe.
        jobs: indices of the jobs sent to the worker, in order; the worker is at the first.
    """

    process: subprocess.Popen[bytes]
    clock: float
    ready: bool = False
    retired: bool = False
    received: bytearray = field(default_factory=bytearray)
    to_send: bytearray = field(default_factory=bytearray)
    jobs: deque[int] = field(default_factory=deque)

    def end(self, wait: float = 0.0) -> int | None:
        """Kill and reap the process and close the pipes.

        Args:
            wait: seconds to wait for the end of a process that has closed the pipe, before the kill.

        Returns:
            The exit status (negative: the signal) of a process that has ended by itself; None if killed here.
        """
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(wait)
        status = self.process.poll()
        with contextlib.suppress(OSError):
            self.process.kill()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        self.process.wait()
        return status


class WorkerPool:
    """Runs jobs on worker processes; any thread may call :meth:`run`, one thread at a time.

    Workers start with the first job and stay until :meth:`close`, the end of the ``with`` block, garbage collection
    or the interpreter's exit. If the parent is killed, the workers end by themselves.

    Args:
        workers: processes, at most; None: one per usable core, at most 8.
        deadline: wall-clock seconds for one job.
        memory_mb: address space of one worker, in MB.

    Raises:
        UserError: an argument is out of range.
    """

    def __init__(self, workers: int | None = None, *, deadline: float = DEADLINE, memory_mb: int = MEMORY_MB) -> None:
        if workers is not None and workers < 1:
            raise UserError(f"grading workers {workers}: expected at least 1")
        if not 0 < deadline <= MAX_DEADLINE:
            raise UserError(
                f"grading deadline {deadline}: expected more than 0 seconds and at most {MAX_DEADLINE:,.0f}"
            )
        if memory_mb < MIN_MEMORY_MB:
            raise UserError(f"grading memory {memory_mb} MB per worker: expected at least {MIN_MEMORY_MB}")
        self.size = min(_usable_cores(), MAX_DEFAULT_WORKERS) if workers is None else workers
        self.deadline = deadline
        self.memory_mb = memory_mb
        self.started = 0  # workers started so far
        self._has_started = False
        self._last_status: int | None = None  # exit status of the last worker that ended
        self._lock = threading.Lock()
        self._workers: list[_Worker] = []
        self._process_id = os.getpid()
        self._finalizer = weakref.finalize(self, _end_workers, self._workers, self._process_id)

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the workers. A later call of :meth:`run` starts new workers."""
        with self._lock:
            _end_workers(self._workers, self._process_id)

    def run(self, jobs: Sequence[Job], *, deadline: float | None = None) -> list[JobResult]:
        """Run the jobs and return the results, in order.

        The verdict is ``timeout`` if a job exceeds the deadline, ``error`` if a job exceeds the worker's memory or has
        crashed two workers, and ``bad_gold`` if no gold of the job can be parsed. The verdict is ``not_judged`` if two
        workers of the job were killed from outside (SIGKILL by the kernel's OOM killer, SIGTERM), or if workers cannot
        be started any more.

        Raises:
            UserError: no worker of this pool has ever started.
        """
        with self._lock:
            if os.getpid() != self._process_id:  # after a fork, the workers belong to the other process
                self._workers.clear()
                self._process_id = os.getpid()
                self._finalizer.detach()
                self._finalizer = weakref.finalize(self, _end_workers, self._workers, self._process_id)
            try:
                return self._run(jobs, deadline or self.deadline)
            except BaseException:  # KeyboardInterrupt too: the jobs of the workers are abandoned
                _end_workers(self._workers, self._process_id)
                raise

    def _run(self, jobs: Sequence[Job], deadline: float) -> list[JobResult]:
        results: list[JobResult | None] = [None] * len(jobs)
        waiting = deque(range(len(jobs)))
        deaths: dict[int, int] = {}
        failed_starts = 0

        def remove(worker: _Worker, verdict: Verdict | None) -> None:
            """Remove a worker. The current job gets ``verdict`` or a retry; the remaining jobs wait again."""
            self._workers.remove(worker)
            self._last_status = status = worker.end(wait=0.5 if verdict is None else 0.0)
            if worker.jobs and worker.ready:
                current = worker.jobs[0]
                deaths[current] = deaths.get(current, 0) + 1
                if verdict is None and deaths[current] >= MAX_WORKER_DEATHS:
                    verdict = "not_judged" if status in KILLED_FROM_OUTSIDE else "error"
                if verdict is not None:
                    results[current] = JobResult(verdict)
                    worker.jobs.popleft()
            waiting.extendleft(reversed(worker.jobs))

        while waiting or any(worker.jobs for worker in self._workers):
            failed_starts += self._start_workers(len(waiting))
            for worker in self._workers:
                if waiting and worker.ready and not worker.jobs and not worker.retired:
                    self._assign(worker, waiting, jobs, deadline)
            for worker in self._exchange(deadline):
                try:
                    alive = _receive(worker, results)
                except (OSError, ValueError, LookupError, TypeError):  # a malformed reply
                    alive = False
                if alive and worker.ready:
                    failed_starts, self._has_started = 0, True
                if not alive:
                    failed_starts += not worker.ready
                    remove(worker, None)
            now = time.monotonic()
            for worker in list(self._workers):
                if not worker.ready and now - worker.clock > START_SECONDS:
                    failed_starts += 1
                    remove(worker, None)
                elif worker.jobs and worker.ready and now - worker.clock > deadline:
                    remove(worker, "timeout")
            if failed_starts >= START_TRIES:
                if not self._has_started:
                    raise UserError(self._no_start())
                _end_workers(self._workers, self._process_id)
                break
        return [result if result is not None else JobResult("not_judged") for result in results]

    def _no_start(self) -> str:
        return (
            f"grading workers: {START_TRIES} could not start (exit status {self._last_status}, {self.memory_mb} MB "
            f'each); try: {sys.executable} -c "import math_verify"'
        )

    def _start_workers(self, waiting: int) -> int:
        """Start as many workers as the waiting jobs can use, up to the size of the pool; return the failed starts."""
        free = sum(not worker.jobs and not worker.retired for worker in self._workers)
        while len(self._workers) < self.size and free * BATCH < waiting:
            try:
                self._workers.append(_start_worker(self.memory_mb))
            except OSError:  # no memory or too many processes
                return 1
            self.started += 1
            free += 1
        return 0

    def _assign(self, worker: _Worker, waiting: deque[int], jobs: Sequence[Job], deadline: float) -> None:
        """Give the next batch to a worker. Batches shrink towards the end, for all workers to finish together."""
        share = -(-len(waiting) // (2 * len(self._workers)))
        for _ in range(min(BATCH, share)):
            worker.jobs.append(waiting.popleft())
        batch = {"deadline": deadline, "jobs": [asdict(jobs[index]) for index in worker.jobs]}
        worker.to_send += json.dumps(batch).encode() + b"\n"
        worker.clock = time.monotonic()

    def _exchange(self, deadline: float) -> list[_Worker]:
        """Write to the workers' pipes, wait for a reply or the next deadline, and return the readable workers."""
        now = time.monotonic()
        timeout = 1.0
        with selectors.DefaultSelector() as selector:
            for worker in self._workers:
                assert worker.process.stdin is not None and worker.process.stdout is not None
                selector.register(worker.process.stdout, selectors.EVENT_READ, worker)
                if worker.to_send:
                    selector.register(worker.process.stdin, selectors.EVENT_WRITE, worker)
                if worker.jobs:
                    timeout = min(timeout, worker.clock + deadline - now)
            readable = []
            for key, _ in selector.select(max(timeout, 0.0) + 0.001):
                worker = key.data
                if key.fileobj is worker.process.stdout:
                    readable.append(worker)
                    continue
                try:
                    del worker.to_send[: os.write(key.fd, worker.to_send)]
                except BlockingIOError:
                    pass
                except OSError:  # the process has ended; reading finds the end of the pipe
                    worker.to_send.clear()
        return readable


def _receive(worker: _Worker, results: list[JobResult | None]) -> bool:
    """Read the replies of a worker into ``results``; return False if the worker has closed the pipe."""
    assert worker.process.stdout is not None
    while True:
        try:
            piece = os.read(worker.process.stdout.fileno(), 65536)
        except BlockingIOError:
            return True
        if not piece:
            return False
        worker.received += piece
        *lines, rest = worker.received.split(b"\n")
        worker.received = bytearray(rest)
        for line in lines:
            message = json.loads(line)
            worker.clock = time.monotonic()
            if message.get("ready"):
                worker.ready = True
                continue
            results[worker.jobs[0]] = JobResult(message["verdict"], message.get("answer"))
            worker.jobs.popleft()
            worker.retired = worker.retired or bool(message.get("last"))


def _start_worker(memory_mb: int) -> _Worker:
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", _BOOT, json.dumps([path for path in sys.path if path]), str(memory_mb)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        bufsize=0,
        start_new_session=True,  # Ctrl-C reaches the parent only, which ends its workers
    )
    assert process.stdin is not None and process.stdout is not None
    os.set_blocking(process.stdin.fileno(), False)
    os.set_blocking(process.stdout.fileno(), False)
    return _Worker(process, time.monotonic())


def _end_workers(workers: list[_Worker], process_id: int) -> None:
    """End the workers, unless this process is a fork of the workers' parent."""
    if os.getpid() == process_id:
        for worker in workers:
            worker.end()
    workers.clear()


def _usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
