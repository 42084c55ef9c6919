"""``attnrl point``: do branch points lie on the steps on which most later steps depend? The true graph tells.

1. Sample responses to problems of a task that knows its dependency graph, and cut them into steps.
2. A step is *pivotal* if at least so many later lines look it up directly: in ledgers, the plans.
3. Choose branch points by each rule, as training does, and see how many of them lie on pivotal steps.

Pivotal steps stand early more often than late, and so do the choices of most rules. So each rule is compared with
chance at its own places: a random step of the same fifth of the response.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from attnrl.config.schema import BranchingConfig
from attnrl.data.run_data import held_out_problems
from attnrl.errors import UserError
from attnrl.evals.candidates import require_positions
from attnrl.experiments.disruption.choice import position_bins
from attnrl.experiments.disruption.summary import mean_over_problems
from attnrl.fci import CaptureSpec, capture
from attnrl.local.loading import (
    build_sampler,
    choose_device,
    load_model,
    load_tokenizer,
    model_directory,
    require_influence,
)
from attnrl.method.branching import RolloutSignals, branch_points
from attnrl.method.influence import eligible_steps, mask_influence
from attnrl.method.steps import Steps
from attnrl.tasks.dependencies import require_dependencies, step_dependents
from attnrl.tokenization import encode_prompt, response_steps, step_texts
from attnrl.types import Problem, Request
from attnrl.utils.console import progress_bars
from attnrl.utils.files import require_writable

#: The rules that are compared, each as training would be told.
RULES: dict[str, BranchingConfig] = {
    "FCI, earliest two of the top 20 % (paper)": BranchingConfig(),
    "FCI, highest two": BranchingConfig(rho=0.01),
    "FCI z-scored by head, earliest two": BranchingConfig(reduction="zscore_max"),
    "FCI z-scored by head, highest two": BranchingConfig(reduction="zscore_max", rho=0.01),
    "lookups, highest two": BranchingConfig(influence="lookups", rho=0.01),
    "entropy, two highest tokens (TreeRL)": BranchingConfig(criterion="entropy"),
    "random": BranchingConfig(criterion="random"),
    "true graph (oracle)": BranchingConfig(criterion="oracle"),
}
BINS = 5


@dataclass(frozen=True)
class StudiedResponse:
    """A sampled response with all that any rule looks at.

    Attributes:
        problem: the problem's id.
        steps: its steps.
        entropy: of the distribution each token was drawn from.
        dependents: how many lines look up each step directly.
        influence: of each step, for each pair of a measure and a reduction.
    """

    problem: str
    steps: Steps
    entropy: tuple[float, ...]
    dependents: tuple[float, ...]
    influence: Mapping[tuple[str, str], tuple[float, ...]]

    def signals(self, branching: BranchingConfig) -> RolloutSignals:
        """What a rule looks at."""
        influence = self.influence[branching.influence, branching.reduction]
        return RolloutSignals(self.steps, mask_influence(influence, self.steps), self.entropy, self.dependents)


@dataclass(frozen=True)
class Pointed:
    """Where one rule points in one response; all numbers are means over its branch points.

    Attributes:
        precision: share that is on pivotal steps.
        matched: the same of a random step of the same fifth of the response.
        dependents: lines that look the step up.
        position: place in the response, 0 to 1.
    """

    precision: float
    matched: float
    dependents: float
    position: float

    @property
    def gain(self) -> float:
        """How much more precise than chance at its own places."""
        return self.precision - self.matched


def point(response: StudiedResponse, branching: BranchingConfig, pivotal: int, rng: random.Random) -> Pointed | None:
    """Where a rule points; None where it finds no place or there is nothing pivotal to find.

    Args:
        response: the response.
        branching: the rule.
        pivotal: direct dependents that make a step pivotal.
        rng: makes the choices of random rules.
    """
    steps = response.steps
    eligible = eligible_steps(steps)
    is_pivotal = [dependents >= pivotal for dependents in response.dependents]
    if not any(is_pivotal[step] for step in eligible):
        return None
    points = branch_points(
        response.signals(branching), criterion=branching.criterion, count=2, rho=branching.rho, rng=rng
    )
    chosen = [steps.step_of(at) for at in points]
    if not chosen:
        return None
    bin_of = position_bins(eligible, BINS)
    shares = []
    for step in chosen:
        # A token's rule may point into the first step or the last ones, where no step's rule can.
        fifth = bin_of.get(step, 0 if step < eligible[0] else BINS - 1)
        shares.append(fmean(is_pivotal[other] for other in eligible if bin_of[other] == fifth))
    return Pointed(
        precision=fmean(is_pivotal[step] for step in chosen),
        matched=fmean(shares),
        dependents=fmean(response.dependents[step] for step in chosen),
        position=fmean(steps.starts[step] / steps.length for step in chosen),
    )


def study_responses(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    problems: Sequence[Problem],
    *,
    samples: int,
    max_new_tokens: int,
    seed: int,
    progress: Progress,
) -> list[StudiedResponse]:
    """Sample responses at temperature 1 and look at their attention; those of fewer than three steps are left out.

    Raises:
        UserError: the task does not know its graph, or the model has too few positions for a response.
    """
    require_dependencies(problems[0])
    rng = random.Random(f"{seed}/point")
    limit = 1 << 20
    draws = [(problem, encode_prompt(tokenizer, problem, limit)) for problem in problems for _ in range(samples)]
    for problem, prompt in draws:
        require_positions(model, problem, prompt, max_new_tokens)
    requests = [Request(prompt, max_new_tokens, rng.getrandbits(62)) for _, prompt in draws]
    bar = progress.add_task("responses", total=2 * len(requests))
    sampler = build_sampler(
        model,
        tokenizer,
        temperature=1.0,
        top_p=1.0,
        max_batch=256,
        on_progress=lambda tokens, done: progress.update(bar, completed=done),
    )
    studied = []
    for (problem, prompt), completion in zip(draws, sampler.generate(requests), strict=True):
        steps = response_steps(tokenizer, completion.tokens, ended=completion.finish_reason == "stop")
        if len(steps) >= 3:
            texts = step_texts(tokenizer, completion.tokens, steps)
            studied.append(_study(model, problem, prompt, completion.tokens, steps, texts))
        progress.advance(bar)
    return studied


@torch.no_grad()
def _study(
    model: PreTrainedModel,
    problem: Problem,
    prompt: Sequence[int],
    response: Sequence[int],
    steps: Steps,
    texts: Sequence[str],
) -> StudiedResponse:
    """Look at one response, in a forward of its own."""
    ids_1T = torch.tensor([[*prompt, *response]], device=model.device)
    starts = [len(prompt) + start for start in steps.starts]
    spec = CaptureSpec([starts], [ids_1T.shape[1]], BranchingConfig().delta, lookups=True)
    with capture(model, spec) as captured:
        logits_TV = model(ids_1T, use_cache=False).logits[0, len(prompt) - 1 : -1]
    logprobs_TV = logits_TV.float().log_softmax(-1)
    entropy_T = -(logprobs_TV.exp() * logprobs_TV).sum(-1)
    influence: dict[tuple[str, str], tuple[float, ...]] = {
        (rule.influence, rule.reduction): tuple(captured.of_steps(rule.influence, rule.reduction)[0].tolist())
        for rule in RULES.values()
    }
    return StudiedResponse(problem.id, steps, tuple(entropy_T.tolist()), step_dependents(problem, texts), influence)


def run_pointing(
    model_name: str,
    *,
    task: str,
    problems: int,
    samples: int,
    max_new_tokens: int,
    pivotal: int,
    seed: int,
    device: str,
    output: Path | None,
    console: Console,
) -> dict[str, Any]:
    """The whole experiment; returns what goes into ``results.json``.

    Raises:
        UserError: something will not do; all but responses without pivotal steps is told before anything is sampled.
    """
    if output is not None:
        require_writable(output, f"--output {output}")
    held_out = held_out_problems(task, problems)
    require_dependencies(held_out[0])
    directory = model_directory(model_name)
    tokenizer = load_tokenizer(directory)
    model = load_model(directory, device=choose_device(device), dtype="float32")
    require_influence(model)
    with progress_bars(console) as progress:
        responses = study_responses(
            model, tokenizer, held_out, samples=samples, max_new_tokens=max_new_tokens, seed=seed, progress=progress
        )
    results = {
        "model": model_name,
        "task": task,
        "pivotal": pivotal,
        "seed": seed,
        **summarize_pointing(responses, pivotal, seed),
    }
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
        (output / "results.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
        (output / "results.md").write_text("\n".join(pointing_table(results)) + "\n", encoding="utf-8")
    return results


def summarize_pointing(responses: Sequence[StudiedResponse], pivotal: int, seed: int) -> dict[str, Any]:
    """Where each rule points, with 95 % bootstrap intervals over problems.

    Raises:
        UserError: no response has a pivotal step to find.
    """
    rules: dict[str, Any] = {}
    for name, branching in RULES.items():
        pointed = [
            (response.problem, found)
            for number, response in enumerate(responses)
            if (found := point(response, branching, pivotal, random.Random(f"{seed}/{name}/{number}")))
        ]
        if not pointed:
            raise UserError(f"no response has a step that {pivotal} lines look up, beside its first step")
        rules[name] = {
            field: _with_interval([(problem, getattr(found, field)) for problem, found in pointed], seed)
            for field in ("precision", "matched", "dependents", "position", "gain")
        }
    return {
        "responses": len(responses),
        "problems": len({response.problem for response in responses}),
        "steps": fmean(len(response.steps) for response in responses),
        "pivotal_steps": fmean(
            sum(response.dependents[step] >= pivotal for step in eligible_steps(response.steps))
            for response in responses
        ),
        "rules": rules,
    }


def _with_interval(values: Sequence[tuple[str, float]], seed: int) -> dict[str, float]:
    estimated = mean_over_problems(values, seed)
    low, high = estimated["interval"]
    return {"mean": estimated["mean"], "low": low, "high": high}


def pointing_table(results: Mapping[str, Any]) -> list[str]:
    """Markdown lines of :func:`summarize_pointing`'s results."""

    def percent(value: Mapping[str, float]) -> str:
        return f"{100 * value['mean']:.1f} % ({100 * value['low']:.1f} to {100 * value['high']:.1f})"

    return [
        "| branch points by | on pivotal steps (95 % interval) | a random step of the same fifth | difference | "
        "lines that look it up | place in the response |",
        "|---|---|---|---|---|---|",
        *(
            f"| {name} | {percent(rule['precision'])} | {100 * rule['matched']['mean']:.1f} % | "
            f"{percent(rule['gain'])} | {rule['dependents']['mean']:.2f} | {rule['position']['mean']:.0%} |"
            for name, rule in results["rules"].items()
        ),
    ]
