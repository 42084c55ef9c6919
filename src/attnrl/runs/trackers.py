"""Experiment trackers (tensorboard, wandb, trackio) through accelerate: ``pip install attnrl[trackers]``.

A run is called ``log.run_name`` in every tracker, and every tracker gets the whole configuration. All files of the
trackers are in ``output_dir/trackers``. A resumed run continues the run in the tracker.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol
from uuid import uuid4

from attnrl.config.schema import TrainConfig
from attnrl.errors import UserError, one_line
from attnrl.runs.wandb_account import require_wandb_account
from attnrl.utils.files import write_atomic

TRACKERS = "trackers"  # in the output directory
WANDB_ID = "wandb_run_id"  # file with the id of the run in wandb


class Trackers(Protocol):
    """Receivers of the metrics beside ``metrics.jsonl``."""

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Send the metrics of a training step."""
        ...

    def end_training(self) -> None:
        """Flush and close the trackers."""
        ...


def require_trackers(config: TrainConfig) -> None:
    """Check that accelerate and every tracker of ``log.trackers`` are installed, and that wandb needs no login.

    Raises:
        UserError: naming the missing trackers, or the way to give wandb a key.
    """
    if not config.log.trackers:
        return
    try:
        from accelerate import tracking
    except ImportError:
        raise UserError("log.trackers needs accelerate: pip install 'attnrl[trackers]'") from None
    installed = {str(tracker) for tracker in tracking.get_available_trackers()}
    missing = [name for name in config.log.trackers if name not in installed]
    if missing:
        raise UserError(
            f"log.trackers: {', '.join(missing)} {'is' if len(missing) == 1 else 'are'} not installed: "
            f"pip install {' '.join(missing)}"
        )
    if "wandb" in config.log.trackers:
        require_wandb_account()


def open_trackers(config: TrainConfig, resumed_step: int | None = None) -> Trackers | None:
    """Open the trackers of ``log.trackers``, checked by :func:`require_trackers`; return None without trackers.

    Args:
        config: the configuration of the run.
        resumed_step: step of the checkpoint that the run continues from; None for a new run.

    Raises:
        UserError: a tracker does not start.
    """
    if not config.log.trackers:
        return None
    from accelerate import Accelerator

    folder = config.output_dir / TRACKERS
    settings = flat_settings(config.model_dump(mode="json"))
    accelerator: Any = Accelerator(cpu=True, log_with=list(config.log.trackers), project_dir=str(folder))
    os.environ.update({name: value for name, value in tracker_folders(config).items() if name not in os.environ})
    arguments: dict[str, dict[str, Any]] = {
        "tensorboard": {} if resumed_step is None else {"purge_step": resumed_step + 1},
        "trackio": {
            "name": config.run_name,
            "config": settings,
            "resume": "never" if resumed_step is None else "allow",
        },
        "wandb": {"name": config.run_name, "dir": str(folder), "resume": "allow"},
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if "wandb" in config.log.trackers:
            arguments["wandb"]["id"] = _wandb_id(folder / WANDB_ID, new=resumed_step is None)
        accelerator.init_trackers(config.log.project, config=settings, init_kwargs=arguments)
    except Exception as error:  # of any class: each tracker has its own
        names = ", ".join(config.log.trackers)
        raise UserError(f"log.trackers: {names} cannot start ({type(error).__name__}: {one_line(error)})") from None
    trackers: Trackers = accelerator
    return trackers


def tracker_folders(config: TrainConfig) -> dict[str, str]:
    """Return the environment variables that name the folder of each tracker; each tracker reads one variable."""
    folder = (config.output_dir / TRACKERS).absolute()
    names = {"WANDB_DIR": ".", "WANDB_CACHE_DIR": "cache", "TENSORBOARD_DIR": ".", "TRACKIO_DIR": "trackio"}
    return {variable: str(folder / name) for variable, name in names.items()}


def flat_settings(settings: Mapping[str, Any], path: str = "") -> dict[str, bool | int | float | str | None]:
    """Return settings by dotted path, as every tracker accepts them: a list becomes JSON text."""
    flat: dict[str, bool | int | float | str | None] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            flat |= flat_settings(value, f"{path}{key}.")
        else:
            flat[f"{path}{key}"] = json.dumps(value) if isinstance(value, list) else value
    return flat


def _wandb_id(file: Path, *, new: bool) -> str:
    """Return the id of the run in wandb: of the resumed run, or a new id, which is written to ``file``."""
    if not new and file.is_file():
        found = file.read_text(encoding="utf-8").strip()
        if found.isalnum():
            return found
    name = uuid4().hex[:12]
    write_atomic(file, f"{name}\n")
    return name
