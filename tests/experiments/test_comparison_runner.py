"""Comparisons from end to end: a tiny random model, runs in subprocesses."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from attnrl.errors import UserError
from attnrl.experiments.comparison.config import Comparison, PlannedRun, load_comparison, plan_runs
from attnrl.experiments.comparison.results import recorded_runs
from attnrl.experiments.comparison.runner import describe_machine, is_finished, run_comparison, write_results

SMALL = [
    "prompts=2",
    "method.trunks=3",
    "sampling.max_new_tokens=24",
    "eval.problems=2",
    "eval.samples=2",
    "eval.every=1",
    "checkpoint.every=1",
    "device=cpu",
]


def comparison(model: Path, output: Path, *overrides: str) -> tuple[Comparison, list[PlannedRun]]:
    settings = ", ".join([f"model={model}", *SMALL])
    loaded = load_comparison(
        "grpo,attnrl", [f"output_dir={output}", "tokens=300", "seeds=[0]", f"settings=[{settings}]", *overrides]
    )
    return loaded, plan_runs(loaded)


def quiet() -> Console:
    return Console(file=io.StringIO(), width=200)


def test_a_comparison_from_runs_to_pictures_and_not_twice(tiny_checkpoint: Path, tmp_path: Path) -> None:
    loaded, runs = comparison(tiny_checkpoint, tmp_path)
    console = quiet()
    run_comparison(loaded, runs, console)
    assert all(map(is_finished, runs))
    assert "attnrl, seed 0" in console.file.getvalue()  # type: ignore[attr-defined]
    lines = write_results(loaded, runs)
    assert (tmp_path / "results.md").read_text().splitlines() == lines
    assert any(line.startswith("| attnrl |") for line in lines)
    document = json.loads((tmp_path / "results.json").read_text())
    assert [(run["arm"], run["seed"]) for run in document["runs"]] == [("grpo", 0), ("attnrl", 0)]
    assert document["machine"]["torch"]
    for picture in ("curves.png", "dynamics.png"):
        assert (tmp_path / picture).read_bytes().startswith(b"\x89PNG")
    before = {run.directory: (run.directory / "metrics.jsonl").stat().st_mtime_ns for run in runs}
    console = quiet()
    run_comparison(loaded, runs, console)
    assert "2 of 2" in console.file.getvalue()  # type: ignore[attr-defined]
    assert before == {run.directory: (run.directory / "metrics.jsonl").stat().st_mtime_ns for run in runs}
    # The results alone do for a run whose directory was not kept; what they hold is not changed by being read.
    shutil.rmtree(tmp_path / "runs")
    run_comparison(loaded, runs, quiet())
    assert write_results(loaded, runs) == lines
    assert json.loads((tmp_path / "results.json").read_text())["runs"] == document["runs"]
    other, other_runs = comparison(tiny_checkpoint, tmp_path, "tokens=301")
    assert recorded_runs(tmp_path / "results.json", other) == {} and not any(map(is_finished, other_runs))
    (tmp_path / "results.json").write_text("{}")
    with pytest.raises(UserError, match=r"results\.json"):
        run_comparison(loaded, runs, quiet())


def test_a_run_that_fails_is_named_and_the_others_are_done(tiny_checkpoint: Path, tmp_path: Path) -> None:
    arms = "arms={bad: {recipe: attnrl, settings: [model=nowhere]}, good: {recipe: attnrl}}"
    loaded, runs = comparison(tiny_checkpoint, tmp_path, arms)
    with pytest.raises(UserError, match=r"\b1\b.*\b2\b.*bad.*seed 0.*nowhere.*bad/seed-0\.log"):
        run_comparison(loaded, runs, quiet())
    assert [is_finished(run) for run in runs] == [False, True]


def test_ctrl_c_saves_and_the_same_command_goes_on(tiny_checkpoint: Path, tmp_path: Path) -> None:
    settings = f"settings=[{', '.join([f'model={tiny_checkpoint}', *SMALL])}]"
    changes = [f"output_dir={tmp_path}", "tokens=3000", "seeds=[0]", settings]
    command = [sys.executable, "-m", "attnrl", "compare", "attnrl", *changes]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        # A shell starts background jobs with SIGINT ignored, and the child would inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    metrics = tmp_path / "runs" / "attnrl" / "seed-0" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (metrics.exists() and metrics.read_text().count("\n") >= 2):  # until its first step is done
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 130, (output, errors)
    assert list((metrics.parent / "checkpoints").glob("step-*"))
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    steps = [json.loads(line)["step"] for line in metrics.read_text().splitlines()]
    assert steps == list(range(len(steps)))
    assert (tmp_path / "results.json").exists()


def test_the_machine_is_described() -> None:
    machine = describe_machine()
    assert machine["cores"] == os.cpu_count() and machine["processor"]
