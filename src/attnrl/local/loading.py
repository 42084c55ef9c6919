"""Puts the local engine together: model, tokenizer, sampler and policy of one process."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from attnrl.config.schema import TrainConfig
from attnrl.errors import UserError, one_line
from attnrl.fci import FciUnsupportedError, check_attention
from attnrl.local.logprobs import TreesUnsupportedError, check_trees
from attnrl.local.model_files import TRUST, check_model_files
from attnrl.local.policy import LocalPolicy

SHIPPED = resources.files("attnrl") / "models"


def shipped_models() -> list[str]:
    """Names of the models that come with the package."""
    return sorted(entry.name for entry in SHIPPED.iterdir() if (entry / "config.json").is_file())


def model_directory(model: str) -> Path:
    """The directory of a shipped model, or the given directory itself.

    Raises:
        UserError: it is neither the name of a shipped model nor a checkpoint directory.
    """
    if model in shipped_models():
        return Path(str(SHIPPED / model))
    directory = Path(model)
    if (directory / "config.json").is_file():
        return directory
    problem = "has no config.json" if directory.is_dir() else "no such directory"
    raise UserError(f"model {model}: {problem} (shipped models: {', '.join(shipped_models())})")


def choose_device(device: str) -> torch.device:
    """``auto`` is the first CUDA device, or the CPU.

    Raises:
        UserError: not a device of this machine.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise UserError(f"device: {device!r} is not a device (auto, cpu, cuda or cuda:N)") from None
    if chosen.type not in {"cpu", "cuda"}:
        raise UserError(f"device: {device} is not supported (auto, cpu, cuda or cuda:N)")
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise UserError(f"device: {device} is not here ({torch.cuda.device_count()} CUDA devices)")
    return chosen


FAULTY_FILES = (SafetensorError, StrictDataclassError)
LOADING_ERRORS = (OSError, ValueError, KeyError, TypeError, ImportError, RuntimeError, *FAULTY_FILES)


def load_tokenizer(directory: Path, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a checkpoint directory; code in the directory runs only if it is trusted.

    Raises:
        UserError: there is none, or it cannot be read.
    """
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            directory, trust_remote_code=trust_remote_code
        )
    except LOADING_ERRORS as error:
        raise _not_loaded(directory, "its tokenizer cannot be loaded", error) from None
    if tokenizer.eos_token_id is None:
        raise UserError(f"model {directory}: its tokenizer has no end-of-sequence token")
    return tokenizer


def load_model_config(directory: Path, *, trust_remote_code: bool = False) -> Any:
    """Load the transformers config of a checkpoint directory; code in the directory runs only if it is trusted.

    Raises:
        UserError: it cannot be read, or transformers does not know the kind of model.
    """
    try:
        return AutoConfig.from_pretrained(directory, trust_remote_code=trust_remote_code)
    except LOADING_ERRORS as error:
        raise _not_loaded(directory, "cannot be loaded", error) from None


def load_model(
    directory: Path, *, device: torch.device, dtype: str, trust_remote_code: bool = False
) -> PreTrainedModel:
    """Load the weights of a checkpoint directory, from safetensors only.

    Code in the directory runs only if it is trusted; see :mod:`attnrl.local.model_files` for what is refused.

    Raises:
        UserError: they cannot be read, or are not a causal language model that transformers knows.
    """
    transformers_logging.disable_progress_bar()
    check_model_files(directory, trust_remote_code=trust_remote_code)
    config = load_model_config(directory, trust_remote_code=trust_remote_code)
    try:
        model = AutoModelForCausalLM.from_pretrained(
            directory,
            config=config,
            dtype=getattr(torch, dtype),
            trust_remote_code=trust_remote_code,
            use_safetensors=True,
            weights_only=True,
        )
    except LOADING_ERRORS as error:
        raise _not_loaded(directory, "cannot be loaded", error) from None
    moved: Any = model.to(device)
    loaded: PreTrainedModel = moved.eval()
    return loaded


def _not_loaded(directory: Path, problem: str, error: Exception) -> UserError:
    if "trust_remote_code" in str(error):  # transformers' way to say that there is code that it was not to run
        return UserError(f"model {directory}: brings code of its own (auto_map), which runs only with {TRUST}")
    return UserError(f"model {directory}: {problem} ({one_line(error)})")


def require_influence(model: PreTrainedModel) -> dict[int, str]:
    """Make sure that FCI can be taken from the model; returns the kinds of the layers that have none, by index.

    Raises:
        UserError: it cannot.
    """
    try:
        return check_attention(model)
    except FciUnsupportedError as error:
        raise UserError(f"model: {one_line(error)}") from None


def require_trees(model: PreTrainedModel) -> None:
    """Make sure that the model can be scored and trained on packed trees.

    Raises:
        UserError: it cannot; without packing it may.
    """
    try:
        check_trees(model)
    except TreesUnsupportedError as error:
        raise UserError(f"model: {one_line(error)}: set optimizer.packing=none") from None


def build_policy(config: TrainConfig, model: PreTrainedModel, reference: PreTrainedModel | None) -> LocalPolicy:
    """The policy to train, with the frozen starting model of its KL if that is weighed.

    Raises:
        RunError: memory does not suffice for the optimizer's moments.
    """
    policy = LocalPolicy(
        model,
        reference,
        loss=config.loss,
        optimizer=config.optimizer,
        branching=config.method.branching,
        temperature=config.sampling.temperature,
    )
    policy.allocate_moments()
    return policy
