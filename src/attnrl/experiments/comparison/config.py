"""What a comparison is: arms (recipes and their changes), seeds, and the budget that all runs share."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, PositiveInt, field_validator

from attnrl.config.base import Strict
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
    """One of the things compared: a recipe, and settings that it changes (``key.path=value``)."""

    recipe: str
    settings: tuple[str, ...] = ()


class Comparison(Strict):
    """Arms side by side, each over all seeds, at equal budgets of sampled tokens (``attnrl compare``)."""

    output_dir: Path
    arms: dict[str, Arm] = Field(description="by the name to show; the first is what the others are tested against")
    settings: tuple[str, ...] = Field((), description="settings that all arms change, as key.path=value")
    tokens: PositiveInt = Field(description="budget of each run: tokens sampled in training")
    seeds: tuple[int, ...] = (0, 1, 2)
    target: Annotated[float, Field(gt=0, lt=1)] = Field(0.8, description="accuracy: how many tokens until there?")
    workers: PositiveInt = Field(2, description="runs at a time, one thread each")

    @field_validator("arms")
    @classmethod
    def _arms_by_directory(cls, arms: dict[str, Arm]) -> dict[str, Arm]:
        if not arms:
            raise ValueError("names nothing to compare")
        slugs = [slug(name) for name in arms]
        if not all(slugs) or len(set(slugs)) < len(slugs):
            raise ValueError(f"names must differ in letters and digits, got {', '.join(arms)}")
        return arms

    @field_validator("seeds")
    @classmethod
    def _seeds_differ(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if not seeds or len(set(seeds)) < len(seeds):
            raise ValueError(f"at least one, and none twice, got {list(seeds)}")
        return seeds


@dataclass(frozen=True)
class PlannedRun:
    """One training run of a comparison.

    Attributes:
        arm: its arm's name.
        seed: its seed.
        recipe: what to train.
        overrides: with which settings, seed, budget and output directory included.
        config: what that comes to.
    """

    arm: str
    seed: int
    recipe: str
    overrides: tuple[str, ...]
    config: TrainConfig

    @property
    def directory(self) -> Path:
        """Its run directory."""
        return self.config.output_dir

    @property
    def log(self) -> Path:
        """What it prints."""
        return self.directory.with_suffix(".log")


def comparison_names() -> list[str]:
    """Names of the comparisons that the package ships."""
    return shipped_names(COMPARISONS)


def load_comparison(what: str, overrides: Sequence[str] = ()) -> Comparison:
    """A comparison: a YAML file, the name of one that the package ships, or recipes separated by commas.

    Raises:
        UserError: there is none of that name, or a setting is wrong.
    """
    settings = _read(what)
    return validate_config(Comparison, apply_overrides(settings, overrides), source=f"comparison {what}")


def _read(what: str) -> dict[str, Any]:
    recipes = what.split(",")
    if what in comparison_names() or (len(recipes) == 1 and what not in recipe_names()):
        return read_settings_file(what, kind="comparison", package=COMPARISONS)
    # Not its stem, which ends at the point of a name such as qwen_1.5b.
    names = [re.sub(r"\.ya?ml$", "", Path(recipe).name) for recipe in recipes]
    return {
        "output_dir": f"results/{'-'.join(map(slug, names))}",
        "arms": {name: {"recipe": recipe} for name, recipe in zip(names, recipes, strict=True)},
    }


def slug(name: str) -> str:
    """A directory name for an arm: ``TreeRL + ATB`` is ``treerl-atb``, and ``..`` is none."""
    return "-".join(re.findall(r"[a-z0-9][a-z0-9.]*", name.lower()))


def plan_runs(comparison: Comparison) -> list[PlannedRun]:
    """All runs, seed by seed, so that a comparison that is stopped has whole seeds.

    Raises:
        UserError: the settings of an arm are wrong; it is named.
    """
    runs = []
    for seed in comparison.seeds:
        for name, arm in comparison.arms.items():
            directory = comparison.output_dir / "runs" / slug(name) / f"seed-{seed}"
            overrides = (
                *comparison.settings,
                *arm.settings,
                # Every step samples some token, so that the budget of tokens is what ends a run.
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
                raise UserError(f"arm {name}: eval.every=0 leaves nothing to compare")
            runs.append(PlannedRun(name, seed, arm.recipe, overrides, config))
    return runs
