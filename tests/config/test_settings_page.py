"""docs/settings.md is written from the configuration classes, and every setting has a description."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from attnrl.config.reference import Setting, setting_groups
from attnrl.config.schema import TrainConfig
from attnrl.config.sft import SftConfig
from attnrl.experiments.comparison.config import Comparison
from attnrl.grading.registry import GRADERS
from attnrl.inference.registry import SAMPLERS
from attnrl.method.advantage import ADVANTAGES
from attnrl.method.branching import CRITERIA
from attnrl.method.measures import MEASURES, REDUCTIONS
from attnrl.method.steps import SPLITTERS
from attnrl.tasks.registry import TASKS

SCRIPT = Path(__file__).parents[2] / "scripts" / "settings_page.py"


def settings_of(kind: type[BaseModel]) -> dict[str, Setting]:
    return {setting.name: setting for group in setting_groups(kind) for setting in group.settings}


@pytest.fixture(scope="module")
def script() -> Any:
    spec = importlib.util.spec_from_file_location("settings_page", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_current(script: Any) -> None:
    assert script.PAGE.read_text(encoding="utf-8") == script.page(), "run python scripts/settings_page.py"


@pytest.mark.parametrize("kind", [TrainConfig, SftConfig, Comparison])
def test_every_setting_has_a_description_and_every_group_a_title(kind: type[BaseModel]) -> None:
    assert [name for name, setting in settings_of(kind).items() if not setting.description] == []
    assert [group.name for group in setting_groups(kind) if not group.title] == []


@pytest.mark.parametrize("kind", [TrainConfig, SftConfig, Comparison])
def test_the_description_of_a_choice_names_every_value(kind: type[BaseModel]) -> None:
    missing = [
        (name, value)
        for name, setting in settings_of(kind).items()
        if "`" in setting.type and name != "log.trackers"
        for value in setting.type.split("`")[1::2]
        if value not in setting.description
    ]
    assert missing == []


@pytest.mark.parametrize(
    ("name", "table"),
    [
        ("method.advantage", ADVANTAGES),
        ("method.branching.criterion", CRITERIA),
        ("method.branching.influence", MEASURES),
        ("method.branching.reduction", REDUCTIONS),
        ("method.steps.splitter", SPLITTERS),
        ("task", TASKS),
        ("grader", GRADERS),
        ("sampler", SAMPLERS),
    ],
)
def test_the_description_of_a_name_lists_every_row_of_its_table(name: str, table: Mapping[str, object]) -> None:
    description = settings_of(TrainConfig)[name].description
    assert [row for row in (*table, "module:object") if row not in description] == []


def test_names_types_and_defaults_of_settings() -> None:
    train, sft, comparison = settings_of(TrainConfig), settings_of(SftConfig), settings_of(Comparison)
    assert (train["steps"].type, train["steps"].default) == ("integer > 0", None)
    assert (train["tokens"].type, train["tokens"].default) == ("integer > 0 or null", "null")
    assert (train["optimizer.betas"].type, train["optimizer.betas"].default) == (
        "list of 2: number >= 0, < 1",
        "[0.9, 0.999]",
    )
    assert (train["seed"].type, train["seed"].default) == ("integer", "0")
    assert (train["dtype"].type, train["dtype"].default) == ("`float32`, `bfloat16`", "float32")
    assert train["log.trackers"].type.startswith("list of `tensorboard`")
    assert train["sampling.retries"].type == "integer >= 0"
    assert sft["stages"].type == "list of groups" and sft["stages.N.save"].default == "null"
    assert comparison["arms.NAME.recipe"].default is None and comparison["target"].type == "number > 0, < 1"


def test_names_are_those_of_the_resolved_config() -> None:
    dumped = TrainConfig(model="m", output_dir="o", task="t", steps=1).model_dump()  # type: ignore[arg-type]
    names = settings_of(TrainConfig)

    def leaves(value: Any, name: str) -> list[str]:
        if isinstance(value, dict) and name not in names:
            return [leaf for key, inner in value.items() for leaf in leaves(inner, f"{name}.{key}" if name else key)]
        return [name]

    assert sorted(leaves(dumped, "")) == sorted(names)
