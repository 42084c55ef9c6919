"""avg@k, pass@k and their error, against numbers worked out by hand."""

import itertools
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from attnrl.errors import UserError
from attnrl.grading.answers import AnswerGrader
from attnrl.rl.evaluation import (
    EvaluatedSample,
    Evaluation,
    Outcome,
    bootstrap_means,
    estimate_pass_at_k,
    evaluate,
    interval,
    pass_ks,
    summarize,
)
from attnrl.types import Completion, Problem, Request


def evaluation(rewards: Sequence[Sequence[float]], lengths: Sequence[int] | None = None) -> Evaluation:
    flat = [(problem, sample, reward) for problem, row in enumerate(rewards) for sample, reward in enumerate(row)]
    lengths = lengths or [10] * len(flat)
    return Evaluation(
        tuple(
            EvaluatedSample(
                str(problem),
                sample,
                "?",
                "!",
                ("1",),
                reward,
                "correct" if reward else "wrong",
                length,
                "stop" if length < 100 else "length",
            )
            for (problem, sample, reward), length in zip(flat, lengths, strict=True)
        ),
        len(rewards[0]),
    )


def test_numbers_by_hand() -> None:
    result = evaluation([[1, 1, 1, 1], [0, 0, 0, 0], [1, 0, 0, 0]], lengths=[10, 20, 30, 40, 100] + [10] * 6 + [20])
    assert result.accuracy == pytest.approx(5 / 12)
    assert result.pass_at_k == pytest.approx(2 / 3)
    assert result.always_solved == pytest.approx(1 / 3)
    # Means of the problems 1, 0, 1/4; their sample variance is 13/48, over three problems.
    assert result.standard_error == pytest.approx(math.sqrt(13 / 48 / 3))
    metrics = result.metrics()
    assert metrics["never_solved"] == pytest.approx(1 / 3)
    assert metrics["response_length"] == pytest.approx(280 / 12)
    assert metrics["truncated_ratio"] == pytest.approx(1 / 12)
    assert metrics["accuracy"] == result.accuracy and metrics["pass_at_k"] == result.pass_at_k


def test_the_error_is_over_problems_and_not_over_samples() -> None:
    """Samples of one problem are not independent: more of them cannot make the set of problems larger."""
    few, many = evaluation([[1], [0]] * 5), evaluation([[1] * 50, [0] * 50] * 5)
    assert few.standard_error == pytest.approx(many.standard_error)


def test_a_single_problem_has_no_error() -> None:
    assert evaluation([[1, 0]]).standard_error == 0


def test_a_part_of_a_reward_is_not_a_solution() -> None:
    result = evaluation([[0.5, 0.5], [0.5, 1.0]])
    assert result.accuracy == pytest.approx(0.625)
    assert (result.pass_at_k, result.always_solved) == (0.5, 0.0)


@dataclass
class Scripted:
    """A sampler whose n-th response to a prompt is known."""

    tokenizer: PreTrainedTokenizerBase
    responses: dict[str, list[str]]
    calls: list[list[Request]] = field(default_factory=list)

    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        self.calls.append(list(requests))
        left = {prompt: iter(texts) for prompt, texts in self.responses.items()}
        completions = []
        for request in requests:
            ids = self.tokenizer(next(left[self.tokenizer.decode(request.prompt)]))["input_ids"]
            completions.append(Completion(tuple(ids), (0.0,) * len(ids), "stop"))
        return completions


SUMS = [Problem("a", "A=1?", ("1",)), Problem("b", "B=2?", ("2", "7"))]
RIGHT_AND_WRONG = {"A=1?": ["so \\boxed{1}", "so \\boxed{2}"], "B=2?": ["\\boxed{7}", "2"]}


def run(sampler: Scripted, **settings: int) -> Evaluation:
    defaults = {"samples": 2, "max_new_tokens": 9, "max_prompt_tokens": 10, "seed": 0}
    return evaluate(SUMS, sampler=sampler, grader=AnswerGrader(), tokenizer=sampler.tokenizer, **defaults | settings)


def test_every_response_is_kept_with_its_problem(tokenizer: PreTrainedTokenizerBase) -> None:
    result = run(Scripted(tokenizer, RIGHT_AND_WRONG))
    assert [(s.problem, s.sample, s.prompt, s.response, s.reward) for s in result.samples] == [
        ("a", 0, "A=1?", "so \\boxed{1}", 1.0),
        ("a", 1, "A=1?", "so \\boxed{2}", 0.0),
        ("b", 0, "B=2?", "\\boxed{7}", 1.0),
        ("b", 1, "B=2?", "2", 0.0),
    ]
    assert (result.accuracy, result.pass_at_k) == (0.5, 1.0)
    assert [s.tokens for s in result.samples] == [4, 4, 3, 1]
    assert result.samples[2].as_dict()["answers"] == ("2", "7")


def test_one_batch_with_a_seed_for_every_response(tokenizer: PreTrainedTokenizerBase) -> None:
    sampler = Scripted(tokenizer, RIGHT_AND_WRONG)
    for seed in (0, 0, 1):
        run(sampler, seed=seed)
    first, again, other = ([request.seed for request in call] for call in sampler.calls)
    assert len(set(first)) == 4
    assert first == again
    assert not set(first) & set(other)
    assert {request.max_new_tokens for request in sampler.calls[0]} == {9}


def test_a_prompt_beyond_the_limit_stops_it_before_any_sampling(tokenizer: PreTrainedTokenizerBase) -> None:
    sampler = Scripted(tokenizer, RIGHT_AND_WRONG)
    with pytest.raises(UserError, match="problem a"):
        run(sampler, max_prompt_tokens=3)
    assert sampler.calls == []


# --- Estimates ------------------------------------------------------------------------------------------------------


@given(st.integers(1, 8).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n))))
def test_pass_at_k_is_the_share_of_choices_with_a_correct_one(case: tuple[int, int, int]) -> None:
    samples, correct, k = case
    choices = list(itertools.combinations([i < correct for i in range(samples)], k))
    assert estimate_pass_at_k(samples, correct, k) == pytest.approx(sum(map(any, choices)) / len(choices))


@given(st.integers(1, 64), st.data())
def test_pass_at_k_grows_from_the_accuracy_to_any(samples: int, data: st.DataObject) -> None:
    correct = data.draw(st.integers(0, samples))
    values = [estimate_pass_at_k(samples, correct, k) for k in pass_ks(samples)]
    assert values == sorted(values)
    assert values[0] == pytest.approx(correct / samples) and values[-1] == float(correct > 0)


def test_ks_are_powers_of_two_and_all_samples() -> None:
    assert [pass_ks(n) for n in (1, 2, 3, 4, 32)] == [[1], [1, 2], [1, 2, 3], [1, 2, 4], [1, 2, 4, 8, 16, 32]]


def test_bootstrap_means_are_distributed_as_they_should_be() -> None:
    """Of two problems, 0 and 1, a resample's mean is 0, 1/2 or 1 with odds 1:2:1."""
    means = bootstrap_means([0.0, 1.0], seed=1)
    shares = [float((means == value).double().mean()) for value in (0.0, 0.5, 1.0)]
    assert shares == pytest.approx([0.25, 0.5, 0.25], abs=0.02)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=60), st.integers(0, 2**31))
def test_the_bootstrap_agrees_with_one_written_otherwise(values: list[float], seed: int) -> None:
    means = bootstrap_means(values, seed, resamples=2_000)
    assert torch.equal(means, bootstrap_means(values, seed, resamples=2_000))
    spread = math.sqrt(sum((value - sum(values) / len(values)) ** 2 for value in values)) / len(values)
    assert float(means.mean()) == pytest.approx(sum(values) / len(values), abs=6 * spread / math.sqrt(2_000) + 1e-9)
    assert float(means.std()) == pytest.approx(spread, rel=0.2, abs=1e-9)
    rng = random.Random(seed)
    plain = sorted(sum(rng.choices(values, k=len(values))) / len(values) for _ in range(500))
    low, high = interval(means)
    assert min(values) - 1e-9 <= low <= high <= max(values) + 1e-9
    # The two quantiles of another 500 resamples, give or take their own error.
    assert plain[2] - 1e-9 <= low <= plain[40] + 1e-9 and plain[-41] - 1e-9 <= high <= plain[-3] + 1e-9


def test_many_problems_are_resampled_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    values = [i / 100 for i in range(100)]
    whole = bootstrap_means(values, 0, resamples=500)
    monkeypatch.setattr("attnrl.rl.evaluation._RESAMPLED_AT_ONCE", 701)
    blocks = bootstrap_means(values, 0, resamples=500)
    assert len(blocks) == len(whole) == 500
    assert float(blocks.mean()) == pytest.approx(0.495, abs=0.01)


def outcomes(rewards: Sequence[Sequence[float]]) -> list[Outcome]:
    return [
        Outcome(str(problem), reward, "correct" if reward else "wrong", 10 + problem, "stop" if reward else "length")
        for problem, row in enumerate(rewards)
        for reward in row
    ]


def test_a_summary_by_hand() -> None:
    numbers = summarize(outcomes([[1, 0, 0, 0], [1, 1, 0, 0]]), samples=4, skipped=2, seed=0).as_dict()
    assert (numbers["problems"], numbers["skipped_problems"], numbers["samples"]) == (4, 2, 4)
    assert numbers["accuracy"] == pytest.approx((0.25 + 0.5) / 4)  # skipped problems are not solved
    assert numbers["pass_at_k"] == pytest.approx({"1": 0.75 / 4, "2": (0.5 + 5 / 6) / 4, "4": 2 / 4})
    assert numbers["response_length"] == 10.5 and numbers["truncated_ratio"] == 5 / 8  # of responses that exist
    assert numbers["verdicts"] == {
        **dict.fromkeys(["no_answer", "timeout", "error", "bad_gold"], 0.0),
        "correct": 3 / 8,
        "wrong": 5 / 8,
    }


def test_a_summary_and_an_evaluation_agree() -> None:
    rewards = [[1, 1, 0], [0, 0, 0], [1, 0, 0], [1, 1, 1]]
    summary, metrics = summarize(outcomes(rewards), samples=3, skipped=0, seed=0), evaluation(rewards).metrics()
    assert summary.accuracy == pytest.approx(metrics["accuracy"])
    assert summary.standard_error == pytest.approx(metrics["standard_error"])
    assert summary.pass_at_k[3] == pytest.approx(metrics["pass_at_k"])
    assert summary.verdicts["wrong"] == metrics["grade/wrong_ratio"]


def test_a_summary_needs_all_responses() -> None:
    with pytest.raises(ValueError, match="3 responses to each"):
        summarize(outcomes([[1, 1, 0], [0, 0]]), samples=3, skipped=0, seed=0)
