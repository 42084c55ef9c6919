"""A run that is killed in the middle of things, and resumed, is the run that was never killed."""

from __future__ import annotations

import importlib.util
import io
from pathlib import Path

import pytest
from rich.console import Console

spec = importlib.util.spec_from_file_location("kills", Path(__file__).parents[1] / "scripts" / "kills.py")
kills = importlib.util.module_from_spec(spec)
spec.loader.exec_module(kills)

MOMENTS = [
    ("generate", 1, 0.02),  # in the first step's generation, before there is a checkpoint
    ("grade", 3, 0.0),
    ("train", 2, 0.01),
    ("manifest", 1, 0.0),  # a checkpoint is written, but not yet in its place
    ("half of metrics.jsonl", 1, 0.0),
]


def test_a_run_killed_five_times_is_the_run_that_was_not_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut = []
    start = kills.start

    def watched(output: Path, moment: kills.Moment | None) -> bool:
        killed = start(output, moment)
        cut.append(killed and not (output / "metrics.jsonl").read_bytes().endswith(b"\n"))
        return killed

    monkeypatch.setattr(kills, "start", watched)
    result = kills.kill_runs(5, iter(MOMENTS), tmp_path, Console(file=io.StringIO()))
    assert cut[-2:] == [True, False]  # its last kill, and that it came to its end
    assert result["moments"] == {name: 1 for name, _, _ in MOMENTS}
    assert result["runs that differ"] == {} and result["runs"] == 1


def test_a_difference_would_be_seen(tmp_path: Path) -> None:
    for name in ("a", "b"):
        last = tmp_path / name / "checkpoints" / f"step-{kills.STEPS:06d}"
        last.mkdir(parents=True)
        (last / "model.safetensors").write_text(name)
        (tmp_path / name / "metrics.jsonl").write_text(f'{{"step": 1, "time/step": {len(name)}.{ord(name)}}}\n')
        (tmp_path / name / "trees.jsonl").write_text(f'{{"step": 1, "problem": "{name}"}}\n')
        (tmp_path / name / "samples.jsonl").touch()
    found = kills.differences(tmp_path / "a", tmp_path / "b")
    assert found == ["trees.jsonl", f"checkpoints/step-{kills.STEPS:06d}/model.safetensors"]
