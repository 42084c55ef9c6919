"""Settings of the prompts, the same in training, evaluation and experiments."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

SpecialTokens = Literal["keep", "escape"]


@dataclass(frozen=True)
class PromptSettings:
    """Everything that decides the prompt of a problem, besides problem and tokenizer.

    Attributes:
        suffix: text appended to the text or the last user message of every problem that lacks the suffix.
        system_prompt: system message of every problem without a system message; None: no system message.
        chat_template: ``auto``: the template of the tokenizer; ``never``: the template of the tokenizer, for chat
            messages only; the name of one of several templates of the tokenizer; or a file.
        chat_template_kwargs: variables of the chat template.
        special_tokens: ``escape``: special tokens in the text of a problem become plain text.
    """

    suffix: str = ""
    system_prompt: str | None = None
    chat_template: str = "auto"
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    special_tokens: SpecialTokens = "keep"
