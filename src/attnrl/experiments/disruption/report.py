"""Tables (markdown) and picture of the disruption experiment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from attnrl.report.pictures import pyplot_for, save_picture

TITLES = {
    "fci": "top FCI",
    "fci_matched": "other, same position bin",
    "zscore_fci": "top z-scored FCI",
    "zscore_fci_matched": "other, same position bin",
    "lookups": "top lookups",
    "lookups_matched": "other, same position bin",
    "entropy": "top entropy",
    "entropy_matched": "other, same position bin",
    "random": "random other",
    "bin_top_fci": "highest FCI of a random bin",
    "bin_low_fci": "lowest FCI of that bin",
}


def disruption_tables(results: Mapping[str, Any]) -> str:
    """Return the tables of conditions and of contrasts, as markdown."""
    settings, sampled = results["settings"], results["sampled"]
    seen = {
        "continuation": "hidden from what is sampled",
        "next_step": "hidden from all after it",
    }[settings["hide_from"]]
    head = (
        f"{results['model']} on {results['task']}: {sampled['responses']} responses to {sampled['problems']} problems "
        f"({sampled['accuracy']:.1%} correct, {sampled['mean_steps']:.1f} steps, {sampled['mean_tokens']:.0f} tokens); "
        f"{results['responses']} responses to {results['problems']} problems have enough steps. "
        f"{settings['continuations']} continuations of each, lag {settings['lag']}, {seen}. Percent, with 95 % "
        "bootstrap intervals over problems."
    )
    rows = [
        [
            _title(name),
            f"{row['mean_step']:.1f}",
            f"{row['mean_tokens']:.1f}",
            *(_with_interval(row[measure]) for measure in ("accuracy_undisturbed", "accuracy_disrupted")),
            *(_with_interval(row[measure], sign=True) for measure in ("accuracy_drop", "agreement_drop")),
        ]
        for name, row in results["conditions"].items()
    ]
    columns = ("hidden step", "mean step", "its tokens", "accuracy, nothing hidden", "hidden", "lost", "agreement lost")
    contrasts = [
        [
            _pair(contrast),
            str(contrast["responses"]),
            *(
                _with_interval(contrast[measure], sign=True) if measure in contrast else ""
                for measure in ("accuracy_drop", "agreement_drop")
            ),
        ]
        for contrast in results["contrasts"]
    ]
    return "\n\n".join(
        [
            head,
            _table(columns, rows),
            _table(("more lost by hiding", "responses", "accuracy, points", "agreement, points"), contrasts),
        ]
    )


def draw_disruption(results: Mapping[str, Any], output: Path) -> None:
    """Draw accuracy with nothing hidden and with a step hidden, by condition and by position.

    Raises:
        UserError: matplotlib is missing, or the picture cannot be written.
    """
    pyplot = pyplot_for("disrupt --output")
    figure, panels = pyplot.subplots(
        1, 2, figsize=(11, 4.5), sharey=True, layout="constrained", gridspec_kw={"width_ratios": (9, 5)}
    )
    by_condition = [name for name in results["conditions"] if name in TITLES]
    by_position = [name for name in results["conditions"] if name not in TITLES]
    for panel, names in zip(panels, (by_condition, by_position), strict=True):
        for offset, measure, label in (
            (-0.2, "accuracy_undisturbed", "nothing hidden"),
            (0.2, "accuracy_disrupted", "step hidden"),
        ):
            rows = [results["conditions"][name][measure] for name in names]
            means = [100 * row["mean"] for row in rows]
            errors = [[100 * abs(row["interval"][side] - row["mean"]) for row in rows] for side in (0, 1)]
            places = [place + offset for place in range(len(names))]
            panel.bar(places, means, 0.38, yerr=errors, capsize=2, label=label, color="C7" if offset < 0 else "C0")
        turned = panel is panels[0]
        panel.set_xticks(
            range(len(names)),
            [_title(name) for name in names],
            rotation=30 if turned else 0,
            ha="right" if turned else "center",
        )
        panel.grid(axis="y", alpha=0.3)
    panels[0].set(ylabel="accuracy in %", title="which step is hidden")
    panels[1].set(title="a random step by position, early to late")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower right", ncols=2)
    save_picture(figure, output)


def _title(name: str) -> str:
    return TITLES.get(name) or name.replace("_", " ")


def _pair(contrast: Mapping[str, Any]) -> str:
    more, than = TITLES[contrast["more"]], TITLES[contrast["than"]]
    return f"{more} than {than}" + (" (contrasting choices only)" if contrast["strict"] else "")


def _with_interval(row: Mapping[str, Any], *, sign: bool = False) -> str:
    low, high = row["interval"]
    form = "+.1f" if sign else ".1f"
    return f"{100 * row['mean']:{form}} ({100 * low:{form}} to {100 * high:{form}})"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
