"""AttnRL's trainer for verl: each step of verl's training loop is one step of AttnRL's loop on verl's workers.

verl sets up the workers, calls :meth:`AttnRLTrainer.step`, saves checkpoints and logs; the step itself is
:meth:`attnrl.rl.trainer.Trainer.step`. Problems, grading, held-out evaluation and the run directory are shared with the
local engine.
"""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import transfer_queue
from omegaconf import OmegaConf, open_dict
from transfer_queue import KVBatchMeta
from transformers import GenerationConfig
from verl.trainer.ppo.v1 import PPOTrainer, register_trainer

from attnrl.data.run_data import load_run_data
from attnrl.errors import UserError, one_line
from attnrl.rl.state import TrainerState, state_from_json, state_to_json
from attnrl.rl.trainer import Trainer
from attnrl.runs.compatibility import resumed_state
from attnrl.runs.evaluation import evaluate_held_out, is_evaluation_due
from attnrl.runs.recording import Metrics, RunRecorder
from attnrl.runs.watchdog import WatchedSampler, retry_on_sampler_error
from attnrl.tokenization import decode, end_of_sequence_ids
from attnrl.types import SamplingParams
from attnrl.utils.files import write_atomic
from attnrl.verl.policy import VerlPolicy
from attnrl.verl.sampler import PARTITION, VerlSampler
from attnrl.verl.settings import NAME, STATE_FILE, from_verl


class _NoDataLoader:
    """Replaces verl's data loader: the position in the training problems is part of AttnRL's trainer state."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


@register_trainer(NAME)
class AttnRLTrainer(PPOTrainer):  # type: ignore[misc]
    """verl's PPO trainer with AttnRL's training step.

    Attributes:
        recipe: the configuration of the run.
        state: trainer state of the checkpoint; None for a new run.
        data: training problems and held-out problems.
        loop: AttnRL's training loop.
        recorder: writes the records of the run.
    """

    def __init__(self, config: Any) -> None:
        """Read the recipe from verl's configuration.

        Raises:
            UserError: verl's configuration does not describe a valid recipe.
        """
        self.recipe = from_verl(OmegaConf.to_container(config, resolve=True))
        self.state: TrainerState | None = None
        super().__init__(config)
        self.trainer_mode = "sync"  # tells verl that no request is in flight between steps: verl saves no queue

    def _init_dataloader(self) -> None:
        """Load the problems of the recipe, open no data loader, and set the number of steps."""
        self.data = load_run_data(self.recipe, self.tokenizer)
        self.recorder = RunRecorder(self.recipe, self.tokenizer)
        self.train_dataloader = _NoDataLoader()
        self.total_training_steps = self.recipe.steps
        self.steps_per_epoch = self.recipe.steps + 1  # verl counts epochs: the run is a single epoch
        with open_dict(self.config):
            self.config.actor_rollout_ref.actor.optim.total_training_steps = self.recipe.steps
            self.config.trainer.test_freq = -1  # step() evaluates, so that metrics.jsonl has one row per step

    def fit(self, agent_loop_manager: Any) -> None:
        """Run verl's training loop with AttnRL's step."""
        if self.state is not None and self.recipe.is_over(self.state.step, self.state.sampled_tokens):
            return
        self.agent_loop_manager = agent_loop_manager
        self.recorder.open(self.state.step if self.state is not None else None)
        self.evaluation_sampler = self._watched_sampler(self.recipe.eval.params(self.recipe.sampling.stop))
        with self.data.rewards as self.rewards:
            self.loop = Trainer(
                self.recipe,
                sampler=self._watched_sampler(self.recipe.sampling.params),
                rewards=self.rewards,
                policy=VerlPolicy(
                    self.actor_rollout_wg,
                    self.ref_policy_wg if self.use_reference_policy else None,
                    self.recipe,
                    resumed=self.state is not None,
                ),
                renderer=self.data.renderer,
                source=self.data.source,
                state=self.state,
            )
            super().fit(agent_loop_manager)

    def step(self, metrics: dict[str, Any], timing_raw: dict[str, float]) -> KVBatchMeta:
        """Take one step of AttnRL's loop; write the records of the step; add the metrics to ``metrics`` for verl.

        Raises:
            SamplerError: the sampler failed or stalled, and every retry too.
            RunError: too many consecutive steps with NaN or inf.
        """
        result = retry_on_sampler_error(self.loop.step, self.recipe.sampling.retries, print)
        state = self.loop.state
        due = is_evaluation_due(self.recipe, self.data.held_out, state.step, state.sampled_tokens)
        row = self.recorder.record_step(result, self._evaluate(state.step) if due else {})
        metrics.update({name: value for name, value in row.items() if name != "step"})
        self.recorder.record_faults(result, state.nonfinite_steps)
        if self.recipe.is_over(state.step, state.sampled_tokens):
            self.total_training_steps = state.step
        done = [f"step-{state.step}"]  # verl clears the keys of each step's batch and needs at least one key
        transfer_queue.kv_batch_put(keys=done, partition_id=PARTITION, tags=[{"status": "finished"}])
        return KVBatchMeta(partition_id=PARTITION, keys=done, tags=[{}])

    def _validate(self) -> Metrics:
        """Evaluate the initial model; verl calls this before the first step."""
        row = self._evaluate(self.global_steps)
        if self.global_steps == 0:
            self.recorder.record_initial(row)
        return row

    def _evaluate(self, step: int) -> Metrics:
        evaluation = evaluate_held_out(
            self.recipe,
            self.data.held_out,
            sampler=self.evaluation_sampler,
            rewards=self.rewards,
            renderer=self.data.renderer,
            step=step,
        )
        return self.recorder.record_evaluation(step, evaluation)

    def _watched_sampler(self, params: SamplingParams) -> WatchedSampler:
        try:
            generation = GenerationConfig.from_pretrained(self.config.actor_rollout_ref.model.path)
        except OSError:
            generation = None
        eos_token_ids = end_of_sequence_ids(generation, self.tokenizer)
        sampler = VerlSampler(self, params, eos_token_ids, partial(decode, self.tokenizer))
        return WatchedSampler(sampler, self.recipe.sampling.stall_seconds)

    def _save_checkpoint(self) -> None:
        """Write AttnRL's trainer state, then verl's checkpoint; keep the ``checkpoint.keep_last`` newest."""
        folder = Path(self.config.trainer.default_local_dir) / f"global_step_{self.global_steps}"
        folder.mkdir(parents=True, exist_ok=True)
        self.recorder.directory.fsync()
        # The state first: verl marks a checkpoint as the latest after writing verl's own files.
        write_atomic(folder / STATE_FILE, json.dumps(state_to_json(self.loop.state)))
        super()._save_checkpoint()
        # verl's retention only counts checkpoints of this session, and leaves some files.
        saved = sorted(folder.parent.glob("global_step_*"), key=lambda path: int(path.name.rpartition("_")[2]))
        for outdated in saved[: -self.recipe.checkpoint.keep_last]:
            shutil.rmtree(outdated)

    def _load_checkpoint(self) -> None:
        """Load verl's checkpoint and AttnRL's trainer state; drop samples of problems that changed.

        Raises:
            UserError: naming the damaged state file.
        """
        super()._load_checkpoint()
        if not self.global_steps:
            return
        folder = Path(self.config.trainer.resume_from_path or self.config.trainer.default_local_dir)
        if self.config.trainer.resume_mode == "auto":
            folder = Path(self.config.trainer.default_local_dir) / f"global_step_{self.global_steps}"
        try:
            state = state_from_json(json.loads((folder / STATE_FILE).read_text(encoding="utf-8")))
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise UserError(f"checkpoint file {folder / STATE_FILE}: damaged ({one_line(error)})") from None
        with open_dict(self.config):
            self.config.trainer.val_before_train = False  # the last session evaluated this step, if due
        limit = self.recipe.sampling.max_prompt_tokens
        self.state = resumed_state(state, self.data.source, self.data.renderer, limit, print)

    def _compute_metrics(
        self, batch: KVBatchMeta, metrics: dict[str, Any], timing_raw: dict[str, float], global_steps: int, epoch: int
    ) -> None:
        """Add verl's timings, in seconds; verl's metrics of the batch do not apply."""
        metrics.update({f"timing_s/{name}": seconds for name, seconds in timing_raw.items()})

    def on_train_end(self) -> None:
        """Save a checkpoint: a run that ends by its token budget ends before verl's last step."""
        self.global_steps = self.loop.state.step
        self._save_checkpoint()

    def on_step_end(self) -> None:
        """Do nothing: the rollout engines receive the new weights before the next generation."""

    def on_sample_end(self) -> None:
        """Do nothing: verl's own sampling is not used."""
