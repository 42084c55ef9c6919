"""Decoding with a hidden span, against one full forward with an explicit mask, and against the ordinary sampler."""

from typing import Any

import helpers
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, MptConfig, PreTrainedModel, Qwen2Config

from attnrl.errors import UserError
from attnrl.experiments.disruption import hidden_steps
from attnrl.experiments.disruption.hidden_steps import HiddenRequest, HiddenRows, check_hiding, continue_hidden
from attnrl.inference.sampler import LocalSampler
from attnrl.types import Completion, Request, SamplingParams

SHAPE = dict(
    vocab_size=61,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=256,
    initializer_range=0.2,
    tie_word_embeddings=True,
    pad_token_id=0,
    bos_token_id=None,
    eos_token_id=1,
)
WINDOW = 9  # shorter than the prompts, and than the way from the end of them back to the hidden span
CONFIGS = {"llama": LlamaConfig, "qwen2": Qwen2Config, "mistral": MistralConfig}
PROMPT = tuple(torch.randint(2, 61, (24,), generator=torch.Generator().manual_seed(3)).tolist())
OTHER = tuple(torch.randint(2, 61, (15,), generator=torch.Generator().manual_seed(4)).tolist())
NEW = 12


@pytest.fixture(params=[(family, "sdpa") for family in CONFIGS] + [("mistral", "eager")], ids="-".join)
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    family, attention = request.param
    torch.manual_seed(0)
    more = {"sliding_window": WINDOW} if family == "mistral" else {}
    config = CONFIGS[family](**SHAPE, **more)
    return AutoModelForCausalLM.from_config(config, attn_implementation=attention).eval()


def decode(
    model: PreTrainedModel, requests: list[HiddenRequest], params: SamplingParams = SamplingParams(0.0), **settings: Any
) -> list[Completion]:
    return continue_hidden(model, requests, params, **{"eos_token_ids": (), "pad_token_id": 0, **settings})


def full_logits(model: PreTrainedModel, ids: tuple[int, ...], hidden: tuple[int, int], unseen_from: int) -> Tensor:
    """Return logits [T, V] of one forward with an explicit attention mask [T, T]."""
    T = len(ids)
    query, key = torch.arange(T)[:, None], torch.arange(T)
    seen = key <= query
    if getattr(model.config, "sliding_window", None) is not None:
        seen &= query - key < model.config.sliding_window
    seen &= ~((query >= unseen_from) & (key >= hidden[0]) & (key < hidden[1]))
    mask = torch.zeros(T, T).masked_fill(~seen, torch.finfo(torch.float32).min)[None, None]
    with torch.no_grad():
        return model(torch.tensor([ids]), attention_mask=mask, position_ids=torch.arange(T)[None]).logits[0]


@pytest.mark.parametrize("unseen_from", [12, 23], ids=["next step", "continuation"])
def test_logits_and_greedy_tokens_are_those_of_a_full_forward_with_the_mask(
    model: PreTrainedModel, unseen_from: int
) -> None:
    hidden = (8, 12) if unseen_from == 12 else (16, 21)
    request = HiddenRequest(PROMPT, hidden, unseen_from, NEW, 0)
    plain = HiddenRequest(PROMPT, (0, 0), 23, NEW, 0)
    completion, undisturbed = decode(model, [request, plain])
    ids = (*PROMPT, *completion.tokens)
    logits_TV = full_logits(model, ids, hidden, unseen_from)
    logprobs_TV = logits_TV.log_softmax(-1)
    predicting = range(len(PROMPT) - 1, len(ids) - 1)
    assert completion.tokens == tuple(logits_TV[t].argmax().item() for t in predicting)
    torch.testing.assert_close(
        torch.tensor(completion.logprobs), logprobs_TV[predicting].amax(-1), atol=1e-5, rtol=1e-4
    )
    assert completion.logprobs != pytest.approx(undisturbed.logprobs, abs=1e-3)  # hiding changes something

    rows = HiddenRows(model, [request], len(ids), pad=0)
    with torch.no_grad():
        for t in range(len(request.prefix), len(ids)):
            torch.testing.assert_close(rows.step(torch.tensor([ids[t]]))[0], logits_TV[t], atol=1e-4, rtol=1e-4)


def test_with_nothing_hidden_it_draws_what_the_ordinary_sampler_draws(model: PreTrainedModel) -> None:
    for temperature in (0.0, 1.0):
        sampler = LocalSampler(model, SamplingParams(temperature), eos_token_ids=[1], pad_token_id=0)
        asked = [Request(prompt, NEW, seed) for seed, prompt in enumerate([PROMPT, OTHER, PROMPT])]
        mine = [HiddenRequest(r.prompt, (0, 0), len(r.prompt) - 1, NEW, r.seed) for r in asked]
        theirs = sampler.generate(asked)
        found = decode(model, mine, SamplingParams(temperature), eos_token_ids=[1])
        assert [(c.tokens, c.finish_reason) for c in found] == [(c.tokens, c.finish_reason) for c in theirs]


def test_a_row_does_not_depend_on_what_is_beside_it(model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    requests = [
        HiddenRequest(PROMPT, (5, 9), 9, NEW, 7),
        HiddenRequest(OTHER, (6, 13), 14, 3, 8),
        HiddenRequest(OTHER[:2], (0, 0), 1, NEW, 9),
        HiddenRequest(PROMPT, (5, 9), 23, NEW, 7),
    ]
    together = decode(model, requests, SamplingParams())
    alone = [decode(model, [request], SamplingParams())[0] for request in requests]
    assert [c.tokens for c in together] == [c.tokens for c in alone]
    for one, other in zip(together, alone, strict=True):
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-4)
    in_twos = decode(model, requests, SamplingParams(), max_batch=2)
    monkeypatch.setattr(hidden_steps, "PREFILL_TOKENS", 30)  # each prefix goes through the model by itself
    prefilled_alone = decode(model, requests, SamplingParams())
    assert [c.tokens for c in in_twos] == [c.tokens for c in prefilled_alone] == [c.tokens for c in together]


def test_hidden_tokens_do_not_matter_and_seen_ones_do(model: PreTrainedModel) -> None:
    changed = (*PROMPT[:16], *(2 + (token + 7) % 59 for token in PROMPT[16:19]), *PROMPT[19:])

    def both(hidden: tuple[int, int]) -> list[Completion]:
        return decode(model, [HiddenRequest(prompt, hidden, 19, NEW, 0) for prompt in (PROMPT, changed)])

    hidden, seen = both((16, 19)), both((0, 0))
    assert hidden[0].tokens == hidden[1].tokens
    assert hidden[0].logprobs == pytest.approx(hidden[1].logprobs, abs=1e-5)
    assert seen[0].logprobs != pytest.approx(seen[1].logprobs, abs=1e-3)
    check_hiding(model)


def test_kept_tokens_that_have_seen_the_span_still_tell_of_it(model: PreTrainedModel) -> None:
    changed = (*PROMPT[:16], *(2 + (token + 7) % 59 for token in PROMPT[16:19]), *PROMPT[19:])
    one, other = decode(model, [HiddenRequest(prompt, (16, 19), 23, NEW, 0) for prompt in (PROMPT, changed)])
    assert one.logprobs != pytest.approx(other.logprobs, abs=1e-3)


def test_the_seed_decides_the_draws() -> None:
    model = helpers.tiny_model()
    requests = [HiddenRequest(PROMPT, (5, 9), 12, NEW, seed) for seed in (1, 1, 2)]
    one, same, other = decode(model, requests, SamplingParams())
    assert one.tokens == same.tokens != other.tokens
    assert decode(model, requests, SamplingParams())[0] == one


def test_a_completion_ends_with_the_end_of_the_sequence_or_its_budget() -> None:
    model = helpers.tiny_model()
    free = decode(model, [HiddenRequest(PROMPT, (5, 9), 12, NEW, 1)])[0]
    eos = free.tokens[4]
    short = decode(
        model,
        [HiddenRequest(PROMPT, (5, 9), 12, NEW, 1), HiddenRequest(PROMPT, (5, 9), 12, 2, 1)],
        eos_token_ids=[eos],
    )
    first = free.tokens.index(eos)
    assert (short[0].tokens, short[0].finish_reason) == (free.tokens[: first + 1], "stop")
    assert len(short[1].tokens) == min(2, first + 1)
    told: list[tuple[int, int]] = []
    decode(
        model, [HiddenRequest(PROMPT, (5, 9), 12, 3, 1)] * 3, max_batch=2, on_progress=lambda t, n: told.append((t, n))
    )
    assert told == [(6, 2), (9, 3)]


def test_a_model_that_ignores_the_mask_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = helpers.tiny_model()
    forward = type(model).forward

    def deaf(self: Any, *, attention_mask: Tensor, position_ids: Tensor, **inputs: Any) -> Any:
        return forward(self, attention_mask=torch.ones_like(attention_mask), position_ids=position_ids, **inputs)

    monkeypatch.setattr(type(model), "forward", deaf)
    with pytest.raises(UserError, match=type(model).__name__):
        check_hiding(model)


def test_a_model_whose_positions_come_from_the_mask_is_refused() -> None:
    model = AutoModelForCausalLM.from_config(MptConfig(d_model=32, n_heads=4, n_layers=1, vocab_size=61))
    with pytest.raises(UserError, match=type(model).__name__):
        check_hiding(model)


@pytest.mark.parametrize(
    ("prompt", "hidden", "unseen_from", "budget"),
    [
        ((1,), (0, 0), 1, 1),
        (PROMPT, (3, 2), 5, 1),
        (PROMPT, (5, 24), 24, 1),
        (PROMPT, (5, 9), 8, 1),
        (PROMPT, (5, 9), 9, 0),
    ],
)
def test_requests_that_make_no_sense_are_refused(
    prompt: tuple[int, ...], hidden: tuple[int, int], unseen_from: int, budget: int
) -> None:
    with pytest.raises(ValueError, match=r"prompt|hide"):
        HiddenRequest(prompt, hidden, unseen_from, budget, 0)
