"""Scores of branch-point rules: by hand, in general, and on the shipped model."""

from __future__ import annotations

import io
import json
import random
from pathlib import Path

import pytest
from rich.console import Console

from attnrl.config.method import BranchingConfig
from attnrl.errors import UserError
from attnrl.experiments.pointing import (
    RULES,
    AnalysedResponse,
    pointing_table,
    run_pointing,
    score_rule,
    summarize_pointing,
)
from attnrl.method.steps import Steps

MEASURES = {(rule.influence, rule.reduction) for rule in RULES.values()}


def response(
    influence: tuple[float, ...], dependents: tuple[float, ...], problem: str = "a", entropy_at: int = 45
) -> AnalysedResponse:
    """Eleven steps of four tokens; entropy is highest at one token."""
    entropy = tuple(float(token == entropy_at) for token in range(44))
    steps = Steps(tuple(range(0, 44, 4)), 44)
    return AnalysedResponse(problem, steps, entropy, dependents, dict.fromkeys(MEASURES, influence))


# Steps 2 and 7 are pivotal, and so is the first, where nobody can branch.
DEPENDENTS = (5.0, 1.0, 3.0, 1.0, 0.0, 0.0, 2.0, 4.0, 0.0, 0.0, 0.0)


def test_a_rule_by_hand() -> None:
    # The two highest are steps 2 and 6. By fifths of the ten eligible steps (two each) 2 is with 1, 6 with 5.
    influence = (9.0, 0.1, 0.8, 0.1, 0.1, 0.1, 0.9, 0.1, 0.1, 0.1, 0.1)
    rule = BranchingConfig(rho=0.01)
    score = score_rule(response(influence, DEPENDENTS), rule, 3, random.Random(0))
    assert score is not None
    assert score.precision == 0.5
    assert score.matched == pytest.approx((1 / 2 + 0) / 2)
    assert score.dependents == pytest.approx((3 + 2) / 2)
    assert score.position == pytest.approx((8 / 44 + 24 / 44) / 2)


def test_the_papers_rule_takes_the_earliest() -> None:
    influence = (9.0, 0.1, 0.7, 0.1, 0.1, 0.1, 0.8, 0.9, 0.1, 0.1, 0.1)
    score = score_rule(response(influence, DEPENDENTS), BranchingConfig(rho=0.2), 3, random.Random(0))
    assert score is not None and score.precision == 0.5  # of steps 2, 6 and 7, the first two


def test_the_oracle_finds_all_there_are() -> None:
    score = score_rule(response((0.0,) * 11, DEPENDENTS), BranchingConfig(criterion="oracle"), 3, random.Random(0))
    assert score is not None and score.precision == 1.0


def test_a_token_may_lie_where_no_step_can_be_chosen() -> None:
    entropy = response((0.0,) * 11, DEPENDENTS, entropy_at=2)
    score = score_rule(entropy, BranchingConfig(criterion="entropy"), 3, random.Random(0))
    assert score is not None and 0 <= score.matched <= 1


def test_nothing_to_find() -> None:
    only_the_first = (5.0, *(0.0,) * 10)
    assert score_rule(response((0.0,) * 11, only_the_first), BranchingConfig(), 3, random.Random(0)) is None
    with pytest.raises(UserError, match=r"\b3\b"):
        summarize_pointing([response((0.0,) * 11, only_the_first)], 3, 0)


def test_problems_count_alike_however_many_responses_they_have() -> None:
    good, bad = (0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.9, 0.0, 0.0, 0.0), (0.0, 1.0, 0.0, 0.9, *(0.0,) * 7)
    responses = [response(good, DEPENDENTS, "a"), *[response(bad, DEPENDENTS, "b")] * 3]
    rule = summarize_pointing(responses, 3, 0)["rules"]["FCI, highest two"]
    assert rule["precision"]["mean"] == 0.5
    assert rule["precision"]["low"] <= 0.5 <= rule["precision"]["high"]
    assert rule["gain"]["mean"] == pytest.approx(rule["precision"]["mean"] - rule["matched"]["mean"])


def test_the_shipped_model_by_one_command(tmp_path: Path) -> None:
    results = run_pointing(
        "ledger",
        task="ledger",
        problems=6,
        samples=2,
        max_new_tokens=256,
        pivotal=3,
        seed=0,
        device="cpu",
        output=tmp_path,
        console=Console(file=io.StringIO()),
    )
    assert results["responses"] == 12
    rules = results["rules"]
    assert rules["true graph (oracle)"]["precision"]["mean"] >= max(r["precision"]["mean"] for r in rules.values())
    # What is known of this model: its lookups find plans, its averages only the first steps.
    assert rules["lookups, highest two"]["precision"]["mean"] > rules["random"]["precision"]["mean"]
    assert json.loads((tmp_path / "results.json").read_text()) == results
    assert (tmp_path / "results.md").read_text().splitlines() == pointing_table(results)


def test_a_task_without_a_graph_is_refused_before_anything_is_loaded() -> None:
    pytest.importorskip("reasoning_gym")
    with pytest.raises(UserError, match="reasoning_gym:chain_sum"):
        run_pointing(
            "nowhere",
            task="reasoning_gym:chain_sum",
            problems=2,
            samples=1,
            max_new_tokens=8,
            pivotal=3,
            seed=0,
            device="cpu",
            output=None,
            console=Console(file=io.StringIO()),
        )
