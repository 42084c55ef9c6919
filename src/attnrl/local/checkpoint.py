"""Checkpoints: a Hugging Face model directory with the optimizer and the loop's state beside it.

``checkpoints/step-000050/`` loads with ``AutoModelForCausalLM.from_pretrained``. It is written aside and then
renamed, so a directory of that name is always whole. Nothing in it is pickled: tensors are safetensors, the
rest is JSON.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerBase

from attnrl.errors import UserError
from attnrl.local.policy import LocalPolicy, load_optimizer_tensors, optimizer_tensors
from attnrl.method.adaptive import BatchSizeController, RunningMean
from attnrl.method.steps import Steps
from attnrl.rollout import Group, SampledTokens, Trunk, UnfinishedGroup
from attnrl.trainer import TrainerState

STATE_FILE = "trainer_state.json"
OPTIMIZER_FILE = "optimizer.safetensors"
PREFIX = "step-"
PER_TOKEN = ("tokens", "logprobs", "sampler_logprobs", "entropy")


@dataclass(frozen=True)
class Checkpoint:
    """One checkpoint directory and the training step after which it was written."""

    directory: Path
    step: int


def save_checkpoint(
    root: Path,
    state: TrainerState,
    policy: LocalPolicy,
    tokenizer: PreTrainedTokenizerBase,
    *,
    keep_last: int,
) -> Path:
    """Write the checkpoint of ``state.step`` below ``root``, and keep only it and the ``keep_last - 1`` before it.

    Later ones belong to a course that the run has left, when it was resumed from before them.
    """
    directory = root / f"{PREFIX}{state.step:06d}"
    aside = root / f".{directory.name}.partial"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    policy.model.save_pretrained(aside)
    tokenizer.save_pretrained(aside)
    save_file(optimizer_tensors(policy), aside / OPTIMIZER_FILE)
    document = {"updates": policy.updates, "trainer": asdict(state)}
    (aside / STATE_FILE).write_text(json.dumps(document), encoding="utf-8")
    if directory.exists():  # an earlier run of the same step, resumed from before it
        shutil.rmtree(directory)
    os.rename(aside, directory)
    checkpoints = list_checkpoints(root)
    kept = [checkpoint for checkpoint in checkpoints if checkpoint.step <= state.step][-keep_last:]
    for checkpoint in checkpoints:
        if checkpoint not in kept:
            shutil.rmtree(checkpoint.directory)
    return directory


def list_checkpoints(root: Path) -> list[Checkpoint]:
    """The checkpoints below ``root``, oldest first."""
    found = []
    for directory in root.glob(f"{PREFIX}*"):
        number = directory.name.removeprefix(PREFIX)
        if number.isdigit() and (directory / STATE_FILE).is_file():
            found.append(Checkpoint(directory, int(number)))
    return sorted(found, key=lambda checkpoint: checkpoint.step)


def find_checkpoint(resume: str, root: Path) -> Checkpoint | None:
    """The checkpoint that ``resume`` means: ``auto`` (newest below ``root``, if any), ``never``, or a directory.

    Raises:
        UserError: the directory named is no checkpoint of a run.
    """
    if resume == "never":
        return None
    if resume == "auto":
        checkpoints = list_checkpoints(root)
        return checkpoints[-1] if checkpoints else None
    directory = Path(resume)
    if not (directory / STATE_FILE).is_file():
        raise UserError(f"resume={resume}: not a checkpoint directory (it has no {STATE_FILE})")
    return Checkpoint(directory, int(_read_state(directory)["trainer"]["step"]))


def load_checkpoint(checkpoint: Checkpoint, policy: LocalPolicy) -> TrainerState:
    """Put the optimizer's state back into ``policy`` (its weights were loaded with the model).

    Raises:
        UserError: the state is missing or damaged; the file is named.
    """
    document = _read_state(checkpoint.directory)
    try:
        policy.updates = int(document["updates"])
        state = _trainer_state(document["trainer"])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"checkpoint file {checkpoint.directory / STATE_FILE}: damaged ({error})") from None
    path = checkpoint.directory / OPTIMIZER_FILE
    try:
        load_optimizer_tensors(policy, load_file(path))
    except (OSError, SafetensorError) as error:
        raise UserError(f"checkpoint file {path}: not readable ({error})") from None
    return state


def _read_state(directory: Path) -> dict[str, Any]:
    path = directory / STATE_FILE
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        document["trainer"]["step"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"checkpoint file {path}: not readable ({error})") from None
    return dict(document)


def _trainer_state(fields: Mapping[str, Any]) -> TrainerState:
    return TrainerState(
        step=fields["step"],
        position=fields["position"],
        pending=tuple(_group(group) for group in fields["pending"]),
        carried=tuple(_unfinished_group(group) for group in fields["carried"]),
        solved_fci=RunningMean(**fields["solved_fci"]),
        batch_size=BatchSizeController(**fields["batch_size"]),
        sampled_tokens=fields["sampled_tokens"],
    )


def _group(fields: Mapping[str, Any]) -> Group:
    trunks = tuple(_trunk(trunk) for trunk in fields["trunks"])
    return Group(**{**fields, **_tuples(fields, ("answers", "prompt")), "trunks": trunks})


def _unfinished_group(fields: Mapping[str, Any]) -> UnfinishedGroup:
    # Only what has ended has been cut into steps.
    trunks = tuple(_trunk(trunk) if "steps" in trunk else _sampled_tokens(trunk) for trunk in fields["trunks"])
    return UnfinishedGroup(**{**fields, **_tuples(fields, ("prompt",)), "trunks": trunks})


def _trunk(fields: Mapping[str, Any]) -> Trunk:
    steps = fields["steps"]
    sequences = _tuples({"weights": (), **fields}, (*PER_TOKEN, "fci", "weights"))
    return Trunk(**{**fields, **sequences, "steps": Steps(**{**steps, "starts": tuple(steps["starts"])})})


def _sampled_tokens(fields: Mapping[str, Any]) -> SampledTokens:
    return SampledTokens(**{**fields, **_tuples(fields, PER_TOKEN)})


def _tuples(fields: Mapping[str, Any], names: Sequence[str]) -> dict[str, tuple[Any, ...]]:
    return {name: tuple(fields[name]) for name in names}
