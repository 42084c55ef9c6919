"""Cutting a response into steps: contiguous token ranges that cover it."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise


@dataclass(frozen=True)
class Steps:
    """The steps of one response, as token offsets counted from the response's first token.

    Attributes:
        starts: first token of each step, strictly increasing from 0; empty for an empty response.
        length: number of tokens T of the response.
        think_end: the step that holds the end-of-thinking marker, or None.

    Raises:
        ValueError: offsets that do not cover the response in order, or ``think_end`` that is no step.
    """

    starts: tuple[int, ...]
    length: int
    think_end: int | None = None

    def __post_init__(self) -> None:
        """Check the attributes."""
        if self.length < 0:
            raise ValueError(f"length must not be negative, got {self.length}")
        edges = [*self.starts, self.length]
        if edges[0] != 0:
            raise ValueError(f"the first step must start at token 0, got starts {self.starts}")
        if any(start >= end for start, end in pairwise(edges)):
            raise ValueError(f"starts must increase and stay below length {self.length}, got {self.starts}")
        if self.think_end is not None and not 0 <= self.think_end < len(self.starts):
            raise ValueError(f"think_end {self.think_end} is no step of {len(self.starts)}")

    def __len__(self) -> int:
        """Return the number of steps S."""
        return len(self.starts)

    def ranges(self) -> list[tuple[int, int]]:
        """Return ``(start, end)`` of each step, end exclusive."""
        return list(zip(self.starts, (*self.starts[1:], self.length), strict=False))

    @property
    def lengths(self) -> tuple[int, ...]:
        """Number of tokens of each step."""
        return tuple(end - start for start, end in self.ranges())

    def step_of(self, token: int) -> int:
        """Return the step that token offset ``token`` belongs to.

        Raises:
            IndexError: ``token`` is outside the response.
        """
        if not 0 <= token < self.length:
            raise IndexError(f"token {token} is outside a response of {self.length} tokens")
        return bisect_right(self.starts, token) - 1


def split_steps(pieces: Sequence[str], *, chunk_tokens: int = 64, think_marker: str = "</think>") -> Steps:
    r"""Cut a response into steps by its text, whatever the tokenizer does with blank lines.

    A step ends with the token in which a run of two or more newlines ends. If that gives fewer than two
    steps, single newlines count; if that does too, the response is cut into fixed-size chunks. A delimiter
    with no text before it or after it separates nothing and makes no step.

    Args:
        pieces: the text that each token adds, so that ``"".join(pieces)`` is the response. May be ``""``
            (part of a character, or a special token that prints nothing).
        chunk_tokens: size of the fixed chunks.
        think_marker: text that ends the thinking part; its first occurrence in the whole text counts,
            however many tokens spell it.

    Raises:
        ValueError: ``chunk_tokens`` below 1 or an empty ``think_marker``.
    """
    if chunk_tokens < 1:
        raise ValueError(f"chunk_tokens must be at least 1, got {chunk_tokens}")
    if not think_marker:
        raise ValueError("think_marker must not be empty")
    text, length = "".join(pieces), len(pieces)
    text_ends = list(accumulate(len(piece) for piece in pieces))

    starts = _starts_after(r"\n{2,}", text, text_ends)
    if len(starts) < 2:
        starts = _starts_after(r"\n+", text, text_ends)
    if len(starts) < 2:
        starts = tuple(range(0, length, chunk_tokens))
    steps = Steps(starts, length)

    marker = text.find(think_marker)
    if marker < 0:
        return steps
    last_token = _token_of(marker + len(think_marker) - 1, text_ends)
    return Steps(starts, length, think_end=steps.step_of(last_token))


def _token_of(character: int, text_ends: Sequence[int]) -> int:
    """Return the token that adds the given character; ``text_ends`` is the text length after each token."""
    return bisect_right(text_ends, character)


def _starts_after(delimiter: str, text: str, text_ends: Sequence[int]) -> tuple[int, ...]:
    """Return token 0 and each token that follows the end of a delimiter with text on both sides."""
    if not text_ends:
        return ()
    inner = (run for run in re.finditer(delimiter, text) if run.start() > 0 and run.end() < len(text))
    # A set, because one token may hold the ends of several delimiters. The token after a delimiter may lie
    # past the response, when text and delimiter share the last token.
    after = {_token_of(run.end() - 1, text_ends) + 1 for run in inner}
    return tuple(sorted({0} | {token for token in after if token < len(text_ends)}))
