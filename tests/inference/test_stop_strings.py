"""Stop strings: the same end as by decoding every prefix of a response, for every kind of tokenizer."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import helpers
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from attnrl.experiments.disruption.hidden_steps import HiddenRequest, continue_hidden
from attnrl.inference.batch import LiveBatch
from attnrl.inference.plain_batch import PlainBatch
from attnrl.inference.sampler import LocalSampler
from attnrl.inference.stop_strings import StopStrings
from attnrl.tokenization import decode
from attnrl.types import Completion, Request, SamplingParams

Decode = Callable[[Sequence[int]], str]


def byte_level() -> PreTrainedTokenizerFast:
    """Bytes, a few merges and a special token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("u", "s"), ("us", "e"), ("use", "r"), (":", "Ġ"), ("Ċ", "Ċ")]
    words = [*alphabet, *(left + right for left, right in merges)]
    tokenizer = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, merges))
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>")


def sentences() -> PreTrainedTokenizerFast:
    """Words with a leading space, and bytes of rare characters, as in Llama 2."""
    words = ["▁user", "user", "▁", ":", "▁:", "a", "▁a", "<0x0A>", *(f"<0x{byte:02X}>" for byte in range(0x80, 256))]
    tokenizer = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, [], byte_fallback=True))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>")


TOKENIZERS = {"byte level": byte_level(), "sentences": sentences()}
STOP = {
    "byte level": ("user: ", "\n\n", "é", "€!", "<|end|>", "日本"),
    "sentences": ("user:", " a:", ": ", "é", "€", "\n</s>"),
}


def naive_end(text: Decode, stop: str, kept: Sequence[int], new: Sequence[int]) -> int | None:
    """Decode the whole response after every token."""
    return next((n for n in range(1, len(new) + 1) if stop in text([*kept, *new[:n]])), None)


def tokens_of(tokenizer: PreTrainedTokenizerFast, character: str) -> list[int]:
    """The tokens of the bytes of a character."""
    names = [f"<0x{byte:02X}>" for byte in character.encode()]
    if names[0] not in tokenizer.get_vocab():
        names = [name for piece, _ in pre_tokenizers.ByteLevel(False).pre_tokenize_str(character) for name in piece]
    return tokenizer.convert_tokens_to_ids(names)


@pytest.mark.parametrize("name", TOKENIZERS)
def test_the_end_is_the_first_prefix_that_holds_the_text(name: str) -> None:
    tokenizer = TOKENIZERS[name]
    text = partial(decode, tokenizer)
    vocabulary = sorted(tokenizer.get_vocab().values())
    plain = [[token] for token in vocabulary if "\ufffd" not in text([token])]
    characters = [tokens_of(tokenizer, character) for character in "éè€£日本語"]
    broken = [unit[:-1] for unit in characters] if name == "byte level" else characters
    rng = random.Random(0)
    found = 0
    for _ in range(200):
        stop = rng.choice(STOP[name])
        near = [unit for unit in [*plain, *characters] if text(unit).strip() and text(unit).strip() in stop] or plain
        units = [rng.choice(rng.choice([near, near, near, plain, characters, broken])) for _ in range(50)]
        tokens = [token for unit in units for token in unit]
        kept, sampled = rng.choice([0, 7]), rng.choice([0, 5])
        first = naive_end(text, stop, (), tokens)
        if first is not None and first <= kept + sampled:
            continue
        strings = StopStrings([stop], text)
        end = strings.end(strings.kept(tokens[:kept], kept), tokens[kept : kept + sampled], tokens[kept + sampled :])
        assert end == (None if first is None else first - kept - sampled), (stop, tokens)
        found += end is not None
    assert found > 30


def test_only_the_tail_is_decoded() -> None:
    lengths: list[int] = []

    def text(tokens: Sequence[int]) -> str:
        lengths.append(len(tokens))
        return "".join(map(chr, tokens))

    strings = StopStrings(["END"], text)
    response = [ord(c) for c in "x" * 5000]
    assert strings.end((), response, [ord(c) for c in "Ex"]) is None and max(lengths) == 1  # no D: no text at all
    assert strings.end((), response, [ord(c) for c in "ENDx"]) == 3 and max(lengths) < 50
    assert StopStrings((), None).end((), (), [1, 2, 3]) is None


def test_stop_strings_need_a_decoder() -> None:
    with pytest.raises(ValueError, match="decode"):
        StopStrings(["x"], None)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -1.0),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("top_p", 0.0),
        ("top_p", 1.5),
        ("top_k", -1),
        ("min_p", -0.1),
        ("min_p", 1.1),
        ("stop", ("x", "")),
        ("stop", ("\ufffd",)),
    ],
)
def test_parameters_out_of_range_are_refused(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=name):
        SamplingParams(**{name: value})


EOS = 1


def letters(tokens: Sequence[int]) -> str:
    return "".join(chr(ord("a") + token % 8) for token in tokens)


def samples(
    stop: tuple[str, ...],
    requests: list[Request],
    batch: type[LiveBatch] | type[PlainBatch] = LiveBatch,
    **settings: Any,
) -> list[Completion]:
    model = helpers.tiny_model()
    sampler = LocalSampler(
        model, SamplingParams(stop=stop), eos_token_ids=[EOS], pad_token_id=0, decode=letters, **settings
    )
    sampler.batch_class = batch
    return sampler.generate(requests)


@pytest.mark.parametrize("batch", [LiveBatch, PlainBatch])
def test_a_response_ends_as_the_same_response_cut_by_hand(batch: type[LiveBatch] | type[PlainBatch]) -> None:
    requests = [Request((3, 4, 5, 6 + seed % 3), 50, seed, seed % 4) for seed in range(24)]
    whole = samples((), requests, batch)
    stop = ("ab", "cde")
    ended = samples(stop, requests, batch)
    assert [c.tokens for c in ended] == [c.tokens for c in samples(stop, requests, batch, max_batch=3)]
    reasons = set()
    for request, one, other in zip(requests, whole, ended, strict=True):
        kept = request.prompt[len(request.prompt) - request.response_tokens :]
        ends = [n for text in stop if (n := naive_end(letters, text, kept, one.tokens)) is not None]
        end = min(ends, default=len(one.tokens))
        assert other.tokens == one.tokens[:end]
        assert other.logprobs == pytest.approx(one.logprobs[:end], abs=1e-5)
        by_text = bool(ends) and other.tokens[-1] != EOS
        assert (other.by_stop_string, other.ends_with_eos) == (by_text, other.tokens[-1] == EOS)
        assert other.finish_reason == ("stop" if by_text or other.ends_with_eos else "length")
        reasons.add((other.finish_reason, other.by_stop_string))
    assert len(reasons) == 3


def test_a_stop_string_may_begin_in_kept_tokens_and_not_in_the_prompt() -> None:
    (whole,) = samples((), [Request((3, 4, 5), 30, 0)])
    stop = (letters([5, whole.tokens[0]]),)
    (within,) = samples(stop, [Request((3, 4, 5), 30, 0, response_tokens=1)])
    assert within.tokens == whole.tokens[:1] and within.by_stop_string
    (outside,) = samples(stop, [Request((3, 4, 5), 30, 0)])
    assert len(outside.tokens) > 1


def test_hidden_continuations_end_as_the_samplers_responses() -> None:
    model = helpers.tiny_model()
    params = SamplingParams(0.9, top_k=20, min_p=0.01, stop=("ab", "cde"))
    requests = [Request((3, 4, 5, 6 + seed % 3), 40, seed, seed % 4) for seed in range(20)]
    sampler = LocalSampler(model, params, eos_token_ids=[EOS], pad_token_id=0, decode=letters)
    hidden = [HiddenRequest(r.prompt, (0, 0), 3, r.max_new_tokens, r.seed, r.response_tokens) for r in requests]
    found = continue_hidden(model, hidden, params, eos_token_ids=[EOS], pad_token_id=0, decode=letters)
    expected = sampler.generate(requests)
    assert [(c.tokens, c.finish_reason, c.by_stop_string) for c in found] == [
        (c.tokens, c.finish_reason, c.by_stop_string) for c in expected
    ]
    assert any(completion.by_stop_string for completion in found)
