"""AttnRL's trainer for verl: one step of verl's loop is one step of ours, on verl's workers.

verl sets everything up, steps, saves and logs; what a step is, :class:`attnrl.rl.trainer.Trainer` knows. Problems,
grading, held-out evaluation and the files of the run directory are those of the local engine.
"""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import transfer_queue
from omegaconf import OmegaConf, open_dict
from transfer_queue import KVBatchMeta
from transformers import GenerationConfig
from verl.trainer.ppo.v1 import PPOTrainer, register_trainer

from attnrl.config.load import dump_config
from attnrl.data.run_data import EVALUATION_SEED, grader_for, load_task
from attnrl.errors import UserError, one_line
from attnrl.rl.evaluation import evaluate
from attnrl.rl.state import state_from_json, state_to_json
from attnrl.rl.trainer import Trainer, TrainerState, drop_stale_samples
from attnrl.runs.directory import METRICS, RunDirectory
from attnrl.runs.recording import record_evaluation, record_faults, record_step
from attnrl.runs.watchdog import WatchedSampler, retry_on_sampler_error
from attnrl.tokenization import end_of_sequence_ids
from attnrl.utils.files import write_atomic
from attnrl.verl.policy import VerlPolicy
from attnrl.verl.sampler import PARTITION, VerlSampler
from attnrl.verl.settings import NAME, STATE_FILE, from_verl


class _NoLoader:
    """Stands where verl has its data loader: problems are known by their position, which is part of our own state."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


@register_trainer(NAME)
class AttnRLTrainer(PPOTrainer):  # type: ignore[misc]
    """See the module."""

    def __init__(self, config: Any) -> None:
        """Read the recipe out of verl's configuration.

        Raises:
            UserError: it is none.
        """
        self.recipe = from_verl(OmegaConf.to_container(config, resolve=True))
        self.directory = RunDirectory(self.recipe.output_dir)
        self.state: TrainerState | None = None
        super().__init__(config)
        self.trainer_mode = "sync"  # to verl: nothing is in flight between steps, so no queue is to be saved

    def _init_dataloader(self) -> None:
        """In place of verl's: the problems of the recipe, and how long the run is."""
        self.problems = load_task(self.recipe, self.tokenizer)
        self.train_dataloader = _NoLoader()
        self.total_training_steps = self.recipe.steps
        self.steps_per_epoch = self.recipe.steps + 1  # verl counts epochs; ours has one
        with open_dict(self.config):
            self.config.actor_rollout_ref.actor.optim.total_training_steps = self.recipe.steps
            self.config.trainer.test_freq = -1  # held-out problems are sampled in step(), so that its row is whole

    def fit(self, agent_loop_manager: Any) -> None:
        """verl's loop, with our trainer in it."""
        if self.state is not None and self.recipe.is_over(self.state.step, self.state.sampled_tokens):
            return
        self.agent_loop_manager = agent_loop_manager
        self.directory.open(dump_config(self.recipe), self.state.step if self.state is not None else None)
        with grader_for(self.recipe) as self.grader:
            self.loop = Trainer(
                self.recipe,
                sampler=self._sampler(self.recipe.sampling.temperature, self.recipe.sampling.top_p),
                grader=self.grader,
                policy=VerlPolicy(
                    self.actor_rollout_wg, self.ref_policy_wg if self.use_reference_policy else None, self.recipe
                ),
                tokenizer=self.tokenizer,
                source=self.problems.source,
                state=self.state,
            )
            super().fit(agent_loop_manager)

    def step(self, metrics: dict[str, Any], timing_raw: dict[str, float]) -> KVBatchMeta:
        """One step of our loop; its metrics go to verl's trackers and, as with any engine, to ``metrics.jsonl``.

        Raises:
            SamplerError: the sampler has failed or stalled, more than once.
            RunError: too many steps in a row had numbers that are not finite.
        """
        result = retry_on_sampler_error(self.loop.step, self.recipe.sampling.retries, print)
        step = int(result.metrics["step"])
        over = self.recipe.is_over(step, self.loop.state.sampled_tokens)
        row = dict(result.metrics)
        if self.recipe.eval.every and (step % self.recipe.eval.every == 0 or over):
            row |= self._evaluate(step)
        self._write(row)
        record_step(self.directory, step, result, self.tokenizer, self.recipe.log)
        metrics.update({name: value for name, value in row.items() if name != "step"})
        in_a_row, limit = self.loop.state.nonfinite_steps, self.recipe.optimizer.max_nonfinite_steps
        record_faults(self.directory, step, result, in_a_row, limit, print)
        if over:
            self.total_training_steps = step
        done = [f"step-{step}"]  # verl clears the keys of a step's batch, and there must be some
        transfer_queue.kv_batch_put(keys=done, partition_id=PARTITION, tags=[{"status": "finished"}])
        return KVBatchMeta(partition_id=PARTITION, keys=done, tags=[{}])

    def _validate(self) -> dict[str, float]:
        """Before the first step: held-out accuracy of the model as it comes."""
        row = self._evaluate(self.global_steps)
        if self.global_steps == 0:
            self._write({"step": 0, **row})
        return row

    def _evaluate(self, step: int) -> dict[str, float]:
        settings, limits = self.recipe.eval, self.recipe.sampling
        evaluation = evaluate(
            self.problems.held_out,
            sampler=self._sampler(settings.temperature, settings.top_p),
            grader=self.grader,
            tokenizer=self.tokenizer,
            samples=settings.samples,
            max_new_tokens=limits.max_new_tokens,
            max_prompt_tokens=limits.max_prompt_tokens,
            seed=EVALUATION_SEED,
        )
        return record_evaluation(self.directory, step, evaluation, self.recipe.log)

    def _write(self, row: dict[str, float]) -> None:
        self.directory.append(METRICS, [{name: value for name, value in row.items() if math.isfinite(value)}])

    def _sampler(self, temperature: float, top_p: float) -> WatchedSampler:
        try:
            generation = GenerationConfig.from_pretrained(self.config.actor_rollout_ref.model.path)
        except OSError:
            generation = None
        sampler = VerlSampler(self, end_of_sequence_ids(generation, self.tokenizer), temperature, top_p)
        return WatchedSampler(sampler, self.recipe.sampling.stall_seconds)

    def _save_checkpoint(self) -> None:
        folder = Path(self.config.trainer.default_local_dir) / f"global_step_{self.global_steps}"
        folder.mkdir(parents=True, exist_ok=True)
        self.directory.sync()
        # Before verl's own files: only when those are written does verl call the checkpoint the latest.
        write_atomic(folder / STATE_FILE, json.dumps(state_to_json(self.loop.state)))
        super()._save_checkpoint()
        # verl takes away what is more than that, but only of this session, and not all of it.
        saved = sorted(folder.parent.glob("global_step_*"), key=lambda one: int(one.name.rpartition("_")[2]))
        for other in saved[: -self.recipe.checkpoint.keep_last]:
            shutil.rmtree(other)

    def _load_checkpoint(self) -> None:
        super()._load_checkpoint()
        if self.global_steps:
            folder = Path(self.config.trainer.resume_from_path or self.config.trainer.default_local_dir)
            if self.config.trainer.resume_mode == "auto":
                folder = Path(self.config.trainer.default_local_dir) / f"global_step_{self.global_steps}"
            try:
                state = state_from_json(json.loads((folder / STATE_FILE).read_text(encoding="utf-8")))
            except (OSError, KeyError, TypeError, ValueError) as error:
                raise UserError(f"checkpoint file {folder / STATE_FILE}: damaged ({one_line(error)})") from None
            limit = self.recipe.sampling.max_prompt_tokens
            # Held-out problems have been sampled at this step, if it was time to.
            with open_dict(self.config):
                self.config.trainer.val_before_train = False
            self.state = drop_stale_samples(state, self.problems.source, self.tokenizer, limit)

    def _compute_metrics(
        self, batch: KVBatchMeta, metrics: dict[str, Any], timing_raw: dict[str, float], global_steps: int, epoch: int
    ) -> None:
        """In place of verl's, which are of its own batch: ours are complete; seconds of saving are added."""
        metrics.update({f"timing_s/{name}": seconds for name, seconds in timing_raw.items()})

    def on_train_end(self) -> None:
        """The budget of tokens has ended the run before its last step, which verl would have saved."""
        self.global_steps = self.loop.state.step
        self._save_checkpoint()

    def on_step_end(self) -> None:
        """The engines get the new weights when there is something to sample."""

    def on_sample_end(self) -> None:
        """verl's own sampling is not used."""
