"""The settings of a configuration class as a list: dotted name, type, default and meaning of each."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

TYPE_NAMES: dict[Any, str] = {
    bool: "true or false",
    int: "integer",
    float: "number",
    str: "text",
    Path: "path",
    NoneType: "null",
    Any: "any value",
}
LARGEST_SHOWN_BOUND = 2**31  # the bounds of a 64-bit integer say nothing to a reader


@dataclass(frozen=True)
class Setting:
    """One setting.

    Attributes:
        name: dotted name from the top, as on the command line; ``N`` stands for an index, ``NAME`` for a key.
        type: type and bounds, in words.
        default: as YAML; None if the setting is required.
        description: meaning of the setting, "" if the class does not say.
    """

    name: str
    type: str
    default: str | None
    description: str


@dataclass(frozen=True)
class SettingGroup:
    """The settings of one class: ``name`` is the dotted name of the group ("" at the top), ``title`` its docstring."""

    name: str
    title: str
    settings: tuple[Setting, ...]


def setting_groups(kind: type[BaseModel], name: str = "") -> Iterator[SettingGroup]:
    """Yield the group of ``kind`` itself, then the groups below, depth first."""
    prefix = f"{name}." if name else ""
    settings, below = [], []
    for key, field in kind.model_fields.items():
        inner, place = _inner_model(field.annotation)
        if inner is not None:
            below.append((inner, f"{prefix}{key}{place}"))
        if inner is None or place:
            settings.append(
                Setting(
                    name=f"{prefix}{key}",
                    type=_type_text(field.annotation, field.metadata),
                    default=None if field.is_required() else _default_text(field.default),
                    description=field.description or "",
                )
            )
    title = (kind.__doc__ or "").partition("\n\n")[0]
    yield SettingGroup(name, " ".join(title.split()), tuple(settings))
    for inner, place in below:
        yield from setting_groups(inner, place)


def _inner_model(annotation: Any) -> tuple[type[BaseModel] | None, str]:
    """Return the configuration class of a group, list or mapping, and the place of an entry ("", ".N", ".NAME")."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation, ""
    for argument in get_args(annotation):
        if isinstance(argument, type) and issubclass(argument, BaseModel):
            return argument, ".NAME" if get_origin(annotation) is dict else ".N"
    return None, ""


def _type_text(annotation: Any, metadata: Sequence[Any] = ()) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type_text(arguments[0], arguments[1:])
    if origin in {Union, UnionType}:
        return " or ".join(_type_text(argument, metadata) for argument in arguments)
    if origin is Literal:
        return ", ".join(f"`{argument}`" for argument in arguments)
    if origin is tuple:
        if arguments[-1] is Ellipsis:
            return f"list of {_type_text(arguments[0])}"
        return f"list of {len(arguments)}: {_type_text(arguments[0])}"
    if origin is dict:
        return "mapping"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "groups"
    return TYPE_NAMES[annotation] + (_bounds_text(metadata) if annotation in {int, float} else "")


def _bounds_text(metadata: Sequence[Any]) -> str:
    bounds = []
    for entry in metadata:
        for bound in entry.metadata if isinstance(entry, FieldInfo) else [entry]:
            for attribute, sign in (("gt", ">"), ("ge", ">="), ("lt", "<"), ("le", "<=")):
                limit = getattr(bound, attribute, None)
                if limit is not None and abs(limit) < LARGEST_SHOWN_BOUND:
                    bounds.append(f"{sign} {limit}")
    return f" {', '.join(bounds)}" if bounds else ""


def _default_text(value: Any) -> str:
    if value is None:
        return "null"
    return value if isinstance(value, str) else json.dumps(value)
