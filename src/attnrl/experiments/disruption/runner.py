"""``attnrl disrupt``: hide one step of a response from all that comes after it, and see what it was worth (fig. 3).

1. Sample and grade responses, cut them into steps, score each step's FCI and mean entropy.
2. For each condition choose one step of each response (:mod:`attnrl.experiments.disruption.choice`).
3. Keep the response up to ``lag`` steps from there on, and sample the rest anew: with all to be seen, and with the
   step hidden (:mod:`attnrl.experiments.disruption.hidden_steps`), by the same seeds. Grade both.
4. Sum up (:mod:`attnrl.experiments.disruption.summary`).
"""

from __future__ import annotations

import json
import platform
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.console import Console
from rich.progress import Progress
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from attnrl.config.schema import BranchingConfig, LossConfig, OptimizerConfig
from attnrl.data.fitting import as_chat
from attnrl.errors import UserError
from attnrl.evals.batching import MAX_BATCH, rows_that_fit
from attnrl.evals.candidates import require_positions, sample_seed
from attnrl.evals.settings import EvalSettings, open_grader
from attnrl.evals.suites import Suite
from attnrl.experiments.disruption.choice import Choice, choose_steps, hideable
from attnrl.experiments.disruption.hidden_steps import HiddenRequest, check_hiding, continue_hidden
from attnrl.experiments.disruption.report import draw_disruption, markdown
from attnrl.experiments.disruption.summary import HiddenStep, summarize
from attnrl.local.loading import (
    build_sampler,
    choose_device,
    load_model,
    load_tokenizer,
    model_directory,
    require_influence,
)
from attnrl.local.policy import LocalPolicy
from attnrl.method.steps import Steps
from attnrl.report.pictures import pyplot_for
from attnrl.rl.evaluation import SampleRequest
from attnrl.tokenization import decode, encode_prompt, end_of_sequence_ids, response_steps
from attnrl.types import Completion, Grader, Problem, Request
from attnrl.utils.console import progress_bars
from attnrl.utils.files import require_writable

HIDE_FROM = ("continuation", "next_step")
#: What training would be told to have each of the signals that attention gives.
OF_ATTENTION: dict[str, dict[str, str]] = {
    "fci": {"reduction": "max"},
    "zscore_fci": {"reduction": "zscore_max"},
    "lookups": {"influence": "lookups"},
}


@dataclass(frozen=True)
class DisruptSettings:
    """What decides the outcome beside the model and the problems.

    Attributes:
        evaluation: how responses are sampled and graded.
        lag: steps that are kept, the hidden one the first of them.
        delta: of FCI.
        rho: share of a response's eligible steps that count as its top ones.
        bins: position bins.
        continuations: of each step, hidden and not.
        hide_from: ``continuation``: what is sampled does not see the step, the kept steps after it were computed as
            always; ``next_step``: these do not see it either.
    """

    evaluation: EvalSettings
    lag: int
    delta: int
    rho: float
    bins: int
    continuations: int
    hide_from: str


def check_options(*, hide_from: str, rho: float, task: str | None, data: str | None) -> None:
    """Check what the command line leaves open of this command's own options, before anything is loaded.

    Raises:
        UserError: a value that will not do; it is named.
    """
    if hide_from not in HIDE_FROM:
        raise UserError(f"--hide-from {hide_from}: expected {' or '.join(HIDE_FROM)}")
    if rho <= 0:
        raise UserError(f"--rho {rho}: expected more than 0")
    if (task is None) == (data is None):
        raise UserError("give one of --task and --data")


@dataclass(frozen=True)
class Response:
    """A graded response with its steps; ``signals`` has a value of each step for each signal."""

    draw: SampleRequest
    tokens: tuple[int, ...]
    steps: Steps
    answer: str | None
    reward: float
    signals: dict[str, tuple[float, ...]]

    @property
    def name(self) -> str:
        """Tells it from all others of the experiment."""
        return f"{self.draw.problem.id}/{self.draw.sample}"


def run_disruption(
    model_name: str,
    suite: Suite,
    settings: DisruptSettings,
    *,
    console: Console,
    device: str = "auto",
    output: Path | None = None,
    max_batch: int | None = None,
    trust_remote_code: bool = False,
) -> dict[str, Any]:
    """The whole experiment; returns what goes into ``results.json``.

    ``trust_remote_code`` runs the code that the model's directory brings.

    Raises:
        UserError: something will not do. All but responses with too few steps is told before anything is sampled.
    """
    if output is not None:
        _require_new(output)
    where = choose_device(device)
    directory = model_directory(model_name)
    tokenizer = load_tokenizer(directory, trust_remote_code=trust_remote_code)
    with open_grader(settings.evaluation):
        pass  # there is one
    model = load_model(directory, device=where, dtype=settings.evaluation.dtype, trust_remote_code=trust_remote_code)
    require_influence(model)
    draws = _draws(suite, settings.evaluation, tokenizer, model)
    batch = min(rows_that_fit(model, draws), max_batch or MAX_BATCH)
    build_sampler(model, tokenizer, temperature=1.0, top_p=1.0, max_batch=batch)  # it takes the model
    check_hiding(model)
    try:
        with progress_bars(console) as progress, open_grader(settings.evaluation) as grader:
            experiment = Experiment(model, tokenizer, grader, settings, batch, progress)
            responses = experiment.responses(draws)
            usable = [r for r in responses if len(hideable(r.steps, settings.lag)) >= 2 * settings.bins]
            if not usable:
                raise UserError(_too_few_steps(responses, settings))
            records = experiment.hide(usable)
    except KeyboardInterrupt:
        _say(console, "Stopped. Nothing was written: the numbers need all continuations.")
        raise
    results = {
        "model": model_name,
        "task": suite.name,
        "source": suite.source,
        "settings": asdict(settings),
        "max_new_tokens": suite.max_new_tokens,
        "sampled": {
            "problems": len({r.draw.problem.id for r in responses}),
            "responses": len(responses),
            "accuracy": fmean(r.reward for r in responses),
            "mean_tokens": fmean(len(r.tokens) for r in responses),
            "mean_steps": fmean(len(r.steps) for r in responses),
        },
        **summarize(records, settings.bins, settings.evaluation.seed),
        "versions": {
            "python": platform.python_version(),
            **{package: metadata.version(package) for package in ("attnrl", "torch", "transformers")},
            "device": where.type,
        },
    }
    _say(console, markdown(results))
    if output is not None:
        _write(output, results, records)
        _say(console, f"Written to {output}")
    return results


class Experiment:
    """One model with all that the parts of the experiment need."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        grader: Grader,
        settings: DisruptSettings,
        batch: int,
        progress: Progress,
    ) -> None:
        """``batch`` is the number of rows decoded at the same time."""
        self.model = model
        self.tokenizer = tokenizer
        self.grader = grader
        self.settings = settings
        self.batch = batch
        self.progress = progress
        self.seed = settings.evaluation.seed

    def responses(self, draws: Sequence[SampleRequest]) -> list[Response]:
        """Sample, grade and score the responses."""
        bar = self.progress.add_task("responses", total=len(draws))
        sampler = build_sampler(
            self.model,
            self.tokenizer,
            temperature=self.settings.evaluation.temperature,
            top_p=self.settings.evaluation.top_p,
            max_batch=self.batch,
            on_progress=lambda tokens, done: self.progress.update(bar, completed=done),
        )
        completions = sampler.generate([draw.request for draw in draws])
        steps = [
            response_steps(self.tokenizer, completion.tokens, ended=completion.finish_reason == "stop")
            for completion in completions
        ]
        grades = self.grader.grade(
            [draw.problem for draw in draws], [decode(self.tokenizer, completion.tokens) for completion in completions]
        )
        signals = self._signals(draws, completions, steps)
        return [
            Response(draw, completion.tokens, its_steps, grade.answer, grade.reward, its_signals)
            for draw, completion, its_steps, grade, its_signals in zip(
                draws, completions, steps, grades, signals, strict=True
            )
        ]

    def _signals(
        self, draws: Sequence[SampleRequest], completions: Sequence[Completion], steps: Sequence[Steps]
    ) -> list[dict[str, tuple[float, ...]]]:
        """FCI by both reductions, lookups and mean entropy of each step of each response."""
        branching = BranchingConfig(delta=self.settings.delta)
        policy = LocalPolicy(
            self.model,
            None,
            loss=LossConfig(),
            optimizer=OptimizerConfig(packing="none"),  # any architecture does
            branching=branching,
            temperature=self.settings.evaluation.temperature or 1.0,
        )
        bar = self.progress.add_task("influence", total=len(OF_ATTENTION) * len(draws))
        found: list[dict[str, tuple[float, ...]]] = [{} for _ in draws]
        for name, how in OF_ATTENTION.items():
            policy.branching = branching.model_copy(update=how)
            for start in range(0, len(draws), self.batch):
                part = slice(start, start + self.batch)
                scores = policy.score(
                    [draw.request.prompt for draw in draws[part]], [c.tokens for c in completions[part]], steps[part]
                )
                for signals, its_steps, score in zip(found[part], steps[part], scores, strict=True):
                    signals[name] = score.fci
                    signals["entropy"] = tuple(fmean(score.entropy[a:b]) for a, b in its_steps.ranges())
                self.progress.advance(bar, len(scores))
        return found

    def hide(self, responses: Sequence[Response]) -> list[HiddenStep]:
        """Continue each response from behind each chosen step, with and without it."""
        wanted = [(response, step, names) for response in responses for step, names in self._chosen(response)]
        requests = [
            request
            for response, step, _ in wanted
            for hidden in (False, True)
            for request in self._requests(response, step, hidden)
        ]
        bar = self.progress.add_task("continuations", total=len(requests))
        completions = continue_hidden(
            self.model,
            requests,
            eos_token_ids=end_of_sequence_ids(self.model.generation_config, self.tokenizer),
            pad_token_id=self.tokenizer.pad_token_id or 0,
            temperature=self.settings.evaluation.temperature,
            top_p=self.settings.evaluation.top_p,
            max_batch=self.batch,
            on_progress=lambda tokens, done: self.progress.update(bar, completed=done),
        )
        n = self.settings.continuations
        owners = [response for response, _, _ in wanted for _ in range(2 * n)]
        grades = self.grader.grade(
            [response.draw.problem for response in owners],
            [
                decode(self.tokenizer, (*request.prompt[len(response.draw.request.prompt) :], *completion.tokens))
                for response, request, completion in zip(owners, requests, completions, strict=True)
            ],
        )
        rewards = [grade.reward for grade in grades]
        agrees = [g.answer is not None and g.answer == r.answer for g, r in zip(grades, owners, strict=True)]
        records = []
        for place, (response, step, names) in enumerate(wanted):
            a, b, c = 2 * n * place, 2 * n * place + n, 2 * n * (place + 1)
            records.append(
                HiddenStep(
                    problem=response.draw.problem.id,
                    sample=response.draw.sample,
                    step=step,
                    steps=len(response.steps),
                    tokens=response.steps.lengths[step],
                    conditions=names,
                    signals={signal: values[step] for signal, values in response.signals.items()},
                    undisturbed=tuple(rewards[a:b]),
                    disrupted=tuple(rewards[b:c]),
                    undisturbed_agrees=tuple(agrees[a:b]),
                    disrupted_agrees=tuple(agrees[b:c]),
                )
            )
        return records

    def _chosen(self, response: Response) -> list[tuple[int, dict[str, bool]]]:
        """The steps to hide, each once, with the conditions that chose it."""
        choices: dict[str, Choice] = choose_steps(
            hideable(response.steps, self.settings.lag),
            response.signals,
            bins=self.settings.bins,
            rho=self.settings.rho,
            name=f"{self.seed}/{response.name}",
        )
        chosen: dict[int, dict[str, bool]] = {}
        for condition, choice in choices.items():
            chosen.setdefault(choice.step, {})[condition] = choice.contrasts
        return sorted(chosen.items())

    def _requests(self, response: Response, step: int, hidden: bool) -> Iterator[HiddenRequest]:
        """The continuations of one cut; their seeds are the same for every step, hidden or not."""
        prompt = response.draw.request.prompt
        cut = response.steps.starts[step + self.settings.lag]
        kept = (*prompt, *response.tokens[:cut])
        start, end = (len(prompt) + offset for offset in response.steps.ranges()[step])
        end = min(end, len(kept) - 1)  # with a lag of 1 the token that is read next is the step's own last one
        from_end = hidden and self.settings.hide_from == "next_step"
        for number in range(self.settings.continuations):
            yield HiddenRequest(
                prompt=kept,
                hidden=(start, end) if hidden else (0, 0),
                unseen_from=end if from_end else len(kept) - 1,
                max_new_tokens=response.draw.request.max_new_tokens - cut,
                seed=sample_seed(self.seed, "continuation", response.name, number),
            )


# --- Before and after -----------------------------------------------------------------------------------------------


def _draws(
    suite: Suite, settings: EvalSettings, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel
) -> list[SampleRequest]:
    """The responses to sample; each has to fit the model's positions."""
    prompts: list[tuple[Problem, tuple[int, ...]]] = []
    for problem in suite.problems:
        prompt = encode_prompt(tokenizer, as_chat(problem, tokenizer), settings.max_prompt_tokens or 1 << 62)
        require_positions(model, problem, prompt, suite.max_new_tokens)
        prompts.append((problem, prompt))
    return [
        SampleRequest(
            problem, k, Request(prompt, suite.max_new_tokens, sample_seed(settings.seed, suite.name, problem.id, k))
        )
        for problem, prompt in prompts
        for k in range(suite.samples)
    ]


def _too_few_steps(responses: Sequence[Response], settings: DisruptSettings) -> str:
    most = max((len(hideable(response.steps, settings.lag)) for response in responses), default=0)
    return (
        f"no response has enough steps: --bins {settings.bins} needs {2 * settings.bins} that can be hidden with "
        f"--lag {settings.lag}, the most are {most} (mean steps {fmean(len(r.steps) for r in responses):.1f}); "
        "a smaller --lag or fewer --bins may do"
    )


def _require_new(output: Path) -> None:
    if (output / "results.json").exists():
        raise UserError(f"--output {output}: holds results already, choose another directory")
    require_writable(output, f"--output {output}")
    pyplot_for("disrupt --output")


def _write(output: Path, results: dict[str, Any], records: Sequence[HiddenStep]) -> None:
    output.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(record.as_dict()) + "\n" for record in records)
    (output / "steps.jsonl").write_text(lines, encoding="utf-8")
    (output / "results.md").write_text(markdown(results) + "\n", encoding="utf-8")
    draw_disruption(results, output / "disruption.png")
    (output / "results.json").write_text(json.dumps(results, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _say(console: Console, text: str) -> None:
    console.print(text, highlight=False, markup=False, soft_wrap=True)
