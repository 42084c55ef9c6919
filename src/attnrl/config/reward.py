"""Settings of the reward: the group ``reward``."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveInt,
    field_validator,
    model_validator,
)

from attnrl.config.base import Strict


class RewardConfig(Strict):
    """The reward of a response, beside the verdict of ``grader`` (docs/grading.md)."""

    functions: tuple[str, ...] = Field(
        (),
        description="reward functions with the signature of TRL or verl, each module:object; the reward is the "
        "weighted sum of the functions that do not return None, and grader gives the verdict only; empty: the grader's "
        "reward",
    )
    weights: tuple[float, ...] = Field((), description="weight of each reward function; empty: 1 each")
    correct_from: float = Field(
        1.0, description="smallest reward of a correct response, for a grader or reward function without verdicts"
    )
    truncated: Literal["as_is", "zero", "mask"] = Field(
        "as_is",
        description="responses cut off at max_new_tokens. as_is: rewarded like any other; zero: reward 0; mask: in the "
        "values and baselines, but not trained on (overlong filtering)",
    )
    overlong_buffer: NonNegativeInt = Field(
        0,
        description="soft overlong penalty (DAPO eq. 13): tokens before max_new_tokens over which the penalty grows; "
        "0: no penalty",
    )
    overlong_penalty: NonNegativeFloat = Field(
        1.0, description="soft overlong penalty of a response of max_new_tokens tokens"
    )
    while_thinking: bool = Field(
        False, description="accept an answer inside of a <think> that never ends; false: such a box is no answer"
    )
    timeout: float | None = Field(
        300.0, gt=0, le=1e9, description="time limit of one call of a reward function, in seconds; null: no limit"
    )
    concurrency: PositiveInt = Field(16, description="calls of async reward functions that run at the same time")
    max_not_judged: float = Field(
        0.1, ge=0, le=1, description="share of responses without a reward in a step, above which the run warns at once"
    )

    @field_validator("functions", "weights", mode="before")
    @classmethod
    def _as_tuple(cls, value: Any) -> Any:
        if isinstance(value, str) and "," in value:
            raise ValueError(f"expected a list: [{value}]")
        return () if value is None else (value,) if isinstance(value, (str, int, float)) else value

    @model_validator(mode="after")
    def _one_weight_each(self) -> RewardConfig:
        weights, functions = len(self.weights), len(self.functions)
        if weights and weights != functions:
            raise ValueError(f"weights: expected one per function, found {weights} for functions of length {functions}")
        if weights and not any(self.weights):
            raise ValueError("weights: all 0, so that every reward is 0")
        return self

    @model_validator(mode="after")
    def _penalty_over_a_buffer(self) -> RewardConfig:
        if self.overlong_penalty != 1.0 and not self.overlong_buffer:
            raise ValueError("overlong_penalty has no effect without overlong_buffer (tokens before max_new_tokens)")
        return self
