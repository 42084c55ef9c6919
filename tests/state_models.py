"""Tiny random models with states beside keys and values, and mixtures of experts that return router logits."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from transformers import PreTrainedModel

SHAPE: dict[str, Any] = {
    "vocab_size": 48,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,  # distributions far from uniform, so that a wrong state would be noticed
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": None,
}
LINEAR: dict[str, Any] = {
    "num_hidden_layers": 4,
    "layer_types": ["linear_attention", "full_attention"] * 2,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
STATE_SPACE = {"mamba_d_state": 8, "mamba_dt_rank": 8}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "Qwen3-Next": ("Qwen3NextConfig", {**LINEAR, **EXPERTS, "shared_expert_intermediate_size": 16}),
    "Qwen3.5": ("Qwen3_5TextConfig", LINEAR),
    "LFM2": ("Lfm2Config", {"num_hidden_layers": 3, "layer_types": ["conv", "full_attention", "conv"]}),
    "Jamba": (
        "JambaConfig",
        {**STATE_SPACE, "num_hidden_layers": 2, "attn_layer_period": 2, "attn_layer_offset": 1, "num_experts": 2},
    ),
    "Mamba": ("MambaConfig", {"num_hidden_layers": 2, "state_size": 8}),
}
ROUTED: dict[str, tuple[str, dict[str, Any]]] = {
    "Mixtral": ("MixtralConfig", {"num_hidden_layers": 2, "num_local_experts": 4}),
    "Qwen2-MoE": ("Qwen2MoeConfig", {**EXPERTS, "num_hidden_layers": 2, "shared_expert_intermediate_size": 16}),
    "Qwen3-MoE": ("Qwen3MoeConfig", {**EXPERTS, "num_hidden_layers": 2}),
    "OLMoE": ("OlmoeConfig", {"num_hidden_layers": 2, "num_experts": 4, "num_experts_per_tok": 2}),
    "gpt-oss": ("GptOssConfig", {"num_hidden_layers": 2, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "Qwen3-Next": MODELS["Qwen3-Next"],
    "Jamba": MODELS["Jamba"],
}


def build(name: str, **changes: Any) -> PreTrainedModel:
    """Return the model ``name`` of :data:`MODELS` or :data:`ROUTED`, in evaluation mode."""
    torch.manual_seed(0)
    config_class, settings = {**MODELS, **ROUTED}[name]
    shape = {**SHAPE, **settings, **changes}
    if name == "Mamba":
        shape = {key: shape[key] for key in shape if "head" not in key and key != "intermediate_size"}
    return transformers.AutoModelForCausalLM.from_config(getattr(transformers, config_class)(**shape)).eval()
