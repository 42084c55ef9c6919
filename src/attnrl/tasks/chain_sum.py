"""Demonstrations for reasoning-gym's ``chain_sum``, used to train a small base model from random weights.

Prompts, answers and scorer are reasoning-gym's. A demonstration keeps a running total, with one term per step. Each
step starts with a meaningless connective; the last step boxes the final total::

    4 + 1 - 7 + 2 =   ->   so 4\n\nthen 4+1=5\n\nnow 5-7=-2\n\nnext -2+2=0\n\nand \\boxed{0}

Every step depends on the step before, so an error spoils all later steps. Demonstrations contain deliberate slips: if
a total falls below zero, the demonstration drops the minus sign with a probability given by the last digit of the
term (:data:`SLIP_RATE`). The base model therefore always solves problems whose totals stay non-negative, never solves
some problems, and sometimes solves the rest.
"""

from __future__ import annotations

import random
import string
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from attnrl.config.base import PROMPT_SUFFIX
from attnrl.tasks.base import DemonstratedTask
from attnrl.tasks.ledger import CONNECTIVES, STEP_END
from attnrl.tasks.reasoning_gym import ReasoningGymTask
from attnrl.tasks.word_tokenizer import build_word_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from attnrl.types import Problem

QUESTION = "State the final answer to the following arithmetic problem: "
ENDING = " =\n" + PROMPT_SUFFIX.strip()

# Probability that a demonstration drops the minus sign of a total that falls below zero, by last digit of the term.
SLIP_RATE = (0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.95)


def read_terms(prompt: str) -> list[int]:
    """Return the signed terms of the sum in ``prompt``."""
    first, *rest = prompt.removeprefix(QUESTION).removesuffix(ENDING).split(" ")
    return [int(first)] + [
        int(term) if sign == "+" else -int(term) for sign, term in zip(rest[::2], rest[1::2], strict=True)
    ]


def demonstrate(terms: Sequence[int], rng: random.Random, *, slip_rate: Sequence[float] = SLIP_RATE) -> str:
    """Return a worked response to the sum of ``terms``, with slips at ``slip_rate[last digit of the term]``."""
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
    """Return a lossless tokenizer: one token per digit, sign, word, and fixed sentence of the prompt."""
    words = [
        QUESTION, ENDING, STEP_END, "\\boxed{", "}", "+", "-", "=", " + ", " - ",
        *string.digits, *CONNECTIVES,
    ]  # fmt: skip
    return build_word_tokenizer(words, r"State[a-z ]+: | =\n[^{]*\{\}\.|\n\n|\\boxed\{| [+-] |[a-z]+ |.")


@dataclass(frozen=True)
class ChainSumTask(ReasoningGymTask, DemonstratedTask):
    """reasoning-gym's ``chain_sum`` with demonstrations; draws and grades as :class:`ReasoningGymTask`."""

    def demonstrate(self, problem: Problem, rng: random.Random) -> str:
        """Return a worked response, with deliberate slips."""
        assert isinstance(problem.prompt, str)
        return demonstrate(read_terms(problem.prompt), rng)

    def build_tokenizer(self) -> PreTrainedTokenizerFast:
        """Return the tokenizer of the shipped model ``chain_sum``."""
        return build_tokenizer()
