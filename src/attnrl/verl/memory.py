"""What each GPU of an ``engine=verl`` run would have to hold: an estimate from reading verl's FSDP2 engine.

It counts the largest tensors, and has not been held against a GPU. In the formulas P parameters are sharded over G
GPUs, b is the bytes of a number in a forward (2 in bfloat16), and T the tokens of a micro-batch. Of ``verl.set``
nothing is looked at but whether the rollout engines sleep.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from attnrl.config.schema import TrainConfig
from attnrl.errors import UserError, one_line
from attnrl.local.loading import load_model_config, model_directory, shipped_models

GIB = 2**30
OTHER_GIB = 4.0  # a guess: contexts of two processes, NCCL's buffers, CUDA graphs, what the allocator cannot use
WORKSPACE_GIB = 2.0  # a guess: of a rollout engine's share, what is neither weights nor cache
AWAKE = "actor_rollout_ref.rollout.free_cache_engine=false"


@dataclass(frozen=True)
class Shape:
    """Sizes of a model; ``unit`` is the most parameters that FSDP2 gathers at once: a layer, an embedding, a head."""

    kind: str
    parameters: int
    unit: int
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_size: int
    vocabulary: int


def find_shape(config: TrainConfig) -> Shape | None:
    """The shape of the model in the directory that ``model`` names, or else of ``verl.architecture``.

    Returns:
        None where there is neither.

    Raises:
        UserError: transformers makes no causal language model of it.
    """
    local = config.model in shipped_models() or Path(config.model).is_dir()
    if local:
        found = load_model_config(model_directory(config.model), trust_remote_code=config.trust_remote_code)
    elif not config.verl.architecture:
        return None
    try:
        if not local:
            found = AutoConfig.for_model(**config.verl.architecture)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(found, trust_remote_code=config.trust_remote_code)
        text = found.get_text_config()
        parts = [part for part in model.modules() if type(part).__name__ in (model._no_split_modules or ())]
        return Shape(
            kind=found.model_type,
            parameters=_parameters(model),
            unit=max(map(_parameters, [*parts, model.get_input_embeddings()])),
            layers=text.num_hidden_layers,
            hidden=text.hidden_size,
            intermediate=text.intermediate_size,
            heads=text.num_attention_heads,
            kv_heads=getattr(text, "num_key_value_heads", None) or text.num_attention_heads,
            head_size=getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads,
            vocabulary=text.vocab_size,
        )
    except Exception as error:  # whatever transformers raises on settings that make no such model
        raise UserError(f"{f'model {config.model}' if local else 'verl.architecture'}: {one_line(error)}") from None


def _parameters(module: Any) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def training_memory(config: TrainConfig, shape: Shape) -> dict[str, float]:
    """GiB of a GPU in the backward pass of a micro-batch, where memory is fullest, by what takes them.

    - weights 4 P / G, gradients 4 P / G and AdamW's two moments 8 P / G: all fp32, sharded;
    - gathered (3 b + 4) U of the largest unit U: its weights and the next unit's, its gradient, and that in fp32 to be
      reduced;
    - activations: what one layer keeps for its backward pass, T (2 h (4 + b) + 2 h b + 2 b d (heads + kv heads) +
      4 b m) for hidden size h, head size d and MLP size m (norms keep fp32, flash attention no scores); and T h b for
      each layer with gradient checkpointing, else the former for each layer;
    - logits T V (b + 4) of V words: once as the model gives them, once in fp32 for a softmax or as their gradient;
    - the reference: nothing. verl keeps its shards in the host's memory, and gathers a unit at a time;
    - rollout, only where the engines do not sleep: their share of the GPU.
    """
    number, tokens, shards = _bytes(config), config.optimizer.micro_batch_tokens, gpus(config)
    norms, projections = 2 * shape.hidden * (4 + number), 2 * shape.hidden * number
    attention = 2 * number * shape.head_size * (shape.heads + shape.kv_heads)
    layer = tokens * (norms + projections + attention + 4 * number * shape.intermediate)
    checkpoints = shape.layers * tokens * shape.hidden * number
    parts = {
        "weights": 4 * shape.parameters / shards,
        "gradients": 4 * shape.parameters / shards,
        "AdamW": 8 * shape.parameters / shards,
        "gathered": (3 * number + 4) * shape.unit,
        "activations": layer + checkpoints if config.optimizer.gradient_checkpointing else shape.layers * layer,
        "logits": tokens * shape.vocabulary * (number + 4),
    }
    return _in_gib(config, parts)


def scoring_memory(config: TrainConfig, shape: Shape) -> dict[str, float]:
    """GiB of a GPU in the forward that gives log-probs, entropy and FCI; what is not said here is as in training.

    - AdamW's moments are with the host with ``verl.offload``;
    - gathered 2 b U; activations T b (3 h + 3 m), of one layer;
    - logits T V (b + 4), in fp32 for the entropy;
    - FCI T (12 heads + 2 b d (heads + kv heads)): three fp32 numbers for each head and token, and the operands end to
      end. What is kept of each layer, a number for each head and step, is not counted.
    """
    number, tokens = _bytes(config), config.optimizer.micro_batch_tokens
    operands = 2 * number * shape.head_size * (shape.heads + shape.kv_heads)
    parts = {
        "weights": 4 * shape.parameters / gpus(config),
        "AdamW": 0 if config.verl.offload else 8 * shape.parameters / gpus(config),
        "gathered": 2 * number * shape.unit,
        "activations": 3 * number * tokens * (shape.hidden + shape.intermediate),
        "logits": tokens * shape.vocabulary * (number + 4),
        "FCI": tokens * (12 * shape.heads + operands) if config.method.needs_fci else 0,
    }
    return _in_gib(config, parts)


def sampling_memory(config: TrainConfig, shape: Shape) -> dict[str, float]:
    """GiB of a GPU while the rollout engines sample.

    - of the engine's share, ``gpu_memory_utilization`` of the GPU: weights b P / tensor_parallel, a workspace, and the
      cache, which is what is left (below 0: it does not fit);
    - training: the sharded weights and moments, 12 P / G, which stay unless ``verl.offload``.
    """
    share = config.verl.gpu_memory_utilization * config.verl.gpu_memory_gib
    weights = _bytes(config) * shape.parameters / config.verl.tensor_parallel / GIB
    resident = 0 if config.verl.offload else 12 * shape.parameters / gpus(config) / GIB
    cache = share - weights - WORKSPACE_GIB
    return {"weights": weights, "workspace": WORKSPACE_GIB, "cache": cache, "training": resident, "other": OTHER_GIB}


def host_memory(config: TrainConfig, shape: Shape) -> dict[str, float]:
    """GiB of a node's own memory, over N nodes: the reference 4 P / N; with ``verl.offload`` 12 P / N more."""
    of_node = shape.parameters / config.verl.nodes / GIB
    return {"reference": 4 * of_node if config.loss.kl else 0, "offloaded": 12 * of_node if config.verl.offload else 0}


def cached_sequences(config: TrainConfig, shape: Shape) -> int:
    """How many of the longest sequences a rollout engine's cache holds, at 2 b d kv heads bytes a token and layer."""
    heads = ceil(shape.kv_heads / config.verl.tensor_parallel)
    token = 2 * _bytes(config) * shape.head_size * heads * shape.layers
    return max(0, int(sampling_memory(config, shape)["cache"] * GIB // (token * longest_row(config))))


def _in_gib(config: TrainConfig, parts: Mapping[str, float]) -> dict[str, float]:
    found = {name: taken / GIB for name, taken in parts.items() if taken}
    if AWAKE in {setting.lstrip("+~").replace(" ", "").lower() for setting in config.verl.set}:
        found["rollout"] = config.verl.gpu_memory_utilization * config.verl.gpu_memory_gib
    return {**found, "other": OTHER_GIB}


def _bytes(config: TrainConfig) -> int:
    return 2 if config.dtype == "bfloat16" else 4


def gpus(config: TrainConfig) -> int:
    """GPUs of the cluster."""
    return config.verl.nodes * config.verl.gpus_per_node


def longest_row(config: TrainConfig) -> int:
    """Tokens of the longest prompt with the longest response."""
    return config.sampling.max_prompt_tokens + config.sampling.max_new_tokens


def micro_batch_room(config: TrainConfig) -> int:
    """Tokens of a micro-batch on all GPUs that share it, and so of a sequence that verl does not refuse."""
    return config.optimizer.micro_batch_tokens * config.verl.sequence_parallel
