"""What a training step and an evaluation leave in the run directory, whichever engine took them."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

from attnrl.config import LogConfig
from attnrl.evaluate import Evaluation
from attnrl.report.run_directory import SAMPLES, TIMELINE, TREES, RunDirectory
from attnrl.report.timeline import timeline_row
from attnrl.report.trees import forest_row
from attnrl.trainer import StepResult


def record_step(
    directory: RunDirectory, step: int, result: StepResult, tokenizer: PreTrainedTokenizerBase, log: LogConfig
) -> None:
    """Write a step's timeline, and its forests if it is time to."""
    directory.append(TIMELINE, [timeline_row(step, result.timeline)])
    if log.trees_every and (step - 1) % log.trees_every == 0:
        directory.append(TREES, (forest_row(grown, tokenizer, step) for grown in result.problems))


def record_evaluation(directory: RunDirectory, step: int, evaluation: Evaluation, log: LogConfig) -> dict[str, float]:
    """Write the first response to each of some problems; returns the evaluation's metrics by their names in a run."""
    firsts = evaluation.samples[:: evaluation.per_problem]
    directory.append(SAMPLES, [{"step": step, **sample.as_dict()} for sample in firsts[: log.samples]])
    return {f"eval/{name}": value for name, value in evaluation.metrics().items()}
