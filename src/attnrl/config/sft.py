"""Settings of supervised training (``attnrl sft``)."""

from __future__ import annotations

from typing import Any

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, field_validator

from attnrl.config.base import HomePath, PlainName, Seed, Strict, Threads


class SftStage(Strict):
    """One stage of the curriculum."""

    task: str = Field(description="a procedural task with demonstrations")
    steps: PositiveInt = Field(description="optimizer steps")
    learning_rate: tuple[PositiveFloat, PositiveFloat] = Field(
        description="learning rate at the start and at the end of the stage, linear in between"
    )
    save: PlainName | None = Field(
        None, description="name of the checkpoint directory in output_dir, written after the stage; null: no checkpoint"
    )


class SftConfig(Strict):
    """Supervised training of a small base model on demonstrations of procedural tasks (``attnrl sft``)."""

    output_dir: HomePath = Field(description="directory of the checkpoints")
    architecture: dict[str, Any] = Field({}, description="a transformers config: model_type and sizes of the model")
    start: str | None = Field(
        None, description="model to start from, named like the model of a training run; null: random weights"
    )
    stages: tuple[SftStage, ...] = Field(description="stages of the curriculum, in order")
    batch_size: PositiveInt = Field(64, description="demonstrations per optimizer step")
    warmup_steps: NonNegativeInt = Field(
        100, description="linear warm-up of the learning rate, in optimizer steps from the start of the first stage"
    )
    weight_decay: NonNegativeFloat = Field(0.01, description="decoupled weight decay of AdamW")
    max_grad_norm: PositiveFloat = Field(1.0, description="gradient clipping: largest global gradient norm")
    threads: Threads = Field(0, description="CPU threads of torch; 0: torch's default")
    seed: Seed = Field(0, description="seed of the initial weights and of the demonstrations")

    @field_validator("stages")
    @classmethod
    def _some_stage(cls, stages: tuple[SftStage, ...]) -> tuple[SftStage, ...]:
        if not stages:
            raise ValueError("at least one stage is needed")
        return stages
