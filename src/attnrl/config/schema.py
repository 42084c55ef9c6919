"""Settings of a training run (``attnrl train``): GRPO, TreeRL and AttnRL are settings of one :class:`TrainConfig`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from attnrl.config.base import PROMPT_SUFFIX, PlainName, Seed, Strict, Threads
from attnrl.config.engines import VerlConfig, VllmConfig

Decay = Annotated[float, Field(ge=0, lt=1)]


class BranchingConfig(Strict):
    """Where to branch, and how often (attention-based tree branching and its rivals)."""

    criterion: Literal["fci", "entropy", "random", "oracle"] = Field(
        "fci", description="what says where; oracle: the task's true dependency graph, to compare with"
    )
    points: NonNegativeInt = Field(2, description="branch points on each expanded trunk (N); 0 = no branching")
    samples: PositiveInt = Field(2, description="continuations from each branch point (T)")
    rho: float = Field(0.2, gt=0, le=1, description="share of steps with the highest FCI that are candidates")
    delta: NonNegativeInt = Field(4, description="steps between a step and the later steps that count for its FCI")
    spacing: NonNegativeInt = Field(0, description="least number of tokens between branch points")
    influence: Literal["fci", "lookups"] = Field(
        "fci",
        description="of a step. fci: attention of later steps (eq. 5-6); lookups: in how many heads and later steps a "
        "token gives it over half of its attention",
    )
    reduction: Literal["max", "zscore_max"] = Field("max", description="of fci, over layers and heads")


class CreditConfig(Strict):
    """Which steps the advantages act on (ours; the paper's act on all alike)."""

    top_share: float = Field(0.2, gt=0, le=1, description="share of steps of highest influence that count in full")
    rest_weight: float = Field(1.0, gt=0, le=1, description="weight of the advantages of all others; 1: all alike")


class AdaptiveConfig(Strict):
    """What to spend samples on (adaptive sampling)."""

    filter: bool = Field(True, description="drop all-correct problems whose mean FCI is below the running mean")
    expansion: Literal["ceil", "round", "all"] = Field("ceil", description="trunks expanded: exp(-accuracy) * n")
    batch_size: bool = Field(True, description="adapt prompts per step to keep the training batch full")
    smoothing: float = Field(0.9, ge=0, lt=1, description="lambda of the batch size controller")
    max_growth: float = Field(4.0, ge=1, description="bounds of the controller: prompts / this .. prompts * this")


class MethodConfig(Strict):
    """AttnRL, TreeRL, GRPO and everything between, as settings."""

    pipeline: Literal["one_step", "two_phase"] = Field(
        "one_step",
        description="one_step: one generation a step, one-step off-policy; two_phase: two generations",
    )
    trunks: PositiveInt = Field(6, description="initial responses per problem (n)")
    advantage: Literal["tree", "grpo", "grpo_no_std"] = "tree"
    branching: BranchingConfig = BranchingConfig()
    credit: CreditConfig = CreditConfig()
    adaptive: AdaptiveConfig = AdaptiveConfig()

    @property
    def leaves(self) -> int:
        """Leaves of a fully expanded problem: n * (1 + N * T)."""
        return self.trunks * (1 + self.branching.points * self.branching.samples)

    @property
    def weighs_steps(self) -> bool:
        """Whether advantages count more in some steps than in others."""
        return self.credit.rest_weight < 1

    @property
    def needs_fci(self) -> bool:
        """Whether anything looks at the influence of steps."""
        branches = self.branching.points > 0 and self.branching.criterion == "fci"
        return self.adaptive.filter or branches or self.weighs_steps

    @model_validator(mode="after")
    def _grpo_has_no_branches(self) -> MethodConfig:
        if self.advantage != "tree" and self.branching.points:
            raise ValueError(f"advantage={self.advantage} gives whole responses one advantage: set branching.points=0")
        return self


class LossConfig(Strict):
    """The clipped policy loss."""

    clip_low: float = Field(0.2, gt=0, lt=1)
    clip_high: PositiveFloat = 0.28
    dual_clip: float | None = Field(None, gt=1, description="lower bound on the loss of negative advantages")
    kl: NonNegativeFloat = Field(0.001, description="weight of the KL to the frozen starting model")
    tis: float | None = Field(
        None,
        gt=0,
        description="truncated importance sampling: weigh tokens by exp(policy's - sampler's log-prob), at most this",
    )


class OptimizerConfig(Strict):
    """AdamW and how a training batch is cut."""

    learning_rate: PositiveFloat = 1e-6
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    weight_decay: NonNegativeFloat = 0.0
    warmup_steps: NonNegativeInt = 0
    max_grad_norm: PositiveFloat = 1.0
    mini_batches: PositiveInt = Field(2, description="optimizer steps per training step, of equal token counts")
    max_nonfinite_steps: PositiveInt = Field(
        3, description="stop when so many steps in a row had numbers that are not finite; until then they are skipped"
    )
    micro_batch_tokens: PositiveInt = Field(
        8192,
        description="tokens per forward and backward pass, shared ones once, padding included; halved where memory "
        "runs out",
    )
    packing: Literal["tree", "none"] = Field(
        "tree", description="tree: what responses have in common is scored and trained once; none: for each of them"
    )
    gradient_checkpointing: bool = False


class SamplingConfig(Strict):
    """How responses are drawn."""

    temperature: PositiveFloat = 1.0
    top_p: float = Field(1.0, gt=0, le=1)
    max_new_tokens: PositiveInt = 8192
    max_prompt_tokens: PositiveInt = 1024
    max_batch: PositiveInt = Field(256, description="sequences decoded at once")
    score_continuations: bool = Field(
        True,
        description="score continuations with the policy; false: take the sampler's log-probs for the policy's, which "
        "saves a forward",
    )
    carry_over: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="share of problems whose initial responses may be left unfinished when all else of a generation "
        "is done, rounded down; they go on in the next step's",
    )
    stall_seconds: PositiveFloat | None = Field(
        1800.0, description="a sampler of which nothing is heard for so long has stalled; none: wait for ever"
    )
    retries: NonNegativeInt = Field(1, description="how often a step is begun again whose sampler failed or stalled")


class DataConfig(Strict):
    """Problems from files and Hugging Face data sets (docs/data.md); a procedural ``task`` needs none."""

    train: str | tuple[str, ...] | None = Field(
        None, description="a parquet, jsonl, json or csv file, a data set (name:config@revision[split]), or several"
    )
    eval: str | tuple[str, ...] | None = Field(None, description="as train")
    prompt_suffix: str = Field(
        PROMPT_SUFFIX, description="appended to the last user message of every problem that has not got it"
    )
    chat_template: Literal["auto", "never"] = Field(
        "auto",
        description="auto: a text prompt is a user message where the model has a chat template; never: it is not",
    )
    deduplicate: bool = Field(True, description="leave out training problems that repeat another with its answers")
    overlap: Literal["drop", "warn"] = Field("drop", description="what to do with training problems evaluated on")
    allow_changed: bool = Field(False, description="go on with a run whose problems are not those it began with")

    @field_validator("train", "eval", mode="before")
    @classmethod
    def _as_text(cls, value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            if not value:
                raise ValueError("names no file")
            return tuple(str(one) if isinstance(one, Path) else one for one in value)
        return str(value) if isinstance(value, Path) else value


class EvalConfig(Strict):
    """Held-out evaluation during training."""

    every: NonNegativeInt = Field(10, description="training steps between evaluations; 0 = none at all")
    problems: PositiveInt = 100
    samples: PositiveInt = Field(8, description="responses per problem (k of avg@k)")
    temperature: NonNegativeFloat = 1.0
    top_p: float = Field(1.0, gt=0, le=1)


class CheckpointConfig(Strict):
    """When to save, and how many checkpoints to keep."""

    every: NonNegativeInt = Field(50, description="training steps between checkpoints; the last step always saves")
    keep_last: PositiveInt = 2
    keep_best: NonNegativeInt = Field(
        0,
        description="keep so many of the highest held-out accuracy too; one that an evaluation finds is saved",
    )


class LogConfig(Strict):
    """What a run writes besides its metrics."""

    trees_every: NonNegativeInt = Field(10, description="steps between forests written to trees.jsonl; 0 = never")
    samples: NonNegativeInt = Field(4, description="responses per evaluation written to samples.jsonl")
    trackers: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = ()
    project: PlainName = "attnrl"


class TrainConfig(Strict):
    """A training run (``attnrl train``)."""

    model: str = Field(description="a Hugging Face checkpoint directory, or the name of a shipped model")
    trust_remote_code: bool = Field(False, description="run the code that the model's directory brings (auto_map)")
    output_dir: Path
    task: str | None = Field(
        None, description="a procedural task, or reasoning_gym:NAME?KEY=VALUE&... of reasoning-gym; or give data.train"
    )
    data: DataConfig = DataConfig()
    grader: str | None = Field(
        None, description="rules, math or module:object; none: the task's own, math for data files"
    )
    flexible_answers: bool = Field(False, description="grade the last number of a response that boxes nothing")
    engine: Literal["local", "verl"] = Field(
        "local", description="local: this process, one device; verl: a Ray cluster of many GPUs"
    )
    steps: PositiveInt
    tokens: PositiveInt | None = Field(
        None, description="end the run earlier, with the step in which so many tokens have been sampled in all"
    )
    prompts: PositiveInt = Field(64, description="problems per step, before the batch size adapts")
    seed: Seed = 0
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N")
    dtype: Literal["float32", "bfloat16"] = Field(
        "float32", description="of weights and forwards; bfloat16 weights are updated through fp32 copies"
    )
    threads: Threads = Field(0, description="CPU threads of torch; 0 = as torch chooses")
    resume: str = Field("auto", description="auto: continue the newest checkpoint of output_dir; never; or a path")
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

    def is_over(self, step: int, sampled_tokens: float) -> bool:
        """Whether a run that has done ``step`` steps and sampled so many tokens has come to its end."""
        return step >= self.steps or (self.tokens is not None and sampled_tokens >= self.tokens)

    @model_validator(mode="after")
    def _one_source_of_problems(self) -> TrainConfig:
        if (self.task is None) == (self.data.train is None):
            raise ValueError("give either task or data.train (task=null drops a recipe's task)")
        return self

    @model_validator(mode="after")
    def _verl_can_do_it(self) -> TrainConfig:
        if self.engine == "verl":
            if self.verl.sequence_parallel > 1 and self.method.needs_fci:
                raise ValueError(
                    f"verl.sequence_parallel={self.verl.sequence_parallel} spreads a sequence over GPUs, and FCI needs "
                    "it whole on one: set it to 1, or use a method that does not look at FCI"
                )
            if self.verl.rollout != "transformers" and not self.sampling.score_continuations:
                raise ValueError(
                    f"sampling.score_continuations=false takes the log-probs of {self.verl.rollout} for the policy's, "
                    "which they are not: set it to true"
                )
            if self.sampling.carry_over:
                raise ValueError("sampling.carry_over: the verl engine waits for all responses; set it to 0")
        return self

    @model_validator(mode="after")
    def _importance_needs_both_logprobs(self) -> TrainConfig:
        if self.loss.tis is not None and not self.sampling.score_continuations:
            raise ValueError(
                "loss.tis compares the sampler's log-probs with the policy's: sampling.score_continuations=true"
            )
        return self
