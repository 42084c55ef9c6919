"""Read prompt and true answers from a row of data: the formats of verl, TRL, GSM8K, MATH and DeepScaleR."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from attnrl.errors import UserError
from attnrl.grading.answers import final_answer
from attnrl.types import Chat

PROMPT_FIELDS = ("prompt", "problem", "question")
ANSWER_FIELDS = ("reward_model.ground_truth", "answer", "solution")


def read_prompt(row: Mapping[str, Any], where: str) -> str | Chat:
    """Return the prompt of a row, text or chat messages: the first present field of :data:`PROMPT_FIELDS`.

    Raises:
        UserError: no field is present, or the value is neither text nor chat messages; names ``where`` and the field.
    """
    field = next((name for name in PROMPT_FIELDS if row.get(name) is not None), None)
    if field is None:
        raise UserError(f"{where}: no {', '.join(PROMPT_FIELDS[:-1])} or {PROMPT_FIELDS[-1]}")
    prompt = row[field]
    if isinstance(prompt, str):
        if not prompt.strip():
            raise UserError(f"{where}: {field} is empty")
        return _sound(prompt, where, field)
    if not isinstance(prompt, Sequence) or not prompt:
        raise UserError(f"{where}: {field} must be text or a non-empty list of chat messages")
    messages = []
    for message in prompt:
        if not isinstance(message, Mapping) or not all(isinstance(message.get(k), str) for k in ("role", "content")):
            raise UserError(f"{where}: each message of {field} needs a role and a content, both text")
        messages.append({key: _sound(message[key], where, field) for key in ("role", "content")})
    if all(message["role"] != "user" for message in messages):
        raise UserError(f"{where}: {field} has no user message")
    return tuple(messages)


def read_answers(row: Mapping[str, Any], where: str) -> tuple[str, ...]:
    """Return the accepted answers of a row, from the first present field of :data:`ANSWER_FIELDS`; () if empty.

    The value is text, a number, or a list of texts and numbers. In ``answer`` and ``solution``, text with a last line
    ``#### 72`` (GSM8K) gives the text after the mark, and text with a ``\\boxed{}`` (MATH) gives the last box. A worked
    ``solution`` to a ``problem`` or ``question`` without a box gives no answer. In a row with a ``prompt``, the
    ``solution`` is the answer (TRL).

    Raises:
        UserError: no field is present, or the value has another type; names ``where`` and the field.
    """
    field, found = _answer_field(row)
    if field is None:
        raise UserError(f"{where}: no true answer in {', '.join(ANSWER_FIELDS[:-1])} or {ANSWER_FIELDS[-1]}")
    texts = []
    for answer in found if isinstance(found, list) else [found]:
        number = isinstance(answer, int) and not isinstance(answer, bool)
        number = number or (isinstance(answer, float) and math.isfinite(answer))
        if not number and not isinstance(answer, str):
            raise UserError(f"{where}: {field}: expected text, a number, or a list of texts and numbers")
        text = _sound(str(answer), where, field)
        if isinstance(answer, str) and field != "reward_model.ground_truth":
            worked = field == "solution" and row.get("prompt") is None
            text = final_answer(text, worked=worked)
        texts.append(text)
    if all(not text.strip() for text in texts):
        return ()
    if any(not text.strip() for text in texts):
        raise UserError(f"{where}: {field}: an answer of the list is empty")
    return tuple(texts)


def _answer_field(row: Mapping[str, Any]) -> tuple[str | None, Any]:
    reward_model = row.get("reward_model")
    if isinstance(reward_model, Mapping) and reward_model.get("ground_truth") is not None:
        return ANSWER_FIELDS[0], reward_model["ground_truth"]
    return next(((name, row[name]) for name in ANSWER_FIELDS[1:] if row.get(name) is not None), (None, None))


def read_source_name(row: Mapping[str, Any], default: str, where: str) -> str:
    """Return the ``data_source`` of the row, or ``default`` if absent or empty.

    Raises:
        UserError: the value is not valid Unicode; names ``where``.
    """
    return _sound(" ".join(str(row.get("data_source") or default).split()), where, "data_source")


def other_columns(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return all columns except the prompt as JSON values, for custom graders.

    Values of other types, e.g. dates, become text; bytes are left out.
    """
    field = next((name for name in PROMPT_FIELDS if row.get(name) is not None), None)
    columns = {str(name): value for name, value in row.items() if name != field}
    return {name: _jsonable(value) for name, value in columns.items() if not isinstance(value, (bytes, bytearray))}


def _jsonable(value: Any) -> Any:
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(k): _jsonable(v) for k, v in value.items() if not isinstance(v, (bytes, bytearray))}
    if isinstance(value, (list, tuple)):
        return [_jsonable(item) for item in value if not isinstance(item, (bytes, bytearray))]
    return str(value)


def with_suffix(prompt: str | Chat, suffix: str) -> str | Chat:
    """Return the prompt with ``suffix`` appended to the text or the last user message, unless already present."""
    if isinstance(prompt, str):
        return prompt if prompt.rstrip().endswith(suffix.strip()) else prompt + suffix
    last = max(i for i, message in enumerate(prompt) if message["role"] == "user")
    content = with_suffix(prompt[last]["content"], suffix)
    return (*prompt[:last], {**prompt[last], "content": str(content)}, *prompt[last + 1 :])


def _sound(text: str, where: str, field: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:  # a lone surrogate: possible in JSON, unreadable for tokenizers
        raise UserError(f"{where}: {field} is not valid Unicode text") from None
    return text
