"""Text summaries of a run: sizes before the run starts, results after the run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attnrl.runs.display import tells_more

if TYPE_CHECKING:
    from attnrl.runs.prepare import PreparedRun


def describe_run(prepared: PreparedRun) -> list[str]:
    """Return the lines of ``--dry-run``: model, problems, sizes of a step, resume point, warnings."""
    config, method = prepared.config, prepared.config.method
    parameters = sum(parameter.numel() for parameter in prepared.model.parameters())
    problems = prepared.data.training_problems
    count = "an unlimited number" if problems is None else f"{problems:,}"
    responses = config.prompts * method.leaves
    return [
        f"model       {prepared.source} ({prepared.model.config.model_type}, {parameters:,} parameters, "
        f"{config.dtype}, {prepared.device})",
        f"problems    {count} to train on, {len(prepared.data.held_out)} held out",
        f"step        {config.prompts} problems x {method.trunks} initial responses, up to {responses:,} "
        f"responses to train on, at most {responses * config.sampling.max_new_tokens:,} tokens",
        f"resumes     {prepared.checkpoint.directory if prepared.checkpoint else 'nothing: a new run'}",
        *prepared.data.first_prompt(),
        *run_warnings(prepared),
    ]


def run_warnings(prepared: PreparedRun) -> list[str]:
    """Return the warnings of a prepared run, one line each, with the layers that FCI skips."""
    skipped = prepared.layers_without_fci
    kinds = {kind: [str(index) for index in sorted(skipped) if skipped[index] == kind] for kind in skipped.values()}
    layers = [f"{kind} {', '.join(indices)}" for kind, indices in kinds.items()]
    fci = [f"FCI skips {len(skipped)} layers without softmax attention: {'; '.join(layers)}"] if skipped else []
    return [*prepared.notes, *fci]


def summarize_run(rows: list[dict[str, float]]) -> list[str]:
    """Return held-out accuracy and reward before and after training, steps, tokens and time, from metrics rows.

    The held-out reward is left out if equal to the accuracy in both evaluations.
    """
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
        if tells_more(before, "eval/") or tells_more(after, "eval/"):
            first, last = (f"{row['eval/reward']:.3f}" if "eval/reward" in row else "none" for row in (before, after))
            lines.append(f"Held-out reward before:   {first}")
            if after is not before:
                lines.append(f"Held-out reward after:    {last}")
    stepped = [row for row in rows if "time/step" in row]
    if stepped:
        seconds = sum(row["time/step"] for row in stepped)
        lines.append(
            f"{len(stepped)} training step{'s' if len(stepped) > 1 else ''}, "
            f"{stepped[-1]['tokens/total']:,.0f} tokens sampled, {seconds:.0f} s of training"
        )
        beyond = [row["branch/beyond_first_steps_ratio"] for row in stepped if "branch/beyond_first_steps_ratio" in row]
        if beyond:
            lines.append(
                f"Branch points other than the first two possible steps: {sum(beyond) / len(beyond):.0%} of trunks"
            )
    return lines
