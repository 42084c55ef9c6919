"""Summaries of graded responses, against numbers worked out by hand."""

from collections.abc import Sequence

import pytest

from attnrl.evals.summary import EvaluationOutcome, summarize_outcomes
from attnrl.rl.evaluation import EvaluatedSample, Evaluation


def outcomes(rewards: Sequence[Sequence[float]]) -> list[EvaluationOutcome]:
    return [
        EvaluationOutcome(
            str(problem), reward, "correct" if reward else "wrong", 10 + problem, "stop" if reward else "length"
        )
        for problem, row in enumerate(rewards)
        for reward in row
    ]


def test_a_summary_by_hand() -> None:
    numbers = summarize_outcomes(outcomes([[1, 0, 0, 0], [1, 1, 0, 0]]), samples=4, skipped=2, seed=0).as_dict()
    assert (numbers["problems"], numbers["skipped_problems"], numbers["samples"]) == (4, 2, 4)
    assert numbers["accuracy"] == pytest.approx((0.25 + 0.5) / 4)  # skipped problems are not solved
    assert numbers["pass_at_k"] == pytest.approx({"1": 0.75 / 4, "2": (0.5 + 5 / 6) / 4, "4": 2 / 4})
    assert numbers["response_length"] == 10.5 and numbers["truncated_ratio"] == 5 / 8  # of responses that exist
    assert numbers["verdicts"] == {
        **dict.fromkeys(["no_answer", "timeout", "error", "bad_gold", "not_judged"], 0.0),
        "correct": 3 / 8,
        "wrong": 5 / 8,
    }


def evaluation_of(rewards: Sequence[Sequence[float]]) -> Evaluation:
    samples = [
        EvaluatedSample(str(problem), sample, "?", "!", ("1",), reward, "correct" if reward else "wrong", 10, "stop")
        for problem, row in enumerate(rewards)
        for sample, reward in enumerate(row)
    ]
    return Evaluation(tuple(samples), len(rewards[0]))


def test_a_summary_and_an_evaluation_agree() -> None:
    rewards = [[1, 1, 0], [0, 0, 0], [1, 0, 0], [1, 1, 1]]
    summary, metrics = (
        summarize_outcomes(outcomes(rewards), samples=3, skipped=0, seed=0),
        evaluation_of(rewards).metrics(),
    )
    assert summary.accuracy == pytest.approx(metrics["accuracy"])
    assert summary.standard_error == pytest.approx(metrics["standard_error"])
    assert summary.pass_at_k[3] == pytest.approx(metrics["pass_at_k"])
    assert summary.verdicts["wrong"] == metrics["grade/wrong_ratio"]


def test_a_summary_needs_all_responses() -> None:
    with pytest.raises(ValueError):
        summarize_outcomes(outcomes([[1, 1, 0], [0, 0]]), samples=3, skipped=0, seed=0)
