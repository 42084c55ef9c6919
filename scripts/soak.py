"""Train for many very small steps, and check for growth of memory, of the time per step, and of the files.

python scripts/soak.py --steps 2000 --output results/soak
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console

from attnrl.config.load import load_config
from attnrl.config.schema import TrainConfig
from attnrl.experiments.comparison.runner import describe_machine
from attnrl.runs.directory import METRICS, TIMELINE, TREES, RunDirectory
from attnrl.runs.display import Display
from attnrl.runs.prepare import prepare
from attnrl.runs.session import train

FIRST = 100  # steps until which caches may still grow
SETTINGS = (
    *("prompts=2", "method.trunks=2", "method.branching.points=1", "method.branching.samples=1"),
    *("eval.every=500", "eval.problems=5", "eval.samples=1", "checkpoint.every=100", "log.trees_every=50"),
    "optimizer.learning_rate=1e-5",  # so that responses stay as they are, and steps alike
)


class Watching(Display):
    """A display that also notes the memory of the process after each step, in MiB."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self.mebibytes: dict[int, float] = {}

    def step(self, metrics: Mapping[str, float]) -> None:
        super().step(metrics)
        self.mebibytes[int(metrics["step"])] = resident_mebibytes()


def resident_mebibytes() -> float:
    """What of this process is in memory now."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    (line,) = [line for line in status.splitlines() if line.startswith("VmRSS:")]
    return int(line.split()[1]) / 1024


def soak(steps: int, output: Path, console: Console) -> dict[str, Any]:
    """Run so many steps, and the numbers of it."""
    watching = Watching(console)
    overrides = [*SETTINGS, f"steps={steps}", f"output_dir={output}"]
    rows = train(prepare(load_config(TrainConfig, "attnrl", overrides)), watching)[1:]
    directory = RunDirectory(output)
    window = min(200, len(rows) // 4)
    early, late = rows[FIRST : FIRST + window], rows[-window:]
    forests = {row["step"] for row in directory.read(TREES)}
    return {
        "steps": len(rows),
        "MiB after step 100": watching.mebibytes[FIRST],
        "MiB after the last step": watching.mebibytes[len(rows)],
        "MiB at most": max(watching.mebibytes.values()),
        f"ms a step, median of steps {FIRST + 1} to {FIRST + window}": 1000 * median(r["time/step"] for r in early),
        f"ms a step, median of the last {window}": 1000 * median(r["time/step"] for r in late),
        "lines of metrics.jsonl": len(directory.read(METRICS)),
        "lines of timeline.jsonl": len(directory.read(TIMELINE)),
        "steps with forests": len(forests),
        "bytes of metrics.jsonl a step": (output / METRICS).stat().st_size / (len(rows) + 1),
        "checkpoints": len(list(directory.checkpoints.iterdir())),
        "MB of the run directory": sum(path.stat().st_size for path in output.rglob("*") if path.is_file()) / 1e6,
    }


def faults(result: Mapping[str, Any]) -> list[str]:
    """What of the numbers is not as it should be."""
    steps = result["steps"]
    times = [value for name, value in result.items() if name.startswith("ms a step")]
    grown = result["MiB after the last step"] / result["MiB after step 100"]
    checks = {
        f"memory grew by {grown - 1:.1%}": grown < 1.05,
        f"a step takes {times[1] / times[0]:.2f} times as long as at first": times[1] < 1.25 * times[0],
        "metrics.jsonl has other lines than steps": result["lines of metrics.jsonl"] == steps + 1,
        "timeline.jsonl has other lines than steps": result["lines of timeline.jsonl"] == steps,
        "trees.jsonl has other steps than log.trees_every": result["steps with forests"] == len(range(0, steps, 50)),
        "there are other checkpoints than checkpoint.keep_last": result["checkpoints"] == 2,
    }
    return [fault for fault, passed in checks.items() if not passed]


def table(result: Mapping[str, Any]) -> str:
    """The result for docs/reliability.md."""
    rows = [f"| {name} | {value:,.0f} |" for name, value in result.items()]
    return "\n".join(["| | |", "|---|---|", *rows]) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--output", type=Path, help="where to write results.json and results.md")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        result = soak(options.steps, Path(directory) / "run", Console(stderr=True))
    print(json.dumps(result))
    found = faults(result)
    if options.output:
        options.output.mkdir(parents=True, exist_ok=True)
        document = {**result, "faults": found, "machine": describe_machine()}
        (options.output / "results.json").write_text(json.dumps(document) + "\n", encoding="utf-8")
        (options.output / "results.md").write_text(table(result), encoding="utf-8")
    for fault in found:
        print(f"fault: {fault}", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
