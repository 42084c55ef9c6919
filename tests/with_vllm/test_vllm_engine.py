"""The engine's life: when it takes weights, sleeps and wakes, what it leaves behind, and what it is refused for."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import helpers
import psutil
import pytest
import torch

pytest.importorskip("vllm", reason="needs vLLM, in an environment of its own: make test-vllm")

from engines import EOS, MAX_LENGTH, SMALL, llama, requests
from transformers import PreTrainedModel

from attnrl.errors import UserError
from attnrl.inference.vllm_engine import ENVIRONMENT, VllmEngine, open_engine, require_vllm
from attnrl.inference.vllm_sampler import VllmSampler
from attnrl.types import Request


class FakeLLM:
    """Remembers in which order it was called; its requests are over after a step."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def sleep(self, level: int) -> None:
        self.calls.append(f"sleep {level}")

    def wake_up(self, tags: list[str]) -> None:
        self.calls.append(f"wake {' '.join(tags)}")

    def collective_rpc(self, method: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> None:
        self.calls.append(method if isinstance(method, str) else method.__name__)

    def reset_prefix_cache(self) -> bool:
        self.calls.append("reset")
        return True

    def add_request(self, *_: object) -> None:
        self.calls.append("add")

    def step(self) -> list[Any]:
        raise RuntimeError("out of memory")

    def abort_request(self, names: list[str]) -> None:
        self.calls.append(f"abort {' '.join(names)}")

    def heard(self) -> list[str]:
        calls, self.calls = self.calls, []
        return calls


def test_an_engine_that_sleeps_takes_weights_when_it_wakes_and_sleeps_again_after_a_fault() -> None:
    llm = FakeLLM()
    sampler = VllmSampler(VllmEngine(llm, llama(), max_length=MAX_LENGTH, sleeps=True), eos_token_ids=[EOS])
    assert llm.heard() == ["sleep 2"]
    sampler.sync()
    assert llm.heard() == []  # it has none to replace
    assert sampler.generate([]) == []
    with pytest.raises(ValueError, match="request 0"):
        sampler.generate([Request((), 1, 0)])
    assert llm.heard() == []  # nor is it woken for nothing
    for _ in range(2):
        with pytest.raises(RuntimeError, match="out of memory"):
            sampler.generate([Request((3, 4), 5, 0)])
        assert llm.heard() == [
            "wake weights",
            "reload_weights",
            "reset",
            "wake kv_cache",
            "set_temperature",
            "add",
            "abort 0",
            "sleep 2",
        ]


def test_an_engine_that_does_not_sleep_takes_weights_at_once() -> None:
    llm = FakeLLM()
    sampler = VllmSampler(VllmEngine(llm, llama(), max_length=MAX_LENGTH, sleeps=False), eos_token_ids=[EOS])
    assert llm.heard() == ["reload_weights", "reset"]
    sampler.sync()
    assert llm.heard() == ["reload_weights", "reset"]
    with pytest.raises(RuntimeError, match="out of memory"):
        sampler.generate([Request((3, 4), 5, 0)])
    assert llm.heard() == ["set_temperature", "add", "abort 0"]


def listeners() -> set[tuple[str, int]]:
    return {tuple(one.laddr) for one in psutil.Process().net_connections() if one.status == psutil.CONN_LISTEN}


def test_an_engine_is_gone_after_a_fault_and_listens_to_nobody_else(
    opened: Callable[[PreTrainedModel], AbstractContextManager[VllmEngine]],
) -> None:
    before, threads = listeners(), torch.get_num_threads()
    with pytest.raises(KeyboardInterrupt), opened(llama()) as engine:
        assert VllmSampler(engine, eos_token_ids=[EOS]).generate(requests(2))
        assert {address for address, _ in listeners() - before} <= {"127.0.0.1", "::1"}
        assert psutil.Process().children() == []
        assert torch.distributed.is_initialized()
        raise KeyboardInterrupt
    assert listeners() == before and not torch.distributed.is_initialized()
    assert torch.get_num_threads() == threads


def test_environment_variables_are_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ENVIRONMENT:
        monkeypatch.delenv(name)
    monkeypatch.setenv("VLLM_LOGGING_LEVEL", "INFO")
    require_vllm(torch.device("cpu"))
    assert os.environ["VLLM_LOGGING_LEVEL"] == "INFO"
    assert os.environ["VLLM_NO_USAGE_STATS"] == "1"


def test_a_vllm_for_another_device_is_refused() -> None:
    with pytest.raises(UserError, match=r"sampler=vllm.*cpu.*device is cuda"):
        require_vllm(torch.device("cuda"))


@pytest.mark.parametrize(
    ("model", "settings", "message"),
    [
        (helpers.tiny_model(), {}, "head"),  # a head dimension of 8
        (llama(), {"block_size": 7}, "block size"),
        (llama(), {"kv_cache_gib": 100_000.0}, "requested memory for kv"),
    ],
)
def test_what_vllm_does_not_take_is_told_in_one_line(
    model: PreTrainedModel, settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    model.save_pretrained(tmp_path)
    with (
        pytest.raises(UserError, match=message) as told,
        open_engine(model, tmp_path, max_length=64, max_batch=4, settings=SMALL.model_copy(update=settings)),
    ):
        pytest.fail("started")
    assert str(told.value).startswith("sampler=vllm") and str(tmp_path) in str(told.value)
    assert "\n" not in str(told.value)
    assert not torch.distributed.is_initialized()
