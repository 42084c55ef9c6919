"""What verl imports (``VERL_USE_EXTERNAL_MODULES=attnrl.verl.plugin``), in every process of a run: registers our parts.

They do nothing until a configuration names them: ``trainer.v1.trainer_mode=attnrl`` the trainer, which names the agent
loop; the environment's ``VERL_ENGINE_VENDOR=attnrl`` the engine, ``VERL_PLATFORM=cpu`` the platform;
``rollout.name=transformers`` the rollout.
"""

from __future__ import annotations

from typing import Any

from attnrl.verl import cpu  # isort: skip  # first: on a CPU the others need what it sets right
from verl.workers.rollout import base
from verl.workers.rollout.replica import RolloutReplicaRegistry

from attnrl.verl import agent_loop, engine, trainer

__all__ = ["agent_loop", "cpu", "engine", "trainer"]


def _replica() -> Any:
    from attnrl.verl.rollout import Replica

    return Replica


RolloutReplicaRegistry.register("transformers", _replica)
base._ROLLOUT_REGISTRY["transformers", "async"] = "attnrl.verl.rollout.ServerAdapter"  # verl has no function for it
