"""Tiny random decoders whose attention is far from uniform, and the dense definition of the influence."""

from collections.abc import Callable, Sequence

import pytest
import torch
import transformers
from torch import Tensor

Oracle = Callable[[Tensor, Sequence[int], int], Tensor]

SHAPE = dict(
    vocab_size=61,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    max_position_embeddings=256,
    pad_token_id=0,
)

# Window 12 is much shorter than the test sequences; mixed: full attention first, windows after.
FAMILIES = {
    "qwen2": (transformers.Qwen2Config, {}),
    "qwen3": (transformers.Qwen3Config, {}),
    "llama": (transformers.LlamaConfig, {}),
    "llama_mqa": (transformers.LlamaConfig, {"num_key_value_heads": 1}),
    "mistral_window": (transformers.MistralConfig, {"sliding_window": 12}),
    "qwen2_mixed": (
        transformers.Qwen2Config,
        {"use_sliding_window": True, "sliding_window": 12, "max_window_layers": 1},
    ),
}


def build(family: str, **overrides: object) -> transformers.PreTrainedModel:
    """A random model of the family in evaluation mode, with query and key weights scaled up.

    At its initial scale the attention is all but uniform, and so is any wrong influence.
    """
    config_class, settings = FAMILIES[family]
    torch.manual_seed(0)
    config = config_class(**{**SHAPE, **settings, **overrides})
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("q_proj.weight", "k_proj.weight")):
                parameter *= 12
            if name.endswith(("q_norm.weight", "k_norm.weight")):
                parameter *= 2
            if name.endswith(("q_proj.bias", "k_proj.bias")):
                parameter.normal_()
    return model


@pytest.fixture(scope="session")
def models() -> dict[str, transformers.PreTrainedModel]:
    return {family: build(family) for family in FAMILIES}


@pytest.fixture(params=FAMILIES)
def model(request: pytest.FixtureRequest, models: dict) -> transformers.PreTrainedModel:
    return models[request.param]


def dense_influence(probs: Tensor, starts: Sequence[int], delta: int) -> Tensor:
    """Eq. 5 as it stands, from attention probabilities [..., T, T]: influence [..., S]."""
    bounds = [*starts, probs.shape[-1]]
    influence = probs.new_zeros(*probs.shape[:-2], len(starts))
    for k in range(len(starts)):
        for j in range(k + delta, len(starts)):
            pair = probs[..., bounds[j] : bounds[j + 1], bounds[k] : bounds[k + 1]]
            influence[..., k] += pair.mean((-2, -1))
    return influence


@pytest.fixture(scope="session")
def oracle() -> Oracle:
    return dense_influence


@pytest.fixture(scope="session")
def eager() -> Callable[[transformers.PreTrainedModel, Tensor], Tensor]:
    """Attention probabilities [L, H, T, T] of eager attention for token ids [1, T]."""

    def probabilities(model: transformers.PreTrainedModel, ids_1T: Tensor) -> Tensor:
        former = model.config._attn_implementation
        model.set_attn_implementation("eager")
        try:
            with torch.no_grad():
                attentions = model(ids_1T, output_attentions=True, use_cache=False).attentions
        finally:
            model.set_attn_implementation(former)
        return torch.cat(attentions)

    return probabilities
