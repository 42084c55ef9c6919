"""Checks of the numbers in ``config.json`` and ``generation_config.json``, before a model is built from them.

transformers builds a model from any numbers: NaN in ``rope_theta`` gives NaN log-probs, a head count of 0 an exception
of any type, and an end-of-sequence id beyond the vocabulary responses that never end.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from attnrl.errors import UserError, one_line

CONFIG, GENERATION = "config.json", "generation_config.json"
#: Sizes that must be positive wherever a config has them; None means a default of the architecture.
SIZES = frozenset(
    {"vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim"}
    | {"max_position_embeddings", "n_embd", "n_head", "n_layer", "n_positions"}
)

OTHER_HEADS = re.compile(r"(Classification|QuestionAnswering|RewardModel)$")
COUNTS = frozenset({"num_hidden_layers", "n_layer", "num_labels"})
MOST = 10_000  # a config or a model takes time and memory for each layer and label, even without weights


def check_numbers(source: str, settings: object) -> None:
    """Refuse settings of a model with NaN, an infinite number, a size below 1, too many layers or a rotary base
    that is not positive.

    Infinite limits (keys that end in ``_limit``, as ``time_step_limit`` of Mamba layers) are valid.

    Args:
        source: the beginning of the message, with the file or the setting.
        settings: the contents of ``config.json``, or of a part.

    Raises:
        UserError: naming the key and the value.
    """
    for key, value in _numbers(settings):
        name = key.rpartition(".")[2].rstrip("0123456789[]")
        if not isinstance(value, int) and not (math.isfinite(value) or (name.endswith("_limit") and value > 0)):
            raise UserError(f"{source}: {key} is {value}; a finite number expected")
        if name in SIZES and value < 1:
            raise UserError(f"{source}: {key} is {value}; a size of at least 1 expected")
        if name in COUNTS and value > MOST:
            raise UserError(f"{source}: {key} is {value}; at most {MOST:,} expected")
        if name.endswith("rope_theta") and value <= 0:
            raise UserError(f"{source}: {key} is {value}; a number above 0 expected")


def _numbers(settings: object, path: str = "") -> Iterator[tuple[str, float]]:
    """Yield ``(dotted key, number)`` of nested settings, without booleans."""
    if isinstance(settings, bool):
        return
    if isinstance(settings, (int, float)):
        yield path, settings
    elif isinstance(settings, dict):
        for key, value in settings.items():
            yield from _numbers(value, f"{path}.{key}" if path else str(key))
    elif isinstance(settings, list):
        for index, value in enumerate(settings):
            yield from _numbers(value, f"{path}[{index}]")


def read_config(directory: Path) -> dict[str, Any]:
    """Return the contents of ``config.json``, with the numbers checked.

    Raises:
        UserError: the file is not a readable JSON object, or :func:`check_numbers` refuses a number.
    """
    path = directory / CONFIG
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(settings, dict):
            raise TypeError("a JSON object expected")
        check_numbers(f"model {directory}: {CONFIG}", settings)
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise UserError(f"model {directory}: {CONFIG} cannot be read ({one_line(error)})") from None
    return settings


def refuse_other_heads(directory: Path, settings: dict[str, Any]) -> None:
    """Refuse a reward model or classifier, whose head gives no logits of tokens.

    Raises:
        UserError: naming the architecture.
    """
    named = settings.get("architectures")
    for name in named if isinstance(named, list) else ():
        if isinstance(name, str) and OTHER_HEADS.search(name):
            raise UserError(
                f"model {directory}: {CONFIG}: {name} is a reward model or a classifier: give a causal language model"
            )


def check_token_ids(directory: Path, tokenizer: PreTrainedTokenizerBase, vocabulary: int) -> None:
    """Refuse a tokenizer with token ids beyond the model's vocabulary, and end-of-sequence ids beyond the vocabulary.

    Args:
        directory: the model directory, for ``config.json`` and ``generation_config.json``.
        tokenizer: the tokenizer that encodes prompts.
        vocabulary: number of token ids that the model has an embedding and a logit for.

    Raises:
        UserError: naming the largest id of the tokenizer and the size of the vocabulary, or the file with the
            end-of-sequence id.
    """
    ids = tokenizer.get_vocab()
    beyond = sorted((number, token) for token, number in ids.items() if number >= vocabulary)
    if beyond:
        raise UserError(
            f"model {directory}: the tokenizer has token ids up to {beyond[-1][0]}, and the model has embeddings for "
            f"{vocabulary} tokens (the first token without an embedding is {beyond[0][1][:40]!r}, {beyond[0][0]}): "
            "use the tokenizer of this model, or enlarge the embedding (resize_token_embeddings)"
        )
    for file in (CONFIG, GENERATION):
        for token in _end_of_sequence(directory / file):
            if isinstance(token, bool) or not isinstance(token, int) or not 0 <= token < vocabulary:
                raise UserError(
                    f"model {directory}: {file}: eos_token_id is {token!r}, and the model has the token ids 0 to "
                    f"{vocabulary - 1} (the tokenizer's end-of-sequence token is {tokenizer.eos_token_id})"
                )


def _end_of_sequence(path: Path) -> list[Any]:
    """Return the values of ``eos_token_id`` in a file; none without the file.

    Raises:
        UserError: the file cannot be read.
    """
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(settings, dict):
            raise TypeError("a JSON object expected")
    except FileNotFoundError:
        return []
    except (OSError, ValueError, TypeError, RecursionError) as error:  # transformers would go on without the file
        raise UserError(f"model {path.parent}: {path.name} cannot be read ({one_line(error)})") from None
    parts = [settings, settings.get("text_config")]
    found = [part.get("eos_token_id") for part in parts if isinstance(part, dict)]
    return [token for ids in found for token in (ids if isinstance(ids, list) else [ids]) if token is not None]
