"""After a sync the engine has the policy's weights, all of them; before it, it has the former ones."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest

pytest.importorskip("vllm", reason="needs vLLM, in an environment of its own: make test-vllm")

from engines import EOS, llama, mismatch, perturbed, qwen2, requests
from transformers import PreTrainedModel

from attnrl.inference.vllm_engine import VllmEngine
from attnrl.inference.vllm_sampler import VllmSampler
from attnrl.types import SamplingParams

AGREED = 1e-4  # nats, fp32
MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    "llama, tied": lambda: llama(),
    "llama, untied": lambda: llama(tie_word_embeddings=False, vocab_size=64),
    "qwen2, tied": lambda: qwen2(tied=True, vocab_size=64),
    "qwen2, untied": lambda: qwen2(tied=False, vocab_size=61),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_sync_takes_all_weights_over(
    name: str, opened: Callable[[PreTrainedModel], AbstractContextManager[VllmEngine]]
) -> None:
    model = MODELS[name]()
    with opened(model) as engine:
        sampler = VllmSampler(engine, SamplingParams(0.7, 0.8), eos_token_ids=[EOS])

        def gap(seed: int) -> float:
            asked = requests(6, seed=seed)
            return mismatch(model, asked, sampler.generate(asked), 0.7)

        assert gap(0) < AGREED  # the engine began with arbitrary weights
        for seed in (1, 2):
            perturbed(model, seed)
            # The same prompts: their cached keys and values must go with the weights that made them.
            assert gap(0) > 0.1
            sampler.sync()
            assert gap(0) < AGREED


@pytest.mark.parametrize("name", MODELS)
def test_each_weight_counts(name: str, opened: Callable[[PreTrainedModel], AbstractContextManager[VllmEngine]]) -> None:
    """One weight after another: none of them is missed by a sync."""
    model = MODELS[name]()
    with opened(model) as engine:
        sampler = VllmSampler(engine, eos_token_ids=[EOS])
        asked = requests(4)
        for weight, parameter in model.named_parameters():
            parameter.data.mul_(0.5).add_(0.05)
            sampler.sync()
            assert mismatch(model, asked, sampler.generate(asked), 1.0) < AGREED, weight
