"""Supervised fine-tuning (SFT) of a small base model on demonstrations of a procedural task: ``attnrl sft RECIPE``.

The shipped models are trained by SFT from random weights. Training follows a curriculum of stages with increasing
problem length, because a small model trained on full-length problems from the start stays at chance level.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from attnrl.config.sft import SftConfig, SftStage
from attnrl.errors import UserError, one_line
from attnrl.local.loading import load_model, load_tokenizer
from attnrl.local.model_config import check_numbers
from attnrl.local.model_names import find_model
from attnrl.local.weights import LoadedModel
from attnrl.tasks.base import DemonstratedTask
from attnrl.tasks.registry import find_demonstrated_task
from attnrl.utils.files import require_writable
from attnrl.utils.model_outputs import logits_only
from attnrl.utils.near import did_you_mean, near_names

MISSPELT = 0.8  # similarity of an unknown key to a known key; less similar keys may be older names (rope_theta)
IGNORED = -100  # label of positions without a target
POOL_BATCHES = 8  # batches drawn together and sorted by length, to reduce padding


@dataclass(frozen=True)
class SftProgress:
    """Progress after an optimizer step: task of the stage, step, steps of the run, loss in nats, tokens per second."""

    stage: str
    step: int
    total_steps: int
    loss: float
    tokens_per_second: float


def build_model(config: SftConfig, tokenizer: PreTrainedTokenizerBase) -> LoadedModel:
    """Load the model ``config.start``, or build a randomly initialised model of ``config.architecture``.

    Raises:
        UserError: the checkpoint is missing, has another vocabulary, or is not a causal language model; or the
            architecture is invalid.
    """
    if config.start is not None:
        source = find_model(config.start)
        directory = source.directory
        if load_tokenizer(directory).get_vocab() != tokenizer.get_vocab():
            raise UserError(f"start {config.start}: the vocabulary differs from the task's")
        loaded = load_model(directory, tokenizer, device=torch.device("cpu"), dtype="float32")
        return LoadedModel(loaded.model, (*source.notes, *loaded.notes))
    check_numbers("architecture", config.architecture)
    _check_keys(config.architecture)
    torch.manual_seed(config.seed)
    try:
        architecture = AutoConfig.for_model(
            vocab_size=len(tokenizer),
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            bos_token_id=None,
            **config.architecture,
        )
        model: PreTrainedModel = AutoModelForCausalLM.from_config(architecture)
    except Exception as error:  # transformers raises exceptions of many types for invalid settings
        raise UserError(f"architecture: {type(error).__name__}: {one_line(error)[:300]}") from None
    return LoadedModel(model, ())


def _check_keys(architecture: Mapping[str, Any]) -> None:
    """Check that no key resembles a key of the model's config; transformers ignores unknown keys.

    Raises:
        UserError: a key is misspelt, or the type of the model is missing or unknown.
    """
    kind = architecture.get("model_type")
    if kind is None:
        raise UserError("architecture: model_type is required, e.g. llama")
    if kind not in CONFIG_MAPPING:
        raise UserError(f"architecture: unknown model_type {kind!r}{did_you_mean(str(kind), CONFIG_MAPPING)}")
    default = CONFIG_MAPPING[kind]()
    known = {*default.to_dict(), *default.attribute_map}
    for key in architecture:
        if key not in known and (near := near_names(key, known, cutoff=MISSPELT)):
            raise UserError(f"architecture: unknown key {key!r} of model_type {kind}; did you mean {near[0]}?")


def demonstration_batches(
    task: DemonstratedTask, tokenizer: PreTrainedTokenizerBase, batch_size: int, rng: random.Random
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield ``(input_ids_BT, labels_BT)`` without end; only the response and the end-of-sequence token have labels."""
    while True:
        pool = []
        for _ in range(batch_size * POOL_BATCHES):
            problem = task.draw(rng)
            prompt = tokenizer(problem.prompt, add_special_tokens=False)["input_ids"]
            response = tokenizer(task.demonstrate(problem, rng), add_special_tokens=False)["input_ids"]
            pool.append((prompt, [*response, tokenizer.eos_token_id]))
        pool.sort(key=lambda pair: len(pair[0]) + len(pair[1]))
        batches = [pool[i : i + batch_size] for i in range(0, len(pool), batch_size)]
        rng.shuffle(batches)
        for batch in batches:
            width = max(len(prompt) + len(response) for prompt, response in batch)
            input_ids_BT = torch.full((len(batch), width), tokenizer.pad_token_id)
            labels_BT = torch.full((len(batch), width), IGNORED)
            for row, (prompt, response) in enumerate(batch):
                end = len(prompt) + len(response)
                input_ids_BT[row, :end] = torch.tensor(prompt + response)
                labels_BT[row, len(prompt) : end] = torch.tensor(response)
            yield input_ids_BT, labels_BT


def learning_rate(stage: SftStage, step_in_stage: int) -> float:
    """Return the learning rate, interpolated linearly between the first and the last learning rate of the stage."""
    start, end = stage.learning_rate
    return start + (end - start) * step_in_stage / stage.steps


@dataclass(frozen=True)
class PreparedSft:
    """The checked components of a supervised training that has not started.

    Attributes:
        config: the settings.
        tasks: task of each stage.
        tokenizer: tokenizer of all tasks.
        start: the model to train, with notes on its name and its weight files.
    """

    config: SftConfig
    tasks: tuple[DemonstratedTask, ...]
    tokenizer: PreTrainedTokenizerBase
    start: LoadedModel


def prepare_sft(config: SftConfig) -> PreparedSft:
    """Check all settings and build the model; no file is written.

    ``config.seed`` determines the initial weights and all demonstrations.

    Raises:
        UserError: unknown task, invalid architecture, faulty model, or ``output_dir`` not writable.
    """
    tasks = []
    for number, stage in enumerate(config.stages):
        try:
            tasks.append(find_demonstrated_task(stage.task))
        except UserError as error:
            raise UserError(f"stages.{number}.{error}") from None
    tokenizer = tasks[0].build_tokenizer()
    require_writable(config.output_dir, f"output_dir {config.output_dir}")
    for number, (stage, task) in enumerate(zip(config.stages, tasks, strict=True)):
        if task.build_tokenizer().get_vocab() != tokenizer.get_vocab():
            raise UserError(f"stages.{number}.task {stage.task}: vocabulary differs from {config.stages[0].task}")
        if stage.save is not None:
            require_writable(config.output_dir / stage.save, f"stages.{number}.save {config.output_dir / stage.save}")
    return PreparedSft(config, tuple(tasks), tokenizer, build_model(config, tokenizer))


def train_sft(prepared: PreparedSft, on_step: Callable[[SftProgress], None] | None = None) -> list[Path]:
    """Train all stages; return the directories of the saved models.

    Raises:
        UserError: ``output_dir`` is not writable.
    """
    config, tasks, tokenizer, model = prepared.config, prepared.tasks, prepared.tokenizer, prepared.start.model
    try:  # before the training, not after
        config.output_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"output_dir {config.output_dir}: not writable ({error.strerror})") from None
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.98), weight_decay=config.weight_decay)
    total_steps = sum(stage.steps for stage in config.stages)
    step = 0
    checkpoints = []
    for stage_index, stage in enumerate(config.stages):
        rng = random.Random(f"{config.seed}/{stage_index}")
        batches = demonstration_batches(tasks[stage_index], tokenizer, config.batch_size, rng)
        for step_in_stage in range(stage.steps):
            started = time.perf_counter()
            input_ids_BT, labels_BT = next(batches)
            warmup = min(1.0, (step + 1) / max(1, config.warmup_steps))
            for group in optimizer.param_groups:
                group["lr"] = warmup * learning_rate(stage, step_in_stage)
            # Right padding needs no mask: attention is causal and padded positions have no label.
            with logits_only(model):
                logits_BTV = model(input_ids=input_ids_BT, use_cache=False).logits
            loss = cross_entropy(
                logits_BTV[:, :-1].flatten(0, 1).float(), labels_BT[:, 1:].flatten(), ignore_index=IGNORED
            )
            optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            torch.nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm)
            optimizer.step()
            step += 1
            if on_step is not None:
                rate = input_ids_BT.numel() / (time.perf_counter() - started)
                on_step(SftProgress(stage.task, step, total_steps, loss.item(), rate))
        if stage.save is not None:
            directory = config.output_dir / stage.save
            model.save_pretrained(directory)
            tokenizer.save_pretrained(directory)
            checkpoints.append(directory)
    return checkpoints
