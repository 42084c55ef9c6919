"""Settings of the problems from files and data sets: the group ``data``."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from attnrl.config.base import PROMPT_SUFFIX, HomeText, Strict
from attnrl.prompts.settings import PromptSettings


class DataConfig(Strict):
    """Problems from files and Hugging Face data sets (docs/data.md); a procedural ``task`` needs none."""

    train: HomeText | tuple[HomeText, ...] | None = Field(
        None,
        description="training problems: a parquet, jsonl, json, csv or tsv file, a folder of files, a data set "
        "name:config@revision[split], or a list of several",
    )
    eval: HomeText | tuple[HomeText, ...] | None = Field(
        None, description="evaluation problems, in the same forms as data.train; null: no evaluation"
    )
    prompt_suffix: str = Field(
        PROMPT_SUFFIX, description="appended to the last user message of every problem that lacks the suffix"
    )
    columns: dict[Literal["prompt", "answer", "system", "id"], str] = Field(
        {},
        description="names of the columns, as in {prompt: Problem, answer: meta.gold} (a dot leads into a nested "
        "column); a column that is not named is found by the popular spellings",
    )
    system_prompt: str | None = Field(
        None, description="system message before every problem without a system message; null: none"
    )
    chat_template: HomeText = Field(
        "auto",
        description="auto: a text prompt becomes a user message if the model has a chat template; never: a text prompt "
        "stays plain text; the name of one of several templates of the model; or a file with another chat template "
        "(jinja)",
    )
    chat_template_kwargs: dict[str, Any] = Field(
        {}, description="arguments of the chat template, as in {enable_thinking: false}"
    )
    special_tokens: Literal["keep", "escape"] = Field(
        "keep",
        description="special tokens written inside the text of a problem. keep: they count as special tokens; escape: "
        "they are encoded as plain text",
    )
    deduplicate: bool = Field(
        True, description="leave out training problems that repeat another problem with the same answers"
    )
    overlap: Literal["drop", "warn"] = Field(
        "drop",
        description="training problems that are evaluation problems too. drop: left out of training; warn: kept, with "
        "a warning",
    )
    allow_changed: bool = Field(
        False, description="resume a run although its problems differ from the problems at the start of the run"
    )

    @property
    def prompts(self) -> PromptSettings:
        """Return the settings of the prompts."""
        return PromptSettings(
            suffix=self.prompt_suffix,
            system_prompt=self.system_prompt,
            chat_template=self.chat_template,
            chat_template_kwargs=self.chat_template_kwargs,
            special_tokens=self.special_tokens,
        )

    @field_validator("train", "eval", mode="before")
    @classmethod
    def _as_text(cls, value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            if not value:
                raise ValueError("names no file")
            return tuple(str(one) if isinstance(one, Path) else one for one in value)
        return str(value) if isinstance(value, Path) else value
