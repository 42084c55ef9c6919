"""Demonstrations of reasoning-gym's ``chain_sum``, to train a small base model for it from nothing.

The task is wholly reasoning-gym's: its prompts, its answers and its scorer. A demonstration keeps a running total,
one term a step, each step opened by a connective that means nothing, and boxes the last total::

    4 + 1 - 7 + 2 =   ->   so 4\n\nthen 4+1=5\n\nnow 5-7=-2\n\nnext -2+2=0\n\nand \\boxed{0}

There is nothing to plan and nothing to look up but the next term: each step needs the one before, and an error
spoils all that follow. Demonstrations slip on purpose where a total falls below zero: they lose its minus sign, at
a rate decided by the term (:data:`SLIP_RATE`). Problems whose total stays on one side of zero are thus always
solved by the base model, some never, and most now and then.
"""

from __future__ import annotations

import random
import string
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from attnrl.config.base import PROMPT_SUFFIX
from attnrl.tasks.ledger import CONNECTIVES, STEP_END
from attnrl.tasks.word_tokenizer import build_word_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from attnrl.tasks.registry import DrawnTask
    from attnrl.types import Problem

QUESTION = "State the final answer to the following arithmetic problem: "
ENDING = " =\n" + PROMPT_SUFFIX.strip()

# Chance that a demonstration loses the minus sign of a total that falls below zero, by the last digit of the term.
SLIP_RATE = (0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.95)


def read_terms(prompt: str) -> list[int]:
    """The signed terms of a prompt's sum."""
    first, *rest = prompt.removeprefix(QUESTION).removesuffix(ENDING).split(" ")
    return [int(first)] + [
        int(term) if sign == "+" else -int(term) for sign, term in zip(rest[::2], rest[1::2], strict=True)
    ]


def demonstrate(terms: Sequence[int], rng: random.Random, *, slip_rate: Sequence[float] = SLIP_RATE) -> str:
    """A worked response to the sum of ``terms``, which loses minus signs at ``slip_rate[last digit of the term]``."""
    total = terms[0]
    steps = [str(total)]
    for term in terms[1:]:
        after = total + term
        if total >= 0 > after and rng.random() < slip_rate[-term % 10]:
            after = -after
        steps.append(f"{total}{term:+d}={after}")
        total = after
    steps.append(f"\\boxed{{{total}}}")
    return STEP_END.join(rng.choice(CONNECTIVES) + step for step in steps)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer that gives one token to a digit, a sign, a word and the sentence of the prompt; it loses no text."""
    words = [
        QUESTION, ENDING, STEP_END, "\\boxed{", "}", "+", "-", "=", " + ", " - ",
        *string.digits, *CONNECTIVES,
    ]  # fmt: skip
    return build_word_tokenizer(words, r"State[a-z ]+: | =\n[^{]*\{\}\.|\n\n|\\boxed\{| [+-] |[a-z]+ |.")


@dataclass(frozen=True)
class ChainSumTask:
    """reasoning-gym's task with its parameters, demonstrated."""

    task: DrawnTask

    @property
    def name(self) -> str:
        """The task's."""
        return self.task.name

    def draw(self, rng: random.Random) -> Problem:
        """Draw one problem."""
        return self.task.draw(rng)

    def demonstrate(self, problem: Problem, rng: random.Random) -> str:
        """Write one demonstration."""
        assert isinstance(problem.prompt, str)
        return demonstrate(read_terms(problem.prompt), rng)

    def build_tokenizer(self) -> PreTrainedTokenizerFast:
        """The tokenizer of the shipped model."""
        return build_tokenizer()
