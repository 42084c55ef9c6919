"""A run in a few lines of text: what it is going to do, and what it has come to."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from attnrl.runs.prepare import PreparedRun


def describe(prepared: PreparedRun) -> list[str]:
    """Sizes of a run that is about to start, for ``--dry-run``."""
    config, method = prepared.config, prepared.config.method
    parameters = sum(parameter.numel() for parameter in prepared.model.parameters())
    problems = "without end" if prepared.training_problems is None else f"{prepared.training_problems:,}"
    responses = config.prompts * method.leaves
    return [
        f"model       {prepared.model_directory} ({prepared.model.config.model_type}, {parameters:,} parameters, "
        f"{config.dtype}, {prepared.device})",
        f"problems    {problems} to train on, {len(prepared.held_out)} held out",
        f"step        {config.prompts} problems x {method.trunks} initial responses, up to {responses:,} "
        f"responses to train on, at most {responses * config.sampling.max_new_tokens:,} tokens",
        f"resumes     {prepared.checkpoint.directory if prepared.checkpoint else 'nothing: a new run'}",
        *left_out(prepared),
    ]


def left_out(prepared: PreparedRun) -> list[str]:
    """What a run does without, a line each: rows of its data, layers that FCI cannot look at."""
    layers = [f"{index} ({kind})" for index, kind in sorted(prepared.without_influence.items())]
    fci = [f"FCI leaves out layers without softmax attention: {', '.join(layers)}"] if layers else []
    return [*prepared.notes, *fci]


def summarize(rows: list[dict[str, float]]) -> list[str]:
    """What a run has come to: held-out accuracy before and after, and what it took."""
    lines = []
    evaluated = [row for row in rows if "eval/accuracy" in row]
    if evaluated:
        before, after = evaluated[0], evaluated[-1]
        gain = 100 * (after["eval/accuracy"] - before["eval/accuracy"])
        lines.append(f"Held-out accuracy before: {before['eval/accuracy']:.1%} ± {before['eval/standard_error']:.1%}")
        if after is not before:
            lines.append(
                f"Held-out accuracy after:  {after['eval/accuracy']:.1%} ± {after['eval/standard_error']:.1%}"
                f"  ({gain:+.1f} points, step {after['step']:.0f})"
            )
    stepped = [row for row in rows if "time/step" in row]
    if stepped:
        seconds = sum(row["time/step"] for row in stepped)
        lines.append(
            f"{len(stepped)} training steps, {stepped[-1]['tokens/total']:,.0f} tokens sampled, "
            f"{seconds:.0f} s of training"
        )
        chosen = [row["branch/beyond_first_steps_ratio"] for row in stepped if "branch/beyond_first_steps_ratio" in row]
        if chosen:
            lines.append(
                f"Branch points other than the first two possible steps: {sum(chosen) / len(chosen):.0%} of trunks"
            )
    return lines
