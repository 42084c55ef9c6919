"""``attnrl export``: a checkpoint of verl's becomes one of the local engine, on any machine and without verl.

Weights come from the workers' shards, never from ``huggingface/model.safetensors``: the shards are there whatever a run
was told to save, and they are what was trained, in its own precision. Beside a Hugging Face model there are then, where
the run was ours, AdamW's moments by parameter name and the loop's state, so that ``attnrl train resume=`` goes on from
it; weights of 32 bits are among the moments again, as the copies that a run with ``dtype=bfloat16`` trains on.

In memory there is one copy of the weights at a time, and of the moments one tensor.
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
from attnrl.local.policy import MASTER
from attnrl.rl.state import state_from_json
from attnrl.rl.trainer import TrainerState
from attnrl.utils.files import require_writable
from attnrl.verl.settings import STATE_FILE
from attnrl.verl.shards import Pieces, Shards

NEWEST = "latest_checkpointed_iteration.txt"
GENERATION = "generation_config.json"
MOMENTS = {"exp_avg", "exp_avg_sq", "step"}


@dataclass(frozen=True)
class Exported:
    """What was found and written.

    Attributes:
        source: the checkpoint of verl's.
        missing: the files without which the model only was written; empty where a run can be resumed from it.
        step: training steps done.
        updates: optimizer steps taken.
    """

    source: Path
    missing: str = ""
    step: int | None = None
    updates: int = 0


def export(
    checkpoint: Path, output: Path, *, trust_remote_code: bool = False, say: Callable[[str], None] = lambda line: None
) -> Exported:
    """Write the directory ``output`` from a verl checkpoint.

    Args:
        checkpoint: ``global_step_N``, or a run's directory, or that of its checkpoints: its newest.
        output: the directory to make.
        trust_remote_code: whether the model's own code may run.
        say: is told of each file, in a line.

    Raises:
        UserError: the checkpoint is none, incomplete, damaged or of a kind that is not read; or ``output`` is there.
        RunError: it cannot be written. In either case nothing is.
    """
    if output.exists():
        raise UserError(f"output {output}: is there already")
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
    dtype = next((its.dtype for its in weights.values() if its.dtype.is_floating_point), torch.float32)
    model = _model_without_weights(huggingface, dtype, trust_remote_code)
    tied = _check_weights(model, weights, shards.files[0])
    moments: dict[str, Pieces] = {}
    if state is None:
        exported = Exported(source, STATE_FILE)
    elif not any(actor.glob("optim_world_size_*")):
        exported = Exported(source, f"actor/optim_world_size_{world_size}_rank_0.pt")
    else:
        # In the order in which the workers' own model had them, whatever another release of transformers makes of it.
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
    """The checkpoint that ``given`` is, or the newest of the run that it is the directory of.

    Raises:
        UserError: it is neither.
    """
    if (given / "actor").is_dir():
        return given
    for root in (given, given / "checkpoints"):
        if (root / NEWEST).is_file():
            step = (root / NEWEST).read_text(encoding="utf-8", errors="replace").strip()
            newest = root / f"global_step_{step}"
            if not step.isdecimal() or not (newest / "actor").is_dir():
                raise UserError(f"checkpoint {root}: {NEWEST} says {step[:20]!r}, and there is no such checkpoint")
            return newest
    raise UserError(f"checkpoint {given}: not a checkpoint of verl (no actor directory in it, and no {NEWEST})")


def _world_size(actor: Path) -> int:
    """How many workers wrote the checkpoint of an actor, which is one that can be read."""
    path = actor / "fsdp_config.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        version, world_size = int(found["FSDP_version"]), int(found["world_size"])
        if world_size < 1:
            raise ValueError(f"world_size is {world_size}")
    except FileNotFoundError:
        raise UserError(f"checkpoint file {path}: is missing; only checkpoints of FSDP2 are read") from None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"checkpoint file {path}: not readable ({one_line(error)})") from None
    if version != 2:
        raise UserError(
            f"checkpoint file {path}: FSDP{version} flattens parameters; only checkpoints of FSDP2 are read"
        )
    if (actor / "lora_train_meta.json").is_file():
        raise UserError(f"checkpoint {actor}: is of a LoRA adapter (lora_train_meta.json): merge it with verl's tools")
    if not any(actor.glob("model_world_size_*")):
        raise UserError(f"checkpoint {actor}: has no model_world_size_{world_size}_rank_0.pt: weights were not saved")
    return world_size


def _read_state(path: Path) -> TrainerState | None:
    """The state of our loop; None in a checkpoint of another trainer."""
    try:
        return state_from_json(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"checkpoint file {path}: damaged ({one_line(error)})") from None


def _model_without_weights(huggingface: Path, dtype: torch.dtype, trust_remote_code: bool) -> PreTrainedModel:
    config = load_model_config(huggingface, trust_remote_code=trust_remote_code)
    vars(config).pop("attn_implementation", None)  # what verl was told to attend with; not the model's
    try:
        with torch.device("meta"):
            model: PreTrainedModel = AutoModelForCausalLM.from_config(
                config, dtype=dtype, trust_remote_code=trust_remote_code, attn_implementation="eager"
            )
    except LOADING_ERRORS as error:
        raise UserError(f"model {huggingface}: cannot be built from its config ({one_line(error)})") from None
    return model


def _check_weights(model: PreTrainedModel, weights: Mapping[str, Pieces], file: Path) -> dict[str, str]:
    """Make sure that the weights are those of the model; returns the names of tied ones and what they are tied to."""
    expected = model.state_dict()
    odd = next((name for name in map(str, weights) if "lora_" in name or name.startswith("base_model.")), None)
    if odd is not None:
        raise UserError(f"checkpoint file {file}: is of a LoRA adapter ({odd}): merge it with verl's tools")
    for name in [*weights, *expected]:
        if name not in expected or name not in weights:
            what = "has no" if name in expected else "has a tensor that is not in the model"
            raise UserError(f"checkpoint file {file}: {what} {name}, going by huggingface/config.json")
        if weights[name].shape != expected[name].shape:
            shapes = f"is {list(weights[name].shape)}, and by huggingface/config.json {list(expected[name].shape)}"
            raise UserError(f"checkpoint file {file}: {name} {shapes}")
    first = {id(parameter): name for name, parameter in model.named_parameters()}
    every = model.named_parameters(remove_duplicate=False)
    tied = {name: first[id(parameter)] for name, parameter in every if first[id(parameter)] != name}
    for name, other in tied.items():
        if not torch.equal(weights[name].whole(), weights[other].whole()):
            raise UserError(f"checkpoint file {file}: {name} and {other} differ, and huggingface/config.json ties them")
    return tied


def _moments(shards: Shards, weights: Mapping[str, Pieces]) -> tuple[dict[str, Pieces], int]:
    """AdamW's state as ``optimizer.safetensors`` names it, and the number of updates.

    Args:
        shards: of the optimizer, whose state goes by the number of a parameter.
        weights: the parameters, in the order of those numbers.
    """
    file, content = shards.files[0], shards.contents[0]
    found: dict[str, Pieces] = {}
    updates = 0
    try:
        states, (group,) = content["state"], content["param_groups"]
        if group["params"] != list(range(len(weights))):
            raise ValueError(f"of {len(group['params'])} parameters, and the model has {len(weights)}")
        for number, (name, weight) in enumerate(weights.items()):
            if number not in states:  # it never had a gradient
                continue
            if set(states[number]) != MOMENTS:
                raise ValueError(f"of {name} it has {', '.join(map(str, states[number]))}")
            for moment in sorted(MOMENTS):
                pieces = shards.pieces("state", number, moment)
                if pieces.shape != (torch.Size() if moment == "step" else weight.shape):
                    raise ValueError(f"{moment} of {name} is {list(pieces.shape)}, and it {list(weight.shape)}")
                found[f"{name}/{moment}"] = pieces
            updates = max(updates, int(found[f"{name}/step"].whole()))
    except (LookupError, TypeError, ValueError, OverflowError) as error:
        raise UserError(f"checkpoint file {file}: is not AdamW's state of the model ({one_line(error)})") from None
    masters = {f"{name}/{MASTER}": pieces for name, pieces in weights.items() if pieces.dtype == torch.float32}
    return found | masters, updates


def write_float32(path: Path, tensors: Mapping[str, Pieces]) -> None:
    """A safetensors file of 32-bit floats, with one of the tensors in memory at a time (its own library takes all)."""
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
