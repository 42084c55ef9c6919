"""Check a configuration and build the components of a training run of the local engine."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from attnrl.config.schema import TrainConfig
from attnrl.data.run_data import RunData, load_run_data
from attnrl.grading.rewards import RewardManager
from attnrl.inference.registry import SamplerBackend, find_sampler
from attnrl.local.checkpoint import Checkpoint, find_checkpoint, list_checkpoints, packing_of
from attnrl.local.loading import (
    choose_device,
    choose_packing,
    load_model,
    load_tokenizer,
    require_influence,
)
from attnrl.local.model_names import ModelSource
from attnrl.local.packing import Packing
from attnrl.runs.compatibility import (
    missing_record_warnings,
    require_positions,
    require_resumable,
    require_same_data,
)
from attnrl.runs.directory import RunDirectory
from attnrl.runs.model_record import changed_weights, find_run_model
from attnrl.runs.trackers import require_trackers

WITHOUT_FCI = ": train with a recipe that needs no FCI (attnrl train grpo, attnrl train treerl)"


@dataclass(frozen=True)
class PreparedRun:
    """The checked components of a run that has not started; ``--dry-run`` shows a prepared run.

    Attributes:
        config: the resolved configuration.
        source: directory of the starting model.
        checkpoint: checkpoint to resume from; None for a new run.
        device: device of the model.
        tokenizer: tokenizer of the model.
        model: the model, with the checkpoint's weights when resuming.
        packing: the resolved ``optimizer.packing``.
        sampler: opens the samplers.
        data: training problems, held-out problems and fingerprints of the data files.
        rewards: rewards of the responses.
        resources: closes the rewards.
        layers_without_fci: kind of each layer without softmax attention (FCI skips these layers), by layer index;
            empty if the method does not need FCI.
        checkpoints: checkpoints in the output directory, oldest first.
        notes: warnings about the weights, the data files, the run directory, damaged checkpoints and slower ways that
            the model needs, one line each.
    """

    config: TrainConfig
    source: ModelSource
    checkpoint: Checkpoint | None
    device: torch.device
    tokenizer: PreTrainedTokenizerBase
    model: PreTrainedModel
    packing: Packing
    sampler: SamplerBackend
    data: RunData
    rewards: RewardManager
    resources: ExitStack
    layers_without_fci: dict[int, str]
    checkpoints: Sequence[Checkpoint]
    notes: Sequence[str]


def prepare(config: TrainConfig) -> PreparedRun:
    """Check every setting, file and model before the first token is sampled. No file is written.

    Raises:
        UserError: naming the invalid setting, file or model.
    """
    if config.threads:
        torch.set_num_threads(config.threads)
    device = choose_device(config.device)
    sampler = find_sampler(config.sampler)
    sampler.require_device(device)
    run = RunDirectory(config.output_dir)
    run.require_writable()
    require_trackers(config)
    checkpoints = list_checkpoints(run.checkpoints)
    resume_point = find_checkpoint(config.resume, run.checkpoints)
    checkpoint = resume_point.checkpoint
    require_resumable(config, run, checkpoint)
    begun_in = checkpoint.directory.absolute().parent.parent if checkpoint else None
    source = find_run_model(config, begun_in)
    tokenizer = load_tokenizer(source.directory, trust_remote_code=config.trust_remote_code)
    with ExitStack() as resources:
        data = load_run_data(config, tokenizer)
        rewards = resources.enter_context(data.rewards)
        if checkpoint is not None and not config.data.allow_changed:
            require_same_data(data, checkpoint)
        if config.method.branching.reads("dependents"):
            data.require_dependencies()
        for problem in data.held_out:
            data.renderer.encode(problem, config.sampling.max_prompt_tokens)
        loaded = load_model(
            checkpoint.directory if checkpoint else source.directory,
            tokenizer,
            device=device,
            dtype=config.dtype,
            trust_remote_code=config.trust_remote_code,
        )
        model = loaded.model
        changed = changed_weights(config, begun_in, source)
        require_positions(model, config.sampling.max_prompt_tokens + config.sampling.max_new_tokens)
        sampler_note = sampler.require_model(model)
        recorded = packing_of(checkpoint) if checkpoint else None
        packing, packing_note = choose_packing(config.optimizer.packing, model, recorded)
        of_model = [*loaded.notes, *(note for note in (sampler_note, packing_note) if note)]
        of_run = [*changed, *resume_point.skipped, *missing_record_warnings(run, checkpoint)]
        return PreparedRun(
            config=config,
            source=source,
            checkpoint=checkpoint,
            device=device,
            tokenizer=tokenizer,
            model=model,
            packing=packing,
            sampler=sampler,
            data=data,
            rewards=rewards,
            layers_without_fci=require_influence(model, WITHOUT_FCI) if config.method.needs_influence else {},
            checkpoints=checkpoints,
            notes=[*source.notes, *of_model, *of_run, *data.notes],
            resources=resources.pop_all(),
        )
