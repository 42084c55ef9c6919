"""Fixtures of every test. Being here also puts ``tests/`` on the path, so that tests can ``import helpers``."""

import gc
import sys
from collections.abc import Iterator
from pathlib import Path

import helpers
import pytest
import tiny_runs
import torch
from command_line import Attnrl, Outcome
from hypothesis import settings
from transformers import PreTrainedTokenizerBase

from attnrl.cli import app as cli
from attnrl.tasks.ledger import build_tokenizer

# The first torch operation of a process takes longer than the default deadline of an example.
settings.register_profile("attnrl", deadline=None, derandomize=True)
settings.load_profile("attnrl")


@pytest.fixture(scope="session", autouse=True)
def frozen_modules() -> Iterator[None]:
    """Keep the imported modules out of garbage collection, which takes most of the time of a tiny evaluation."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerBase:
    return build_tokenizer()


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerBase) -> Path:
    """A directory checkpoint of a tiny random model with the ledger tokenizer; not to be written to."""
    directory = tmp_path_factory.mktemp("tiny-model")
    helpers.tiny_model(vocab_size=len(tokenizer)).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def whole(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a tiny run that was never stopped; not to be written to."""
    output = tmp_path_factory.mktemp("whole")
    tiny_runs.run(tiny_checkpoint, output)
    return output


@pytest.fixture
def attnrl(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Iterator[Attnrl]:
    """Run a command in this process."""

    def call(*arguments: str) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["attnrl", *arguments])
        capfd.readouterr()
        code = 0
        try:
            cli.main()
        except SystemExit as stop:
            assert isinstance(stop.code, int)
            code = stop.code
        return Outcome(code, *capfd.readouterr())

    threads = torch.get_num_threads()
    yield call
    torch.set_num_threads(threads)
