"""The sampler between loop and agent loops. No Ray: the queue and the agent loops are stood in for."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import pytest
import torch

from attnrl.types import Request, SamplingParams
from attnrl.verl.launch import installed_version

if installed_version() is None:
    pytest.skip("needs verl, in an environment of its own: make test-verl", allow_module_level=True)

from verl.utils import tensordict_utils

from attnrl.runs.watchdog import SamplerError, WatchedSampler
from attnrl.verl import sampler as module
from attnrl.verl.agent_loop import engine_parameters
from attnrl.verl.sampler import VerlSampler

END = 9


class Cluster:
    """Queue, agent loops and engines in one. A request's completion is its seed, as often as it may, the last first."""

    def __init__(self, fails: bool = False) -> None:
        self.fails = fails
        self.tags: dict[str, dict[str, Any]] = {}
        self.waiting: list[tuple[str, list[int]]] = []
        self.calls: list[str] = []
        self.global_steps = 3
        self.agent_loop_manager = self.checkpoint_manager = self

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return lambda *_: self.calls.append(name)

    def kv_batch_put(self, keys: list[str], partition_id: str, tags: list[dict[str, Any]]) -> None:
        self.tags.update(zip(keys, tags, strict=True))

    def generate_sequences(self, batch: Any) -> None:
        for one in range(len(batch)):
            row = batch[one]
            seed, budget = row["seed"], row["max_new_tokens"]
            tokens = [seed] * (budget - 1) + [END] if seed % 2 else [seed] * budget
            self.waiting.append((row["uid"], tokens))

    def kv_list(self, partition_id: str) -> dict[str, dict[str, Any]]:
        if self.waiting:
            name, tokens = self.waiting.pop()
            self.tags[name] = {"status": "failure" if self.fails else "finished"}
            self.tags[f"{name}_0_0"] = {"tokens": tokens}
        return {partition_id: dict(self.tags)}

    def kv_batch_get(self, keys: list[str], partition_id: str, select_fields: list[str]) -> Any:
        tokens = [torch.tensor(self.tags[key]["tokens"]) for key in keys]
        nested = torch.nested.as_nested_tensor(tokens, layout=torch.jagged)
        return tensordict_utils.get_tensordict({"responses": nested, "rollout_log_probs": nested * -0.5})

    def kv_clear(self, keys: list[str], partition_id: str) -> None:
        for key in keys:
            del self.tags[key]


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    cluster = Cluster()
    monkeypatch.setattr(module, "transfer_queue", cluster)
    monkeypatch.setattr(module, "POLL_SECONDS", 0.0)
    return cluster


def requests(count: int) -> list[Request]:
    return [Request((1, 2, 3)[: 1 + index % 3], 2 + index, seed=index) for index in range(count)]


def test_completions_come_in_the_order_of_the_requests(cluster):
    told: list[int] = []
    done = VerlSampler(cluster, SamplingParams(), [END], str).generate(
        requests(5), on_completion=lambda i, c: told.append(i)
    )
    assert [completion.tokens for completion in done] == [(0, 0), (1, 1, 9), (2,) * 4, (3, 3, 3, 3, 9), (4,) * 6]
    assert [completion.finish_reason for completion in done] == ["length", "stop", "length", "stop", "length"]
    assert done[1].logprobs == (-0.5, -0.5, -4.5)
    assert told == [4, 3, 2, 1, 0]  # as they came


def test_engines_wake_with_the_weights_and_sleep_afterwards(cluster):
    VerlSampler(cluster, SamplingParams(), [END], str).generate(requests(2))
    assert cluster.calls == ["update_weights", "sleep_replicas"]
    assert not cluster.tags  # nothing is left in the queue


def test_a_request_that_fails_fails_the_generation_and_leaves_nothing_behind(cluster):
    cluster.fails = True
    watched = WatchedSampler(VerlSampler(cluster, SamplingParams(), [END], str), None)
    with pytest.raises(SamplerError, match=r"\b1\b.*\b3\b"):
        watched.generate(requests(3))
    assert cluster.calls == ["update_weights", "abort_replicas", "resume_generation_replicas", "sleep_replicas"]
    assert not cluster.tags
    cluster.fails, cluster.waiting = False, []
    assert len(watched.generate(requests(3))) == 3


def test_nothing_to_sample_wakes_nobody(cluster):
    assert VerlSampler(cluster, SamplingParams(), [END], str).generate([]) == []
    assert not cluster.calls


def test_responses_are_cut_at_stop_strings(cluster):
    """The engine has gone on; a stop string may begin in the kept tokens of a branch."""
    params = SamplingParams(stop=("22", "31"))

    def text(tokens: Any) -> str:
        return "".join(map(str, tokens))

    asked = [Request((1,), 5, seed=2), Request((1, 3), 4, seed=1, response_tokens=1), Request((1, 3), 4, seed=1)]
    done = VerlSampler(cluster, params, [END], text).generate(asked)
    assert [completion.tokens for completion in done] == [(2, 2), (1,), (1, 1, 1, 9)]
    assert [len(completion.logprobs) for completion in done] == [2, 1, 4]
    assert [completion.finish_reason for completion in done] == ["stop"] * 3
    assert [completion.ends_with_eos for completion in done] == [False, False, True]


@pytest.mark.parametrize("engine", ["vllm", "sglang", "transformers"])
def test_parameters_have_the_engines_names(engine):
    params = SamplingParams(0.7, 0.9, 0, 0.1, ("x",))
    request = {"sampling": json.dumps(asdict(params)), "max_new_tokens": 9, "seed": 3, "response_tokens": 2}
    found = engine_parameters(engine, request)
    assert {"temperature": 0.7, "top_p": 0.9, "top_k": -1, "min_p": 0.1}.items() <= found.items()
    assert found["max_new_tokens" if engine == "sglang" else "max_tokens"] == 9
    assert found.get("seed") == (None if engine == "sglang" else 3)
    assert found.get("stop") == (["x"] if engine == "vllm" else None)
    assert found.get("response_tokens") == (2 if engine == "transformers" else None)
