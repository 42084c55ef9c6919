"""Forwards of a decoder with a cache, for every spelling of the cache argument.

Shape letters: see CONTRIBUTING.md.
"""

from __future__ import annotations

import inspect
from collections.abc import Collection
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel


class ModelCall:
    """Calls a model on token ids and a cache."""

    def __init__(self, model: PreTrainedModel) -> None:
        """Read the parameters of the model's ``forward``."""
        self.model = model
        self.parameters = forward_parameters(model)
        self.cache_argument = cache_argument(self.parameters)

    def __call__(self, ids_BT: Tensor, position_ids: Tensor, cache: Any, attention_mask: Tensor | None) -> Tensor:
        """Return the logits [B, V] after the last token of each row; ``cache`` takes the tokens' states.

        Args:
            ids_BT: token ids.
            position_ids: positions [B, T] or [1, T].
            cache: a transformers cache.
            attention_mask: padding mask [B, C] or mask [B, 1, T, C]; None without padding.
        """
        optional = {"position_ids": position_ids, "logits_to_keep": 1, "attention_mask": attention_mask}
        accepted = {name: value for name, value in optional.items() if name in self.parameters}
        output: Any = self.model(input_ids=ids_BT, use_cache=True, **{self.cache_argument: cache}, **accepted)
        logits_BV: Tensor = output.logits[:, -1]
        return logits_BV


def forward_parameters(model: PreTrainedModel) -> frozenset[str]:
    """Return the names of the parameters of the model's ``forward``.

    A ``forward(*arguments, **options)`` names no parameter and hands all on; the parameters are then the parent's.
    """
    for kind in type(model).__mro__:
        names = (
            frozenset(inspect.signature(vars(kind)["forward"]).parameters) if "forward" in vars(kind) else frozenset()
        )
        if "input_ids" in names:
            return names
    return frozenset(inspect.signature(model.forward).parameters)


def cache_argument(parameters: Collection[str]) -> str:
    """Return the name of the cache argument among the parameters of a model's ``forward``.

    The name is ``past_key_values`` up to transformers 5.23 and ``cache`` from transformers 5.24; models of state
    spaces alone (Mamba) name the argument ``cache_params``.
    """
    for name in ("past_key_values", "cache", "cache_params"):
        if name in parameters:
            return name
    return "past_key_values"
