"""Samplers by name: the table's rows, and an opener of the user's from a file outside the package."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import Attnrl, train
from tiny_runs import read, run

from attnrl.config.load import load_config
from attnrl.config.schema import TrainConfig
from attnrl.errors import UserError
from attnrl.inference.registry import SAMPLERS, SamplerBackend, find_sampler
from attnrl.runs.prepare import prepare

OPENER = """
from contextlib import contextmanager
from pathlib import Path

from attnrl.inference.sampler import build_sampler


@contextmanager
def open_noted(config, model, tokenizer, directory, on_progress=None):
    log = Path("opened.txt")
    log.write_text(f"{directory.name}\\n")

    def build(params):
        with log.open("a") as file:
            file.write(f"{params.temperature:g} {params.top_p:g}\\n")
        return build_sampler(model, tokenizer, params, max_batch=3)

    yield build
    with log.open("a") as file:
        file.write("closed\\n")


def not_an_opener(config):
    pass


NUMBER = 3
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """Write a module in the working directory and return the module's name."""
    name = f"sampler_of_{request.node.name.split('[')[0]}"
    (tmp_path / f"{name}.py").write_text(OPENER)
    monkeypatch.chdir(tmp_path)
    return name


def test_rows() -> None:
    assert list(SAMPLERS) == ["transformers", "vllm"]
    for name, row in SAMPLERS.items():
        assert find_sampler(name) is row


def test_an_opener_from_a_file_runs_through_the_command_line(
    attnrl: Attnrl, tiny_checkpoint: Path, tmp_path: Path, module: str
) -> None:
    (tmp_path / "tiny").symlink_to(tiny_checkpoint)
    done = attnrl(*train(f"sampler={module}:open_noted"))
    assert done.code == 0, done.err
    opened = (tmp_path / "opened.txt").read_text().split("\n")
    assert opened[0] == "tiny" and opened[-2] == "closed"
    assert "1 1" in opened[1:-2]
    # The same draws as the shipped sampler's: only the batches differ.
    assert attnrl(*train("output_dir=other")).code == 0
    assert read(tmp_path / "out", "samples.jsonl") == read(tmp_path / "other", "samples.jsonl")


def test_a_row_is_all_that_a_new_sampler_needs(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked: list[Any] = []
    row = SamplerBackend(SAMPLERS["transformers"].open, checked.append, checked.append)
    monkeypatch.setitem(SAMPLERS, "noted", row)  # type: ignore[arg-type]
    run(tiny_checkpoint, tmp_path / "noted", "sampler=noted", steps=1)
    run(tiny_checkpoint, tmp_path / "plain", steps=1)
    assert checked[0] == torch.device("cpu") and isinstance(checked[1], torch.nn.Module)
    assert read(tmp_path / "noted") == read(tmp_path / "plain")


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("vlm", "vllm"),  # the near name
        ("{module}:absent", "absent"),
        ("{module}:not_an_opener", "not_an_opener"),
        ("{module}:NUMBER", "NUMBER"),
        ("no_module_of_this_name:opener", "no_module_of_this_name"),
    ],
)
def test_a_bad_name_is_refused_before_anything_is_written(
    name: str, key: str, tiny_checkpoint: Path, tmp_path: Path, module: str
) -> None:
    output = tmp_path / "out"
    overrides = [f"model={tiny_checkpoint}", f"output_dir={output}", f"sampler={name.format(module=module)}"]
    with pytest.raises(UserError) as error:
        prepare(load_config(TrainConfig, "attnrl", overrides))
    assert str(error.value).startswith("sampler:") and key in str(error.value)
    assert not output.exists()


def test_a_backend_of_the_user_brings_requirements(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "sampler_with_requirements.py").write_text(
        "from attnrl.inference.registry import SAMPLERS, SamplerBackend\n"
        "backend = SamplerBackend(SAMPLERS['transformers'].open)\n"
    )
    monkeypatch.chdir(tmp_path)
    assert isinstance(find_sampler("sampler_with_requirements:backend"), SamplerBackend)
