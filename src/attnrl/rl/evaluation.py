"""Evaluation of a policy: sample responses to a set of problems, grade the responses, report accuracy and pass@k.

Accuracy counts verdicts, and every response: a response that is not judged is not correct. The mean reward is over the
judged responses.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import fmean

from attnrl.grading.rewards import RewardManager
from attnrl.prompts.renderer import PromptRenderer
from attnrl.rl.metrics import function_means, verdict_ratios
from attnrl.tokenization import decode
from attnrl.types import Problem, Request, Sampler, Verdict
from attnrl.utils.statistics import standard_error


@dataclass(frozen=True)
class EvaluatedSample:
    """One graded response.

    Attributes:
        problem: id of the problem.
        sample: number of the response among the responses to the problem, from 0.
        prompt: text of the prompt.
        response: text of the response.
        answers: reference answers of the problem.
        reward: the reward; None: not judged.
        verdict: the grader's verdict.
        tokens: length of the response in tokens.
        finish_reason: ``stop`` or ``length``.
        extracted: the answer that the grader extracted from the response.
        seed: seed of the sampling request.
        rewards: the reward of each reward function, None where a function does not apply.
        fault: the reason why the response, or a part of the reward, is not judged; None without a fault.
    """

    problem: str
    sample: int
    prompt: str
    response: str
    answers: tuple[str, ...]
    reward: float | None
    verdict: Verdict
    tokens: int
    finish_reason: str
    extracted: str | None = None
    seed: int | None = None
    rewards: Mapping[str, float | None] = field(default_factory=dict)
    fault: str | None = None

    @property
    def is_correct(self) -> bool:
        """Return True for the verdict ``correct``."""
        return self.verdict == "correct"

    def as_dict(self) -> dict[str, object]:
        """Return the sample as a row of a JSON lines file."""
        return asdict(self)


@dataclass(frozen=True)
class Evaluation:
    """The graded responses to a set of problems, ``per_problem`` consecutive samples per problem.

    Attributes:
        samples: the graded responses.
        per_problem: responses per problem.
        logged: metrics logged by reward functions (TRL's ``log_metric``).
    """

    samples: tuple[EvaluatedSample, ...]
    per_problem: int
    logged: Mapping[str, float] = field(default_factory=dict)

    @property
    def _problems(self) -> list[tuple[EvaluatedSample, ...]]:
        k = self.per_problem
        return [self.samples[i : i + k] for i in range(0, len(self.samples), k)]

    @property
    def accuracy(self) -> float:
        """Return avg@k: the share of correct samples among all samples."""
        return fmean(sample.is_correct for sample in self.samples)

    @property
    def reward(self) -> float | None:
        """Return the mean reward of the judged samples; None without judged samples."""
        return mean_reward([sample.reward for sample in self.samples])

    @property
    def not_judged(self) -> list[EvaluatedSample]:
        """Return the samples without a reward."""
        return [sample for sample in self.samples if sample.reward is None]

    @property
    def standard_error(self) -> float:
        """Return the standard error of :attr:`accuracy` over problems (0 for a single problem)."""
        return standard_error([fmean(correct) for correct in self._correct])

    @property
    def pass_at_k(self) -> float:
        """Return the share of problems with at least one correct sample."""
        return fmean(any(correct) for correct in self._correct)

    @property
    def always_solved(self) -> float:
        """Return the share of problems with only correct samples."""
        return fmean(all(correct) for correct in self._correct)

    @property
    def _correct(self) -> list[list[bool]]:
        return [[sample.is_correct for sample in samples] for samples in self._problems]

    def metrics(self) -> dict[str, float]:
        """Return the metrics written to ``metrics.jsonl`` with the prefix ``eval/``."""
        return {
            "accuracy": self.accuracy,
            "standard_error": self.standard_error,
            **({} if self.reward is None else {"reward": self.reward}),
            **function_means([sample.rewards for sample in self.samples]),
            **self.logged,
            "not_judged/responses": len(self.not_judged),
            "not_judged/ratio": len(self.not_judged) / len(self.samples),
            "pass_at_k": self.pass_at_k,
            "always_solved": self.always_solved,
            "never_solved": 1.0 - self.pass_at_k,
            "response_length": fmean(sample.tokens for sample in self.samples),
            "truncated_ratio": fmean(sample.finish_reason == "length" for sample in self.samples),
            **verdict_ratios([sample.verdict for sample in self.samples]),
        }


def mean_reward(rewards: Sequence[float | None]) -> float | None:
    """Return the mean of the rewards of judged responses; None if no response is judged."""
    judged = [reward for reward in rewards if reward is not None]
    return fmean(judged) if judged else None


@dataclass(frozen=True)
class SampleRequest:
    """The sampling request of response number ``sample`` (from 0) to ``problem``."""

    problem: Problem
    sample: int
    request: Request


def evaluate(
    problems: Sequence[Problem],
    *,
    sampler: Sampler,
    rewards: RewardManager,
    renderer: PromptRenderer,
    samples: int,
    max_new_tokens: int,
    max_prompt_tokens: int,
    seed: int,
    step: int = 0,
) -> Evaluation:
    """Sample ``samples`` responses per problem in one batch and grade the responses.

    Args:
        problems: the problems.
        sampler: samples all responses in one batch.
        rewards: grades the responses.
        renderer: renders prompts and has the tokenizer.
        samples: responses per problem.
        max_new_tokens: token budget of a response.
        max_prompt_tokens: longest allowed prompt in tokens.
        seed: seeds the generator of the responses' seeds.
        step: the training step of the evaluated model; 0 before training.

    Raises:
        UserError: a prompt has more than ``max_prompt_tokens`` tokens.
    """
    rng = random.Random(f"{seed}/evaluation")
    prompts = {problem.id: renderer.encode(problem, max_prompt_tokens) for problem in problems}
    sample_requests = [
        SampleRequest(problem, k, Request(prompts[problem.id], max_new_tokens, rng.getrandbits(62)))
        for problem in problems
        for k in range(samples)
    ]
    evaluated = respond(sample_requests, sampler=sampler, rewards=rewards, renderer=renderer, step=step)
    return Evaluation(tuple(evaluated), samples, rewards.take_metrics())


def respond(
    sample_requests: Sequence[SampleRequest],
    *,
    sampler: Sampler,
    rewards: RewardManager,
    renderer: PromptRenderer,
    step: int = 0,
) -> list[EvaluatedSample]:
    """Sample all requests in one batch, grade the responses, and return the samples in the order of the requests."""
    completions = sampler.generate([sampled.request for sampled in sample_requests])
    responses = [
        renderer.finished_response(sampled.problem, completion.tokens, completion.finish_reason)
        for sampled, completion in zip(sample_requests, completions, strict=True)
    ]
    grades = rewards.grade(responses, step=step)
    return [
        EvaluatedSample(
            problem=sampled.problem.id,
            sample=sampled.sample,
            prompt=decode(renderer.tokenizer, sampled.request.prompt),
            response=response.text,
            answers=sampled.problem.answers,
            reward=grade.reward,
            verdict=grade.verdict,
            tokens=len(completion.tokens),
            finish_reason=completion.finish_reason,
            extracted=grade.answer,
            seed=sampled.request.seed,
            rewards=grade.rewards,
            fault=grade.fault,
        )
        for sampled, completion, response, grade in zip(sample_requests, completions, responses, grades, strict=True)
    ]
