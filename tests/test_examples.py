"""The files of ``examples/`` run through the public command line; ``minimal_loop.py`` as a script."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import SMALL, Attnrl

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.mark.parametrize(
    ("setting", "reference"),
    [
        ("method.branching.criterion", "custom_criterion:prefer_uncertain_influence"),
        ("method.advantage", "custom_advantage:gain_over_parent"),
        ("reward.functions", "[custom_reward:short_and_correct]"),
        ("task", "custom_task:LongLedgers"),
        ("method.steps.splitter", "custom_splitter:sentences"),
    ],
)
def test_a_custom_object_trains_by_module_object(
    setting: str,
    reference: str,
    tmp_path: Path,
    tiny_checkpoint: Path,
    attnrl: Attnrl,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "tiny").symlink_to(tiny_checkpoint)
    file = EXAMPLES / f"{reference.strip('[').partition(':')[0]}.py"
    (tmp_path / file.name).write_text(file.read_text())
    monkeypatch.chdir(tmp_path)
    outcome = attnrl("train", "attnrl", *SMALL, f"{setting}={reference}")
    assert outcome.code == 0, outcome.err
    rows = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [0, 1, 2]
    assert f"{setting}={reference}" in file.read_text()


def test_the_minimal_loop_trains_the_shipped_model() -> None:
    script = EXAMPLES / "minimal_loop.py"
    assert len(script.read_text().splitlines()) <= 200
    run = subprocess.run(
        [sys.executable, str(script), "--steps", "1", "--prompts", "2"],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=True,
    )
    trained = [float(line.split("responses trained ")[1].split(",")[0]) for line in run.stdout.splitlines()]
    assert len(trained) == 2 and trained[0] == 0 < trained[1]
