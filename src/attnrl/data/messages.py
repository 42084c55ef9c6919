"""Read chat messages in the formats of data sets: OpenAI, ShareGPT, and content in parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from attnrl.data.held import held_structure
from attnrl.data.remarks import Remarks
from attnrl.errors import UserError
from attnrl.types import Chat

#: Keys of a message: OpenAI (role, content) and ShareGPT (from, value).
ROLE_KEYS, CONTENT_KEYS = ("role", "from"), ("content", "value")
ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "system": "system",
    "tool": "tool",
    "observation": "tool",
}
TEXT_PARTS = frozenset({"text", "input_text", "output_text"})


def is_message(value: Any) -> bool:
    """Return True for an object with a role and a content, under the keys of OpenAI or of ShareGPT."""
    return (
        isinstance(value, Mapping)
        and any(value.get(key) is not None for key in ROLE_KEYS)
        and any(key in value for key in CONTENT_KEYS)
    )


def are_messages(value: Any) -> bool:
    """Return True for a message, and for a list of messages that is not empty."""
    return is_message(value) or (isinstance(value, list) and bool(value) and all(map(is_message, value)))


def read_messages(messages: Sequence[Any], where: str, remarks: Remarks) -> Chat:
    """Return chat messages with role and content only.

    Args:
        messages: objects with role and content (OpenAI) or from and value (ShareGPT). A content is text, or a list of
            parts of text, which are joined.
        where: file, row and field, for messages.
        remarks: counts the further keys, which are left out.

    Raises:
        UserError: a message is malformed, or has a part that is not text (an image).
    """
    read = []
    for message in messages:
        if not isinstance(message, Mapping):
            raise UserError(f"{where}: each message needs a role and a content, found {type(message).__name__}")
        role = _first(message, ROLE_KEYS)
        content = _content(_first(message, CONTENT_KEYS), where)
        if not isinstance(role, str) or content is None:
            raise UserError(f"{where}: each message needs a role and a content, both text")
        if role.casefold() in ROLES:
            role = ROLES[role.casefold()]
        elif message.get("role") is None:
            raise UserError(f"{where}: unknown role {role[:40]!r} (known: {', '.join(ROLES)})")
        further = {str(key) for key, value in message.items() if value not in (None, "", [], {})}
        for key in sorted(further - {*ROLE_KEYS, *CONTENT_KEYS}):
            remarks.others[f"left out {key} of a message"] += 1
        read.append({"role": role, "content": content})
    return tuple(read)


def _first(message: Mapping[str, Any], keys: Sequence[str]) -> Any:
    return next((message[key] for key in keys if message.get(key) is not None), None)


def _content(content: Any, where: str) -> str | None:
    """Return the text of a content; None if the content is neither text nor parts of text."""
    if isinstance(content, str) and content.lstrip().startswith("[{") and _are_parts(held := held_structure(content)):
        content = held
    if isinstance(content, str):
        return content
    if isinstance(content, Mapping):
        content = [content]
    if not isinstance(content, Sequence) or not content:
        return None
    texts = []
    for part in content:
        kind = part.get("type", "text") if isinstance(part, Mapping) else "text"
        text = part.get("text") if isinstance(part, Mapping) else part
        if kind not in TEXT_PARTS:
            raise UserError(f"{where}: a part of type {str(kind)[:40]!r} in the content; only text can be read")
        if not isinstance(text, str):
            return None
        texts.append(text)
    return "".join(texts)


def _are_parts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(part, Mapping) and "type" in part for part in value)
