"""Settings of the two optional engines: vLLM (``sampler=vllm``) and verl (``engine=verl``)."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from attnrl.config.base import Strict


class VllmConfig(Strict):
    """The engine of ``sampler=vllm`` (docs/vllm.md)."""

    gpu_memory_utilization: float = Field(
        0.4, gt=0, le=1, description="share of the GPU's memory for the engine's weights and key/value cache"
    )
    kv_cache_gib: PositiveFloat | None = Field(
        None, description="size of the key/value cache; none: what gpu_memory_utilization leaves, on CPU 1"
    )
    block_size: PositiveInt | None = Field(
        None, description="prompts share their beginnings in units of this many tokens; none: 16, on CPU 32"
    )
    sleep: bool = Field(True, description="give the GPU's memory to training while nothing is sampled")
    enforce_eager: bool = Field(False, description="no CUDA graphs: starts sooner, samples slower; always so on CPU")


class VerlConfig(Strict):
    """The cluster of ``engine=verl`` (docs/verl.md)."""

    nodes: PositiveInt = 1
    gpus_per_node: PositiveInt = Field(8, description="processes per node, on a CPU too")
    rollout: Literal["vllm", "sglang", "transformers"] = Field(
        "vllm", description="what draws responses; transformers is slow, and for machines that have neither engine"
    )
    tensor_parallel: PositiveInt = Field(1, description="GPUs that one rollout engine is spread over")
    gpu_memory_utilization: float = Field(
        0.6, gt=0, le=1, description="share of a GPU's memory for the rollout engine, while it samples"
    )
    enforce_eager: bool = Field(False, description="no CUDA graphs in the rollout engine")
    offload: bool = Field(False, description="keep weights and optimizer in the host's memory while others work")
    sequence_parallel: PositiveInt = Field(
        1, description="GPUs that one sequence is spread over (Ulysses); more than 1 only where FCI is not looked at"
    )
    remove_padding: bool = Field(True, description="end to end in one row, for flash attention; false: padded rows")
    set: tuple[str, ...] = Field((), description="settings of verl's own, as verl.key.path=value, put on top of ours")
    architecture: dict[str, Any] = Field(
        {}, description="a transformers config that --dry-run estimates memory with where the model is not at hand"
    )
    gpu_memory_gib: PositiveFloat = Field(
        80.0, description="memory of a GPU, which --dry-run holds its estimate against"
    )
