"""The starting model of a run: recorded in the run directory, and the same at every resume.

The starting model is the reference of the KL penalty, so a resumed run needs the same weights: the same commit of a
model of the Hugging Face Hub, the same checkpoint of another run.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from attnrl.config.schema import TrainConfig
from attnrl.errors import UserError
from attnrl.local.model_files import weights_fingerprint
from attnrl.local.model_names import ModelSource, find_model
from attnrl.runs.directory import MODEL, RunDirectory
from attnrl.utils.files import write_atomic


def find_run_model(config: TrainConfig, begun_in: Path | None) -> ModelSource:
    """Return the starting model of a run: the recorded commit or checkpoint, if the run resumes.

    Args:
        config: settings of the run.
        begun_in: directory of the run that the checkpoint to resume from belongs to; None for a new run.

    Raises:
        UserError: the model cannot be found.
    """
    recorded = _read_record(config, begun_in)
    source = find_model(config.model, commit=recorded.get("commit"), trust_remote_code=config.trust_remote_code)
    kept, newest = Path(recorded.get("directory", source.directory)), source.directory.absolute()
    if kept == newest or kept.parent != newest.parent or source.commit or not (kept / "config.json").is_file():
        return source
    note = f"model {config.model}: the checkpoint that the run began with, {kept} (the newest is {newest})"
    return replace(source, directory=kept, notes=(note,))


def changed_weights(config: TrainConfig, begun_in: Path | None, source: ModelSource) -> list[str]:
    """Check that the starting model has the recorded weights; without a KL penalty other weights are only noted.

    Args:
        config: settings of the run.
        begun_in: as in :func:`find_run_model`.
        source: the starting model.

    Returns:
        A note if the weights changed, else nothing.

    Raises:
        UserError: the weights changed, and the starting model is the reference of the KL penalty.
    """
    recorded = _read_record(config, begun_in)
    before = recorded.get("weights")
    if before is None:
        return []
    now = weights_fingerprint(source.name, source.directory, with_code=False)
    if now == before:
        return []
    change = (
        f"model {config.model}: the weights changed since the run began (fingerprint {before} in "
        f"{recorded.get('directory')} -> {now} in {source.directory.absolute()})"
    )
    if config.loss.kl > 0:
        raise UserError(
            f"{change}, and are the reference of the KL penalty: restore the weights, or start a new run in another "
            "output_dir"
        )
    return [change]


def record_model(run: RunDirectory, source: ModelSource, *, resumed: bool) -> None:
    """Write :data:`MODEL` at the start of a run: name, commit, directory and fingerprint of the starting model.

    Raises:
        UserError: the file cannot be written.
    """
    if resumed and (run.root / MODEL).is_file():
        return
    record = {
        "model": source.name,
        "commit": source.commit,
        "directory": str(source.directory.absolute()),
        "weights": weights_fingerprint(source.name, source.directory, with_code=False),
    }
    try:
        write_atomic(run.root / MODEL, json.dumps(record, indent=2) + "\n")
    except OSError as error:
        raise UserError(f"output_dir {run.root}: cannot be written ({error.strerror})") from None


def _read_record(config: TrainConfig, begun_in: Path | None) -> dict[str, str]:
    """Return the record in a run directory; empty without a record, and for a record of another model."""
    try:
        record = json.loads((begun_in / MODEL).read_text(encoding="utf-8")) if begun_in else None
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(record, dict) or record.get("model") != config.model:
        return {}
    return {key: value for key, value in record.items() if isinstance(value, str)}
