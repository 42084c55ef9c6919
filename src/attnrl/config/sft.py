"""Settings of supervised training (``attnrl sft``)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, field_validator

from attnrl.config.base import PlainName, Seed, Strict, Threads


class SftStage(Strict):
    """One stage of the curriculum; ends with a checkpoint in ``output_dir/NAME`` if ``save`` names one."""

    task: str
    steps: PositiveInt
    learning_rate: tuple[PositiveFloat, PositiveFloat] = Field(description="at the start and at the end")
    save: PlainName | None = None


class SftConfig(Strict):
    """Supervised training of a small base model on a task's demonstrations (``attnrl sft``)."""

    output_dir: Path
    architecture: dict[str, Any] = Field({}, description="a transformers config: model_type and its sizes")
    start: str | None = Field(None, description="a model to go on from (as in TrainConfig), instead of random weights")
    stages: tuple[SftStage, ...]
    batch_size: PositiveInt = 64
    warmup_steps: NonNegativeInt = Field(100, description="at the very start")
    weight_decay: NonNegativeFloat = 0.01
    max_grad_norm: PositiveFloat = 1.0
    threads: Threads = 0
    seed: Seed = 0

    @field_validator("stages")
    @classmethod
    def _some_stage(cls, stages: tuple[SftStage, ...]) -> tuple[SftStage, ...]:
        if not stages:
            raise ValueError("at least one stage is needed")
        return stages
