"""Worker processes that compare answers with math-verify, each answer under a hard deadline.

Computer algebra on what a model wrote can take forever or all memory, and no exception or signal handler stops it
inside a big-integer power. So it runs in processes of its own, which the parent kills when an answer overruns.

A worker is a fresh interpreter (never a fork, and the user's main module is not imported again), reads batches of
:class:`Job` as one JSON line each and answers with one JSON line per job. Nothing is pickled.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import selectors
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from typing import Any, Literal

from attnrl.errors import UserError
from attnrl.types import Verdict

DEADLINE = 5.0  # seconds for one answer
MAX_DEADLINE = 86_400.0
MEMORY_MB = 1024  # address space of one worker
LEAST_MEMORY_MB = 256  # math-verify and sympy take 100 of it
CHUNK = 16  # jobs sent to a worker at once, at most
START_SECONDS = 120.0  # for the imports of a worker on a busy machine
START_TRIES = 3
ATTEMPTS = 2  # how often an answer may end its worker before it is given up
RECYCLE_ANSWERS = 20_000
RECYCLE_RSS_MB = 400

# ``-P`` and the parent's path at the end: a file of the working directory never shadows the standard library.
_BOOT = (
    "import json, sys; sys.path += [p for p in json.loads(sys.argv[1]) if p not in sys.path]; "
    "from attnrl.grading.worker_pool import main; main()"
)


@dataclass(frozen=True)
class Job:
    """One comparison.

    Attributes:
        golds: the accepted answers.
        answer: what to compare with them; None asks only whether the golds can be parsed (``correct``) or not
            (``bad_gold``).
        prose: the answer is running text, of which math-verify is to extract the answer itself.
    """

    golds: tuple[str, ...]
    answer: str | None
    prose: bool = False


@dataclass(frozen=True)
class Outcome:
    """What came of one job: the verdict, and the answer extracted where the job's answer was prose."""

    verdict: Verdict
    answer: str | None = None


# ---------------------------------------------------------------------------------------------------------------------
# The parent's side
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class _Worker:
    process: subprocess.Popen[bytes]
    clock: float  # when it was last heard of or given work
    ready: bool = False
    retired: bool = False  # ends by itself, after its last answer
    received: bytearray = field(default_factory=bytearray)
    to_send: bytearray = field(default_factory=bytearray)
    jobs: deque[int] = field(default_factory=deque)  # in its hands, in order; it works on the first

    def end(self) -> None:
        """Kill and reap; nothing of it is left afterwards."""
        with contextlib.suppress(OSError):
            self.process.kill()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        self.process.wait()


class WorkerPool:
    """Runs jobs on worker processes; usable from any thread, by one thread at a time.

    Workers start with the first job and stay until :meth:`close`, the end of the ``with`` block, garbage collection
    or the interpreter's exit. If the parent is killed, they end by themselves.

    Args:
        workers: processes, at most; None: one per usable core, at most 8.
        deadline: seconds for one answer, wall-clock.
        memory_mb: address space of one worker.
    """

    def __init__(self, workers: int | None = None, *, deadline: float = DEADLINE, memory_mb: int = MEMORY_MB) -> None:
        """Check the settings; nothing starts yet."""
        if workers is not None and workers < 1:
            raise UserError(f"grading workers {workers}: expected at least 1")
        if not 0 < deadline <= MAX_DEADLINE:
            raise UserError(
                f"grading deadline {deadline}: expected more than 0 seconds and at most {MAX_DEADLINE:,.0f}"
            )
        if memory_mb < LEAST_MEMORY_MB:
            raise UserError(f"grading memory {memory_mb} MB a worker: expected at least {LEAST_MEMORY_MB}")
        self.size = min(_usable_cores(), 8) if workers is None else workers
        self.deadline = deadline
        self.memory_mb = memory_mb
        self.started = 0  # workers started so far
        self._failed_starts = 0
        self._lock = threading.Lock()
        self._workers: list[_Worker] = []
        self._process_id = os.getpid()
        self._finalizer = weakref.finalize(self, _end_all, self._workers, self._process_id)

    def __enter__(self) -> WorkerPool:
        """The pool itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.close()

    def close(self) -> None:
        """End the workers. The next :meth:`run` would start new ones."""
        with self._lock:
            _end_all(self._workers, self._process_id)

    def run(self, jobs: Sequence[Job], *, deadline: float | None = None) -> list[Outcome]:
        """What comes of each job, in order.

        An answer that overruns the deadline is a ``timeout``; one that ends its worker twice, or needs more memory
        than a worker may have, is an ``error``. Golds that cannot be parsed are ``bad_gold``.

        Raises:
            UserError: no worker can be started.
        """
        with self._lock:
            if os.getpid() != self._process_id:  # forked since: the workers are the other process's
                self._workers.clear()
                self._process_id = os.getpid()
                self._finalizer.detach()
                self._finalizer = weakref.finalize(self, _end_all, self._workers, self._process_id)
            try:
                return self._run(jobs, deadline or self.deadline)
            except BaseException:  # Ctrl-C too: what the workers are at belongs to nobody any more
                _end_all(self._workers, self._process_id)
                raise

    def _run(self, jobs: Sequence[Job], deadline: float) -> list[Outcome]:
        outcomes: list[Outcome | None] = [None] * len(jobs)
        waiting = deque(range(len(jobs)))
        deaths: dict[int, int] = {}

        def lost(worker: _Worker, verdict: Verdict | None) -> None:
            """Take a worker out; the job it was at gets the verdict, or another try."""
            self._workers.remove(worker)
            worker.end()
            if worker.jobs and worker.ready:
                head = worker.jobs[0]
                deaths[head] = deaths.get(head, 0) + 1
                if verdict is None and deaths[head] >= ATTEMPTS:
                    verdict = "error"
                if verdict is not None:
                    outcomes[head] = Outcome(verdict)
                    worker.jobs.popleft()
            waiting.extendleft(reversed(worker.jobs))

        while waiting or any(worker.jobs for worker in self._workers):
            self._hire(len(waiting))
            for worker in self._workers:
                if waiting and worker.ready and not worker.jobs and not worker.retired:
                    self._send(worker, waiting, jobs, deadline)
            for worker in self._exchange(deadline):
                try:
                    alive = _read(worker, outcomes)
                except (OSError, ValueError, LookupError, TypeError):  # it does not speak our language: let it go
                    alive = False
                if alive:
                    if worker.ready:
                        self._failed_starts = 0
                    continue
                if not worker.ready:
                    self._start_failed(worker)
                lost(worker, None)
            now = time.monotonic()
            for worker in list(self._workers):
                if not worker.ready and now - worker.clock > START_SECONDS:
                    self._start_failed(worker)
                    lost(worker, None)
                elif worker.jobs and worker.ready and now - worker.clock > deadline:
                    lost(worker, "timeout")
        return [outcome if outcome is not None else Outcome("error") for outcome in outcomes]

    def _hire(self, waiting: int) -> None:
        """Start as many workers as the waiting jobs can use."""
        free = sum(not worker.jobs and not worker.retired for worker in self._workers)
        while len(self._workers) < self.size and free * CHUNK < waiting:
            self._workers.append(_start(self.memory_mb))
            self.started += 1
            free += 1

    def _start_failed(self, worker: _Worker) -> None:
        self._failed_starts += 1
        with contextlib.suppress(subprocess.TimeoutExpired):
            worker.process.wait(0.5)  # it has closed its pipe and is about to end
        if self._failed_starts >= START_TRIES:
            self._failed_starts = 0
            raise UserError(
                f"grading workers: {START_TRIES} could not start (last exit status {worker.process.poll()}, "
                f'{self.memory_mb} MB each); try: {sys.executable} -c "import math_verify"'
            )

    def _send(self, worker: _Worker, waiting: deque[int], jobs: Sequence[Job], deadline: float) -> None:
        share = -(-len(waiting) // (2 * len(self._workers)))  # small at the end: no worker waits for another
        for _ in range(min(CHUNK, share)):
            worker.jobs.append(waiting.popleft())
        chunk = {"deadline": deadline, "jobs": [asdict(jobs[index]) for index in worker.jobs]}
        worker.to_send += json.dumps(chunk).encode() + b"\n"
        worker.clock = time.monotonic()

    def _exchange(self, deadline: float) -> list[_Worker]:
        """Send what can be sent; wait until workers can be read or the next deadline, and return those workers."""
        now = time.monotonic()
        patience = 1.0
        with selectors.DefaultSelector() as selector:
            for worker in self._workers:
                assert worker.process.stdin is not None and worker.process.stdout is not None
                selector.register(worker.process.stdout, selectors.EVENT_READ, worker)
                if worker.to_send:
                    selector.register(worker.process.stdin, selectors.EVENT_WRITE, worker)
                if worker.jobs:
                    patience = min(patience, worker.clock + deadline - now)
            readable = []
            for key, _ in selector.select(max(patience, 0.0) + 0.001):
                worker = key.data
                if key.fileobj is worker.process.stdout:
                    readable.append(worker)
                    continue
                try:
                    del worker.to_send[: os.write(key.fd, worker.to_send)]
                except BlockingIOError:
                    pass
                except OSError:  # it is gone; reading tells so
                    worker.to_send.clear()
        return readable


def _read(worker: _Worker, outcomes: list[Outcome | None]) -> bool:
    """Take in what a worker wrote; False when it is gone."""
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
            outcomes[worker.jobs[0]] = Outcome(message["verdict"], message.get("answer"))
            worker.jobs.popleft()
            worker.retired = worker.retired or bool(message.get("last"))


def _start(memory_mb: int) -> _Worker:
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", _BOOT, json.dumps([path for path in sys.path if path]), str(memory_mb)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        bufsize=0,
        start_new_session=True,  # Ctrl-C is for the parent, which ends its workers when it wants to
    )
    assert process.stdin is not None and process.stdout is not None
    os.set_blocking(process.stdin.fileno(), False)
    os.set_blocking(process.stdout.fileno(), False)
    return _Worker(process, time.monotonic())


def _end_all(workers: list[_Worker], process_id: int) -> None:
    if os.getpid() == process_id:
        for worker in workers:
            worker.end()
    workers.clear()


def _usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


# ---------------------------------------------------------------------------------------------------------------------
# The worker's side
# ---------------------------------------------------------------------------------------------------------------------


def main() -> None:
    """Work on the batches of standard input until it ends. Run in a process of its own."""
    replies = os.dup(1)
    os.dup2(2, 1)  # whatever a library prints goes where standard error goes: nowhere
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = os.getppid()
    import logging

    logging.disable(logging.CRITICAL)
    import math_verify  # noqa: F401 - before the memory limit and the parent's clock

    _limit_memory(int(sys.argv[2]))
    os.write(replies, b'{"ready": true}\n')
    answered = 0
    for line in _lines(parent):
        batch = json.loads(line)
        jobs = [Job(tuple(job["golds"]), job["answer"], job["prose"]) for job in batch["jobs"]]
        for number, job in enumerate(jobs, start=1):
            # The parent kills sooner. Should it be gone, this does, inside a C function too (SIGALRM's default).
            signal.setitimer(signal.ITIMER_REAL, 2 * batch["deadline"] + 10)
            reply = _judge_safely(job)
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
    """Lines of standard input, until it ends or the parent is gone (another child of it may hold the pipe open)."""
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
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
    except OSError:
        return 0.0


def _judge_safely(job: Job) -> dict[str, Any]:
    try:
        return judge(job)
    except (MemoryError, RecursionError):
        return {"verdict": "error"}
    except Exception:
        return {"verdict": "error"}


def judge(job: Job) -> dict[str, Any]:
    """Compare one answer with its golds, in this process and without a deadline: ``verdict`` and maybe ``answer``."""
    golds = [parsed for gold in job.golds if _depth(gold) <= MAX_DEPTH and (parsed := parse_gold(gold))]
    usable = any(_expressions(gold) for gold in golds)
    if job.answer is None:
        return {"verdict": "correct" if usable else "bad_gold"}
    if _depth(job.answer) > MAX_DEPTH:
        return {"verdict": "error"}
    found = _parse_prose(job.answer) if job.prose else _parse_boxed(job.answer)
    if not found:
        return {"verdict": "no_answer" if usable and job.prose else "wrong" if usable else "bad_gold"}
    verdict = _compare(golds, found)
    reply = {"verdict": verdict if usable or verdict == "correct" else "bad_gold"}
    text = next((item for item in reversed(found) if isinstance(item, str)), None)
    return reply | {"answer": text} if job.prose and text is not None else reply


def _depth(text: str) -> int:
    """How deep brackets nest; one that is never closed nests what follows."""
    depth = deepest = 0
    for bracket in re.findall(r"[(\[{)\]}]", text):
        depth = max(0, depth + (1 if bracket in "([{" else -1))
        deepest = max(deepest, depth)
    return deepest


@lru_cache(maxsize=256)
def parse_gold(gold: str) -> tuple[Any, ...]:
    """What math-verify makes of a true answer: expressions, and its spelling last. Empty: nothing."""
    found = _parse_boxed(gold)
    if not _expressions(found) and re.search(r"\$|\\\(|\\\[|(?i:answer)|^[\s\d.,+-]+$", gold):
        found = _parse_prose(gold) or found  # a worked solution, or a number in another country's spelling
    return tuple(found)


def _parse_boxed(text: str) -> list[Any]:
    boxed = "\\boxed{" + prepare(text) + "}"
    found = _math_verify_parser(prose=False)(boxed)
    # It takes a last letter after a space for a unit, of a + b + c too.
    return found if _expressions(found) else _math_verify_parser(prose=False, units=False)(boxed) or found


def _parse_prose(text: str) -> list[Any]:
    formula = _FORMULA.fullmatch(text.strip())
    if formula and "$" not in formula[2] and _expressions(found := _parse_boxed(formula[2])):
        return found  # one formula and nothing else
    return _math_verify_parser(prose=True)(text)


@lru_cache(maxsize=4)
def _math_verify_parser(*, prose: bool, units: bool = True) -> Callable[[str], list[Any]]:
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse

    latex = LatexExtractionConfig(boxed_match_priority=0)
    if not units:
        latex = replace(latex, normalization_config=replace(latex.normalization_config, units=False))
    # Of a box, LaTeX only: plain numbers would be fished out of a box that cannot be parsed as a whole.
    config = (latex, ExprExtractionConfig()) if prose else (latex,)
    return lambda text: list(parse(text, config, parsing_timeout=None))


_UNICODE = str.maketrans({"−": "-", "–": "-", "×": "\\times ", "·": "\\cdot ", "÷": "/", "π": "\\pi ", "∞": "\\infty "})
_UNICODE |= str.maketrans({"√": "\\sqrt ", "°": "^\\circ ", "≤": "\\le ", "≥": "\\ge ", "±": "\\pm ", "∪": "\\cup "})
_UNICODE |= str.maketrans(
    dict.fromkeys("\u200b\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\ufeff", "")
)


_FORMULA = re.compile(r"(\$\$?|\\\(|\\\[)(.+?)(\$\$?|\\\)|\\\])\.?", re.DOTALL)


def prepare(text: str) -> str:
    """Spell an answer so that math-verify reads it: no outer dollar signs, LaTeX for signs, ``3e5`` as a power."""
    text = text.translate(_UNICODE).strip()
    inner = _FORMULA.fullmatch(text)
    if inner and "$" not in inner[2]:
        text = inner[2].strip()
    text = re.sub(r"(?<=\d)(?:,\\!|\{,\})(?=\d{3}(?!\d))", "", text)  # thousands
    text = re.sub(r"\\!|^\\approx(?![a-zA-Z])|(?<=[^\\\s])\s*[.,]$|\\phantom(?![a-zA-Z])", "", text).strip()
    text = re.sub(r"\\[dt]?frac\s*\\pi\s*(\d)(?!\d)", r"\\frac{\\pi}{\1}", text)
    # Its grammar has no index of E (Euler's number) and no command for an index.
    text = re.sub(r"(?<![A-Za-z\\])E(?=_)", r"\\Xi", text)
    text = re.sub(r"_(?:\{\s*\\(odot|max|min)\s*\}|\\(odot|max|min)(?![a-z]))", r"_{\1\2}", text)
    number = re.fullmatch(r"([+-]?\d*\.?\d+)[eE]([+-]?\d+)", text)
    return f"{number[1]}\\times 10^{{{number[2]}}}" if number else text


def _expressions(parsed: Sequence[Any]) -> list[Any]:
    import sympy

    return [item for item in parsed if not isinstance(item, str) and item not in (sympy.nan, sympy.zoo)]


def _compare(golds: Sequence[Sequence[Any]], found: Sequence[Any]) -> Literal["correct", "wrong", "error"]:
    from math_verify import verify

    if any(_false_equation(item) for item in _expressions(found)):
        return "wrong"
    failed = False
    for gold in golds:
        for item in found:
            if too_big(item) and not isinstance(item, str):
                failed = True
                continue
            for expected in gold:
                if isinstance(expected, str) != isinstance(item, str):
                    continue
                if not isinstance(expected, str) and too_big(expected):
                    failed = True
                    continue
                try:
                    if verify(expected, item, timeout_seconds=None, raise_on_error=True) and not _far(expected, item):
                        return "correct"
                except (MemoryError, RecursionError):
                    failed = True
                except Exception:  # it has no way to compare these two: they are not equal
                    continue
    return "error" if failed else "wrong"


def _far(expected: Any, item: Any) -> bool:
    """Whether two small numbers differ: math-verify rounds to six places, where 1e-19 and 1e-20 are both 0."""
    gold, value = _small_value(expected), _small_value(item)
    if gold is None or value is None or max(abs(gold), abs(value)) >= SMALL:
        return False
    return abs(gold - value) > RELATIVE * max(abs(gold), abs(value))


def _small_value(expression: Any) -> float | None:
    """The value of a real number or of ``x = number``; None of anything else."""
    import sympy

    if isinstance(expression, sympy.Eq):
        expression = expression.rhs
    if isinstance(expression, sympy.FiniteSet) and len(expression) == 1:
        (expression,) = expression
    if not isinstance(expression, sympy.Expr) or not expression.is_number:
        return None
    try:
        return float(expression)
    except (TypeError, OverflowError):  # not real
        return None


def _false_equation(item: Any) -> bool:
    """Whether an answer says that one number is another (``1=5``), of which math-verify would take the last."""
    import sympy

    return (
        isinstance(item, sympy.Eq)
        and isinstance(item.lhs, sympy.Number)
        and isinstance(item.rhs, sympy.Number)
        and abs(float(item.lhs) - float(item.rhs)) > 1e-2 * max(1.0, abs(float(item.rhs)))
    )


SMALL = 1e-2  # numbers under this are compared
RELATIVE = 1e-3  # to this share of the larger one
MAX_BITS = 200_000.0  # of a number that is worked out
MAX_DEPTH = 32  # of brackets; the parser's time and stack grow out of bounds with it
MAX_TERMS = 20_000.0  # of a sum or product that is worked out
MAX_FACTORIAL = 10_000.0


def too_big(expression: Any) -> bool:
    """Whether working an expression out means astronomically big numbers or long sums: it is then not compared.

    This only spares the deadline; what it does not see, the deadline catches.
    """
    import sympy

    if not isinstance(expression, (sympy.Basic, sympy.MatrixBase)):
        return False
    entries = expression.flat() if isinstance(expression, sympy.MatrixBase) else [expression]
    return any(_log2(entry) > MAX_BITS for entry in entries)


def _log2(node: Any) -> float:
    """A rough upper bound of log2 of the biggest number inside, infinite past the limits; symbols count as 1."""
    import sympy

    if isinstance(node, sympy.Rational):
        return float(max(abs(node.p).bit_length(), node.q.bit_length()))
    if isinstance(node, sympy.Float):
        return abs(float(sympy.log(abs(node), 2).evalf(5))) + 1 if node != 0 else 1.0
    if not getattr(node, "args", ()):
        return 2.0
    sizes = [_log2(argument) for argument in node.args]
    biggest = max(sizes)
    if biggest > MAX_BITS:
        return float("inf")
    if isinstance(node, sympy.Pow):
        if node.exp.free_symbols:  # it stays a power
            return sum(sizes)
        return sizes[0] * max(_value(node.exp, sizes[1]), 1.0)
    if isinstance(node, (sympy.factorial, sympy.gamma, sympy.binomial, sympy.factorial2)):
        size = max(_value(argument, biggest) for argument in node.args)
        return size * max(biggest, 1.0) if size <= MAX_FACTORIAL else float("inf")
    if isinstance(node, (sympy.Sum, sympy.Product)):
        for limits in node.limits:
            for bound in limits[1:]:
                if not bound.is_infinite and not bound.free_symbols and _value(bound, _log2(bound)) > MAX_TERMS:
                    return float("inf")
        return biggest
    if isinstance(node, sympy.Mul):
        return sum(sizes)
    return biggest + 1.0


def _value(node: Any, bits: float) -> float:
    """The absolute value of a number of at most so many bits, of anything else a bound of it."""
    if node.is_number and bits < 1_000:
        with contextlib.suppress(TypeError, ValueError, OverflowError):
            return abs(complex(node.evalf(5)))
    return 2.0**bits if bits < 60 else float("inf")
