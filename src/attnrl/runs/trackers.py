"""tensorboard, wandb and trackio, through accelerate's trackers (``pip install attnrl[trackers]``)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from attnrl.config.schema import TrainConfig
from attnrl.errors import UserError


class Trackers(Protocol):
    """Where metrics go beside ``metrics.jsonl``."""

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Send the metrics of one step."""
        ...

    def end_training(self) -> None:
        """Flush and close."""
        ...


def check_trackers(config: TrainConfig) -> None:
    """Check that every tracker of ``log.trackers`` can be opened.

    Raises:
        UserError: accelerate or a tracker asked for is not installed.
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
    """The trackers of ``log.trackers``, which :func:`check_trackers` has passed, or None when there are none."""
    if not config.log.trackers:
        return None
    from accelerate import Accelerator

    directory = str(config.output_dir / "trackers")
    accelerator: Any = Accelerator(cpu=True, log_with=list(config.log.trackers), project_dir=directory)
    accelerator.init_trackers(config.log.project)
    trackers: Trackers = accelerator
    return trackers
