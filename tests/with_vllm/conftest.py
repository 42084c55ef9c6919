"""Engines for tiny models."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from engines import MAX_LENGTH, SMALL, llama
from transformers import PreTrainedModel

from attnrl.inference.vllm_engine import VllmEngine, open_engine


@pytest.fixture
def opened(tmp_path: Path) -> Callable[[PreTrainedModel], AbstractContextManager[VllmEngine]]:
    """Opens an engine for a model, which is saved first for its configuration."""

    def open_one(model: PreTrainedModel) -> AbstractContextManager[VllmEngine]:
        model.save_pretrained(tmp_path)
        return open_engine(model, tmp_path, max_length=MAX_LENGTH, max_batch=16, settings=SMALL)

    return open_one


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VllmEngine]:
    """One engine for a module's tests; nobody may change its model."""
    directory = tmp_path_factory.mktemp("model")
    model = llama()
    model.save_pretrained(directory)
    with open_engine(model, directory, max_length=MAX_LENGTH, max_batch=16, settings=SMALL) as opened_engine:
        yield opened_engine
