"""Outputs of transformers models: logits only, whatever the model's config asks for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

#: Settings of a model's config that change the outputs of a forward, and the value for logits only. With
#: ``output_router_logits`` a mixture of experts computes a load-balancing loss, which needs a padding mask.
LOGITS_ONLY = {"output_router_logits": False, "output_hidden_states": False, "return_dict": True}


@contextmanager
def logits_only(model: Any) -> Iterator[None]:
    """Let forwards of a transformers model within a block return the logits only; afterwards restore the config."""
    configs = {id(module.config): module.config for module in model.modules() if hasattr(module, "config")}
    changed = [
        (config, name, value, getattr(config, name))
        for config in configs.values()
        for name, value in LOGITS_ONLY.items()
        if hasattr(config, name) and getattr(config, name) != value
    ]
    try:
        for config, name, value, _ in changed:
            setattr(config, name, value)
        yield
    finally:
        for config, name, _, former in changed:
            setattr(config, name, former)
