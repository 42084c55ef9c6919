"""Experiment trackers (tensorboard, wandb, trackio) through accelerate: ``pip install attnrl[trackers]``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from attnrl.config.schema import TrainConfig
from attnrl.errors import UserError


class Trackers(Protocol):
    """Receivers of the metrics beside ``metrics.jsonl``."""

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Send the metrics of a training step."""
        ...

    def end_training(self) -> None:
        """Flush and close the trackers."""
        ...


def require_trackers(config: TrainConfig) -> None:
    """Check that accelerate and every tracker of ``log.trackers`` are installed.

    Raises:
        UserError: naming the missing trackers.
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
        raise UserError(f"log.trackers: {', '.join(missing)} is not installed")


def open_trackers(config: TrainConfig) -> Trackers | None:
    """Open the trackers of ``log.trackers``, checked by :func:`require_trackers`; return None without trackers."""
    if not config.log.trackers:
        return None
    from accelerate import Accelerator

    directory = str(config.output_dir / "trackers")
    accelerator: Any = Accelerator(cpu=True, log_with=list(config.log.trackers), project_dir=directory)
    accelerator.init_trackers(config.log.project)
    trackers: Trackers = accelerator
    return trackers
