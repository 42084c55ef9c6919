"""``attnrl export`` of a LoRA adapter: the whole model, adapter and base model merged by PEFT."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from attnrl.errors import RunError, UserError, one_line
from attnrl.local.checkpoint import staged_directory
from attnrl.local.loading import load_model, load_tokenizer
from attnrl.local.model_names import ADAPTER, find_model
from attnrl.utils.files import require_writable

WEIGHTS = "adapter_model.safetensors"
#: Settings that make PEFT import modules or read other files.
UNSAFE = ("megatron_config", "corda_config", "eva_config", "lora_ga_config")


def is_adapter(path: Path) -> bool:
    """Return True for a directory with an adapter of PEFT."""
    return (path / ADAPTER).is_file()


def merge_adapter(
    directory: Path, output: Path, *, trust_remote_code: bool = False, say: Callable[[str], None] = lambda line: None
) -> str:
    """Write adapter and base model as one model to ``output`` (atomic: nothing is written on an error).

    The weights keep the dtype of the base model. The tokenizer is the adapter's, else the base model's.

    Args:
        directory: directory of the adapter.
        output: directory to create.
        trust_remote_code: True if code in the base model's directory may run.
        say: called with one line per remark on the base model.

    Returns:
        The name of the base model.

    Raises:
        UserError: PEFT is not installed, the adapter or the base model is faulty, or ``output`` exists.
        RunError: ``output`` cannot be written.
    """
    if output.exists():
        raise UserError(f"output {output}: already exists")
    require_writable(output.parent, f"output {output}")
    base, revision = _read_base(directory)
    try:
        from peft import PeftModel, get_peft_model_state_dict
    except ImportError:
        raise UserError(f"model {directory}: merging adapter and base model needs: pip install peft") from None
    source = find_model(base, commit=revision, trust_remote_code=trust_remote_code)
    for note in source.notes:
        say(note)
    tokenizer = load_tokenizer(source.directory, trust_remote_code=trust_remote_code)
    loaded = load_model(
        source.directory,
        tokenizer,
        device=torch.device("cpu"),
        dtype="auto",
        trust_remote_code=trust_remote_code,
    )
    if (directory / "tokenizer_config.json").is_file():
        tokenizer = load_tokenizer(directory, trust_remote_code=trust_remote_code)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)  # of missing tensors: PEFT would go on with initial values
            adapted = PeftModel.from_pretrained(loaded.model, str(directory))
            known = get_peft_model_state_dict(adapted, save_embedding_layers=False)
            with safe_open(directory / WEIGHTS, framework="pt") as file:
                without_place = sorted(name for name in set(file.keys()) - known.keys() if "lora_" in name)
            if without_place:
                raise ValueError(f"{len(without_place)} tensors have no place in the model: {without_place[0]}, ...")
            merged = adapted.merge_and_unload(safe_merge=True)
    except Exception as error:  # PEFT raises exceptions of many types for faulty adapters and other kinds of adapters
        raise UserError(f"model {directory}: cannot be merged with {base} ({one_line(error)})") from None
    try:
        with staged_directory(output, {}, replace=False) as aside:
            merged.save_pretrained(aside)
            tokenizer.save_pretrained(aside)
    except (OSError, SafetensorError) as error:
        raise RunError(f"output {output}: cannot be written ({one_line(error)})") from error
    return base


def _read_base(directory: Path) -> tuple[str, str | None]:
    """Return name and revision of the base model.

    Raises:
        UserError: the adapter is not readable, names no base model, has no safetensors, or would import modules.
    """
    try:
        settings = json.loads((directory / ADAPTER).read_text(encoding="utf-8"))
        base, revision = settings["base_model_name_or_path"], settings.get("revision")
        if not isinstance(base, str) or not base or not isinstance(revision, str | None):
            raise TypeError("no base_model_name_or_path")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"model {directory}: {ADAPTER} cannot be read ({one_line(error)})") from None
    if settings.get("peft_type") != "LORA":
        raise UserError(f"model {directory}: an adapter of the kind {settings.get('peft_type')}: only LORA is merged")
    for setting in UNSAFE:
        if settings.get(setting):
            raise UserError(f"model {directory}: {ADAPTER} has {setting}, which leads to other files: not supported")
    if not (directory / WEIGHTS).is_file():
        raise UserError(f"model {directory}: has no {WEIGHTS} (pickled adapters are not read)")
    return base, revision
