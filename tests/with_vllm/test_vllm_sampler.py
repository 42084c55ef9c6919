"""The vLLM sampler against the local one, and against itself in other batches."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import replace

import pytest
import torch

pytest.importorskip("vllm", reason="needs vLLM, in an environment of its own: make test-vllm")

from engines import EOS, MAX_LENGTH, mismatch, requests

from attnrl.inference.sampler import LocalSampler
from attnrl.inference.vllm_engine import VllmEngine
from attnrl.inference.vllm_sampler import VllmSampler
from attnrl.types import Completion, Request, SamplingParams


def tokens(completions: list[Completion]) -> list[tuple[int, ...]]:
    return [completion.tokens for completion in completions]


def test_greedy_completions_are_the_local_samplers(engine: VllmEngine) -> None:
    asked = requests(40)
    ours = VllmSampler(engine, SamplingParams(0.0), eos_token_ids=[EOS]).generate(asked)
    theirs = LocalSampler(engine.model, SamplingParams(0.0), eos_token_ids=[EOS], pad_token_id=0).generate(asked)
    assert tokens(ours) == tokens(theirs)
    assert {completion.finish_reason for completion in ours} == {"stop", "length"}
    assert [one.finish_reason for one in ours] == [one.finish_reason for one in theirs]
    for one, other in zip(ours, theirs, strict=True):
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-4)


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(),
        SamplingParams(0.6),
        SamplingParams(1.7, top_p=0.5),
        SamplingParams(top_p=0.5),
        SamplingParams(0.8, top_k=3),
        SamplingParams(1.3, min_p=0.2),
    ],
)
def test_logprobs_are_at_the_temperature_and_before_truncation(engine: VllmEngine, params: SamplingParams) -> None:
    """The samplers take turns, as training and evaluation do."""
    asked = requests(12)
    for params_ in (params, SamplingParams(0.0), SamplingParams(0.3, 0.9), params):
        sampler = VllmSampler(engine, params_, eos_token_ids=[EOS])
        assert mismatch(engine.model, asked, sampler.generate(asked), params_.temperature or 1.0) < 1e-4


def test_greedy_responses_end_at_the_stop_strings_of_the_local_sampler(engine: VllmEngine) -> None:
    def text(ids: Sequence[int]) -> str:
        return "".join(chr(ord("a") + token % 12) for token in ids)

    asked = [replace(request, response_tokens=seed % 3) for seed, request in enumerate(requests(40))]
    params = SamplingParams(0.0, stop=("ab", "cd", "kc", "f"))
    ours = VllmSampler(engine, params, eos_token_ids=[EOS], decode=text).generate(asked)
    theirs = LocalSampler(engine.model, params, eos_token_ids=[EOS], pad_token_id=0, decode=text).generate(asked)
    assert tokens(ours) == tokens(theirs)
    assert [(c.finish_reason, c.by_stop_string) for c in ours] == [(c.finish_reason, c.by_stop_string) for c in theirs]
    assert 5 < sum(completion.by_stop_string for completion in ours) < 40


def test_top_k_and_min_p_leave_the_most_probable_tokens(engine: VllmEngine) -> None:
    asked = [Request((7, 9, 11), 1, seed) for seed in range(300)]
    ids = torch.tensor([asked[0].prompt])
    with torch.no_grad():
        probs = (engine.model(input_ids=ids).logits[0, -1] / 2.5).softmax(-1)
    for params, kept in (
        (SamplingParams(2.5, top_k=4), probs.topk(4).indices.tolist()),
        (SamplingParams(2.5, min_p=0.5), (probs >= 0.5 * probs.max()).nonzero()[:, 0].tolist()),
    ):
        drawn = VllmSampler(engine, params, eos_token_ids=[]).generate(asked)
        assert {completion.tokens[0] for completion in drawn} == set(kept)


def test_tokens_are_drawn_at_the_temperature_and_from_within_top_p(engine: VllmEngine) -> None:
    """One token of one prompt, often: as often as its probability says."""
    prompt = (7, 9, 11)
    asked = [Request(prompt, 1, seed) for seed in range(600)]
    drawn = VllmSampler(engine, SamplingParams(2.5), eos_token_ids=[]).generate(asked)
    expected = {completion.tokens[0]: completion.logprobs[0] for completion in drawn}
    for token, logprob in expected.items():
        probability = math.exp(logprob)
        deviation = (probability * (1 - probability) / len(asked)) ** 0.5
        share = sum(completion.tokens == (token,) for completion in drawn) / len(asked)
        assert abs(share - probability) < 4.5 * deviation + 1 / len(asked), token
    kept = VllmSampler(engine, SamplingParams(2.5, 0.3), eos_token_ids=[]).generate(asked)
    few = {completion.tokens[0]: completion.logprobs[0] for completion in kept}
    assert 1 <= len(few) < len(expected)
    assert all(few[token] == pytest.approx(expected[token], abs=1e-5) for token in few if token in expected)
    # The nucleus: without its least probable token it would not reach 0.3.
    assert sum(math.exp(logprob) for logprob in few.values()) - math.exp(min(few.values())) < 0.3


def test_a_request_depends_on_its_seed_and_on_no_other_request(engine: VllmEngine) -> None:
    sampler = VllmSampler(engine, eos_token_ids=[EOS])
    asked = requests(20)
    together = tokens(sampler.generate(asked))
    assert tokens(sampler.generate(asked[::-1])) == together[::-1]
    assert tokens(sampler.generate(asked[3:4])) == together[3:4]
    assert tokens(sampler.generate(asked[::2])) == together[::2]
    request = max(asked, key=lambda one: one.max_new_tokens)
    siblings = [Request(request.prompt, request.max_new_tokens, seed) for seed in (request.seed, *range(-8, 8))]
    assert len(set(tokens(sampler.generate(siblings)))) == len(siblings)


def test_each_request_has_its_own_budget_and_keeps_its_end_of_sequence(engine: VllmEngine) -> None:
    asked = [Request((5, 6, 7), 1 + seed % 30, seed) for seed in range(90)]
    for ends in ([], [EOS], [EOS, 4, 9]):
        for request, completion in zip(asked, VllmSampler(engine, eos_token_ids=ends).generate(asked), strict=True):
            assert 1 <= len(completion.tokens) == len(completion.logprobs) <= request.max_new_tokens
            assert not set(completion.tokens[:-1]) & set(ends)
            assert completion.finish_reason == ("stop" if completion.tokens[-1] in ends else "length")
            if completion.finish_reason == "length":
                assert len(completion.tokens) == request.max_new_tokens
    assert VllmSampler(engine, eos_token_ids=[EOS]).generate([]) == []


def test_a_call_tells_what_finishes_and_ends_when_that_is_enough(engine: VllmEngine) -> None:
    sampler = VllmSampler(engine, eos_token_ids=[EOS])
    asked = requests(24, longest=60)
    whole = sampler.generate(asked)
    told: dict[int, Completion] = {}

    def should_stop(unfinished: Collection[int]) -> bool:
        assert set(unfinished).isdisjoint(told) and len(unfinished) + len(told) == len(asked)
        return len(unfinished) <= 12

    ended = sampler.generate(
        asked, on_completion=lambda r, completion: told.setdefault(r, completion), should_stop=should_stop
    )
    left = [r for r, completion in enumerate(ended) if completion.finish_reason == "unfinished"]
    assert 0 < len(left) <= 12
    assert set(left) == set(range(len(asked))) - set(told)
    for r, completion in enumerate(ended):
        if r in told:
            assert completion == told[r] and completion.tokens == whole[r].tokens
        else:
            assert len(completion.tokens) == len(completion.logprobs) < len(whole[r].tokens)
            assert completion.tokens == whole[r].tokens[: len(completion.tokens)]
    assert any(ended[r].tokens for r in left)
    # Nothing of them is left in the engine.
    assert not engine.llm.has_unfinished_requests()
    assert tokens(sampler.generate(asked)) == tokens(whole)
    assert mismatch(engine.model, asked, whole, 1.0) < 1e-4


def test_progress_is_told(engine: VllmEngine) -> None:
    seen: list[tuple[int, int]] = []
    sampler = VllmSampler(engine, eos_token_ids=[EOS], on_progress=lambda *at: seen.append(at))
    done = sampler.generate(requests(8))
    assert seen == sorted(seen) and seen[-1] == (sum(len(one.tokens) for one in done), 8)


def test_prompts_share_what_they_begin_with(engine: VllmEngine) -> None:
    sampler = VllmSampler(engine, eos_token_ids=[])
    sampler.sync()  # empties the prefix cache
    trunk = tuple(range(2, 60)) + tuple(range(2, 14))  # 70 tokens: two blocks of 32 and 6 more
    siblings = [Request(trunk, 20, seed) for seed in range(4)]
    first = sampler.generate(siblings)
    assert sampler.stats.prefilled_tokens == 70 + 3 * 6
    # A branch goes on from inside what has been sampled: 20 more tokens, of which the last was never a key.
    branch = Request(trunk + first[1].tokens + (3, 4, 5, 6, 7, 8, 9), 20, 9)
    sampler.generate([branch])
    assert sampler.stats.prompt_tokens == 97
    assert sampler.stats.prefilled_tokens == 97 - 64
    sampler.sync()
    sampler.generate(siblings[:1])
    assert sampler.stats.prefilled_tokens == 70


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (Request((), 5, 0), "request 1: the prompt is empty"),
        (Request((3,), 0, 0), "request 1: max_new_tokens must be at least 1, got 0"),
        (Request((3,) * 10, MAX_LENGTH - 9, 0), "request 1: 10 prompt tokens and a budget of 247 exceed"),
    ],
)
def test_bad_requests_are_refused_before_anything_is_sampled(
    engine: VllmEngine, request_: Request, message: str
) -> None:
    sampler = VllmSampler(engine, eos_token_ids=[EOS])
    with pytest.raises(ValueError, match=message):
        sampler.generate([Request((3, 4), 5, 0), request_], on_completion=lambda *_: pytest.fail("sampled"))
    assert not engine.llm.has_unfinished_requests()
    # The longest that it takes.
    (longest,) = VllmSampler(engine, eos_token_ids=[]).generate([Request((3,) * 10, MAX_LENGTH - 10, 0)])
    assert len(longest.tokens) == MAX_LENGTH - 10


def test_a_fault_leaves_the_engine_empty(engine: VllmEngine) -> None:
    sampler = VllmSampler(engine, eos_token_ids=[EOS])
    asked = requests(10)
    whole = tokens(sampler.generate(asked))

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sampler.generate(asked, on_completion=interrupt)
    assert not engine.llm.has_unfinished_requests()
    assert tokens(sampler.generate(asked)) == whole


def test_logits_that_are_not_finite_are_an_error(engine: VllmEngine) -> None:
    sampler = VllmSampler(engine, eos_token_ids=[EOS])
    norm = engine.model.model.norm.weight
    before = norm.detach().clone()
    try:
        norm.data.fill_(float("nan"))
        sampler.sync()
        with pytest.raises(FloatingPointError, match="request"):
            sampler.generate(requests(3))
    finally:
        norm.data.copy_(before)
        sampler.sync()
    assert mismatch(engine.model, requests(3), sampler.generate(requests(3)), 1.0) < 1e-4
