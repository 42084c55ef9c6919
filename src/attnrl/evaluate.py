"""Evaluation: avg@k and pass@k of a sampler on a set of problems."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import fmean

from transformers import PreTrainedTokenizerBase

from attnrl.metrics import verdict_ratios
from attnrl.protocols import Grader, Request, Sampler, Verdict
from attnrl.tasks.problem import Problem
from attnrl.tokens import decode, encode_prompt


@dataclass(frozen=True)
class EvaluatedSample:
    """One graded response; ``sample`` counts from 0 within its problem, ``tokens`` is its length."""

    problem: str
    sample: int
    prompt: str
    response: str
    answers: tuple[str, ...]
    reward: float
    verdict: Verdict
    tokens: int
    finish_reason: str

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
        means = [fmean(sample.reward for sample in samples) for samples in self._problems]
        centre = fmean(means)
        spread = sum((mean - centre) ** 2 for mean in means)
        return math.sqrt(spread / (len(means) * max(1, len(means) - 1)))

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
        return [[sample.reward >= 1.0 for sample in samples] for samples in self._problems]

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
    pairs = [(problem, k) for problem in problems for k in range(samples)]
    prompts = {problem.id: encode_prompt(tokenizer, problem, max_prompt_tokens) for problem in problems}
    completions = sampler.generate(
        [Request(prompts[problem.id], max_new_tokens, rng.getrandbits(62)) for problem, _ in pairs]
    )
    responses = [decode(tokenizer, completion.tokens) for completion in completions]
    grades = grader.grade([problem for problem, _ in pairs], responses)
    return Evaluation(
        tuple(
            EvaluatedSample(
                problem=problem.id,
                sample=k,
                prompt=decode(tokenizer, prompts[problem.id]),
                response=response,
                answers=problem.answers,
                reward=grade.reward,
                verdict=grade.verdict,
                tokens=len(completion.tokens),
                finish_reason=completion.finish_reason,
            )
            for (problem, k), completion, response, grade in zip(pairs, completions, responses, grades, strict=True)
        ),
        samples,
    )
