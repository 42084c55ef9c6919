"""A run's settings in verl's words and in ours: one table, read in both directions.

:func:`to_verl` says what a recipe is in verl's own configuration (``ppo_trainer.yaml``), and puts the recipe itself
under ``attnrl``. :func:`from_verl` reads that back inside verl; where somebody has started from verl's
configuration instead, ``attnrl`` holds what verl has no words for (``+attnrl.method.trunks=8``), and the rest is
taken from verl's settings.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from attnrl.config.load import read_recipe, validate_config
from attnrl.config.schema import TrainConfig
from attnrl.errors import UserError

#: Under this name verl knows our trainer, our engine (as a vendor's) and our agent loop.
NAME = "attnrl"
PLUGIN = "attnrl.verl.plugin"
ACTOR, ROLLOUT, MODEL = "actor_rollout_ref.actor", "actor_rollout_ref.rollout", "actor_rollout_ref.model"

#: Settings that mean the same in both.
SAME = {
    "model": f"{MODEL}.path",
    "trust_remote_code": f"{MODEL}.trust_remote_code",
    "data.train": "data.train_files",
    "data.eval": "data.val_files",
    "prompts": "data.train_batch_size",
    "sampling.max_prompt_tokens": "data.max_prompt_length",
    "sampling.max_new_tokens": "data.max_response_length",
    "sampling.temperature": f"{ROLLOUT}.temperature",
    "sampling.top_p": f"{ROLLOUT}.top_p",
    "sampling.max_batch": f"{ROLLOUT}.max_num_seqs",
    "loss.clip_low": f"{ACTOR}.clip_ratio_low",
    "loss.clip_high": f"{ACTOR}.clip_ratio_high",
    "optimizer.learning_rate": f"{ACTOR}.optim.lr",
    "optimizer.betas": f"{ACTOR}.optim.betas",
    "optimizer.weight_decay": f"{ACTOR}.optim.weight_decay",
    "optimizer.warmup_steps": f"{ACTOR}.optim.lr_warmup_steps",
    "optimizer.max_grad_norm": f"{ACTOR}.optim.clip_grad",
    "optimizer.micro_batch_tokens": f"{ACTOR}.ppo_max_token_len_per_gpu",
    "optimizer.gradient_checkpointing": f"{MODEL}.enable_gradient_checkpointing",
    "steps": "trainer.total_training_steps",
    "eval.every": "trainer.test_freq",
    "eval.samples": f"{ROLLOUT}.val_kwargs.n",
    "eval.temperature": f"{ROLLOUT}.val_kwargs.temperature",
    "eval.top_p": f"{ROLLOUT}.val_kwargs.top_p",
    "checkpoint.every": "trainer.save_freq",
    "checkpoint.keep_last": "trainer.max_actor_ckpt_to_keep",
    "log.project": "trainer.project_name",
    "verl.nodes": "trainer.nnodes",
    "verl.gpus_per_node": "trainer.n_gpus_per_node",
    "verl.rollout": f"{ROLLOUT}.name",
    "verl.tensor_parallel": f"{ROLLOUT}.tensor_model_parallel_size",
    "verl.gpu_memory_utilization": f"{ROLLOUT}.gpu_memory_utilization",
    "verl.enforce_eager": f"{ROLLOUT}.enforce_eager",
    "verl.remove_padding": f"{MODEL}.use_remove_padding",
    "verl.sequence_parallel": f"{ACTOR}.ulysses_sequence_parallel_size",
}

STATE_FILE = "attnrl_state.json"  # of our loop, in a checkpoint of verl's
NEVER = 1e9  # dual_clip=none: verl always has this clip, and no ratio reaches it


def to_verl(config: TrainConfig, *, cpu: bool) -> dict[str, Any]:
    """What to set in verl's configuration, by dotted name, so that it does what ``config`` says.

    What ``verl.set`` names is left out: that is Hydra's to set.

    Args:
        config: a recipe with ``engine=verl``.
        cpu: there is no GPU: fp32 weights, sdpa, gloo, and as many GPUs for Ray to count as there are to be processes.

    Raises:
        UserError: ``verl.set`` has a setting that a recipe has its own word for.
    """
    recipe = {**config.model_dump(mode="json"), "output_dir": str(config.output_dir.absolute())}
    settings = {verl: _get(recipe, ours) for ours, verl in SAME.items() if _get(recipe, ours) is not None}
    settings |= {
        "trainer.v1.trainer_mode": NAME,
        "trainer.use_v1": True,
        "trainer.default_local_dir": str((config.output_dir / "checkpoints").absolute()),
        "trainer.experiment_name": config.output_dir.name,
        "trainer.logger": ["console", *config.log.trackers],
        "trainer.resume_mode": {"auto": "auto", "never": "disable"}.get(config.resume, "resume_path"),
        "trainer.val_before_train": config.eval.every > 0,
        "trainer.save_freq": config.checkpoint.every or config.steps + 1,  # the last step always saves
        "critic.enable": False,  # advantages come with the batch
        f"{ACTOR}.strategy": "fsdp2",
        f"{ACTOR}.use_dynamic_bsz": True,  # batches differ in their number of rows
        f"{ACTOR}.use_kl_loss": config.loss.kl > 0,
        f"{ACTOR}.kl_loss_coef": config.loss.kl,
        f"{ACTOR}.clip_ratio_c": config.loss.dual_clip or NEVER,
        f"{ACTOR}.loss_agg_mode": "token-mean",
        f"{ACTOR}.fsdp_config.param_offload": config.verl.offload,
        f"{ACTOR}.fsdp_config.optimizer_offload": config.verl.offload,
        f"{ROLLOUT}.calculate_log_probs": True,
        f"{ROLLOUT}.agent.default_agent_loop": NAME,
        f"{MODEL}.external_lib": PLUGIN,
        "transfer_queue.backend.SimpleStorage.num_data_storage_units": 1 if cpu else max(2, 2 * config.verl.nodes),
        "attnrl": recipe,
    }
    if config.resume not in {"auto", "never"}:
        settings["trainer.resume_from_path"] = str(Path(config.resume).absolute())
    # By default it would be all that the model has positions for. SGLang takes one off for itself.
    longest = config.sampling.max_prompt_tokens + config.sampling.max_new_tokens
    settings[f"{ROLLOUT}.max_model_len"] = longest + (config.verl.rollout == "sglang")
    if is_own_cluster(config.verl.nodes):
        settings["ray_kwargs.ray_init.address"] = "local"  # not one that somebody has started here for himself
    if cpu or config.dtype == "float32":
        precision = {"param_dtype": "fp32", "reduce_dtype": "fp32", "buffer_dtype": "fp32"}
        settings |= {f"actor_rollout_ref.{role}.fsdp_config.mixed_precision": precision for role in ("actor", "ref")}
        settings[f"{ROLLOUT}.dtype"] = "float32"
        settings[f"{MODEL}.override_config.attn_implementation"] = "sdpa"  # flash attention takes no fp32
    if cpu:
        processes = config.verl.nodes * config.verl.gpus_per_node
        settings |= {
            "trainer.device": "cpu",
            f"{ACTOR}.use_torch_compile": False,
            f"{ACTOR}.fsdp_config.use_torch_compile": False,
            "actor_rollout_ref.ref.fsdp_config.use_torch_compile": False,
            f"{ROLLOUT}.agent.num_workers": 1,
            "reward.num_workers": 1,
            "ray_kwargs.ray_init.num_gpus": processes,
            # Placement groups, storage and workers each claim some; none of them is busy all the time.
            "ray_kwargs.ray_init.num_cpus": 16 + 4 * processes,
            "ray_kwargs.ray_init.include_dashboard": False,
        }
    settings["ray_kwargs.ray_init.runtime_env.env_vars"] = environment_of(cpu)
    for setting in config.verl.set:
        name, equals, _ = setting.lstrip("+~").partition("=")
        ours = next((ours for ours, verl in SAME.items() if verl == name), None)
        if not equals:
            raise UserError(f"verl.set: {setting!r} is not of the form verl.key.path=value")
        if ours is not None:
            raise UserError(f"verl.set: {name} is our {ours}: set that")
        settings.pop(name, None)
    return settings


def is_own_cluster(nodes: int) -> bool:
    """Whether Ray is started with the run and ended with it, on this machine alone."""
    return nodes == 1 and "RAY_ADDRESS" not in os.environ


def environment_of(cpu: bool) -> dict[str, str]:
    """The environment variables by which verl's processes find the plug-in."""
    found = {"VERL_USE_EXTERNAL_MODULES": PLUGIN, "VERL_ENGINE_VENDOR": NAME}
    return {**found, "VERL_PLATFORM": "cpu", "OMP_NUM_THREADS": "1"} if cpu else found


def from_verl(settings: Mapping[str, Any]) -> TrainConfig:
    """The recipe that a resolved verl configuration stands for.

    ``attnrl.recipe`` names the recipe to start from (``attnrl`` by default); verl's settings come over it, and what
    else stands under ``attnrl`` over those.

    Raises:
        UserError: it is none.
    """
    check_needs(settings)
    ours = dict(settings.get("attnrl") or {})
    recipe = read_recipe(str(ours.pop("recipe", "attnrl")))
    merged = {key: value for key, value in recipe.items() if key not in {"model", "task"}}
    for name, verl in SAME.items():
        value = _get(settings, verl)
        if value is not None and not (name.startswith("data.") and "task" in ours):
            _put(merged, name, value)
    _put(merged, "sampling.score_continuations", True)  # unless it is said below: rollout engines are not the policy
    actor = _get(settings, ACTOR)
    _put(merged, "loss.kl", actor["kl_loss_coef"] if actor["use_kl_loss"] else 0.0)
    _put(merged, "loss.dual_clip", actor["clip_ratio_c"] if actor["clip_ratio_c"] < NEVER else None)
    # verl says "never" and "no warm-up" by -1.
    for name in ("eval.every", "checkpoint.every", "optimizer.warmup_steps"):
        _put(merged, name, max(0, _get(merged, name)))
    merged |= {"engine": "verl", "output_dir": str(_get(settings, "trainer.default_local_dir"))}
    return validate_config(TrainConfig, _over(merged, ours), source="attnrl")


def check_needs(settings: Mapping[str, Any]) -> None:
    """Make sure of what the trainer needs of verl's settings.

    Raises:
        UserError: naming the setting.
    """
    needed = {
        f"{ACTOR}.use_dynamic_bsz": True,
        f"{ACTOR}.loss_agg_mode": "token-mean",
        f"{ACTOR}.ppo_epochs": 1,
        f"{ROLLOUT}.calculate_log_probs": True,
        f"{MODEL}.lora_rank": 0,
        "algorithm.use_kl_in_reward": False,
    }
    for name, value in needed.items():
        if _get(settings, name) != value:
            raise UserError(f"{name}={_get(settings, name)}: AttnRL needs {name}={value}")
    if _get(settings, f"{ACTOR}.strategy") not in {"fsdp", "fsdp2"}:
        raise UserError(f"{ACTOR}.strategy={_get(settings, f'{ACTOR}.strategy')}: AttnRL needs fsdp2 or fsdp")
    if os.environ.get("VERL_ENGINE_VENDOR") != NAME:
        raise UserError(f"the environment variable VERL_ENGINE_VENDOR must be {NAME}: without it there is no FCI")


def _get(settings: Mapping[str, Any], path: str) -> Any:
    value: Any = settings
    for key in path.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def _put(settings: dict[str, Any], path: str, value: Any) -> None:
    *groups, last = path.split(".")
    for group in groups:
        settings = settings.setdefault(group, {})
    settings[last] = value


def _over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """``below`` with every setting of ``above`` in its place."""
    merged = dict(below)
    for key, value in above.items():
        inner = merged.get(key)
        merged[key] = _over(inner, value) if isinstance(value, Mapping) and isinstance(inner, Mapping) else value
    return merged
