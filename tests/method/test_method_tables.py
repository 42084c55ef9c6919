"""The tables of the method are free of torch, and every row keeps the contract of the table."""

from __future__ import annotations

import random
import subprocess
import sys

import pytest

from attnrl.config.method import MethodConfig
from attnrl.method.advantage import ADVANTAGES, takes_branches
from attnrl.method.branching import CRITERIA, RolloutSignals, branch_points, signals_of
from attnrl.method.forest import Forest
from attnrl.method.measures import MEASURES, REDUCTIONS
from attnrl.method.steps import SPLITTERS, Steps, StepSettings

TRUNKS = Forest.from_dict({"trees": [{"length": 3, "reward": 1.0}, {"length": 2, "reward": 0.0}]})


def test_the_tables_and_the_configuration_import_without_torch() -> None:
    modules = ["branching", "advantage", "steps", "ranking", "measures", "forest", "adaptive"]
    imports = ", ".join(f"attnrl.method.{module}" for module in modules)
    code = f"import sys, {imports}, attnrl.config.schema; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", CRITERIA)
def test_a_criterion_reads_the_declared_signals_only(name: str) -> None:
    values = {"influence": (0.1, 0.3, 0.2), "entropy": (0.1,) * 6, "dependents": (0.0, 1.0, 2.0)}
    declared = {signal: values[signal] for signal in signals_of(CRITERIA[name])}
    signals = RolloutSignals(Steps((0, 2, 4), 6), **declared)
    assert len(branch_points(signals, criterion=CRITERIA[name], count=2, rng=random.Random(0))) == 2


def test_the_shipped_criteria_declare_their_signals() -> None:
    declared = {name: set(signals_of(criterion)) for name, criterion in CRITERIA.items()}
    assert declared == {"fci": {"influence"}, "entropy": {"entropy"}, "random": set(), "oracle": {"dependents"}}


@pytest.mark.parametrize("name", ADVANTAGES)
def test_an_advantage_gives_every_token_of_every_path_a_number(name: str) -> None:
    assert [len(of_path) for of_path in ADVANTAGES[name](TRUNKS)] == [3, 2]


def test_group_advantages_take_no_branches() -> None:
    assert {name: takes_branches(advantage) for name, advantage in ADVANTAGES.items()} == {
        **{"tree": True, "grpo": False, "grpo_no_std": False},
    }


@pytest.mark.parametrize("name", SPLITTERS)
def test_a_splitter_covers_the_response(name: str) -> None:
    assert SPLITTERS[name](["a", "\n\n", "b"], StepSettings()) == Steps((0, 2), 3)


def test_a_row_is_all_that_a_new_function_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    for table, rows in ((CRITERIA, "random"), (ADVANTAGES, "tree"), (SPLITTERS, "delimiters"), (MEASURES, "lookups")):
        monkeypatch.setitem(table, "mine", table[rows])  # type: ignore[arg-type, index]
    monkeypatch.setitem(REDUCTIONS, "mine", REDUCTIONS["zscore_max"])
    method = MethodConfig.model_validate(
        {
            "advantage": "mine",
            "steps": {"splitter": "mine"},
            "branching": {"criterion": "mine", "influence": "mine", "reduction": "mine"},
        }
    )
    assert method.advantage_function is ADVANTAGES["tree"]
    assert method.branching.criterion_function is CRITERIA["random"]
    assert method.branching.measure.uses_lookups
    assert method.steps.split(["a", "\n\n", "b"]) == Steps((0, 2), 3)
