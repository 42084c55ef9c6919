"""Estimate the memory of an ``engine=verl`` run per GPU, in GiB, from the tensor shapes of verl's FSDP2 engine.

The estimate counts the largest tensors and was not compared with a measurement on a GPU. In the formulas, ``bytes``
are the bytes per value in a forward (2 in bfloat16), ``tokens`` the tokens of a micro-batch, and the other names the
attributes of :class:`ModelShape`. Of ``verl.set``, only ``free_cache_engine`` (whether the rollout engines sleep) is
considered.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from attnrl.config.schema import TrainConfig
from attnrl.errors import UserError, one_line
from attnrl.local.loading import load_model_config
from attnrl.local.model_names import find_model_here

GIB = 2**30
OTHER_GIB = 4.0  # assumed: CUDA contexts of two processes, NCCL buffers, CUDA graphs, allocator fragmentation
WORKSPACE_GIB = 2.0  # assumed: memory of a rollout engine beside weights and KV cache
AWAKE = "actor_rollout_ref.rollout.free_cache_engine=false"


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a model.

    Attributes:
        kind: model type of transformers.
        parameters: number of parameters.
        unit: parameters of the largest FSDP2 unit (a layer, the embedding or the head), gathered at once.
        layers: number of layers.
        hidden: hidden size.
        intermediate: hidden size of the MLP.
        heads: number of query heads.
        kv_heads: number of key-value heads.
        head_size: size of a head.
        vocabulary: size of the vocabulary.
    """

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


def find_model_shape(config: TrainConfig) -> ModelShape | None:
    """Return the shape of the model if the model is on this machine, else of ``verl.architecture``, else None.

    Raises:
        UserError: transformers cannot build a causal language model from the configuration.
    """
    local = find_model_here(config.model)
    if local is not None:
        found = load_model_config(local.directory, trust_remote_code=config.trust_remote_code)
    elif not config.verl.architecture:
        return None
    try:
        if local is None:
            found = AutoConfig.for_model(**config.verl.architecture)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(found, trust_remote_code=config.trust_remote_code)
        text = found.get_text_config()
        parts = [part for part in model.modules() if type(part).__name__ in (model._no_split_modules or ())]
        return ModelShape(
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
    except Exception as error:  # transformers raises exceptions of many types for invalid settings
        raise UserError(f"{f'model {config.model}' if local else 'verl.architecture'}: {one_line(error)}") from None


def _parameters(module: Any) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def training_memory(config: TrainConfig, shape: ModelShape) -> dict[str, float]:
    """Return GiB per GPU by component in the backward pass of a micro-batch, the peak of a training step.

    - weights ``4 * parameters / gpus``, gradients ``4 * parameters / gpus`` and AdamW moments
      ``8 * parameters / gpus``: fp32, sharded;
    - gathered ``(3 * bytes + 4) * unit``: weights of the largest unit and of the next unit, gradient of the unit, and
      the gradient in fp32 for the reduction;
    - activations: for the backward pass a layer stores ``tokens * (2 * hidden * (4 + bytes) + 2 * hidden * bytes +
      2 * bytes * head_size * (heads + kv_heads) + 4 * bytes * intermediate)``; norms store fp32, flash attention stores
      no scores. With gradient checkpointing: one layer, plus ``tokens * hidden * bytes`` for each layer; without: all
      layers;
    - logits ``tokens * vocabulary * (bytes + 4)``: the model's output, and fp32 for the softmax or the gradient;
    - reference: 0, because verl keeps the reference in host memory and gathers one unit at a time;
    - rollout: the engines' share of the GPU, only if the engines do not sleep.
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


def scoring_memory(config: TrainConfig, shape: ModelShape) -> dict[str, float]:
    """Return GiB per GPU by component in the forward for log-probs, entropy and FCI.

    Components not listed are as in :func:`training_memory`.

    - AdamW moments: 0 with ``verl.offload`` (in host memory);
    - gathered ``2 * bytes * unit``;
    - activations ``3 * bytes * tokens * (hidden + intermediate)``, of one layer;
    - logits ``tokens * vocabulary * (bytes + 4)``, with fp32 for the entropy;
    - FCI ``tokens * (12 * heads + 2 * bytes * head_size * (heads + kv_heads))``: three fp32 values per head and token,
      and the concatenated queries and keys. The result (one value per head and step in each layer) is not counted.
    """
    number, tokens = _bytes(config), config.optimizer.micro_batch_tokens
    operands = 2 * number * shape.head_size * (shape.heads + shape.kv_heads)
    parts = {
        "weights": 4 * shape.parameters / gpus(config),
        "AdamW": 0 if config.verl.offload else 8 * shape.parameters / gpus(config),
        "gathered": 2 * number * shape.unit,
        "activations": 3 * number * tokens * (shape.hidden + shape.intermediate),
        "logits": tokens * shape.vocabulary * (number + 4),
        "FCI": tokens * (12 * shape.heads + operands) if config.method.needs_influence else 0,
    }
    return _in_gib(config, parts)


def sampling_memory(config: TrainConfig, shape: ModelShape) -> dict[str, float]:
    """Return GiB per GPU by component while the rollout engines sample.

    - the engine's share, ``gpu_memory_utilization`` of the GPU: weights ``bytes * parameters / tensor_parallel``, a
      workspace, and the KV cache in the remainder (below 0 if the engine does not fit);
    - training: sharded weights and moments, ``12 * parameters / gpus``; 0 with ``verl.offload``.
    """
    share = config.verl.gpu_memory_utilization * config.verl.gpu_memory_gib
    weights = _bytes(config) * shape.parameters / config.verl.tensor_parallel / GIB
    resident = 0 if config.verl.offload else 12 * shape.parameters / gpus(config) / GIB
    cache = share - weights - WORKSPACE_GIB
    return {"weights": weights, "workspace": WORKSPACE_GIB, "cache": cache, "training": resident, "other": OTHER_GIB}


def host_memory(config: TrainConfig, shape: ModelShape) -> dict[str, float]:
    """Return GiB of host memory per node.

    - reference: ``4 * parameters / nodes``;
    - offloaded, with ``verl.offload``: ``12 * parameters / nodes``.
    """
    of_node = shape.parameters / config.verl.nodes / GIB
    return {"reference": 4 * of_node if config.loss.kl else 0, "offloaded": 12 * of_node if config.verl.offload else 0}


def cached_sequences(config: TrainConfig, shape: ModelShape) -> int:
    """Return how many sequences of maximal length fit the KV cache of a rollout engine.

    A token takes ``2 * bytes * head_size * kv_heads`` in each layer.
    """
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
    """Return the number of GPUs of the cluster."""
    return config.verl.nodes * config.verl.gpus_per_node


def longest_row(config: TrainConfig) -> int:
    """Return the maximal number of tokens of a prompt and a response."""
    return config.sampling.max_prompt_tokens + config.sampling.max_new_tokens


def micro_batch_room(config: TrainConfig) -> int:
    """Return the token limit of a micro-batch over its sequence-parallel group; verl refuses longer sequences."""
    return config.optimizer.micro_batch_tokens * config.verl.sequence_parallel
