"""Trackers through the command line: wandb without a key, the name and the configuration of a run, the files."""

from __future__ import annotations

import json
import shutil
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from command_line import Attnrl, train, tree

tracking = pytest.importorskip("accelerate.tracking")

ONE = ["steps=1", "eval.every=0", "log.trackers=[wandb]"]
#: A module that writes what wandb would send.
WANDB = """
import json, os, pathlib

config = type("Config", (), {"update": lambda self, values, **_: _write("config", values)})()
_folder = None

def _write(kind, values):
    with (_folder / "calls.jsonl").open("a") as file:
        file.write(json.dumps([kind, values]) + "\\n")

def init(dir, **arguments):
    global _folder
    if os.environ.get("FAIL"):
        raise ValueError("no\\nnetwork")
    _folder = pathlib.Path(dir)
    _write("init", arguments)
    return type("Run", (), {"log": lambda self, values, step: _write("log", step), "finish": lambda self: None})()
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder, a home and a stand-in for wandb."""
    work = tmp_path / "work"
    shutil.copytree(tiny_checkpoint, work / "tiny")
    wandb = types.ModuleType("wandb")
    exec(WANDB, vars(wandb))
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.setattr(tracking, "_available_trackers", [tracking.LoggerType.TENSORBOARD, tracking.LoggerType.WANDB])
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    names = ("API_KEY", "MODE", "DISABLED", "BASE_URL", "IDENTITY_TOKEN_FILE", "CONFIG_DIR", "DIR", "CACHE_DIR")
    for name in (*(f"WANDB_{name}" for name in names), "NETRC", "TENSORBOARD_DIR", "TRACKIO_DIR"):
        monkeypatch.setenv(name, "")  # so that a value that the command sets is taken back
        monkeypatch.delenv(name)
    monkeypatch.chdir(work)
    return work


def calls(output: str) -> list[tuple[str, Any]]:
    return [tuple(json.loads(line)) for line in Path(output, "trackers", "calls.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("more", [[], ["--dry-run"]], ids=["train", "dry run"])
def test_wandb_without_a_key_is_one_line_before_the_first_token(folder: Path, attnrl: Attnrl, more: list[str]) -> None:
    before = tree(folder)
    refused = attnrl(*train(*ONE), *more)
    assert (refused.code, refused.err.count("\n")) == (2, 1)
    assert all(word in refused.err for word in ("log.trackers", "WANDB_API_KEY", "WANDB_MODE=offline"))
    assert tree(folder) == before


@pytest.mark.parametrize(
    "way", ["WANDB_API_KEY", "WANDB_MODE", "login", "server", "offline", "another server", "empty key"]
)
def test_the_ways_to_a_key(folder: Path, attnrl: Attnrl, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    home = folder.parent / "home"
    if way in {"login", "server", "another server"}:
        host = "api.wandb.ai" if way != "server" else "wandb.mine.org"
        (home / ".netrc").write_text(f"machine {host}\n  login user\n  password {'0' * 40}\n")
    if way in {"server", "another server"}:
        monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.mine.org")
    if way == "offline":
        (folder / "wandb").mkdir()
        (folder / "wandb" / "settings").write_text("[default]\nmode = offline\n")
    if way in {"WANDB_API_KEY", "empty key"}:
        monkeypatch.setenv("WANDB_API_KEY", "0" * 40 if way == "WANDB_API_KEY" else "")
    if way == "WANDB_MODE":
        monkeypatch.setenv("WANDB_MODE", "offline")
    assert attnrl(*train(*ONE), "--dry-run").code == (2 if way in {"another server", "empty key"} else 0)


def test_the_run_has_a_name_its_whole_configuration_and_its_files(
    attnrl: Attnrl, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorboard")
    monkeypatch.setenv("WANDB_MODE", "offline")
    both = [*ONE[:-1], "log.trackers=[wandb, tensorboard]", "log.project=mine", "loss.dual_clip=3"]
    assert attnrl(*train(*both)).code == 0
    (kind, arguments), (_, config), *logged = calls("out")
    assert kind == "init" and {"project": "mine", "name": "out", "resume": "allow"}.items() <= arguments.items()
    assert config["method.branching.rho"] == 0.2 and config["loss.dual_clip"] == 3.0
    assert config["optimizer.betas"] == "[0.9, 0.999]" and config["tokens"] is None
    assert [step for _, step in logged] == [0, 1]
    assert list(Path("out/trackers").rglob("events.out.tfevents*"))
    (hyper_parameters,) = Path("out/trackers").rglob("hparams.yml")
    assert "method.branching.rho: 0.2" in hyper_parameters.read_text()
    # The resumed run goes on under the same id, a run of another name under another.
    assert attnrl(*train(*both, "steps=2")).code == 0
    assert attnrl(*train(*both, "output_dir=two", "log.run_name='a name / of mine'")).code == 0
    ids = [values["id"] for output in ("out", "two") for kind, values in calls(output) if kind == "init"]
    assert ids[0] == ids[1] != ids[2]
    assert [values for kind, values in calls("out") if kind == "log"] == [0, 1, 2]
    assert next(values["name"] for kind, values in calls("two") if kind == "init") == "a name / of mine"
    assert {path.name for path in Path().iterdir()} == {"tiny", "out", "two"}


def test_a_tracker_that_does_not_start_is_one_line(attnrl: Attnrl, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("FAIL", "1")
    refused = attnrl(*train(*ONE))
    assert (refused.code, refused.err.count("\n")) == (2, 1)
    assert "log.trackers: wandb" in refused.err and "no network" in refused.err
