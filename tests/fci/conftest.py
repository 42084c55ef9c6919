"""Tiny random decoders whose attention is far from uniform, and the dense definition of the influence."""

from collections.abc import Callable, Sequence

import pytest
import torch
import transformers
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

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

# Window 12 is much shorter than the test sequences; mixed: full attention first, windows after. Gemma 2 caps its
# scores and GPT-OSS has attention sinks, both with a window in every other layer.
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
    "gemma2": (
        transformers.Gemma2Config,
        {"sliding_window": 12, "query_pre_attn_scalar": 2, "attn_logit_softcapping": 12.0},
    ),
    # Every expert is chosen, so that no rounding changes the choice.
    "gpt_oss": (
        transformers.GptOssConfig,
        {"sliding_window": 12, "num_local_experts": 2, "num_experts_per_tok": 2},
    ),
}
# Those whose attention sdpa does not compute, and the implementation with which they are built.
STOCK = {"gemma2": "eager", "gpt_oss": "eager"}


def build_model(family: str, **overrides: object) -> transformers.PreTrainedModel:
    """A random model of the family in evaluation mode, with query and key weights scaled up.

    At its initial scale the attention is all but uniform, and so is any wrong influence.
    """
    config_class, settings = FAMILIES[family]
    torch.manual_seed(0)
    config = config_class(**{**SHAPE, **settings, **overrides})
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation=STOCK.get(family, "sdpa")).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("q_proj.weight", "k_proj.weight")):
                parameter *= 12
            if name.endswith(("q_norm.weight", "k_norm.weight")):
                parameter *= 2
            if name.endswith(("q_proj.bias", "k_proj.bias")):
                parameter.normal_()
            if name.endswith("sinks"):
                parameter.normal_(mean=2.0)
    return model


@pytest.fixture(scope="session")
def models() -> dict[str, transformers.PreTrainedModel]:
    return {family: build_model(family) for family in FAMILIES}


@pytest.fixture(scope="session")
def build() -> Callable[..., transformers.PreTrainedModel]:
    return build_model


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


@pytest.fixture(scope="session")
def packs() -> Callable[[transformers.PreTrainedModel], bool]:
    """Whether the model itself tells packed sequences apart by their positions: not all of transformers' do."""

    def tells_apart(model: transformers.PreTrainedModel) -> bool:
        ids = torch.arange(1, 13)[None]
        with torch.no_grad():
            packed = model(ids, position_ids=torch.arange(12)[None] % 6, use_cache=False).logits
            return torch.allclose(packed[:, 6:], model(ids[:, 6:], use_cache=False).logits, atol=1e-3)

    return tells_apart


class _Watch(TorchDispatchMode):
    """Remembers the largest tensor that any operator of this thread returns."""

    bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(tensor, Tensor):
                self.bytes = max(self.bytes, tensor.nbytes)
        return out


@pytest.fixture(scope="session")
def largest() -> type[TorchDispatchMode]:
    """``with largest() as seen: ...`` leaves the size of the largest tensor in ``seen.bytes``."""
    return _Watch
