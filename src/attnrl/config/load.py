"""Recipes: read a YAML file, apply overrides ``key.path=value``, validate, describe faults, dump.

Every fault ends in one :class:`~attnrl.errors.UserError` that names the recipe and all faulty keys.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from attnrl.config.base import Strict
from attnrl.config.reference import setting_groups
from attnrl.errors import CREDENTIALS, UserError
from attnrl.utils.near import did_you_mean
from attnrl.utils.yaml import load_yaml

MAX_SHOWN = 200  # characters of a faulty value or key in a message
MAX_FAULTS = 20  # faults in a message
KEY_OF_MAPPING = "[key]"  # the last part of pydantic's location of a faulty key
FREE_TEXT = ("data.system_prompt", "data.prompt_suffix")
QUOTES = "'\""
YAML_SIGNS = f"{QUOTES}|>!&"  # at the beginning of text in quotes, blocks, and text with a tag or an anchor
NEAR_MISS = 0.8  # similarity of a misplaced key to a known key, above difflib's 0.6: fewer candidates are meant

ConfigT = TypeVar("ConfigT", bound=Strict)


def shipped_names(package: str) -> list[str]:
    """Return the names of the YAML files in ``package``; a file in a folder is called ``FOLDER/NAME``."""
    return sorted(_yaml_names(resources.files(package)))


def _yaml_names(folder: Traversable, prefix: str = "") -> Iterator[str]:
    for entry in folder.iterdir():
        if entry.is_dir():
            yield from _yaml_names(entry, f"{prefix}{entry.name}/")
        elif entry.name.endswith(".yaml"):
            yield prefix + entry.name.removesuffix(".yaml")


def recipe_names() -> list[str]:
    """Return the names of the shipped recipes."""
    return shipped_names("attnrl.recipes")


def read_recipe(recipe: str) -> dict[str, Any]:
    """Read a YAML recipe: a path, or the name of a shipped recipe.

    Raises:
        UserError: the recipe does not exist or is not a YAML mapping.
    """
    return read_settings_file(recipe, kind="recipe", package="attnrl.recipes")


def read_settings_file(name: str, *, kind: str, package: str) -> dict[str, Any]:
    """Read a YAML file of settings: a path, or the name of a file in ``package``.

    Args:
        name: a path that ends in ``.yaml`` or ``.yml``, or a shipped name.
        kind: the word for the file in messages, such as ``recipe``.
        package: the package of the shipped files.

    Raises:
        UserError: the file does not exist, cannot be read, or is not a YAML mapping.
    """
    path = Path(name)
    if path.suffix in {".yaml", ".yml"}:
        if not path.is_file():
            raise UserError(f"{kind} {name}: no such file{did_you_mean(path.name, _neighbours(path))}")
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            raise UserError(f"{kind} {name}: not UTF-8 text") from None
        except OSError as error:
            raise UserError(f"{kind} {name}: not readable ({error.strerror})") from None
    elif name in shipped_names(package):
        text = resources.files(package).joinpath(f"{name}.yaml").read_text(encoding="utf-8")
    else:
        known = shipped_names(package)
        raise UserError(
            f"{kind} {name!r} is neither a .yaml file nor one of: {', '.join(known)}{did_you_mean(name, known)}"
        )
    try:
        settings = load_yaml(text)
    except ValueError as error:
        raise UserError(f"{kind} {name}: not valid YAML ({error})") from None
    if not isinstance(settings, dict):
        raise UserError(f"{kind} {name}: expected a mapping of settings, found {type(settings).__name__}")
    return settings


def _neighbours(path: Path) -> list[str]:
    """Return the names of the YAML files in the folder of ``path``."""
    folder = path.parent.iterdir() if path.parent.is_dir() else ()
    return [other.name for other in folder if other.suffix in {".yaml", ".yml"}]


def apply_overrides(settings: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Return a copy of ``settings`` with each override ``key.path=value`` set.

    Values are parsed as YAML, but text without quotes is taken as is: no ``#`` begins a comment, and lines stay lines.
    The settings :data:`FREE_TEXT` are taken as is with spaces, colons and other signs of YAML, too.

    Raises:
        UserError: an override has another form, or its path leads through a value that is not a group of settings.
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
            target[keys[-1]] = _parse_text(value) if path in FREE_TEXT else _parse_value(value)
        except ValueError:
            raise UserError(f"override {override!r}: the value is not valid YAML") from None
    return merged


def _parse_text(value: str) -> str | None:
    """Return free text: null is None, text in quotes is read as YAML, other text is taken as is."""
    stripped = value.strip()
    if stripped == "null":
        return None
    if len(stripped) > 1 and stripped[0] in QUOTES and stripped[0] == stripped[-1]:
        parsed = load_yaml(value)
        if isinstance(parsed, str):
            return parsed
    return value


def _parse_value(value: str) -> Any:
    stripped = value.strip()
    if stripped.startswith("#"):
        return stripped
    parsed = load_yaml(value)
    if isinstance(parsed, str) and stripped[0] not in YAML_SIGNS:
        parsed = stripped
    if isinstance(parsed, str):
        # YAML 1.1 reads 3e-4 as text; a user means the number.
        try:
            return float(parsed)
        except ValueError:
            return parsed
    return parsed


def load_config(kind: type[ConfigT], recipe: str, overrides: Sequence[str] = ()) -> ConfigT:
    """Read a recipe, apply overrides, validate.

    Raises:
        UserError: the recipe cannot be read or a setting is faulty; the message names the recipe and all faulty keys.
    """
    return validate_config(kind, apply_overrides(read_recipe(recipe), overrides), source=f"recipe {recipe}")


def validate_config(kind: type[ConfigT], settings: Mapping[str, Any], source: str) -> ConfigT:
    """Validate ``settings`` as ``kind``.

    Settings that contain credentials are refused: ``config.yaml`` and trackers would store the credentials.

    Raises:
        UserError: a setting is faulty; the message names ``source`` and all faulty keys.
    """
    for path, text in _texts(settings, ""):
        if CREDENTIALS.search(text):
            raise UserError(
                f"{source}: {path}: contains credentials, which would be written to files: leave credentials to the "
                "environment (HF_TOKEN, WANDB_API_KEY) or to the tool that uses them"
            )
        if "\0" in text:
            raise UserError(f"{source}: {path}: contains a NUL character, which no file name can contain")
    try:
        return kind.model_validate(settings)
    except ValidationError as error:
        faults = [_describe(fault, kind) for fault in error.errors()[:MAX_FAULTS]]
        more = error.error_count() - len(faults)
        raise UserError(f"{source}: {'; '.join([*faults, *([f'and {more:,} more'] if more else [])])}") from None


def _texts(value: Any, path: str) -> Iterator[tuple[str, str]]:
    """Yield the dotted name and the text of every text in the settings."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _texts(inner, f"{path}.{key}" if path else str(key))
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from _texts(inner, path)
    elif isinstance(value, (str, Path)):
        yield path, str(value)


def _describe(fault: Mapping[str, Any], kind: type[BaseModel]) -> str:
    """Return one clause about a fault that pydantic found; the clause names the key."""
    path = _shown(".".join(str(part) for part in fault["loc"]))
    if fault["type"] == "extra_forbidden":
        known = _keys_beside(kind, fault["loc"])
        near = _near_miss(kind, [str(part) for part in fault["loc"]], known)
        suggestion = f"did you mean {' or '.join(near)}? " if near else ""
        return f"unknown key {path} ({suggestion}known here: {', '.join(known)})"
    if fault["type"] == "missing":
        return f"{path} is required"
    message = str(fault["msg"]).removeprefix("Value error, ")
    if fault["type"] == "literal_error":
        allowed = re.findall(r"'([^']*)'", str(fault["ctx"]["expected"]))
        message = f"expected {fault['ctx']['expected']}{did_you_mean(str(fault['input']), allowed)}"
        if fault["loc"][-1] == KEY_OF_MAPPING:
            return f"unknown key {path.removesuffix(f'.{KEY_OF_MAPPING}')}: {message}"
    if not path:
        return message
    value = repr(fault["input"])
    is_said = isinstance(fault["input"], str) and value in message
    got = "" if is_said or isinstance(fault["input"], dict) else f" (got {_shown(value)})"
    return f"{path}: {message}{got}"


def _shown(text: str) -> str:
    """Return ``text`` from a file, escaped and cut so that the text fits into one line of a message."""
    text = text if text.isprintable() else repr(text)
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."


def _keys_beside(kind: type[BaseModel], location: Sequence[str | int]) -> list[str]:
    """Return the known keys of the group that ``location`` points into, sorted."""
    here: type[BaseModel] = kind
    for part in location[:-1]:
        if part in here.model_fields:  # else an index of a list or a key of a mapping; entries follow the container
            declared = here.model_fields[str(part)].annotation
            inside = (declared, *get_args(declared))
            models = (found for found in inside if isinstance(found, type) and issubclass(found, BaseModel))
            here = next(models, here)  # else a key of a mapping that equals the name of a field
    return sorted(here.model_fields)


def _near_miss(kind: type[BaseModel], location: Sequence[str], known: Iterable[str]) -> list[str]:
    """Return the dotted names that an unknown key may stand for: a misspelt neighbour, else settings elsewhere."""
    *group, key = location
    key = key[:MAX_SHOWN]  # similarity takes quadratic time
    elsewhere: dict[str, list[str]] = {}
    for settings in setting_groups(kind):
        for name in (settings.name, *(setting.name for setting in settings.settings)):
            if name:
                elsewhere.setdefault(name.rpartition(".")[2], []).append(name)
    neighbours = difflib.get_close_matches(key, known, n=1)
    if neighbours and key not in elsewhere:
        return [".".join([*group, neighbours[0]])]
    near = difflib.get_close_matches(key, elsewhere, n=1, cutoff=NEAR_MISS)
    return elsewhere[near[0]] if near else []


def dump_config(config: Strict) -> str:
    """Return the resolved config as YAML, with every default written out."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
