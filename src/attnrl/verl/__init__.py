"""The engine for many GPUs: AttnRL's loop on verl, unmodified (Ray, FSDP2, vLLM or SGLang).

verl finds us by name: :mod:`attnrl.verl.plugin` registers a trainer, an engine, an agent loop and, for machines without
a GPU, a platform and a rollout. The loop is :class:`attnrl.rl.trainer.Trainer`, as everywhere; here are its sampler and
its policy. :mod:`attnrl.verl.settings`, :mod:`attnrl.verl.plan` and :mod:`attnrl.verl.memory` (a run before it starts),
:mod:`attnrl.verl.export` and :mod:`attnrl.verl.shards` (its checkpoints afterwards) need no verl, all else
``attnrl[verl]``.
"""
