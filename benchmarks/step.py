"""Compare the seconds of a training step of the local engine with a plain implementation (``plain.py``), in one run.

The training loop is :class:`attnrl.rl.trainer.Trainer` for both, with the recipe's own settings. ``attnrl`` gives it
``LocalSampler`` and ``LocalPolicy``; ``plain`` gives it those of ``benchmarks/plain.py``: ``model.generate``, every
root-to-leaf path as a separate row, FCI from the attention matrices of eager attention.

First attnrl trains for some steps, untimed, and stores the state at the start of each step: weights, optimizer,
pending initial responses. Then each repeat takes all stored steps with both implementations, from the same state, with
the same problems and branch points. Only the random draws of the samplers differ, and therefore the numbers of tokens,
a little: the output has both numbers, the ratio of seconds per step, and the ratio at equal numbers of tokens. All
repeats do exactly the same work, hence the spread of the ratios is due to the machine.

The first step of a one-step pipeline has nothing to branch from: step 2 is the first that is measured. Evaluation and
checkpoints are not part of a step. ``parity`` is the difference of the two policies on the same responses and weights:
the largest absolute difference, relative to the largest value. The run fails if ``parity`` exceeds 1e-4.

    python benchmarks/step.py --steps 5 --repeats 3
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import platform
import statistics
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from plain import PlainPolicy, PlainSampler
from torch import Tensor

from attnrl.config.load import load_config
from attnrl.config.schema import TrainConfig
from attnrl.data.run_data import load_run_data
from attnrl.inference.sampler import build_sampler
from attnrl.local.loading import build_policy, choose_device, load_model, load_tokenizer
from attnrl.local.model_names import find_model
from attnrl.local.policy import LocalPolicy
from attnrl.rl.rollout import RolloutTree
from attnrl.rl.state import TrainerState
from attnrl.rl.trainer import StepResult, Trainer
from attnrl.tokenization import end_of_sequence_ids
from attnrl.types import Policy, Sampler

SIDES = ("attnrl", "plain")
TOLERANCE = 1e-4


@dataclass
class Side:
    """A sampler and a policy on a model of their own."""

    sampler: Sampler
    policy: Any  # a Policy with the attributes model, optimizer and updates


@dataclass
class Start:
    """All that a training step begins with."""

    state: TrainerState
    weights: dict[str, Tensor]
    optimizer: dict[str, Any]
    updates: int


@dataclass
class Taken:
    """A step that was timed."""

    wall: float
    cpu: float
    phases: dict[str, float]
    generated: int
    responses: int
    trained: int  # distinct tokens
    path_tokens: int  # tokens of all trained paths: shared ones as often as they are on a path
    paths: int


class Bench:
    """A recipe with its problems, and both sides."""

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        self.directory = find_model(config.model).directory
        self.device = choose_device(config.device)
        self.tokenizer = load_tokenizer(self.directory)
        data = load_run_data(config, self.tokenizer)
        self.source, self.rewards, self.renderer = data.source, data.rewards, data.renderer
        self.sides = {name: self.side(name) for name in SIDES}

    def side(self, name: str) -> Side:
        """Build one side from the recipe's model."""
        config, sampling = self.config, self.config.sampling
        model = load_model(self.directory, self.tokenizer, device=self.device, dtype=config.dtype).model
        reference = None
        if config.loss.kl > 0:
            reference = load_model(self.directory, self.tokenizer, device=self.device, dtype=config.dtype).model
            reference.requires_grad_(False)
        if name == "attnrl":
            return Side(
                build_sampler(model, self.tokenizer, sampling.params, max_batch=sampling.max_batch),
                build_policy(config, model, reference),
            )
        pad = self.tokenizer.pad_token_id
        eos = end_of_sequence_ids(model.generation_config, self.tokenizer)
        return Side(
            PlainSampler(
                model,
                sampling.params,
                eos_token_ids=eos,
                pad_token_id=eos[0] if pad is None else pad,
                max_batch=sampling.max_batch,
            ),
            PlainPolicy(
                model,
                reference,
                loss=config.loss,
                optimizer=config.optimizer,
                branching=config.method.branching,
                temperature=sampling.temperature,
            ),
        )

    def trainer(self, side: Side, state: TrainerState | None) -> Trainer:
        return Trainer(
            self.config,
            sampler=side.sampler,
            rewards=self.rewards,
            policy=side.policy,
            renderer=self.renderer,
            source=self.source,
            state=state,
        )

    def starts(self, steps: Sequence[int]) -> list[Start]:
        """Train from the recipe's model with attnrl, and keep what each of ``steps`` begins with."""
        side, starts = self.side("attnrl"), []
        trainer = self.trainer(side, None)
        for step in range(1, max(steps) + 1):
            if step in steps:
                policy = side.policy
                weights = {name: tensor.clone() for name, tensor in policy.model.state_dict().items()}
                moments = copy.deepcopy(adamw(policy).state_dict())
                starts.append(Start(trainer.state, weights, moments, counter(policy).updates))
            if step < max(steps):
                trainer.step()
        return starts

    def restore(self, side: Side, start: Start) -> Side:
        """Bring a side to the beginning of a step."""
        side.policy.model.load_state_dict(start.weights)
        adamw(side.policy).load_state_dict(copy.deepcopy(start.optimizer))
        counter(side.policy).updates = start.updates
        side.sampler.sync()
        return side

    def take(self, name: str, start: Start) -> Taken:
        """Take one step, timed."""
        trainer = self.trainer(self.restore(self.sides[name], start), start.state)
        self.synchronize()
        wall, cpu = time.perf_counter(), time.process_time()
        result = trainer.step()
        self.synchronize()
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        return taken(result, wall, cpu)

    def synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def parity(self, start: Start) -> dict[str, float]:
        """How far both policies differ in all that they compute from the responses of one step of attnrl."""
        problems = self.trainer(self.restore(self.sides["attnrl"], start), start.state).step().problems
        return compare([self.restore(self.sides[name], start).policy for name in SIDES], problems, self.config)


def taken(result: StepResult, wall: float, cpu: float) -> Taken:
    """Measurements of one step."""
    metrics = result.metrics
    paths = [
        path
        for problem in result.problems
        if problem.plan.kept and problem.forest.has_signal
        for path in problem.trained_paths()
    ]
    return Taken(
        wall=wall,
        cpu=cpu,
        phases={name.removeprefix("time/"): metrics[name] for name in metrics if name.startswith("time/")},
        generated=int(metrics["tokens/generated"]),
        responses=sum(len(problem.plan.group.trunks) + len(problem.branches) for problem in result.problems),
        trained=int(metrics["tokens/valid"]),
        path_tokens=sum(path.length for path in paths),
        paths=len(paths),
    )


def compare(policies: Sequence[Policy], problems: Sequence[RolloutTree], config: TrainConfig) -> dict[str, float]:
    """The largest difference of each thing that two policies compute, relative to the largest of its values."""
    trunks = [(problem.plan.group.prompt, trunk) for problem in problems for trunk in problem.plan.group.trunks]
    prompts, responses = [prompt for prompt, _ in trunks], [trunk.tokens for _, trunk in trunks]
    scores = [policy.score(prompts, responses, [trunk.steps for _, trunk in trunks]) for policy in policies]
    differences = {
        name: difference(*(flat(getattr(score, name) for score in its_scores) for its_scores in scores))
        for name in ("logprobs", "entropy", "influence")
    }
    rows = [
        row
        for problem in problems
        if problem.plan.kept and problem.forest.has_signal
        for row in problem.training_rows(config.method.advantage_function)
    ]
    if not rows:
        return differences
    gradients, weights = zip(*(updated(policy, rows) for policy in policies), strict=True)
    return {**differences, "gradient": difference(*gradients), "weights": difference(*weights)}


def adamw(policy: Any) -> torch.optim.Optimizer:
    return policy.optimizer.adamw if isinstance(policy, LocalPolicy) else policy.optimizer


def counter(policy: Any) -> Any:
    """Return the object that counts optimizer steps as ``updates``."""
    return policy.optimizer if isinstance(policy, LocalPolicy) else policy


def updated(policy: Any, rows: Sequence[Any]) -> tuple[Tensor, Tensor]:
    """The clipped gradient of the first optimizer step, and the weights after all of them."""
    gradients: list[Tensor] = []

    def keep(optimizer: Any, *_: Any) -> None:
        gradients.append(flat(p.grad for group in optimizer.param_groups for p in group["params"]))

    hook = adamw(policy).register_step_pre_hook(keep)
    policy.update(rows)
    hook.remove()
    return gradients[0], flat(policy.model.parameters())


def flat(values: Iterable[Any]) -> Tensor:
    return torch.cat([torch.as_tensor(value).detach().double().flatten().cpu() for value in values])


def difference(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max() / other.abs().max().clamp_min(1e-30))


def summary(repeats: Sequence[Sequence[Taken]]) -> dict[str, Any]:
    """What one side did and how long it took, per step; times are medians over the repeats."""
    steps = len(repeats[0])

    def per_step(value: Any) -> float:
        return statistics.median(sum(value(step) for step in repeat) / steps for repeat in repeats)

    named = {name for repeat in repeats for step in repeat for name in step.phases}
    phases = sorted(named - {"step", "generated_tokens_per_second"})
    return {
        "seconds_per_step": round(per_step(lambda step: step.wall), 3),
        "cpu_seconds_per_step": round(per_step(lambda step: step.cpu), 3),
        "phases": {name: round(per_step(lambda step, name=name: step.phases.get(name, 0.0)), 3) for name in phases},
        "generated_tokens": round(per_step(lambda step: step.generated)),
        "trained_tokens": round(per_step(lambda step: step.trained)),
        "trained_path_tokens": round(per_step(lambda step: step.path_tokens)),
        "trained_paths": round(per_step(lambda step: step.paths), 1),
        "responses": round(per_step(lambda step: step.responses), 1),
        "ms_per_generated_token": round(
            1e3 * per_step(lambda step: step.wall) / per_step(lambda step: step.generated), 4
        ),
    }


def ratio(repeats: dict[str, list[list[Taken]]], value: Any, *, per: Any = lambda step: 1.0) -> dict[str, float] | None:
    """Plain over attnrl: the median over the repeats of their own ratios, and the range."""

    def rate(steps: Sequence[Taken]) -> float:
        return sum(map(value, steps)) / max(1, sum(map(per, steps)))

    pairs = [(rate(plain), rate(ours)) for plain, ours in zip(repeats["plain"], repeats["attnrl"], strict=True)]
    if any(ours == 0 for _, ours in pairs):
        return None
    return spread([plain / ours for plain, ours in pairs])


def ratio_at_equal_tokens(repeats: dict[str, list[list[Taken]]]) -> dict[str, float]:
    """The same of seconds per step, had plain had attnrl's numbers of tokens.

    Its training is scaled by the tokens of the paths trained on, all else by the tokens generated.
    """

    def total(steps: Sequence[Taken], value: Any) -> float:
        return max(1e-9, sum(map(value, steps)))

    ratios = []
    for plain, ours in zip(repeats["plain"], repeats["attnrl"], strict=True):
        training = sum(step.phases["train"] for step in plain)
        rest = sum(step.wall for step in plain) - training
        training *= total(ours, lambda step: step.path_tokens) / total(plain, lambda step: step.path_tokens)
        rest *= total(ours, lambda step: step.generated) / total(plain, lambda step: step.generated)
        ratios.append((training + rest) / total(ours, lambda step: step.wall))
    return spread(ratios)


def spread(ratios: Sequence[float]) -> dict[str, float]:
    return {"median": round(statistics.median(ratios), 2), "min": round(min(ratios), 2), "max": round(max(ratios), 2)}


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("settings", nargs="*", help="settings of the recipe to change, as KEY.PATH=VALUE")
    parser.add_argument("--recipe", default="attnrl")
    parser.add_argument("--model", help="instead of the recipe's")
    parser.add_argument("--steps", type=int, default=5, help="steps that are measured")
    parser.add_argument("--first", type=int, default=2, help="the first of them")
    parser.add_argument("--every", type=int, default=1, help="steps from one that is measured to the next")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, help="instead of the recipe's")
    args = parser.parse_args(argv)
    config = load_config(TrainConfig, args.recipe, [*args.settings, *([f"model={args.model}"] if args.model else [])])
    if threads := args.threads or config.threads:
        torch.set_num_threads(threads)

    measured = [args.first + n * args.every for n in range(args.steps)]
    repeats: dict[str, list[list[Taken]]] = {name: [] for name in SIDES}
    bench = Bench(config)
    with bench.rewards:
        starts = bench.starts(measured)
        parity = bench.parity(starts[0])
        if not max(parity.values()) <= TOLERANCE:  # NaN fails, too
            raise SystemExit(f"the two policies differ: {parity}")
        for name in SIDES:
            bench.take(name, starts[0])  # what the first call of anything takes
        for repeat in range(args.repeats):
            taken_by: dict[str, list[Taken]] = {name: [] for name in SIDES}
            for start in starts:
                for name in SIDES[:: -1 if repeat % 2 else 1]:
                    taken_by[name].append(bench.take(name, start))
            for name in SIDES:
                repeats[name].append(taken_by[name])

    result = {
        "machine": platform.processor() or platform.machine(),
        "cpus": os.cpu_count(),
        "device": torch.cuda.get_device_name() if bench.device.type == "cuda" else "cpu",
        "dtype": config.dtype,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "recipe": args.recipe,
        "settings": args.settings,
        "model": config.model,
        "steps": measured,
        "repeats": args.repeats,
        "parity": parity,
        **{name: summary(repeats[name]) for name in SIDES},
        "ratio": ratio(repeats, lambda step: step.wall),
        "ratio_cpu_time": ratio(repeats, lambda step: step.cpu),
        "ratio_at_equal_tokens": ratio_at_equal_tokens(repeats),
        "ratio_per_generated_token": ratio(repeats, lambda step: step.wall, per=lambda step: step.generated),
        "ratio_cpu_time_per_generated_token": ratio(repeats, lambda step: step.cpu, per=lambda step: step.generated),
        "ratio_of_phases": {
            "generate_per_generated_token": ratio(
                repeats, lambda step: step.phases.get("generate", 0.0), per=lambda step: step.generated
            ),
            "score_per_generated_token": ratio(
                repeats, lambda step: step.phases.get("score", 0.0), per=lambda step: step.generated
            ),
            "train_per_path_token": ratio(
                repeats, lambda step: step.phases.get("train", 0.0), per=lambda step: step.path_tokens
            ),
        },
        "ratio_of_each_step": [
            ratio({name: [[its[n]] for its in repeats[name]] for name in SIDES}, lambda step: step.wall)
            for n in range(args.steps)
        ],
    }
    print(json.dumps(result, indent=2))
    return result


if __name__ == "__main__":
    main()
