"""Problems as one model's tokenizer is to see them: text as a chat message, and no prompt too long."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from attnrl.errors import UserError
from attnrl.tasks.registry import TRIES, DrawnTask
from attnrl.tokenization import encode_prompt
from attnrl.types import Problem

ChatTemplate = Literal["auto", "never"]


def as_chat(problem: Problem, tokenizer: PreTrainedTokenizerBase, chat_template: ChatTemplate = "auto") -> Problem:
    """A text prompt as one user message, with ``auto`` where the tokenizer has a chat template.

    Chat messages, and text with ``never``, stay as they are.
    """
    if not isinstance(problem.prompt, str) or chat_template == "never" or tokenizer.chat_template is None:
        return problem
    return replace(problem, prompt=({"role": "user", "content": problem.prompt},))


def is_short_enough(problem: Problem, tokenizer: PreTrainedTokenizerBase, max_prompt_tokens: int) -> bool:
    """Whether the rendered prompt has at most ``max_prompt_tokens`` tokens.

    Raises:
        UserError: it cannot be rendered, or has no tokens; the problem is named.
    """
    try:
        return len(encode_prompt(tokenizer, problem, 2**62)) <= max_prompt_tokens
    except TemplateError as error:
        raise UserError(f"problem {problem.id}: the chat template refuses its messages ({error})") from None


def fit_problems(
    problems: Sequence[Problem],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_prompt_tokens: int,
    chat_template: ChatTemplate = "auto",
) -> list[Problem]:
    """The problems :func:`as_chat`, without those whose prompt is too long.

    Raises:
        UserError: a prompt that cannot be rendered or has no tokens; the problem is named.
    """
    chats = (as_chat(problem, tokenizer, chat_template) for problem in problems)
    return [problem for problem in chats if is_short_enough(problem, tokenizer, max_prompt_tokens)]


@dataclass(frozen=True)
class FittedTask:
    """A drawn task whose problems are fitted to a tokenizer: it draws again what is too long."""

    task: DrawnTask
    tokenizer: PreTrainedTokenizerBase
    max_prompt_tokens: int
    chat_template: ChatTemplate = "auto"

    @property
    def name(self) -> str:
        """The task's."""
        return self.task.name

    def draw(self, rng: random.Random) -> Problem:
        """Draw one problem whose prompt is short enough.

        Raises:
            UserError: the task has hardly any.
        """
        for _ in range(TRIES):
            problem = as_chat(self.task.draw(rng), self.tokenizer, self.chat_template)
            if is_short_enough(problem, self.tokenizer, self.max_prompt_tokens):
                return problem
        raise UserError(f"task {self.name}: hardly a prompt has at most max_prompt_tokens = {self.max_prompt_tokens}")
