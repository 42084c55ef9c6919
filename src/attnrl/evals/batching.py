"""Batch size and chunk size of an evaluation, from memory and model size."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import torch
from transformers import PreTrainedModel

from attnrl.rl.evaluation import SampleRequest

MAX_BATCH = 256
CPU_CHUNK_FLOP = 2e12  # about a minute of one or two cores
MEMORY_SHARE = {"cuda": 0.7, "cpu": 0.4}  # share of the memory left by the weights that the KV cache may take


def rows_that_fit(model: PreTrainedModel, sample_requests: Sequence[SampleRequest]) -> int:
    """Return the batch size (1 to :data:`MAX_BATCH`) whose KV cache fits in memory at the longest possible length."""
    config: Any = model.config.get_text_config(decoder=True)
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    longest = max(len(sampled.request.prompt) + sampled.request.max_new_tokens for sampled in sample_requests)
    row = 2 * config.num_hidden_layers * heads * width * model.dtype.itemsize * longest
    if model.device.type == "cuda":
        memory: int = torch.cuda.get_device_properties(model.device).total_memory
    else:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    weights = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    fitting = int(MEMORY_SHARE[model.device.type] * (memory - weights) / row)
    return max(1, min(MAX_BATCH, fitting))


def chunk_size(model: PreTrainedModel, sample_requests: Sequence[SampleRequest], batch: int) -> int:
    """Return the number of responses per chunk: four batches on a GPU, about a minute's work (8 to 1024) on a CPU."""
    if model.device.type == "cuda":
        return 4 * batch
    longest = max(sampled.request.max_new_tokens for sampled in sample_requests)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return max(8, min(1024, int(CPU_CHUNK_FLOP / (2 * parameters * longest))))


def missing_chunks(
    sample_requests: Sequence[SampleRequest], size: int, finished: Collection[tuple[str, int]]
) -> Iterator[list[SampleRequest]]:
    """Yield the unfinished requests chunk by chunk; chunks without unfinished requests are left out.

    Chunks are cut from all requests, finished requests included, so an interrupted evaluation keeps the chunk bounds.

    Args:
        sample_requests: all requests.
        size: requests per chunk.
        finished: (problem id, sample number) of every finished response.
    """
    for start in range(0, len(sample_requests), size):
        chunk = sample_requests[start : start + size]
        missing = [sampled for sampled in chunk if (sampled.problem.id, sampled.sample) not in finished]
        if missing:
            yield missing
