"""Tables (markdown) and pictures of a comparison: learning curves with error bands, and training dynamics."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from attnrl.experiments.comparison.results import (
    ArmResult,
    Difference,
    RunResult,
    SeedMean,
    interpolate,
    mean_over_seeds,
)
from attnrl.report.pictures import pyplot_for, save_picture

POINTS = 60  # points per drawn curve
SMOOTHED = 5  # steps averaged per point of the training dynamics
COLUMNS = 4  # columns of panels

#: Title of each metric of the training dynamics.
TITLES = {
    "mc/solve_all_ratio": "continuations all correct",
    "mc/solve_none_ratio": "continuations all wrong",
    "mc/valid_ratio": "continuations valid",
    "all/valid_ratio": "problems valid",
    "all_correct_then_valid_ratio": "all correct at first, then valid",
    "tokens/valid_ratio": "valid tokens",
    "filtered_ratio": "problems filtered",
    "prompt_batch_size": "problems per step",
    "entropy": "entropy",
    "reward": "reward",
    "accuracy": "correct",
    "response_length": "response length",
    "branch/position": "place of branches",
}


def ablation_table(arms: Sequence[ArmResult], budget: float, target: float) -> list[str]:
    """Return the table of accuracies and of paired tests against the first arm (compare Table 2 of the paper).

    The column of held-out rewards is left out if every reward equals the accuracy.
    """
    first = arms[0].arm
    with_reward = any(arm.reward_tells_more for arm in arms)
    return [
        f"| {arms[0].seeds} seeds, {budget / 1e6:g}M tokens | accuracy |{' reward |' if with_reward else ''} mean "
        f"accuracy over the run | against {first} (95 % interval, p) | tokens to {target:.0%} | {first}'s by these |",
        f"|---|---|{'---|' if with_reward else ''}---|---|---|---|",
        *(
            f"| {arm.arm} | {_percent(arm.accuracy)} | {f'{_number(arm.reward)} | ' if with_reward else ''}"
            f"{_percent(arm.area)} | "
            f"{'' if arm.arm == first else _difference(arm.area_difference)} | {_tokens_to_target(arm)} | "
            f"{_speedup(arm, arms[0])} |"
            for arm in arms
        ),
    ]


def efficiency_table(arms: Sequence[ArmResult], budget: float, target: float) -> list[str]:
    """Return the table of steps, seconds and valid tokens (compare Table 3 of the paper), as markdown lines."""
    return [
        f"| {arms[0].seeds} seeds, {budget / 1e6:g}M tokens | steps | optimizer steps | seconds | valid tokens | "
        f"accuracy | seconds to {target:.0%} |",
        "|---|---|---|---|---|---|---|",
        *(
            f"| {arm.arm} | {arm.steps.mean:.1f} | {arm.updates.mean:.1f} | {_plain(arm.seconds)} | "
            f"{arm.valid_ratio.mean:.0%} | {_percent(arm.accuracy)} | "
            f"{'> ' if arm.reached < arm.seeds else ''}{_plain(arm.seconds_to_target)} |"
            for arm in arms
        ),
    ]


def _percent(value: SeedMean) -> str:
    return f"{100 * value.mean:.1f} ± {100 * value.standard_error:.1f} %"


def _number(value: SeedMean) -> str:
    return "unknown" if math.isnan(value.mean) else f"{value.mean:.3f} ± {value.standard_error:.3f}"


def _plain(value: SeedMean) -> str:
    return f"{value.mean:,.0f} ± {value.standard_error:,.0f}"


def _difference(difference: Difference) -> str:
    if math.isnan(difference.p):
        return f"{100 * difference.mean:+.1f} points"
    return (
        f"{100 * difference.mean:+.1f} points ({100 * difference.low:+.1f} to {100 * difference.high:+.1f}, "
        f"p = {difference.p:.2g})"
    )


def _tokens_to_target(arm: ArmResult) -> str:
    missed = arm.seeds - arm.reached
    if missed == arm.seeds:
        return "not reached"
    tokens = f"{arm.tokens_to_target.mean / 1e6:.2f} ± {arm.tokens_to_target.standard_error / 1e6:.2f}M"
    return f"> {tokens} ({missed} of {arm.seeds} never)" if missed else tokens


def _speedup(arm: ArmResult, first: ArmResult) -> str:
    if arm.arm == first.arm or not arm.reached or not first.reached:
        return ""
    # A run that misses the target counts with the budget, a lower bound of the tokens to the target.
    bound = "" if first.reached == first.seeds else "> "
    if arm.reached < arm.seeds:
        bound = "about " if bound else "< "
    return f"{bound}{arm.speedup:.2f}x"


def draw_comparison(results: Sequence[RunResult], budget: float, target: float, output: Path) -> None:
    """Draw accuracy and reward over tokens and over seconds of training: means over seeds, bands of a standard error.

    The reward has panels of its own, left out if equal to the accuracy in all runs.

    Raises:
        UserError: matplotlib is missing, or the picture cannot be written.
    """
    pyplot = pyplot_for("compare")
    curves: dict[str, Callable[[RunResult], Sequence[float]]] = {"accuracy": lambda run: run.accuracy}
    if any(run.reward_tells_more for run in results):
        curves["reward"] = lambda run: run.reward
    figure, grid = pyplot.subplots(
        len(curves), 2, figsize=(12, 5 * len(curves)), sharex="col", sharey="row", layout="constrained", squeeze=False
    )
    for (name, curve), panels in zip(curves.items(), grid, strict=True):
        for number, (arm, runs) in enumerate(_by_arm(results).items()):
            style = _style(number)
            tokens = [budget * point / POINTS for point in range(POINTS + 1)]
            _band(
                panels[0],
                tokens,
                [[interpolate(run.tokens, curve(run), x) for x in tokens] for run in runs],
                style,
                arm,
            )
            # Seeds take different times: the mean ends where the fastest seed ends.
            end = min(run.seconds_at(budget) for run in runs)
            seconds = [end * point / POINTS for point in range(POINTS + 1)]
            by_seconds = [[interpolate(run.seconds, curve(run), x) for x in seconds] for run in runs]
            _band(panels[1], seconds, by_seconds, style, arm)
        panels[0].set(ylabel=f"held-out {name}", xlim=(0, budget))
        panels[1].set(xlim=(0, None))
        for panel in panels:
            panel.grid(alpha=0.3)
    for panel in grid[0]:
        panel.axhline(target, color="grey", linewidth=0.8, linestyle=":")
    grid[-1][0].set(xlabel="tokens sampled")
    grid[-1][1].set(xlabel="seconds of training")
    grid[0][1].legend(fontsize="small")
    save_picture(figure, output)


def draw_dynamics(results: Sequence[RunResult], output: Path) -> None:
    """Draw the training dynamics (figures 6, 7 and 8 of the paper) over training steps.

    Curves are means over seeds and running means over :data:`SMOOTHED` steps, since the batch of one step is small.

    Raises:
        UserError: matplotlib is missing, or the picture cannot be written.
    """
    pyplot = pyplot_for("compare")
    rows = math.ceil(len(TITLES) / COLUMNS)
    figure, grid = pyplot.subplots(rows, COLUMNS, figsize=(3.4 * COLUMNS, 2.6 * rows), layout="constrained")
    panels = dict(zip(TITLES, grid.flat, strict=False))
    for number, (arm, runs) in enumerate(_by_arm(results).items()):
        for name, panel in panels.items():
            # zip ends with the shortest seed.
            by_step = zip(*(run.dynamics[name] for run in runs), strict=False)
            means = [fmean(values) if not any(map(math.isnan, values)) else math.nan for values in by_step]
            panel.plot(range(1, len(means) + 1), running_mean(means), label=arm, linewidth=1.2, **_style(number))
    for name, panel in panels.items():
        panel.set_title(TITLES[name], fontsize="medium")
        panel.grid(alpha=0.3)
    for panel in list(panels.values())[-COLUMNS:]:
        panel.set_xlabel("training step")
    for panel in list(grid.flat)[len(TITLES) :]:
        panel.set_visible(False)
    figure.legend(*grid.flat[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize="small")
    save_picture(figure, output)


def running_mean(values: Sequence[float], width: int = SMOOTHED) -> list[float]:
    """Return centred running means over ``width`` values, over fewer values at both ends, ignoring NaN."""
    half = width // 2
    windows = [values[max(0, place - half) : place + half + 1] for place in range(len(values))]
    known = [[value for value in window if not math.isnan(value)] for window in windows]
    return [fmean(window) if window else math.nan for window in known]


def _by_arm(results: Sequence[RunResult]) -> dict[str, list[RunResult]]:
    arms: dict[str, list[RunResult]] = {}
    for result in results:
        arms.setdefault(result.arm, []).append(result)
    return arms


def _style(number: int) -> dict[str, Any]:
    """Return the line style of an arm: ten colours, then the same colours dashed."""
    return {"color": f"C{number % 10}", "linestyle": "-" if number < 10 else "--"}


def _band(
    panel: Any, xs: Sequence[float], curves: Sequence[Sequence[float]], style: dict[str, Any], label: str
) -> None:
    points = [mean_over_seeds(values) for values in zip(*curves, strict=True)]
    panel.plot(xs, [point.mean for point in points], label=label, **style)
    low = [point.mean - point.standard_error for point in points]
    high = [point.mean + point.standard_error for point in points]
    panel.fill_between(xs, low, high, color=style["color"], alpha=0.12, linewidth=0)
