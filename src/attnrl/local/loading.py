"""Load the model, its configuration and its tokenizer; choose the device; build the policy."""

from __future__ import annotations

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


def choose_device(device: str) -> torch.device:
    """Return the device; ``auto`` selects the first CUDA device, or the CPU without CUDA.

    Raises:
        UserError: the machine has no such device.
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
        raise UserError(f"device: {device} not found ({torch.cuda.device_count()} CUDA devices)")
    return chosen


FAULTY_FILES = (SafetensorError, StrictDataclassError)
LOADING_ERRORS = (OSError, ValueError, KeyError, TypeError, ImportError, RuntimeError, *FAULTY_FILES)


def load_tokenizer(directory: Path, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a checkpoint directory; code in the directory runs only with ``trust_remote_code``.

    Raises:
        UserError: the tokenizer is missing, cannot be read or has no end-of-sequence token.
    """
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            directory, trust_remote_code=trust_remote_code
        )
    except LOADING_ERRORS as error:
        raise _not_loaded(directory, "the tokenizer cannot be loaded", error) from None
    if tokenizer.eos_token_id is None:
        raise UserError(f"model {directory}: the tokenizer has no end-of-sequence token")
    return tokenizer


def load_model_config(directory: Path, *, trust_remote_code: bool = False) -> Any:
    """Load the transformers config of a checkpoint directory.

    Code in the directory runs only with ``trust_remote_code``.

    Raises:
        UserError: the config cannot be read, or transformers does not know the architecture.
    """
    try:
        return AutoConfig.from_pretrained(directory, trust_remote_code=trust_remote_code)
    except LOADING_ERRORS as error:
        raise _not_loaded(directory, "cannot be loaded", error) from None


def load_model(
    directory: Path, *, device: torch.device, dtype: str, trust_remote_code: bool = False
) -> PreTrainedModel:
    """Load the model of a checkpoint directory, in evaluation mode; weights are read from safetensors only.

    Code in the directory runs only with ``trust_remote_code``; :mod:`attnrl.local.model_files` checks the files.

    Raises:
        UserError: the weights cannot be read, or transformers knows no causal language model of the architecture.
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
    if "trust_remote_code" in str(error):  # raised by transformers for code in the directory
        return UserError(f"model {directory}: contains custom code (auto_map), which runs only with {TRUST}")
    return UserError(f"model {directory}: {problem} ({one_line(error)})")


def require_influence(model: PreTrainedModel) -> dict[int, str]:
    """Check that FCI can be computed from the model's attention.

    Returns:
        The kind of each layer without softmax attention, by layer index; FCI leaves these layers out.

    Raises:
        UserError: FCI cannot be computed.
    """
    try:
        return check_attention(model)
    except FciUnsupportedError as error:
        raise UserError(f"model: {one_line(error)}") from None


def require_trees(model: PreTrainedModel) -> None:
    """Check that the model can be scored and trained on packed trees.

    Raises:
        UserError: packed trees change the model's log-probs; the message suggests ``optimizer.packing=none``.
    """
    try:
        check_trees(model)
    except TreesUnsupportedError as error:
        raise UserError(f"model: {one_line(error)}: set optimizer.packing=none") from None


def build_policy(config: TrainConfig, model: PreTrainedModel, reference: PreTrainedModel | None) -> LocalPolicy:
    """Return the policy to train.

    Args:
        config: the run's.
        model: the model to train.
        reference: the frozen initial model of the KL penalty; None without a KL penalty.

    Raises:
        RunError: not enough memory for the optimizer's moments.
    """
    policy = LocalPolicy(
        model,
        reference,
        loss=config.loss,
        optimizer=config.optimizer,
        branching=config.method.branching,
        temperature=config.sampling.temperature,
    )
    policy.optimizer.allocate_moments()
    return policy
