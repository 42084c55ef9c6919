"""Criteria, advantages, splitters and measures of a user's own module, through the public command line."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_runs import read, run

from attnrl.config.load import load_config
from attnrl.config.schema import TrainConfig
from attnrl.errors import UserError

MODULE = """
from attnrl.method.branching import needs, step_tiers
from attnrl.method.measures import Measure
from attnrl.method.ranking import eligible_steps
from attnrl.method.steps import Steps

@needs("influence", "entropy")
def prefer_last(signals, rho, rng):
    assert len(signals.influence) == len(signals.steps) and len(signals.entropy) == signals.steps.length
    return step_tiers(signals.steps, eligible_steps(signals.steps)[::-1])

def leaf_reward(forest):
    return [[path.reward - forest.root_value] * path.length for path in forest.paths()]

def too_short(forest):
    return [[0.0] for path in forest.paths()]

def pairs(pieces, settings):
    return Steps(tuple(range(0, len(pieces), 2)), len(pieces))

def too_long(pieces, settings):
    return Steps((0,), len(pieces) + 1)

def mean_measure(reduction):
    return Measure(uses_lookups=False, reduce=lambda influence_LHS: influence_LHS.mean((0, 1)))

number = 3
"""


@pytest.fixture(autouse=True)
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "method_of_mine.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)


def test_a_run_with_functions_of_the_users_module(tiny_checkpoint: Path, tmp_path: Path) -> None:
    run(
        tiny_checkpoint,
        tmp_path / "run",
        "method.branching.criterion=method_of_mine:prefer_last",
        "method.branching.influence=method_of_mine:mean_measure",
        "method.advantage=method_of_mine:leaf_reward",
        "method.steps.splitter=method_of_mine:pairs",
        steps=2,
    )
    assert [row["step"] for row in read(tmp_path / "run")][-1] == 2
    trees = [tree for row in read(tmp_path / "run", "trees.jsonl") for tree in row["trees"] if tree["branch_points"]]
    assert trees
    for tree in trees:
        assert tree["steps"] == list(range(0, len(tree["nodes"][0]["tokens"]), 2))
        assert sorted(tree["branch_points"]) == tree["steps"][-len(tree["branch_points"]) :]


@pytest.mark.parametrize(
    ("setting", "name"), [("method.advantage", "too_short"), ("method.steps.splitter", "too_long")]
)
def test_a_function_that_breaks_the_contract_is_named(
    setting: str, name: str, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=setting):
        run(tiny_checkpoint, tmp_path / "run", f"{setting}=method_of_mine:{name}")


@pytest.mark.parametrize(
    "setting",
    [
        *("method.branching.criterion", "method.branching.influence", "method.branching.reduction"),
        *("method.advantage", "method.steps.splitter"),
    ],
)
@pytest.mark.parametrize(
    "name", ["treee", "method_of_mine:no_such_function", "no_such_module:f", "method_of_mine:number"]
)
def test_a_name_without_a_function_is_refused(setting: str, name: str) -> None:
    with pytest.raises(UserError, match=setting):
        load_config(TrainConfig, "attnrl", ["model=m", "output_dir=o", f"{setting}={name}"])


def test_near_names_are_suggested() -> None:
    with pytest.raises(UserError, match="fci"):
        load_config(TrainConfig, "attnrl", ["model=m", "output_dir=o", "method.branching.criterion=fcii"])


@pytest.mark.parametrize("setting", ["delimiters=['(']", "delimiters=['x*']", "chunk_tokens=0", "think_marker=''"])
def test_step_settings_are_validated(setting: str) -> None:
    with pytest.raises(UserError, match=r"delimiters|chunk_tokens|think_marker"):
        load_config(TrainConfig, "attnrl", ["model=m", "output_dir=o", f"method.steps.{setting}"])
