"""Settings of sampling: the groups ``sampling`` (training responses) and ``eval`` (held-out evaluation)."""

from __future__ import annotations

from typing import Annotated

from pydantic import BeforeValidator, Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from attnrl.config.base import Strict
from attnrl.types import WRITTEN_ESCAPES, SamplingParams

StopString = Annotated[str, Field(min_length=1)]


def _as_list(value: object) -> object:
    """Return a single stop string as a list; null as no stop string.

    Raises:
        ValueError: YAML has read text as something else, or text consists of written line breaks.
    """
    if value is None:
        return ()
    texts = value if isinstance(value, (list, tuple)) else (value,)
    for text in texts:
        if isinstance(text, dict):
            raise ValueError("text with a colon needs quotes, as in sampling.stop='[\"Question:\"]'")
        if isinstance(text, str) and WRITTEN_ESCAPES.fullmatch(text):
            raise ValueError("a backslash and a letter, no line break: use double quotes, as in '[\"\\n\\n\"]'")
    return tuple(texts)


class SamplingConfig(Strict):
    """How training responses are sampled, and the limits on their length."""

    temperature: PositiveFloat = Field(1.0, description="sampling temperature")
    top_p: float = Field(1.0, gt=0, le=1, description="nucleus sampling: probability mass kept; 1: off")
    top_k: NonNegativeInt = Field(0, description="number of most probable tokens kept; 0: off")
    min_p: float = Field(
        0.0, ge=0, le=1, description="smallest probability kept, as a share of the most probable token's; 0: off"
    )
    stop: Annotated[tuple[StopString, ...], BeforeValidator(_as_list)] = Field(
        (),
        description="a text or a list of texts that end a response, also in held-out evaluation; the text stays in the "
        "response",
    )
    max_new_tokens: PositiveInt = Field(8192, description="longest response, in tokens")
    max_prompt_tokens: PositiveInt = Field(
        1024, description="longest prompt, in tokens; longer problems of a data file are left out"
    )
    max_batch: PositiveInt = Field(256, description="sequences decoded at the same time")
    score_continuations: bool = Field(
        True,
        description="true: score continuations with the policy; false: use the sampler's log-probs as the policy's, "
        "which saves a forward pass",
    )
    carry_over: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="share of problems (rounded down) whose initial responses may stay unfinished when the rest of a "
        "generation is done; sampling of the unfinished responses continues in the next step",
    )
    stall_seconds: PositiveFloat | None = Field(
        1800.0,
        description="watchdog: seconds without a heartbeat after which the sampler counts as stalled; null: no limit",
    )
    retries: NonNegativeInt = Field(1, description="retries of a training step after a sampler error or stall")

    @property
    def params(self) -> SamplingParams:
        """Return the sampling parameters of training responses."""
        return SamplingParams(self.temperature, self.top_p, self.top_k, self.min_p, self.stop)


class EvalConfig(Strict):
    """Held-out evaluation during training: how often, and with how many samples."""

    every: NonNegativeInt = Field(10, description="training steps between evaluations; 0: no evaluation")
    problems: PositiveInt = Field(100, description="number of held-out problems, at most")
    samples: PositiveInt = Field(8, description="responses per problem (k of avg@k)")
    temperature: NonNegativeFloat = Field(1.0, description="sampling temperature; 0: greedy")
    top_p: float = Field(1.0, gt=0, le=1, description="nucleus sampling: probability mass kept; 1: off")
    top_k: NonNegativeInt = Field(0, description="number of most probable tokens kept; 0: off")
    min_p: float = Field(
        0.0, ge=0, le=1, description="smallest probability kept, as a share of the most probable token's; 0: off"
    )

    def params(self, stop: tuple[str, ...]) -> SamplingParams:
        """Return the sampling parameters of held-out evaluation, with the stop strings of training."""
        return SamplingParams(self.temperature, self.top_p, self.top_k, self.min_p, stop)
