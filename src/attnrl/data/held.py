"""Lists and objects held as text: JSON, or Python literals as pandas writes the literals into CSV."""

from __future__ import annotations

import ast
import json
import re
import warnings
from typing import Any

_OBJECT = re.compile(r"""\[?\s*\{\s*['"]""")  # the beginning of an object, or of a list of objects
_LIST = re.compile(r"""\[\s*['"]""")  # the beginning of a list of texts
_WITHOUT_COMMA = re.compile(r"""['"]\s+['"]""")  # numpy writes lists so; for Python, the two texts are one
_MESSAGE = re.compile(r"""\[?\s*\{[^{}]{0,200}?['"](role|from|content|value)['"]\s*:""")
_INVISIBLE = "\ufeff\u200b"  # byte order mark and zero-width space: no whitespace for Python


def held_value(text: str) -> Any:
    """Return the value that a text holds as JSON or as Python literals; None if the text begins like neither."""
    stripped = _bare(text)
    if stripped[:1] not in {"[", "{", '"'}:
        return None
    try:
        return json.loads(stripped)
    except (ValueError, RecursionError):
        return _python_literal(stripped)


def held_structure(text: str) -> Any:
    """Return the list or object of :func:`held_value`; None for any other text.

    A list of numbers is a text: a problem may be a list of numbers.
    """
    value = held_value(text)
    if isinstance(value, str):  # JSON text inside JSON text
        return held_structure(value) if _bare(value)[:1] in {"[", "{"} else None
    return value if isinstance(value, (dict, list)) and not _only_numbers(value) else None


def looks_like_structure(text: str) -> bool:
    """Return True if a text begins like JSON of chat messages, or begins and ends like JSON of objects."""
    text = _bare(text)
    return _MESSAGE.match(text) is not None or (_OBJECT.match(text) is not None and text[-1] in "}]")


def _bare(text: str) -> str:
    return text.strip().strip(_INVISIBLE).strip()


def _python_literal(text: str) -> Any:
    """Return the object, or the list of objects or texts, that ``str`` of Python wrote (pandas in CSV), else None."""
    if not _OBJECT.match(text) and (not _LIST.match(text) or _WITHOUT_COMMA.search(text)):
        return None
    try:
        with warnings.catch_warnings(action="ignore"):  # \( in a string is a SyntaxWarning
            return ast.literal_eval(text)
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return None


def _only_numbers(value: Any) -> bool:
    if isinstance(value, list):
        return bool(value) and all(map(_only_numbers, value))
    return isinstance(value, (int, float))
