"""Configuration of a comparison: arms (recipes with changed settings), seeds, and the budget of every run."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, PositiveInt, field_validator

from attnrl.config.base import HomePath, Strict
from attnrl.config.load import (
    apply_overrides,
    load_config,
    read_settings_file,
    recipe_names,
    shipped_names,
    validate_config,
)
from attnrl.config.schema import TrainConfig
from attnrl.errors import UserError

COMPARISONS = "attnrl.comparisons"


class Arm(Strict):
    """One arm of a comparison: a recipe with overrides (``key.path=value``)."""

    recipe: str = Field(description="a .yaml file, or the name of a shipped recipe")
    settings: tuple[str, ...] = Field((), description="settings that the arm changes, as key.path=value")


class Comparison(Strict):
    """Arms trained with all seeds at equal budgets of sampled tokens (``attnrl compare``)."""

    output_dir: HomePath = Field(description="directory of the results; run directories are in runs/")
    arms: dict[str, Arm] = Field(description="arms by display name; the other arms are tested against the first arm")
    settings: tuple[str, ...] = Field((), description="settings that all arms change, as key.path=value")
    tokens: PositiveInt = Field(description="budget of each run: tokens sampled in training")
    seeds: tuple[int, ...] = Field((0, 1, 2), description="seeds; each arm is trained once per seed")
    target: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.8, description="held-out accuracy for the table of tokens needed to reach the target"
    )
    workers: PositiveInt = Field(2, description="runs at the same time, one thread each")

    @field_validator("arms")
    @classmethod
    def _arms_by_directory(cls, arms: dict[str, Arm]) -> dict[str, Arm]:
        if not arms:
            raise ValueError("at least one arm is required")
        slugs = [slug(name) for name in arms]
        if not all(slugs) or len(set(slugs)) < len(slugs):
            raise ValueError(f"names must differ in letters and digits, got {', '.join(arms)}")
        return arms

    @field_validator("seeds")
    @classmethod
    def _seeds_differ(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if not seeds or len(set(seeds)) < len(seeds):
            raise ValueError(f"at least one seed, without duplicates, got {list(seeds)}")
        return seeds


@dataclass(frozen=True)
class PlannedRun:
    """One training run of a comparison.

    Attributes:
        arm: name of the arm.
        seed: seed of the run.
        recipe: name or path of the recipe.
        overrides: all overrides, including seed, budget and output directory.
        config: the resulting configuration.
    """

    arm: str
    seed: int
    recipe: str
    overrides: tuple[str, ...]
    config: TrainConfig

    @property
    def directory(self) -> Path:
        """Return the output directory of the run."""
        return self.config.output_dir

    @property
    def log(self) -> Path:
        """Return the path of the log with the output of the process."""
        return self.directory.with_suffix(".log")


def comparison_names() -> list[str]:
    """Return the names of the shipped comparisons."""
    return shipped_names(COMPARISONS)


def load_comparison(what: str, overrides: Sequence[str] = ()) -> Comparison:
    """Load a comparison, with overrides (``key.path=value``).

    ``what`` is a YAML file, the name of a shipped comparison, or recipes separated by commas.

    Raises:
        UserError: the comparison cannot be found, or a setting is invalid.
    """
    settings = _read_comparison(what)
    return validate_config(Comparison, apply_overrides(settings, overrides), source=f"comparison {what}")


def _read_comparison(what: str) -> dict[str, Any]:
    recipes = what.split(",")
    if what in comparison_names() or (len(recipes) == 1 and what not in recipe_names()):
        return read_settings_file(what, kind="comparison", package=COMPARISONS)
    # Not Path.stem, which would cut qwen_1.5b at the dot.
    names = [re.sub(r"\.ya?ml$", "", Path(recipe).name) for recipe in recipes]
    return {
        "output_dir": f"results/{'-'.join(map(slug, names))}",
        "arms": {name: {"recipe": recipe} for name, recipe in zip(names, recipes, strict=True)},
    }


def slug(name: str) -> str:
    """Return the directory name of an arm: ``TreeRL + ATB`` becomes ``treerl-atb``, and ``..`` becomes empty."""
    return "-".join(re.findall(r"[a-z0-9][a-z0-9.]*", name.lower()))


def plan_runs(comparison: Comparison) -> list[PlannedRun]:
    """Return all runs ordered by seed, so that an interrupted comparison has complete seeds.

    Raises:
        UserError: invalid settings of an arm; the message names the arm.
    """
    runs = []
    for seed in comparison.seeds:
        for name, arm in comparison.arms.items():
            directory = comparison.output_dir / "runs" / slug(name) / f"seed-{seed}"
            overrides = (
                *comparison.settings,
                *arm.settings,
                # Every step samples at least one token, so the token budget ends a run before the step limit.
                f"steps={comparison.tokens}",
                f"tokens={comparison.tokens}",
                f"seed={seed}",
                f"output_dir={directory}",
            )
            try:
                config = load_config(TrainConfig, arm.recipe, overrides)
            except UserError as error:
                raise UserError(f"arm {name}: {error}") from None
            if not config.eval.every:
                raise UserError(f"arm {name}: eval.every=0 leaves no evaluations to compare")
            runs.append(PlannedRun(name, seed, arm.recipe, overrides, config))
    return runs
