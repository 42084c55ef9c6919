#!/usr/bin/env python3
"""Check attnrl on a GPU, in parts: correctness of kernels, times, peak memory, and short runs.

    python scripts/gpu_check.py --src src --out OUT [--device cuda] [--budget 700] [--parts env,triton] [--tiny]

Each part runs in a process of its own with a time limit and ends in one JSON line. A part that fails, hangs or runs out
of memory has ``"ok": false``; the next part runs all the same. A part prints each number as soon as the number exists,
so a time limit loses later numbers only. ``--device cpu --tiny`` checks the script itself.
"""

import argparse
import contextlib
import gc
import json
import math
import os
import random
import statistics
import subprocess
import sys
import time
import traceback

from attnrl.types import SamplingParams

PARTS = {  # in order of worth; seconds each may take
    "env": 25,
    "triton": 60,
    "ledger": 75,
    "flex": 75,
    "fci": 60,
    "tree": 75,
    "sampler": 90,
    "parity": 45,
    "half": 80,
    "suite": 60,
    "continuous": 40,
}
A = argparse.ArgumentParser()
A.add_argument("--src", default=os.environ.get("ATTNRL_SRC", "attnrl_src/src"))
A.add_argument("--out", default=os.environ.get("OUT", "gpu_check_out"))
A.add_argument("--device", default="cuda")
A.add_argument("--budget", type=float, default=700)
A.add_argument("--parts", default=",".join(PARTS))
A.add_argument("--tiny", action="store_true")
A.add_argument("--part")
args = A.parse_args()
TINY, DEV = args.tiny, args.device
NUMBERS: dict = {}


def say(**numbers):
    """Keep numbers and print them at once."""
    NUMBERS.update(numbers)
    print("PARTIAL " + json.dumps(numbers, default=str), flush=True)


def cuda():
    return DEV.startswith("cuda")


def sync():
    if cuda():
        import torch

        torch.cuda.synchronize()


@contextlib.contextmanager
def peak(name):
    """Seconds and peak GiB (above what was there before) of a block, as NAME_s and NAME_gib; OOM is a number too."""
    import torch

    gc.collect()
    if cuda():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        base = torch.cuda.memory_allocated()
    sync()
    start = time.perf_counter()
    try:
        yield
        sync()
        found = {f"{name}_s": round(time.perf_counter() - start, 4)}
        if cuda():
            found[f"{name}_gib"] = round((torch.cuda.max_memory_allocated() - base) / 2**30, 3)
        say(**found)
    except RuntimeError as error:
        if "out of memory" not in str(error).lower():
            raise
        say(**{f"{name}_oom": str(error)[:160]})
        if cuda():
            torch.cuda.empty_cache()


def timed(run, repeats=3):
    run()
    times = []
    for _ in range(repeats):
        sync()
        start = time.perf_counter()
        run()
        sync()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def qwen2(size, vocab=None, dtype="bfloat16"):
    """A random Qwen2 of the shape of 0.5B or 1.5B."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    shape = {"0.5b": (896, 4864, 24, 14, 2), "1.5b": (1536, 8960, 28, 12, 2)}[size]
    if TINY:
        shape = (64, 128, 2, 4, 2)
    hidden, mlp, layers, heads, kv = shape
    config = Qwen2Config(
        vocab_size=vocab or (512 if TINY else 151936),
        hidden_size=hidden,
        intermediate_size=mlp,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv,
        max_position_embeddings=65536,
        tie_word_embeddings=size == "0.5b",
        eos_token_id=None,
        bos_token_id=None,
        pad_token_id=0,
    )
    former = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, dtype))
    try:
        with torch.device(DEV):
            model = Qwen2ForCausalLM(config)
    finally:
        torch.set_default_dtype(former)
    return model.eval()


def forest(vocab, prompts, prompt_len, trunk_len, trunks=6, points=2, samples=2, seed=0):
    """Prompts and responses as AttnRL grows them: trunks, and continuations from points of each."""
    rng = random.Random(seed)

    def draw(n):
        return [rng.randrange(3, vocab) for _ in range(n)]

    out = []
    for _ in range(prompts):
        prompt = draw(prompt_len)
        for _ in range(trunks):
            trunk = draw(rng.randrange(trunk_len // 2, trunk_len))
            out.append((prompt, trunk))
            for point in range(points):
                cut = len(trunk) * (point + 1) // 4
                out += [
                    (prompt, trunk[:cut] + draw(rng.randrange(trunk_len // 2, trunk_len) - cut // 2))
                    for _ in range(samples)
                ]
    return out


def env():
    import importlib
    import shutil

    import torch

    found = {"python": sys.version.split()[0], "torch": torch.__version__}
    for name in ("transformers", "triton", "pydantic", "math_verify", "pyarrow", "typer", "rich", "vllm", "attnrl"):
        try:
            found[name] = getattr(importlib.import_module(name), "__version__", "yes")
        except Exception as error:
            found[name] = f"MISSING {type(error).__name__}: {error}"[:120]
    found |= {tool: bool(shutil.which(tool)) for tool in ("gcc", "nvcc")}
    if cuda():
        p = torch.cuda.get_device_properties(0)
        found |= {"gpu": p.name, "gib": round(p.total_memory / 2**30, 1), "cudnn": torch.backends.cudnn.version()}
        n = 1024 if TINY else 8192
        a = torch.randn(n, n, device=DEV, dtype=torch.bfloat16)
        found["bf16_tflops"] = round(2 * n**3 / timed(lambda: a @ a) / 1e12, 1)
        b = torch.empty(2**28, device=DEV)
        c = torch.empty_like(b)
        found["copy_tb_s"] = round(2 * b.nbytes / timed(lambda: c.copy_(b)) / 1e12, 2)
    say(**found)


def triton():
    """Native column sums against a fp64 computation on the CPU, over dtypes, heads, windows, soft caps, odd lengths."""
    import torch

    from attnrl.fci.attention import LayerAttention, attend
    from attnrl.fci.columns import column_sums
    from attnrl.fci.layout import Span, StepLayout

    worst, cases = {}, 0
    dims = (16, 64) if TINY else (16, 24, 64, 80, 96, 128, 192, 256)
    for D in dims:
        for dtype in (torch.bfloat16, torch.float32):
            for window, softcap, T in ((None, None, 517), (64, None, 300), (None, 20.0, 129)):
                g = torch.Generator().manual_seed(D + T)
                q, k = (torch.randn(1, T, h, D, generator=g).to(dtype).transpose(1, 2) for h in (4, 2))
                starts = tuple(range(11, T, 17))
                span = Span(0, 0, T, starts)
                lay = StepLayout.build([span], 1, T, 4)
                exact = LayerAttention(q.double(), k.double(), k.double(), D**-0.5, window=window, softcap=softcap)
                _, lse = attend(exact, lay)
                a = (lay.weight_BT, lay.lo_BT, lay.hi_BT(window))
                want = column_sums(q.double(), k.double(), lse, *a, scaling=D**-0.5, softcap=softcap)
                got = column_sums(
                    q.to(DEV), k.to(DEV), lse.float().to(DEV), *(x.to(DEV) for x in a), scaling=D**-0.5, softcap=softcap
                )
                error = float((got.cpu().double() - want).abs().max() / want.abs().max())
                key = str(dtype)[6:]
                worst[key] = max(worst.get(key, 0.0), error if math.isfinite(error) else 9e9)
                cases += 1
                again = column_sums(
                    q.to(DEV), k.to(DEV), lse.float().to(DEV), *(x.to(DEV) for x in a), scaling=D**-0.5, softcap=softcap
                )
                assert torch.equal(got, again), "not the same bits"
    say(cases=cases, worst_relative_error=worst)
    if cuda():  # rows, beyond 2**31 elements of queries
        B, H, T, D = 1, 64, 270_000, 128
        q = torch.randn(B, T, H, D, device=DEV, dtype=torch.bfloat16).transpose(1, 2)
        k = torch.randn(B, T, 8, D, device=DEV, dtype=torch.bfloat16).transpose(1, 2)
        lo = torch.arange(T, device=DEV, dtype=torch.int32)[None]
        hi = (lo + 256).clamp_max(T)
        lse = torch.full((B, H, T), 8.0, device=DEV)
        w = torch.ones(B, T, device=DEV)
        with peak("over_2g_elements"):
            big = column_sums(q, k, lse, w, lo, hi, scaling=D**-0.5)
        s = (q[0, 63, -64:].float() @ k[0, 7, -64:].float().T * D**-0.5 - 8).exp().tril().sum(0)
        say(over_2g_error=float((big[0, 63, -64:] - s).abs().max() / s.max()))


def flex():
    """FlexAttention on trees: graphs, block masks, times, differences from float64."""
    import torch
    import torch._dynamo as dynamo

    from attnrl.fci.attention import LayerAttention
    from attnrl.fci.tree import TreeLayout
    from attnrl.fci.tree_attention import attend_blocks, attend_tree
    from attnrl.fci.tree_blocks import compiled_flex

    H, G, D = (4, 2, 16) if TINY else (12, 2, 128)
    big = 700 if TINY else 16384

    def attend(layer, tree):
        """Attend along the tree; on a CPU compiled without inductor, which has no logsumexp and no backward there."""
        return attend_tree(layer, tree) if cuda() else attend_blocks(layer, tree, compiled_flex("eager"))

    def layer_and_tree(T, window, dtype, device=DEV):
        generator = torch.Generator().manual_seed(0)
        cut = T // 3
        tree = TreeLayout.build([(0, cut), (cut, 2 * cut), (2 * cut, T)], [None, 0, 0])
        tensors = [torch.randn(1, T, h, D, generator=generator).to(device, dtype).transpose(1, 2) for h in (H, G, G)]
        return LayerAttention(*(x.requires_grad_() for x in tensors), D**-0.5, window=window), tree

    def once(T, window=None, dtype=torch.bfloat16, grad=True):
        layer, tree = layer_and_tree(T, window, dtype)
        grad = grad and cuda()
        with torch.set_grad_enabled(grad):
            out, lse = attend(layer, tree)
            tensors = (layer.query_BHTD, layer.key_BGTD, layer.value_BGTE)
            grads = torch.autograd.grad((out.float() ** 2).sum(), tensors) if grad else ()
        return [x.detach().float().cpu() for x in (out, lse, *grads)]

    def graphs():
        return dynamo.utils.counters["stats"].get("unique_graphs", 0)

    with peak("first_forward"):
        once(big - 7, grad=False)
    with peak("first_backward"):
        once(big - 7)
    say(graphs_after_two=graphs())
    for dtype in (torch.bfloat16, torch.float32):
        worst = {}
        for T, window in ((1000, None), (1000, 100), (517, 300)):
            got = once(T, window, dtype)
            layer, tree = layer_and_tree(T, window, dtype, "cpu")
            tensors = [
                x.detach().double().requires_grad_() for x in (layer.query_BHTD, layer.key_BGTD, layer.value_BGTE)
            ]
            out, lse = attend_tree(LayerAttention(*tensors, D**-0.5, window=window), tree)
            exact = [out, lse, *torch.autograd.grad((out**2).sum(), tensors)]
            for name, x, y in zip(("output", "lse", "dq", "dk", "dv"), got, exact, strict=False):
                error = float((x.double() - y.detach()).abs().max() / y.detach().abs().max())
                worst[name] = max(worst.get(name, 0.0), error)
        say(**{f"worst_relative_error_{str(dtype)[6:]}": worst})
    before, start = graphs(), time.perf_counter()
    for T in (90, 200, 127, 600) if TINY else (90, 2048, 1000, 128, 3001, 127, 256, 5000, 16384):
        for window in (None, 256):
            once(T, window, grad=False)
            once(T, window)
    say(lengths_s=round(time.perf_counter() - start, 2), graphs_of_lengths=graphs() - before)

    layer, tree = layer_and_tree(big, None, torch.bfloat16)

    def forward():
        with torch.no_grad():
            attend(layer, tree)

    say(forward_16k_s=timed(forward, 10))
    if cuda():
        say(both_16k_s=timed(lambda: attend(layer, tree)[0].sum().backward(), 10))
    for T in (300, 600) if TINY else (16384, 32768):
        tree = TreeLayout.build([(0, 100), (100, T)], [None, 0])
        for window in (None, 512):
            tree.blocks(window and window + 1, torch.device(DEV))
            with peak(f"block_mask_{T}_{window}"):
                tree.blocks(window, torch.device(DEV))


def fci():
    """1.5B shape: forward with log-probs, with FCI, and with eager attention (8k), whose matrices dense FCI needs."""
    import torch

    from attnrl.local.logprobs import token_logprobs
    from attnrl.local.packing import pack_rows, pack_trees
    from attnrl.method.measures import MEASURES, reduce_max

    model = qwen2("1.5b")
    for T in (300, 600) if TINY else (8192, 32768):
        ids = [[random.Random(0).randrange(500) for _ in range(T)]]
        for way, pack in (("rows", next(pack_rows(ids, T))), ("tree", next(pack_trees(ids, T)))):
            starts = {0: list(range(64, T, 100))}

            def run(with_fci, pack=pack, starts=starts):
                with torch.no_grad(), pack.attending(model, starts if with_fci else None, 4) as captured:
                    token_logprobs(model, pack, [64], 1.0)
                if with_fci:
                    captured.of_steps(MEASURES["fci"](reduce_max))[pack.last[0]].tolist()

            run(False)
            run(True)
            for name, on in (("plain", False), ("fci", True)):
                with peak(f"{way}_{T}_{name}"):
                    run(on)
        if T <= 8192:
            model.config._attn_implementation = "eager"
            with peak(f"eager_{T}"), torch.no_grad():
                token_logprobs(model, next(pack_rows(ids, T)), [64], 1.0)
            model.config._attn_implementation = "sdpa"


def chunked_dots(a, b, size=2**24):
    """Dot products aa, ab, bb in float64, a part at a time."""
    aa = ab = bb = 0.0
    for x, y in zip(a.split(size), b.split(size), strict=False):
        x, y = x.double(), y.double()
        aa += float(x @ x)
        ab += float(x @ y)
        bb += float(y @ y)
    return aa, ab, bb


def tree():
    """0.5B shape: one policy update on trees and path by path; time, peak memory, cosine of the gradients."""
    import torch

    from attnrl.config.method import BranchingConfig
    from attnrl.config.schema import LossConfig, OptimizerConfig
    from attnrl.local.policy import LocalPolicy
    from attnrl.types import TrainingRow

    model = qwen2("0.5b", dtype="bfloat16" if cuda() else "float32")
    vocab = model.config.vocab_size
    pairs = forest(vocab, 2, 30 if TINY else 200, 40 if TINY else 1500)
    rng = random.Random(1)
    rows = [
        TrainingRow(
            tuple(p),
            tuple(r),
            tuple([-math.log(vocab)] * len(r)),
            tuple([-math.log(vocab)] * len(r)),
            tuple([rng.choice((-1.0, 1.0))] * len(r)),
        )
        for p, r in pairs
    ]
    tokens = sum(len(r.prompt) + len(r.response) for r in rows)
    say(paths=len(rows), path_tokens=tokens)
    grads = {}
    for way in ("tree", "none"):
        settings = OptimizerConfig(mini_batches=1, micro_batch_tokens=500 if TINY else 16384)
        policy = LocalPolicy(
            model,
            None,
            loss=LossConfig(kl=0.0),
            optimizer=settings,
            branching=BranchingConfig(),
            temperature=1.0,
            packing=way,
        )
        masters = list(policy.optimizer.masters.values())
        model.train()
        total = float(sum(len(r.response) for r in rows))

        def clear(masters=masters):
            for master in masters:
                master.grad = None
            for parameter in model.parameters():
                parameter.grad = None

        policy._accumulate(rows, total)
        clear()  # compiles
        with peak(f"gradients_{way}"):
            values = policy._accumulate(rows, total)
        say(**{f"computed_ratio_{way}": values["packing/computed_ratio"]})
        grads[way] = torch.cat([m.grad.flatten().float().cpu() for m in masters if m.grad is not None])
        say(
            **{
                f"mfu_{way}": round(
                    6
                    * model.num_parameters()
                    * tokens
                    * values["packing/computed_ratio"]
                    / NUMBERS[f"gradients_{way}_s"]
                    / 989e12,
                    3,
                )
            }
        )
        clear()
        if len(grads) == 2:
            aa, ab, bb = chunked_dots(grads["tree"], grads["none"])
            say(cosine=ab / math.sqrt(aa * bb), relative=math.sqrt(max(0.0, aa - 2 * ab + bb) / bb))
        with peak(f"update_{way}"):
            updated = policy.update(rows)
        say(**{f"micro_batch_tokens_{way}": updated["packing/micro_batch_tokens"]})
        say(
            **{
                f"score_{way}_s": timed(
                    lambda policy=policy: policy.score([r.prompt for r in rows], [r.response for r in rows]), 1
                )
            }
        )
        del policy, masters


def sampler():
    """0.5B shape: the local sampler against generate; launches a step; cuDNN's part."""
    import torch

    from attnrl.inference.sampler import LocalSampler
    from attnrl.types import Request

    model = qwen2("0.5b", dtype="bfloat16" if cuda() else "float32")
    B, N, P = (4, 12, 10) if TINY else (256, 256, 128)
    rng = random.Random(0)
    prompts = [tuple(rng.randrange(3, 500) for _ in range(P)) for _ in range(-(-B // 6)) for _ in range(6)][:B]
    requests = [Request(p, N, i) for i, p in enumerate(prompts)]
    local = LocalSampler(model, eos_token_ids=(), pad_token_id=0, max_batch=B)

    def ours():
        local.generate(requests)

    with peak("local_first"):
        ours()
    with peak("local"):
        ours()
    say(local_tokens_s=round(B * N / NUMBERS["local_s"]))
    if cuda():
        torch.backends.cuda.enable_cudnn_sdp(False)
        with peak("local_no_cudnn"):
            ours()
        torch.backends.cuda.enable_cudnn_sdp(True)
        from torch.profiler import ProfilerActivity, profile

        few = [Request(p, 32, i) for i, p in enumerate(prompts)]
        with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as prof:
            local.generate(few)
            sync()
        events = prof.key_averages()
        busy = sum(e.self_device_time_total for e in events) / 1e6
        launches = sum(e.count for e in events if "LaunchKernel" in e.key)
        syncs = sum(
            e.count
            for e in events
            if e.key in ("cudaStreamSynchronize", "cudaDeviceSynchronize", "aten::_local_scalar_dense")
        )
        top = sorted((e for e in events if e.self_device_time_total), key=lambda e: -e.self_device_time_total)[:8]
        say(
            launches_per_step=round(launches / 32),
            syncs_per_step=round(syncs / 32, 2),
            gpu_busy_s_of_32_steps=round(busy, 3),
            top=[(e.key[:60], round(e.self_device_time_total / 1e3, 1)) for e in top],
        )
    lone = requests[:8]
    with peak("local_8_rows"):
        local.generate(lone)
    say(local_8_rows_tokens_s=round(len(lone) * N / NUMBERS["local_8_rows_s"]))
    ids = torch.tensor(prompts, device=DEV)
    with peak("generate"), torch.no_grad():
        model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=N,
            min_new_tokens=N,
            do_sample=True,
            top_k=0,
            pad_token_id=0,
        )
    say(generate_tokens_s=round(B * N / NUMBERS["generate_s"]))


def continuous():
    """0.5B shape: transformers' continuous batching against the local sampler, on fewer and shorter responses."""
    from transformers import GenerationConfig

    from attnrl.inference.sampler import LocalSampler
    from attnrl.types import Request

    model = qwen2("0.5b", dtype="bfloat16" if cuda() else "float32")
    B, N, P = (4, 12, 10) if TINY else (64, 64, 128)
    rng = random.Random(0)
    prompts = [tuple(rng.randrange(3, 500) for _ in range(P)) for _ in range(B)]
    local = LocalSampler(model, eos_token_ids=(), pad_token_id=0, max_batch=B)
    requests = [Request(p, N, i) for i, p in enumerate(prompts)]
    local.generate(requests)
    with peak("local"):
        local.generate(requests)
    say(local_tokens_s=round(B * N / NUMBERS["local_s"]))
    if not cuda():
        return say(skipped="continuous batching needs a GPU")
    for name, n in (("continuous_4_tokens", 4), ("continuous", N)):
        config = GenerationConfig(max_new_tokens=n, do_sample=True, eos_token_id=-1, pad_token_id=0)
        with peak(name):
            done = model.generate_batch(inputs=[list(p) for p in prompts], generation_config=config, progress_bar=False)
        made = sum(len(o.generated_tokens) for o in done.values())
        say(**{f"{name}_tokens": made, f"{name}_tokens_s": round(made / NUMBERS[f"{name}_s"])})


def attnrl(*arguments, limit=60):
    start = time.perf_counter()
    run = subprocess.run(
        [sys.executable, "-c", "from attnrl.cli.app import main; raise SystemExit(main())", *arguments],
        capture_output=True,
        text=True,
        timeout=limit * (4 if TINY else 1),
    )
    return round(time.perf_counter() - start, 1), run.returncode, (run.stdout + run.stderr)[-600:]


def rows_of(directory):
    with open(os.path.join(directory, "metrics.jsonl")) as file:
        return [json.loads(line) for line in file]


def phases(row):
    return {
        k: round(v, 3)
        for k, v in row.items()
        if k.startswith("time/") or k in ("tokens/generated", "grad_norm", "nonfinite/mini_batches", "mismatch/max")
    }


def ledger():
    """`attnrl train` on the shipped model, fp32 and bf16, and a resume; sampler's against policy's log-probs."""
    for dtype in ("float32", "bfloat16"):
        where = os.path.join(args.out, f"runs_{dtype}")
        common = [
            "train",
            "attnrl",
            f"output_dir={where}",
            f"device={DEV}",
            f"dtype={dtype}",
            "prompts=4" if TINY else "prompts=16",
            "eval.problems=8",
            "eval.samples=2",
            "sampling.score_continuations=true",
            "checkpoint.every=2",
        ]
        seconds, code, tail = attnrl(*common, "steps=2" if dtype == "float32" else "steps=1")
        say(**{f"{dtype}_s": seconds, f"{dtype}_rc": code})
        if code:
            say(**{f"{dtype}_tail": tail})
            continue
        say(**{f"{dtype}_phases": phases(rows_of(where)[-1])})
        if dtype == "float32":
            seconds, code, tail = attnrl(*common, "steps=3")
            say(
                resume_s=seconds,
                resume_rc=code,
                resume_steps=[int(r["step"]) for r in rows_of(where)],
                resume_tail=tail if code else "",
            )


def parity():
    """The ledger model's log-probs, entropy and FCI on CPU and on the device, as trees and as rows, fp32 and bf16."""
    import torch

    from attnrl.config.method import BranchingConfig
    from attnrl.config.schema import LossConfig, OptimizerConfig
    from attnrl.inference.sampler import build_sampler
    from attnrl.local.loading import load_model, load_tokenizer
    from attnrl.local.model_names import find_model
    from attnrl.local.policy import LocalPolicy
    from attnrl.method.steps import Steps
    from attnrl.types import Request

    directory = find_model("ledger").directory
    tokenizer = load_tokenizer(directory)
    results = {}
    pairs = forest(60, 2, 20, 60)
    for name, device, dtype, packing in (
        ("cpu", "cpu", "float32", "tree"),
        ("tree", DEV, "float32", "tree"),
        ("rows", DEV, "float32", "none"),
        ("tree_bf16", DEV, "bfloat16", "tree"),
        ("rows_bf16", DEV, "bfloat16", "none"),
    ):
        model = load_model(directory, tokenizer, device=torch.device(device), dtype=dtype).model
        policy = LocalPolicy(
            model,
            None,
            loss=LossConfig(kl=0.0),
            optimizer=OptimizerConfig(),
            branching=BranchingConfig(),
            temperature=1.0,
            packing=packing,
        )
        made = [Steps(tuple(range(0, len(r), 6)), len(r)) for _, r in pairs]
        scores = policy.score([p for p, _ in pairs], [r for _, r in pairs], made)
        results[name] = scores
        if name != "cpu":
            worst = {}
            for what in ("logprobs", "entropy", "influence"):
                worst[what] = max(
                    (
                        abs(a - b)
                        for x, y in zip(results["cpu"], scores, strict=False)
                        for a, b in zip(getattr(x, what), getattr(y, what), strict=False)
                    ),
                    default=None,
                )
            say(**{f"{name}_against_cpu": worst})
        if name in ("cpu", "tree"):
            sampler = build_sampler(model, tokenizer, SamplingParams(), max_batch=32)
            results["drawn_" + name] = [
                c.tokens for c in sampler.generate([Request(tuple(p), 60, i) for i, (p, _) in enumerate(pairs)])
            ]
    same = sum(a == b for a, b in zip(results["drawn_cpu"], results["drawn_tree"], strict=False))
    say(same_responses=f"{same} of {len(pairs)}")


def half():
    """`attnrl train` on a random model with the body of a 0.5B and the ledger's tokenizer: phases, tokens/s, MFU."""
    from attnrl.local.loading import load_tokenizer
    from attnrl.local.model_names import find_model

    where = os.path.join(args.out, "half_model")
    model = qwen2("0.5b", vocab=62, dtype="bfloat16")
    model.save_pretrained(where)
    load_tokenizer(find_model("ledger").directory).save_pretrained(where)
    parameters = model.num_parameters()
    del model
    gc.collect()
    runs = os.path.join(args.out, "runs_half")
    os.environ["PYTHONPATH"] = (
        os.path.dirname(os.path.abspath(__file__)) + os.pathsep + os.environ.get("PYTHONPATH", "")
    )
    seconds, code, tail = attnrl(
        "train",
        "attnrl",
        f"model={where}",
        f"output_dir={runs}",
        f"device={DEV}",
        "dtype=bfloat16",
        "steps=2",
        "grader=gpu_check_reward:reward",
        "task=ledger",
        "prompts=4" if TINY else "prompts=32",
        "eval.problems=4",
        "eval.samples=1",
        "eval.every=100",
        "checkpoint.every=100",
        "sampling.score_continuations=true",
        "loss.kl=0.001",
        "sampling.max_new_tokens=512",
        limit=70,
    )
    say(train_s=seconds, rc=code, parameters=parameters)
    if code:
        return say(tail=tail)
    row = rows_of(runs)[-1]
    say(
        phases=phases(row),
        response_length=row.get("response_length"),
        gpu_tokens_s=row.get("time/generated_tokens_per_second"),
    )


def suite():
    """The project's own tests of the kernel, natively, where the tests were carried."""
    tests = os.path.join(os.path.dirname(os.path.abspath(args.src)), "tests", "fci", "test_triton_columns.py")
    if not os.path.exists(tests):
        return say(skipped="no tests here")
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "--noconftest", "-p", "no:cacheprovider", "-q", "-x", f"{tests}::TestSums"],
        capture_output=True,
        text=True,
        timeout=55,
    )
    say(rc=run.returncode, tail=(run.stdout + run.stderr)[-400:])


def child(name):
    sys.path.insert(0, os.path.abspath(args.src))
    ok = True
    try:
        globals()[name]()
    except BaseException as error:
        ok = False
        NUMBERS.update(
            error=f"{type(error).__name__}: {error}"[:500], where=traceback.format_exc().strip().splitlines()[-8:]
        )
    print("RESULT " + json.dumps({"part": name, "ok": ok, **NUMBERS}, default=str), flush=True)


def main():
    os.makedirs(args.out, exist_ok=True)
    began, lines = time.time(), []
    env_vars = {
        **os.environ,
        "PYTHONPATH": os.path.abspath(args.src) + os.pathsep + os.environ.get("PYTHONPATH", ""),
        "PYTHONUNBUFFERED": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
    }
    for name in args.parts.split(","):
        left = args.budget - (time.time() - began)
        if left < 10:
            lines.append({"part": name, "ok": False, "error": "no time left"})
            print(json.dumps(lines[-1]), flush=True)
            continue
        limit, start, numbers, result = min(PARTS[name] * (4 if TINY else 1), left), time.time(), {}, None
        command = [
            sys.executable,
            os.path.abspath(__file__),
            "--part",
            name,
            "--src",
            args.src,
            "--out",
            args.out,
            "--device",
            DEV,
            *(["--tiny"] if TINY else []),
        ]
        log = os.path.join(args.out, f"{name}.log")
        with open(log, "w") as file:
            process = subprocess.Popen(
                command, stdout=file, stderr=subprocess.STDOUT, env=env_vars, start_new_session=True
            )
            try:
                process.wait(limit)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, 9)
                process.wait()
        with open(log, errors="replace") as file:
            text = file.read()
        for line in text.splitlines():
            if line.startswith("PARTIAL "):
                with contextlib.suppress(ValueError):
                    numbers |= json.loads(line[8:])
            elif line.startswith("RESULT "):
                with contextlib.suppress(ValueError):
                    result = json.loads(line[7:])
        if result is None:
            tail = text[-500:]
            result = {
                "part": name,
                "ok": False,
                "error": f"ended with {process.returncode} after {limit:.0f} s at most",
                **numbers,
                "tail": tail,
            }
        result["seconds"] = round(time.time() - start, 1)
        lines.append(result)
        print(json.dumps(result), flush=True)
        with open(os.path.join(args.out, "results.jsonl"), "a") as file:
            file.write(json.dumps(result) + "\n")
    print(
        json.dumps(
            {
                "total_s": round(time.time() - began, 1),
                "ok": [line["part"] for line in lines if line["ok"]],
                "failed": [line["part"] for line in lines if not line["ok"]],
            }
        )
    )


if __name__ == "__main__":
    child(args.part) if args.part else main()
