"""The plain sampler and policy of ``benchmarks/``: independent oracles of the local engine, and the step benchmark."""

from __future__ import annotations

import importlib
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import helpers
import pytest
import torch
from torch import Tensor

from attnrl.config.method import BranchingConfig
from attnrl.config.schema import LossConfig, OptimizerConfig
from attnrl.inference.sampler import LocalSampler
from attnrl.local.policy import LocalPolicy
from attnrl.method.steps import Steps
from attnrl.types import Completion, Request, SamplingParams, TrainingRow

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
VOCABULARY = 61
EOS = 1


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Imports a benchmark by its name; they are scripts that find each other beside themselves."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module


@pytest.fixture
def plain(load: Any) -> ModuleType:
    module: ModuleType = load("plain")
    return module


def tokens(rng: random.Random, count: int) -> tuple[int, ...]:
    return tuple(rng.randrange(2, VOCABULARY) for _ in range(count))


def policy(kind: type, *, loss: LossConfig | None = None, **optimizer: Any) -> Any:
    loss = loss or LossConfig(kl=0.0)
    built = kind(
        helpers.tiny_model(vocab_size=VOCABULARY),
        helpers.tiny_model(vocab_size=VOCABULARY, seed=1) if loss.kl else None,
        loss=loss,
        optimizer=OptimizerConfig(**{"learning_rate": 1e-3, "micro_batch_tokens": 200, **optimizer}),
        branching=BranchingConfig(delta=2),
        temperature=0.9,
    )
    built.starts_at_reference = False  # the reference is another model, so that the KL is not 0
    return built


def assert_close(one: Sequence[float] | Tensor, other: Sequence[float] | Tensor) -> None:
    """To 1e-4 of the largest value."""
    expected = torch.as_tensor(other, dtype=torch.float64)
    bound = 1e-4 * float(expected.abs().max()) if expected.numel() else 0.0
    torch.testing.assert_close(torch.as_tensor(one, dtype=torch.float64), expected, rtol=0, atol=bound)


def test_policies_agree_on_logprobs_entropy_and_fci(plain: ModuleType) -> None:
    rng = random.Random(0)
    prompts = [tokens(rng, rng.randint(1, 20)) for _ in range(12)]
    responses = [tokens(rng, rng.randint(12, 70)) for _ in prompts]
    steps = [
        None if row % 4 == 3 else Steps((0, *sorted(rng.sample(range(1, len(responses[row])), 7))), len(responses[row]))
        for row in range(12)
    ]
    ours = policy(LocalPolicy).score(prompts, responses, steps)
    theirs = policy(plain.PlainPolicy).score(prompts, responses, steps)
    for row in range(12):
        assert_close(ours[row].logprobs, theirs[row].logprobs)
        assert_close(ours[row].entropy, theirs[row].entropy)
        assert_close(ours[row].influence, theirs[row].influence)
        assert len(ours[row].influence) == (8 if steps[row] else 0)
    assert any(max(score.influence, default=0.0) > 0 for score in theirs)


def tree_rows(plain_policy: Any) -> list[TrainingRow]:
    """Paths of a few trees: some begin alike. Old log-probs are off by so much that some tokens are clipped."""
    rng = random.Random(1)
    rows = []
    for _ in range(5):
        prompt, trunk = tokens(rng, rng.randint(2, 15)), tokens(rng, rng.randint(20, 60))
        noise, advantages = [rng.gauss(0, 0.2) for _ in trunk], [rng.gauss(0, 1) for _ in trunk]
        for at in (len(trunk), 5, 5, 14):
            more = tokens(rng, rng.randint(5, 40)) if at < len(trunk) else ()
            response = trunk[:at] + more
            (score,) = plain_policy.score([prompt], [response])
            off = noise[:at] + [rng.gauss(0, 0.2) for _ in more]
            old = tuple(logprob + by for logprob, by in zip(score.logprobs, off, strict=True))
            advantage = tuple(advantages[:at]) + (rng.gauss(0, 1),) * len(more)
            rows.append(TrainingRow(prompt, response, old, tuple(score.logprobs), advantage))
    return rows


@pytest.mark.parametrize(
    ("mini_batches", "loss"),
    [(1, {}), (2, {}), (1, {"kl": 0.05}), (1, {"tis": 1.1, "dual_clip": 3.0, "clip_low": 0.1, "clip_high": 0.1})],
)
def test_policies_agree_on_the_gradient_and_the_weights_after_an_update(
    load: Any, plain: ModuleType, mini_batches: int, loss: dict[str, float]
) -> None:
    step = load("step")
    rows = tree_rows(policy(plain.PlainPolicy))
    settings: dict[str, Any] = {"loss": LossConfig(**{"kl": 0.0, **loss}), "mini_batches": mini_batches}
    ours, theirs = (step.updated(policy(kind, **settings), rows) for kind in (LocalPolicy, plain.PlainPolicy))
    before = step.flat(policy(LocalPolicy).model.parameters())
    assert (theirs[1] - before).abs().max() > 1e-4
    for one, other in zip(ours, theirs, strict=True):
        assert_close(one, other)


def test_greedy_samplers_agree(plain: ModuleType) -> None:
    model = helpers.tiny_model(vocab_size=VOCABULARY)
    rng = random.Random(2)
    requests = [Request(tokens(rng, rng.randint(1, 25)), rng.randint(1, 30), seed) for seed in range(20)]
    settings: dict[str, Any] = dict(eos_token_ids=[EOS, 7, 11], pad_token_id=0, max_batch=8, params=SamplingParams(0.0))
    finished: dict[int, Completion] = {}
    sampler = plain.PlainSampler(model, **settings)
    theirs = sampler.generate(requests, on_completion=finished.__setitem__)
    ours = LocalSampler(model, **settings).generate(requests)
    assert finished == dict(enumerate(theirs))
    assert {completion.finish_reason for completion in theirs} == {"stop", "length"}
    for one, other in zip(ours, theirs, strict=True):
        assert (one.tokens, one.finish_reason) == (other.tokens, other.finish_reason)
        assert_close(one.logprobs, other.logprobs)


def test_plain_samples_have_the_policys_logprobs_and_may_end_early(plain: ModuleType) -> None:
    model = helpers.tiny_model(vocab_size=VOCABULARY)
    sampler = plain.PlainSampler(model, SamplingParams(0.9), eos_token_ids=[EOS], pad_token_id=0, max_batch=4)
    rng = random.Random(3)
    requests = [Request(tokens(rng, 5 + seed), 12 - seed, seed) for seed in range(9)]
    completions = sampler.generate(requests)
    scores = policy(plain.PlainPolicy).score([r.prompt for r in requests], [c.tokens for c in completions])
    for completion, score in zip(completions, scores, strict=True):
        assert_close(completion.logprobs, score.logprobs)
    early = sampler.generate(requests, should_stop=lambda unfinished: len(unfinished) < 6)
    assert early[:4] == completions[:4]  # the largest budgets are the first batch
    assert early[4:] == [Completion((), (), "unfinished")] * 5
    assert sampler.generate([]) == []


def test_the_benchmark_of_a_step_runs_and_both_policies_agree(load: Any, tmp_path: Path) -> None:
    step = load("step")
    arguments = ["prompts=2", f"output_dir={tmp_path}", "--steps", "1", "--repeats", "1", "--threads", "1"]
    threads = torch.get_num_threads()
    result = step.main(arguments)
    torch.set_num_threads(threads)
    assert max(result["parity"].values()) < 1e-4
    assert result["steps"] == [2]
    for side in (result["attnrl"], result["plain"]):
        assert side["generated_tokens"] > 0 and side["seconds_per_step"] > 0
        assert {"generate", "score", "train"} <= side["phases"].keys()
    assert result["ratio"]["min"] <= result["ratio"]["median"] <= result["ratio"]["max"]
    assert not list(tmp_path.iterdir())  # nothing is written


def test_the_benchmark_of_a_step_refuses_policies_that_differ(load: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    step = load("step")
    score = step.PlainPolicy.score

    def off(self: Any, *args: Any) -> Any:
        return [replace(one, entropy=tuple(1.01 * value for value in one.entropy)) for one in score(self, *args)]

    monkeypatch.setattr(step.PlainPolicy, "score", off)
    with pytest.raises(SystemExit, match=r"entropy\D*\d"):
        step.main(["prompts=2", "--steps", "1", "--repeats", "1"])
