"""The engine for many GPUs: AttnRL's training loop on an unmodified verl (Ray, FSDP2, vLLM or SGLang).

:mod:`attnrl.verl.plugin` registers a trainer, an FSDP engine and an agent loop with verl, and for machines without a
GPU a platform and a rollout. The training loop is :class:`attnrl.rl.trainer.Trainer`, as in the local engine; this
package implements the sampler and the policy. These modules need no verl: :mod:`attnrl.verl.settings`,
:mod:`attnrl.verl.plan` and :mod:`attnrl.verl.memory` (checks before a run), :mod:`attnrl.verl.export` and
:mod:`attnrl.verl.shards` (checkpoints). The other modules need ``attnrl[verl]``.
"""
