"""One session of a training run: from where the run stands to its end, to a stop, or to a fault.

Whatever ends it, nothing is lost that was done: the first Ctrl-C (or SIGTERM) finishes the phase in hand and saves, a
fault of the sampler has the step taken again and then saves, and so does a fault of ours on its way out. Only a second
Ctrl-C and a kill fall back to the last checkpoint. A run that goes on is the run that was never stopped.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import isfinite

from safetensors import SafetensorError

from attnrl.config.load import dump_config
from attnrl.data.run_data import EVALUATION_SEED, grader_for
from attnrl.errors import RunError, UserError, one_line
from attnrl.local.checkpoint import (
    Checkpoint,
    RetentionPolicy,
    accuracy_of,
    best_checkpoints,
    list_checkpoints,
    load_checkpoint,
    save_checkpoint,
)
from attnrl.local.loading import SamplerFactory, build_policy, load_model, open_samplers
from attnrl.rl.evaluation import Evaluation, evaluate
from attnrl.rl.trainer import StepResult, Trainer, TrainerState, drop_stale_samples
from attnrl.runs.directory import METRICS, RunDirectory
from attnrl.runs.display import Display
from attnrl.runs.prepare import PreparedRun
from attnrl.runs.recording import record_evaluation, record_faults, record_step
from attnrl.runs.trackers import open_trackers
from attnrl.runs.watchdog import SamplerError, WatchedSampler, retry_on_sampler_error
from attnrl.types import Grader

UNINTERRUPTIBLE_PHASES = {
    "train",
    "sync",
}  # from the first on the policy changes: a step that has come so far is finished


def train(prepared: PreparedRun, display: Display) -> list[dict[str, float]]:
    """Run to its end, or until interrupted, and return the rows of ``metrics.jsonl``.

    Raises:
        UserError: another process is training in the same directory; or as :func:`attnrl.runs.prepare.prepare`.
        RunError: the run cannot go on; the message says why, and from where it can be continued.
    """
    config, checkpoint = prepared.config, prepared.checkpoint
    directory = checkpoint.directory if checkpoint else prepared.model_directory
    run = RunDirectory(config.output_dir)
    with run.locked():
        if list_checkpoints(run.checkpoints) != prepared.checkpoints:
            raise UserError(f"output_dir {config.output_dir}: another process has gone on with this run just now")
        with (
            grader_for(config) as grader,
            open_samplers(config, prepared.model, prepared.tokenizer, directory, display.sampled) as sampler_at,
        ):
            return _Session(prepared, display, grader, sampler_at).run()


class _StoppedError(Exception):
    """The step was given up before it changed anything."""


class _Session:
    """The loop's steps, and what is written of them."""

    def __init__(self, prepared: PreparedRun, display: Display, grader: Grader, sampler_at: SamplerFactory) -> None:
        self.prepared, self.config, self.display, self.grader = prepared, prepared.config, display, grader
        self.sampler_at = sampler_at
        self.directory = RunDirectory(self.config.output_dir)
        self.trackers = open_trackers(self.config)
        reference = None
        if self.config.loss.kl > 0:
            reference = load_model(
                prepared.model_directory,
                device=prepared.device,
                dtype=self.config.dtype,
                trust_remote_code=self.config.trust_remote_code,
            )
            reference.requires_grad_(False)
        self.policy = build_policy(self.config, prepared.model, reference)
        state = self._load(prepared.checkpoint) if prepared.checkpoint else None
        sampling = self.config.sampling
        self.trainer = Trainer(
            self.config,
            sampler=self._sampler(sampling.temperature, sampling.top_p),
            grader=grader,
            policy=self.policy,
            tokenizer=prepared.tokenizer,
            source=prepared.source,
            state=state,
            on_phase=self._enter,
        )
        self.directory.open(dump_config(self.config), state.step if state else None)
        self.interruption = _Interruption()
        # Of which steps all lines are written, and of which there is a checkpoint.
        self.recorded = self.saved = state.step if state else None
        self.accuracy = accuracy_of(prepared.checkpoint) if prepared.checkpoint else None  # of the present weights

    def _load(self, checkpoint: Checkpoint) -> TrainerState:
        saved = load_checkpoint(checkpoint, self.policy)
        limit = self.config.sampling.max_prompt_tokens
        state = drop_stale_samples(saved, self.prepared.source, self.prepared.tokenizer, limit)
        dropped = len(saved.pending) + len(saved.carried) - len(state.pending) - len(state.carried)
        if dropped:
            self.display.say(f"{dropped} problems in flight are no longer those of the data; their samples are dropped")
        return state

    def run(self) -> list[dict[str, float]]:
        self.display.start(self.config, self.trainer.state.step, self.trainer.state.sampled_tokens)
        with self.display, _interruption(self.display) as self.interruption:
            try:
                self._steps()
            except (RunError, SamplerError, OSError, SafetensorError) as error:
                what = f"output_dir {self.config.output_dir}, after step {self.trainer.state.step}: {one_line(error)}"
                raise RunError(f"{what}; {self._rescue()}") from error
            except Exception:
                self.display.say(f"The run has failed; {self._rescue()}")
                raise
        if self.trackers is not None:
            self.trackers.end_training()
        return self.directory.read(METRICS)

    def _steps(self) -> None:
        if self.recorded is None:
            fault = self._record_metrics({"step": 0}, 0)
            self.recorded = 0
            if fault is not None:
                raise fault
        else:
            self._make_up_for_evaluation()
        while not self._over() and not self.interruption.asked:
            try:
                result = self._step()
            except _StoppedError:
                break
            self._record(result)
            if self._is_due():
                self._save()
        if self.saved != self.trainer.state.step:
            self._save()

    def _over(self) -> bool:
        return self.config.is_over(self.trainer.state.step, self.trainer.state.sampled_tokens)

    def _enter(self, phase: str) -> None:
        """A phase of a step begins, unless the run is to stop."""
        if self.interruption.asked and phase not in UNINTERRUPTIBLE_PHASES:
            raise _StoppedError
        self.display.phase(phase)

    def _step(self) -> StepResult:
        """A training step, begun again if the sampler fails; that changes nothing in what comes of it."""
        what = f"step {self.trainer.state.step + 1}"
        return retry_on_sampler_error(self.trainer.step, self.config.sampling.retries, self._say_of(what))

    def _record(self, result: StepResult) -> None:
        """Write all lines of a step.

        Raises:
            RunError: too many steps in a row had numbers that are not finite.
            Exception: what its evaluation has raised. All of the step but that is written.
        """
        step = self.trainer.state.step
        self.accuracy = None
        fault = self._record_metrics(result.metrics, step)
        record_step(self.directory, step, result, self.prepared.tokenizer, self.config.log)
        self.recorded = step
        in_a_row, limit = self.trainer.state.nonfinite_steps, self.config.optimizer.max_nonfinite_steps
        record_faults(self.directory, step, result, in_a_row, limit, self.display.say)
        if fault is not None:
            raise fault

    def _record_metrics(self, metrics: dict[str, float], step: int) -> Exception | None:
        """Write and show the metrics of a step, with its evaluation if it is time to; returns what that has raised."""
        fault = None
        if self._is_evaluated(step):
            try:
                metrics |= self._evaluation_metrics(step)
            except Exception as error:
                fault = error
        row = _finite(metrics)
        self.directory.append(METRICS, [row])
        if fault is None:
            self._show(row)
        return fault

    def _make_up_for_evaluation(self) -> None:
        """Evaluate the step that is resumed after, if it was time to and the session before has failed in that."""
        step, rows = self.trainer.state.step, self.directory.read(METRICS)
        row = rows[-1] if rows else {}
        if self._is_evaluated(step) and row.get("step") == step and "eval/accuracy" not in row:
            row = _finite(row | self._evaluation_metrics(step))
            self.directory.replace_last(METRICS, row)
            self._show(row)

    def _evaluation_metrics(self, step: int) -> dict[str, float]:
        say = self._say_of(f"evaluation of step {step}")
        evaluation = retry_on_sampler_error(self._evaluate, self.config.sampling.retries, say)
        metrics = record_evaluation(self.directory, step, evaluation, self.config.log)
        self.accuracy = metrics["eval/accuracy"]
        return metrics

    def _is_evaluated(self, step: int) -> bool:
        return bool(self.prepared.held_out) and (step % self.config.eval.every == 0 or self._over())

    def _show(self, row: dict[str, float]) -> None:
        if self.trackers is not None:
            self.trackers.log({name: value for name, value in row.items() if name != "step"}, int(row["step"]))
        self.display.step(row)

    def _say_of(self, what: str) -> Callable[[str], None]:
        return lambda said: self.display.say(f"{what}: {said}")

    def _evaluate(self) -> Evaluation:
        self.display.phase("evaluate")
        settings, limits = self.config.eval, self.config.sampling
        return evaluate(
            self.prepared.held_out,
            sampler=self._sampler(settings.temperature, settings.top_p),
            grader=self.grader,
            tokenizer=self.prepared.tokenizer,
            samples=settings.samples,
            max_new_tokens=limits.max_new_tokens,
            max_prompt_tokens=limits.max_prompt_tokens,
            seed=EVALUATION_SEED,
        )

    def _sampler(self, temperature: float, top_p: float) -> WatchedSampler:
        return WatchedSampler(self.sampler_at(temperature, top_p), self.config.sampling.stall_seconds)

    def _is_due(self) -> bool:
        """Whether a checkpoint is to be saved now: by the calendar, or as one of the best."""
        step, settings = self.trainer.state.step, self.config.checkpoint
        if settings.every and step % settings.every == 0:
            return True
        if self.accuracy is None or not settings.keep_best:
            return False
        best = best_checkpoints(list_checkpoints(self.directory.checkpoints), settings.keep_best)
        worst = accuracy_of(best[-1]) if len(best) == settings.keep_best else None
        return worst is None or self.accuracy >= worst

    def _save(self) -> None:
        self.display.phase("save")
        step, settings = self.trainer.state.step, self.config.checkpoint
        self.directory.sync()
        try:
            save_checkpoint(
                self.directory.checkpoints,
                self.trainer.state,
                self.policy,
                self.prepared.tokenizer,
                keep=RetentionPolicy(settings.keep_last, settings.keep_best),
                data=self.prepared.data,
                accuracy=self.accuracy,
            )
        except (OSError, SafetensorError) as error:
            raise RunError(f"checkpoint of step {step}: cannot be written ({one_line(error)})") from error
        self.saved = step

    def _rescue(self) -> str:
        """Save what can be, after a fault; returns from where the run can be continued, in words."""
        step = self.trainer.state.step
        if step == self.recorded and step != self.saved:
            try:
                self._save()
            except RunError as error:
                return f"{error}; {self._last_checkpoint()}"
        return self._last_checkpoint()

    def _last_checkpoint(self) -> str:
        checkpoints: list[Checkpoint] = list_checkpoints(self.directory.checkpoints)
        if not checkpoints:
            return "there is no checkpoint yet: the same command begins anew"
        return f"the same command continues from {checkpoints[-1].directory}"


def _finite(metrics: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if isfinite(value)}


@dataclass
class _Interruption:
    asked: bool = False


@contextmanager
def _interruption(display: Display) -> Iterator[_Interruption]:
    """Turn the first SIGINT, SIGTERM or SIGHUP into a request to stop; the next one acts as it always does."""
    interruption = _Interruption()
    numbers = {signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)}  # the last: a closed terminal
    former = {number: signal.getsignal(number) for number in numbers}

    def restore() -> None:
        for number, handler in former.items():
            signal.signal(number, handler)

    def ask(number: int, frame: object) -> None:
        interruption.asked = True
        restore()
        display.console.print("Stopping after this phase. Again to leave at once.")

    for number in former:
        signal.signal(number, ask)
    try:
        yield interruption
    finally:
        restore()
