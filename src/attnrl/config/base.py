"""What every configuration class shares: strict validation, common field types, the paper's prompt suffix."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

Seed = Annotated[int, Field(ge=-(2**63), lt=2**63)]  # the range of torch.manual_seed
Threads = Annotated[int, Field(ge=0, le=1024)]

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
