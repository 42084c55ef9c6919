"""Whole runs of a tiny random model, in seconds."""

from __future__ import annotations

import io
import json
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import attnrl.runs.prepare
import attnrl.runs.session
import attnrl.tasks.base
from attnrl.config.load import load_config
from attnrl.config.schema import TrainConfig
from attnrl.grading.base import ClosableGrader
from attnrl.runs.display import Display
from attnrl.types import Grade, Problem

STEPS = 4


class HashGrader(ClosableGrader):
    """A random model solves nothing; this one is right by chance, so that there is something to learn from."""

    overlaps = True

    def grade(self, problems: Sequence[Problem], responses: Sequence[str]) -> list[Grade]:
        right = [zlib.crc32(response.encode()) % 3 == 0 for response in responses]
        return [Grade(1.0, "correct") if yes else Grade(0.0, "wrong") for yes in right]


def settings(model: Path, output: Path, steps: int = STEPS) -> list[str]:
    """Settings that make a run of any recipe tiny."""
    return [
        f"model={model}",
        f"output_dir={output}",
        f"steps={steps}",
        "prompts=2",
        "threads=1",
        "device=cpu",
        "sampling.max_new_tokens=48",
        "eval.every=2",
        "eval.problems=4",
        "eval.samples=2",
        "checkpoint.every=2",
        "log.trees_every=1",
        "loss.kl=0.01",  # resuming must not take the trained weights for the reference
    ]


def run(model: Path, output: Path, *overrides: str, steps: int = STEPS, recipe: str = "attnrl") -> str:
    """Train with :class:`HashGrader` as far as the run goes; returns what it has printed."""
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attnrl.tasks.base, "RulesGrader", lambda flexible: HashGrader())
        config = load_config(TrainConfig, recipe, [*settings(model, output, steps), *overrides])
        attnrl.runs.session.train(attnrl.runs.prepare.prepare(config), Display(Console(file=printed, width=1000)))
    return printed.getvalue()


def read(output: Path, name: str = "metrics.jsonl") -> list[dict[str, Any]]:
    """The rows of a run, without what the clock says."""
    rows = [json.loads(line) for line in (output / name).read_text().splitlines()]
    return [{key: value for key, value in row.items() if not key.startswith("time/")} for row in rows]


def weights(directory: Path) -> bytes:
    """The weights of a checkpoint."""
    return (directory / "model.safetensors").read_bytes()
