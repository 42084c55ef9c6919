"""``attnrl train ... engine=verl``: verl's configuration is composed, and its training is started."""

from __future__ import annotations

import os
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from attnrl.config import TrainConfig
from attnrl.errors import UserError
from attnrl.local.engine import model_directory
from attnrl.verl.settings import MODEL, environment_of, to_verl

VERSION = "0.9.1"  # the release whose inner workings the plug-in is written against


def installed_version() -> str | None:
    """verl's version here; None without it."""
    try:
        return version("verl")
    except PackageNotFoundError:
        return None


def require_verl() -> None:
    """Make sure that the verl we are written for is installed.

    Raises:
        UserError: none is, or another.
    """
    found = installed_version()
    if found is None:
        raise UserError("engine=verl: verl is not installed here: pip install 'attnrl[verl]' (docs/verl.md)")
    if found != VERSION:
        raise UserError(f"engine=verl: verl {found} is installed; the plug-in is for {VERSION}")


def on_cpu(config: TrainConfig) -> bool:
    """Whether the processes are to run on CPUs: asked for, or there is nothing else."""
    if config.device == "auto":
        import torch

        return config.verl.nodes == 1 and not torch.cuda.is_available()
    return config.device == "cpu"


def compose(config: TrainConfig) -> Any:
    """verl's configuration for a recipe.

    Raises:
        UserError: ``verl.set`` has what verl does not know.
    """
    cpu = on_cpu(config)
    settings = {**to_verl(config, cpu=cpu), f"{MODEL}.path": str(model_directory(config.model))}
    os.environ.update(environment_of(cpu))  # before verl is imported here
    from hydra import compose as compose_hydra
    from hydra import initialize_config_module
    from hydra.errors import HydraException
    from omegaconf import OmegaConf, open_dict

    try:
        with initialize_config_module("verl.trainer.config", version_base=None):
            composed = compose_hydra("ppo_trainer", overrides=list(config.verl.set))
    except HydraException as error:
        raise UserError(f"verl.set: {str(error).splitlines()[0]}") from None
    with open_dict(composed):
        for name, value in settings.items():
            OmegaConf.update(composed, name, value, force_add=True)
    return composed


def train(config: TrainConfig) -> None:
    """Run to the end.

    Raises:
        UserError: verl is missing, or its configuration will not do.
    """
    require_verl()
    composed = compose(config)
    from verl.trainer.main_ppo import TaskRunnerV1, run_ppo
    from verl.trainer.ppo.utils import need_critic, need_reference_policy
    from verl.utils.config import validate_config

    validate_config(
        config=composed,
        use_reference_policy=need_reference_policy(composed),
        use_critic=need_critic(composed),
    )
    run_ppo(composed, task_runner_class=TaskRunnerV1)
