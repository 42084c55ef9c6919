"""Recipes: read a YAML file, apply overrides ``key.path=value``, validate, describe faults, dump.

Every fault ends in one :class:`~attnrl.errors.UserError` that names the recipe and all faulty keys.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from attnrl.config.base import Strict
from attnrl.errors import CREDENTIALS, UserError
from attnrl.utils.yaml import load_yaml

MAX_SHOWN = 200  # characters of a faulty value or key in a message

ConfigT = TypeVar("ConfigT", bound=Strict)


def shipped_names(package: str) -> list[str]:
    """Names of the YAML files in a package of ours; one in a folder of the package is called ``FOLDER/NAME``."""
    return sorted(_yaml_names(resources.files(package)))


def _yaml_names(folder: Traversable, prefix: str = "") -> Iterator[str]:
    for entry in folder.iterdir():
        if entry.is_dir():
            yield from _yaml_names(entry, f"{prefix}{entry.name}/")
        elif entry.name.endswith(".yaml"):
            yield prefix + entry.name.removesuffix(".yaml")


def recipe_names() -> list[str]:
    """Names of the recipes that the package ships."""
    return shipped_names("attnrl.recipes")


def read_recipe(recipe: str) -> dict[str, Any]:
    """Read a YAML recipe: a path, or the name of one that the package ships.

    Raises:
        UserError: there is no such recipe, or it is not a YAML mapping.
    """
    return read_settings_file(recipe, kind="recipe", package="attnrl.recipes")


def read_settings_file(name: str, *, kind: str, package: str) -> dict[str, Any]:
    """Read a YAML file of settings: a path, or the name of one in a package of ours.

    Args:
        name: the path or name.
        kind: what to call it in errors.
        package: where the named ones are.

    Raises:
        UserError: there is none, or it is not a YAML mapping.
    """
    path = Path(name)
    if path.suffix in {".yaml", ".yml"}:
        if not path.is_file():
            raise UserError(f"{kind} {name}: no such file")
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            raise UserError(f"{kind} {name}: not UTF-8 text") from None
        except OSError as error:
            raise UserError(f"{kind} {name}: not readable ({error.strerror})") from None
    elif name in shipped_names(package):
        text = resources.files(package).joinpath(f"{name}.yaml").read_text(encoding="utf-8")
    else:
        raise UserError(f"{kind} {name!r} is neither a .yaml file nor one of: {', '.join(shipped_names(package))}")
    try:
        settings = load_yaml(text)
    except ValueError as error:
        raise UserError(f"{kind} {name}: not valid YAML ({error})") from None
    if not isinstance(settings, dict):
        raise UserError(f"{kind} {name}: expected a mapping of settings, found {type(settings).__name__}")
    return settings


def apply_overrides(settings: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Return ``settings`` with each ``key.path=value`` set; values are read as YAML.

    Raises:
        UserError: an override is not of that form, or its path runs through a value that has no keys.
    """
    merged = deepcopy(settings)
    for override in overrides:
        path, equals, value = override.partition("=")
        keys = path.split(".")
        if not equals or not all(keys):
            raise UserError(f"override {override!r}: expected key.path=value")
        target = merged
        for key in keys[:-1]:
            target = target.setdefault(key, {})
            if not isinstance(target, dict):
                raise UserError(f"override {override!r}: {key} is a value, not a group of settings")
        try:
            target[keys[-1]] = _parse_value(value)
        except ValueError:
            raise UserError(f"override {override!r}: the value is not valid YAML") from None
    return merged


def _parse_value(value: str) -> Any:
    parsed = load_yaml(value)
    if isinstance(parsed, str):
        # YAML 1.1 reads 3e-4 as text; everyone who types it means a number.
        try:
            return float(parsed)
        except ValueError:
            return parsed
    return parsed


def load_config(kind: type[ConfigT], recipe: str, overrides: Sequence[str] = ()) -> ConfigT:
    """Read a recipe, apply overrides, validate.

    Raises:
        UserError: naming the recipe and the first faulty key.
    """
    return validate_config(kind, apply_overrides(read_recipe(recipe), overrides), source=f"recipe {recipe}")


def validate_config(kind: type[ConfigT], settings: Mapping[str, Any], source: str) -> ConfigT:
    """Validate settings; a fault ends in a :class:`UserError` that names ``source`` and every faulty key.

    Settings that hold credentials are such a fault: they would be written to ``config.yaml`` and to trackers.
    """
    for path, text in _texts(settings, ""):
        if CREDENTIALS.search(text):
            raise UserError(
                f"{source}: {path}: holds credentials, which would be written down: leave them to the environment "
                "(HF_TOKEN, WANDB_API_KEY) or to the tool that they are for"
            )
        if "\0" in text:
            raise UserError(f"{source}: {path}: holds a NUL character, which is in no name of a file")
    try:
        return kind.model_validate(settings)
    except ValidationError as error:
        faults = [_describe(fault, kind) for fault in error.errors()]
        raise UserError(f"{source}: {'; '.join(faults)}") from None


def _texts(value: Any, path: str) -> Iterator[tuple[str, str]]:
    """The settings that are text, or have some, with their dotted names."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _texts(inner, f"{path}.{key}" if path else str(key))
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from _texts(inner, path)
    elif isinstance(value, (str, Path)):
        yield path, str(value)


def _describe(fault: Mapping[str, Any], kind: type[BaseModel]) -> str:
    path = _shown(".".join(str(part) for part in fault["loc"]))
    if fault["type"] == "extra_forbidden":
        known = ", ".join(_keys_beside(kind, fault["loc"]))
        return f"unknown key {path} (known here: {known})"
    if fault["type"] == "missing":
        return f"{path} is required"
    message = str(fault["msg"]).removeprefix("Value error, ")
    if not path:
        return message
    value = "" if isinstance(fault["input"], dict) else f" (got {_shown(repr(fault['input']))})"
    return f"{path}: {message}{value}"


def _shown(text: str) -> str:
    """What a file says, fit for one line of a message."""
    text = text if text.isprintable() else repr(text)
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."


def _keys_beside(kind: type[BaseModel], location: Sequence[str | int]) -> list[str]:
    here: type[BaseModel] = kind
    for part in location[:-1]:
        if part in here.model_fields:  # else a place in a list or mapping, whose entries are found with it
            declared = here.model_fields[str(part)].annotation
            inside = (declared, *get_args(declared))
            models = (found for found in inside if isinstance(found, type) and issubclass(found, BaseModel))
            here = next(models, here)  # else it is an entry's name that is also the name of a field
    return sorted(here.model_fields)


def dump_config(config: Strict) -> str:
    """The resolved config as YAML, every default spelled out."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
