"""``attnrl train ... engine=verl``: verl's configuration is composed, and its training is started."""

from __future__ import annotations

import atexit
import io
import os
import shutil
import tempfile
from contextlib import redirect_stdout
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from warnings import catch_warnings, simplefilter

from attnrl.config.schema import TrainConfig
from attnrl.data.run_data import grader_for, load_task
from attnrl.errors import RunError, UserError, one_line
from attnrl.local.loading import load_tokenizer, model_directory
from attnrl.runs.compatibility import require_same_settings
from attnrl.runs.directory import METRICS, RunDirectory
from attnrl.verl.settings import MODEL, STATE_FILE, check_needs, environment_of, is_own_cluster, to_verl

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


def set_environment(*, cpu: bool, nodes: int) -> None:
    """Set what verl and Ray read from the environment as they are imported, in this process and those it starts."""
    os.environ.update(environment_of(cpu))
    if is_own_cluster(nodes):
        # Ray then listens on the loopback interface, as it does on others than Linux.
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")


def _rendezvous() -> str:
    """Where the processes of one machine meet: in a file, since torch's server for it listens on all interfaces."""
    directory = tempfile.mkdtemp(prefix="attnrl-")
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    return f"file://{directory}/rendezvous"


def compose(config: TrainConfig, model: str) -> Any:
    """verl's configuration for a recipe whose model is in the directory ``model``.

    Raises:
        UserError: ``verl.set`` has what verl does not know.
    """
    cpu = on_cpu(config)
    settings = {**to_verl(config, cpu=cpu), f"{MODEL}.path": model}
    set_environment(cpu=cpu, nodes=config.verl.nodes)
    if is_own_cluster(config.verl.nodes):
        settings["ray_kwargs.ray_init.runtime_env.env_vars"]["DIST_INIT_METHOD"] = _rendezvous()
    from hydra import compose as compose_hydra
    from hydra import initialize_config_module
    from hydra.errors import HydraException
    from omegaconf import OmegaConf, open_dict

    try:
        with initialize_config_module("verl.trainer.config", version_base=None), catch_warnings():
            simplefilter("ignore")  # verl says of each of its backends that is not installed that it is not
            composed = compose_hydra("ppo_trainer", overrides=list(config.verl.set))
    except HydraException as error:
        raise UserError(f"verl.set: {str(error).splitlines()[0]}") from None
    with open_dict(composed):
        for name, value in settings.items():
            OmegaConf.update(composed, name, value, force_add=True)
    _validate(composed)
    return composed


def _validate(composed: Any) -> None:
    """Have verl look at its configuration, and us at what we need of it.

    Raises:
        UserError: it will not do.
    """
    from omegaconf import OmegaConf
    from verl.trainer.ppo.utils import need_critic, need_reference_policy
    from verl.utils.config import validate_config

    check_needs(OmegaConf.to_container(composed, resolve=True))
    try:
        with redirect_stdout(io.StringIO()):  # it prints that all is well
            validate_config(
                config=composed,
                use_reference_policy=need_reference_policy(composed),
                use_critic=need_critic(composed),
            )
    except Exception as error:  # assertions, ValueErrors and Hydra's own
        raise UserError(f"verl.set: verl does not take its settings ({one_line(error)})") from None


def check(config: TrainConfig) -> Any:
    """Check all that can be checked before Ray starts; returns verl's configuration.

    Raises:
        UserError: verl is missing, or a setting, file or model will not do; it is named.
    """
    require_verl()
    if on_cpu(config) and config.verl.rollout != "transformers":
        raise UserError(f"verl.rollout={config.verl.rollout}: there is no GPU here: set verl.rollout=transformers")
    if config.verl.nodes > 1 and "RAY_ADDRESS" not in os.environ:
        raise UserError(
            f"verl.nodes={config.verl.nodes}: there is no cluster to run on: start Ray on each node, and set "
            "RAY_ADDRESS=auto (docs/verl.md)"
        )
    if not on_cpu(config) and _needs_flash(config) and find_spec("flash_attn") is None:
        raise UserError(
            "engine=verl: flash-attn is not installed, which verl attends with on a GPU: pip install "
            "'verl[fsdp]==0.9.1', or verl.set='[+actor_rollout_ref.model.override_config.attn_implementation=sdpa]'"
        )
    if config.resume not in {"auto", "never"}:
        _check_resume(Path(config.resume))
    run = RunDirectory(config.output_dir)
    run.require_writable()
    if run.holds_a_run():
        require_same_settings(config, run)
    directory = model_directory(config.model)
    tokenizer = load_tokenizer(directory, trust_remote_code=config.trust_remote_code)
    with grader_for(config):
        pass  # there is one
    load_task(config, tokenizer)
    return compose(config, str(directory))


def _needs_flash(config: TrainConfig) -> bool:
    return config.dtype == "bfloat16" and not any("attn_implementation" in setting for setting in config.verl.set)


def _check_resume(directory: Path) -> None:
    if not (directory / "actor").is_dir() or not directory.name.removeprefix("global_step_").isdigit():
        raise UserError(f"resume={directory}: not a checkpoint of the verl engine (checkpoints/global_step_N of a run)")
    if not (directory / STATE_FILE).is_file():
        raise UserError(f"resume={directory}: it has no {STATE_FILE}: another trainer of verl's has written it")


def try_to_compose(config: TrainConfig) -> str:
    """For ``--dry-run``: a line that says whether verl is here and takes the settings.

    Raises:
        UserError: it does not.
    """
    if installed_version() is None:
        return "verl        not installed here, so its own settings were not composed"
    require_verl()
    compose(config, config.model)
    return f"verl        {VERSION}, which takes the settings"


def train(config: TrainConfig) -> list[dict[str, float]]:
    """Run to the end, and return the rows of ``metrics.jsonl``.

    Raises:
        UserError: as :func:`check`, or another process is training in the same directory.
        RunError: the run has failed; why is in verl's log above.
    """
    composed = check(config)
    from ray.exceptions import RayError, RayTaskError
    from verl.trainer.main_ppo import TaskRunnerV1, run_ppo

    directory = RunDirectory(config.output_dir)
    with directory.locked():
        try:
            run_ppo(composed, task_runner_class=TaskRunnerV1)
        except RayError as error:
            cause = str(error.cause if isinstance(error, RayTaskError) else error)
            raise RunError(
                f"output_dir {config.output_dir}: verl has failed ({cause.strip().splitlines()[-1]}); the same command "
                "continues from the last checkpoint"
            ) from error
    return directory.read(METRICS)
