"""Models with other states than keys and values: sampled through transformers' own cache, against plain forwards."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
import transformers
from state_models import MODELS, ROUTED, SHAPE, build
from transformers import PreTrainedModel

from attnrl.errors import UserError
from attnrl.inference.base import UnsupportedModelError
from attnrl.inference.batch import LiveBatch
from attnrl.inference.plain_batch import PlainBatch
from attnrl.inference.sampler import LocalSampler, batch_class, check_cache
from attnrl.types import Completion, Request, SamplingParams

EOS = [5, 9, 13, 20, 33]


@pytest.fixture(scope="module", params=sorted(MODELS))
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    return build(request.param)


def rollouts() -> list[Request]:
    """Prompts of several lengths, single tokens among them, and branches that continue a trunk."""
    rng = random.Random(0)
    requests = []
    for length in (1, 2, 7, 7, 19):
        prompt = tuple(rng.randrange(6, 48) for _ in range(length))
        for cut in (0, 0, 3):
            tokens = prompt + tuple(rng.randrange(6, 48) for _ in range(cut))
            requests.append(Request(tokens, rng.randrange(1, 20), len(requests)))
    return requests


def sample(
    model: PreTrainedModel, requests: list[Request], temperature: float = 1.0, **settings: Any
) -> list[Completion]:
    params = SamplingParams(temperature=temperature)
    return LocalSampler(model, params, eos_token_ids=EOS, pad_token_id=0, **settings).generate(requests)


def forward_logprobs(model: PreTrainedModel, request: Request, tokens: tuple[int, ...]) -> torch.Tensor:
    with torch.no_grad():
        logits = model(torch.tensor([request.prompt + tokens]), use_cache=False).logits[0, len(request.prompt) - 1 : -1]
    return logits.log_softmax(-1).gather(1, torch.tensor(tokens)[:, None])[:, 0]


def test_greedy_equals_generate(model: PreTrainedModel) -> None:
    assert batch_class(model) is PlainBatch
    requests = rollouts()
    for request, completion in zip(requests, sample(model, requests, temperature=0.0), strict=True):
        expected = model.generate(
            torch.tensor([request.prompt]),
            max_new_tokens=request.max_new_tokens,
            do_sample=False,
            eos_token_id=EOS,
            pad_token_id=0,
        )[0, len(request.prompt) :]
        assert list(completion.tokens) == expected.tolist()


def test_a_request_yields_the_same_in_any_batch(model: PreTrainedModel) -> None:
    requests = rollouts()
    reference = sample(model, requests)
    assert {completion.finish_reason for completion in reference} == {"stop", "length"}
    for request, completion in zip(requests, reference, strict=True):
        expected = forward_logprobs(model, request, completion.tokens)
        torch.testing.assert_close(torch.tensor(completion.logprobs), expected, atol=1e-4, rtol=0)
    order = random.Random(1).sample(range(len(requests)), len(requests))
    tokens = [c.tokens for c in reference]
    for settings in ({}, {"max_batch": 1}, {"max_batch": 4}, {"prefill_tokens": 1}):
        shuffled = sample(model, [requests[i] for i in order], **settings)
        assert [c.tokens for c in shuffled] == [tokens[i] for i in order], settings


@pytest.mark.parametrize("name", sorted(ROUTED))
def test_router_logits_hidden_states_and_tuples_are_not_returned(name: str) -> None:
    """The config asks for outputs that need the masks of a padded batch; sampling is as without, the config is kept."""
    requests = rollouts()[:6]
    expected = [completion.tokens for completion in sample(build(name), requests)]
    model = build(name, output_router_logits=True, output_hidden_states=True, return_dict=False)
    assert check_cache(model) == check_cache(build(name))
    assert [completion.tokens for completion in sample(model, requests)] == expected
    assert (model.config.output_router_logits, model.config.output_hidden_states, model.config.return_dict) == (
        True,
        True,
        False,
    )


def test_hooks_statistics_and_stopping() -> None:
    model = build("LFM2")
    prompt = tuple(range(6, 16))
    requests = [Request(prompt, 4 + seed % 3, seed) for seed in range(6)]
    sampler = LocalSampler(model, eos_token_ids=[], pad_token_id=0)
    finished: list[int] = []
    completions = sampler.generate(requests, on_completion=lambda r, _: finished.append(r))
    assert sorted(finished) == list(range(6)) and finished[:2] == [0, 3]  # the shortest budgets end first
    assert [len(c.tokens) for c in completions] == [request.max_new_tokens for request in requests]
    assert sampler.stats.prefilled_tokens == len(prompt)  # once for all
    assert sampler.stats.decoded_tokens == sampler.stats.completion_tokens == sum(r.max_new_tokens for r in requests)
    early = sampler.generate(requests, should_stop=lambda unfinished: len(unfinished) <= 4)
    assert [c.finish_reason for c in early] == ["length", "unfinished", "unfinished"] * 2
    assert [c.tokens for c in early] == [c.tokens[:4] for c in completions]


def test_a_budget_that_fills_the_models_positions() -> None:
    requests = [Request((7,) * 250, 6, 0), Request((8,) * 3, 3, 1)]
    completions = LocalSampler(build("LFM2"), eos_token_ids=[], pad_token_id=0).generate(requests)
    assert [len(c.tokens) for c in completions] == [6, 3]


def test_the_check_of_a_model_says_how_the_model_is_sampled() -> None:
    note = check_cache(build("Qwen3.5"))
    assert note is not None and "Qwen3_5ForCausalLM" in note
    plain = transformers.AutoModelForCausalLM.from_config(transformers.LlamaConfig(**SHAPE, num_hidden_layers=1))
    assert batch_class(plain) is LiveBatch and check_cache(plain) is None


def test_latent_attention_shares_no_prefix() -> None:
    """The keys of latent attention are changed after the cache, so the sampler turns sharing off by itself."""
    latent = {"q_lora_rank": 8, "kv_lora_rank": 8, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8}
    routed = {"n_routed_experts": 4, "n_group": 1, "topk_group": 1, "num_experts_per_tok": 2}
    config = transformers.DeepseekV3Config(
        **{**SHAPE, **latent, **routed, "num_key_value_heads": 4}, num_hidden_layers=2, moe_intermediate_size=16
    )
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    requests = [Request(tuple(range(6, 26)), 5, seed) for seed in range(8)]
    for request, completion in zip(requests, sample(model, requests), strict=True):
        expected = forward_logprobs(model, request, completion.tokens)
        torch.testing.assert_close(torch.tensor(completion.logprobs), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("change", ["bidirectional", "broken", "encoder-decoder"])
def test_models_that_cannot_be_sampled(change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused at the start: the log-probs of decoding would differ from the log-probs of training."""
    if change == "encoder-decoder":
        config = transformers.T5Config(vocab_size=48, d_model=16, d_kv=4, d_ff=16, num_layers=1, num_heads=2)
        with pytest.raises(UnsupportedModelError, match="T5"):
            LocalSampler(transformers.T5ForConditionalGeneration(config), eos_token_ids=[], pad_token_id=0)
        return
    if change == "bidirectional":
        config = transformers.LlamaConfig(**SHAPE, num_hidden_layers=2, is_causal=False)
        model = transformers.AutoModelForCausalLM.from_config(config).eval()
    else:
        model = build("LFM2")
        monkeypatch.setattr(transformers.DynamicCache, "reorder_cache", lambda self, rows: None)
    with pytest.raises(UserError, match="model: "):
        check_cache(model)
