"""The one record every task hands to the loop."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Chat = tuple[Mapping[str, str], ...]


@dataclass(frozen=True)
class Problem:
    """One problem to reason about.

    Attributes:
        id: unique within its data set; never shared between problems.
        prompt: text given to the model as it is, or chat messages (``role``, ``content``) to be rendered with
            the tokenizer's chat template.
        answers: the accepted answers, compared with what the response puts in ``\\boxed{}``.
        source: where the problem comes from (a task name or a row's ``data_source``).
        info: whatever else the task knows, kept for study (for ledgers: the true dependency graph).
    """

    id: str
    prompt: str | Chat
    answers: tuple[str, ...]
    source: str = ""
    info: Mapping[str, Any] = field(default_factory=dict)
