"""Tiny models, and plain stand-ins for sampler, grader and policy whose every answer a test can predict."""

from __future__ import annotations

import random
import sys
import zlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel, PreTrainedTokenizerBase

from attnrl.cli import app as cli
from attnrl.config.load import load_config
from attnrl.config.schema import TrainConfig
from attnrl.grading.rewards import RewardManager
from attnrl.method.steps import Steps
from attnrl.prompts.renderer import PromptRenderer
from attnrl.rl.state import TrainerState
from attnrl.rl.trainer import Trainer
from attnrl.types import Completion, Grade, Problem, Request, Score, TrainingRow, Verdict


def tiny_model(*, vocab_size: int = 61, seed: int = 0, **settings: object) -> PreTrainedModel:
    """A random two-layer Llama whose attention and predictions are far from uniform."""
    torch.manual_seed(seed)
    shape = dict(
        vocab_size=vocab_size,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        initializer_range=0.2,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=1,
    )
    config = LlamaConfig(**{**shape, **settings})
    return AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()


def hash_reward(answer: str, response: str) -> float:
    """A reward that looks random and is not: about half of all responses are correct."""
    return float(zlib.crc32(response.encode()) % 2)


@dataclass
class FakeSampler:
    """Answers each request by its seed alone: 4 to 9 short steps, at times a blank line, the end of the sequence.

    Its log-probs are -99, which no training row may hold: old log-probs are the policy's.

    Requests finish in order or, with ``lateness``, those of the least first; when ``should_stop`` says so, the others
    come back cut off at a place that their seeds decide, some with nothing at all.
    """

    tokenizer: PreTrainedTokenizerBase
    lateness: Callable[[Request], Any] | None = None
    calls: list[list[Request]] = field(default_factory=list)
    syncs: int = 0

    def generate(
        self,
        requests: Sequence[Request],
        *,
        on_completion: Callable[[int, Completion], None] | None = None,
        should_stop: Callable[[Collection[int]], bool] | None = None,
    ) -> list[Completion]:
        self.calls.append(list(requests))
        completions = [self._complete(request) for request in requests]
        unfinished = set(range(len(requests)))
        lateness = self.lateness or (lambda request: 0)
        for index in sorted(unfinished, key=lambda index: lateness(requests[index])):
            unfinished.remove(index)
            if on_completion is not None:
                on_completion(index, completions[index])
            if unfinished and should_stop is not None and should_stop(unfinished):
                break
        for index in unfinished:
            completions[index] = cut_off(completions[index], requests[index].seed)
        return completions

    def sync(self) -> None:
        self.syncs += 1

    def _complete(self, request: Request) -> Completion:
        rng = random.Random(request.seed)
        steps = ["".join(rng.choices("0123456789", k=rng.randint(1, 3))) for _ in range(rng.randint(4, 9))]
        text = "\n\n".join(steps) + rng.choice(["", "\n\n"])
        tokens = [*self.tokenizer(text)["input_ids"], self.tokenizer.eos_token_id]
        kept = tuple(tokens[: request.max_new_tokens])
        finish = "stop" if kept[-1] == self.tokenizer.eos_token_id else "length"
        return Completion(kept, (-99.0,) * len(kept), finish)


def cut_off(completion: Completion, seed: int) -> Completion:
    """The beginning of a completion, at a place that the seed decides."""
    kept = random.Random(f"cut/{seed}").randrange(len(completion.tokens))
    return Completion(completion.tokens[:kept], completion.logprobs[:kept], "unfinished")


def fake_verdict(reward: float | None) -> Verdict:
    return "not_judged" if reward is None else "correct" if reward >= 1 else "wrong"


@dataclass
class FakeGrader:
    """Grades by a rule, and remembers what it was asked."""

    overlaps: ClassVar[bool] = True
    rule: Callable[[str, str], float | None] = hash_reward
    asked: list[tuple[str, str]] = field(default_factory=list)
    rewards: dict[str, float] = field(default_factory=dict)

    def grade(self, problems: Sequence[Problem], responses: Sequence[str]) -> list[Grade]:
        pairs = [(problem.answers[0], response) for problem, response in zip(problems, responses, strict=True)]
        self.asked += pairs
        rewards = [self.rule(answer, response) for answer, response in pairs]
        return [Grade(reward, fake_verdict(reward), rewards=self.rewards) for reward in rewards]


@dataclass
class FakePolicy:
    """A policy that knows only how often it was updated, and gives that number as every log-prob."""

    version: int = 0
    updates: list[list[TrainingRow]] = field(default_factory=list)
    fci_asked: list[bool] = field(default_factory=list)

    def score(
        self,
        prompts: Sequence[Sequence[int]],
        responses: Sequence[Sequence[int]],
        steps: Sequence[Steps | None] | None = None,
    ) -> list[Score]:
        if prompts:
            self.fci_asked.append(steps is not None and any(steps))
        return [
            Score((float(self.version),) * len(response), fake_entropy(response), fake_fci(its_steps))
            for response, its_steps in zip(responses, steps or [None] * len(responses), strict=True)
        ]

    def update(self, rows: Sequence[TrainingRow]) -> Mapping[str, float]:
        self.updates.append(list(rows))
        self.version += 1
        return {"loss/policy": 0.5}


def fake_entropy(response: Sequence[int]) -> tuple[float, ...]:
    """An entropy for each token, no two of a response alike."""
    return tuple(random.Random(f"{token}/{place}").random() for place, token in enumerate(response))


def fake_fci(steps: Steps | None) -> tuple[float, ...]:
    """An FCI for each step that is larger for longer steps, and none where none was asked for."""
    return tuple(length + 0.01 * step for step, length in enumerate(steps.lengths)) if steps else ()


@dataclass
class FakeSource:
    """Problem n is ``A=n?`` with n as its one answer."""

    def at(self, position: int) -> Problem:
        return Problem(id=f"p{position}", prompt=f"A={position}?", answers=(str(position),))


@dataclass
class Loop:
    """A trainer among fakes."""

    trainer: Trainer
    sampler: FakeSampler
    grader: FakeGrader
    policy: FakePolicy
    config: TrainConfig


def tiny_config(recipe: str = "attnrl", *overrides: str) -> TrainConfig:
    """A recipe at the size of a test: three problems a step, 30 tokens a response."""
    return load_config(TrainConfig, recipe, ["prompts=3", "sampling.max_new_tokens=30", *overrides])


def fake_loop(
    tokenizer: PreTrainedTokenizerBase,
    recipe: str = "attnrl",
    *overrides: str,
    rule: Callable[[str, str], float | None] = hash_reward,
    state: TrainerState | None = None,
    version: int = 0,
) -> Loop:
    """A trainer of a recipe in which everything but the trainer is a fake."""
    config = tiny_config(recipe, *overrides)
    sampler, grader, policy = FakeSampler(tokenizer), FakeGrader(rule), FakePolicy(version)
    trainer = Trainer(
        config,
        sampler=sampler,
        rewards=RewardManager(grader),
        policy=policy,
        renderer=PromptRenderer(tokenizer),
        source=FakeSource(),
        state=state,
    )
    return Loop(trainer, sampler, grader, policy, config)


def command(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """The exit code of ``attnrl ARGUMENTS``, run in this process."""
    monkeypatch.setattr(sys, "argv", ["attnrl", *arguments])
    try:
        cli.main()
    except SystemExit as stop:
        assert isinstance(stop.code, int)
        return stop.code
    return 0
