"""One row of data as a prompt and its true answers: the formats of verl, TRL, GSM8K, MATH and DeepScaleR."""

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
    """The prompt of a row: the first of ``prompt``, ``problem`` and ``question`` that it has, text or chat messages.

    Raises:
        UserError: there is none, or it is neither; ``where`` and the field are named.
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
    """The accepted answers of a row; none where the row has the field and leaves it empty.

    They are in the first field of :data:`ANSWER_FIELDS` that the row has: text, a number, or a list of those. In
    ``answer`` and ``solution``, text that ends in a line ``#### 72`` (GSM8K) stands for what follows the mark, and
    text with a ``\\boxed{}`` (MATH) for its last box. A worked ``solution`` to a ``problem`` or ``question`` that
    boxes nothing gives no answer; beside a ``prompt`` it is the answer itself, as in TRL.

    Raises:
        UserError: there is no such field, or it holds something else; ``where`` and the field are named.
    """
    field, found = _answer_field(row)
    if field is None:
        raise UserError(f"{where}: no true answer in {', '.join(ANSWER_FIELDS[:-1])} or {ANSWER_FIELDS[-1]}")
    texts = []
    for answer in found if isinstance(found, list) else [found]:
        number = isinstance(answer, int) and not isinstance(answer, bool)
        number = number or (isinstance(answer, float) and math.isfinite(answer))
        if not number and not isinstance(answer, str):
            raise UserError(f"{where}: {field} is no true answer (text, a number or a list of those)")
        text = _sound(str(answer), where, field)
        if isinstance(answer, str) and field != "reward_model.ground_truth":
            worked = field == "solution" and row.get("prompt") is None
            text = final_answer(text, worked=worked)
        texts.append(text)
    if all(not text.strip() for text in texts):
        return ()
    if any(not text.strip() for text in texts):
        raise UserError(f"{where}: {field} is no true answer (one of its list is empty)")
    return tuple(texts)


def _answer_field(row: Mapping[str, Any]) -> tuple[str | None, Any]:
    reward_model = row.get("reward_model")
    if isinstance(reward_model, Mapping) and reward_model.get("ground_truth") is not None:
        return ANSWER_FIELDS[0], reward_model["ground_truth"]
    return next(((name, row[name]) for name in ANSWER_FIELDS[1:] if row.get(name) is not None), (None, None))


def read_source_name(row: Mapping[str, Any], default: str, where: str) -> str:
    """Where the row says that it is from (``data_source``), or else ``default``.

    Raises:
        UserError: no file can hold what it says; ``where`` is named.
    """
    return _sound(" ".join(str(row.get("data_source") or default).split()), where, "data_source")


def other_columns(row: Mapping[str, Any]) -> dict[str, Any]:
    """All columns but the prompt, as far as JSON can say them: for graders that look at more than the answer.

    Dates and the like become text; bytes, which JSON cannot say, are left out.
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
    """``suffix`` appended to the text, or to the last user message, unless it is there already."""
    if isinstance(prompt, str):
        return prompt if prompt.rstrip().endswith(suffix.strip()) else prompt + suffix
    last = max(i for i, message in enumerate(prompt) if message["role"] == "user")
    content = with_suffix(prompt[last]["content"], suffix)
    return (*prompt[:last], {**prompt[last], "content": str(content)}, *prompt[last + 1 :])


def _sound(text: str, where: str, field: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:  # half a surrogate pair, which JSON can spell and no tokenizer can read
        raise UserError(f"{where}: {field} is not valid Unicode text") from None
    return text
