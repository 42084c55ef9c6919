"""Tokens per second of :class:`attnrl.local.sampler.LocalSampler` against ``model.generate``, in one run.

Two cases, each timed in interleaved repeats, the ratio being the median of the repeats' ratios:

- ``equal``: every row runs to the same budget, end-of-sequence disabled;
- ``as_they_come``: lengths as they occur. With ``--model`` (a checkpoint with a tokenizer) rows end at its own
  end-of-sequence token; without it, a random model gets budgets from a geometric distribution, and ``generate``,
  which has one budget for all rows, runs to the longest, as it must in practice.

Tokens are those a user keeps: what ``generate`` computes for rows that are over does not count, for either side.
Prompts have different lengths and come ``--group`` times each, as the rollouts of one problem do; with
``--group 1`` nothing can be shared.

    python benchmarks/sampler.py --batch 256 --tokens 128 --repeats 5
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

from attnrl.local.sampler import LocalSampler
from attnrl.protocols import Request

VOCABULARY = 64
PAD = 0


def demo_model(seed: int = 0) -> Any:
    """Return a random model of the shape of the package's demo model."""
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=192,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        pad_token_id=PAD,
        eos_token_id=None,
        bos_token_id=None,
    )
    return Qwen2ForCausalLM(config)


def random_prompts(count: int, group: int, length: int, vocabulary: int, seed: int) -> list[tuple[int, ...]]:
    """Return ``count`` prompts, ``group`` copies of each, of lengths within a quarter of ``length``."""
    generator = torch.Generator().manual_seed(seed)
    prompts: list[tuple[int, ...]] = []
    while len(prompts) < count:
        spread = int(torch.randint(-(length // 4), length // 4 + 1, (), generator=generator))
        ids = torch.randint(3, vocabulary, (length + spread,), generator=generator).tolist()
        prompts += [tuple(ids)] * group
    return prompts[:count]


def generate_rows(model: Any, prompts: Sequence[tuple[int, ...]], tokens: int, eos: int | None, pad: int) -> Any:
    """Sample with ``model.generate``, left-padded; return the new tokens [rows, steps]."""
    width = max(map(len, prompts))
    ids = torch.tensor([[pad] * (width - len(p)) + list(p) for p in prompts], device=model.device)
    valid = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=model.device)
    # As one would call it in a training loop; top_k=0 because the default of 50 is another distribution.
    out = model.generate(
        ids, attention_mask=valid, do_sample=True, temperature=1.0, top_k=0, use_cache=True,
        max_new_tokens=tokens, eos_token_id=eos, pad_token_id=pad,
    )  # fmt: skip
    return out[:, width:]


def kept_tokens(rows: Any, budgets: Sequence[int], eos: int | None) -> int:
    """Count tokens up to each row's budget and end-of-sequence, that one included."""
    total = 0
    for row, budget in zip(rows.tolist(), budgets, strict=True):
        kept = row[:budget]
        total += kept.index(eos) + 1 if eos is not None and eos in kept else len(kept)
    return total


def compare(ours: Callable[[], int], theirs: Callable[[], int], repeats: int, device: str) -> dict[str, Any]:
    """Time both, interleaved; each returns the number of tokens a user keeps."""

    def rates(run: Callable[[], int]) -> tuple[float, float]:
        if device == "cuda":
            torch.cuda.synchronize()
        wall, cpu = time.perf_counter(), time.process_time()
        tokens = run()
        if device == "cuda":
            torch.cuda.synchronize()
        return tokens / (time.perf_counter() - wall), tokens / (time.process_time() - cpu)

    ours(), theirs()
    pairs = [(rates(ours), rates(theirs)) for _ in range(repeats)]
    ratios = [mine[0] / other[0] for mine, other in pairs]
    return {
        "sampler_tokens_per_s": round(statistics.median(mine[0] for mine, _ in pairs)),
        "generate_tokens_per_s": round(statistics.median(other[0] for _, other in pairs)),
        "ratio": round(statistics.median(ratios), 2),
        "ratio_min": round(min(ratios), 2),
        "ratio_max": round(max(ratios), 2),
        # The same by the processor time used, which a busy machine disturbs less.
        "ratio_cpu_time": round(statistics.median(mine[1] / other[1] for mine, other in pairs), 2),
    }


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", type=Path, help="checkpoint directory (default: random, of the demo's shape)")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--tokens", type=int, default=128, help="new tokens of each row in the equal case")
    parser.add_argument("--mean", type=int, default=100, help="mean budget as lengths come (random model)")
    parser.add_argument("--longest", type=int, default=384, help="cap of the budgets as lengths come")
    parser.add_argument("--prompt", type=int, default=60, help="mean prompt length")
    parser.add_argument("--group", type=int, default=6, help="copies of each prompt")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)

    eos: int | None = None
    pad = PAD
    if args.model is None:
        model = demo_model()
    else:
        model = AutoModelForCausalLM.from_pretrained(args.model)
        tokenizer = AutoTokenizer.from_pretrained(args.model)
        eos = tokenizer.eos_token_id
        pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
    model = model.to(args.device, getattr(torch, args.dtype)).eval()
    prompts = random_prompts(args.batch, args.group, args.prompt, model.config.vocab_size, seed=1)

    def ours(budgets: Sequence[int], eos: int | None) -> Callable[[], int]:
        sampler = LocalSampler(
            model, eos_token_ids=[] if eos is None else [eos], pad_token_id=pad, max_batch=args.batch
        )
        requests = [Request(p, b, seed) for seed, (p, b) in enumerate(zip(prompts, budgets, strict=True))]
        return lambda: sum(len(completion.tokens) for completion in sampler.generate(requests))

    def theirs(budgets: Sequence[int], eos: int | None) -> Callable[[], int]:
        return lambda: kept_tokens(generate_rows(model, prompts, max(budgets), eos, pad), budgets, eos)

    equal = [args.tokens] * args.batch
    generator = torch.Generator().manual_seed(2)
    lengths = torch.empty(args.batch).exponential_(1 / args.mean, generator=generator)
    budgets = [min(args.longest, 1 + int(n)) for n in lengths] if eos is None else [args.longest] * args.batch
    result = {
        "machine": platform.processor() or platform.machine(),
        "cpus": os.cpu_count(),
        "device": torch.cuda.get_device_name() if args.device == "cuda" else "cpu",
        "dtype": args.dtype,
        "threads": args.threads,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "model": str(args.model or "random, demo shape"),
        "batch": args.batch,
        "group": args.group,
        "prompt": args.prompt,
        "repeats": args.repeats,
        "equal": {"tokens": args.tokens, **compare(ours(equal, None), theirs(equal, None), args.repeats, args.device)},
        "as_they_come": {
            "longest": args.longest,
            **compare(ours(budgets, eos), theirs(budgets, eos), args.repeats, args.device),
        },
    }
    print(json.dumps(result, indent=2))
    return result


if __name__ == "__main__":
    main()
