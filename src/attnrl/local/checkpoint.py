"""Checkpoints: a Hugging Face model directory with the optimizer's and the trainer's state.

``checkpoints/step-000050/`` loads with ``AutoModelForCausalLM.from_pretrained``. Writes are atomic: files go to a
staging directory with a manifest of sizes and hashes, are fsynced, and the staging directory is then renamed. A
directory named ``step-*`` is therefore complete, and the manifest reveals later damage before a run resumes. No file
is pickled: tensors are safetensors, all else is JSON.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerBase

from attnrl.errors import UserError, one_line
from attnrl.local.model_files import refuse_pickles
from attnrl.local.packing import Packing
from attnrl.local.policy import LocalPolicy
from attnrl.rl.rollout import Group, PartialGroup
from attnrl.rl.state import TrainerState, count, state_from_json, state_to_json
from attnrl.utils.files import MANIFEST, fsync_path, read_manifest, verify_manifest, write_manifest

STATE_FILE = "trainer_state.json"
OPTIMIZER_FILE = "optimizer.safetensors"
PREFIX = "step-"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint directory and its training step."""

    directory: Path
    step: int


@dataclass(frozen=True)
class RetentionPolicy:
    """Number of checkpoints to keep: the ``last`` newest, and the ``best`` by held-out accuracy."""

    last: int
    best: int = 0


def save_checkpoint(
    root: Path,
    state: TrainerState,
    policy: LocalPolicy,
    tokenizer: PreTrainedTokenizerBase,
    *,
    keep: RetentionPolicy,
    data: Mapping[str, str] | None = None,
    accuracy: float | None = None,
    records: Mapping[str, int] | None = None,
) -> Path:
    """Write the checkpoint of ``state.step`` below ``root``, then remove checkpoints by the retention policy.

    Checkpoints of later steps are removed too: the run was resumed from an earlier step and has abandoned those steps.

    Args:
        root: directory of the run's checkpoints.
        state: state of the trainer.
        policy: the policy, for the weights and the optimizer's state.
        tokenizer: saved with the weights.
        keep: the retention policy.
        data: fingerprint of each data set, by setting.
        accuracy: held-out accuracy of the weights; None if not measured.
        records: number of rows of each record file of the run, for the check at resume.

    Raises:
        OSError, SafetensorError: a file could not be written. The partial checkpoint is removed; earlier checkpoints
            are unchanged.
    """
    directory = root / f"{PREFIX}{state.step:06d}"
    # A run resumed from an earlier step replaces the checkpoint of the same step.
    notes = {"step": state.step, "accuracy": accuracy, "records": dict(records or {})}
    with staged_directory(directory, notes, replace=True) as aside:
        policy.model.save_pretrained(aside)
        tokenizer.save_pretrained(aside)
        save_file(policy.optimizer.tensors(), aside / OPTIMIZER_FILE)
        write_state(
            aside,
            state,
            updates=policy.optimizer.updates,
            micro_batch_tokens=policy.micro_batch_tokens,
            packing=policy.packing,
            data=dict(data or {}),
        )
    _remove_others(root, state.step, keep)
    return directory


@contextmanager
def staged_directory(directory: Path, notes: dict[str, Any], *, replace: bool) -> Iterator[Path]:
    """Write a directory atomically: give a staging directory, then write the manifest, fsync and rename on exit.

    Args:
        directory: final name.
        notes: further entries of the manifest.
        replace: True to replace an existing directory.

    Raises:
        OSError: a file could not be written, or ``directory`` exists and ``replace`` is False. The staging directory is
            removed.
    """
    root = directory.parent
    aside, replaced = (root / f".{directory.name}.{what}" for what in ("partial", "replaced"))
    for left_over in (aside, replaced):
        shutil.rmtree(left_over, ignore_errors=True)
    try:
        aside.mkdir(parents=True)
        yield aside
        write_manifest(aside, notes)
        if replace and directory.exists():
            os.rename(directory, replaced)
        os.rename(aside, directory)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)  # free the space of a full disk
        raise
    fsync_path(root)
    shutil.rmtree(replaced, ignore_errors=True)


def write_state(directory: Path, state: TrainerState, **others: Any) -> None:
    """Write :data:`STATE_FILE`: the trainer's state, and ``others`` (of the policy and of the data)."""
    document = {**others, "trainer": state_to_json(state)}
    (directory / STATE_FILE).write_text(json.dumps(document), encoding="utf-8")


def _remove_others(root: Path, step: int, keep: RetentionPolicy) -> None:
    """Remove checkpoints by the retention policy, after the checkpoint of ``step`` was written."""
    checkpoints = list_checkpoints(root)
    course = [checkpoint for checkpoint in checkpoints if checkpoint.step <= step]
    kept = [*course[-keep.last :], *best_checkpoints(course, keep.best)]
    for checkpoint in checkpoints:
        if checkpoint not in kept:
            shutil.rmtree(checkpoint.directory)


def best_checkpoints(checkpoints: Sequence[Checkpoint], count: int) -> list[Checkpoint]:
    """Return the ``count`` checkpoints with the highest held-out accuracy, best first; ties go to the newer.

    Checkpoints without a measured accuracy are left out.
    """
    measured = []
    for checkpoint in checkpoints:
        accuracy = accuracy_of(checkpoint)
        if accuracy is not None:
            measured.append((accuracy, checkpoint.step, checkpoint))
    return [checkpoint for _, _, checkpoint in sorted(measured, key=lambda one: one[:2], reverse=True)[:count]]


def accuracy_of(checkpoint: Checkpoint) -> float | None:
    """Return the held-out accuracy in the checkpoint's manifest; None without an accuracy or a manifest."""
    try:
        accuracy = read_manifest(checkpoint.directory).get("accuracy")
    except ValueError:
        return None
    return float(accuracy) if isinstance(accuracy, (int, float)) else None


def records_of(checkpoint: Checkpoint) -> dict[str, int]:
    """Return the number of rows of each record file when the checkpoint was written; empty if not noted."""
    try:
        records = read_manifest(checkpoint.directory).get("records")
    except ValueError:
        return {}
    return {str(name): rows for name, rows in records.items()} if isinstance(records, dict) else {}


def list_checkpoints(root: Path) -> list[Checkpoint]:
    """Return the checkpoints below ``root``, oldest first, damaged checkpoints included."""
    found = []
    for directory in root.glob(f"{PREFIX}*"):
        number = directory.name.removeprefix(PREFIX)
        if number.isdigit() and directory.is_dir():
            found.append(Checkpoint(directory, int(number)))
    return sorted(found, key=lambda checkpoint: checkpoint.step)


@dataclass(frozen=True)
class ResumePoint:
    """Checkpoint to resume from.

    Attributes:
        checkpoint: the newest undamaged checkpoint; None for a new run.
        skipped: a message for each newer, damaged checkpoint.
    """

    checkpoint: Checkpoint | None
    skipped: tuple[str, ...] = ()


def find_checkpoint(resume: str, root: Path) -> ResumePoint:
    """Return the checkpoint that the setting ``resume`` selects.

    Args:
        resume: ``auto`` (the newest undamaged checkpoint below ``root``), ``never``, or a checkpoint directory.
        root: directory of the run's checkpoints.

    Raises:
        UserError: the named directory is not a checkpoint or is damaged, all checkpoints of ``auto`` are damaged, or a
            checkpoint contains a pickled file.
    """
    if resume == "never":
        return ResumePoint(None)
    if resume != "auto":
        directory = Path(resume)
        if not (directory / STATE_FILE).is_file():
            inside = list_checkpoints(directory / "checkpoints") or list_checkpoints(directory)
            hint = f"; its newest checkpoint is {inside[-1].directory}" if inside else ""
            raise UserError(f"resume={resume}: not a checkpoint directory (it has no {STATE_FILE}){hint}")
        refuse_pickles(directory)
        damage = _damage(directory)
        if damage is not None:
            raise UserError(f"resume={resume}: damaged ({damage})")
        return ResumePoint(Checkpoint(directory, _read_state(directory)["trainer"]["step"]))
    skipped: list[str] = []
    for checkpoint in reversed(list_checkpoints(root)):
        refuse_pickles(checkpoint.directory)
        damage = _damage(checkpoint.directory)
        if damage is None:
            return ResumePoint(checkpoint, tuple(skipped))
        skipped.append(f"checkpoint {checkpoint.directory}: skipped, damaged ({damage})")
    if skipped:
        raise UserError(f"{'; '.join(skipped)}; no checkpoint is left: repair one or choose another output_dir")
    return ResumePoint(None)


def _damage(directory: Path) -> str | None:
    """Return what the manifest reveals as damaged; None for an undamaged checkpoint."""
    try:
        verify_manifest(directory)
    except (OSError, ValueError) as error:
        return str(error)
    return None


def data_of(checkpoint: Checkpoint) -> dict[str, str]:
    """Return the fingerprints of the data sets in a checkpoint, by setting.

    Raises:
        UserError: the checkpoint's state is not readable.
    """
    return dict(_read_state(checkpoint.directory)["data"])


def packing_of(checkpoint: Checkpoint) -> Packing | None:
    """Return the packing recorded in a checkpoint; None for a checkpoint without a record.

    Raises:
        UserError: the checkpoint's state is not readable, or records another word.
    """
    found = _read_state(checkpoint.directory).get("packing")
    if found not in (None, "tree", "none"):
        raise UserError(f"checkpoint file {checkpoint.directory / STATE_FILE}: damaged (packing {found!r})")
    return cast("Packing | None", found)


def load_checkpoint(checkpoint: Checkpoint, policy: LocalPolicy) -> TrainerState:
    """Load the optimizer's state into ``policy`` and return the trainer's state; the model was loaded before.

    Raises:
        UserError: a file is missing or damaged; the message names the file.
    """
    document = _read_state(checkpoint.directory)
    exported = "micro_batch_tokens" not in document  # exported from another engine, without micro-batch sizes
    try:
        updates = count(document, "updates")
        if not exported:
            policy.micro_batch_tokens = min(policy.micro_batch_tokens, count(document, "micro_batch_tokens", 1))
        state = state_from_json(document["trainer"])
        _check_step(checkpoint, state.step)
        _check_vocabulary(policy, state)
    except (TypeError, ValueError) as error:
        raise UserError(f"checkpoint file {checkpoint.directory / STATE_FILE}: damaged ({one_line(error)})") from None
    path = checkpoint.directory / OPTIMIZER_FILE
    try:
        policy.optimizer.load_tensors(load_file(path), updates=updates, exported=exported)
    except (OSError, SafetensorError) as error:
        raise UserError(f"checkpoint file {path}: not readable ({one_line(error)})") from None
    except ValueError as error:
        raise UserError(f"checkpoint file {path}: damaged ({one_line(error)})") from None
    policy.starts_at_reference = False
    return state


def _check_step(checkpoint: Checkpoint, step: int) -> None:
    """Raise ValueError unless the state, the directory's name and the manifest give the same step."""
    number = checkpoint.directory.name.removeprefix(PREFIX)
    named = int(number) if checkpoint.directory.name != number and number.isdecimal() else step
    if named != step:
        raise ValueError(f"the state is of step {step}, and the directory's name of step {named}")
    noted = read_manifest(checkpoint.directory).get("step")
    if noted != step:
        raise ValueError(f"the state is of step {step}, and {MANIFEST} of step {noted}")


def _check_vocabulary(policy: LocalPolicy, state: TrainerState) -> None:
    """Raise ValueError if a sampled response has a token id outside the model's vocabulary."""
    known = policy.model.get_input_embeddings().num_embeddings
    groups: tuple[Group | PartialGroup, ...] = (*state.pending, *state.carried)
    for group in groups:
        largest = max(max(tokens, default=0) for tokens in (group.prompt, *(trunk.tokens for trunk in group.trunks)))
        if largest >= known:
            raise ValueError(
                f"position {group.position} has token {largest}, and the model's vocabulary {known} tokens"
            )


def _read_state(directory: Path) -> dict[str, Any]:
    """Return the contents of :data:`STATE_FILE`, with the step and the fingerprints checked.

    Raises:
        UserError: the file is missing or malformed.
    """
    path = directory / STATE_FILE
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(document, dict) or not isinstance(document.get("trainer"), dict):
            raise TypeError("a mapping with the mapping trainer expected")
        count(document["trainer"], "step")
        data = document.setdefault("data", {})
        if not isinstance(data, dict) or not all(isinstance(fingerprint, str) for fingerprint in data.values()):
            raise TypeError("data: a mapping of settings to fingerprints expected")
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise UserError(f"checkpoint file {path}: not readable ({one_line(error)})") from None
    return document
