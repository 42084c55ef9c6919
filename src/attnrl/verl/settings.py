"""Translate AttnRL's settings to verl's configuration and back, by one table of names.

:func:`to_verl` translates a recipe to verl's configuration (``ppo_trainer.yaml``) and stores the recipe under
``attnrl``. :func:`from_verl` reads the recipe inside verl's processes. In a run started from verl's own configuration,
``attnrl`` holds only settings without a counterpart in verl (``+attnrl.method.trunks=8``); verl's settings give the
rest.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from attnrl.config.load import read_recipe, validate_config
from attnrl.config.schema import TrainConfig
from attnrl.errors import UserError
from attnrl.runs.trackers import tracker_folders

#: Name of the trainer, the engine's vendor and the agent loop in verl's registries.
NAME = "attnrl"
PLUGIN = "attnrl.verl.plugin"
ACTOR, ROLLOUT, MODEL = "actor_rollout_ref.actor", "actor_rollout_ref.rollout", "actor_rollout_ref.model"

#: Settings with the same meaning: AttnRL's name -> verl's name.
VERL_NAMES = {
    "model": f"{MODEL}.path",
    "trust_remote_code": f"{MODEL}.trust_remote_code",
    "data.train": "data.train_files",
    "data.eval": "data.val_files",
    "prompts": "data.train_batch_size",
    "sampling.max_prompt_tokens": "data.max_prompt_length",
    "sampling.max_new_tokens": "data.max_response_length",
    "sampling.temperature": f"{ROLLOUT}.temperature",
    "sampling.top_p": f"{ROLLOUT}.top_p",
    "sampling.top_k": f"{ROLLOUT}.top_k",
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
    "eval.top_k": f"{ROLLOUT}.val_kwargs.top_k",
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

STATE_FILE = "attnrl_state.json"  # trainer state of AttnRL's loop in verl's checkpoint
NO_DUAL_CLIP = 1e9  # dual_clip=none: verl cannot disable the dual clip, but no ratio reaches this bound


def to_verl(config: TrainConfig, *, cpu: bool) -> dict[str, Any]:
    """Return the overrides of verl's configuration, by dotted name, for a recipe.

    Settings in ``verl.set`` are left to Hydra.

    Args:
        config: a recipe with ``engine=verl``.
        cpu: run without a GPU: fp32 weights, sdpa, gloo, and one fictitious Ray GPU per process.

    Raises:
        UserError: ``verl.set`` holds a setting with a name of its own in AttnRL's recipes; the name is given.
    """
    recipe = {**config.model_dump(mode="json"), "output_dir": str(config.output_dir.absolute())}
    settings = {verl: _get(recipe, name) for name, verl in VERL_NAMES.items() if _get(recipe, name) is not None}
    settings |= {
        "trainer.v1.trainer_mode": NAME,
        "trainer.use_v1": True,
        "trainer.default_local_dir": str((config.output_dir / "checkpoints").absolute()),
        "trainer.experiment_name": config.run_name,
        "trainer.logger": ["console", *config.log.trackers],
        "trainer.resume_mode": {"auto": "auto", "never": "disable"}.get(config.resume, "resume_path"),
        "trainer.val_before_train": config.eval.every > 0,
        "trainer.save_freq": config.checkpoint.every or config.steps + 1,  # verl saves after the last step anyway
        "critic.enable": False,  # the training loop computes the advantages
        f"{ACTOR}.strategy": "fsdp2",
        f"{ACTOR}.use_dynamic_bsz": True,  # the number of rows differs between batches
        f"{ACTOR}.use_kl_loss": config.loss.kl > 0,
        f"{ACTOR}.kl_loss_coef": config.loss.kl,
        f"{ACTOR}.clip_ratio_c": config.loss.dual_clip or NO_DUAL_CLIP,
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
    # verl's default is the model's number of positions. SGLang reserves one position.
    longest = config.sampling.max_prompt_tokens + config.sampling.max_new_tokens
    settings[f"{ROLLOUT}.max_model_len"] = longest + (config.verl.rollout == "sglang")
    if config.verl.rollout == "vllm" and config.sampling.params.truncates:
        settings[f"{ROLLOUT}.logprobs_mode"] = "raw_logprobs"
        _check_logprobs(config, "raw_logprobs")
    if is_own_cluster(config.verl.nodes):
        settings["ray_kwargs.ray_init.address"] = "local"  # never join another Ray cluster on this machine
    if cpu or config.dtype == "float32":
        precision = {"param_dtype": "fp32", "reduce_dtype": "fp32", "buffer_dtype": "fp32"}
        settings |= {f"actor_rollout_ref.{role}.fsdp_config.mixed_precision": precision for role in ("actor", "ref")}
        settings[f"{ROLLOUT}.dtype"] = "float32"
        settings[f"{MODEL}.override_config.attn_implementation"] = "sdpa"  # flash attention does not support fp32
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
            # Placement groups, storage and workers each reserve CPUs, but are mostly idle.
            "ray_kwargs.ray_init.num_cpus": 16 + 4 * processes,
            "ray_kwargs.ray_init.include_dashboard": False,
        }
    folders = tracker_folders(config) if config.log.trackers else {}
    settings["ray_kwargs.ray_init.runtime_env.env_vars"] = {**environment_of(cpu), **folders}
    for setting in config.verl.set:
        name, equals, _ = setting.lstrip("+~").partition("=")
        own_name = next((own for own, verl in VERL_NAMES.items() if verl == name), None)
        if not equals:
            raise UserError(f"verl.set: {setting!r} is not of the form verl.key.path=value")
        if own_name is not None:
            raise UserError(f"verl.set: {name} is called {own_name} in recipes: set {own_name} instead")
        settings.pop(name, None)
    return settings


def is_own_cluster(nodes: int) -> bool:
    """Return True if the run starts and stops a Ray cluster of its own: a single node, and no ``RAY_ADDRESS``."""
    return nodes == 1 and "RAY_ADDRESS" not in os.environ


def environment_of(cpu: bool) -> dict[str, str]:
    """Return the environment variables that make verl's processes load the plug-in."""
    found = {"VERL_USE_EXTERNAL_MODULES": PLUGIN, "VERL_ENGINE_VENDOR": NAME}
    return {**found, "VERL_PLATFORM": "cpu", "OMP_NUM_THREADS": "1"} if cpu else found


def from_verl(settings: Mapping[str, Any]) -> TrainConfig:
    """Return the recipe of a resolved verl configuration.

    In order of precedence, lowest first: the recipe named by ``attnrl.recipe`` (default ``attnrl``), verl's settings by
    :data:`VERL_NAMES`, the other settings under ``attnrl``.

    Raises:
        UserError: the configuration does not describe a valid recipe.
    """
    check_requirements(settings)
    own = dict(settings.get("attnrl") or {})
    recipe = read_recipe(str(own.pop("recipe", "attnrl")))
    merged = {key: value for key, value in recipe.items() if key not in {"model", "task"}}
    for name, verl in VERL_NAMES.items():
        value = _get(settings, verl)
        if value is not None and not (name.startswith("data.") and "task" in own):
            _put(merged, name, value)
    # The default with verl (attnrl.sampling overrides): the log-probs of rollout engines differ from the policy's.
    _put(merged, "sampling.score_continuations", True)
    actor = _get(settings, ACTOR)
    _put(merged, "loss.kl", actor["kl_loss_coef"] if actor["use_kl_loss"] else 0.0)
    _put(merged, "loss.dual_clip", actor["clip_ratio_c"] if actor["clip_ratio_c"] < NO_DUAL_CLIP else None)
    # verl disables evaluation, checkpoints, warm-up and top-k by -1.
    for name in ("eval.every", "checkpoint.every", "optimizer.warmup_steps", "sampling.top_k", "eval.top_k"):
        _put(merged, name, max(0, _get(merged, name)))
    merged |= {"engine": "verl", "output_dir": str(_get(settings, "trainer.default_local_dir"))}
    config = validate_config(TrainConfig, _over(merged, own), source="attnrl")
    _check_logprobs(config, _get(settings, f"{ROLLOUT}.logprobs_mode"))
    return config


def _check_logprobs(config: TrainConfig, mode: str) -> None:
    """Check that vLLM returns log-probs before truncation: ``raw_logprobs``, which are also before the temperature.

    Raises:
        UserError: naming the setting and the way out.
    """
    if config.verl.rollout != "vllm" or not config.sampling.params.truncates:
        return
    if config.sampling.temperature != 1.0:
        raise UserError(
            f"sampling.temperature={config.sampling.temperature:g} with top_p, top_k or min_p: vLLM in verl has no "
            "log-probs after temperature and before truncation; use temperature 1, no truncation, or "
            "verl.rollout=sglang"
        )
    if mode != "raw_logprobs":
        raise UserError(f"{ROLLOUT}.logprobs_mode={mode}: with top_p, top_k or min_p AttnRL needs raw_logprobs")


def check_requirements(settings: Mapping[str, Any]) -> None:
    """Check the settings of verl that AttnRL's trainer requires.

    Raises:
        UserError: naming the setting and the required value.
    """
    required = {
        f"{ACTOR}.use_dynamic_bsz": True,
        f"{ACTOR}.loss_agg_mode": "token-mean",
        f"{ACTOR}.ppo_epochs": 1,
        f"{ROLLOUT}.calculate_log_probs": True,
        f"{MODEL}.lora_rank": 0,
        "algorithm.use_kl_in_reward": False,
    }
    for name, value in required.items():
        if _get(settings, name) != value:
            raise UserError(f"{name}={_get(settings, name)}: AttnRL needs {name}={value}")
    if _get(settings, f"{ACTOR}.strategy") not in {"fsdp", "fsdp2"}:
        raise UserError(f"{ACTOR}.strategy={_get(settings, f'{ACTOR}.strategy')}: AttnRL needs fsdp2 or fsdp")
    if os.environ.get("VERL_ENGINE_VENDOR") != NAME:
        raise UserError(
            f"the environment variable VERL_ENGINE_VENDOR must be {NAME}: verl's own engine does not compute FCI"
        )


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
    """Return ``below`` updated recursively with ``above``."""
    merged = dict(below)
    for key, value in above.items():
        inner = merged.get(key)
        merged[key] = _over(inner, value) if isinstance(value, Mapping) and isinstance(inner, Mapping) else value
    return merged
