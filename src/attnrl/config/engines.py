"""Settings of the two optional engines: vLLM (``sampler=vllm``) and verl (``engine=verl``)."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from attnrl.config.base import Strict


class VllmConfig(Strict):
    """The vLLM engine of ``sampler=vllm`` (docs/vllm.md)."""

    gpu_memory_utilization: float = Field(
        0.4, gt=0, le=1, description="share of the GPU's memory for the engine's weights and key/value cache"
    )
    kv_cache_gib: PositiveFloat | None = Field(
        None,
        description="size of the key/value cache, in GiB; null: what gpu_memory_utilization leaves, on CPU 1 GiB",
    )
    block_size: PositiveInt | None = Field(
        None, description="block size of the prefix cache, in tokens; null: 16, on CPU 32"
    )
    sleep: bool = Field(True, description="free the engine's GPU memory for training between generations")
    enforce_eager: bool = Field(
        False, description="run without CUDA graphs: starts sooner, samples slower; always so on CPU"
    )


class VerlConfig(Strict):
    """The Ray cluster of ``engine=verl`` (docs/verl.md)."""

    nodes: PositiveInt = Field(1, description="machines of the cluster")
    gpus_per_node: PositiveInt = Field(
        8, description="GPUs per node, one training process each; on CPU: processes per node"
    )
    rollout: Literal["vllm", "sglang", "transformers"] = Field(
        "vllm",
        description="rollout engine. vllm, sglang: the engine of that name; transformers: slow, for machines without "
        "either",
    )
    tensor_parallel: PositiveInt = Field(1, description="GPUs per rollout engine (tensor parallelism)")
    gpu_memory_utilization: float = Field(
        0.6, gt=0, le=1, description="share of a GPU's memory for the rollout engine during sampling"
    )
    enforce_eager: bool = Field(False, description="run the rollout engine without CUDA graphs")
    offload: bool = Field(False, description="keep weights and optimizer state in host memory while not in use")
    sequence_parallel: PositiveInt = Field(
        1, description="GPUs per sequence (Ulysses sequence parallelism); above 1 only for methods without FCI"
    )
    remove_padding: bool = Field(
        True, description="true: sequences packed end to end in one row, for flash attention; false: padded rows"
    )
    set: tuple[str, ...] = Field((), description="further settings of verl, as verl.key.path=value; override attnrl's")
    architecture: dict[str, Any] = Field(
        {}, description="a transformers config for the memory estimate of --dry-run if the model is not available"
    )
    gpu_memory_gib: PositiveFloat = Field(
        80.0, description="memory of one GPU, in GiB, for the memory estimate of --dry-run"
    )
