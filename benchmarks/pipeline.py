"""Seconds a training step of the one-step off-policy pipeline against the two-phase pipeline, on the same work.

Both run the real trainer, sampler and policy on TreeRL's settings (every trunk is expanded, so both sample equally
many responses) with end-of-sequence disabled. Each response has a length of its own, drawn from a log-normal
distribution (``--tokens`` is its median, ``--sigma`` the deviation of its logarithm, ``--longest`` its cap). All
batches of a repeat have the same lengths in either pipeline: two generations a step wait for two longest responses,
one generation waits for one. Further rows do not wait for the last tenth of the problems (``sampling.carry_over``).

Repeats are interleaved and draw new lengths each; a ratio is the median over repeats of the two-phase pipeline's
seconds for each sampled token over the row's own, ``generate_ratio`` the same of the generate phase alone. Tokens a
step are equal but for carried responses, whose tokens may come before or after the timed steps.

    python benchmarks/pipeline.py --prompts 16 --hidden 256 --layers 6 --repeats 5
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import random
import statistics
import time
import zlib
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

from attnrl.config.load import load_config
from attnrl.config.schema import TrainConfig
from attnrl.grading.rewards import RewardManager
from attnrl.inference.sampler import LocalSampler
from attnrl.local.loading import build_policy
from attnrl.prompts.renderer import PromptRenderer
from attnrl.rl.trainer import Trainer
from attnrl.tasks.ledger import build_tokenizer
from attnrl.types import Completion, Grade, Problem, Request

ROWS = {
    "two_phase": ("two_phase", 0.0),
    "one_step": ("one_step", 0.0),
    "one_step_carry_over": ("one_step", 0.1),
    "two_phase_carry_over": ("two_phase", 0.1),
}
PHASES = ("plan", "generate", "grade", "score", "train", "sync")
WARM_UP = 1  # steps: the first one-step one generates twice, and only then may anything be carried over


@dataclass(frozen=True)
class Problems:
    """Problem n of a batch has the same lengths in every batch; its prompt is like no other's."""

    def at(self, position: int) -> Problem:
        """The problem at ``position``."""
        return Problem(str(position), "".join(f"{letter}={position % 10_000:04d}; " for letter in "ABCDEFGH"), ("1",))


class Coin:
    """Grades by the response's checksum, so that about every problem has signal."""

    overlaps = True

    def grade(self, problems: Sequence[Problem], responses: Sequence[str]) -> list[Grade]:
        """Half of all responses are correct."""
        right = [zlib.crc32(response.encode()) % 2 == 1 for response in responses]
        return [Grade(1.0, "correct") if yes else Grade(0.0, "wrong") for yes in right]


class GivenLengths:
    """A sampler in which the n-th response of a problem has a length that does not depend on the pipeline."""

    def __init__(self, sampler: LocalSampler, prompts: dict[tuple[int, ...], int], length: Callable[[str], int]):
        """``prompts`` has the problem's place in its batch by prompt; ``length`` draws for a response's name."""
        self.sampler = sampler
        self.prompts = prompts
        self.prompt_lengths = sorted({len(prompt) for prompt in prompts})
        self.length = length
        self.rest: dict[tuple[int, ...], int] = {}  # of what was left unfinished, by all its tokens

    def generate(
        self,
        requests: Sequence[Request],
        *,
        on_completion: Callable[[int, Completion], None] | None = None,
        should_stop: Callable[[Collection[int]], bool] | None = None,
    ) -> list[Completion]:
        """See :class:`attnrl.types.Sampler`."""
        seen: Counter[str] = Counter()
        given = [
            replace(request, max_new_tokens=self.rest.pop(request.prompt, 0) or self._own(request, seen))
            for request in requests
        ]
        completions = self.sampler.generate(given, on_completion=on_completion, should_stop=should_stop)
        for request, completion in zip(given, completions, strict=True):
            if completion.finish_reason == "unfinished":
                left = request.max_new_tokens - len(completion.tokens)
                self.rest[request.prompt + completion.tokens] = left
        return completions

    def sync(self) -> None:
        """See :class:`attnrl.types.Sampler`."""
        self.sampler.sync()

    def _own(self, request: Request, seen: Counter[str]) -> int:
        prompt = next(p for n in self.prompt_lengths if (p := request.prompt[:n]) in self.prompts)
        kind = f"{self.prompts[prompt]}/{'trunk' if prompt == request.prompt else 'branch'}"
        seen[kind] += 1
        return self.length(f"{kind}/{seen[kind]}")


def random_model(hidden: int, layers: int, vocabulary: int) -> Any:
    """A random decoder; ``hidden`` is a multiple of 64."""
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=4 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64 * 2,
        num_key_value_heads=hidden // 64,
        max_position_embeddings=32_768,
        tie_word_embeddings=True,
        pad_token_id=0,
        eos_token_id=None,
        bos_token_id=None,
    )
    return Qwen2ForCausalLM(config)


def log_normal(seed: int, median: int, sigma: float, longest: int) -> Callable[[str], int]:
    """Draws lengths from 4 (short ones cannot be branched) to ``longest`` tokens."""

    def length(name: str) -> int:
        drawn = median * math.exp(sigma * random.Random(f"{seed}/{name}").gauss(0.0, 1.0))
        return max(4, min(longest, round(drawn)))

    return length


def measure(row: str, repeat: int, model: Any, tokenizer: Any, args: argparse.Namespace) -> dict[str, float]:
    """Means over the timed steps of one run."""
    pipeline, carry_over = ROWS[row]
    config = load_config(
        TrainConfig,
        "treerl",
        [
            f"method.pipeline={pipeline}",
            f"sampling.carry_over={carry_over}",
            f"prompts={args.prompts}",
            f"method.trunks={args.trunks}",
            f"method.branching.points={args.points}",
            f"method.branching.samples={args.samples}",
            f"sampling.max_new_tokens={2 * args.longest}",  # a continuation has a whole length of its own
            f"optimizer.micro_batch_tokens={args.micro_batch_tokens}",
            "optimizer.learning_rate=1e-6",
        ],
    )
    source = Problems()
    steps = WARM_UP + args.steps
    renderer = PromptRenderer(tokenizer)
    places = {
        renderer.encode(source.at(position), config.sampling.max_prompt_tokens): position % args.prompts
        for position in range((steps + 2) * args.prompts)
    }
    sampler = LocalSampler(model, eos_token_ids=[], pad_token_id=0, max_batch=args.max_batch)
    trainer = Trainer(
        config,
        sampler=GivenLengths(sampler, places, log_normal(repeat, args.tokens, args.sigma, args.longest)),
        rewards=RewardManager(Coin()),
        policy=build_policy(config, model, None),
        renderer=renderer,
        source=source,
    )
    timed = []
    for step in range(steps):
        cpu = time.process_time()
        metrics = trainer.step().metrics
        if step >= WARM_UP:
            timed.append({**metrics, "cpu": time.process_time() - cpu})
    names = ["time/step", *(f"time/{phase}" for phase in PHASES), "cpu", "tokens/generated", "carried_over"]
    return {name.removeprefix("time/"): statistics.fmean(one[name] for one in timed) for name in names}


def compare(runs: Sequence[dict[str, dict[str, float]]]) -> dict[str, dict[str, Any]]:
    """Medians of each row, and its ratios to ``two_phase`` of the same repeat."""
    rows: dict[str, dict[str, Any]] = {}
    for row in runs[0]:

        def ratios(name: str, row: str = row) -> list[float]:
            a_token = [{one: its[name] / its["tokens/generated"] for one, its in run.items()} for run in runs]
            return [seconds["two_phase"] / seconds[row] for seconds in a_token]

        rows[row] = {
            **{f"{name}_seconds": _median(run[row][name] for run in runs) for name in ("step", *PHASES, "cpu")},
            "tokens_a_step": round(statistics.median(run[row]["tokens/generated"] for run in runs)),
            "carried_responses": _median(run[row]["carried_over"] for run in runs),
        }
        if row != "two_phase":
            rows[row] |= {
                "ratio": _median(ratios("step")),
                "ratio_min": round(min(ratios("step")), 3),
                "ratio_max": round(max(ratios("step")), 3),
                # The same by the processor time used, which a busy machine disturbs less.
                "ratio_cpu_time": _median(ratios("cpu")),
                "generate_ratio": _median(ratios("generate")),
            }
    return rows


def _median(values: Any) -> float:
    return round(statistics.median(values), 3)


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the benchmark, print its report and return it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", type=Path, help="checkpoint directory (default: random, of --hidden and --layers)")
    parser.add_argument("--hidden", type=int, default=256, help="a multiple of 64")
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--prompts", type=int, default=16, help="problems a step")
    parser.add_argument("--trunks", type=int, default=6, help="initial responses of each")
    parser.add_argument("--points", type=int, default=2, help="branch points of each initial response")
    parser.add_argument("--samples", type=int, default=2, help="continuations from each branch point")
    parser.add_argument("--tokens", type=int, default=32, help="median length of a response")
    parser.add_argument("--sigma", type=float, default=1.0, help="of the logarithm of lengths; 0: all are equal")
    parser.add_argument("--longest", type=int, default=512)
    parser.add_argument("--max-batch", type=int, default=1024, help="responses decoded at the same time")
    parser.add_argument("--micro-batch-tokens", type=int, default=16_384)
    parser.add_argument("--steps", type=int, default=2, help=f"timed in each run, after {WARM_UP} that are not")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS)[:3], help="two_phase among them")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)

    if args.model is None:
        tokenizer: Any = build_tokenizer()
        model = random_model(args.hidden, args.layers, len(tokenizer))
    else:
        tokenizer = AutoTokenizer.from_pretrained(args.model)
        model = AutoModelForCausalLM.from_pretrained(args.model)
    model = model.to(args.device, getattr(torch, args.dtype)).eval()
    rows = ["two_phase", *(row for row in args.rows if row != "two_phase")]
    runs = [{row: measure(row, repeat, model, tokenizer, args) for row in rows} for repeat in range(args.repeats)]
    left_out = {"model", "rows", "device", "threads"} | ({"hidden", "layers"} if args.model else set())
    result = {
        "machine": platform.processor() or platform.machine(),
        "cpus": os.cpu_count(),
        "device": torch.cuda.get_device_name() if args.device == "cuda" else "cpu",
        "threads": args.threads,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        **{name: value for name, value in vars(args).items() if name not in left_out},
        "model": str(args.model or "random"),
        "baseline": "two_phase",
        "rows": compare(runs),
    }
    print(json.dumps(result, indent=2))
    return result


if __name__ == "__main__":
    main()
