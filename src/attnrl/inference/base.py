"""Shared parts of the samplers: statistics, checks of settings and requests, and the types of an opener.

A sampler implements :class:`attnrl.types.Sampler`. The samplers of a run are made by a :data:`SamplerFactory`, which an
:data:`Opener` opens; :mod:`attnrl.inference.registry` lists the openers by name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from attnrl.config.schema import TrainConfig
from attnrl.types import Request, Sampler, SamplingParams

ProgressHook = Callable[[int, int], None]
"""Called with the number of tokens sampled and of requests finished so far in the current ``generate``."""

SamplerFactory = Callable[[SamplingParams], Sampler]
"""Called with the sampling parameters; returns a sampler. All samplers of one factory share the policy's weights."""

Opener = Callable[
    [TrainConfig, PreTrainedModel, PreTrainedTokenizerBase, Path, ProgressHook | None],
    AbstractContextManager[SamplerFactory],
]
"""``opener(config, model, tokenizer, directory, on_progress)`` opens the samplers of a run.

``config`` is the run's, ``model`` the policy's model, ``directory`` the model's directory (for an engine that reads the
model's configuration there) and ``on_progress`` the progress hook of every sampler. The context manager gives a
:data:`SamplerFactory`, and releases on exit what the samplers share, such as an inference engine.
"""


class UnsupportedModelError(ValueError):
    """The model's cache holds another state than keys and values, so rows cannot be cached, moved and dropped."""


@dataclass
class SamplerStats:
    """Counters of the last ``generate``.

    Attributes:
        prompt_tokens: tokens of all prompts.
        prefilled_tokens: prompt tokens computed by the model: shared prefixes once, padding not counted. The last
            token of a prompt is decoded, not prefilled.
        completion_tokens: tokens returned.
        decoded_tokens: rows times decoding steps; the excess over ``completion_tokens`` was wasted.
        steps: decoding steps.
    """

    prompt_tokens: int = 0
    prefilled_tokens: int = 0
    completion_tokens: int = 0
    decoded_tokens: int = 0
    steps: int = 0


def check_range(name: str, value: float, ok: bool, wanted: str) -> None:
    """Raise ValueError with the setting's name unless ``ok``."""
    if not ok:
        raise ValueError(f"{name} must be {wanted}, got {value}")


def check_requests(requests: Sequence[Request], max_positions: int | None) -> None:
    """Raise ValueError with the request's index unless every request can be sampled.

    A request needs a prompt of at least one token, a budget of at least one token, and at most ``max_positions``
    tokens of prompt and budget together (None: no limit).
    """
    for r, request in enumerate(requests):
        if not request.prompt:
            raise ValueError(f"request {r}: the prompt is empty")
        if request.max_new_tokens < 1:
            raise ValueError(f"request {r}: max_new_tokens must be at least 1, got {request.max_new_tokens}")
        needed = len(request.prompt) + request.max_new_tokens
        if max_positions is not None and needed > max_positions:
            raise ValueError(
                f"request {r}: {len(request.prompt)} prompt tokens and a budget of {request.max_new_tokens} exceed "
                f"the model's {max_positions} positions"
            )
