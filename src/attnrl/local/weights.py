"""Checks that the weights of a model directory are the weights of the model that ``config.json`` describes.

transformers initialises a tensor that the files lack, or hold in another shape, with random values, and ignores a
tensor that the model lacks. A checkpoint written from a wrapped model (``torch.compile``, DDP) has other names for all
tensors, and would load as a random model.
"""

from __future__ import annotations

import json
import math
import re
import shlex
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import PreTrainedModel

from attnrl.errors import UserError, one_line
from attnrl.local.model_files import WEIGHTS, WEIGHTS_INDEX
from attnrl.utils.model_outputs import logits_only

#: Parts of tensor names that a wrapper inserts, anywhere in a name.
WRAPPERS = {
    "_orig_mod": "torch.compile",
    "_fsdp_wrapped_module": "FSDP",
    "_checkpoint_wrapped_module": "activation checkpointing",
}
#: Beginnings of tensor names that a wrapper adds.
LEADING = {"module.": "DistributedDataParallel or DeepSpeed", "base_model.model.": "PEFT"}
FLOATS = frozenset({"F64", "F32", "F16", "BF16"})  # dtypes of safetensors
EXPERT = re.compile(r"\.experts\.(\d+)\.")
NAMED = 3  # tensors named in a message
TRIAL_TOKENS = 4


@dataclass(frozen=True)
class LoadedModel:
    """A model and what its user should know of the weight files.

    Attributes:
        model: the model, in evaluation mode.
        notes: remarks on the weight files, one line each.
    """

    model: PreTrainedModel
    notes: tuple[str, ...]


def weight_files(directory: Path, settings: Mapping[str, Any]) -> list[Path]:
    """Return the safetensors files that transformers reads, in the order of their names.

    Args:
        directory: the model directory.
        settings: contents of ``config.json``.

    Raises:
        UserError: the directory has no safetensors weights, or the index of shards cannot be read.
    """
    chosen = settings.get("transformers_weights")
    names = [chosen] if chosen is not None else [WEIGHTS, WEIGHTS_INDEX]
    found = next((directory / name for name in names if (directory / name).is_file()), None)
    if found is None:
        others = [path.name for path in directory.iterdir() if path.suffix in {".safetensors", ".gguf"}]
        held = f" of these names (found: {some(others)})" if others else ""
        raise UserError(f"model {directory}: no {' or '.join(names)}: the directory has no safetensors weights{held}")
    if found.suffix != ".json":
        return [found]
    try:
        shards = sorted(set(json.loads(found.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise UserError(f"model {directory}: {found.name} cannot be read ({one_line(error)})") from None
    missing = [shard for shard in shards if not (directory / shard).is_file()]
    if missing:
        raise UserError(
            f"model {directory}: {found.name} names {some(missing)}, missing from the directory: copy or download "
            "the files again"
        )
    return [directory / shard for shard in shards]


def unread_weights(directory: Path, settings: Mapping[str, Any]) -> tuple[str, ...]:
    """Return a note if the directory has a second set of weights, which transformers does not read."""
    read = {path.name for path in weight_files(directory, settings)}
    unread = [path.name for path in directory.glob("model*.safetensors") if path.name not in read]
    if not unread:
        return ()
    return (f"model {directory}: weights are read from {some(read)}, and not from {some(unread)}",)


def read_shapes(directory: Path, files: Iterable[Path]) -> dict[str, tuple[int, ...]]:
    """Return the shape of each tensor by name, from the headers of safetensors files.

    Raises:
        UserError: a file cannot be read, or two files hold a tensor of the same name.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for path in files:
        try:
            with safe_open(path, framework="pt") as file:
                found = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise UserError(f"model {directory}: {path.name} cannot be read ({one_line(error)})") from None
        twice = found.keys() & shapes.keys()
        if twice:
            raise UserError(f"model {directory}: two weight files hold {some(twice)}")
        shapes |= found
    return shapes


def unwrap(name: str) -> tuple[str, list[str]]:
    """Return a tensor name without the prefixes of wrappers, and the removed prefixes."""
    parts = name.split(".")
    removed = [f"{part}." for part in parts if part in WRAPPERS]
    clean = ".".join(part for part in parts if part not in WRAPPERS)
    while prefix := next((prefix for prefix in LEADING if clean.startswith(prefix)), ""):
        removed.append(prefix)
        clean = clean.removeprefix(prefix)
    return clean, removed


def check_shapes(directory: Path, settings: Mapping[str, Any], expected: PreTrainedModel) -> None:
    """Compare names and shapes in the headers of the weight files with the model, before any weight is read.

    Args:
        directory: the model directory.
        settings: contents of ``config.json``.
        expected: the model of ``config.json``, on the meta device.

    Raises:
        UserError: the names have the prefix of a wrapper or belong to a LoRA adapter, a tensor has another shape, or
            the files are too small for the model.
    """
    files = weight_files(directory, settings)
    shapes = read_shapes(directory, files)
    unknown = shapes.keys() - expected.state_dict().keys()
    refuse_adapter(directory, unknown)
    refuse_wrapped(directory, unknown, len(shapes))
    if "quantization_config" not in settings:  # packed weights have shapes of their own
        compare_shapes(directory, shapes, expected)
        _refuse_packed(directory, files, expected)
        compare_experts(directory, {name: shapes[name] for name in unknown})


def compare_shapes(directory: Path, shapes: Mapping[str, tuple[int, ...]], expected: PreTrainedModel) -> None:
    """Compare the shapes of tensors in weight files with the tensors of the same names in the model.

    Args:
        directory: the model directory.
        shapes: shapes by name.
        expected: the model of ``config.json``, on the meta device.

    Raises:
        UserError: a tensor has another shape, or the tensors are too small for the model.
    """
    wanted = {name: tuple(tensor.shape) for name, tensor in expected.state_dict().items()}
    other = [(name, shape, wanted[name]) for name, shape in shapes.items() if wanted.get(name, shape) != shape]
    if other:
        raise _other_shapes(directory, other)
    values, held = sum(map(math.prod, wanted.values())), sum(map(math.prod, shapes.values()))
    if shapes and values > 64 * held:  # a random initialisation of the missing tensors would exhaust the memory
        raise UserError(f"model {directory}: config.json describes {values:,} weights, and the files hold {held:,}")


def _refuse_packed(directory: Path, files: Iterable[Path], expected: PreTrainedModel) -> None:
    """Refuse quantized weights without a ``quantization_config``: transformers would convert the packed numbers."""
    floats = {name for name, tensor in expected.state_dict().items() if tensor.is_floating_point()}
    packed = []
    for path in files:
        with safe_open(path, framework="pt") as file:
            for name in floats.intersection(file.keys()):
                dtype = file.get_slice(name).get_dtype()
                if dtype not in FLOATS:
                    packed.append(f"{name} ({dtype})")
    if packed:
        raise UserError(
            f"model {directory}: {len(packed)} tensors are quantized, and config.json has no quantization_config: "
            f"{some(packed)}"
        )


def compare_experts(directory: Path, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Compare the tensors of numbered experts with each other; transformers joins the experts of a layer to one tensor.

    Args:
        directory: the model directory.
        shapes: shapes by name; names with ``.experts.NUMBER.`` are compared.

    Raises:
        UserError: an expert lacks a tensor of other experts, or has a tensor of another shape.
    """
    experts = {name: found for name in shapes if (found := EXPERT.search(name))}
    number = 1 + max((int(found[1]) for found in experts.values()), default=-1)
    others: dict[str, Counter[tuple[int, ...]]] = defaultdict(Counter)
    for name in experts:
        others[EXPERT.sub(".experts.*.", name)][shapes[name]] += 1
    wanted = [kind.replace(".*.", f".{index}.") for kind in others for index in range(number)]
    missing = [name for name in wanted if name not in shapes]
    if missing:
        raise UserError(
            f"model {directory}: {len(missing)} of {len(wanted)} tensors of experts missing: {some(missing)}"
        )
    usual = {name: others[EXPERT.sub(".experts.*.", name)].most_common(1)[0][0] for name in experts}
    odd = [
        f"{name} is {list(shapes[name])}, not {list(usual[name])}" for name in experts if shapes[name] != usual[name]
    ]
    if odd:
        raise UserError(f"model {directory}: {len(odd)} tensors have another shape than other experts: {some(odd)}")


def refuse_adapter(directory: Path, names: Iterable[str]) -> None:
    """Refuse tensors of a LoRA adapter among ``names``.

    Raises:
        UserError: naming the first tensors of the adapter.
    """
    adapter = [name for name in names if ".lora_" in name]
    if adapter:
        raise UserError(
            f"model {directory}: {len(adapter)} tensors belong to a LoRA adapter ({some(adapter)}): merge the adapter "
            "into the model first (merge_and_unload of PEFT)"
        )


def refuse_wrapped(directory: Path, names: Iterable[str], total: int) -> None:
    """Refuse tensors with the prefix of a wrapper.

    Args:
        directory: the model directory.
        names: names that are not names of the model.
        total: number of tensors in the files.

    Raises:
        UserError: naming the prefixes and the command that writes a clean copy.
    """
    prefixes = Counter(prefix for name in names for prefix in set(unwrap(name)[1]))
    if prefixes:
        kinds = {**{f"{part}.": kind for part, kind in WRAPPERS.items()}, **LEADING}
        found = ", ".join(f"{prefix} of {kinds[prefix]} in {count}" for prefix, count in prefixes.most_common())
        command = shlex.join(["attnrl", "export", str(directory), f"{str(directory).rstrip('/')}-clean"])
        raise UserError(
            f"model {directory}: the names of its {total} tensors have the prefix {found}: write a clean copy with "
            f"`{command}`"
        )


def check_loading(
    directory: Path, info: Mapping[str, Any], model: PreTrainedModel, expected: PreTrainedModel
) -> tuple[str, ...]:
    """Check what transformers reports of a load (``output_loading_info``); return the notes.

    Args:
        directory: the model directory.
        info: missing, mismatched and unexpected tensors.
        model: the loaded model.
        expected: the model of ``config.json`` without weights.

    Raises:
        UserError: a tensor is missing or has another shape, or two tied tensors differ.
    """
    missing, mismatched = sorted(info["missing_keys"]), sorted(info["mismatched_keys"])
    unexpected = sorted(info["unexpected_keys"])
    kind = type(model).__name__
    if missing:
        names = f"; not used: {some(unexpected)}" if unexpected else ""
        head = " (a head tied to the embedding: set tie_word_embeddings to true in config.json)"
        tied = head if missing == ["lm_head.weight"] and not unexpected else ""
        raise UserError(
            f"model {directory}: {len(missing)} of {len(expected.state_dict())} tensors of {kind} (config.json) are "
            f"not in the weight files: {some(missing)}{names}{tied}"
        )
    if mismatched:
        raise _other_shapes(directory, [(name, tuple(found), tuple(shape)) for name, found, shape in mismatched])
    untied = _tied(expected).items() - _tied(model).items()
    if untied:
        pairs = some([f"{name} and {source}" for name, source in untied])
        raise UserError(
            f"model {directory}: config.json ties {pairs}, and the weight files hold other values for each: set "
            "tie_word_embeddings to false in config.json"
        )
    if not unexpected:
        return ()
    tensors = f"{len(unexpected)} tensor{'s are' if len(unexpected) > 1 else ' is'}"
    return (f"model {directory}: {tensors} not part of {kind} and not used: {some(unexpected)}",)


def _tied(model: PreTrainedModel) -> dict[str, str]:
    tied: dict[str, str] = getattr(model, "all_tied_weights_keys", None) or {}
    return dict(tied)


def check_finite(directory: Path, model: PreTrainedModel) -> None:
    """Check that all weights are finite.

    Raises:
        UserError: naming the tensors with NaN or infinite values.
    """
    faulty = {}
    for name, tensor in model.named_parameters():
        if tensor.is_floating_point() and tensor.dtype.itemsize > 1 and not _is_finite(tensor.detach()):
            faulty[name] = int((~tensor.isfinite()).sum())
    if faulty:
        named = some([f"{name} ({count} of {model.get_parameter(name).numel()})" for name, count in faulty.items()])
        raise UserError(f"model {directory}: {len(faulty)} tensors have NaN or infinite values: {named}")


def note_zeros(directory: Path, model: PreTrainedModel) -> tuple[str, ...]:
    """Return a note if matrices hold only zeros, as after an interrupted download or copy."""
    zeros = [
        name
        for name, tensor in model.named_parameters()
        if tensor.dim() > 1 and tensor.numel() and not tensor[0].any() and not tensor.any()
    ]
    if not zeros:
        return ()
    return (f"model {directory}: all values are 0 in {len(zeros)} of the tensors: {some(zeros)}",)


def _is_finite(tensor: Tensor) -> bool:
    """Return True if a tensor has finite values only; aminmax needs no memory and propagates NaN."""
    return not tensor.numel() or all(bool(value.isfinite()) for value in torch.aminmax(tensor))


@torch.no_grad()
def trial_forward(directory: Path, model: PreTrainedModel) -> int:
    """Run a forward of a few tokens; return the number of token ids with an embedding and a logit.

    Raises:
        UserError: the forward fails or gives NaN or infinite logits.
    """
    embeddings = int(model.get_input_embeddings().weight.shape[0])
    ids_1T = torch.arange(min(TRIAL_TOKENS, embeddings), device=model.device).unsqueeze(0)
    try:
        with logits_only(model):
            logits_TV = model(input_ids=ids_1T, use_cache=False).logits[0]
        failed = "NaN or infinite logits" if bool((logits_TV.isnan() | logits_TV.isposinf()).any()) else ""
    except Exception as error:  # transformers raises exceptions of many types for invalid settings
        failed = f"{type(error).__name__}: {one_line(error)}"
    if failed:
        raise UserError(
            f"model {directory}: a forward of {ids_1T.shape[1]} tokens fails ({failed}): the numbers in config.json "
            "do not fit the weights"
        )
    return min(embeddings, int(logits_TV.shape[-1]))


def _other_shapes(directory: Path, tensors: Collection[tuple[str, tuple[int, ...], tuple[int, ...]]]) -> UserError:
    named = some([f"{name} is {list(found)}, not {list(shape)}" for name, found, shape in tensors])
    return UserError(f"model {directory}: {len(tensors)} tensors have another shape than config.json says: {named}")


def some(names: Iterable[str]) -> str:
    """Return the first names in order, and the number of the others."""
    ordered = sorted(names)
    more = f" and {len(ordered) - NAMED} more" if len(ordered) > NAMED else ""
    return ", ".join(ordered[:NAMED]) + more
