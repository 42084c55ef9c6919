"""Tiny models with a head dimension that vLLM's CPU attention has kernels for, and what to ask of them."""

from __future__ import annotations

import random
from typing import Any

import helpers
import torch
from transformers import PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

from attnrl.config.engines import VllmConfig
from attnrl.types import Completion, Request

EOS = 1
MAX_LENGTH = 256
SMALL = VllmConfig(kv_cache_gib=0.05)


def llama(**settings: Any) -> PreTrainedModel:
    return helpers.tiny_model(hidden_size=128, **settings)


def qwen2(*, tied: bool, vocab_size: int) -> PreTrainedModel:
    """With biases that are not zero, and a vocabulary that may need no padding."""
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=vocab_size,
        hidden_size=128,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=512,
        tie_word_embeddings=tied,
        initializer_range=0.2,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=EOS,
    )
    return perturbed(Qwen2ForCausalLM(config).eval())


def perturbed(model: PreTrainedModel, seed: int = 0) -> PreTrainedModel:
    """The model, every one of its weights changed in place."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


def requests(count: int, *, seed: int = 0, vocabulary: int = 60, longest: int = 40) -> list[Request]:
    """Requests for random prompts of 1 to 90 tokens, each with a budget of its own."""
    rng = random.Random(seed)
    return [
        Request(
            tuple(rng.randrange(2, vocabulary) for _ in range(rng.randint(1, 90))),
            rng.randint(1, longest),
            rng.getrandbits(62),
        )
        for _ in range(count)
    ]


def mismatch(model: PreTrainedModel, asked: list[Request], completions: list[Completion], temperature: float) -> float:
    """Largest difference, in nats, between the sampler's and the policy's log-prob of a token."""
    largest = 0.0
    for request, completion in zip(asked, completions, strict=True):
        ids = torch.tensor([[*request.prompt, *completion.tokens]])
        with torch.no_grad():
            logits_TV = model(input_ids=ids, use_cache=False).logits[0, len(request.prompt) - 1 : -1]
        logprobs_TV = (logits_TV / temperature).log_softmax(-1)
        ours_T = logprobs_TV.gather(1, torch.tensor(completion.tokens)[:, None])[:, 0]
        largest = max(largest, float((ours_T - torch.tensor(completion.logprobs)).abs().max()))
    return largest
