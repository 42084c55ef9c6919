"""The worker pool: hard deadlines, no lost job, no process left behind."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from attnrl.errors import UserError
from attnrl.grading.jobs import Job
from attnrl.grading.reading.spelling import is_spelled_as
from attnrl.grading.registry import build_grader
from attnrl.grading.worker_pool import _BOOT, WorkerPool
from attnrl.types import Problem

SLOW = (
    "\\int_0^1 \\sin^{1000}(x)\\,dx",
    "\\int_0^1 \\cos^{999}(x)\\tan^{777}(3x)\\,dx",
)  # gold and answer that math-verify never gets done with
DEEP = 10_000
HOSTILE = [
    "9^{9^{9^9}}",
    "9^{9^{9^9}}-9^{9^{9^9}}+5",
    "\\boxed{" * DEEP,
    "\\boxed{" * DEEP + "5" + "}" * DEEP,
    "{" * DEEP,
    "1" * 1_000_000,
    "1" * 1_999,
    "(10^{9})!",
    "((100000!)!)!",
    "170!!!!!!!!",
    "5}}}}}}{{{{",
    "\\frac{1}{",
    "\\left(\\left(\\left(",
    "\x00",
    "5\x00\x00",
    "\u202e5\u202c\u200f",
    "\ud83d\udc00\ud83d",
    "\\frac{1}{" * 180 + "2" + "}" * 180,
    "\\sqrt{" * 250 + "5" + "}" * 250,
    "(" * 900 + "5" + ")" * 900,
    "\\sum_{k=1}^{10^{100}} k^k",
    "\\prod_{k=1}^{10^{12}} k",
    "\\int_0^{10^{99}} x^{x^x} dx",
    "1," * 900 + "1",
    "2^{" * 20 + "2" + "}" * 20,
    "2^{0.5^{-99999}}",
    "10^{-10^{10^{10}}}",
    "\\binom{10^{12}}{10^{11}}",
    "(x+1)^{1000000}",
    "\\begin{pmatrix}" + "1&" * 500 + "1\\end{pmatrix}",
    "\\text{" * 300 + "5" + "}" * 300,
    "$" * 1_000,
    "\\" * 1_001,
    "=" * 500,
    "x=" * 40 + "5",
    "-" * 1_500 + "5",
    "5" + "!" * 1_000,
    "\\log\\log\\log\\log(0)",
    "\\frac{0}{0}",
    "\\lim_{x\\to\\infty} x^{x^{x}}",
    "__import__('os').system('touch /tmp/attnrl-was-here')",
]


# What these box last is 5, whatever is around it.
RIGHT = ("\\boxed{" * DEEP + "5" + "}" * DEEP, "5}}}}}}{{{{", "\u202e5\u202c\u200f", "x=" * 40 + "5")


def children() -> set[int]:
    """Processes whose parent is this one, zombies included."""
    found = set()
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            fields = (directory / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == os.getpid():
            found.add(int(directory.name))
    return found


def rss_mb(process: int | str = "self") -> float:
    return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.fixture(scope="module")
def pool() -> Iterator[WorkerPool]:
    with WorkerPool(1, deadline=20) as built:
        yield built


def test_outcomes_come_in_order(pool: WorkerPool) -> None:
    jobs = [Job((str(n),), (f"{2 * n}/2" if n % 3 else f"{2 * n + 1}/2",)) for n in range(60)]
    assert [o.verdict for o in pool.run(jobs)] == ["correct" if n % 3 else "wrong" for n in range(60)]
    assert pool.run([]) == []


def test_a_gold_that_cannot_be_parsed(pool: WorkerPool) -> None:
    jobs = [Job(("\\frac{1}{",), ("5",)), Job(("\\frac{1}{", "5"), ("10/2",)), Job(("\\frac{1}{",)), Job(("x",))]
    assert [o.verdict for o in pool.run(jobs)] == ["bad_gold", "correct", "bad_gold", "correct"]


def test_an_answer_that_overruns_is_a_timeout_and_the_others_are_graded() -> None:
    before = children()
    with WorkerPool(2, deadline=1.0) as pool:
        pool.run([Job(("1",), ("2/2",))])
        jobs = [Job((str(n),), (f"{2 * n}/2",)) for n in range(40)]
        jobs[3] = jobs[20] = Job((SLOW[0],), (SLOW[1],))
        started = time.monotonic()
        verdicts = [o.verdict for o in pool.run(jobs, deadline=1.0)]
        assert time.monotonic() - started < 20
        assert verdicts[3] == verdicts[20] == "timeout"
        assert verdicts.count("correct") == 38
        assert len(children() - before) <= 2
    assert children() == before


def test_a_worker_killed_from_outside_loses_no_answer() -> None:
    before = children()
    with WorkerPool(2, deadline=30) as pool:
        jobs = [Job((f"\\frac{{{n}}}{{7}}",), (f"{n}/7+0",)) for n in range(400)]
        stop = threading.Event()
        killed: list[int] = []

        def kill() -> None:
            while not stop.wait(0.9):
                if len(killed) < 2 and (workers := sorted(children() - before)):
                    killed.append(workers[0])
                    os.kill(workers[0], signal.SIGKILL)

        killer = threading.Thread(target=kill)
        killer.start()
        try:
            outcomes = pool.run(jobs)
            for worker in children() - before:  # idle ones too
                os.kill(worker, signal.SIGKILL)
            again = pool.run(jobs[:5])
        finally:
            stop.set()
            killer.join()
    assert killed
    assert {o.verdict for o in outcomes + again} == {"correct"}
    assert children() == before


def test_an_answer_that_kills_its_worker_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    boot = (
        "import os; import attnrl.grading.worker as w; judge = w.judge; "
        "w.judge = lambda job: os._exit(9) if job.boxes == ('die',) else judge(job); "
    )
    monkeypatch.setattr("attnrl.grading.worker_pool._BOOT", _BOOT.replace("from attnrl", boot + "from attnrl"))
    with WorkerPool(1, deadline=30) as pool:
        verdicts = [o.verdict for o in pool.run([Job(("5",), (text,)) for text in ("10/2", "die", "15/3")])]
    assert verdicts == ["correct", "error", "correct"]


def test_workers_are_replaced_when_they_have_answered_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    boot = "import attnrl.grading.worker as w; w.RECYCLE_ANSWERS = 20; "
    monkeypatch.setattr("attnrl.grading.worker_pool._BOOT", _BOOT.replace("from attnrl", boot + "from attnrl"))
    with WorkerPool(1, deadline=30) as pool:
        outcomes = pool.run([Job(("5",), (f"{5 * n}/{n}",)) for n in range(1, 71)])
        assert {o.verdict for o in outcomes} == {"correct"}
        assert pool.started >= 3


def test_workers_that_cannot_start_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("attnrl.grading.worker_pool._BOOT", "raise SystemExit(3)")
    with WorkerPool(1) as pool, pytest.raises(UserError, match=r"\b3\b.*math_verify"):
        pool.run([Job(("5",), ("10/2",))])


def test_a_job_whose_workers_are_killed_from_outside_is_not_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    boot = (
        "import os; import attnrl.grading.worker as w; judge = w.judge; "
        "w.judge = lambda job: os.kill(os.getpid(), 9) if job.boxes == ('kill',) else judge(job); "
    )
    monkeypatch.setattr("attnrl.grading.worker_pool._BOOT", _BOOT.replace("from attnrl", boot + "from attnrl"))
    with WorkerPool(1, deadline=30) as pool:
        verdicts = [o.verdict for o in pool.run([Job(("5",), (text,)) for text in ("10/2", "kill", "15/3")])]
    assert verdicts == ["correct", "not_judged", "correct"]


@pytest.mark.parametrize("fault", ["exit", "memory"])
def test_workers_that_cannot_start_any_more_leave_the_jobs_at_hand_without_a_judgment(
    fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    half = Problem("0", "?", ("\\frac{1}{2}",))
    before = children()
    with build_grader("math", workers=1, deadline=30) as grader:
        assert grader.grade([half], ["\\boxed{0.5}"])[0].verdict == "correct"
        for worker in children() - before:
            os.kill(worker, signal.SIGKILL)
        with monkeypatch.context() as patch:
            if fault == "exit":
                patch.setattr("attnrl.grading.worker_pool._BOOT", "raise SystemExit(3)")
            else:
                patch.setattr("attnrl.grading.worker_pool._start_worker", no_memory)
            grades = grader.grade([half] * 2, ["\\boxed{0.25+0.25}", "\\boxed{\\frac{1}{2}}"])
        assert [(grade.reward, grade.verdict) for grade in grades] == [(None, "not_judged"), (1.0, "correct")]
        assert grades[0].fault is not None and "start" in grades[0].fault
        assert grader.grade([half], ["\\boxed{0.125+0.375}"])[0].verdict == "correct"  # the next call starts anew
    assert children() == before


def no_memory(memory_mb: int) -> None:
    raise OSError(12, "Cannot allocate memory")


@pytest.mark.parametrize(("workers", "deadline"), [(0, 1.0), (1, 0.0), (1, float("nan"))])
def test_settings_are_checked(workers: int, deadline: float) -> None:
    with pytest.raises(UserError):
        WorkerPool(workers, deadline=deadline)
    with pytest.raises(UserError, match=r"memory.*\b10\b"):
        WorkerPool(memory_mb=10)


def test_ctrl_c_leaves_no_children_and_the_pool_works_again() -> None:
    before = children()
    former = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    with WorkerPool(1, deadline=60) as pool:
        pool.run([Job(("1",), ("2/2",))])
        timer = threading.Timer(0.5, lambda: os.kill(os.getpid(), signal.SIGINT))
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            pool.run([Job((SLOW[0],), (SLOW[1],))])
        assert children() == before
        assert pool.run([Job(("1",), ("2/2",))])[0].verdict == "correct"
    signal.signal(signal.SIGINT, former)
    assert children() == before


SCRIPT = """
import os, sys, time
from attnrl.grading.jobs import Job
from attnrl.grading.registry import build_grader
from attnrl.types import Problem
print("main runs", flush=True)
grader = build_grader("math", workers=1, deadline=float(sys.argv[1]))
print(grader.grade([Problem("0", "?", ("2x",))], ["\\\\boxed{x+x}"])[0].verdict, flush=True)
print(*[worker.process.pid for worker in grader.pool._workers], flush=True)
if sys.argv[2] == "stay":
    grader.grade([Problem("0", "?", (r"{gold}",))], [r"\\boxed{{answer}}"])
""".replace("{gold}", SLOW[0]).replace("{answer}", SLOW[1])


def test_a_script_without_a_main_guard_and_without_close(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    (tmp_path / "sympy.py").write_text("raise SystemExit('imported from the working directory')")
    done = subprocess.run([sys.executable, "-P", script, "30", "end"], cwd=tmp_path, capture_output=True, text=True)
    main, verdict, worker = done.stdout.splitlines()
    assert (main, verdict, done.stderr) == ("main runs", "correct", "")
    assert not alive(int(worker))


def test_workers_end_when_their_parent_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    with subprocess.Popen([sys.executable, script, "30", "stay-not"], stdout=subprocess.PIPE, text=True) as idle:
        assert idle.stdout is not None
        worker = int([idle.stdout.readline() for _ in range(3)][2])
        idle.kill()
    end = time.monotonic() + 10
    while alive(worker) and time.monotonic() < end:
        time.sleep(0.05)
    assert not alive(worker)


def test_from_a_thread() -> None:
    verdicts: list[str] = []

    def work() -> None:
        with WorkerPool(1, deadline=30) as pool:
            verdicts.extend(o.verdict for o in pool.run([Job(("5",), ("10/2",))]))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert verdicts == ["correct"]


def test_hostile_answers_and_golds(capfd: pytest.CaptureFixture[str]) -> None:
    """Hostile answers and golds: no deadline is exceeded, none is correct, no process and no output remains."""
    before, deadline = children(), 1.0
    problems, responses = [], []
    for text in HOSTILE:
        problems += [Problem("gold 5", "?", ("5",)), Problem("hostile gold", "?", (text,))]
        responses += [f"\\boxed{{{text}}}", "\\boxed{7}"]
    with build_grader("math", workers=1, deadline=deadline) as grader:
        started = time.monotonic()
        grades = grader.grade(problems, responses)
        assert time.monotonic() - started < len(problems) * (deadline + 0.5)
        for text, with_five, as_gold in zip(HOSTILE, grades[::2], grades[1::2], strict=True):
            assert (with_five.verdict == "correct") == (text in RIGHT), text[:50]
            assert as_gold.verdict in ("wrong", "timeout", "error", "bad_gold"), text[:50]
        good = grader.grade([Problem("0", "?", ("\\frac{1}{2}",))] * 2, ["\\boxed{0.5}", "\\boxed{0.25+x}"])
        assert [grade.verdict for grade in good] == ["correct", "wrong"]
        assert len(children() - before) <= 1
    assert children() == before
    assert capfd.readouterr() == ("", "")
    assert not Path("/tmp/attnrl-was-here").exists()


def test_memory_stays_bounded_over_thousands_of_hostile_answers() -> None:
    """Hostile answers that need no deadline: big numbers, deep brackets, unbalanced braces, odd characters."""
    quick = [
        "9^{{9^{{{0}}}}}",
        "{0}" + "1" * 300,
        "({0}" * 300,
        "(10^{{{0}}})!",
        "{0}}}}}{{{{5",
        "\x00{0}\ud83d",
        "\u202e{0}x",
        "\\sum_{{k=1}}^{{10^{{{0}}}}} k",
    ]
    with build_grader("math", workers=1, deadline=10.0) as grader:
        grader.grade([Problem("0", "?", ("2x",))], ["\\boxed{x+x}"])
        first = parent = 0.0
        for batch in range(3):
            responses = [f"\\boxed{{{text.format(1000 * batch + n + 10)}}}" for n in range(85) for text in quick]
            grades = grader.grade([Problem("0", "?", ("5",))] * len(responses), responses)
            assert all(grade.verdict in ("wrong", "error", "no_answer") for grade in grades)
            (worker,) = (worker.process.pid for worker in grader.pool._workers)  # type: ignore[attr-defined]
            if batch == 0:
                first, parent = rss_mb(worker), rss_mb()
        assert rss_mb(worker) < first + 60
        assert rss_mb() < parent + 60


def test_a_large_number_of_digits_costs_nothing() -> None:
    started = time.perf_counter()
    assert not is_spelled_as("1" * 1_000_000, ["5"])
    assert time.perf_counter() - started < 2
