"""Plug-in that verl imports in every process (``VERL_USE_EXTERNAL_MODULES=attnrl.verl.plugin``).

The import registers AttnRL's classes with verl. Settings activate the classes:

===================================  =====================================
``trainer.v1.trainer_mode=attnrl``   trainer and agent loop
``VERL_ENGINE_VENDOR=attnrl``        FSDP engine (environment variable)
``VERL_PLATFORM=cpu``                platform (environment variable)
``rollout.name=transformers``        rollout
===================================  =====================================
"""

from __future__ import annotations

from typing import Any

from attnrl.verl import cpu  # isort: skip  # first: patches verl before the other imports
from verl.workers.rollout import base
from verl.workers.rollout.replica import RolloutReplicaRegistry

from attnrl.verl import agent_loop, engine, trainer

__all__ = ["agent_loop", "cpu", "engine", "trainer"]


def _replica() -> Any:
    from attnrl.verl.rollout import Replica

    return Replica


RolloutReplicaRegistry.register("transformers", _replica)
base._ROLLOUT_REGISTRY["transformers", "async"] = (
    "attnrl.verl.rollout.ServerAdapter"  # verl has no function to register a rollout class
)
