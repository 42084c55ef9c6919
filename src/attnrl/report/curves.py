"""Learning curves of runs as one picture (``pip install attnrl[report]``)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

from attnrl.errors import UserError
from attnrl.report.pictures import pyplot_for, save_picture
from attnrl.runs.directory import METRICS, RunDirectory
from attnrl.runs.metrics_file import read_metrics


def draw_curves(runs: Sequence[Path], output: Path) -> None:
    """Draw held-out accuracy of each run over sampled tokens and over seconds of training.

    Directory names equal up to a trailing ``-NUMBER`` (seeds of one recipe) share a colour and a legend entry.

    Raises:
        UserError: matplotlib is missing, a run has no evaluations, or the picture cannot be written.
    """
    pyplot = pyplot_for("plot")
    figure, panels = pyplot.subplots(1, 2, figsize=(10, 4), sharey=True, layout="constrained")
    colours: dict[str, str] = {}
    for run in runs:
        tokens, seconds, accuracies = _series(run)
        name = run.name.rpartition("-")[0] if run.name.rpartition("-")[2].isdigit() else run.name
        seen = name in colours
        colour = colours.setdefault(name, f"C{len(colours)}")
        for panel, x in zip(panels, (tokens, seconds), strict=True):
            panel.plot(x, accuracies, color=colour, label=None if seen else name, marker=".", alpha=0.8)
    panels[0].set(xlabel="tokens sampled", ylabel="held-out accuracy")
    panels[1].set(xlabel="seconds of training")
    for panel in panels:
        panel.grid(alpha=0.3)
    panels[0].legend()
    save_picture(figure, output)


def _series(run: Path) -> tuple[list[float], list[float], list[float]]:
    """Return sampled tokens, seconds of training and accuracy at each evaluation of a run."""
    rows = read_metrics(RunDirectory(run), numbers=("time/step", "tokens/total", "eval/accuracy"))
    seconds = list(accumulate(row.get("time/step", 0.0) for row in rows))
    evaluated = [
        (row.get("tokens/total", 0.0), elapsed, row["eval/accuracy"])
        for row, elapsed in zip(rows, seconds, strict=True)
        if "eval/accuracy" in row
    ]
    if not evaluated:
        raise UserError(f"{run}: no evaluations in {METRICS}")
    tokens, times, accuracies = zip(*evaluated, strict=True)
    return list(tokens), list(times), list(accuracies)
