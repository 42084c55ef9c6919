"""Time, memory and error of FCI against the attention forward and the dense formulation, in one run.

``layer``: one attention layer (12 query heads, 2 key heads, d = 128 by default) at several lengths:

- ``forward``: torch's sdpa, the baseline of the cost;
- ``dense``: eq. 4-6 as they stand, from a materialised H x T x T matrix of probabilities;
- ``ours``: what a capture adds to the forward, the column sums from the forward's own logsumexp;
- ``captured_forward``: the forward under capture, which also returns the logsumexp.

Times are medians of interleaved repeats; ratios are medians of the repeats' own ratios. Peak memory is that of a
process of its own for each (CPU, one thread) or of the allocator (CUDA), above what the inputs take. Errors are the
largest difference to a float64 computation, over all heads and steps, relative to the largest value.

``model`` (``--model``): forward and log-probs of a whole decoder, of the shape of a 1.5B Qwen2 by default, with and
without FCI, and with the dense formulation in every layer.

    python benchmarks/fci.py --tokens 1024 2048 4096 8192
    python benchmarks/fci.py --device cuda --dtype bfloat16 --tokens 8192 32768 --model
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
import transformers
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from attnrl.fci import CaptureSpec, capture
from attnrl.fci.attention import LayerAttention, attend
from attnrl.fci.columns import column_sums
from attnrl.fci.layout import Span, StepLayout
from attnrl.local.logprobs import token_logprobs
from attnrl.local.packing import pack_rows
from attnrl.method.influence import forward_context_influence, step_attention

DELTA = 4
PARTS = ("forward", "captured_forward", "ours", "dense")


class Layer:
    """The inputs of one layer, and each thing that is timed as a method of its name."""

    def __init__(self, args: argparse.Namespace, tokens: int) -> None:
        generator = torch.Generator().manual_seed(0)
        shape = (1, args.heads, tokens, args.head_dim)
        dtype = getattr(torch, args.dtype)
        # As transformers hands them over: transposed views of [B, T, H, D].
        self.query, self.key, self.value = (
            torch.randn(1, tokens, heads, args.head_dim, generator=generator).to(args.device, dtype).transpose(1, 2)
            for heads in (args.heads, args.key_heads, args.key_heads)
        )
        assert self.query.shape == shape
        self.starts = tuple(range(tokens // 32, tokens, args.step))
        self.layer = LayerAttention(self.query, self.key, self.value, args.head_dim**-0.5)
        span = Span(0, 0, tokens, self.starts)
        self.layout = StepLayout.build([span], 1, tokens, DELTA, self.query.device)
        self.lse = torch.empty(0)

    def forward(self) -> Tensor:
        return scaled_dot_product_attention(self.query, self.key, self.value, is_causal=True, enable_gqa=True)

    def captured_forward(self) -> Tensor:
        output, self.lse = attend(self.layer, self.layout)
        return output

    def ours(self) -> Tensor:
        if not self.lse.numel():
            self.captured_forward()
        layout = self.layout
        sums = column_sums(
            self.query, self.key, self.lse, layout.weight_BT, layout.lo_BT, layout.hi_BT(None),
            scaling=self.layer.scaling,
        )  # fmt: skip
        return layout.step_means(sums)

    def dense(self) -> Tensor:
        tokens, groups = self.query.shape[2], self.query.shape[1] // self.key.shape[1]
        key = self.key.repeat_interleave(groups, 1)
        scores = (self.query @ key.mT) * self.layer.scaling
        causal = torch.ones(tokens, tokens, dtype=torch.bool, device=scores.device).tril()
        probs = scores.masked_fill_(~causal, -torch.inf).softmax(-1, dtype=torch.float32)
        return forward_context_influence(step_attention(probs, self.starts), DELTA)[0]

    def oracle(self) -> Tensor:
        """Eq. 4-5 in float64, some rows at a time so that it fits."""
        tokens, groups = self.query.shape[2], self.query.shape[1] // self.key.shape[1]
        edges = [*self.starts, tokens]
        influence = torch.zeros(self.query.shape[1], len(self.starts), dtype=torch.float64)
        query, key = self.query[0].cpu().double(), self.key[0].cpu().double().repeat_interleave(groups, 0)
        for j in range(DELTA, len(self.starts)):
            rows = torch.arange(edges[j], edges[j + 1])
            scores = query[:, edges[j] : edges[j + 1]] @ key[:, : edges[j + 1]].mT * self.layer.scaling
            scores.masked_fill_(rows[:, None] < torch.arange(edges[j + 1]), -torch.inf)
            mean = scores.softmax(-1).mean(1)
            for k in range(j - DELTA + 1):
                influence[:, k] += mean[:, edges[k] : edges[k + 1]].mean(-1)
        return influence


def measure(run: Callable[[], Any], device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def peak_memory(args: argparse.Namespace, tokens: int, part: str) -> int:
    """Bytes that one part takes at its peak, above its inputs."""
    if args.device == "cuda":
        layer = Layer(args, tokens)
        layer.captured_forward()
        return device_peak(getattr(layer, part))
    # One thread: how often a second one starts, and keeps a tile of its own, is chance.
    command = [sys.executable, __file__, "--peak-of", part, "--tokens", str(tokens), "--threads", "1"]
    for name in ("heads", "key_heads", "head_dim", "step", "dtype"):
        command += [f"--{name.replace('_', '-')}", str(getattr(args, name))]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def device_peak(run: Callable[[], Any]) -> int:
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def own_peak(args: argparse.Namespace) -> int:
    """The same in this process (Linux): how far its resident set rises."""
    small, layer = Layer(args, 128), Layer(args, args.tokens[0])
    small.dense(), small.ours()  # what the first call of anything takes
    if args.peak_of == "ours":
        layer.captured_forward()
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the peak starts again from here
    before = resident("VmRSS")
    getattr(layer, args.peak_of)()
    return max(0, resident("VmHWM") - before)


def resident(field: str) -> int:
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(field))


def layer_row(args: argparse.Namespace, tokens: int) -> dict[str, Any]:
    layer = Layer(args, tokens)
    parts = [part for part in PARTS if part != "dense" or tokens <= args.dense_up_to]
    times: dict[str, list[float]] = {part: [] for part in parts}
    with torch.no_grad():
        for part in parts:
            getattr(layer, part)()
        for _ in range(args.repeats):
            for part in parts:
                times[part].append(measure(getattr(layer, part), args.device))
        ours, expected = layer.ours().double().cpu(), layer.oracle()

    def ratio(part: str, other: str) -> dict[str, float] | None:
        if part not in times or other not in times:
            return None
        ratios = [one / two for one, two in zip(times[part], times[other], strict=True)]
        return {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)}

    return {
        "tokens": tokens,
        "steps": len(layer.starts),
        "seconds": {part: statistics.median(values) for part, values in times.items()},
        "ours_to_forward": ratio("ours", "forward"),
        "captured_forward_to_forward": ratio("captured_forward", "forward"),
        "dense_to_ours": ratio("dense", "ours"),
        "dense_to_forward": ratio("dense", "forward"),
        "peak_mib": {part: peak_memory(args, tokens, part) / 2**20 for part in parts},
        "largest_relative_error": ((ours - expected).abs().max() / expected.abs().max().clamp_min(1e-30)).item(),
    }


def dense_attention(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **kwargs: Any) -> Any:
    """sdpa and, beside it, the step-to-step attention from the materialised probabilities."""
    groups = query.shape[1] // key.shape[1]
    scores = (query @ key.repeat_interleave(groups, 1).mT) * kwargs["scaling"]
    tokens = query.shape[2]
    causal = torch.ones(tokens, tokens, dtype=torch.bool, device=scores.device).tril()
    probs = scores.masked_fill_(~causal, -torch.inf).softmax(-1, dtype=torch.float32)
    forward_context_influence(step_attention(probs, module.config.dense_starts), DELTA)
    return scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True).transpose(1, 2), None


def model_rows(args: argparse.Namespace) -> list[dict[str, Any]]:
    config = transformers.Qwen2Config(
        vocab_size=args.vocabulary,
        hidden_size=args.heads * args.head_dim,
        intermediate_size=args.intermediate,
        num_hidden_layers=args.layers,
        num_attention_heads=args.heads,
        num_key_value_heads=args.key_heads,
        max_position_embeddings=max(args.tokens),
        tie_word_embeddings=True,
        attn_implementation="sdpa",
    )
    torch.manual_seed(0)
    with torch.device(args.device):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=getattr(torch, args.dtype)).eval()
    transformers.AttentionInterface.register("benchmark_dense", dense_attention)
    return [model_row(args, model, tokens) for tokens in args.tokens]


def model_row(args: argparse.Namespace, model: Any, tokens: int) -> dict[str, Any]:
    prompt, starts = tokens // 32, list(range(tokens // 32, tokens, args.step))
    ids = torch.randint(0, args.vocabulary, (tokens,), generator=torch.Generator().manual_seed(1)).tolist()
    pack = next(pack_rows([ids], tokens))
    model.config.dense_starts = starts

    def plain() -> None:
        token_logprobs(model, pack, [prompt], 1.0)

    def with_fci() -> None:
        with capture(model, CaptureSpec([starts], [tokens], DELTA)) as captured:
            token_logprobs(model, pack, [prompt], 1.0)
        captured.influence()

    def dense() -> None:
        model.config._attn_implementation = "benchmark_dense"
        try:
            token_logprobs(model, pack, [prompt], 1.0)
        finally:
            model.config._attn_implementation = "sdpa"

    runs = {"plain": plain, "with_fci": with_fci}
    if tokens <= args.dense_up_to:
        runs["dense"] = dense
    times: dict[str, list[float]] = {name: [] for name in runs}
    with torch.no_grad():
        for run in runs.values():
            run()
        for _ in range(args.repeats):
            for name, run in runs.items():
                times[name].append(measure(run, args.device))
        peaks = {name: device_peak(run) / 2**20 for name, run in runs.items()} if args.device == "cuda" else {}
    grown = [one / two for one, two in zip(times["with_fci"], times["plain"], strict=True)]
    return {
        "tokens": tokens,
        "seconds": {name: statistics.median(values) for name, values in times.items()},
        "with_fci_to_plain": {"median": statistics.median(grown), "min": min(grown), "max": max(grown)},
        "peak_mib": peaks,
    }


def main(argv: Sequence[str] | None = None) -> dict[str, Any] | None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--tokens", type=int, nargs="+", default=[1024, 2048, 4096, 8192])
    parser.add_argument("--heads", type=int, default=12)
    parser.add_argument("--key-heads", type=int, default=2)
    parser.add_argument("--head-dim", type=int, default=128)
    parser.add_argument("--step", type=int, default=64, help="tokens of a reasoning step")
    parser.add_argument("--dense-up-to", type=int, default=8192, help="longest sequence for the dense formulation")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--model", action="store_true", help="also a whole model's forward and log-probs")
    parser.add_argument("--layers", type=int, default=28)
    parser.add_argument("--intermediate", type=int, default=8960)
    parser.add_argument("--vocabulary", type=int, default=151936)
    parser.add_argument("--peak-of", choices=PARTS, help=argparse.SUPPRESS)  # a child that measures its own memory
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    if args.peak_of:
        args.device = "cpu"
        with torch.no_grad():
            print(own_peak(args))
        return None
    result = {
        "machine": platform.processor() or platform.machine(),
        "device": torch.cuda.get_device_name() if args.device == "cuda" else "cpu",
        "dtype": args.dtype,
        "threads": args.threads,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "heads": [args.heads, args.key_heads, args.head_dim],
        "repeats": args.repeats,
        "layer": [layer_row(args, tokens) for tokens in args.tokens],
        "model": model_rows(args) if args.model else [],
    }
    print(json.dumps(result, indent=2))
    return result


if __name__ == "__main__":
    main()
