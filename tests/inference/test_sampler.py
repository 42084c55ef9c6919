"""The local sampler against ``model.generate``, against plain forwards, and against itself in other batches."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from attnrl.inference import batch as batch_module
from attnrl.inference import decode_attention as decoding
from attnrl.inference.prefixes import GROUP_ROWS, shared_prefixes
from attnrl.inference.sampler import LocalSampler
from attnrl.inference.token_sampling import sample_token, uniforms
from attnrl.types import Completion, Request, SamplingParams

EOS = 5
SHAPE: dict[str, Any] = {
    "vocab_size": 48,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": None,
}


def qwen2() -> Any:
    return Qwen2ForCausalLM(Qwen2Config(**SHAPE))


def llama() -> Any:
    return LlamaForCausalLM(LlamaConfig(**SHAPE))


def mistral() -> Any:
    return MistralForCausalLM(MistralConfig(**SHAPE, sliding_window=8))


def hybrid() -> Any:
    layers = ["full_attention", "sliding_attention"]
    config = Qwen2Config(**SHAPE, use_sliding_window=True, sliding_window=8, layer_types=layers)
    return Qwen2ForCausalLM(config)


def build(factory: Callable[[], Any], scale: float = 4.0) -> Any:
    """Make a random model whose distributions are far from uniform, so that a wrong key would be noticed."""
    torch.manual_seed(0)
    model = factory().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(scale if parameter.ndim > 1 else 1.0)
    return model


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def model() -> Any:
    return build(qwen2)


def rollouts(seed: int = 0, problems: int = 4, each: int = 6) -> list[Request]:
    """Requests as training makes them: problems, each continued from its prompt and from inside trunks."""
    rng = random.Random(seed)
    requests = []
    for _ in range(problems):
        prompt = [rng.randrange(6, 48) for _ in range(rng.randrange(1, 20))]
        trunk = [rng.randrange(6, 48) for _ in range(12)]
        for _ in range(each):
            ids = prompt + trunk[: rng.choice([0, 0, 4, 12])]
            requests.append(Request(tuple(ids), rng.randrange(1, 30), len(requests)))
    return requests


def sample(
    model: Any, requests: list[Request], params: SamplingParams = SamplingParams(), **settings: Any
) -> list[Completion]:
    return LocalSampler(model, params, eos_token_ids=[EOS], pad_token_id=0, **settings).generate(requests)


def forward_logprobs(model: Any, request: Request, tokens: tuple[int, ...], temperature: float = 1.0) -> Any:
    with torch.no_grad():
        logits = model(torch.tensor([request.prompt + tokens])).logits[0, len(request.prompt) - 1 : -1]
    return (logits / temperature).log_softmax(-1).gather(1, torch.tensor(tokens)[:, None])[:, 0]


@pytest.mark.parametrize("factory", [qwen2, llama, mistral, hybrid])
def test_greedy_equals_generate_and_logprobs_equal_a_forward(factory: Callable[[], Any]) -> None:
    model = build(factory)
    requests = rollouts()
    for request, completion in zip(requests, sample(model, requests, SamplingParams(0.0)), strict=True):
        expected = model.generate(
            torch.tensor([request.prompt]),
            max_new_tokens=request.max_new_tokens,
            do_sample=False,
            eos_token_id=EOS,
            pad_token_id=0,
        )[0, len(request.prompt) :]
        assert list(completion.tokens) == expected.tolist()
        torch.testing.assert_close(
            torch.tensor(completion.logprobs),
            forward_logprobs(model, request, completion.tokens),
            atol=1e-5,
            rtol=0,
        )


@pytest.mark.parametrize("factory", [qwen2, hybrid])
def test_a_request_yields_the_same_in_any_batch(factory: Callable[[], Any]) -> None:
    model = build(factory, scale=2.0)
    requests = rollouts()
    reference = sample(model, requests)
    assert any(c.finish_reason == "stop" for c in reference)
    assert any(c.finish_reason == "length" for c in reference)
    for request, completion in zip(requests, reference, strict=True):
        expected = forward_logprobs(model, request, completion.tokens)
        torch.testing.assert_close(torch.tensor(completion.logprobs), expected, atol=1e-5, rtol=0)
    order = random.Random(1).sample(range(len(requests)), len(requests))
    tokens = [c.tokens for c in reference]
    for settings in ({}, {"max_batch": 1}, {"max_batch": 5}, {"share_attention": False}, {"prefill_tokens": 1}):
        shuffled = sample(model, [requests[i] for i in order], **settings)
        assert [c.tokens for c in shuffled] == [tokens[i] for i in order], settings
    assert sample(model, [requests[3]])[0].tokens == tokens[3]


def test_seeds_decide(model: Any) -> None:
    model = build(qwen2, scale=1.0)
    requests = [Request((7, 8, 9), 20, seed) for seed in (0, 0, 1, -1, 2**64 + 1, 2**63)]
    tokens = [c.tokens for c in LocalSampler(model, eos_token_ids=[], pad_token_id=0).generate(requests)]
    assert tokens[0] == tokens[1]
    assert tokens[2] == tokens[4]  # seeds are taken modulo 2**64
    assert len(set(tokens)) == 4


def test_budgets_and_end_of_sequence() -> None:
    model = build(qwen2, scale=1.0)
    requests = [Request((7, 8), budget, budget) for budget in range(1, 80)]
    for request, completion in zip(requests, sample(model, requests), strict=True):
        assert 1 <= len(completion.tokens) == len(completion.logprobs) <= request.max_new_tokens
        assert EOS not in completion.tokens[:-1]
        assert (completion.finish_reason == "stop") == (completion.tokens[-1] == EOS)
        assert completion.finish_reason == "stop" or len(completion.tokens) == request.max_new_tokens
    every = LocalSampler(model, eos_token_ids=range(48), pad_token_id=0).generate(requests)
    assert all(len(c.tokens) == 1 and c.finish_reason == "stop" for c in every)
    never = LocalSampler(model, eos_token_ids=[], pad_token_id=0).generate(requests)
    assert [len(c.tokens) for c in never] == [r.max_new_tokens for r in requests]


def test_a_budget_that_fills_the_models_positions() -> None:
    model = build(qwen2, scale=1.0)
    requests = [Request((7,) * 6, 250, 0), Request((8,) * 255, 1, 1), Request((9,) * 2, 3, 2)]
    completions = LocalSampler(model, eos_token_ids=[], pad_token_id=0).generate(requests)
    assert [len(c.tokens) for c in completions] == [250, 1, 3]


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        (SamplingParams(), lambda p: p),
        (SamplingParams(top_p=0.6), lambda p: nucleus(p, 0.6)),
        (SamplingParams(top_k=5), lambda p: top(p, 5)),
        (SamplingParams(min_p=0.3), lambda p: likely(p, 0.3)),
        (SamplingParams(top_p=0.6, top_k=8, min_p=0.1), lambda p: nucleus(top(likely(p, 0.1), 8), 0.6)),
        (SamplingParams(0.5), lambda p: p**2 / (p**2).sum()),
        (SamplingParams(0.5, min_p=0.3), lambda p: likely(p**2, 0.3)),
    ],
)
def test_frequencies_follow_the_distribution(params: SamplingParams, expected: Callable[[Any], Any]) -> None:
    model = build(qwen2, scale=2.0)
    count = 20_000
    prompt = (7, 8, 9)
    requests = [Request(prompt, 1, seed) for seed in range(count)]
    completions = LocalSampler(model, params, eos_token_ids=[], pad_token_id=0, max_batch=count).generate(requests)
    with torch.no_grad():
        probs = model(torch.tensor([prompt])).logits[0, -1].softmax(-1)
    target = expected(probs)
    target = target / target.sum()
    observed = torch.bincount(torch.tensor([c.tokens[0] for c in completions]), minlength=48)
    assert observed[target == 0].sum() == 0
    likely = target * count >= 5
    chi2 = ((observed - target * count)[likely] ** 2 / (target * count)[likely]).sum()
    freedom = int(likely.sum()) - 1
    assert chi2 < freedom + 4 * (2 * freedom) ** 0.5 + 4
    # log-probabilities: at the temperature, before truncation
    for request, completion in list(zip(requests, completions, strict=True))[:3]:
        wanted = forward_logprobs(model, request, completion.tokens, params.temperature)
        torch.testing.assert_close(torch.tensor(completion.logprobs), wanted, atol=1e-5, rtol=0)


def top(probs: Any, top_k: int) -> Any:
    return torch.where(probs >= probs.sort(descending=True).values[top_k - 1], probs, 0.0)


def likely(probs: Any, min_p: float) -> Any:
    return torch.where(probs >= min_p * probs.max(), probs, 0.0)


def nucleus(probs: Any, top_p: float) -> Any:
    order = probs.argsort(descending=True)
    top_p = top_p * probs.sum()
    size = int((probs[order].cumsum(0) < top_p).sum()) + 1
    kept = torch.zeros_like(probs)
    kept[order[:size]] = probs[order[:size]]
    return kept


def test_draw_never_chooses_an_impossible_token() -> None:
    logits = torch.tensor([[float("-inf"), 0.0, float("-inf"), 0.0, float("-inf")]]).repeat(3, 1)
    uniform = torch.tensor([2.0**-24, 0.5, 1 - 2.0**-24])
    assert sample_token(logits, uniform, SamplingParams())[0].tolist() == [1, 3, 3]


def test_uniforms_are_uniform_and_independent() -> None:
    draws = uniforms(torch.arange(1000), torch.arange(100)[None])
    assert float(draws.min()) > 0 and float(draws.max()) < 1
    assert abs(float(draws.mean()) - 0.5) < 0.005
    assert abs(float(draws.var()) - 1 / 12) < 0.002
    centred = draws - 0.5
    for other in (centred.roll(1, 0), centred.roll(1, 1)):  # neighbouring seeds, neighbouring counters
        assert abs(float((centred * other).mean())) * 12 < 0.02


def test_prefill_is_shared(model: Any) -> None:
    prompt = tuple(range(6, 26))
    sampler = LocalSampler(model, eos_token_ids=[EOS], pad_token_id=0)
    sampler.generate([Request(prompt, 2, seed) for seed in range(8)])
    assert sampler.stats.prefilled_tokens == len(prompt) - 1  # the last token is decoded
    sampler.generate([Request(prompt[:n], 2, n) for n in range(1, 21)] + [Request((40, 41, 42), 2, 0)])
    assert sampler.stats.prefilled_tokens == len(prompt) - 1 + 2
    assert sampler.stats.prompt_tokens == sum(range(1, 21)) + 3


def test_shared_prefixes_partition_the_rows_and_save_most() -> None:
    assert shared_prefixes([]) == []
    prefixes = [(1, 2, 3)] * 2 + [(1, 2, 4), (5,), (), (1, 2, 3, 4, 5, 6, 7, 8), (1, 2, 3, 4, 5, 6, 7, 9)]
    groups = shared_prefixes(prefixes)
    assert sorted(i for _, members in groups for i in members) == list(range(7))
    for length, members in groups:
        assert len({prefixes[i][:length] for i in members}) == 1
    assert sum(length * (len(members) - 1) for length, members in groups) == 7 + 3
    chain = [tuple(range(n)) for n in range(1500)]  # deep: must not recurse
    assert sorted(i for _, members in shared_prefixes(chain) for i in members) == list(range(1500))
    assert max(len(members) for _, members in shared_prefixes([(1, 2)] * 100)) <= GROUP_ROWS


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (Request((), 3, 0), "request 1: the prompt is empty"),
        (Request((7,), 0, 0), "request 1: max_new_tokens must be at least 1"),
        (Request((7,) * 200, 57, 0), "request 1: 200 prompt tokens and a budget of 57 exceed"),
    ],
)
def test_requests_are_checked(model: Any, request_: Request, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sample(model, [Request((7,), 1, 0), request_])


def test_no_requests(model: Any) -> None:
    assert sample(model, []) == []


@pytest.mark.parametrize("setting", ["max_batch", "prefill_tokens"])
def test_settings_are_checked(model: Any, setting: str) -> None:
    with pytest.raises(ValueError, match=setting):
        sample(model, [], **{setting: -1})


def test_attention_and_training_mode_are_restored(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(qwen2)
    model.config._attn_implementation = "sdpa"
    model.train()
    model.model.layers[0].eval()
    seen = []

    def failing(*args: Any, **kwargs: Any) -> Any:
        seen.append((model.config._attn_implementation, model.training, torch.is_grad_enabled()))
        raise RuntimeError("no")

    sample(model, rollouts())
    with monkeypatch.context() as patch:
        patch.setattr(batch_module, "sample_token", failing)
        with pytest.raises(RuntimeError, match="no"):
            sample(model, rollouts())
    assert seen == [(decoding.DECODE_ATTENTION, False, False)]
    assert model.config._attn_implementation == "sdpa"
    assert model.training and model.lm_head.training and not model.model.layers[0].training
    model(torch.tensor([[7, 8]])).logits.sum().backward()  # nothing is left that forbids training


def test_eager_attention_is_kept(model: Any) -> None:
    expected = [c.tokens for c in sample(model, rollouts())]
    eager = build(qwen2)
    eager.set_attn_implementation("eager")
    assert [c.tokens for c in sample(eager, rollouts())] == expected


def test_weights_are_always_the_current_ones() -> None:
    model = build(qwen2, scale=1.0)
    sampler = LocalSampler(model, eos_token_ids=[], pad_token_id=0)
    before = sampler.generate([Request((7, 8), 20, 0)])
    with torch.no_grad():
        model.model.embed_tokens.weight.mul_(8.0)
    after = sampler.generate([Request((7, 8), 20, 0)])
    assert before != after
    expected = forward_logprobs(model, Request((7, 8), 20, 0), after[0].tokens)
    torch.testing.assert_close(torch.tensor(after[0].logprobs), expected, atol=1e-5, rtol=0)


def test_logits_that_are_not_finite_are_an_error() -> None:
    model = build(qwen2)
    with torch.no_grad():
        model.lm_head.weight.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="request 0"):
        sample(model, [Request((7, 8), 2, 0)])


def test_bfloat16(model: Any) -> None:
    model = build(qwen2, scale=2.0).to(torch.bfloat16)
    requests = rollouts()
    for request, completion in zip(requests, sample(model, requests), strict=True):
        expected = forward_logprobs(model, request, completion.tokens).float()
        assert float((torch.tensor(completion.logprobs) - expected).abs().mean()) < 0.1


def test_progress_is_reported(model: Any) -> None:
    calls: list[tuple[int, int]] = []
    requests = rollouts()
    completions = sample(model, requests, max_batch=8, on_progress=lambda *counts: calls.append(counts))
    assert calls == sorted(calls) and len(calls) > 1
    assert calls[-1] == (sum(len(c.tokens) for c in completions), len(requests))


def test_prompts_of_one_token_alone_share_nothing() -> None:
    """With windows too: a decoding step from an empty cache must see no padding."""
    for factory in (qwen2, hybrid):
        model = build(factory, scale=2.0)
        requests = [Request((7,), 6, seed) for seed in range(5)] + [Request((7, 8, 9, 10), 6, 5)]
        for settings in ({}, {"max_batch": 1}, {"max_batch": 2}):
            for request, completion in zip(requests, sample(model, requests, **settings), strict=True):
                expected = forward_logprobs(model, request, completion.tokens)
                torch.testing.assert_close(torch.tensor(completion.logprobs), expected, atol=1e-5, rtol=0)
