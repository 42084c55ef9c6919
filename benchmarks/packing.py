"""Training and scoring on packed trees against path by path, on forests that the recipe itself grows, in one run.

The forests are those that a few training steps of a recipe hand to the policy (``--recipe``; its own model samples
them, so nothing is made up). Then the policy's ``update`` and ``score`` are timed on the very same rows, with

- ``tree``: what paths have in common computed once (``optimizer.packing=tree``);
- ``paths``: each root-to-leaf path a row, padded to the longest of its micro-batch (``optimizer.packing=none``), the
  baseline, which is given rows sorted by length, so that it pads little.

The model is the recipe's, or with ``--hidden`` a random one of that width, to see larger matrices at work. Times are
medians of interleaved repeats, ratios medians of the repeats' own ratios. ``share_of_saving`` is the part of the
saving in tokens (padding not counted) that shows up as time: (1 - time ratio) / (1 - token ratio). ``gradient`` is
the relative difference of the two gradients of the whole batch. Peak memory is that of a process of its own for each,
above what it took before the update.

    python benchmarks/packing.py
    python benchmarks/packing.py --hidden 256 --layers 8 --problems 4
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from attnrl.config.load import load_config
from attnrl.config.schema import TrainConfig
from attnrl.data.run_data import load_run_data
from attnrl.inference.sampler import build_sampler
from attnrl.local.loading import build_policy, load_model, load_tokenizer
from attnrl.local.model_names import find_model
from attnrl.local.packing import pack_rows, pack_trees
from attnrl.local.policy import LocalPolicy
from attnrl.method.steps import Steps
from attnrl.rl.trainer import Trainer
from attnrl.types import TrainingRow

WAYS = {"tree": "tree", "paths": "none"}


class Recorder:
    """A policy that remembers what it was given last, and trains as it should."""

    def __init__(self, policy: LocalPolicy) -> None:
        self.policy = policy
        self.rows: Sequence[TrainingRow] = ()
        self.scored: tuple[Any, ...] = ()

    def score(
        self,
        prompts: Sequence[Sequence[int]],
        responses: Sequence[Sequence[int]],
        steps: Sequence[Steps | None] | None = None,
    ) -> Any:
        self.scored = (prompts, responses, steps)
        return self.policy.score(*self.scored)

    def update(self, rows: Sequence[TrainingRow]) -> Mapping[str, float]:
        self.rows = rows
        return self.policy.update(rows)


def grow(config: TrainConfig, steps: int) -> Recorder:
    """Train for ``steps`` steps and return what the policy was given in the last one."""
    torch.manual_seed(config.seed)
    directory = find_model(config.model).directory
    tokenizer = load_tokenizer(directory)
    model = load_model(directory, tokenizer, device=torch.device("cpu"), dtype=config.dtype).model
    limits = config.sampling
    sampler = build_sampler(model, tokenizer, limits.params, max_batch=limits.max_batch)
    recorder = Recorder(build_policy(config, model, None))
    data = load_run_data(config, tokenizer)
    with data.rewards as rewards:
        trainer = Trainer(
            config,
            sampler=sampler,
            rewards=rewards,
            policy=recorder,
            renderer=data.renderer,
            source=data.source,
        )
        for _ in range(steps):
            trainer.step()
    return recorder


def measured_model(config: TrainConfig, args: argparse.Namespace) -> PreTrainedModel:
    """The recipe's model, or a random Llama with its vocabulary."""
    directory = find_model(config.model).directory
    model = load_model(directory, load_tokenizer(directory), device=torch.device("cpu"), dtype=config.dtype).model
    if args.hidden is None:
        return model
    torch.manual_seed(0)
    heads = max(1, args.hidden // 64)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=model.config.vocab_size,
            hidden_size=args.hidden,
            intermediate_size=3 * args.hidden,
            num_hidden_layers=args.layers,
            num_attention_heads=heads,
            num_key_value_heads=heads,
            max_position_embeddings=model.config.max_position_embeddings,
        )
    ).eval()


def policies(config: TrainConfig, args: argparse.Namespace) -> dict[str, LocalPolicy]:
    """The same policy, once for each way of packing."""
    model = measured_model(config, args)
    found = {}
    for way, packing in WAYS.items():
        settings = config.optimizer
        if args.micro_batch_tokens is not None:
            settings = settings.model_copy(update={"micro_batch_tokens": args.micro_batch_tokens})
        sized = config.model_copy(update={"optimizer": settings})
        found[way] = build_policy(sized, copy.deepcopy(model), None, packing)
    return found


def gradient(policy: LocalPolicy, rows: Sequence[TrainingRow]) -> Tensor:
    """The gradient of the whole batch, all parameters end to end."""
    policy.optimizer.zero_grad()
    policy._accumulate(rows, sum(len(row.response) for row in rows))
    flat = torch.cat([parameter.grad.flatten().double() for parameter in policy.optimizer.masters.values()])
    policy.optimizer.zero_grad()
    return flat


def compare(work: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, Any]:
    """Time ``tree`` and ``paths``, interleaved."""
    times: dict[str, list[tuple[float, float]]] = {way: [] for way in WAYS}
    for way in WAYS:
        work[way]()
    for _ in range(repeats):
        for way in WAYS:
            wall, cpu = time.perf_counter(), time.process_time()
            work[way]()
            times[way].append((time.perf_counter() - wall, time.process_time() - cpu))
    ratios = [[tree[clock] / paths[clock] for tree, paths in zip(*times.values(), strict=True)] for clock in (0, 1)]
    return {
        "tree_s": round(statistics.median(wall for wall, _ in times["tree"]), 3),
        "paths_s": round(statistics.median(wall for wall, _ in times["paths"]), 3),
        "ratio": round(statistics.median(ratios[0]), 3),
        "ratio_min": round(min(ratios[0]), 3),
        "ratio_max": round(max(ratios[0]), 3),
        # The same by the processor time used, which a busy machine disturbs less.
        "ratio_cpu_time": round(statistics.median(ratios[1]), 3),
    }


def token_counts(sequences: Sequence[Sequence[int]], budget: int, shareable: Sequence[int] | None) -> dict[str, Any]:
    """Tokens that each way computes."""
    tree = sum(pack.tokens for pack in pack_trees(sequences, budget, shareable))
    paths = sum(map(len, sequences))
    padded = sum(pack.tokens for pack in pack_rows(sequences, budget))
    return {"tree": tree, "paths": paths, "paths_padded": padded, "ratio": round(tree / paths, 3)}


def share_of_saving(tokens: Mapping[str, Any], times: Mapping[str, Any]) -> float:
    return round((1 - times["ratio"]) / (1 - tokens["ratio"]), 2)


def peak_memory(policy: LocalPolicy, rows: Path) -> None:
    """Print the MiB that the gradient of the rows of a file takes."""
    batch = [TrainingRow(**row) for row in json.loads(rows.read_text())]
    gradient(policy, batch[:1])  # warm up
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    before = resident("VmRSS")
    gradient(policy, batch)
    print(resident("VmHWM") - before)


def resident(field: str) -> int:
    """MiB of memory in use (VmRSS), or at its peak (VmHWM)."""
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith(field)) // 1024


def own_process(arguments: Sequence[str]) -> Any:
    """Run this file in a separate process, and read the output."""
    done = subprocess.run([sys.executable, __file__, *arguments], check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--recipe", default="attnrl")
    parser.add_argument("--steps", type=int, default=2, help="training steps before the forests are taken")
    parser.add_argument("--problems", type=int, help="problems per step (default: the recipe's)")
    parser.add_argument("--hidden", type=int, help="width of a random model (default: the recipe's model)")
    parser.add_argument("--layers", type=int, default=6, help="layers of the random model")
    parser.add_argument("--micro-batch-tokens", type=int, help="default: the recipe's")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--memory-of", nargs=2, metavar=("WAY", "ROWS"), help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    prompts = [] if args.problems is None else [f"prompts={args.problems}"]
    config = load_config(TrainConfig, args.recipe, [*prompts, "output_dir=unused", "loss.kl=0"])
    if args.memory_of is not None:
        peak_memory(policies(config, args)[args.memory_of[0]], Path(args.memory_of[1]))
        return {}
    recorded = grow(config, args.steps)
    rows, scored = recorded.rows, recorded.scored
    its = policies(config, args)

    budget = its["tree"].settings.micro_batch_tokens
    gradients = {way: gradient(policy, rows) for way, policy in its.items()}
    difference = float((gradients["tree"] - gradients["paths"]).norm() / gradients["paths"].norm())
    denominator = sum(len(row.response) for row in rows)
    sequences = [(*row.prompt, *row.response) for row in rows]
    train_tokens = token_counts(sequences, budget, None)
    train = compare(
        {way: (lambda policy=policy: policy._accumulate(rows, denominator)) for way, policy in its.items()},
        args.repeats,
    )
    prompts_of, responses, steps = scored
    sequences = [(*prompt, *response) for prompt, response in zip(prompts_of, responses, strict=True)]
    shareable = [
        len(sequence) if its_steps is None else len(prompt)
        for sequence, prompt, its_steps in zip(sequences, prompts_of, steps or [None] * len(sequences), strict=True)
    ]
    score_tokens = token_counts(sequences, budget, shareable)
    score = compare({way: (lambda policy=policy: policy.score(*scored)) for way, policy in its.items()}, args.repeats)
    with NamedTemporaryFile("w", suffix=".json") as file:
        json.dump([asdict(row) for row in rows], file)
        file.flush()
        memory = {
            way: own_process([*(sys.argv[1:] if argv is None else argv), "--memory-of", way, file.name]) for way in WAYS
        }
    parameters = sum(parameter.numel() for parameter in its["tree"].model.parameters())
    result = {
        "recipe": args.recipe,
        "parameters": parameters,
        "paths": len(rows),
        "micro_batch_tokens": budget,
        "train": {
            "tokens": train_tokens,
            **train,
            "share_of_saving": share_of_saving(train_tokens, train),
            "gradient_difference": float(f"{difference:.1e}"),
            "peak_mib": memory,
        },
        "score": {"tokens": score_tokens, **score, "share_of_saving": share_of_saving(score_tokens, score)},
        "repeats": args.repeats,
        "threads": args.threads,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs",
    }
    print(json.dumps(result, indent=1))
    return result


if __name__ == "__main__":
    main()
