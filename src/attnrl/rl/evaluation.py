"""Evaluation: sampling and grading responses to a set of problems, and what they say about the model."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import fmean

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from attnrl.rl.metrics import CORRECT, verdict_ratios
from attnrl.tokenization import decode, encode_prompt
from attnrl.types import Grader, Problem, Request, Sampler, Verdict


@dataclass(frozen=True)
class EvaluatedSample:
    """One graded response.

    ``sample`` counts from 0 within its problem, ``tokens`` is its length, ``extracted`` what the grader took for its
    answer, and ``seed`` the seed that it was drawn with.
    """

    problem: str
    sample: int
    prompt: str
    response: str
    answers: tuple[str, ...]
    reward: float
    verdict: Verdict
    tokens: int
    finish_reason: str
    extracted: str | None = None
    seed: int | None = None

    def as_dict(self) -> dict[str, object]:
        """A row for a jsonl file."""
        return asdict(self)


@dataclass(frozen=True)
class Evaluation:
    """The responses to a set of problems, the same number to each, problem by problem."""

    samples: tuple[EvaluatedSample, ...]
    per_problem: int

    @property
    def _problems(self) -> list[tuple[EvaluatedSample, ...]]:
        k = self.per_problem
        return [self.samples[i : i + k] for i in range(0, len(self.samples), k)]

    @property
    def accuracy(self) -> float:
        """avg@k: mean reward over all samples."""
        return fmean(sample.reward for sample in self.samples)

    @property
    def standard_error(self) -> float:
        """Standard error of :attr:`accuracy` over problems (0 for a single problem)."""
        return standard_error([fmean(sample.reward for sample in samples) for samples in self._problems])

    @property
    def pass_at_k(self) -> float:
        """Share of problems with at least one correct sample."""
        return fmean(any(rewards) for rewards in self._correct)

    @property
    def always_solved(self) -> float:
        """Share of problems whose samples are all correct."""
        return fmean(all(rewards) for rewards in self._correct)

    @property
    def _correct(self) -> list[list[bool]]:
        return [[sample.reward >= CORRECT for sample in samples] for samples in self._problems]

    def metrics(self) -> dict[str, float]:
        """The numbers that go into ``metrics.jsonl`` under ``eval/``."""
        return {
            "accuracy": self.accuracy,
            "standard_error": self.standard_error,
            "pass_at_k": self.pass_at_k,
            "always_solved": self.always_solved,
            "never_solved": 1.0 - self.pass_at_k,
            "response_length": fmean(sample.tokens for sample in self.samples),
            "truncated_ratio": fmean(sample.finish_reason == "length" for sample in self.samples),
            **verdict_ratios([sample.verdict for sample in self.samples]),
        }


def evaluate(
    problems: Sequence[Problem],
    *,
    sampler: Sampler,
    grader: Grader,
    tokenizer: PreTrainedTokenizerBase,
    samples: int,
    max_new_tokens: int,
    max_prompt_tokens: int,
    seed: int,
) -> Evaluation:
    """Sample ``samples`` responses to each problem and grade them; ``seed`` decides every draw."""
    rng = random.Random(f"{seed}/evaluation")
    prompts = {problem.id: encode_prompt(tokenizer, problem, max_prompt_tokens) for problem in problems}
    draws = [
        SampleRequest(problem, k, Request(prompts[problem.id], max_new_tokens, rng.getrandbits(62)))
        for problem in problems
        for k in range(samples)
    ]
    return Evaluation(tuple(respond(draws, sampler=sampler, grader=grader, tokenizer=tokenizer)), samples)


@dataclass(frozen=True)
class SampleRequest:
    """One response to be sampled: the ``sample``-th to ``problem``."""

    problem: Problem
    sample: int
    request: Request


def respond(
    draws: Sequence[SampleRequest], *, sampler: Sampler, grader: Grader, tokenizer: PreTrainedTokenizerBase
) -> list[EvaluatedSample]:
    """Sample all ``draws`` in one batch and grade what comes, in order."""
    completions = sampler.generate([draw.request for draw in draws])
    responses = [decode(tokenizer, completion.tokens) for completion in completions]
    grades = grader.grade([draw.problem for draw in draws], responses)
    return [
        EvaluatedSample(
            problem=draw.problem.id,
            sample=draw.sample,
            prompt=decode(tokenizer, draw.request.prompt),
            response=response,
            answers=draw.problem.answers,
            reward=grade.reward,
            verdict=grade.verdict,
            tokens=len(completion.tokens),
            finish_reason=completion.finish_reason,
            extracted=grade.answer,
            seed=draw.request.seed,
        )
        for draw, completion, response, grade in zip(draws, completions, responses, grades, strict=True)
    ]


# --- Estimates over problems ----------------------------------------------------------------------------------------


def standard_error(means: Sequence[float]) -> float:
    """Standard error of the mean of the problems' ``means`` (0 for a single problem)."""
    centre = fmean(means)
    spread = sum((mean - centre) ** 2 for mean in means)
    return math.sqrt(spread / (len(means) * max(1, len(means) - 1)))


def estimate_pass_at_k(samples: int, correct: int, k: int) -> float:
    """Chance that at least one of ``k`` responses is correct, from ``samples`` of which ``correct`` are.

    Unbiased (1 - C(n-c, k) / C(n, k)): the share of all choices of ``k`` among the samples that hold a correct one.
    """
    return 1.0 - math.comb(samples - correct, k) / math.comb(samples, k)


def pass_ks(samples: int) -> list[int]:
    """The k for which pass@k is told: 1, 2, 4, ... and the number of samples itself."""
    return sorted({2**power for power in range(samples.bit_length())} | {samples})


BOOTSTRAP_RESAMPLES = 10_000
_RESAMPLED_AT_ONCE = 2_000_000  # indices held in memory


def bootstrap_means(values: Sequence[float], seed: int, resamples: int = BOOTSTRAP_RESAMPLES) -> Tensor:
    """Means of ``resamples`` samples drawn with replacement from ``values`` (as many each), in double precision."""
    generator = torch.Generator().manual_seed(seed)
    values_P = torch.tensor(values, dtype=torch.float64)
    problems = len(values)
    block = max(1, _RESAMPLED_AT_ONCE // problems)
    return torch.cat(
        [
            values_P[torch.randint(problems, (min(block, resamples - start), problems), generator=generator)].mean(1)
            for start in range(0, resamples, block)
        ]
    )


def interval(means: Tensor, confidence: float = 0.95) -> tuple[float, float]:
    """The middle ``confidence`` of bootstrap means."""
    tail = (1.0 - confidence) / 2
    low, high = torch.quantile(means, torch.tensor([tail, 1.0 - tail], dtype=means.dtype)).tolist()
    return low, high


@dataclass(frozen=True)
class Outcome:
    """What the numbers need of one graded response; an :class:`EvaluatedSample` without its texts."""

    problem: str
    reward: float
    verdict: Verdict
    tokens: int
    finish_reason: str


@dataclass(frozen=True)
class Summary:
    """What the responses to a set of problems, ``samples`` to each, say about the model.

    Attributes:
        problems: how many there are, those without responses included.
        skipped: problems without responses, because their prompts are too long for the model. They count as not
            solved, so that all models are measured on the same problems.
        samples: responses to each problem.
        accuracy: avg@k, the mean over problems of their mean reward.
        standard_error: of ``accuracy``, over problems.
        means: bootstrap means of ``accuracy``.
        pass_at_k: unbiased estimates, by k.
        response_length: mean tokens of a response.
        truncated_ratio: share of responses that ran into their token budget.
        verdicts: share of each verdict of grading, by its name.
    """

    problems: int
    skipped: int
    samples: int
    accuracy: float
    standard_error: float
    means: Tensor
    pass_at_k: dict[int, float]
    response_length: float
    truncated_ratio: float
    verdicts: dict[str, float]

    def as_dict(self) -> dict[str, object]:
        """The numbers as they go into ``results.json``."""
        return {
            "problems": self.problems,
            "skipped_problems": self.skipped,
            "samples": self.samples,
            "accuracy": self.accuracy,
            "confidence_interval": list(interval(self.means)),
            "standard_error": self.standard_error,
            "pass_at_k": {str(k): value for k, value in self.pass_at_k.items()},
            "response_length": self.response_length,
            "truncated_ratio": self.truncated_ratio,
            "verdicts": self.verdicts,
        }


def summarize(outcomes: Sequence[Outcome], *, samples: int, skipped: int, seed: int) -> Summary:
    """Summarize responses, ``samples`` to each problem (at least one problem has some); ``seed`` is the bootstrap's."""
    rewards: dict[str, list[float]] = {}
    for outcome in outcomes:
        rewards.setdefault(outcome.problem, []).append(outcome.reward)
    if not rewards or any(len(its) != samples for its in rewards.values()):
        raise ValueError(f"expected {samples} responses to each problem")
    means = [fmean(its) for its in rewards.values()] + [0.0] * skipped
    correct = [sum(reward >= CORRECT for reward in its) for its in rewards.values()] + [0] * skipped
    return Summary(
        problems=len(means),
        skipped=skipped,
        samples=samples,
        accuracy=fmean(means),
        standard_error=standard_error(means),
        means=bootstrap_means(means, seed),
        pass_at_k={k: fmean(estimate_pass_at_k(samples, c, k) for c in correct) for k in pass_ks(samples)},
        response_length=fmean(outcome.tokens for outcome in outcomes),
        truncated_ratio=fmean(outcome.finish_reason == "length" for outcome in outcomes),
        verdicts={
            name.removeprefix("grade/").removesuffix("_ratio"): share
            for name, share in verdict_ratios([outcome.verdict for outcome in outcomes]).items()
        },
    )
