"""Tokens per second of :class:`attnrl.inference.sampler.LocalSampler` against ``model.generate``, in one run.

Two cases, each timed in interleaved repeats, the ratio being the median of the repeats' ratios:

- ``equal``: every row runs to the same budget, end-of-sequence disabled;
- ``as_they_come``: lengths as they occur. With ``--model`` (a checkpoint with a tokenizer) rows end at its own
  end-of-sequence token; without it, a random model gets budgets from a geometric distribution, and ``generate``,
  which has one budget for all rows, runs to the longest, as it must in practice.

Tokens are those a user keeps: what ``generate`` computes for rows that are over does not count, for either side.
Prompts have different lengths and come ``--group`` times each, as the rollouts of one problem do; with
``--group 1`` nothing can be shared.

    python benchmarks/sampler.py --batch 256 --tokens 128 --repeats 5

``--vllm`` times :class:`attnrl.inference.vllm_sampler.VllmSampler` too, on the same prompts in the same repeats, and
says whether all three decode the same greedily. It needs vLLM (docs/vllm.md) and a ``--model`` that vLLM takes.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

from attnrl.config.engines import VllmConfig
from attnrl.inference.sampler import LocalSampler
from attnrl.inference.vllm_engine import VllmEngine, open_engine
from attnrl.inference.vllm_sampler import VllmSampler
from attnrl.types import Request, Sampler, SamplingParams

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


def generate_rows(
    model: Any, prompts: Sequence[tuple[int, ...]], tokens: int, eos: int | None, pad: int, greedy: bool = False
) -> Any:
    """Sample with ``model.generate``, left-padded; return the new tokens [rows, steps]."""
    width = max(map(len, prompts))
    ids = torch.tensor([[pad] * (width - len(p)) + list(p) for p in prompts], device=model.device)
    valid = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=model.device)
    # As one would call it in a training loop; top_k=0 because the default of 50 is another distribution.
    out = model.generate(
        ids, attention_mask=valid, do_sample=not greedy, temperature=1.0, top_k=0, use_cache=True,
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


def compare(
    ours: Callable[[], int], theirs: Callable[[], int], vllm: Callable[[], int] | None, repeats: int, device: str
) -> dict[str, Any]:
    """Time them, interleaved; each returns the number of tokens a user keeps."""

    def rates(run: Callable[[], int]) -> tuple[float, float]:
        if device == "cuda":
            torch.cuda.synchronize()
        wall, cpu = time.perf_counter(), time.process_time()
        tokens = run()
        if device == "cuda":
            torch.cuda.synchronize()
        return tokens / (time.perf_counter() - wall), tokens / (time.process_time() - cpu)

    runs = [run for run in (ours, theirs, vllm) if run is not None]
    for run in runs:
        run()
    timed = [[rates(run) for run in runs] for _ in range(repeats)]
    pairs = [repeat[:2] for repeat in timed]
    ratios = [mine[0] / other[0] for mine, other in pairs]
    result = {
        "sampler_tokens_per_s": round(statistics.median(mine[0] for mine, _ in pairs)),
        "generate_tokens_per_s": round(statistics.median(other[0] for _, other in pairs)),
        "ratio": round(statistics.median(ratios), 2),
        "ratio_min": round(min(ratios), 2),
        "ratio_max": round(max(ratios), 2),
        # The same by the processor time used, which a busy machine disturbs less.
        "ratio_cpu_time": round(statistics.median(mine[1] / other[1] for mine, other in pairs), 2),
    }
    if vllm is not None:
        result |= {
            "vllm_tokens_per_s": round(statistics.median(third[0] for _, _, third in timed)),
            "vllm_to_generate": spread([third[0] / other[0] for _, other, third in timed]),
            "vllm_to_sampler": spread([third[0] / mine[0] for mine, _, third in timed]),
        }
    return result


def spread(ratios: Sequence[float]) -> dict[str, float]:
    return {
        "median": round(statistics.median(ratios), 2),
        "min": round(min(ratios), 2),
        "max": round(max(ratios), 2),
    }


@contextmanager
def vllm_engine(args: argparse.Namespace, model: Any) -> Iterator[VllmEngine | None]:
    if not args.vllm:
        yield None
        return
    longest = 2 * args.prompt + max(args.tokens, args.longest)
    settings = VllmConfig(sleep=False)
    with open_engine(model, args.model, max_length=longest, max_batch=args.batch, settings=settings) as engine:
        yield engine


def same_greedily(model: Any, engine: VllmEngine, prompts: Sequence[tuple[int, ...]], tokens: int, pad: int) -> bool:
    """Whether ``model.generate``, :class:`LocalSampler` and :class:`VllmSampler` choose the same tokens."""
    requests = [Request(prompt, tokens, 0) for prompt in prompts]
    local = LocalSampler(model, SamplingParams(0.0), eos_token_ids=[], pad_token_id=pad).generate(requests)
    vllm = VllmSampler(engine, SamplingParams(0.0), eos_token_ids=[]).generate(requests)
    rows = generate_rows(model, prompts, tokens, None, pad, greedy=True).tolist()
    return all(list(one.tokens) == list(other.tokens) == row for one, other, row in zip(local, vllm, rows, strict=True))


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
    parser.add_argument("--vllm", action="store_true", help="compare with vLLM too")
    args = parser.parse_args(argv)
    if args.vllm and args.model is None:
        parser.error("--vllm needs --model")
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

    def kept_by(sampler: Sampler, budgets: Sequence[int], engine: VllmEngine | None = None) -> Callable[[], int]:
        requests = [Request(p, b, seed) for seed, (p, b) in enumerate(zip(prompts, budgets, strict=True))]

        def run() -> int:
            if engine is not None:
                engine.llm.reset_prefix_cache()  # prompts are new in every step of training
            return sum(len(completion.tokens) for completion in sampler.generate(requests))

        return run

    def ours(budgets: Sequence[int], eos: int | None) -> Callable[[], int]:
        ends = [] if eos is None else [eos]
        return kept_by(LocalSampler(model, eos_token_ids=ends, pad_token_id=pad, max_batch=args.batch), budgets)

    def vllms(engine: VllmEngine | None, budgets: Sequence[int], eos: int | None) -> Callable[[], int] | None:
        ends = [] if eos is None else [eos]
        return None if engine is None else kept_by(VllmSampler(engine, eos_token_ids=ends), budgets, engine)

    def theirs(budgets: Sequence[int], eos: int | None) -> Callable[[], int]:
        return lambda: kept_tokens(generate_rows(model, prompts, max(budgets), eos, pad), budgets, eos)

    equal = [args.tokens] * args.batch
    generator = torch.Generator().manual_seed(2)
    drawn = torch.empty(args.batch).exponential_(1 / args.mean, generator=generator)
    budgets = [min(args.longest, 1 + int(n)) for n in drawn] if eos is None else [args.longest] * args.batch
    result: dict[str, Any] = {
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
    }
    with vllm_engine(args, model) as engine:
        for name, setting, lengths, end in (
            ("equal", {"tokens": args.tokens}, equal, None),
            ("as_they_come", {"longest": args.longest}, budgets, eos),
        ):
            runs = ours(lengths, end), theirs(lengths, end), vllms(engine, lengths, end)
            result[name] = {**setting, **compare(*runs, args.repeats, args.device)}
        if engine is not None:
            result["same_greedily"] = same_greedily(model, engine, prompts, args.tokens, pad)
    print(json.dumps(result, indent=2))
    return result


if __name__ == "__main__":
    main()
