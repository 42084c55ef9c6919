"""Check that a resumed run is the same run: same settings, same data, a checkpoint of the same output directory."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from typing import Any

from transformers import PreTrainedModel

from attnrl.config.load import validate_config
from attnrl.config.schema import TrainConfig
from attnrl.data.run_data import RunData
from attnrl.data.stream import ProblemSource
from attnrl.errors import UserError
from attnrl.local.checkpoint import Checkpoint, data_of, records_of
from attnrl.prompts.renderer import PromptRenderer
from attnrl.rl.state import TrainerState, drop_stale_samples
from attnrl.runs.directory import METRICS, RECORDS, TIMELINE, RunDirectory, step_of

#: Settings that may change when a run resumes: length, placement and monitoring of the run, never the learning.
MUTABLE_ON_RESUME = {
    *("steps", "tokens", "resume", "device", "threads", "output_dir", "vllm", "eval", "checkpoint", "log"),
    *("verl.rollout", "verl.tensor_parallel", "verl.gpu_memory_utilization", "verl.enforce_eager", "verl.offload"),
    *("verl.remove_padding", "verl.set", "verl.architecture", "verl.gpu_memory_gib"),
    *("sampling.stall_seconds", "sampling.retries", "optimizer.max_nonfinite_steps", "optimizer.packing"),
    *("reward.timeout", "reward.concurrency", "reward.max_not_judged", "data.allow_changed"),
}


def require_resumable(config: TrainConfig, run: RunDirectory, checkpoint: Checkpoint | None) -> None:
    """Check that the run in ``config.output_dir``, if any, can resume from ``checkpoint`` with the settings ``config``.

    Args:
        config: settings of the resumed run.
        run: directory of the run.
        checkpoint: checkpoint to resume from; None for a new run.

    Raises:
        UserError: the directory holds a run with other settings, the checkpoint belongs to another directory, or the
            directory holds checkpoints without ``config.yaml``.
    """
    if run.holds_a_run():
        if checkpoint is not None and not _is_in(checkpoint, run):
            raise UserError(
                f"output_dir {config.output_dir}: already holds a run, and resume=auto continues that run; to start a "
                f"new run from {config.resume}, choose another output_dir"
            )
        require_same_settings(config, run)
    elif checkpoint is not None and _is_in(checkpoint, run):
        raise UserError(
            f"output_dir {config.output_dir}: holds checkpoints but no config.yaml, so the settings of the run are "
            f"unknown; to continue from the newest checkpoint, set resume={checkpoint.directory} and another output_dir"
        )


def _is_in(checkpoint: Checkpoint, run: RunDirectory) -> bool:
    """Return True if the checkpoint was written by the run."""
    return checkpoint.directory.parent.resolve() == run.checkpoints.resolve()


def require_same_settings(config: TrainConfig, run: RunDirectory) -> None:
    """Check that ``resume`` permits resuming ``run``, and that only settings in :data:`MUTABLE_ON_RESUME` changed.

    Raises:
        UserError: ``resume`` is ``never``; or naming each changed setting with the old and the new value.
    """
    if config.resume == "never":
        raise UserError(f"output_dir {config.output_dir}: already holds a run, and resume is never")
    # A setting that config.yaml lacks is newer than the run: validation fills in the default.
    started = validate_config(TrainConfig, run.read_config(), source=f"output_dir {config.output_dir}: config.yaml")
    before, now = _fixed_settings(started.model_dump(mode="json")), _fixed_settings(config.model_dump(mode="json"))
    changed = [
        f"{key} {before.get(key)!r} -> {now.get(key)!r}" for key in now | before if before.get(key) != now.get(key)
    ]
    if changed:
        raise UserError(
            f"output_dir {config.output_dir}: holds a run with other settings ({'; '.join(changed)}): "
            "choose another output_dir"
        )


def _fixed_settings(settings: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """Return the settings by dotted path, without :data:`MUTABLE_ON_RESUME`."""
    fixed: dict[str, Any] = {}
    for key, value in settings.items():
        name = f"{path}{key}"
        if name not in MUTABLE_ON_RESUME:
            fixed |= _fixed_settings(value, f"{name}.") if isinstance(value, dict) else {name: value}
    return fixed


def require_same_data(data: RunData, checkpoint: Checkpoint) -> None:
    """Check that the problems have the fingerprints recorded in ``checkpoint``.

    Raises:
        UserError: naming the setting whose problems changed, and both fingerprints.
    """
    before = data_of(checkpoint)
    for setting, fingerprint in data.fingerprints.items():
        if before.get(setting, fingerprint) != fingerprint:
            raise UserError(
                f"{setting}: the problems changed since the run began (fingerprint {before[setting][:12]} -> "
                f"{fingerprint[:12]}): data.allow_changed=true continues with the new problems"
            )


def missing_record_warnings(run: RunDirectory, checkpoint: Checkpoint | None) -> list[str]:
    """Return a warning for metrics without a checkpoint, and for each record file with lost rows.

    A checkpoint notes the number of rows of every record file. Without the note (checkpoints of version 0.1) only the
    steps of ``metrics.jsonl`` are checked.

    Raises:
        UserError: a record file is damaged; the line is named.
    """
    if checkpoint is None:
        trained = len(_steps(run, METRICS, math.inf).keys() - {0})
        return [f"{run.root}: metrics of {trained} steps but no checkpoint: the run starts over"] if trained else []
    if not _is_in(checkpoint, run):
        return []
    warnings, recorded = [], records_of(checkpoint)
    for name in RECORDS:
        found = _steps(run, name, checkpoint.step)
        steps = set(range(1, checkpoint.step + 1)) - found.keys() if name in {METRICS, TIMELINE} else set()
        lost = recorded.get(name, 0) - found.total()
        if lost <= 0 and not (steps and name == METRICS):
            continue
        rows = f"{lost:,} of {recorded[name]:,} rows" if lost > 0 else f"{len(steps):,} rows"
        last = f"the last row is of step {max(found)}" if found else "no row is left"
        which = f"steps {spans(steps)}" if steps else last
        warnings.append(f"{run.root / name}: lacks {rows} up to the checkpoint of step {checkpoint.step} ({which})")
    return warnings


def _steps(run: RunDirectory, name: str, last: float) -> Counter[int]:
    """Return the number of rows of each step up to ``last`` in a record file."""
    steps = (int(step_of(row, run.root / name)) for row in run.read(name))
    return Counter(step for step in steps if step <= last)


def spans(steps: Collection[int]) -> str:
    """Return numbers as text with ranges, at most ten: ``2, 5-9``."""
    runs: list[list[int]] = []
    for step in sorted(steps):
        if runs and step == runs[-1][1] + 1:
            runs[-1][1] = step
        else:
            runs.append([step, step])
    shown = [str(first) if first == last else f"{first}-{last}" for first, last in runs[:10]]
    return ", ".join([*shown, "..."] if len(runs) > 10 else shown)


def resumed_state(
    state: TrainerState,
    source: ProblemSource,
    renderer: PromptRenderer,
    max_prompt_tokens: int,
    say: Callable[[str], None],
) -> TrainerState:
    """Return ``state`` without samples in flight of changed problems (:func:`drop_stale_samples`); report the number.

    Args:
        state: trainer state of a checkpoint.
        source: training problems.
        renderer: renders the prompts.
        max_prompt_tokens: limit of the prompts, in tokens.
        say: called with one line if any sample was dropped.
    """
    kept = drop_stale_samples(state, source, renderer, max_prompt_tokens)
    dropped = len(state.pending) + len(state.carried) - len(kept.pending) - len(kept.carried)
    if dropped:
        say(f"{dropped} problems in flight changed with the data: their samples are dropped")
    return kept


def require_positions(model: PreTrainedModel, tokens: int) -> None:
    """Check that the model has ``tokens`` positions (prompt and response), with rotary embeddings fixed per position.

    Raises:
        UserError: ``tokens`` exceeds the model's positions, or the positions up to which the rotary embedding does not
            depend on the longest sequence of the batch (rope types ``longrope`` and ``dynamic``).
    """
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if limit is not None and tokens > limit:
        raise UserError(f"max_prompt_tokens + max_new_tokens = {tokens} exceeds the model's {limit} positions")
    rope = getattr(model.config.get_text_config(), "rope_parameters", None) or {}
    for parameters in (rope, *(value for value in rope.values() if isinstance(value, dict))):
        kind, original = parameters.get("rope_type"), parameters.get("original_max_position_embeddings") or limit
        if kind in {"longrope", "dynamic"} and original is not None and tokens > original:
            raise UserError(
                f"max_prompt_tokens + max_new_tokens = {tokens} exceeds {original} positions; beyond these the model's "
                f"rotary embedding ({kind}) depends on the longest sequence of the batch"
            )
