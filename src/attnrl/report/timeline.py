"""Timeline of one training step: a Gantt chart of sampler, grader and policy (``pip install attnrl[report]``)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from attnrl.errors import UserError
from attnrl.report.pictures import pyplot_for, save_picture
from attnrl.rl.clock import Span
from attnrl.runs.directory import TIMELINE, RunDirectory

LANES = ("sampler", "grader", "policy")  # from top to bottom
PHASES = {  # phase -> (lane, colour)
    "generate": ("sampler", "#7ba7d7"),
    "sync": ("sampler", "#c6dbef"),
    "grade (overlapped)": ("grader", "#f2cf5b"),
    "grade": ("grader", "#f58518"),
    "plan": ("policy", "#9d9d9d"),
    "score": ("policy", "#b5d99c"),
    "train": ("policy", "#6fbf68"),
}
INCHES_PER_CHARACTER = 0.085  # width reserved for one character of a label


def draw_timeline(run: Path, output: Path, step: int | None = None) -> int:
    """Draw the timeline of training step ``step`` (None: the last step), and return the number of the step.

    Raises:
        UserError: matplotlib is missing, the run does not have step ``step``, or the picture cannot be written.
    """
    pyplot = pyplot_for("timeline")
    step, spans = _spans(run, step)
    total = max(end for _, _, end in spans)
    figure, panel = pyplot.subplots(figsize=(10, 3), layout="constrained")
    for name, start, end in spans:
        lane, colour = PHASES[name]
        # An edge of the same colour keeps bars thinner than a pixel visible.
        panel.barh(LANES.index(lane), end - start, left=start, height=0.7, color=colour, edgecolor=colour, lw=0.5)
    panel.set(xlim=(0, total), ylim=(len(LANES) - 0.5, -0.5), xlabel="seconds since the step began")
    panel.set_yticks(range(len(LANES)), LANES)
    panel.spines[["top", "right"]].set_visible(False)
    panel.set_title(f"{run.name}, step {step}: {total:.2f} s", loc="left")
    seconds = {name: sum(end - start for other, start, end in spans if other == name) for name in PHASES}
    used = [name for name in PHASES if any(name == other for other, _, _ in spans)]
    patches = [pyplot.Rectangle((0, 0), 1, 1, color=PHASES[name][1]) for name in used]
    labels = [f"{name} {seconds[name]:.2f} s" for name in used]
    figure.legend(patches, labels, loc="outside lower center", ncols=len(used), frameon=False, fontsize="small")
    figure.draw_without_rendering()  # computes the layout, and so the width of the panel
    inches = panel.get_window_extent().width / figure.dpi
    for name, start, end in spans:
        label = f"{name} {end - start:.2f} s"
        if (end - start) / total * inches > INCHES_PER_CHARACTER * len(label):
            panel.text((start + end) / 2, LANES.index(PHASES[name][0]), label, ha="center", va="center", fontsize=9)
    save_picture(figure, output)
    return step


def _spans(run: Path, step: int | None) -> tuple[int, list[Span]]:
    """Return the requested step (None: the last step) and the spans of the step."""
    if not run.is_dir():
        raise UserError(f"{run}: no such run directory")
    rows = {}
    for number, row in enumerate(RunDirectory(run).read(TIMELINE), start=1):
        if not _is_timeline(row):
            raise UserError(f"{run / TIMELINE}, row {number}: not the timeline of a step")
        rows[row["step"]] = row["spans"]
    if not rows:
        raise UserError(f"{run}: no steps in {TIMELINE}")
    if step is None:
        step = max(rows)
    if step not in rows:
        raise UserError(f"{run}: no step {step} in {TIMELINE}, which has {min(rows)} to {max(rows)}")
    return step, [(name, start, end) for name, start, end in rows[step]]


def _is_timeline(row: Any) -> bool:
    """Return True if ``row`` is valid (:func:`attnrl.runs.recording.timeline_row`) and not of zero duration."""
    try:
        spans = [(name in PHASES, float(start), float(end)) for name, start, end in row["spans"]]
        return isinstance(row["step"], int) and all(known for known, _, _ in spans) and max(s[2] for s in spans) > 0
    except (TypeError, ValueError, KeyError):
        return False
