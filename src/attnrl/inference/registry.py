"""The samplers by name: the values of the setting ``sampler``."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from attnrl.errors import UserError
from attnrl.inference.base import Opener
from attnrl.inference.sampler import check_cache, open_local
from attnrl.inference.vllm_engine import require_vllm
from attnrl.inference.vllm_sampler import open_vllm
from attnrl.utils.plugins import resolve


def _no_requirement(_: object) -> None:
    pass


@dataclass(frozen=True)
class SamplerBackend:
    """A way to sample: an opener and the opener's requirements.

    Attributes:
        open: opens the samplers of a run.
        require_device: raises UserError unless the backend is installed and supports the device; called before the
            model is loaded.
        require_model: raises UserError unless the backend supports the model; returns a note for the user, or None.
    """

    open: Opener
    require_device: Callable[[torch.device], None] = _no_requirement
    require_model: Callable[[PreTrainedModel], str | None] = _no_requirement


SAMPLERS: Mapping[str, SamplerBackend] = {
    "transformers": SamplerBackend(open_local, require_model=check_cache),
    "vllm": SamplerBackend(open_vllm, require_device=require_vllm),
}


def find_sampler(name: str) -> SamplerBackend:
    """Return the row ``name`` of :data:`SAMPLERS`, or the user's ``module:object``.

    The object is a :class:`SamplerBackend`, or an :data:`attnrl.inference.base.Opener` without requirements.

    Raises:
        UserError: unknown name, failed import, or the object cannot be called as an opener.
    """
    found: object = resolve(name, SAMPLERS, "sampler")
    backend = found if isinstance(found, SamplerBackend) else None
    opener = backend.open if backend is not None else found
    try:
        inspect.signature(opener).bind("config", "model", "tokenizer", "directory", "on_progress")  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise UserError(
            f"sampler: {name} is not an opener: opener(config, model, tokenizer, directory, on_progress) expected"
        ) from None
    return backend or SamplerBackend(opener)  # type: ignore[arg-type]
