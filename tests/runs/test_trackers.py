"""Metrics on their way to tensorboard and its like."""

import sys
from pathlib import Path

import pytest

from attnrl.config.load import load_config
from attnrl.config.schema import TrainConfig
from attnrl.errors import UserError
from attnrl.runs.trackers import open_trackers, require_trackers


def config(directory: Path, trackers: str) -> TrainConfig:
    return load_config(TrainConfig, "attnrl", [f"output_dir={directory}", f"log.trackers={trackers}"])


def test_no_trackers_need_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "accelerate", None)
    assert open_trackers(config(tmp_path, "[]")) is None


def test_tensorboard_gets_every_metric_at_its_step(tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trackers = open_trackers(config(tmp_path, "[tensorboard]"))
    assert trackers is not None
    for step in (1, 2):
        trackers.log({"reward": step / 4, "eval/accuracy": step / 8}, step)
    trackers.end_training()
    (events,) = (tmp_path / "trackers" / "attnrl").glob("events.out.tfevents*")  # not the hyperparameters' below
    written = EventAccumulator(str(events)).Reload()
    assert [(event.step, event.value) for event in written.Scalars("reward")] == [(1, 0.25), (2, 0.5)]
    assert [(event.step, event.value) for event in written.Scalars("eval/accuracy")] == [(1, 0.125), (2, 0.25)]


def test_a_tracker_that_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tracking = pytest.importorskip("accelerate.tracking")
    monkeypatch.setattr(tracking, "get_available_trackers", lambda: ["tensorboard"])
    with pytest.raises(UserError, match=r"^log\.trackers: wandb\b"):
        require_trackers(config(tmp_path, "[tensorboard, wandb]"))
    assert list(tmp_path.iterdir()) == []


def test_trackers_need_accelerate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(UserError, match=r"^log\.trackers .*attnrl\[trackers\]"):
        require_trackers(config(tmp_path, "[tensorboard]"))
