"""Prepare a training run of the local engine: check everything before the run starts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from attnrl.config.load import validate_config
from attnrl.config.schema import TrainConfig
from attnrl.data.run_data import TaskData, grader_for, load_task
from attnrl.data.stream import ProblemSource
from attnrl.errors import UserError
from attnrl.local.checkpoint import Checkpoint, data_of, find_checkpoint, list_checkpoints
from attnrl.local.loading import (
    build_sampler,
    choose_device,
    load_model,
    load_tokenizer,
    model_directory,
    require_influence,
    require_sampler,
    require_trees,
)
from attnrl.runs.directory import METRICS, RunDirectory
from attnrl.runs.trackers import check_trackers
from attnrl.tasks.dependencies import require_dependencies
from attnrl.tokenization import encode_prompt
from attnrl.types import Problem


@dataclass(frozen=True)
class PreparedRun:
    """A run that has been checked and not started: what ``--dry-run`` shows.

    Attributes:
        config: the recipe.
        model_directory: the model the run starts from.
        checkpoint: what it resumes from, if anything.
        device: where it runs.
        tokenizer: the model's.
        model: the model, with the checkpoint's weights when resuming.
        source: training problems.
        training_problems: how many there are; None for a procedural task, which has no end.
        held_out: evaluation problems; none when there is no evaluation.
        without_influence: kinds of the model's layers that have no softmax attention and so no part in FCI, by
            index; empty too when the method does not look at FCI.
        data: a fingerprint of each set of problems that came from data files, by setting; see :class:`TaskData`.
        checkpoints: those of the output directory when it was looked for one to resume from.
        notes: what was left out of data files, and what is odd about them, and damaged checkpoints that were skipped.
    """

    config: TrainConfig
    model_directory: Path
    checkpoint: Checkpoint | None
    device: torch.device
    tokenizer: PreTrainedTokenizerBase
    model: PreTrainedModel
    source: ProblemSource
    training_problems: int | None
    held_out: Sequence[Problem]
    without_influence: dict[int, str]
    data: Mapping[str, str] = field(default_factory=dict)
    checkpoints: Sequence[Checkpoint] = ()
    notes: Sequence[str] = ()


def prepare(config: TrainConfig) -> PreparedRun:
    """Check everything that can be checked before the first token: nothing is written.

    Raises:
        UserError: a setting, file or model that will not do; it is named.
    """
    if config.threads:
        torch.set_num_threads(config.threads)
    directory = model_directory(config.model)
    device = choose_device(config.device)
    require_sampler(config, device)
    run = RunDirectory(config.output_dir)
    run.check_writable()
    check_trackers(config)
    checkpoints = list_checkpoints(run.checkpoints)
    found = find_checkpoint(config.resume, run.checkpoints)
    checkpoint = found.checkpoint
    notes = [*found.skipped, *missing_record_warnings(run, checkpoint)]
    if run.holds_a_run():
        if checkpoint is not None and checkpoint.directory.parent.resolve() != run.checkpoints.resolve():
            raise UserError(
                f"output_dir {config.output_dir}: holds a run already, which resume=auto continues; to begin another "
                f"from {config.resume}, choose another output_dir"
            )
        refuse_another_run(config, run)
    elif checkpoint is not None and checkpoint.directory.parent.resolve() == run.checkpoints.resolve():
        raise UserError(
            f"output_dir {config.output_dir}: holds checkpoints, but no config.yaml to say what run they are of; "
            f"resume={checkpoint.directory} with another output_dir goes on from the newest"
        )
    tokenizer = load_tokenizer(directory, trust_remote_code=config.trust_remote_code)
    with grader_for(config):
        pass  # there is one
    task = load_task(config, tokenizer)
    if checkpoint is not None and not config.data.allow_changed:
        refuse_other_data(task, checkpoint)
    if config.method.branching.criterion == "oracle":
        require_dependencies(task.source.at(0))
    for problem in task.held_out:
        encode_prompt(tokenizer, problem, config.sampling.max_prompt_tokens)
    model = load_model(
        checkpoint.directory if checkpoint else directory,
        device=device,
        dtype=config.dtype,
        trust_remote_code=config.trust_remote_code,
    )
    check_length(model, config.sampling.max_prompt_tokens + config.sampling.max_new_tokens)
    if config.sampler == "transformers":
        build_sampler(model, tokenizer, temperature=1.0, top_p=1.0, max_batch=1)  # it takes the model
    if config.optimizer.packing == "tree":
        require_trees(model)
    return PreparedRun(
        config,
        directory,
        checkpoint,
        device,
        tokenizer,
        model,
        task.source,
        task.training_problems,
        task.held_out,
        data=task.fingerprints,
        checkpoints=checkpoints,
        notes=(*notes, *task.notes),
        without_influence=require_influence(model) if config.method.needs_fci else {},
    )


def missing_record_warnings(run: RunDirectory, checkpoint: Checkpoint | None) -> list[str]:
    """What a run directory should have and has not, a line each."""
    steps = {row.get("step") for row in run.read(METRICS)}
    if checkpoint is None:
        trained = len(steps - {0})
        return [f"{run.root}: metrics of {trained} steps but no checkpoint: the run begins anew"] if trained else []
    missing = len(set(range(1, checkpoint.step + 1)) - steps)
    ours = checkpoint.directory.parent.resolve() == run.checkpoints.resolve()
    return [f"{run.root}: {METRICS} has no lines of {missing} steps up to the checkpoint"] if ours and missing else []


# What may differ when a run goes on: how long, where and how it is watched, not what is learned.
MUTABLE_ON_RESUME = {
    *("steps", "tokens", "resume", "device", "threads", "output_dir", "vllm", "eval", "checkpoint", "log"),
    *("verl.rollout", "verl.tensor_parallel", "verl.gpu_memory_utilization", "verl.enforce_eager", "verl.offload"),
    *("verl.remove_padding", "verl.set", "verl.architecture", "verl.gpu_memory_gib"),
    *("sampling.stall_seconds", "sampling.retries", "optimizer.max_nonfinite_steps", "data.allow_changed"),
}


def refuse_another_run(config: TrainConfig, run: RunDirectory) -> None:
    """Refuse to continue the run that ``run`` holds where that is not wanted, or it would be another run.

    Raises:
        UserError: resume is never; or naming the settings that differ and both values.
    """
    if config.resume == "never":
        raise UserError(f"output_dir {config.output_dir}: holds a run already, and resume is never")
    # Settings that came into being since the run began are what they were then: the defaults.
    started = validate_config(TrainConfig, run.read_config(), source=f"output_dir {config.output_dir}: config.yaml")
    before, now = _leaves(started.model_dump(mode="json")), _leaves(config.model_dump(mode="json"))
    changed = [
        f"{key} {before.get(key)!r} -> {now.get(key)!r}" for key in now | before if before.get(key) != now.get(key)
    ]
    if changed:
        raise UserError(
            f"output_dir {config.output_dir}: holds a run with other settings ({'; '.join(changed)}): "
            "choose another output_dir"
        )


def _leaves(settings: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """Settings by dotted path, without those that may change."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        name = f"{path}{key}"
        if name not in MUTABLE_ON_RESUME:
            found |= _leaves(value, f"{name}.") if isinstance(value, dict) else {name: value}
    return found


def refuse_other_data(task: TaskData, checkpoint: Checkpoint) -> None:
    """Refuse to continue a run on other problems than those it began with.

    Raises:
        UserError: naming the setting whose problems differ.
    """
    before = data_of(checkpoint)
    for setting, fingerprint in task.fingerprints.items():
        if before.get(setting, fingerprint) != fingerprint:
            raise UserError(
                f"{setting}: its problems are not those that the run began with (fingerprint {before[setting][:12]} -> "
                f"{fingerprint[:12]}): data.allow_changed=true goes on all the same"
            )


def check_length(model: PreTrainedModel, tokens: int) -> None:
    """Refuse lengths that the model has no positions for.

    Raises:
        UserError: ``tokens`` (prompt and response) are too many.
    """
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if limit is not None and tokens > limit:
        raise UserError(f"max_prompt_tokens + max_new_tokens = {tokens} is more than the model's {limit} positions")
    rope = getattr(model.config.get_text_config(), "rope_parameters", None) or {}
    for parameters in (rope, *(value for value in rope.values() if isinstance(value, dict))):
        kind, original = parameters.get("rope_type"), parameters.get("original_max_position_embeddings") or limit
        if kind in {"longrope", "dynamic"} and original is not None and tokens > original:
            raise UserError(
                f"max_prompt_tokens + max_new_tokens = {tokens} is more than the {original} positions for which the "
                f"model's rotary embedding ({kind}) is the same whatever else is in a batch"
            )
