"""The parts of the disruption experiment that run the model: sample and score responses, hide steps, continue."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean

from rich.progress import Progress
from transformers import PreTrainedModel

from attnrl.config.method import BranchingConfig
from attnrl.config.schema import LossConfig, OptimizerConfig
from attnrl.evals.candidates import sample_seed
from attnrl.experiments.disruption.choice import choose_steps, hideable_steps
from attnrl.experiments.disruption.hidden_steps import HiddenRequest, continue_hidden
from attnrl.experiments.disruption.settings import DisruptSettings
from attnrl.experiments.disruption.summary import HiddenStep
from attnrl.grading.rewards import RewardManager
from attnrl.inference.sampler import build_sampler
from attnrl.local.policy import LocalPolicy
from attnrl.method.steps import Steps
from attnrl.prompts.renderer import PromptRenderer
from attnrl.rl.evaluation import SampleRequest
from attnrl.tokenization import decode, end_of_sequence_ids, response_steps
from attnrl.types import Completion, Grade

#: Settings of branching that make the policy compute each attention signal.
ATTENTION_SIGNALS: dict[str, dict[str, str]] = {
    "fci": {"reduction": "max"},
    "zscore_fci": {"reduction": "zscore_max"},
    "lookups": {"influence": "lookups"},
}


@dataclass(frozen=True)
class ScoredResponse:
    """A graded response with the value of every signal at every step.

    Attributes:
        sampled: the request of the response.
        tokens: token ids.
        steps: the steps.
        answer: the answer extracted by the grader, or None.
        reward: the reward; None: not judged.
        is_correct: True for the verdict ``correct``.
        signals: name of a signal -> one value per step.
    """

    sampled: SampleRequest
    tokens: tuple[int, ...]
    steps: Steps
    answer: str | None
    reward: float | None
    is_correct: bool
    signals: dict[str, tuple[float, ...]]

    @property
    def name(self) -> str:
        """Return a name unique in the experiment: problem id and sample number."""
        return f"{self.sampled.problem.id}/{self.sampled.sample}"


class DisruptionExperiment:
    """One model with renderer of prompts, grader and settings."""

    def __init__(
        self,
        model: PreTrainedModel,
        renderer: PromptRenderer,
        rewards: RewardManager,
        settings: DisruptSettings,
        batch: int,
        progress: Progress,
    ) -> None:
        """``batch`` is the number of rows decoded at the same time."""
        self.model = model
        self.renderer = renderer
        self.tokenizer = renderer.tokenizer
        self.rewards = rewards
        self.settings = settings
        self.batch = batch
        self.progress = progress
        self.seed = settings.evaluation.seed

    def sample_responses(self, requests: Sequence[SampleRequest]) -> list[ScoredResponse]:
        """Sample, grade and score the responses."""
        bar = self.progress.add_task("responses", total=len(requests))
        sampler = build_sampler(
            self.model,
            self.tokenizer,
            self.settings.evaluation.sampling,
            max_batch=self.batch,
            on_progress=lambda tokens, done: self.progress.update(bar, completed=done),
        )
        completions = sampler.generate([sampled.request for sampled in requests])
        all_steps = [
            response_steps(self.tokenizer, completion.tokens, ended=completion.ends_with_eos)
            for completion in completions
        ]
        grades = self._grade(requests, [completion.tokens for completion in completions], completions)
        all_signals = self._signals(requests, completions, all_steps)
        return [
            ScoredResponse(sampled, completion.tokens, steps, grade.answer, grade.reward, grade.is_correct, signals)
            for sampled, completion, steps, grade, signals in zip(
                requests, completions, all_steps, grades, all_signals, strict=True
            )
        ]

    def _grade(
        self,
        requests: Sequence[SampleRequest],
        responses: Sequence[tuple[int, ...]],
        completions: Sequence[Completion],
    ) -> list[Grade]:
        return self.rewards.grade(
            [
                self.renderer.finished_response(one.problem, tokens, completion.finish_reason)
                for one, tokens, completion in zip(requests, responses, completions, strict=True)
            ],
            step=0,
        )

    def _signals(
        self, requests: Sequence[SampleRequest], completions: Sequence[Completion], all_steps: Sequence[Steps]
    ) -> list[dict[str, tuple[float, ...]]]:
        """Return the attention signals and the mean entropy of each step of each response."""
        branching = BranchingConfig(delta=self.settings.delta)
        policy = LocalPolicy(
            self.model,
            None,
            loss=LossConfig(),
            optimizer=OptimizerConfig(),
            branching=branching,
            temperature=self.settings.evaluation.sampling.temperature or 1.0,
            packing="none",  # works with any architecture
        )
        bar = self.progress.add_task("influence", total=len(ATTENTION_SIGNALS) * len(requests))
        all_signals: list[dict[str, tuple[float, ...]]] = [{} for _ in requests]
        for name, changes in ATTENTION_SIGNALS.items():
            policy.branching = branching.model_copy(update=changes)
            for start in range(0, len(requests), self.batch):
                part = slice(start, start + self.batch)
                scores = policy.score(
                    [sampled.request.prompt for sampled in requests[part]],
                    [completion.tokens for completion in completions[part]],
                    all_steps[part],
                )
                for signals, steps, score in zip(all_signals[part], all_steps[part], scores, strict=True):
                    signals[name] = score.influence
                    signals["entropy"] = tuple(fmean(score.entropy[a:b]) for a, b in steps.ranges())
                self.progress.advance(bar, len(scores))
        return all_signals

    def hide_steps(self, responses: Sequence[ScoredResponse]) -> list[HiddenStep]:
        """Continue each response behind each chosen step, with nothing hidden and with the step hidden."""
        cuts = [(response, step, names) for response in responses for step, names in self._chosen_steps(response)]
        requests = [
            request
            for response, step, _ in cuts
            for hidden in (False, True)
            for request in self._continuation_requests(response, step, hidden)
        ]
        bar = self.progress.add_task("continuations", total=len(requests))
        completions = continue_hidden(
            self.model,
            requests,
            self.settings.evaluation.sampling,
            eos_token_ids=end_of_sequence_ids(self.model.generation_config, self.tokenizer),
            pad_token_id=self.tokenizer.pad_token_id or 0,
            decode=partial(decode, self.tokenizer),
            max_batch=self.batch,
            on_progress=lambda tokens, done: self.progress.update(bar, completed=done),
        )
        n = self.settings.continuations
        owners = [response for response, _, _ in cuts for _ in range(2 * n)]
        grades = self._grade(
            [response.sampled for response in owners],
            [
                (*request.prompt[len(response.sampled.request.prompt) :], *completion.tokens)
                for response, request, completion in zip(owners, requests, completions, strict=True)
            ],
            completions,
        )
        rewards = [grade.reward for grade in grades]
        correct = [grade.is_correct for grade in grades]
        agrees = [
            grade.answer is not None and grade.answer == response.answer
            for grade, response in zip(grades, owners, strict=True)
        ]
        hidden_steps = []
        for place, (response, step, names) in enumerate(cuts):
            undisturbed = slice(2 * n * place, 2 * n * place + n)
            disrupted = slice(2 * n * place + n, 2 * n * (place + 1))
            hidden_steps.append(
                HiddenStep(
                    problem=response.sampled.problem.id,
                    sample=response.sampled.sample,
                    step=step,
                    steps=len(response.steps),
                    tokens=response.steps.lengths[step],
                    conditions=names,
                    signals={signal: values[step] for signal, values in response.signals.items()},
                    undisturbed=tuple(correct[undisturbed]),
                    disrupted=tuple(correct[disrupted]),
                    undisturbed_rewards=tuple(rewards[undisturbed]),
                    disrupted_rewards=tuple(rewards[disrupted]),
                    undisturbed_agrees=tuple(agrees[undisturbed]),
                    disrupted_agrees=tuple(agrees[disrupted]),
                )
            )
        return hidden_steps

    def _chosen_steps(self, response: ScoredResponse) -> list[tuple[int, dict[str, bool]]]:
        """Return the steps to hide without duplicates, each with the conditions that chose the step.

        The value of a condition is :attr:`attnrl.experiments.disruption.choice.ChosenStep.contrasts`.
        """
        choices = choose_steps(
            hideable_steps(response.steps, self.settings.lag),
            response.signals,
            bins=self.settings.bins,
            rho=self.settings.rho,
            name=f"{self.seed}/{response.name}",
        )
        chosen: dict[int, dict[str, bool]] = {}
        for condition, choice in choices.items():
            chosen.setdefault(choice.step, {})[condition] = choice.contrasts
        return sorted(chosen.items())

    def _continuation_requests(self, response: ScoredResponse, step: int, hidden: bool) -> Iterator[HiddenRequest]:
        """Yield the continuations of one cut; the seeds do not depend on ``step`` and ``hidden``."""
        prompt = response.sampled.request.prompt
        cut = response.steps.starts[step + self.settings.lag]
        kept = (*prompt, *response.tokens[:cut])
        start, end = (len(prompt) + offset for offset in response.steps.ranges()[step])
        end = min(end, len(kept) - 1)  # with a lag of 1 the last kept token, read next, belongs to the hidden step
        from_end = hidden and self.settings.hide_from == "next_step"
        for number in range(self.settings.continuations):
            yield HiddenRequest(
                prompt=kept,
                hidden=(start, end) if hidden else (0, 0),
                unseen_from=end if from_end else len(kept) - 1,
                max_new_tokens=response.sampled.request.max_new_tokens - cut,
                seed=sample_seed(self.seed, "continuation", response.name, number),
                response_tokens=cut,
            )
