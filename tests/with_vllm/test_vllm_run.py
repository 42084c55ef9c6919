"""Whole runs with ``sampler=vllm``: they learn, resume, and end in order."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import tiny_runs

pytest.importorskip("vllm", reason="needs vLLM, in an environment of its own: make test-vllm")

from engines import llama
from safetensors.torch import load_file
from transformers import PreTrainedTokenizerBase


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerBase) -> Path:
    directory = tmp_path_factory.mktemp("model")
    llama(vocab_size=len(tokenizer)).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


VLLM = [
    "sampler=vllm",
    "vllm.kv_cache_gib=0.05",
    "sampling.temperature=0.9",
    "optimizer.learning_rate=0.003",
    "eval.temperature=0.6",
    "eval.top_p=0.95",
]


def run(model: Path, output: Path, steps: int) -> list[dict[str, Any]]:
    """Run to the given step; the metrics of all steps, without what the clock says."""
    tiny_runs.run(model, output, *VLLM, steps=steps)
    return tiny_runs.read(output)


def test_a_run_learns_and_samples_from_what_it_has_learned(checkpoint: Path, tmp_path: Path) -> None:
    rows = run(checkpoint, tmp_path / "whole", 3)
    assert [row["step"] for row in rows] == [0, 1, 2, 3]
    assert [row["step"] for row in rows if "eval/accuracy" in row] == [0, 2, 3]
    for row in rows[1:]:
        assert row["update_skipped"] == 0.0 and row["grad_norm"] > 0
        assert 0 < row["mismatch/max"] < 1e-4  # the policy's log-probs and the engine's, after each sync
    before = load_file(checkpoint / "model.safetensors")
    after = load_file(tmp_path / "whole/checkpoints/step-000003/model.safetensors")
    assert all((before[name] - after[name]).abs().max() > 1e-3 for name in before)
    # The same, stopped after step 2.
    assert run(checkpoint, tmp_path / "resumed", 2) == rows[:2] + rows[2:3]
    assert run(checkpoint, tmp_path / "resumed", 3)[-1]["mismatch/max"] < 1e-4


def test_ctrl_c_finishes_the_phase_and_ends_everything(checkpoint: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", "from attnrl.cli.app import main; main()", "train", "attnrl"]
    metrics = tmp_path / "run/metrics.jsonl"
    process = subprocess.Popen(
        [*command, *tiny_runs.settings(checkpoint, tmp_path / "run", 1000), *VLLM],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    try:
        while not (metrics.exists() and len(metrics.read_text().splitlines()) > 1):
            assert process.poll() is None, process.communicate()[0].decode()
            time.sleep(0.1)
        children = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=120)[0].decode()
    finally:
        process.kill()
    assert process.returncode == 0 and "Traceback" not in said, said
    assert list((tmp_path / "run/checkpoints").iterdir())
    assert not any(child.is_running() for child in children)
