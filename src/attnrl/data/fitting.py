"""Fit problems to a tokenizer: wrap text as a chat, leave out prompts that are too long."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from attnrl.errors import UserError
from attnrl.tasks.base import MAX_REPEATED_DRAWS, ProblemDrawer
from attnrl.tokenization import encode_prompt
from attnrl.types import Problem


def as_chat(problem: Problem, tokenizer: PreTrainedTokenizerBase, chat_template: str = "auto") -> Problem:
    """Return ``problem`` with a text prompt wrapped as one user message, if the tokenizer has a chat template.

    Chat messages stay unchanged; with ``never``, text stays unchanged too.
    """
    if not isinstance(problem.prompt, str) or chat_template == "never" or tokenizer.chat_template is None:
        return problem
    return replace(problem, prompt=({"role": "user", "content": problem.prompt},))


def is_short_enough(problem: Problem, tokenizer: PreTrainedTokenizerBase, max_prompt_tokens: int) -> bool:
    """Return True if the rendered prompt has at most ``max_prompt_tokens`` tokens.

    Raises:
        UserError: the chat template fails, or the prompt has no tokens; names the problem.
    """
    try:
        return len(encode_prompt(tokenizer, problem, 2**62)) <= max_prompt_tokens
    except TemplateError as error:
        raise UserError(f"{problem.where}: the chat template refuses its messages ({error})") from None


def fit_problems(
    problems: Sequence[Problem],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_prompt_tokens: int,
    chat_template: str = "auto",
) -> list[Problem]:
    """Return the problems wrapped by :func:`as_chat`, without prompts of more than ``max_prompt_tokens`` tokens.

    Raises:
        UserError: the chat template fails, or a prompt has no tokens; names the problem.
    """
    chats = (as_chat(problem, tokenizer, chat_template) for problem in problems)
    return [problem for problem in chats if is_short_enough(problem, tokenizer, max_prompt_tokens)]


@dataclass(frozen=True)
class FittedTask:
    """A task with problems fitted to a tokenizer: problems with a prompt that is too long are drawn again."""

    task: ProblemDrawer
    tokenizer: PreTrainedTokenizerBase
    max_prompt_tokens: int
    chat_template: str = "auto"

    @property
    def name(self) -> str:
        """The name of the task."""
        return self.task.name

    def draw(self, rng: random.Random) -> Problem:
        """Return one problem with a prompt of at most ``max_prompt_tokens`` tokens.

        Raises:
            UserError: :data:`MAX_REPEATED_DRAWS` consecutive draws had longer prompts.
        """
        for _ in range(MAX_REPEATED_DRAWS):
            problem = as_chat(self.task.draw(rng), self.tokenizer, self.chat_template)
            if is_short_enough(problem, self.tokenizer, self.max_prompt_tokens):
                return problem
        limit = f"max_prompt_tokens = {self.max_prompt_tokens}"
        raise UserError(f"task {self.name}: {MAX_REPEATED_DRAWS:,} prompts in a row exceed {limit}")
