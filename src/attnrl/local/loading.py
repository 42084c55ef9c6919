"""Load the model, its configuration and its tokenizer; choose the device; build the policy."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

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
from attnrl.local.model_config import check_token_ids, read_config, refuse_other_heads
from attnrl.local.model_files import TRUST, check_model_files
from attnrl.local.packing import Packing
from attnrl.local.policy import LocalPolicy
from attnrl.local.tokenizer_check import check_tokenizer_file
from attnrl.local.weights import (
    LoadedModel,
    check_finite,
    check_loading,
    check_shapes,
    note_zeros,
    trial_forward,
    unread_weights,
)
from attnrl.utils.deadline import DeadlineError, deadline

TOKENIZER_FILES = ("tokenizer.", "vocab.", "spiece.", "merges.", "qwen.tiktoken", "sentencepiece")
LOADING_SECONDS = 60.0  # time limit of transformers for a config, a tokenizer, or a model without weights


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
        UserError: the tokenizer is missing, cannot be read or has no end-of-sequence token; or the config is faulty.
    """
    read_config(directory)
    check_tokenizer_file(directory)
    try:
        with _limited(directory, "the tokenizer cannot be loaded"):
            tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
                directory, trust_remote_code=trust_remote_code
            )
            tokenizer("")  # raises for faulty settings that the first call reads, such as model_max_length
            without_end = tokenizer.eos_token_id is None
    except UserError:
        load_model_config(directory, trust_remote_code=trust_remote_code)  # AutoTokenizer reads the config too
        if not any(path.name.startswith(TOKENIZER_FILES) for path in directory.iterdir()):
            raise UserError(
                f"model {directory}: has no tokenizer (tokenizer.json): copy tokenizer.json and tokenizer_config.json "
                "from the model that the weights were trained from"
            ) from None
        raise
    if without_end:
        raise UserError(f"model {directory}: the tokenizer has no end-of-sequence token")
    return tokenizer


def load_model_config(directory: Path, *, trust_remote_code: bool = False) -> Any:
    """Load the transformers config of a checkpoint directory, with the numbers checked.

    Code in the directory runs only with ``trust_remote_code``.

    Raises:
        UserError: the config cannot be read or has an invalid number, or transformers does not know the architecture.
    """
    read_config(directory)
    with _limited(directory, "config.json cannot be loaded"):
        return AutoConfig.from_pretrained(directory, trust_remote_code=trust_remote_code)


def load_model(
    directory: Path,
    tokenizer: PreTrainedTokenizerBase,
    *,
    device: torch.device,
    dtype: str,
    trust_remote_code: bool = False,
) -> LoadedModel:
    """Load the model of a checkpoint directory, in evaluation mode; weights are read from safetensors only.

    Code in the directory runs only with ``trust_remote_code``; :mod:`attnrl.local.model_files` checks the files, and
    :mod:`attnrl.local.weights` the weights: the model has the tensors of the files, all finite, and no others.

    Args:
        directory: the checkpoint directory.
        tokenizer: the tokenizer whose token ids the model gets.
        device: device of the weights.
        dtype: ``float32``, ``bfloat16`` or ``auto`` (the dtype of the files).
        trust_remote_code: True if code in the directory may run.

    Raises:
        UserError: the weights cannot be read or are not the weights of ``config.json``'s model, the tokenizer has
            token ids beyond the vocabulary, or transformers knows no causal language model of the architecture.
    """
    if device.type == "cpu":
        hide_kernel_advice()
    check_model_files(directory, trust_remote_code=trust_remote_code)
    settings = read_config(directory)
    refuse_other_heads(directory, settings)
    config = load_model_config(directory, trust_remote_code=trust_remote_code)
    dropped = drop_attentions(directory, config)
    expected = build_without_weights(directory, config, trust_remote_code=trust_remote_code)
    check_shapes(directory, settings, expected)
    try:
        with _silent_transformers():
            model, info = AutoModelForCausalLM.from_pretrained(
                directory,
                config=config,
                dtype=dtype if dtype == "auto" else getattr(torch, dtype),
                trust_remote_code=trust_remote_code,
                use_safetensors=True,
                weights_only=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # check_loading refuses mismatches with names and shapes
            )
    except Exception as error:  # exceptions of many types for faulty files
        raise _not_loaded(directory, "cannot be loaded", error) from None
    notes = (*dropped, *unread_weights(directory, settings), *check_loading(directory, info, model, expected))
    moved: Any = model.to(device)
    loaded: PreTrainedModel = moved.eval()
    check_finite(directory, loaded)
    check_token_ids(directory, tokenizer, trial_forward(directory, loaded))
    return LoadedModel(loaded, (*notes, *note_zeros(directory, loaded)))


def hide_kernel_advice() -> None:
    """Hide transformers' advice to install the CUDA kernels of linear attention, which a CPU cannot run."""
    transformers_logging.get_logger()  # creates the handler, which child loggers use
    for handler in logging.getLogger("transformers").handlers:
        if _is_no_kernel_advice not in handler.filters:
            handler.addFilter(_is_no_kernel_advice)


def _is_no_kernel_advice(record: logging.LogRecord) -> bool:
    return "is falling back to its reference PyTorch implementation" not in record.getMessage()


def drop_attentions(directory: Path, config: Any) -> list[str]:
    """Turn ``output_attentions`` off in a model's config; return a note if the setting was on.

    Only eager attention returns probabilities, and transformers refuses to save the setting beside another attention.
    """
    parts = [part for part in (config, config.get_text_config(decoder=True)) if getattr(part, "output_attentions", 0)]
    for part in parts:
        part.output_attentions = False
    return [f"model {directory}: output_attentions in config.json is turned off, also in checkpoints"] if parts else []


def build_without_weights(directory: Path, config: Any, *, trust_remote_code: bool = False) -> PreTrainedModel:
    """Build the causal language model of a config on the meta device, without memory for weights.

    Raises:
        UserError: transformers cannot build the model.
    """
    with _limited(directory, "cannot be built from config.json"), torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(
            copy.deepcopy(config), trust_remote_code=trust_remote_code
        )
    return model


@contextmanager
def _limited(directory: Path, problem: str) -> Iterator[None]:
    """Run transformers without output, and for at most :data:`LOADING_SECONDS`.

    Raises:
        UserError: the time is over, or transformers or tokenizers raised any exception; ``problem`` begins the message.
    """
    try:
        with deadline(LOADING_SECONDS), _silent_transformers():
            yield
    except DeadlineError:
        raise UserError(f"model {directory}: {problem} (not done after {LOADING_SECONDS:g} s)") from None
    except (UserError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # exceptions of many types for faulty files; a panic of tokenizers is no Exception
        raise _not_loaded(directory, problem, error) from None


@contextmanager
def _silent_transformers() -> Iterator[None]:
    """Silence progress bars and the report of a load: the checks raise what the report says."""
    transformers_logging.disable_progress_bar()
    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity(transformers_logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers_logging.set_verbosity(level)


def _not_loaded(directory: Path, problem: str, error: BaseException) -> UserError:
    if "trust_remote_code" in str(error):  # raised by transformers for code in the directory
        return UserError(f"model {directory}: contains custom code (auto_map), which runs only with {TRUST}")
    cause = one_line(error).partition(" Model type should be one of ")[0]  # a list of hundreds of classes
    return UserError(f"model {directory}: {problem} ({type(error).__name__}: {cause})")


def require_influence(model: PreTrainedModel, way_out: str = "") -> dict[int, str]:
    """Check that FCI can be computed from the model's attention.

    Args:
        model: the model.
        way_out: end of the message, with the setting that needs no FCI.

    Returns:
        The kind of each layer without softmax attention, by layer index; FCI leaves these layers out.

    Raises:
        UserError: FCI cannot be computed.
    """
    try:
        return check_attention(model)
    except FciUnsupportedError as error:
        raise UserError(f"model: {one_line(error)}{way_out}") from None


def choose_packing(
    setting: Literal["auto", "tree", "none"], model: PreTrainedModel, recorded: Packing | None = None
) -> tuple[Packing, str | None]:
    """Return the packing of sequences for the setting ``optimizer.packing``, and a note if ``auto`` chose ``none``.

    Args:
        setting: ``auto`` chooses ``recorded``, or else ``tree`` if packed trees keep the model's log-probs.
        model: the model to train.
        recorded: packing in the checkpoint to resume from; None for a new run.

    Raises:
        UserError: packed trees change the model's log-probs, and ``setting`` or ``recorded`` is ``tree``.
    """
    wanted = recorded or setting if setting == "auto" else setting
    if wanted == "none":
        return "none", "optimizer.packing: none, as in the checkpoint" if setting == "auto" else None
    try:
        check_trees(model)
    except TreesUnsupportedError as error:
        if wanted == "tree":
            raise UserError(f"model: {one_line(error)}: set optimizer.packing=none") from None
        return "none", f"optimizer.packing: none chosen by auto, each response a row of its own ({one_line(error)})"
    return "tree", None


def build_policy(
    config: TrainConfig, model: PreTrainedModel, reference: PreTrainedModel | None, packing: Packing = "tree"
) -> LocalPolicy:
    """Return the policy to train.

    Args:
        config: the run's.
        model: the model to train.
        reference: the frozen initial model of the KL penalty; None without a KL penalty.
        packing: see :func:`choose_packing`.

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
        packing=packing,
    )
    policy.optimizer.allocate_moments()
    return policy
