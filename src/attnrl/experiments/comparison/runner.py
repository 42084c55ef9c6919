"""Run a comparison: each training run in a subprocess, several at a time, with resume."""

from __future__ import annotations

import json
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date
from importlib.metadata import version
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from attnrl.errors import UserError
from attnrl.experiments.comparison.config import Comparison, PlannedRun
from attnrl.experiments.comparison.report import ablation_table, draw_comparison, draw_dynamics, efficiency_table
from attnrl.experiments.comparison.results import (
    complete_seeds,
    read_run_result,
    recorded_runs,
    results_document,
    summarize_arms,
)
from attnrl.runs.directory import RunDirectory
from attnrl.runs.metrics_file import read_metrics
from attnrl.utils.console import print_line

POLL_SECONDS = 0.5
RESULTS = "results.json"
GRADER_FAILED = 3  # exit code of a finished run with responses that are not judged


def run_comparison(comparison: Comparison, runs: Sequence[PlannedRun], console: Console) -> list[PlannedRun]:
    """Train every unfinished run; interrupted runs resume, finished runs are skipped.

    The first Ctrl-C (or SIGTERM) lets running processes finish the current step and save a checkpoint; the second
    kills the processes.

    Returns:
        The runs trained to the end, but with more responses not judged than ``reward.max_not_judged``.

    Raises:
        UserError: some runs failed. Raised after all runs have ended; the message names the first failed run and the
            last line of the run's log.
        KeyboardInterrupt: interrupted; the same call resumes.
    """
    recorded = recorded_runs(comparison.output_dir / RESULTS, comparison)
    waiting = [run for run in runs if (run.arm, run.seed) not in recorded and not is_finished(run)]
    if len(waiting) < len(runs):
        print_line(console, f"{len(runs) - len(waiting)} of {len(runs)} runs are finished already")
    with _progress(console, len(runs) * comparison.tokens) as bar, _sigterm_interrupts():
        workers = _Workers(comparison, runs, waiting, bar)
        failed = workers.work()
    if failed:
        raise UserError(
            f"{len(failed)} of {len(runs)} runs failed, first arm {failed[0].arm}, seed {failed[0].seed}: "
            f"{_last_line(failed[0].log)} (log: {failed[0].log})"
        )
    return workers.with_faults


def is_finished(run: PlannedRun) -> bool:
    """Return True if the run has reached the end of training, last evaluation included."""
    rows = read_metrics(RunDirectory(run.directory), numbers=("tokens/total",))
    return bool(rows) and run.config.is_over(rows[-1]["step"], rows[-1].get("tokens/total", 0.0))


@dataclass
class _Workers:
    """The running subprocesses, the runs with a fault of the grader, and the progress bar of sampled tokens."""

    comparison: Comparison
    runs: Sequence[PlannedRun]
    waiting: list[PlannedRun]
    bar: Progress
    working: dict[int, tuple[PlannedRun, subprocess.Popen[bytes]]] = field(default_factory=dict)
    with_faults: list[PlannedRun] = field(default_factory=list)

    def work(self) -> list[PlannedRun]:
        """Run all waiting runs, and return the failed runs."""
        failed: list[PlannedRun] = []
        done = len(self.runs) - len(self.waiting)
        try:
            while self.waiting or self.working:
                while self.waiting and len(self.working) < self.comparison.workers:
                    run = self.waiting.pop(0)
                    process = _start(run)
                    self.working[process.pid] = run, process
                    self._show(done)
                time.sleep(POLL_SECONDS)
                for pid, (run, process) in list(self.working.items()):
                    if process.poll() is None:
                        continue
                    del self.working[pid]
                    done += 1
                    finished = process.returncode in (0, GRADER_FAILED) and is_finished(run)
                    text = f"{run.arm}, seed {run.seed} ({done} of {len(self.runs)})"
                    if not finished:
                        failed.append(run)
                    elif process.returncode == GRADER_FAILED:
                        self.with_faults.append(run)
                        text += f": warning: {_last_line(run.log)}"
                    print_line(self.bar.console, f"{'finished' if finished else 'failed'}: {text}")
                self._show(done)
        except KeyboardInterrupt:
            self._stop()
            raise
        return failed

    def _show(self, done: int) -> None:
        budget = self.comparison.tokens
        tokens = done * budget + sum(min(_sampled(run), budget) for run, _ in self.working.values())
        names = "; ".join(f"{run.arm} {run.seed}" for run, _ in self.working.values())
        self.bar.update(self.bar.task_ids[0], completed=tokens, description=f"{done}/{len(self.runs)} runs  {names}")

    def _stop(self) -> None:
        """Send SIGINT to every subprocess and wait; kill the subprocesses at a second Ctrl-C."""
        print_line(
            self.bar.console,
            "Stopping every run after the current step; the same command resumes. Press Ctrl-C again to kill the runs.",
        )
        for _, process in self.working.values():
            process.send_signal(signal.SIGINT)
        try:
            for _, process in self.working.values():
                process.wait()
        except KeyboardInterrupt:
            for _, process in self.working.values():
                process.kill()
            raise


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1].removeprefix("attnrl: ") if lines else "the log is empty"


def _start(run: PlannedRun) -> subprocess.Popen[bytes]:
    run.directory.parent.mkdir(parents=True, exist_ok=True)
    with run.log.open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "attnrl", "train", run.recipe, *run.overrides],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            # One thread per run: concurrent runs share the cores.
            env={"OMP_NUM_THREADS": "1", **os.environ},
            # A session of its own: Ctrl-C in the terminal reaches only this process, which sends SIGINT once.
            start_new_session=True,
        )


def _sampled(run: PlannedRun) -> float:
    rows = read_metrics(RunDirectory(run.directory), numbers=("tokens/total",))
    return float(rows[-1].get("tokens/total", 0.0)) if rows else 0.0


@contextmanager
def _progress(console: Console, tokens: int) -> Iterator[Progress]:
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:.0f}% of the tokens"))
    with Progress(*columns, TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(), console=console) as bar:
        bar.add_task("", total=tokens)
        yield bar


@contextmanager
def _sigterm_interrupts() -> Iterator[None]:
    """Handle SIGTERM like Ctrl-C, also in a background job that ignores SIGINT."""
    former = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, former)


def write_results(comparison: Comparison, runs: Sequence[PlannedRun]) -> list[str]:
    """Write ``results.json``, ``results.md``, ``curves.png`` and ``dynamics.png`` of all finished runs.

    A run without a run directory counts as finished if an earlier ``results.json`` has the result.

    Returns:
        The lines of ``results.md``.

    Raises:
        UserError: no seed is finished by all arms, or matplotlib or scipy is missing.
    """
    known = recorded_runs(comparison.output_dir / RESULTS, comparison)
    known |= {(run.arm, run.seed): read_run_result(run) for run in runs if is_finished(run)}
    results = [known[run.arm, run.seed] for run in runs if (run.arm, run.seed) in known]
    arms = summarize_arms(results, comparison.tokens, comparison.target)
    output = comparison.output_dir
    document = results_document(comparison, results, arms, describe_machine())
    (output / RESULTS).write_text(json.dumps(document) + "\n", encoding="utf-8")
    lines = [
        *ablation_table(arms, comparison.tokens, comparison.target),
        "",
        *efficiency_table(arms, comparison.tokens, comparison.target),
    ]
    (output / "results.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    drawn = complete_seeds(results)
    draw_comparison(drawn, comparison.tokens, comparison.target, output / "curves.png")
    draw_dynamics(drawn, output / "dynamics.png")
    return lines


def describe_machine() -> dict[str, str | int | None]:
    """Return processor, cores, versions, date, and the git commit of the checkout, for the record of results."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        **{package: version(package) for package in ("attnrl", "torch", "transformers")},
        "date": date.today().isoformat(),
        "commit": _commit(),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _commit() -> str | None:
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
