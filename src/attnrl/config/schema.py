"""Settings of a training run (``attnrl train``): GRPO, TreeRL and AttnRL are settings of one :class:`TrainConfig`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from attnrl.config.base import HomePath, HomeText, PlainName, Seed, Strict, Threads
from attnrl.config.data import DataConfig
from attnrl.config.engines import VerlConfig, VllmConfig
from attnrl.config.method import MethodConfig
from attnrl.config.reward import RewardConfig
from attnrl.config.sampling import EvalConfig, SamplingConfig

Decay = Annotated[float, Field(ge=0, lt=1)]


class LossConfig(Strict):
    """The clipped policy loss with a KL penalty (eq. 1)."""

    clip_low: float = Field(0.2, gt=0, lt=1, description="the probability ratio is clipped below 1 - clip_low")
    clip_high: PositiveFloat = Field(0.28, description="the probability ratio is clipped above 1 + clip_high")
    dual_clip: float | None = Field(
        None,
        gt=1,
        description="dual clip: bounds the loss of tokens of negative advantage A by -dual_clip * A; null: off",
    )
    kl: NonNegativeFloat = Field(
        0.001, description="weight of the KL penalty (k3 estimate) to the reference model, the frozen starting model"
    )
    tis: float | None = Field(
        None,
        gt=0,
        description="truncated importance sampling: token losses are weighed by the probability ratio of policy to "
        "sampler, capped at this value; null: off",
    )


class OptimizerConfig(Strict):
    """AdamW, and the mini-batches and micro-batches of a training batch."""

    learning_rate: PositiveFloat = Field(1e-6, description="learning rate of AdamW, constant after the warm-up")
    betas: tuple[Decay, Decay] = Field(
        (0.9, 0.999), description="decay rates of AdamW's first and second moments, per optimizer step"
    )
    weight_decay: NonNegativeFloat = Field(0.0, description="decoupled weight decay of AdamW")
    warmup_steps: NonNegativeInt = Field(0, description="linear warm-up of the learning rate, in optimizer steps")
    max_grad_norm: PositiveFloat = Field(1.0, description="gradient clipping: largest global gradient norm")
    mini_batches: PositiveInt = Field(2, description="optimizer steps per training step, of equal token counts")
    max_nonfinite_steps: PositiveInt = Field(
        3,
        description="consecutive training steps with NaN or infinite values after which the run ends with an error; "
        "mini-batches with such values are skipped",
    )
    micro_batch_tokens: PositiveInt = Field(
        8192,
        description="tokens per forward and backward pass, padding included, shared prefixes counted once; halved when "
        "memory runs out",
    )
    packing: Literal["auto", "tree", "none"] = Field(
        "auto",
        description="tree: a prefix shared by several responses is scored and trained once; none: once per response; "
        "auto: tree where the model's log-probs allow, else none, and the run says so",
    )
    gradient_checkpointing: bool = Field(
        False, description="recompute activations in the backward pass: less memory, more time"
    )


class CheckpointConfig(Strict):
    """When checkpoints are saved, and how many are kept (retention)."""

    every: NonNegativeInt = Field(
        50, description="training steps between checkpoints; 0: only the last step, which always saves"
    )
    keep_last: PositiveInt = Field(2, description="newest checkpoints to keep")
    keep_best: NonNegativeInt = Field(
        0,
        description="checkpoints of highest held-out accuracy (not reward) to keep as well; a new best evaluation "
        "saves a checkpoint at once",
    )


class LogConfig(Strict):
    """Outputs of a run besides the metrics."""

    trees_every: NonNegativeInt = Field(10, description="training steps between forests in trees.jsonl; 0: never")
    samples: NonNegativeInt = Field(4, description="responses per evaluation written to samples.jsonl")
    trackers: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = Field(
        (), description="experiment trackers that receive the metrics as well"
    )
    project: PlainName = Field("attnrl", description="project name in the trackers")
    run_name: str | None = Field(
        None, min_length=1, description="name of the run in the trackers; null: the name of output_dir"
    )


class TrainConfig(Strict):
    """A training run (``attnrl train``)."""

    model: str = Field(
        description="a shipped model, a Hugging Face checkpoint directory, a run directory (its newest checkpoint), or "
        "OWNER/NAME or OWNER/NAME@REVISION of the Hugging Face Hub (docs/models.md)"
    )
    trust_remote_code: bool = Field(False, description="run Python code from the model's directory (auto_map)")
    output_dir: HomePath = Field(description="run directory; all output of the run is written there")
    task: str | None = Field(
        None,
        description="a task: ledger, ledger_long or ledger_single (the easiest), reasoning_gym:NAME?KEY=VALUE&..., or "
        "module:object; null: data.train is used",
    )
    data: DataConfig = DataConfig()
    grader: str | None = Field(
        None,
        description="rules: equal spelling; math: equal value, compared by type; or module:object; null: "
        "the task's own grader, math for data files",
    )
    flexible_answers: bool = Field(
        False, description="grade the last number of a response that contains no boxed answer"
    )
    engine: Literal["local", "verl"] = Field(
        "local", description="local: this process, one device; verl: a Ray cluster of many GPUs (docs/verl.md)"
    )
    steps: PositiveInt = Field(description="training steps")
    tokens: PositiveInt | None = Field(
        None, description="budget of sampled tokens: the run ends with the step that reaches the budget; null: no limit"
    )
    prompts: PositiveInt = Field(64, description="problems per training step, before the batch size adapts")
    seed: Seed = Field(0, description="seed of all random choices")
    device: str = Field("auto", description="auto (CUDA if available), cpu, cuda or cuda:N")
    dtype: Literal["float32", "bfloat16"] = Field(
        "float32",
        description="precision of weights and forward passes. float32: full precision; bfloat16: half the memory, the "
        "optimizer updates fp32 master weights",
    )
    threads: Threads = Field(0, description="CPU threads of torch; 0: torch's default")
    resume: HomeText = Field(
        "auto",
        description="auto: continue from the newest checkpoint in output_dir, if any; never: start anew, in an empty "
        "output_dir; or a checkpoint directory to continue from",
    )
    reward: RewardConfig = RewardConfig()
    method: MethodConfig = MethodConfig()
    loss: LossConfig = LossConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    sampling: SamplingConfig = SamplingConfig()
    sampler: str = Field(
        "transformers",
        description="how responses are sampled: transformers (with the policy's own model), vllm (a vLLM engine in the "
        "same process), or module:object (an opener of samplers, see attnrl.inference.registry)",
    )
    vllm: VllmConfig = VllmConfig()
    verl: VerlConfig = VerlConfig()
    eval: EvalConfig = EvalConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    log: LogConfig = LogConfig()

    @property
    def run_name(self) -> str:
        """Return the name of the run in the trackers."""
        return self.log.run_name or self.output_dir.absolute().name or "run"

    def is_over(self, step: int, sampled_tokens: float) -> bool:
        """Return True if ``step`` done steps or ``sampled_tokens`` sampled tokens reach the limits of the run."""
        return step >= self.steps or (self.tokens is not None and sampled_tokens >= self.tokens)

    @model_validator(mode="after")
    def _one_source_of_problems(self) -> TrainConfig:
        if (self.task is None) == (self.data.train is None):
            raise ValueError("give either task or data.train (task=null drops a recipe's task)")
        return self

    @model_validator(mode="after")
    def _verl_supports_the_settings(self) -> TrainConfig:
        if self.engine == "verl":
            if self.verl.sequence_parallel > 1 and self.method.needs_influence:
                raise ValueError(
                    f"verl.sequence_parallel={self.verl.sequence_parallel} splits a sequence over GPUs, and FCI needs "
                    "whole sequences: set verl.sequence_parallel=1, or use a method without FCI"
                )
            if self.verl.rollout != "transformers" and not self.sampling.score_continuations:
                raise ValueError(
                    "sampling.score_continuations=false uses the sampler's log-probs as the policy's, but log-probs of "
                    f"{self.verl.rollout} differ from the policy's: set sampling.score_continuations=true"
                )
            if self.sampling.carry_over:
                raise ValueError("sampling.carry_over: the verl engine waits for all responses; set it to 0")
        return self

    @model_validator(mode="after")
    def _overlong_buffer_fits(self) -> TrainConfig:
        if self.reward.overlong_buffer > self.sampling.max_new_tokens:
            raise ValueError(
                f"reward.overlong_buffer={self.reward.overlong_buffer} exceeds "
                f"sampling.max_new_tokens={self.sampling.max_new_tokens}"
            )
        return self

    @model_validator(mode="after")
    def _importance_needs_both_logprobs(self) -> TrainConfig:
        if self.loss.tis is not None and not self.sampling.score_continuations:
            raise ValueError(
                "loss.tis compares the sampler's log-probs with the policy's: sampling.score_continuations=true"
            )
        return self
