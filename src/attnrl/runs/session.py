"""A training session of the local engine: from the resume point to the end of the run, an interruption or a fault.

A session loses no finished training step, and a resumed run equals the uninterrupted run bit for bit:

- the first Ctrl-C, SIGTERM or SIGHUP finishes the current phase and saves a checkpoint;
- a sampler failure retries the step (``sampling.retries``), then saves a checkpoint and ends the run;
- any other fault saves a checkpoint before the exception propagates;
- a second Ctrl-C and SIGKILL lose the steps since the last checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable

from safetensors import SafetensorError

from attnrl.errors import RunError, UserError, one_line
from attnrl.inference.base import SamplerFactory
from attnrl.local.checkpoint import (
    Checkpoint,
    RetentionPolicy,
    accuracy_of,
    best_checkpoints,
    list_checkpoints,
    load_checkpoint,
    save_checkpoint,
)
from attnrl.local.loading import build_policy, load_model
from attnrl.rl.evaluation import Evaluation
from attnrl.rl.state import TrainerState
from attnrl.rl.trainer import StepResult, Trainer
from attnrl.runs.compatibility import resumed_state
from attnrl.runs.directory import METRICS, RunDirectory
from attnrl.runs.display import Display
from attnrl.runs.evaluation import evaluate_held_out, is_evaluation_due
from attnrl.runs.interruption import StopRequest, stop_on_signal
from attnrl.runs.model_record import record_model
from attnrl.runs.prepare import PreparedRun
from attnrl.runs.recording import Metrics, RunRecorder
from attnrl.runs.trackers import open_trackers
from attnrl.runs.watchdog import SamplerError, WatchedSampler, retry_on_sampler_error
from attnrl.types import SamplingParams

#: Phases that update the policy and the sampler's weights: a step in one of these phases is finished, never dropped.
UNINTERRUPTIBLE_PHASES = {"train", "sync"}


def train(prepared: PreparedRun, display: Display) -> list[Metrics]:
    """Train until the run is over or interrupted; close ``prepared``; return the rows of ``metrics.jsonl``.

    Raises:
        UserError: another process is training, or has trained since ``prepared``, in the same directory.
        RunError: the run cannot continue; the message names the cause and the checkpoint to resume from.
    """
    config, checkpoint = prepared.config, prepared.checkpoint
    directory = checkpoint.directory if checkpoint else prepared.source.directory
    run = RunDirectory(config.output_dir)
    with prepared.resources, run.locked():
        if list_checkpoints(run.checkpoints) != prepared.checkpoints:
            raise UserError(f"output_dir {config.output_dir}: another process has just continued this run")
        open_samplers = prepared.sampler.open
        with open_samplers(config, prepared.model, prepared.tokenizer, directory, display.sampled) as build_sampler:
            return TrainingSession(prepared, display, build_sampler).run()


class _StepAbandonedError(Exception):
    """Abandon a step before the policy update: a stop was requested."""


class TrainingSession:
    """Steps, evaluations, records and checkpoints of one session.

    Attributes:
        trainer: the training loop.
        recorder: writes the records of the run.
        saved_step: step of the last checkpoint; None before the first checkpoint of a new run.
        accuracy: held-out accuracy of the current weights; None if the current weights were not evaluated.
    """

    def __init__(self, prepared: PreparedRun, display: Display, build_sampler: SamplerFactory) -> None:
        """Build the policy and the trainer, load the checkpoint, open the run directory.

        Args:
            prepared: components of the run.
            display: shows the progress.
            build_sampler: builds a sampler with sampling parameters.
        """
        self.prepared, self.config, self.display = prepared, prepared.config, display
        self.build_sampler = build_sampler
        checkpoint = prepared.checkpoint
        self.trackers = open_trackers(self.config, checkpoint.step if checkpoint else None)
        reference = None
        if self.config.loss.kl > 0:
            reference = load_model(
                prepared.source.directory,
                prepared.tokenizer,
                device=prepared.device,
                dtype=self.config.dtype,
                trust_remote_code=self.config.trust_remote_code,
            ).model
            reference.requires_grad_(False)
        self.policy = build_policy(self.config, prepared.model, reference, prepared.packing)
        state = self._load(prepared.checkpoint) if prepared.checkpoint else None
        sampling = self.config.sampling
        self.evaluation_sampler = self._watched_sampler(self.config.eval.params(sampling.stop))
        self.trainer = Trainer(
            self.config,
            sampler=self._watched_sampler(sampling.params),
            rewards=prepared.rewards,
            policy=self.policy,
            renderer=prepared.data.renderer,
            source=prepared.data.source,
            state=state,
            on_phase=self._enter_phase,
        )
        self.recorder = RunRecorder(self.config, prepared.tokenizer, display.say)
        self.recorder.open(state.step if state else None)
        record_model(self.recorder.directory, prepared.source, resumed=state is not None)
        self.stop = StopRequest()
        self.saved_step = state.step if state else None
        self.accuracy = accuracy_of(prepared.checkpoint) if prepared.checkpoint else None

    def _load(self, checkpoint: Checkpoint) -> TrainerState:
        state = load_checkpoint(checkpoint, self.policy)
        limit = self.config.sampling.max_prompt_tokens
        data = self.prepared.data
        return resumed_state(state, data.source, data.renderer, limit, self.display.say)

    def run(self) -> list[Metrics]:
        """Train until the run is over or interrupted; return the rows of ``metrics.jsonl``.

        Raises:
            RunError: as :func:`train`.
        """
        self.display.start(self.config, self.trainer.state.step, self.trainer.state.sampled_tokens)
        with self.display, stop_on_signal(self.display.say) as self.stop:
            try:
                self._train()
            except (RunError, SamplerError, OSError, SafetensorError) as error:
                step = self.trainer.state.step
                fault = f"output_dir {self.config.output_dir}, after step {step}: {one_line(error)}"
                raise RunError(f"{fault}; {self._save_after_fault()}") from error
            except Exception:
                self.display.say(f"The run has failed; {self._save_after_fault()}")
                raise
        if self.trackers is not None:
            self.trackers.end_training()
        return self.recorder.directory.read(METRICS)

    def _train(self) -> None:
        if self.recorder.recorded_step is None:
            self._evaluate_initial_model()
        else:
            self._evaluate_resumed_step()
        while not self._is_over() and not self.stop.requested:
            try:
                result = self._step()
            except _StepAbandonedError:
                break
            self._record(result)
            if self._is_checkpoint_due():
                self._save()
        if self.saved_step != self.trainer.state.step:
            self._save()

    def _is_over(self) -> bool:
        return self.config.is_over(self.trainer.state.step, self.trainer.state.sampled_tokens)

    def _enter_phase(self, phase: str) -> None:
        """Show the phase; abandon the step if a stop was requested and the policy has not changed yet."""
        if self.stop.requested and phase not in UNINTERRUPTIBLE_PHASES:
            raise _StepAbandonedError
        self.display.phase(phase)

    def _step(self) -> StepResult:
        """Take a training step; retry on sampler errors, which does not change the result."""
        label = f"step {self.trainer.state.step + 1}"
        return retry_on_sampler_error(self.trainer.step, self.config.sampling.retries, self._labelled_say(label))

    def _record(self, result: StepResult) -> None:
        """Evaluate the step if due, and write all records of the step.

        Raises:
            RunError: too many consecutive steps with NaN or inf.
            Exception: raised by the evaluation, after all other records of the step are written.
        """
        self.accuracy = None
        evaluation, fault = self._evaluate_if_due()
        row = self.recorder.record_step(result, evaluation)
        if fault is None:
            self._show(row)
        self.recorder.record_faults(result, self.trainer.state.nonfinite_steps)
        if fault is not None:
            raise fault

    def _evaluate_initial_model(self) -> None:
        """Write the row of step 0, with the evaluation of the initial model.

        Raises:
            Exception: raised by the evaluation, after the row is written.
        """
        evaluation, fault = self._evaluate_if_due()
        row = self.recorder.record_initial(evaluation)
        if fault is not None:
            raise fault
        self._show(row)

    def _evaluate_resumed_step(self) -> None:
        """Evaluate the step of the checkpoint if the evaluation is due but missing (a fault ended the last session)."""
        step, rows = self.trainer.state.step, self.recorder.directory.read(METRICS)
        last = rows[-1] if rows else {}
        if self._is_evaluation_due() and last.get("step") == step and "eval/accuracy" not in last:
            self._show(self.recorder.complete_last_row(self._evaluation_metrics()))

    def _evaluate_if_due(self) -> tuple[Metrics, Exception | None]:
        """Return the evaluation metrics (empty if not due) and the exception raised by the evaluation."""
        if not self._is_evaluation_due():
            return {}, None
        try:
            return self._evaluation_metrics(), None
        except Exception as error:
            return {}, error

    def _is_evaluation_due(self) -> bool:
        state = self.trainer.state
        return is_evaluation_due(self.config, self.prepared.data.held_out, state.step, state.sampled_tokens)

    def _evaluation_metrics(self) -> Metrics:
        step = self.trainer.state.step
        say = self._labelled_say(f"evaluation of step {step}")
        evaluation = retry_on_sampler_error(self._evaluate, self.config.sampling.retries, say)
        metrics = self.recorder.record_evaluation(step, evaluation)
        self.accuracy = metrics["eval/accuracy"]
        return metrics

    def _evaluate(self) -> Evaluation:
        self.display.phase("evaluate")
        return evaluate_held_out(
            self.config,
            self.prepared.data.held_out,
            sampler=self.evaluation_sampler,
            rewards=self.prepared.rewards,
            renderer=self.prepared.data.renderer,
            step=self.trainer.state.step,
        )

    def _show(self, row: Metrics) -> None:
        """Send a row of metrics to the trackers and the display."""
        if self.trackers is not None:
            self.trackers.log({name: value for name, value in row.items() if name != "step"}, int(row["step"]))
        self.display.step(row)

    def _labelled_say(self, label: str) -> Callable[[str], None]:
        return lambda line: self.display.say(f"{label}: {line}")

    def _watched_sampler(self, params: SamplingParams) -> WatchedSampler:
        return WatchedSampler(self.build_sampler(params), self.config.sampling.stall_seconds)

    def _is_checkpoint_due(self) -> bool:
        """Return True every ``checkpoint.every`` steps, and if the accuracy is among the ``keep_best`` highest."""
        step, settings = self.trainer.state.step, self.config.checkpoint
        if settings.every and step % settings.every == 0:
            return True
        if self.accuracy is None or not settings.keep_best:
            return False
        best = best_checkpoints(list_checkpoints(self.recorder.directory.checkpoints), settings.keep_best)
        worst = accuracy_of(best[-1]) if len(best) == settings.keep_best else None
        return worst is None or self.accuracy >= worst

    def _save(self) -> None:
        """Write a checkpoint and apply the retention policy.

        Raises:
            RunError: the checkpoint cannot be written.
        """
        self.display.phase("save")
        step, settings = self.trainer.state.step, self.config.checkpoint
        self.recorder.directory.fsync()
        try:
            save_checkpoint(
                self.recorder.directory.checkpoints,
                self.trainer.state,
                self.policy,
                self.prepared.tokenizer,
                keep=RetentionPolicy(settings.keep_last, settings.keep_best),
                data=self.prepared.data.fingerprints,
                accuracy=self.accuracy,
                records=self.recorder.directory.rows,
            )
        except (OSError, SafetensorError) as error:
            raise RunError(f"checkpoint of step {step}: cannot be written ({one_line(error)})") from error
        self.saved_step = step

    def _save_after_fault(self) -> str:
        """Save the last recorded step; return a sentence that names the checkpoint to resume from."""
        step = self.trainer.state.step
        if step == self.recorder.recorded_step and step != self.saved_step:
            try:
                self._save()
            except RunError as error:
                return f"{error}; {self._resume_hint()}"
        return self._resume_hint()

    def _resume_hint(self) -> str:
        checkpoints: list[Checkpoint] = list_checkpoints(self.recorder.directory.checkpoints)
        if not checkpoints:
            return "no checkpoint yet: the same command starts over"
        return f"the same command continues from {checkpoints[-1].directory}"
