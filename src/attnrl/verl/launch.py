"""Launch ``attnrl train ... engine=verl``: check the recipe, compose verl's configuration, start verl's training."""

from __future__ import annotations

import atexit
import io
import os
import shutil
import tempfile
from collections.abc import Callable
from contextlib import redirect_stdout
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from warnings import catch_warnings, simplefilter

from transformers import PreTrainedTokenizerBase

from attnrl.config.schema import TrainConfig
from attnrl.data.run_data import load_run_data
from attnrl.errors import RunError, UserError, one_line
from attnrl.inference.registry import find_sampler
from attnrl.local.loading import load_model, load_tokenizer
from attnrl.local.model_names import ModelSource, find_model_here
from attnrl.runs.compatibility import require_same_settings
from attnrl.runs.directory import METRICS, RunDirectory
from attnrl.runs.model_record import changed_weights, find_run_model, record_model
from attnrl.runs.trackers import TRACKERS
from attnrl.runs.wandb_account import require_wandb_account
from attnrl.verl.export import NEWEST
from attnrl.verl.settings import MODEL, STATE_FILE, check_requirements, environment_of, is_own_cluster, to_verl

VERSION = "0.9.1"  # the plug-in depends on internals of this release


def installed_version() -> str | None:
    """Return the installed version of verl, or None."""
    try:
        return version("verl")
    except PackageNotFoundError:
        return None


def require_verl() -> None:
    """Check that verl :data:`VERSION` is installed.

    Raises:
        UserError: verl is missing, or another version is installed.
    """
    found = installed_version()
    if found is None:
        raise UserError("engine=verl: verl is not installed: pip install 'attnrl[verl]' (docs/verl.md)")
    if found != VERSION:
        raise UserError(f"engine=verl: verl {found} is installed; the plug-in is for {VERSION}")


def on_cpu(config: TrainConfig) -> bool:
    """Return True if the processes run on CPUs: ``device=cpu``, or a single node without a GPU."""
    if config.device == "auto":
        import torch

        return config.verl.nodes == 1 and not torch.cuda.is_available()
    return config.device == "cpu"


def set_environment(*, cpu: bool, nodes: int) -> None:
    """Set the environment variables that verl and Ray read at import; child processes inherit the variables."""
    os.environ.update(environment_of(cpu))
    if is_own_cluster(nodes):
        # Makes Ray listen on the loopback interface only, the default on macOS and Windows.
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")


def _rendezvous() -> str:
    """Return a file URL for torch.distributed's rendezvous: torch's TCP store listens on all interfaces."""
    directory = tempfile.mkdtemp(prefix="attnrl-")
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    return f"file://{directory}/rendezvous"


def compose(config: TrainConfig, model: str) -> Any:
    """Compose verl's configuration for a recipe.

    Args:
        config: the recipe.
        model: directory of the model.

    Raises:
        UserError: ``verl.set`` holds a setting unknown to verl, or verl rejects the configuration.
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
            simplefilter("ignore")  # verl warns about every backend that is not installed
            composed = compose_hydra("ppo_trainer", overrides=list(config.verl.set))
    except HydraException as error:
        raise UserError(f"verl.set: {str(error).splitlines()[0]}") from None
    with open_dict(composed):
        for name, value in settings.items():
            OmegaConf.update(composed, name, value, force_add=True)
    _validate(composed)
    return composed


def _validate(composed: Any) -> None:
    """Validate the configuration with verl's checks and AttnRL's requirements.

    Raises:
        UserError: a check failed.
    """
    from omegaconf import OmegaConf
    from verl.trainer.ppo.utils import need_critic, need_reference_policy
    from verl.utils.config import validate_config

    check_requirements(OmegaConf.to_container(composed, resolve=True))
    try:
        with redirect_stdout(io.StringIO()):  # verl prints a message on success
            validate_config(
                config=composed,
                use_reference_policy=need_reference_policy(composed),
                use_critic=need_critic(composed),
            )
    except Exception as error:  # AssertionError, ValueError and Hydra's exceptions
        raise UserError(f"verl.set: verl rejects the settings ({one_line(error)})") from None


def prepare(config: TrainConfig, say: Callable[[str], None] = print) -> tuple[Any, ModelSource]:
    """Check every setting, file and model before Ray starts; return verl's configuration and the starting model.

    ``say`` is called with one line per remark on the starting model and the data, and with the first prompt.

    Raises:
        UserError: verl is missing; or naming the invalid setting, file or model.
    """
    require_verl()
    if "wandb" in config.log.trackers:
        require_wandb_account()
    find_sampler(config.sampler)  # verl samples by verl.rollout; a misspelt sampler is an error all the same
    if on_cpu(config) and config.verl.rollout != "transformers":
        raise UserError(f"verl.rollout={config.verl.rollout}: no GPU found: set verl.rollout=transformers")
    if config.verl.nodes > 1 and "RAY_ADDRESS" not in os.environ:
        raise UserError(
            f"verl.nodes={config.verl.nodes}: no Ray cluster: start Ray on each node and set "
            "RAY_ADDRESS=auto (docs/verl.md)"
        )
    if not on_cpu(config) and _needs_flash_attention(config) and find_spec("flash_attn") is None:
        raise UserError(
            "engine=verl: flash-attn is not installed (verl's attention on GPUs): pip install "
            "'verl[fsdp]==0.9.1', or verl.set='[+actor_rollout_ref.model.override_config.attn_implementation=sdpa]'"
        )
    if config.resume not in {"auto", "never"}:
        _check_resume(Path(config.resume))
    run = RunDirectory(config.output_dir)
    run.require_writable()
    if run.holds_a_run():
        require_same_settings(config, run)
    begun_in = _begun_in(config, run)
    source = find_run_model(config, begun_in)
    tokenizer = load_tokenizer(source.directory, trust_remote_code=config.trust_remote_code)
    of_weights = _check_weights(config, source, tokenizer)
    data = load_run_data(config, tokenizer)
    data.rewards.close()
    notes = (*source.notes, *changed_weights(config, begun_in, source), *of_weights, *data.notes)
    for line in (*notes, *data.first_prompt()):
        say(line)
    return compose(config, str(source.directory)), source


def check_model(config: TrainConfig) -> list[str]:
    """Check the starting model for ``--dry-run``, if the model is on this machine; return remarks on the weights.

    Raises:
        UserError: as :func:`attnrl.local.loading.load_model`.
    """
    source = find_model_here(config.model)
    if source is None:
        return []
    tokenizer = load_tokenizer(source.directory, trust_remote_code=config.trust_remote_code)
    return list(_check_weights(config, source, tokenizer))


def _check_weights(config: TrainConfig, source: ModelSource, tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """Load the starting model to host memory in the dtype of the files, and release the model; return the notes.

    verl's workers load the files with transformers, which replaces missing tensors by random tensors.
    """
    import torch

    trusted = config.trust_remote_code
    cpu = torch.device("cpu")
    return load_model(source.directory, tokenizer, device=cpu, dtype="auto", trust_remote_code=trusted).notes


def _needs_flash_attention(config: TrainConfig) -> bool:
    return config.dtype == "bfloat16" and not any("attn_implementation" in setting for setting in config.verl.set)


def _begun_in(config: TrainConfig, run: RunDirectory) -> Path | None:
    """Return the directory of the run that the checkpoint to resume from belongs to; None for a new run."""
    if config.resume not in {"auto", "never"}:
        return Path(config.resume).absolute().parent.parent
    return run.root if config.resume == "auto" and (run.checkpoints / NEWEST).is_file() else None


def _check_resume(directory: Path) -> None:
    if not (directory / "actor").is_dir() or not directory.name.removeprefix("global_step_").isdigit():
        raise UserError(f"resume={directory}: not a checkpoint of the verl engine (checkpoints/global_step_N of a run)")
    if not (directory / STATE_FILE).is_file():
        raise UserError(f"resume={directory}: no {STATE_FILE}: the checkpoint was written by another trainer")


def try_to_compose(config: TrainConfig) -> str:
    """Return a line for ``--dry-run``: verl's version, if verl is installed and accepts the settings.

    Raises:
        UserError: verl is installed and rejects the settings, or has the wrong version.
    """
    if installed_version() is None:
        return "verl        not installed: verl's own settings were not checked"
    require_verl()
    if "wandb" in config.log.trackers:
        require_wandb_account()
    compose(config, config.model)
    return f"verl        {VERSION}, accepts the settings"


def show_prompts(config: TrainConfig) -> list[str]:
    """Return lines for ``--dry-run``: remarks on the data and the first prompt, if model and data are on this machine.

    Raises:
        UserError: the tokenizer, the chat template or the data are invalid.
    """
    source = find_model_here(config.model)
    train, held_out = config.data.train or (), config.data.eval or ()
    files = [name for names in (train, held_out) for name in ([names] if isinstance(names, str) else names)]
    if source is None or not all(Path(name).exists() for name in files):
        return ["prompts     not checked: the model or the data are not on this machine"]
    tokenizer = load_tokenizer(source.directory, trust_remote_code=config.trust_remote_code)
    data = load_run_data(config, tokenizer)
    data.rewards.close()
    return [*data.notes, *data.first_prompt()]


def train(config: TrainConfig, say: Callable[[str], None] = print) -> list[dict[str, float]]:
    """Train to the end of the run; return the rows of ``metrics.jsonl``; ``say`` as in :func:`prepare`.

    Raises:
        UserError: as :func:`prepare`; or another process is training in the same directory.
        RunError: the run failed; verl's log has the cause.
    """
    composed, source = prepare(config, say)
    from ray.exceptions import RayError, RayTaskError
    from verl.trainer.main_ppo import TaskRunnerV1, run_ppo

    directory = RunDirectory(config.output_dir)
    with directory.locked():
        if config.log.trackers:
            (directory.root / TRACKERS).mkdir(exist_ok=True)  # wandb takes another folder for a missing one
        record_model(directory, source, resumed=_begun_in(config, directory) is not None)
        try:
            run_ppo(composed, task_runner_class=TaskRunnerV1)
        except RayError as error:
            cause = str(error.cause if isinstance(error, RayTaskError) else error)
            raise RunError(
                f"output_dir {config.output_dir}: verl failed ({cause.strip().splitlines()[-1]}); the same command "
                "continues from the last checkpoint"
            ) from error
    return directory.read(METRICS)
