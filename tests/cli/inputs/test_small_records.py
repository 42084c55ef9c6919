"""What is lost beside a checkpoint is said at resume; a manifest that was changed is damaged."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command_line import Attnrl, train

from attnrl.cli import app as cli

MORE = ["steps=3", "eval.every=1"]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, tiny_checkpoint: Path, finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(tiny_checkpoint, tmp_path / "tiny")
    shutil.copytree(finished, tmp_path / "out")
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> Path:
    """A run of three steps, made once."""
    folder = tmp_path_factory.mktemp("finished")
    shutil.copytree(tiny_checkpoint, folder / "tiny")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("sys.argv", ["attnrl", *train(*MORE)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
    assert stop.value.code == 0
    return folder / "out"


def lines(name: str) -> list[str]:
    return (Path("out") / name).read_text().splitlines(keepends=True)


def write(name: str, kept: list[str]) -> None:
    (Path("out") / name).write_text("".join(kept))


def step(line: str) -> int:
    return int(json.loads(line)["step"])


def said(attnrl: Attnrl) -> list[str]:
    shown = attnrl(*train(*MORE), "--dry-run")
    assert shown.code == 0
    return [line for line in shown.out.splitlines() if "lacks" in line or "damaged" in line]


def test_a_whole_run_says_nothing(attnrl: Attnrl) -> None:
    assert said(attnrl) == []
    again = attnrl(*train("steps=4", "eval.every=1"))
    assert again.code == 0 and "lacks" not in again.out
    assert said(attnrl) == []


def test_trees_cut_in_the_middle(attnrl: Attnrl) -> None:
    whole = lines("trees.jsonl")
    text = "".join(whole)
    first = sum(step(line) == 1 for line in whole)
    assert len(whole) > first
    write("trees.jsonl", [text[: len("".join(whole[:first])) + 20]])  # within a line: a full disk, a copy cut off
    (line,) = said(attnrl)
    assert "trees.jsonl" in line and f"{len(whole) - first} of {len(whole)} rows" in line and "step 1)" in line


def test_samples_gone(attnrl: Attnrl) -> None:
    count = len(lines("samples.jsonl"))
    Path("out/samples.jsonl").unlink()
    (line,) = said(attnrl)
    assert "samples.jsonl" in line and f"{count} of {count} rows" in line and "no row is left" in line


@pytest.mark.parametrize("name", ["timeline.jsonl", "metrics.jsonl"])
def test_steps_without_rows_are_named(attnrl: Attnrl, name: str) -> None:
    whole = lines(name)
    write(name, [line for line in whole if step(line) != 2])
    (line,) = said(attnrl)
    assert name in line and f"1 of {len(whole)} rows" in line and "steps 2)" in line


def test_a_damaged_line_names_the_file_and_the_line(attnrl: Attnrl) -> None:
    whole = lines("trees.jsonl")
    write("trees.jsonl", [whole[0], whole[1][:30] + "\n", *whole[2:]])
    refused = attnrl(*train(*MORE))
    assert refused.code == 2 and "trees.jsonl, line 2" in refused.err and refused.err.count("\n") == 1


def edit(change: Callable[[dict[str, Any]], object]) -> None:
    path = Path("out/checkpoints/step-000003/manifest.json")
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document, indent=1) + "\n")


CHANGES: dict[str, Callable[[dict[str, Any]], object]] = {
    "step": lambda document: document.update(step=2),
    "accuracy": lambda document: document.update(accuracy=0.99),
    "records": lambda document: document["records"].clear(),
    "a file left out": lambda document: document["files"].pop("model.safetensors"),
    "a file added": lambda document: document["files"].update(x={"size": 1, "sha256": "0"}),
    "digest": lambda document: document.update(digest="0" * 64),
}


@pytest.mark.parametrize("case", CHANGES)
def test_a_changed_manifest_is_damaged(attnrl: Attnrl, case: str) -> None:
    edit(CHANGES[case])
    (line,) = said(attnrl)
    assert "step-000003" in line and "manifest.json" in line
    refused = attnrl(*train(*MORE, "resume=out/checkpoints/step-000003"))
    assert refused.code == 2 and "manifest.json" in refused.err


def test_a_checkpoint_of_an_earlier_version_is_accepted(attnrl: Attnrl) -> None:
    edit(lambda document: [document.pop(name) for name in ("digest", "records")])
    whole = lines("metrics.jsonl")
    assert said(attnrl) == []
    write("metrics.jsonl", [whole[0], whole[-1]])
    edit(lambda document: [document.pop(name, None) for name in ("digest", "records")])
    (line,) = said(attnrl)
    assert "metrics.jsonl" in line and "1-2" in line
