"""Learning curves of runs as one picture (``pip install attnrl[report]``)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

from attnrl.errors import UserError
from attnrl.report.pictures import pyplot_for, save_picture
from attnrl.runs.directory import METRICS, RunDirectory
from attnrl.runs.metrics_file import read_metrics


@dataclass(frozen=True)
class Curve:
    """Held-out results of a run, one value per evaluation.

    Attributes:
        tokens: sampled tokens.
        seconds: seconds of training.
        values: accuracy and reward by name; NaN where an evaluation has no value.
    """

    tokens: list[float]
    seconds: list[float]
    values: dict[str, list[float]]

    @property
    def reward_tells_more(self) -> bool:
        """Return True if some reward is known and differs from the accuracy."""
        pairs = zip(self.values["reward"], self.values["accuracy"], strict=True)
        return any(not math.isnan(reward) and reward != accuracy for reward, accuracy in pairs)


def draw_curves(runs: Sequence[Path], output: Path) -> None:
    """Draw held-out accuracy of each run over sampled tokens and over seconds of training, and the held-out reward.

    The reward has panels of its own, left out if equal to the accuracy in all runs. Directory names equal up to a
    trailing ``-NUMBER`` (seeds of one recipe) share a colour and a legend entry.

    Raises:
        UserError: matplotlib is missing, a run has no evaluations, or the picture cannot be written.
    """
    pyplot = pyplot_for("plot")
    curves = [_curve(run) for run in runs]
    names = ["accuracy", "reward"] if any(curve.reward_tells_more for curve in curves) else ["accuracy"]
    figure, grid = pyplot.subplots(
        len(names), 2, figsize=(10, 4 * len(names)), sharex="col", sharey="row", layout="constrained", squeeze=False
    )
    colours: dict[str, str] = {}
    for run, curve in zip(runs, curves, strict=True):
        name = run.name.rpartition("-")[0] if run.name.rpartition("-")[2].isdigit() else run.name
        label = None if name in colours else name
        colour = colours.setdefault(name, f"C{len(colours)}")
        for measure, panels in zip(names, grid, strict=True):
            for panel, x in zip(panels, (curve.tokens, curve.seconds), strict=True):
                panel.plot(x, curve.values[measure], color=colour, label=label, marker=".", alpha=0.8)
    for measure, panels in zip(names, grid, strict=True):
        panels[0].set(ylabel=f"held-out {measure}")
        for panel in panels:
            panel.grid(alpha=0.3)
    grid[-1][0].set(xlabel="tokens sampled")
    grid[-1][1].set(xlabel="seconds of training")
    grid[0][0].legend()
    save_picture(figure, output)


def _curve(run: Path) -> Curve:
    rows = read_metrics(RunDirectory(run), numbers=("time/step", "tokens/total", "eval/accuracy", "eval/reward"))
    seconds = list(accumulate(row.get("time/step", 0.0) for row in rows))
    evaluated = [(row, elapsed) for row, elapsed in zip(rows, seconds, strict=True) if "eval/accuracy" in row]
    if not evaluated:
        raise UserError(f"{run}: no evaluations in {METRICS}")
    return Curve(
        [row.get("tokens/total", 0.0) for row, _ in evaluated],
        [elapsed for _, elapsed in evaluated],
        {name: [row.get(f"eval/{name}", math.nan) for row, _ in evaluated] for name in ("accuracy", "reward")},
    )
