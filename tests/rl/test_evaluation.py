"""avg@k, pass@k and their error, against numbers worked out by hand."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
from transformers import PreTrainedTokenizerBase

from attnrl.errors import UserError
from attnrl.grading.rewards import RewardManager
from attnrl.grading.rules import RulesGrader
from attnrl.prompts.renderer import PromptRenderer
from attnrl.rl.evaluation import EvaluatedSample, Evaluation, evaluate
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
                "not_judged" if reward is None else "correct" if reward == 1 else "wrong",
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
    assert (result.accuracy, result.reward) == (0.25, pytest.approx(0.625))
    assert (result.pass_at_k, result.always_solved) == (0.5, 0.0)


def test_a_response_that_is_not_judged_counts_in_the_accuracy_but_not_in_the_mean_reward() -> None:
    result = evaluation([[None, 1.0], [-2.0, None]])
    metrics = result.metrics()
    assert (metrics["accuracy"], metrics["reward"]) == (0.25, -0.5)
    assert (metrics["not_judged/responses"], metrics["not_judged/ratio"]) == (2, 0.5)
    nothing = evaluation([[None]]).metrics()
    assert nothing["accuracy"] == 0.0 and "reward" not in nothing


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
    renderer = PromptRenderer(sampler.tokenizer)
    return evaluate(
        SUMS, sampler=sampler, rewards=RewardManager(RulesGrader()), renderer=renderer, **defaults | settings
    )


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
    with pytest.raises(UserError, match=r"\ba\b"):
        run(sampler, max_prompt_tokens=3)
    assert sampler.calls == []
