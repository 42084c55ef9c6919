"""The pipeline benchmark, as small as it gets: its rows do the same work, and its report says what was compared."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest


def test_both_pipelines_sample_equally_many_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    pipeline = importlib.import_module("pipeline")
    sizes = ["--hidden", "64", "--layers", "1", "--prompts", "3", "--trunks", "2", "--points", "1", "--samples", "1"]
    lengths = ["--tokens", "6", "--longest", "30", "--steps", "1", "--repeats", "2"]
    report = pipeline.main([*sizes, *lengths, "--rows", "one_step", "--threads", "1"])
    two_phase, one_step = report["rows"]["two_phase"], report["rows"]["one_step"]
    assert two_phase["tokens_a_step"] == one_step["tokens_a_step"] > 3 * (2 + 2) * 4
    assert report["baseline"] == "two_phase"
    assert one_step["ratio_min"] <= one_step["ratio"] <= one_step["ratio_max"]
    assert all(row["generate_seconds"] <= row["step_seconds"] for row in report["rows"].values())


def test_lengths_are_of_the_distribution_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    length = importlib.import_module("pipeline").log_normal(0, median=32, sigma=1.0, longest=200)
    drawn = sorted(length(str(name)) for name in range(2_000))
    assert 29 <= drawn[1_000] <= 35
    assert 80 <= drawn[1_683] <= 95  # a deviation above the median
    assert (drawn[0], drawn[-1]) == (4, 200)
    assert length("7") == length("7")
