"""Write the records of a run: metrics, timelines, rollout trees, evaluation samples and faults; for every engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from math import isfinite
from typing import Any

from transformers import PreTrainedTokenizerBase

from attnrl.config.load import dump_config
from attnrl.config.schema import TrainConfig
from attnrl.errors import RunError
from attnrl.rl.clock import Span
from attnrl.rl.evaluation import Evaluation
from attnrl.rl.judging import evaluation_warnings, step_warnings
from attnrl.rl.trainer import StepResult
from attnrl.runs.directory import METRICS, SAMPLES, TIMELINE, TREES, RunDirectory
from attnrl.runs.forest_rows import forest_row

Metrics = dict[str, float]


class RunRecorder:
    """Writes the records of training steps and evaluations to the run directory.

    Attributes:
        directory: the run directory.
        recorded_step: last step whose records are complete; None before the first record of a new run.
    """

    def __init__(
        self, config: TrainConfig, tokenizer: PreTrainedTokenizerBase, say: Callable[[str], None] = print
    ) -> None:
        """Record the run of ``config``; ``say`` is called with one line for every warning about a step."""
        self.config = config
        self.tokenizer = tokenizer
        self.say = say
        self.directory = RunDirectory(config.output_dir)
        self.recorded_step: int | None = None

    def open(self, resumed_step: int | None) -> None:
        """Write ``config.yaml`` and drop records after ``resumed_step``; None starts a new run and drops all records.

        Raises:
            UserError: the directory cannot be written.
        """
        self.directory.open(dump_config(self.config), resumed_step)
        self.recorded_step = resumed_step

    def record_initial(self, metrics: Mapping[str, float]) -> Metrics:
        """Append the row of step 0, the evaluation before training; return the row without NaN and inf."""
        row = self._append_metrics({"step": 0, **metrics})
        self.recorded_step = 0
        return row

    def record_step(self, result: StepResult, evaluation: Mapping[str, float]) -> Metrics:
        """Append the metrics, the timeline and, every ``log.trees_every`` steps, the rollout trees of a training step.

        Says which responses are not judged or cut off (:func:`attnrl.rl.judging.step_warnings`).

        Args:
            result: result of the step.
            evaluation: metrics of the evaluation after the step; empty without an evaluation.

        Returns:
            The row of ``metrics.jsonl``: all metrics without NaN and inf.
        """
        step, trees_every = int(result.metrics["step"]), self.config.log.trees_every
        row = self._append_metrics({**result.metrics, **evaluation})
        self.directory.append(TIMELINE, [timeline_row(step, result.timeline)])
        if trees_every and (step - 1) % trees_every == 0:
            self.directory.append(TREES, (forest_row(tree, self.tokenizer, step) for tree in result.problems))
        self.recorded_step = step
        for line in step_warnings(step, result.problems, self.config):
            self.say(line)
        return row

    def record_evaluation(self, step: int, evaluation: Evaluation) -> Metrics:
        """Append the first response to each of ``log.samples`` problems; return the metrics under ``eval/``.

        Says how many responses are not judged (:func:`attnrl.rl.judging.evaluation_warnings`).
        """
        firsts = evaluation.samples[:: evaluation.per_problem]
        rows = [{"step": step, **sample.as_dict()} for sample in firsts[: self.config.log.samples]]
        self.directory.append(SAMPLES, rows)
        for line in evaluation_warnings(step, evaluation, self.config):
            self.say(line)
        return {f"eval/{name}": value for name, value in evaluation.metrics().items()}

    def complete_last_row(self, evaluation: Mapping[str, float]) -> Metrics:
        """Add the metrics of an evaluation to the last row of ``metrics.jsonl``; return the row without NaN and inf."""
        row = _finite({**self.directory.read(METRICS)[-1], **evaluation})
        self.directory.replace_last(METRICS, row)
        return row

    def record_faults(self, result: StepResult, nonfinite_steps: int) -> None:
        """Write the problems of a step with NaN or inf to ``faults/``, for debugging.

        Args:
            result: result of the step.
            nonfinite_steps: consecutive steps with NaN or inf, up to this step; 0 writes nothing.

        Raises:
            RunError: ``nonfinite_steps`` reached ``optimizer.max_nonfinite_steps``.
        """
        if not nonfinite_steps:
            return
        step = int(result.metrics["step"])
        every_problem = result.metrics.get("nonfinite/mini_batches", 0)  # a mini-batch mixes all problems
        problems = [problem for problem in result.problems if every_problem or not problem.is_finite]
        path = self.directory.dump_fault(step, ({"step": step, **asdict(problem)} for problem in problems))
        message = f"step {step}: skipped {len(problems)} problems with NaN or inf, see {path}"
        self.say(message)
        if nonfinite_steps >= self.config.optimizer.max_nonfinite_steps:
            raise RunError(
                f"{message}; NaN or inf in {nonfinite_steps} consecutive steps (optimizer.max_nonfinite_steps)"
            )

    def _append_metrics(self, metrics: Mapping[str, float]) -> Metrics:
        row = _finite(metrics)
        self.directory.append(METRICS, [row])
        return row


def timeline_row(step: int, spans: Sequence[Span]) -> dict[str, Any]:
    """Return a row of ``timeline.jsonl``: ``[name, start, end]`` of each span, in seconds rounded to 0.1 ms."""
    return {"step": step, "spans": [[name, round(start, 4), round(end, 4)] for name, start, end in spans]}


def _finite(metrics: Mapping[str, float]) -> Metrics:
    """Return the metrics that are neither NaN nor inf."""
    return {name: value for name, value in metrics.items() if isfinite(value)}
