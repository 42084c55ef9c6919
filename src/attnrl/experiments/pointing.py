"""``attnrl point``: measure the share of branch points on pivotal steps, for each rule of choosing branch points.

1. Sample responses to problems of a task with a known dependency graph, and split the responses into steps.
2. A step is *pivotal* if at least ``pivotal`` later lines depend on the step directly (in ledgers: the plans).
3. Choose branch points by each rule, as in training, and count the branch points on pivotal steps.

Pivotal steps tend to be early, and most rules choose early steps. Each rule is therefore compared with a baseline
matched by position: a random step of the same fifth of the response.
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
from transformers import PreTrainedModel

from attnrl.config.method import BranchingConfig
from attnrl.data.run_data import held_out_problems, task_prompts
from attnrl.errors import UserError
from attnrl.evals.candidates import require_positions
from attnrl.experiments.disruption.choice import position_bins
from attnrl.experiments.disruption.summary import mean_over_problems
from attnrl.fci import CaptureSpec, capture
from attnrl.inference.sampler import build_sampler
from attnrl.local.loading import choose_device, load_model, load_tokenizer, require_influence
from attnrl.local.model_names import find_model
from attnrl.method.branching import RolloutSignals, branch_points
from attnrl.method.ranking import eligible_steps, mask_influence
from attnrl.method.steps import Steps
from attnrl.prompts.renderer import PromptRenderer
from attnrl.prompts.settings import PromptSettings
from attnrl.tasks.dependencies import require_dependencies, step_dependents
from attnrl.tasks.registry import find_task
from attnrl.tokenization import response_steps, step_texts
from attnrl.types import Problem, Request, SamplingParams
from attnrl.utils.console import print_line, progress_bars
from attnrl.utils.files import require_writable
from attnrl.utils.model_outputs import logits_only

#: The compared rules, as settings of training.
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
class AnalysedResponse:
    """A sampled response with every signal that some rule reads.

    Attributes:
        problem: id of the problem.
        steps: the steps.
        entropy: entropy in nats of the sampling distribution of each token.
        dependents: number of lines that depend directly on each step.
        influence: (measure, reduction) -> influence of each step.
    """

    problem: str
    steps: Steps
    entropy: tuple[float, ...]
    dependents: tuple[float, ...]
    influence: Mapping[tuple[str, str], tuple[float, ...]]

    def signals(self, branching: BranchingConfig) -> RolloutSignals:
        """Return the signals read by the rule ``branching``."""
        influence = self.influence[branching.influence, branching.reduction]
        return RolloutSignals(self.steps, mask_influence(influence, self.steps), self.entropy, self.dependents)


@dataclass(frozen=True)
class RuleScore:
    """Score of one rule on one response; all values are means over the rule's branch points.

    Attributes:
        precision: share of branch points on pivotal steps.
        matched: the same share for a random step of the same fifth of the response.
        dependents: number of lines that depend directly on the branch point's step.
        position: relative position in the response, 0 to 1.
    """

    precision: float
    matched: float
    dependents: float
    position: float

    @property
    def gain(self) -> float:
        """Return the precision minus the baseline matched by position."""
        return self.precision - self.matched


def score_rule(
    response: AnalysedResponse, branching: BranchingConfig, pivotal: int, rng: random.Random
) -> RuleScore | None:
    """Score a rule on a response; return None without eligible pivotal steps or without branch points.

    Args:
        response: the response.
        branching: the rule.
        pivotal: number of direct dependents that makes a step pivotal.
        rng: random generator of random rules.
    """
    steps = response.steps
    eligible = eligible_steps(steps)
    is_pivotal = [dependents >= pivotal for dependents in response.dependents]
    if not any(is_pivotal[step] for step in eligible):
        return None
    points = branch_points(
        response.signals(branching), criterion=branching.criterion_function, count=2, rho=branching.rho, rng=rng
    )
    chosen = [steps.step_of(at) for at in points]
    if not chosen:
        return None
    bin_of = position_bins(eligible, BINS)
    shares = []
    for step in chosen:
        # Rules that rank tokens may choose the first step or the last steps, which are not eligible.
        fifth = bin_of.get(step, 0 if step < eligible[0] else BINS - 1)
        shares.append(fmean(is_pivotal[other] for other in eligible if bin_of[other] == fifth))
    return RuleScore(
        precision=fmean(is_pivotal[step] for step in chosen),
        matched=fmean(shares),
        dependents=fmean(response.dependents[step] for step in chosen),
        position=fmean(steps.starts[step] / steps.length for step in chosen),
    )


def sample_responses(
    model: PreTrainedModel,
    renderer: PromptRenderer,
    problems: Sequence[Problem],
    *,
    samples: int,
    max_new_tokens: int,
    seed: int,
    progress: Progress,
) -> list[AnalysedResponse]:
    """Sample responses at temperature 1 and compute all signals; responses of fewer than three steps are left out.

    Args:
        model: the model.
        renderer: renders the prompts; has the model's tokenizer.
        problems: problems of a task with a known dependency graph.
        samples: responses per problem.
        max_new_tokens: token budget of a response.
        seed: seed of the sampling.
        progress: progress bars.

    Raises:
        UserError: the dependency graph is unknown, or the model has too few positions for a response.
    """
    require_dependencies(problems[0])
    rng = random.Random(f"{seed}/point")
    prompts = [(problem, renderer.encode(problem)) for problem in problems for _ in range(samples)]
    for problem, prompt in prompts:
        require_positions(model, problem, prompt, max_new_tokens)
    requests = [Request(prompt, max_new_tokens, rng.getrandbits(62)) for _, prompt in prompts]
    bar = progress.add_task("responses", total=2 * len(requests))
    tokenizer = renderer.tokenizer
    sampler = build_sampler(
        model,
        tokenizer,
        SamplingParams(),
        max_batch=256,
        on_progress=lambda tokens, done: progress.update(bar, completed=done),
    )
    analysed = []
    for (problem, prompt), completion in zip(prompts, sampler.generate(requests), strict=True):
        steps = response_steps(tokenizer, completion.tokens, ended=completion.ends_with_eos)
        if len(steps) >= 3:
            texts = step_texts(tokenizer, completion.tokens, steps)
            analysed.append(_analyse(model, problem, prompt, completion.tokens, steps, texts))
        progress.advance(bar)
    return analysed


@torch.no_grad()
def _analyse(
    model: PreTrainedModel,
    problem: Problem,
    prompt: Sequence[int],
    response: Sequence[int],
    steps: Steps,
    texts: Sequence[str],
) -> AnalysedResponse:
    """Compute the signals of one response, in one forward."""
    ids_1T = torch.tensor([[*prompt, *response]], device=model.device)
    starts = [len(prompt) + start for start in steps.starts]
    spec = CaptureSpec([starts], [ids_1T.shape[1]], BranchingConfig().delta, lookups=True)
    with capture(model, spec) as captured, logits_only(model):
        logits_TV = model(ids_1T, use_cache=False).logits[0, len(prompt) - 1 : -1]
    logprobs_TV = logits_TV.float().log_softmax(-1)
    entropy_T = -(logprobs_TV.exp() * logprobs_TV).sum(-1)
    influence: dict[tuple[str, str], tuple[float, ...]] = {
        (rule.influence, rule.reduction): tuple(captured.of_steps(rule.measure)[0].tolist()) for rule in RULES.values()
    }
    return AnalysedResponse(problem.id, steps, tuple(entropy_T.tolist()), step_dependents(problem, texts), influence)


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
    """Run the experiment, and return the contents of ``results.json``.

    Args:
        model_name: a checkpoint directory, or the name of a shipped model.
        task: name of a task with a known dependency graph.
        problems: number of held-out problems.
        samples: responses per problem.
        max_new_tokens: token budget of a response.
        pivotal: number of direct dependents that makes a step pivotal.
        seed: seed of sampling, random rules and bootstrap.
        device: device of the model.
        output: directory for ``results.json`` and ``results.md``; None writes nothing.
        console: console for progress.

    Raises:
        UserError: an input is invalid. Raised before anything is sampled, unless no response has a pivotal step.
    """
    if output is not None:
        require_writable(output, f"--output {output}")
    held_out = held_out_problems(task, problems)
    require_dependencies(held_out[0])
    source = find_model(model_name)
    tokenizer = load_tokenizer(source.directory)
    loaded = load_model(source.directory, tokenizer, device=choose_device(device), dtype="float32")
    for note in (*source.notes, *loaded.notes):
        print_line(console, note)
    model = loaded.model
    require_influence(model)
    renderer = PromptRenderer(tokenizer, task_prompts(find_task(task), PromptSettings()))
    for line in renderer.show(held_out[0]):
        print_line(console, line)
    with progress_bars(console) as progress:
        responses = sample_responses(
            model, renderer, held_out, samples=samples, max_new_tokens=max_new_tokens, seed=seed, progress=progress
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


def summarize_pointing(responses: Sequence[AnalysedResponse], pivotal: int, seed: int) -> dict[str, Any]:
    """Return the mean scores of each rule with 95 % bootstrap intervals over problems.

    Raises:
        UserError: no response has an eligible pivotal step.
    """
    rules: dict[str, Any] = {}
    for name, branching in RULES.items():
        scores = [
            (response.problem, score)
            for number, response in enumerate(responses)
            if (score := score_rule(response, branching, pivotal, random.Random(f"{seed}/{name}/{number}")))
        ]
        if not scores:
            raise UserError(f"no response has a pivotal step (--pivotal {pivotal}) besides the first step")
        rules[name] = {
            field: _with_interval([(problem, getattr(score, field)) for problem, score in scores], seed)
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
    """Return the markdown table of the results of :func:`run_pointing`, as lines."""

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
