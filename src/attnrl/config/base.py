"""Shared parts of the configuration classes: strict validation, common field types, the paper's prompt suffix."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from attnrl.errors import UserError
from attnrl.utils.plugins import resolve

Seed = Annotated[int, Field(ge=-(2**63), lt=2**63)]  # the range of torch.manual_seed
Threads = Annotated[int, Field(ge=0, le=1024)]

#: A path; ``~`` is the home directory, because no shell expands ``~`` inside ``key=value`` or a YAML file.
HomePath = Annotated[Path, AfterValidator(lambda path: Path(os.path.expanduser(path)))]
#: A text that may be a path, with ``~`` as in :data:`HomePath`.
HomeText = Annotated[str, AfterValidator(os.path.expanduser)]

#: The paper's instruction, appended to every problem of a data file that does not end with the instruction already.
PROMPT_SUFFIX = " Let's think step by step and output the final answer within \\boxed{}."


class Strict(BaseModel):
    """Base class of all settings: frozen; an unknown key or a value out of range is an error that names the key."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def _plain_name(value: str) -> str:
    """Return ``value`` if no path can escape through the name; raise ValueError otherwise."""
    if value in {"", ".", ".."} or any(mark in value for mark in "/\\:"):
        raise ValueError("becomes the name of a directory: without / \\ : and not . or ..")
    return value


#: A name that becomes the name of a directory.
PlainName = Annotated[str, AfterValidator(_plain_name)]


def RowOf(table: Mapping[str, Callable[..., Any]], setting: str) -> AfterValidator:
    """Return a validator: the value names a row of ``table`` or a function ``module:object``."""

    def check(name: str) -> str:
        try:
            found = resolve(name, table, setting)
        except UserError as error:
            raise ValueError(str(error).removeprefix(f"{setting}: ")) from None
        if not callable(found):
            raise ValueError(f"{name} is no function")
        return name

    return AfterValidator(check)
