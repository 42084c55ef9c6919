"""Tiny random models of many architectures, and what their own eager attention says of them.

The tests of this folder and ``scripts/fci_parity.py``, which makes the table of docs/fci.md, share this list.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import Any

import torch
import transformers
from packaging.version import Version
from torch import Tensor
from transformers import PreTrainedModel

from attnrl.fci import CaptureSpec, capture
from attnrl.fci.interface import decoder_of

TOKENS = 96
STARTS = (5, 9, 14, 20, 27, 30, 38, 41, 50, 55, 61, 66, 70, 79, 85, 91)
DELTA = 2
WINDOW = 12  # much shorter than the sequence
LENGTHS = (TOKENS, 61)  # of the packed sequences

SHAPE = dict(
    vocab_size=61,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    max_position_embeddings=256,
    # At the usual scale the attention is all but uniform, and so is any wrong influence.
    initializer_range=0.2,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
)
EXPERTS = dict(moe_intermediate_size=32, num_experts_per_tok=2)
MIXED = ["sliding_attention", "full_attention"] * 2
MLA = dict(
    num_key_value_heads=4,
    head_dim=8,
    q_lora_rank=24,
    kv_lora_rank=16,
    qk_nope_head_dim=16,
    qk_rope_head_dim=8,
    v_head_dim=12,
)
GROUPS = dict(n_routed_experts=4, n_group=1, topk_group=1, first_k_dense_replace=1)
INDEXER = dict(index_topk=8, index_n_heads=2, index_head_dim=16)
BLOCKS = dict(
    layer_types=["full_attention", "minimax_m3_sparse"] * 2,
    num_hidden_layers=4,
    index_block_size=16,
    index_topk_blocks=2,
    index_local_blocks=1,
)
ZAMBA2 = dict(
    num_hidden_layers=4,
    layers_block_type=["linear_attention", "hybrid"] * 2,
    n_mamba_heads=8,
    mamba_d_state=8,
    num_mem_blocks=1,
    head_dim=None,
)
QUERY_KEY_NORMS = tuple(
    f"{norm}.weight" for norm in ("q_norm", "k_norm", "q_layernorm", "k_layernorm", "q_a_layernorm")
)
VISION = dict(hidden_size=32, intermediate_size=32, num_attention_heads=2)


@dataclass(frozen=True)
class Architecture:
    """An architecture whose influence has to equal that of its eager attention.

    Attributes:
        name: as the table has it.
        config: name of the config's class in transformers.
        exercises: what of the capture it puts to the test.
        settings: of the config, beside :data:`SHAPE`; None for one of these that it does not take.
        skipped: indices of the layers that have no softmax attention.
        packing: "equal" where sequences packed into one row are those alone; "cu_seq_lens" where they are so only
            if these are given, since the model's masks do not heed positions; "refused" where layers without
            attention do not tell them apart.
        since: the first transformers release whose attention of this architecture goes through the attention interface.
    """

    name: str
    config: str
    exercises: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    skipped: Sequence[int] = ()
    packing: str = "equal"
    since: str = "5.5"


ARCHITECTURES = (
    Architecture("Llama", "LlamaConfig", "grouped queries"),
    Architecture("SmolLM3", "SmolLM3Config", "layers without rotary embedding", {"no_rope_layers": [1, 0, 1]}),
    Architecture("Qwen2", "Qwen2Config", "biased queries and keys"),
    Architecture("Qwen3", "Qwen3Config", "query/key norm"),
    Architecture("Qwen3-MoE", "Qwen3MoeConfig", "experts", {**EXPERTS, "num_experts": 4}),
    Architecture("Mixtral", "MixtralConfig", "experts, window", {"num_local_experts": 4, "sliding_window": WINDOW}),
    Architecture("Mistral", "MistralConfig", "window", {"sliding_window": WINDOW}),
    Architecture("Phi-3", "Phi3Config", "fused projections, window", {"sliding_window": WINDOW}),
    Architecture("Phi", "PhiConfig", "partial rotary embedding"),
    Architecture("GLM", "GlmConfig", "interleaved partial rotary embedding"),
    Architecture("StableLM", "StableLmConfig", "partial rotary embedding"),
    Architecture("GPT-2", "GPT2Config", "learned positions"),
    Architecture("GPT-J", "GPTJConfig", "interleaved rotary embedding", {"rotary_dim": 8}, since="5.24"),
    Architecture("OLMo2", "Olmo2Config", "norm over all heads together"),
    Architecture("Granite", "GraniteConfig", "scaling of its own", {"attention_multiplier": 0.4}),
    Architecture("Cohere2", "Cohere2Config", "mixed windows", {"sliding_window": WINDOW, "layer_types": MIXED[:3]}),
    Architecture(
        "EXAONE 4",
        "Exaone4Config",
        "mixed windows, query/key norm",
        {"sliding_window": WINDOW, "layer_types": MIXED[:3]},
    ),
    Architecture(
        "ModernBERT (decoder)",
        "ModernBertDecoderConfig",
        "mixed windows, a head by the name of decoder",
        {"local_attention": WINDOW, "layer_types": MIXED[:3]},
    ),
    Architecture(
        "Gemma2",
        "Gemma2Config",
        "soft-capped scores, mixed windows",
        {"sliding_window": WINDOW, "attn_logit_softcapping": 2.0, "query_pre_attn_scalar": 16},
    ),
    Architecture(
        "Gemma3 (text)",
        "Gemma3TextConfig",
        "mixed windows with a rotary base each",
        {"sliding_window": WINDOW, "layer_types": MIXED[:3], "query_pre_attn_scalar": 16},
    ),
    Architecture(
        "Gemma3n (text)",
        "Gemma3nTextConfig",
        "keys shared across layers, scaling 1",
        {
            "num_hidden_layers": 4,
            "num_kv_shared_layers": 2,
            "layer_types": MIXED,
            "sliding_window": WINDOW,
            "laurel_rank": 8,
            "activation_sparsity_pattern": [0.0] * 4,
            "vocab_size_per_layer_input": 61,
            "hidden_size_per_layer_input": 8,
        },
    ),
    Architecture(
        "Gemma4 (text)",
        "Gemma4TextConfig",
        "keys shared across layers, two head dimensions",
        {
            "num_hidden_layers": 4,
            "num_kv_shared_layers": 2,
            "layer_types": MIXED,
            "sliding_window": WINDOW,
            "global_head_dim": 32,
            "vocab_size_per_layer_input": 61,
            "hidden_size_per_layer_input": 8,
        },
    ),
    Architecture(
        "gpt-oss",
        "GptOssConfig",
        "attention sinks, mixed windows",
        {"sliding_window": WINDOW, "num_local_experts": 4, "num_experts_per_tok": 2},
        packing="cu_seq_lens",
    ),
    Architecture(
        "MiMo-V2-Flash",
        "MiMoV2FlashConfig",
        "sinks in the windowed layers alone, which have more key heads",
        {
            **EXPERTS,
            "n_routed_experts": 4,
            "n_group": 1,
            "topk_group": 1,
            "sliding_window": WINDOW,
            "layer_types": MIXED[:3],
            "v_head_dim": 12,
            "swa_num_attention_heads": 4,
            "swa_num_key_value_heads": 4,
            "swa_head_dim": 16,
            "swa_v_head_dim": 12,
        },
    ),
    Architecture(
        "DeepSeek-V3",
        "DeepseekV3Config",
        "latent attention: values of another dimension",
        {**MLA, **EXPERTS, **GROUPS},
    ),
    Architecture(
        "LongCat-Flash",
        "LongcatFlashConfig",
        "two latent attentions to a layer",
        {
            **MLA,
            "num_layers": 2,
            "num_hidden_layers": 4,
            "ffn_hidden_size": 96,
            "expert_ffn_hidden_size": 32,
            "n_routed_experts": 4,
            "zero_expert_num": 2,
            "moe_topk": 2,
        },
    ),
    Architecture(
        "Qwen3-Next",
        "Qwen3NextConfig",
        "linear attention between",
        {
            **EXPERTS,
            "num_experts": 4,
            "shared_expert_intermediate_size": 32,
            "layer_types": ["linear_attention", "full_attention"] * 2,
            "num_hidden_layers": 4,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
            "linear_key_head_dim": 16,
            "linear_value_head_dim": 16,
        },
        skipped=(0, 2),
        packing="refused",
    ),
    Architecture(
        "Qwen3.5 (text)",
        "Qwen3_5TextConfig",
        "linear attention between, gated attention",
        {
            "layer_types": ["linear_attention", "full_attention"] * 2,
            "num_hidden_layers": 4,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
            "linear_key_head_dim": 16,
            "linear_value_head_dim": 16,
        },
        skipped=(0, 2),
        packing="refused",
    ),
    Architecture(
        "LFM2",
        "Lfm2Config",
        "convolutions between",
        {"layer_types": ["conv", "full_attention", "conv"]},
        skipped=(0, 2),
        packing="refused",
    ),
    Architecture(
        "Jamba",
        "JambaConfig",
        "state spaces between",
        {
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "num_experts": 2,
            "use_mamba_kernels": False,
            "mamba_d_state": 8,
            "mamba_dt_rank": 8,
        },
        skipped=(0, 2),
        packing="refused",
    ),
    Architecture(
        "Falcon-H1",
        "FalconH1Config",
        "a state space beside each attention",
        {"mamba_d_ssm": 64, "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_n_groups": 1},
        packing="refused",
    ),
    Architecture(
        "Gemma3 (multimodal)",
        "Gemma3Config",
        "the text decoder of a multimodal model",
        {
            "text_config": {"sliding_window": WINDOW, "layer_types": MIXED[:3], "query_pre_attn_scalar": 16},
            "vision_config": {**VISION, "num_hidden_layers": 1, "image_size": 28, "patch_size": 14},
            "image_token_index": 60,
        },
    ),
    Architecture(
        "Qwen2.5-VL",
        "Qwen2_5_VLConfig",
        "the text decoder of a multimodal model, 3-D positions",
        {
            "text_config": {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}},
            "vision_config": {"depth": 1, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2}
            | {"out_hidden_size": 64, "fullatt_block_indexes": [0]},
            "image_token_id": 60,
        },
        packing="cu_seq_lens",
    ),
)


@dataclass(frozen=True)
class Refused:
    """An architecture that cannot be captured, and a key word of the error message."""

    name: str
    config: str
    reason: str
    settings: Mapping[str, Any] = field(default_factory=dict)


REFUSED = (
    Refused("Llama 4", "Llama4TextConfig", "chunked", {"attention_chunk_size": 32, "intermediate_size_mlp": 96}),
    Refused("Llama, bidirectional", "LlamaConfig", "not causal", {"is_causal": False}),
    Refused("T5", "T5Config", "encoder-decoder", {"d_kv": 16, "d_ff": 96}),
    Refused("Mamba", "MambaConfig", "AttentionInterface", {"state_size": 8}),
    Refused("Inkling", "InklingTextConfig", "position bias", {**EXPERTS, "n_routed_experts": 4}),
    Refused("MiniMax-M3", "MiniMaxM3VLTextConfig", "sparse attention", {**EXPERTS, "num_local_experts": 4, **BLOCKS}),
    Refused("DeepSeek-V4", "DeepseekV4Config", "96", {**EXPERTS, **GROUPS, "num_hidden_layers": 4}),
    # These read the mask themselves: to choose keys by it, or because they call no attention by its name.
    Refused("DeepSeek-V3.2", "DeepseekV32Config", "mask", {**MLA, **EXPERTS, **GROUPS, **INDEXER}),
    Refused("Doge", "DogeConfig", "mask", {"keep_window_size": 32}),
    Refused("BLOOM", "BloomConfig", "mask"),
    Refused("Falcon", "FalconConfig", "mask", {"head_dim": None}),
    Refused("MPT", "MptConfig", "mask"),
    # A layer attends several times in a forward pass, so the layer has no single influence.
    Refused("HRM", "HrmTextConfig", "layer", {"num_layers_per_stack": 2}),
    Refused("Zamba2", "Zamba2Config", "layer", ZAMBA2),
)


def config_of(architecture: Architecture | Refused) -> transformers.PreTrainedConfig | None:
    """Return the tiny config; None where the installed transformers does capture the architecture."""
    config_class = getattr(transformers, architecture.config, None)
    since = architecture.since if isinstance(architecture, Architecture) else "0"
    if config_class is None or Version(transformers.__version__) < Version(since):
        return None
    settings = deepcopy(dict(architecture.settings))  # a config completes what it is given
    if "text_config" in settings:
        return config_class(**{**settings, "text_config": {**SHAPE, **settings["text_config"]}})
    return config_class(**{name: value for name, value in {**SHAPE, **settings}.items() if value is not None})


def build(config: transformers.PreTrainedConfig, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A random model in evaluation mode with eager attention, the only one that shows its probabilities."""
    torch.manual_seed(0)
    auto = transformers.AutoModelForCausalLM
    if hasattr(config, "text_config"):
        auto = transformers.AutoModelForImageTextToText
    elif config.is_encoder_decoder:
        auto = transformers.AutoModelForSeq2SeqLM
    model = auto.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(QUERY_KEY_NORMS):
                parameter += 0.7  # the weight itself, or what is added to 1
            if name.endswith("sinks"):
                parameter.normal_().add_(1)
            if name.endswith(".bias"):
                parameter.normal_(std=0.3)
    return model.to(dtype)


def tokens(length: int = TOKENS, seed: int = 3) -> Tensor:
    """Random token ids [1, T]."""
    return torch.randint(3, 60, (1, length), generator=torch.Generator().manual_seed(seed))


def eager(model: PreTrainedModel, ids_1T: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Logits, and the attention probabilities [1, H, T, T] of each layer that has any, of eager attention."""
    with torch.no_grad():
        output = model(ids_1T, output_attentions=True, use_cache=False)
    return output.logits, [probs for probs in output.attentions if probs is not None]


def dense_influence(probs_LHTT: Tensor, starts: Sequence[int], delta: int) -> Tensor:
    """Eq. 4 and 5 as they stand: influence [L, H, S]."""
    average_ST = torch.zeros(len(starts), probs_LHTT.shape[-1])
    for step, (start, stop) in enumerate(pairwise([*starts, probs_LHTT.shape[-1]])):
        average_ST[step, start:stop] = 1 / (stop - start)
    alpha_LHSS = average_ST @ probs_LHTT.float() @ average_ST.mT
    return alpha_LHSS.tril(-delta).sum(-2)


@dataclass(frozen=True)
class Parity:
    """How far a capture is from eager attention.

    Attributes:
        captured: indices of the captured layers.
        skipped: kind of each layer left out.
        error: largest difference of the influence, at any layer, head and step.
        first_error: that of the first captured layer.
        logits_error: largest difference of the logits, relative to the largest logit.
        peak: mean over rows of the largest attention probability, of eager attention.
    """

    captured: list[int]
    skipped: dict[int, str]
    error: float
    first_error: float
    logits_error: float
    peak: float


def parity(model: PreTrainedModel) -> Parity:
    """Capture one sequence in the model's own forward, and compare with eager attention."""
    ids_1T = tokens()
    expected_logits, attentions = eager(model, ids_1T)
    probs_LHTT = torch.cat(attentions)
    spec = CaptureSpec([STARTS], [TOKENS], delta=DELTA)
    with torch.no_grad(), capture(model, spec) as captured:
        logits = model(ids_1T, use_cache=False).logits
    error_LHS = (captured.influence()[0] - dense_influence(probs_LHTT, STARTS, DELTA)).abs()
    return Parity(
        sorted(captured.influence_HS),
        captured.skipped,
        error_LHS.max().item(),
        error_LHS[0].max().item(),
        ((logits - expected_logits).abs().max() / expected_logits.abs().max()).item(),
        probs_LHTT.amax(-1).mean().item(),
    )


def packing_error(model: PreTrainedModel, *, told: bool = False) -> float:
    """Largest difference between sequences packed into one row and the same sequences one by one.

    ``told`` gives the forward their bounds as flash attention takes them, beside position ids that restart.
    """
    sequences = [tokens(length, seed) for seed, length in enumerate(LENGTHS)]
    starts = [[start for start in STARTS if start < length] for length in LENGTHS]
    decoder = decoder_of(model)
    with torch.no_grad():
        with capture(model, CaptureSpec(starts, LENGTHS, delta=DELTA, packed=True)) as packed:
            positions = torch.cat([torch.arange(length) for length in LENGTHS])[None]
            bounds = torch.tensor([0, *accumulate(LENGTHS)], dtype=torch.int32)
            more = {"cu_seq_lens_q": bounds, "cu_seq_lens_k": bounds, "max_length_q": TOKENS, "max_length_k": TOKENS}
            decoder(torch.cat(sequences, 1), position_ids=positions, use_cache=False, **(more if told else {}))
        error = 0.0
        for sequence, ids_1T in enumerate(sequences):
            with capture(model, CaptureSpec([starts[sequence]], [LENGTHS[sequence]], delta=DELTA)) as alone:
                decoder(ids_1T, use_cache=False)
            difference = packed.influence()[sequence] - alone.influence()[0]
            error = max(error, difference.abs().max().item())
    return error
