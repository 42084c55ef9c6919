"""Fuzz with new hostile inputs for a given time: ``python scripts/fuzz.py all --seconds 600``.

The targets of ``tests/hostile.py`` are the config loader, the data readers, the step splitter and the graders. Each
target runs in a separate process, so that a crash of the interpreter or a timeout ends only one target. The output is
a line of JSON per target, with the failures. The exit code is 1 after a failure.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from hostile import TARGETS, Target

EXAMPLES = 400  # before hypothesis starts anew, with another seed
GRACE = 30.0  # seconds beyond an input's own, after which its process is killed
STARTING = 180.0  # seconds for imports on a busy machine
MAX_FAULTS = 20


class HangError(Exception):
    """An input took longer than its target's seconds."""


def search(target: Target, seconds: float, current: Path | None = None) -> dict[str, Any]:
    """Try inputs for so many seconds in this process, which must be its main thread.

    Args:
        target: what to try them on.
        seconds: for how long; a fault found at the end is made smaller beyond that.
        current: a file that always holds the input in hand, for whoever finds this process dead.

    Returns:
        ``tried``, the ``slowest`` input's seconds, and ``faults``: each error and the smallest input that leads to it.
    """
    tried, slowest = 0, 0.0
    failing: list[tuple[str, str]] = []  # of a round, the smallest last: place and input
    faults: dict[str, dict[str, str]] = {}
    end = time.monotonic() + seconds

    def overdue(number: int, frame: object) -> None:
        raise HangError(f"took more than {target.seconds:g} s")

    def attempt(value: Any) -> None:
        nonlocal tried, slowest
        if time.monotonic() > end and not failing:
            return
        if current is not None:
            current.write_text(repr(value))
        tried += 1
        started = time.monotonic()
        signal.setitimer(signal.ITIMER_REAL, target.seconds)
        try:
            target.check(value)
        except Exception as error:
            place = _place(error)
            if place not in faults:
                failing.append((place, repr(value)))
                raise
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            slowest = max(slowest, time.monotonic() - started)

    limits = settings(
        max_examples=EXAMPLES,
        database=None,
        deadline=None,
        derandomize=False,
        phases=(Phase.generate, Phase.shrink),
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
    )
    former = signal.signal(signal.SIGALRM, overdue)
    try:
        while time.monotonic() < end and len(faults) < MAX_FAULTS:
            failing.clear()
            try:
                limits(given(target.inputs)(attempt))()
            except Exception as error:
                if not failing:
                    raise
                place, smallest = failing[-1]
                faults[place] = {"error": f"{type(error).__name__}: {error}", "input": smallest}
    finally:
        signal.signal(signal.SIGALRM, former)
    return {
        "tried": tried,
        "slowest": round(slowest, 2),
        "faults": [{"at": at, **fault} for at, fault in faults.items()],
    }


def _place(error: Exception) -> str:
    """What an error is and where it came up: faults that agree in it are one."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__} in {Path(frame.filename).name}, line {frame.lineno}"


def watch(name: str, seconds: float) -> dict[str, Any]:
    """:func:`search` in a separate process, which is killed after a timeout."""
    with tempfile.TemporaryDirectory() as folder:
        current, out = Path(folder) / "input", Path(folder) / "out"
        current.touch()
        started = time.monotonic()
        command = [sys.executable, __file__, name, "--seconds", str(seconds), "--current", str(current)]
        with out.open("w") as file:
            process = subprocess.Popen(command, stdout=file)
        ended = None
        while process.poll() is None:
            state = current.stat()
            patience = TARGETS[name].seconds + GRACE if state.st_size else STARTING
            if time.time() - state.st_mtime > patience:
                process.kill()
                ended = "killed: an input took too long"
            time.sleep(0.2)
        printed = out.read_text()
        if process.returncode in (0, 1) and printed.strip():
            found: dict[str, Any] = json.loads(printed.splitlines()[-1])
        else:
            ended = ended or f"exit status {process.returncode}"
            found = {"tried": None, "faults": [{"at": "process", "error": ended, "input": current.read_text()}]}
        return {"target": name, "seconds": round(time.monotonic() - started), **found}


def table(results: list[dict[str, Any]]) -> str:
    """The results for docs/reliability.md."""
    rows = [
        f"| {found['target']} | {found['seconds']} | {found['tried'] or 0:,} | {len(found['faults'])} | "
        f"{found.get('slowest', 'killed')} |"
        for found in results
    ]
    header = ["| target | seconds | inputs tried | faults | slowest input, s |", "|---|---|---|---|---|"]
    return "\n".join([*header, *rows]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target", choices=[*TARGETS, "all"])
    parser.add_argument("--seconds", type=float, default=600.0, help="for each target")
    parser.add_argument("--output", type=Path, help="where to write results.json and results.md")
    parser.add_argument("--current", type=Path, help=argparse.SUPPRESS)  # what watch() tells its process
    options = parser.parse_args()
    if options.current is not None:
        print(json.dumps(search(TARGETS[options.target], options.seconds, options.current)))
        return
    results = []
    for name in TARGETS if options.target == "all" else [options.target]:
        results.append(watch(name, options.seconds))
        print(json.dumps(results[-1]), flush=True)
    if options.output:
        from attnrl.experiments.comparison.runner import describe_machine

        options.output.mkdir(parents=True, exist_ok=True)
        document = {"targets": results, "machine": describe_machine()}
        (options.output / "results.json").write_text(json.dumps(document) + "\n", encoding="utf-8")
        (options.output / "results.md").write_text(table(results), encoding="utf-8")
    sys.exit(1 if any(found["faults"] for found in results) else 0)


if __name__ == "__main__":
    main()
