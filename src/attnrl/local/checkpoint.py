"""Checkpoints: a Hugging Face model directory with the optimizer and the loop's state beside it.

``checkpoints/step-000050/`` loads with ``AutoModelForCausalLM.from_pretrained``. It is written aside, put on the disk
with a manifest of sizes and hashes, and only then renamed, so a directory of that name is whole, and damage that comes
later is found before anything is resumed from it. Nothing in it is pickled: tensors are safetensors, the rest is JSON.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerBase

from attnrl.errors import UserError, one_line
from attnrl.local.model_files import refuse_pickles
from attnrl.local.policy import LocalPolicy, load_optimizer_tensors, optimizer_tensors
from attnrl.rl.rollout import Group, PartialGroup
from attnrl.rl.state import count, state_from_json, state_to_json
from attnrl.rl.trainer import TrainerState
from attnrl.utils.files import MANIFEST, fsync_path, read_manifest, verify_manifest, write_manifest

STATE_FILE = "trainer_state.json"
OPTIMIZER_FILE = "optimizer.safetensors"
PREFIX = "step-"


@dataclass(frozen=True)
class Checkpoint:
    """One checkpoint directory and the training step after which it was written."""

    directory: Path
    step: int


@dataclass(frozen=True)
class RetentionPolicy:
    """Which checkpoints stay: the ``last`` newest ones, and the ``best`` ones by held-out accuracy."""

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
) -> Path:
    """Write the checkpoint of ``state.step`` below ``root``, and remove those that are not to be kept beside it.

    Later ones belong to a course that the run has left, when it was resumed from before them.

    Args:
        root: directory of the run's checkpoints.
        state: of the loop.
        policy: its weights and optimizer.
        tokenizer: saved with them.
        keep: which checkpoints stay.
        data: a fingerprint of each data set that the run draws problems from.
        accuracy: held-out accuracy of these weights, where it was measured.

    Raises:
        OSError, SafetensorError: it could not be written; nothing of it is left, and those before it are as they were.
    """
    directory = root / f"{PREFIX}{state.step:06d}"
    # An earlier run of the same step is replaced, when this one was resumed from before it.
    with staged_directory(directory, {"step": state.step, "accuracy": accuracy}, replace=True) as aside:
        policy.model.save_pretrained(aside)
        tokenizer.save_pretrained(aside)
        save_file(optimizer_tensors(policy), aside / OPTIMIZER_FILE)
        write_state(
            aside, state, updates=policy.updates, micro_batch_tokens=policy.micro_batch_tokens, data=dict(data or {})
        )
    _remove_others(root, state.step, keep)
    return directory


@contextmanager
def staged_directory(directory: Path, notes: dict[str, Any], *, replace: bool) -> Iterator[Path]:
    """A directory to write what is to be in ``directory``: sealed, and renamed to that when all of it is there.

    Args:
        directory: to be made.
        notes: for its manifest.
        replace: whether it may be there already.

    Raises:
        OSError: it could not be written, or is there and must not be; nothing of it is left.
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
        shutil.rmtree(aside, ignore_errors=True)  # a full disk should have the room again
        raise
    fsync_path(root)
    shutil.rmtree(replaced, ignore_errors=True)


def write_state(directory: Path, state: TrainerState, **others: Any) -> None:
    """Write :data:`STATE_FILE`: the loop's state, and others (of the policy, and of the data)."""
    document = {**others, "trainer": state_to_json(state)}
    (directory / STATE_FILE).write_text(json.dumps(document), encoding="utf-8")


def _remove_others(root: Path, step: int, keep: RetentionPolicy) -> None:
    """Remove all but the checkpoints to keep when that of ``step`` has just been written."""
    checkpoints = list_checkpoints(root)
    course = [checkpoint for checkpoint in checkpoints if checkpoint.step <= step]
    kept = [*course[-keep.last :], *best_checkpoints(course, keep.best)]
    for checkpoint in checkpoints:
        if checkpoint not in kept:
            shutil.rmtree(checkpoint.directory)


def best_checkpoints(checkpoints: Sequence[Checkpoint], count: int) -> list[Checkpoint]:
    """The ``count`` checkpoints of highest held-out accuracy, the newer of equal ones; those without one are none."""
    measured = []
    for checkpoint in checkpoints:
        accuracy = accuracy_of(checkpoint)
        if accuracy is not None:
            measured.append((accuracy, checkpoint.step, checkpoint))
    return [checkpoint for _, _, checkpoint in sorted(measured, key=lambda one: one[:2], reverse=True)[:count]]


def accuracy_of(checkpoint: Checkpoint) -> float | None:
    """The held-out accuracy that a checkpoint's manifest has; None where there is none, or no manifest."""
    try:
        accuracy = read_manifest(checkpoint.directory).get("accuracy")
    except ValueError:
        return None
    return float(accuracy) if isinstance(accuracy, (int, float)) else None


def list_checkpoints(root: Path) -> list[Checkpoint]:
    """The checkpoints below ``root``, oldest first, whether they are undamaged or not."""
    found = []
    for directory in root.glob(f"{PREFIX}*"):
        number = directory.name.removeprefix(PREFIX)
        if number.isdigit() and directory.is_dir():
            found.append(Checkpoint(directory, int(number)))
    return sorted(found, key=lambda checkpoint: checkpoint.step)


@dataclass(frozen=True)
class ResumePoint:
    """What there is to resume from.

    Attributes:
        checkpoint: the newest that is undamaged; None to start from the beginning.
        skipped: a line for each newer one that is damaged.
    """

    checkpoint: Checkpoint | None
    skipped: tuple[str, ...] = ()


def find_checkpoint(resume: str, root: Path) -> ResumePoint:
    """What ``resume`` means: ``auto`` (the newest undamaged one below ``root``, if any), ``never``, or a directory.

    Raises:
        UserError: the directory named is no checkpoint of a run, or damaged; or all that ``auto`` finds are; or one
            holds a pickled file.
    """
    if resume == "never":
        return ResumePoint(None)
    if resume != "auto":
        directory = Path(resume)
        if not (directory / STATE_FILE).is_file():
            raise UserError(f"resume={resume}: not a checkpoint directory (it has no {STATE_FILE})")
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
        raise UserError(f"{'; '.join(skipped)}; none is left to resume from: repair one or choose another output_dir")
    return ResumePoint(None)


def _damage(directory: Path) -> str | None:
    """What is wrong with a checkpoint directory."""
    try:
        verify_manifest(directory)
    except (OSError, ValueError) as error:
        return str(error)
    return None


def data_of(checkpoint: Checkpoint) -> dict[str, str]:
    """The fingerprints of data sets that a checkpoint was saved with.

    Raises:
        UserError: its state is not readable.
    """
    return dict(_read_state(checkpoint.directory)["data"])


def load_checkpoint(checkpoint: Checkpoint, policy: LocalPolicy) -> TrainerState:
    """Put the optimizer's state back into ``policy`` (its weights were loaded with the model).

    Raises:
        UserError: the state is missing or damaged; the file is named.
    """
    document = _read_state(checkpoint.directory)
    exported = "micro_batch_tokens" not in document  # another engine has none
    try:
        policy.updates = count(document, "updates")
        if not exported:
            policy.micro_batch_tokens = min(policy.micro_batch_tokens, count(document, "micro_batch_tokens", 1))
        state = state_from_json(document["trainer"])
        _check_step(checkpoint, state.step)
        _check_vocabulary(policy, state)
    except (TypeError, ValueError) as error:
        raise UserError(f"checkpoint file {checkpoint.directory / STATE_FILE}: damaged ({one_line(error)})") from None
    path = checkpoint.directory / OPTIMIZER_FILE
    try:
        load_optimizer_tensors(policy, load_file(path), exported=exported)
    except (OSError, SafetensorError) as error:
        raise UserError(f"checkpoint file {path}: not readable ({one_line(error)})") from None
    except ValueError as error:
        raise UserError(f"checkpoint file {path}: damaged ({one_line(error)})") from None
    return state


def _check_step(checkpoint: Checkpoint, step: int) -> None:
    """Make sure that a state is of the step that the directory and the manifest are of, which say so beside it."""
    number = checkpoint.directory.name.removeprefix(PREFIX)
    named = int(number) if checkpoint.directory.name != number and number.isdecimal() else step
    if named != step:
        raise ValueError(f"it is of step {step}, and the directory's name of step {named}")
    noted = read_manifest(checkpoint.directory).get("step")
    if noted != step:
        raise ValueError(f"it is of step {step}, and {MANIFEST} of step {noted}")


def _check_vocabulary(policy: LocalPolicy, state: TrainerState) -> None:
    """Make sure that the model knows the tokens that are to be trained on or continued."""
    known = policy.model.get_input_embeddings().num_embeddings
    groups: tuple[Group | PartialGroup, ...] = (*state.pending, *state.carried)
    for group in groups:
        largest = max(max(tokens, default=0) for tokens in (group.prompt, *(trunk.tokens for trunk in group.trunks)))
        if largest >= known:
            raise ValueError(f"position {group.position} has the token {largest}, and the model knows {known}")


def _read_state(directory: Path) -> dict[str, Any]:
    """What :func:`write_state` has written, of which the step and the fingerprints have been checked.

    Raises:
        UserError: it has not.
    """
    path = directory / STATE_FILE
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(document, dict) or not isinstance(document.get("trainer"), dict):
            raise TypeError("a mapping expected, with one called trainer in it")
        count(document["trainer"], "step")
        data = document.setdefault("data", {})
        if not isinstance(data, dict) or not all(isinstance(fingerprint, str) for fingerprint in data.values()):
            raise TypeError("data: fingerprints by setting expected")
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise UserError(f"checkpoint file {path}: not readable ({one_line(error)})") from None
    return document
