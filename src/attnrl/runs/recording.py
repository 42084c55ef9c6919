"""What a training step and an evaluation leave in the run directory, whichever engine took them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict

from transformers import PreTrainedTokenizerBase

from attnrl.config.schema import LogConfig
from attnrl.errors import RunError
from attnrl.report.timeline import timeline_row
from attnrl.rl.evaluation import Evaluation
from attnrl.rl.trainer import StepResult
from attnrl.runs.directory import SAMPLES, TIMELINE, TREES, RunDirectory
from attnrl.runs.forest_rows import forest_row


def record_step(
    directory: RunDirectory, step: int, result: StepResult, tokenizer: PreTrainedTokenizerBase, log: LogConfig
) -> None:
    """Write a step's timeline, and its forests if it is time to."""
    directory.append(TIMELINE, [timeline_row(step, result.timeline)])
    if log.trees_every and (step - 1) % log.trees_every == 0:
        directory.append(TREES, (forest_row(tree, tokenizer, step) for tree in result.problems))


def record_faults(
    directory: RunDirectory, step: int, result: StepResult, in_a_row: int, limit: int, say: Callable[[str], None]
) -> None:
    """Write down, for study, the problems of a step in which numbers were not finite, and ``say`` so.

    Args:
        directory: the run's.
        step: the step.
        result: what it has left.
        in_a_row: in how many steps up to this one they were not; 0 where all are.
        limit: of how many of those the run bears.
        say: hears of it.

    Raises:
        RunError: those were too many.
    """
    if not in_a_row:
        return
    whole = result.metrics.get("nonfinite/mini_batches", 0)
    problems = [problem for problem in result.problems if whole or not problem.is_finite]
    dump = directory.dump_fault(step, ({"step": step, **asdict(problem)} for problem in problems))
    skipped = f"step {step}: numbers that are not finite ({len(problems)} problems) were left out, see {dump}"
    say(skipped)
    if in_a_row >= limit:
        raise RunError(f"{skipped}, and so in {in_a_row} steps in a row (optimizer.max_nonfinite_steps)")


def record_evaluation(directory: RunDirectory, step: int, evaluation: Evaluation, log: LogConfig) -> dict[str, float]:
    """Write the first response to each of some problems; returns the evaluation's metrics by their names in a run."""
    firsts = evaluation.samples[:: evaluation.per_problem]
    directory.append(SAMPLES, [{"step": step, **sample.as_dict()} for sample in firsts[: log.samples]])
    return {f"eval/{name}": value for name, value in evaluation.metrics().items()}
