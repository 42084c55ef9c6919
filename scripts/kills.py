"""Kill a run of the demo with SIGKILL at random moments, resume the run, and compare with an uninterrupted run.

Moments are every phase of a step, the bounds between segments of decoding, each line of a file before and halfway
through the write, and each stage of a checkpoint. A run is killed several times before the run may end; then metrics,
forests, samples, weights, optimizer and state must equal the uninterrupted run's, bit for bit::

    python scripts/kills.py --kills 50 --output results/kills
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from attnrl.experiments.comparison.runner import describe_machine
from attnrl.utils.console import progress_bars

STEPS = 4
SETTINGS = (
    "train",
    "attnrl",
    f"steps={STEPS}",
    *("prompts=2", "eval.every=2", "eval.problems=6", "eval.samples=1", "checkpoint.every=1", "log.trees_every=1"),
)
PHASES = ("plan", "generate", "grade", "score", "train", "sync", "evaluate", "save")
LINES = ("metrics.jsonl", "trees.jsonl", "samples.jsonl")
HALF = "half of "  # a line written, as a loss of power may leave it
MOMENTS = (*PHASES, "decoding", *LINES, *(f"{HALF}{name}" for name in LINES), "manifest", "rename", "remove")
KILLS_PER_RUN = 5
MARK = "at: "
Moment = tuple[str, int, float]
"""What the run is at, for the how-manieth time in its process, and seconds from then."""


def announce_and_run(half: str, number: int, arguments: Sequence[str]) -> None:
    """The command line, which says on standard error at what it is.

    Args:
        half: the file whose line, the ``number``-th appended to it, is written by half; what comes next is the kill.
        number: from 1.
        arguments: of ``attnrl``.
    """
    import attnrl.local.checkpoint as checkpoint
    from attnrl.cli.app import main
    from attnrl.runs.directory import RunDirectory
    from attnrl.runs.display import Display

    def announced(real: Callable[..., Any], name: Callable[..., str]) -> Callable[..., Any]:
        def call(*given: Any, **named: Any) -> Any:
            print(f"{MARK}{name(*given)}", file=sys.stderr, flush=True)
            return real(*given, **named)

        return call

    appended: Counter[str] = Counter()
    append = RunDirectory.append

    def by_half(run: RunDirectory, name: str, rows: Iterable[Mapping[str, Any]]) -> None:
        path = run.root / name
        before = path.stat().st_size if path.exists() else 0
        append(run, name, rows)
        appended[name] += path.stat().st_size > before
        if path.stat().st_size > before and (name, appended[name]) == (half, number):
            last = path.read_bytes().splitlines(keepends=True)[-1]
            os.truncate(path, path.stat().st_size - len(last) // 2)
            print(f"{MARK}{HALF}{name}", file=sys.stderr, flush=True)
            time.sleep(3600)

    Display.phase = announced(Display.phase, lambda display, phase: phase)  # type: ignore[method-assign]
    Display.sampled = announced(Display.sampled, lambda *given: "decoding")  # type: ignore[method-assign]
    RunDirectory.append = announced(by_half, lambda run, name, rows: name)  # type: ignore[method-assign]
    checkpoint.write_manifest = announced(checkpoint.write_manifest, lambda *given: "manifest")
    checkpoint._remove_others = announced(checkpoint._remove_others, lambda *given: "remove")
    checkpoint.os.rename = announced(os.rename, lambda *given: "rename")
    sys.argv = ["attnrl", *arguments]
    main()


def start(output: Path, moment: Moment | None) -> bool:
    """Run until it ends, or kill it at a moment; whether it was killed.

    Raises:
        RuntimeError: it ended with an error of its own.
    """
    name, number, seconds = moment or ("", 0, 0.0)
    half = name.removeprefix(HALF) if name.startswith(HALF) else ""
    command = [sys.executable, __file__, "--announced", half, str(number), *SETTINGS, f"output_dir={output}"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    said, seen = [], 0
    for line in process.stderr:
        if not line.startswith(MARK):
            said.append(line)
        elif line.removeprefix(MARK).strip() == name:
            seen += 1
            if half or seen == number:
                time.sleep(seconds)
                process.kill()
    if process.wait() not in {0, -9}:
        raise RuntimeError(f"{output}: the run failed: {''.join(said)}")
    return process.returncode == -9


def differences(output: Path, whole: Path) -> list[str]:
    """What of a run is not as it is in the run that was never killed."""
    found = []
    for name in ("metrics.jsonl", "trees.jsonl", "samples.jsonl"):
        if _rows(output / name) != _rows(whole / name):
            found.append(name)
    last = Path("checkpoints") / f"step-{STEPS:06d}"
    for path in sorted((whole / last).iterdir()):
        if path.read_bytes() != (output / last / path.name).read_bytes():
            found.append(str(last / path.name))
    return found


def _rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a file, without what the clock says."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [{name: value for name, value in row.items() if not name.startswith("time/")} for row in rows]


def random_moments(seed: int) -> Iterator[Moment]:
    """Moments without end; half of them some time after something began."""
    rng = random.Random(seed)
    while True:
        yield rng.choice(MOMENTS), rng.randint(1, 3), rng.choice((0.0, rng.uniform(0, 0.2)))


def kill_runs(kills: int, moments: Iterator[Moment], directory: Path, console: Console) -> dict[str, Any]:
    """Kill so many times, and compare; the numbers of it.

    Raises:
        RuntimeError: a run failed by itself, killed or resumed.
    """
    start(directory / "whole", None)
    at: Counter[str] = Counter()
    different: dict[str, list[str]] = {}
    runs = 0
    with progress_bars(console) as bars:
        bar = bars.add_task("kills", total=kills)
        while at.total() < kills:
            output = directory / f"run-{runs}"
            runs += 1
            for _ in range(min(KILLS_PER_RUN, kills - at.total())):
                moment = next(moments)
                if not start(output, moment):
                    break  # it has come to its end before that
                at[moment[0]] += 1
                bars.update(bar, advance=1)
            start(output, None)
            if found := differences(output, directory / "whole"):
                different[output.name] = found
            else:
                shutil.rmtree(output)
    return {"kills": at.total(), "runs": runs, "moments": dict(at), "runs that differ": different}


def table(result: dict[str, Any]) -> str:
    """The result for docs/reliability.md."""
    moments = ", ".join(f"{name} {result['moments'].get(name, 0)}" for name in MOMENTS)
    return (
        "| kills | runs | runs that differ from the one never killed | killed at |\n|---|---|---|---|\n"
        f"| {result['kills']} | {result['runs']} | {len(result['runs that differ'])} | {moments} |\n"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="where to write results.json and results.md")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        result = kill_runs(options.kills, random_moments(options.seed), Path(directory), Console(stderr=True))
    print(json.dumps(result))
    if options.output:
        options.output.mkdir(parents=True, exist_ok=True)
        document = {**result, "machine": describe_machine()}
        (options.output / "results.json").write_text(json.dumps(document) + "\n", encoding="utf-8")
        (options.output / "results.md").write_text(table(result), encoding="utf-8")
    return 1 if result["runs that differ"] else 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["--announced"]:
        announce_and_run(sys.argv[2], int(sys.argv[3]), sys.argv[4:])
    else:
        sys.exit(main())
