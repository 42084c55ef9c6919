"""``attnrl export``: convert a checkpoint of verl to a checkpoint of the local engine, on any machine and without verl.

Weights are read from the workers' shards, which every checkpoint has in training precision; the optional
``huggingface/model.safetensors`` is ignored. For a run of AttnRL's trainer, the exported checkpoint also has the AdamW
moments by parameter name and the trainer state, so that ``attnrl train resume=`` continues from the checkpoint. fp32
weights are stored with the moments as master weights, for a run with ``dtype=bfloat16``.

Memory holds one copy of the weights, and one tensor of the moments at a time.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging as transformers_logging

from attnrl.errors import RunError, UserError, one_line
from attnrl.local.checkpoint import OPTIMIZER_FILE, staged_directory, write_state
from attnrl.local.loading import LOADING_ERRORS, load_model_config, load_tokenizer
from attnrl.local.model_files import check_model_files
from attnrl.local.optimizer import MASTER
from attnrl.rl.state import TrainerState, state_from_json
from attnrl.utils.files import require_writable
from attnrl.verl.settings import STATE_FILE
from attnrl.verl.shards import Pieces, Shards

NEWEST = "latest_checkpointed_iteration.txt"
GENERATION = "generation_config.json"
MOMENTS = {"exp_avg", "exp_avg_sq", "step"}
MERGE_ADAPTER = "merge the adapter with verl's tools"


@dataclass(frozen=True)
class Exported:
    """The result of an export.

    Attributes:
        source: directory of verl's checkpoint.
        missing: missing file, so that only the model was exported; empty if a run can resume from the export.
        step: finished training steps.
        updates: optimizer steps.
    """

    source: Path
    missing: str = ""
    step: int | None = None
    updates: int = 0


def export(
    checkpoint: Path, output: Path, *, trust_remote_code: bool = False, say: Callable[[str], None] = lambda line: None
) -> Exported:
    """Export verl's checkpoint to the directory ``output`` (atomic: nothing is written on an error).

    Args:
        checkpoint: ``global_step_N``, or a run directory or checkpoint directory for the newest checkpoint.
        output: directory to create.
        trust_remote_code: allow code from the model's directory to run.
        say: called with one line per file.

    Raises:
        UserError: the checkpoint is missing, incomplete, damaged or not supported; or ``output`` exists.
        RunError: ``output`` cannot be written.
    """
    if output.exists():
        raise UserError(f"output {output}: already exists")
    require_writable(output.parent, f"output {output}")
    source = newest_checkpoint(checkpoint)
    actor = source / "actor"
    world_size = _world_size(actor)
    huggingface = actor / "huggingface"
    check_model_files(huggingface, trust_remote_code=trust_remote_code)
    tokenizer = load_tokenizer(huggingface, trust_remote_code=trust_remote_code)
    state = _read_state(source / STATE_FILE)

    shards = Shards(actor, "model", world_size, say)
    weights = {name: shards.pieces(name) for name in shards.contents[0]}
    dtype = next((pieces.dtype for pieces in weights.values() if pieces.dtype.is_floating_point), torch.float32)
    model = _model_without_weights(huggingface, dtype, trust_remote_code)
    tied = _check_weights(model, weights, shards.files[0])
    moments: dict[str, Pieces] = {}
    if state is None:
        exported = Exported(source, STATE_FILE)
    elif not any(actor.glob("optim_world_size_*")):
        exported = Exported(source, f"actor/optim_world_size_{world_size}_rank_0.pt")
    else:
        # In the order of the workers' model, which may differ from the order of this release of transformers.
        parameters = {name for name, _ in model.named_parameters()}
        named = {name: pieces for name, pieces in weights.items() if name in parameters}
        moments, updates = _moments(Shards(actor, "optim", world_size, say), named)
        exported = Exported(source, "", state.step, updates)

    say(f"Writing the weights to {output}")
    transformers_logging.disable_progress_bar()
    try:
        with staged_directory(output, {"step": exported.step, "accuracy": None}, replace=False) as aside:
            whole = {name: pieces.whole() for name, pieces in weights.items() if name not in tied}
            model.save_pretrained(aside, state_dict=whole)
            del whole
            tokenizer.save_pretrained(aside)
            if (huggingface / GENERATION).is_file():
                shutil.copyfile(huggingface / GENERATION, aside / GENERATION)
            if state is not None and not exported.missing:
                say(f"Writing {OPTIMIZER_FILE}")
                write_float32(aside / OPTIMIZER_FILE, moments)
                write_state(aside, state, updates=exported.updates)
    except (OSError, SafetensorError) as error:
        raise RunError(f"output {output}: cannot be written ({one_line(error)})") from error
    return exported


def newest_checkpoint(given: Path) -> Path:
    """Return the checkpoint directory ``given``, or the newest checkpoint of the run directory ``given``.

    Raises:
        UserError: ``given`` is neither a checkpoint nor a run directory.
    """
    if (given / "actor").is_dir():
        return given
    for root in (given, given / "checkpoints"):
        if (root / NEWEST).is_file():
            step = (root / NEWEST).read_text(encoding="utf-8", errors="replace").strip()
            newest = root / f"global_step_{step}"
            if not step.isdecimal() or not (newest / "actor").is_dir():
                raise UserError(f"checkpoint {root}: {NEWEST} names {step[:20]!r}, but this checkpoint is missing")
            return newest
    raise UserError(f"checkpoint {given}: not a checkpoint of verl (no actor directory, no {NEWEST})")


def _world_size(actor: Path) -> int:
    """Return the number of workers that wrote the checkpoint; check that the kind of checkpoint is supported."""
    path = actor / "fsdp_config.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        version, world_size = int(found["FSDP_version"]), int(found["world_size"])
        if world_size < 1:
            raise ValueError(f"world_size is {world_size}")
    except FileNotFoundError:
        raise UserError(f"checkpoint file {path}: is missing; only FSDP2 checkpoints are supported") from None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"checkpoint file {path}: not readable ({one_line(error)})") from None
    if version != 2:
        raise UserError(
            f"checkpoint file {path}: FSDP{version} flattens parameters; only FSDP2 checkpoints are supported"
        )
    if (actor / "lora_train_meta.json").is_file():
        raise UserError(f"checkpoint {actor}: holds a LoRA adapter (lora_train_meta.json): {MERGE_ADAPTER}")
    if not any(actor.glob("model_world_size_*")):
        raise UserError(f"checkpoint {actor}: has no model_world_size_{world_size}_rank_0.pt: weights were not saved")
    return world_size


def _read_state(path: Path) -> TrainerState | None:
    """Return AttnRL's trainer state, or None for a checkpoint of another trainer."""
    try:
        return state_from_json(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"checkpoint file {path}: damaged ({one_line(error)})") from None


def _model_without_weights(huggingface: Path, dtype: torch.dtype, trust_remote_code: bool) -> PreTrainedModel:
    config = load_model_config(huggingface, trust_remote_code=trust_remote_code)
    vars(config).pop("attn_implementation", None)  # verl's attention setting, not part of the model
    try:
        with torch.device("meta"):
            model: PreTrainedModel = AutoModelForCausalLM.from_config(
                config, dtype=dtype, trust_remote_code=trust_remote_code, attn_implementation="eager"
            )
    except LOADING_ERRORS as error:
        raise UserError(f"model {huggingface}: cannot be built from config.json ({one_line(error)})") from None
    return model


def _check_weights(model: PreTrainedModel, weights: Mapping[str, Pieces], file: Path) -> dict[str, str]:
    """Check names and shapes of the weights against the model; return the source name of each tied weight, by name."""
    expected = model.state_dict()
    adapter = next((name for name in map(str, weights) if "lora_" in name or name.startswith("base_model.")), None)
    if adapter is not None:
        raise UserError(f"checkpoint file {file}: holds a LoRA adapter ({adapter}): {MERGE_ADAPTER}")
    for name in [*weights, *expected]:
        if name not in expected or name not in weights:
            fault = "lacks" if name in expected else "has an unknown tensor"
            raise UserError(f"checkpoint file {file}: {fault} {name} (huggingface/config.json)")
        if weights[name].shape != expected[name].shape:
            found, shape = list(weights[name].shape), list(expected[name].shape)
            raise UserError(f"checkpoint file {file}: {name} has shape {found}, not {shape} (huggingface/config.json)")
    first = {id(parameter): name for name, parameter in model.named_parameters()}
    every = model.named_parameters(remove_duplicate=False)
    tied = {name: first[id(parameter)] for name, parameter in every if first[id(parameter)] != name}
    for name, other in tied.items():
        if not torch.equal(weights[name].whole(), weights[other].whole()):
            raise UserError(f"checkpoint file {file}: {name} and {other} differ, but huggingface/config.json ties both")
    return tied


def _moments(shards: Shards, weights: Mapping[str, Pieces]) -> tuple[dict[str, Pieces], int]:
    """Return the AdamW state by the names in ``optimizer.safetensors``, and the number of updates.

    Args:
        shards: shards of the optimizer; the optimizer state is indexed by parameter number.
        weights: the parameters by name, in the order of the parameter numbers.
    """
    file, content = shards.files[0], shards.contents[0]
    found: dict[str, Pieces] = {}
    updates = 0
    try:
        states, (group,) = content["state"], content["param_groups"]
        if group["params"] != list(range(len(weights))):
            raise ValueError(f"{len(group['params'])} parameters, but the model has {len(weights)}")
        for number, (name, weight) in enumerate(weights.items()):
            if number not in states:  # the parameter never had a gradient
                continue
            if set(states[number]) != MOMENTS:
                raise ValueError(f"{name} has the moments {', '.join(map(str, states[number]))}")
            for moment in sorted(MOMENTS):
                pieces = shards.pieces("state", number, moment)
                if pieces.shape != (torch.Size() if moment == "step" else weight.shape):
                    raise ValueError(f"{moment} of {name} has shape {list(pieces.shape)}, not {list(weight.shape)}")
                found[f"{name}/{moment}"] = pieces
            updates = max(updates, int(found[f"{name}/step"].whole()))
    except (LookupError, TypeError, ValueError, OverflowError) as error:
        raise UserError(f"checkpoint file {file}: not the AdamW state of the model ({one_line(error)})") from None
    masters = {f"{name}/{MASTER}": pieces for name, pieces in weights.items() if pieces.dtype == torch.float32}
    return found | masters, updates


def write_float32(path: Path, tensors: Mapping[str, Pieces]) -> None:
    """Write a safetensors file of fp32 tensors with one tensor in memory at a time; the library needs all tensors."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, pieces in tensors.items():
        begin, end = end, end + 4 * pieces.shape.numel()
        header[name] = {"dtype": "F32", "shape": list(pieces.shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for pieces in tensors.values():
            pieces.whole().float().contiguous().numpy().tofile(file)
