"""Recipes: what a run is, checked before anything is loaded.

A recipe is a YAML file; every key may be overridden on the command line as ``key.path=value``. Unknown keys
and values out of range end in one line that names the key. GRPO, TreeRL and AttnRL are settings of the same
:class:`TrainConfig`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    field_validator,
    model_validator,
)

from attnrl.data.rows import PROMPT_SUFFIX
from attnrl.errors import CREDENTIALS, UserError
from attnrl.utils.yaml import load_yaml

Decay = Annotated[float, Field(ge=0, lt=1)]
Seed = Annotated[int, Field(ge=-(2**63), lt=2**63)]  # what torch takes
Threads = Annotated[int, Field(ge=0, le=1024)]

MAX_SHOWN = 200  # characters of a faulty value or key in a message


class Strict(BaseModel):
    """Frozen; unknown keys and values out of range are errors that name the key."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def _plain_name(value: str) -> str:
    """A name that becomes a directory's: it stays where it is put."""
    if value in {"", ".", ".."} or any(mark in value for mark in "/\\:"):
        raise ValueError("becomes the name of a directory: without / \\ : and not . or ..")
    return value


PlainName = Annotated[str, AfterValidator(_plain_name)]


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


class VllmConfig(Strict):
    """The engine of ``sampler=vllm`` (docs/vllm.md)."""

    gpu_memory_utilization: float = Field(
        0.4, gt=0, le=1, description="share of the GPU's memory for the engine's weights and key/value cache"
    )
    kv_cache_gib: PositiveFloat | None = Field(
        None, description="size of the key/value cache; none: what gpu_memory_utilization leaves, on CPU 1"
    )
    block_size: PositiveInt | None = Field(
        None, description="prompts share their beginnings in units of this many tokens; none: 16, on CPU 32"
    )
    sleep: bool = Field(True, description="give the GPU's memory to training while nothing is sampled")
    enforce_eager: bool = Field(False, description="no CUDA graphs: starts sooner, samples slower; always so on CPU")


class VerlConfig(Strict):
    """The cluster of ``engine=verl`` (docs/verl.md)."""

    nodes: PositiveInt = 1
    gpus_per_node: PositiveInt = Field(8, description="processes per node, on a CPU too")
    rollout: Literal["vllm", "sglang", "transformers"] = Field(
        "vllm", description="what draws responses; transformers is slow, and for machines that have neither engine"
    )
    tensor_parallel: PositiveInt = Field(1, description="GPUs that one rollout engine is spread over")
    gpu_memory_utilization: float = Field(
        0.6, gt=0, le=1, description="share of a GPU's memory for the rollout engine, while it samples"
    )
    enforce_eager: bool = Field(False, description="no CUDA graphs in the rollout engine")
    offload: bool = Field(False, description="keep weights and optimizer in the host's memory while others work")
    sequence_parallel: PositiveInt = Field(
        1, description="GPUs that one sequence is spread over (Ulysses); more than 1 only where FCI is not looked at"
    )
    remove_padding: bool = Field(True, description="end to end in one row, for flash attention; false: padded rows")
    set: tuple[str, ...] = Field((), description="settings of verl's own, as verl.key.path=value, put on top of ours")
    architecture: dict[str, Any] = Field(
        {}, description="a transformers config that --dry-run estimates memory with where the model is not at hand"
    )
    gpu_memory_gib: PositiveFloat = Field(
        80.0, description="memory of a GPU, which --dry-run holds its estimate against"
    )


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
        None, description="rules, math or module:function; none: the task's own, math for data files"
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
    sampler: Literal["transformers", "vllm"] = Field(
        "transformers", description="what draws responses: the model that is trained, or a vLLM engine beside it"
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


class SftStage(Strict):
    """One stage of the curriculum; ends with a checkpoint in ``output_dir/NAME`` if ``save`` names one."""

    task: str
    steps: PositiveInt
    learning_rate: tuple[PositiveFloat, PositiveFloat] = Field(description="at the start and at the end")
    save: PlainName | None = None


class SftConfig(Strict):
    """Supervised training of a small base model on a task's demonstrations (``attnrl sft``)."""

    output_dir: Path
    architecture: dict[str, Any] = Field({}, description="a transformers config: model_type and its sizes")
    start: str | None = Field(None, description="a model to go on from (as in TrainConfig), instead of random weights")
    stages: tuple[SftStage, ...]
    batch_size: PositiveInt = 64
    warmup_steps: NonNegativeInt = Field(100, description="at the very start")
    weight_decay: NonNegativeFloat = 0.01
    max_grad_norm: PositiveFloat = 1.0
    threads: Threads = 0
    seed: Seed = 0

    @field_validator("stages")
    @classmethod
    def _some_stage(cls, stages: tuple[SftStage, ...]) -> tuple[SftStage, ...]:
        if not stages:
            raise ValueError("at least one stage is needed")
        return stages


ConfigT = TypeVar("ConfigT", bound=Strict)


def shipped_names(package: str) -> list[str]:
    """Names of the YAML files in a package of ours; one in a folder of the package is called ``FOLDER/NAME``."""
    return sorted(_yaml_names(resources.files(package)))


def _yaml_names(folder: Traversable, prefix: str = "") -> Iterator[str]:
    for entry in folder.iterdir():
        if entry.is_dir():
            yield from _yaml_names(entry, f"{prefix}{entry.name}/")
        elif entry.name.endswith(".yaml"):
            yield prefix + entry.name.removesuffix(".yaml")


def recipe_names() -> list[str]:
    """Names of the recipes that the package ships."""
    return shipped_names("attnrl.recipes")


def read_recipe(recipe: str) -> dict[str, Any]:
    """Read a YAML recipe: a path, or the name of one that the package ships.

    Raises:
        UserError: there is no such recipe, or it is not a YAML mapping.
    """
    return read_settings(recipe, kind="recipe", package="attnrl.recipes")


def read_settings(name: str, *, kind: str, package: str) -> dict[str, Any]:
    """Read a YAML file of settings: a path, or the name of one in a package of ours.

    Args:
        name: the path or name.
        kind: what to call it in errors.
        package: where the named ones are.

    Raises:
        UserError: there is none, or it is not a YAML mapping.
    """
    path = Path(name)
    if path.suffix in {".yaml", ".yml"}:
        if not path.is_file():
            raise UserError(f"{kind} {name}: no such file")
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            raise UserError(f"{kind} {name}: not UTF-8 text") from None
        except OSError as error:
            raise UserError(f"{kind} {name}: not readable ({error.strerror})") from None
    elif name in shipped_names(package):
        text = resources.files(package).joinpath(f"{name}.yaml").read_text(encoding="utf-8")
    else:
        raise UserError(f"{kind} {name!r} is neither a .yaml file nor one of: {', '.join(shipped_names(package))}")
    try:
        settings = load_yaml(text)
    except ValueError as error:
        raise UserError(f"{kind} {name}: not valid YAML ({error})") from None
    if not isinstance(settings, dict):
        raise UserError(f"{kind} {name}: expected a mapping of settings, found {type(settings).__name__}")
    return settings


def apply_overrides(settings: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Return ``settings`` with each ``key.path=value`` set; values are read as YAML.

    Raises:
        UserError: an override is not of that form, or its path runs through a value that has no keys.
    """
    merged = deepcopy(settings)
    for override in overrides:
        path, equals, value = override.partition("=")
        keys = path.split(".")
        if not equals or not all(keys):
            raise UserError(f"override {override!r}: expected key.path=value")
        target = merged
        for key in keys[:-1]:
            target = target.setdefault(key, {})
            if not isinstance(target, dict):
                raise UserError(f"override {override!r}: {key} is a value, not a group of settings")
        try:
            target[keys[-1]] = _parse_value(value)
        except ValueError:
            raise UserError(f"override {override!r}: the value is not valid YAML") from None
    return merged


def _parse_value(value: str) -> Any:
    parsed = load_yaml(value)
    if isinstance(parsed, str):
        # YAML 1.1 reads 3e-4 as text; everyone who types it means a number.
        try:
            return float(parsed)
        except ValueError:
            return parsed
    return parsed


def load_config(kind: type[ConfigT], recipe: str, overrides: Sequence[str] = ()) -> ConfigT:
    """Read a recipe, apply overrides, validate.

    Raises:
        UserError: naming the recipe and the first faulty key.
    """
    return validate_config(kind, apply_overrides(read_recipe(recipe), overrides), source=f"recipe {recipe}")


def validate_config(kind: type[ConfigT], settings: Mapping[str, Any], source: str) -> ConfigT:
    """Validate settings; a fault ends in a :class:`UserError` that names ``source`` and every faulty key.

    Settings that hold credentials are such a fault: they would be written to ``config.yaml`` and to trackers.
    """
    for path, text in _texts(settings, ""):
        if CREDENTIALS.search(text):
            raise UserError(
                f"{source}: {path}: holds credentials, which would be written down: leave them to the environment "
                "(HF_TOKEN, WANDB_API_KEY) or to the tool that they are for"
            )
        if "\0" in text:
            raise UserError(f"{source}: {path}: holds a NUL character, which is in no name of a file")
    try:
        return kind.model_validate(settings)
    except ValidationError as error:
        faults = [_describe(fault, kind) for fault in error.errors()]
        raise UserError(f"{source}: {'; '.join(faults)}") from None


def _texts(value: Any, path: str) -> Iterator[tuple[str, str]]:
    """The settings that are text, or have some, with their dotted names."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _texts(inner, f"{path}.{key}" if path else str(key))
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from _texts(inner, path)
    elif isinstance(value, (str, Path)):
        yield path, str(value)


def _describe(fault: Mapping[str, Any], kind: type[BaseModel]) -> str:
    path = _shown(".".join(str(part) for part in fault["loc"]))
    if fault["type"] == "extra_forbidden":
        known = ", ".join(_keys_beside(kind, fault["loc"]))
        return f"unknown key {path} (known here: {known})"
    if fault["type"] == "missing":
        return f"{path} is required"
    message = str(fault["msg"]).removeprefix("Value error, ")
    if not path:
        return message
    value = "" if isinstance(fault["input"], dict) else f" (got {_shown(repr(fault['input']))})"
    return f"{path}: {message}{value}"


def _shown(text: str) -> str:
    """What a file says, fit for one line of a message."""
    text = text if text.isprintable() else repr(text)
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."


def _keys_beside(kind: type[BaseModel], location: Sequence[str | int]) -> list[str]:
    here: type[BaseModel] = kind
    for part in location[:-1]:
        if part in here.model_fields:  # else a place in a list or mapping, whose entries are found with it
            declared = here.model_fields[str(part)].annotation
            inside = (declared, *get_args(declared))
            models = (found for found in inside if isinstance(found, type) and issubclass(found, BaseModel))
            here = next(models, here)  # else it is an entry's name that is also the name of a field
    return sorted(here.model_fields)


def dump_config(config: Strict) -> str:
    """The resolved config as YAML, every default spelled out."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
