"""Steps of a response: contiguous token ranges that cover the response, and the splitters that find the ranges.

A new splitter is one function ``(pieces, settings) -> Steps``. Select the function by
``method.steps.splitter=module:object``, or add a row to :data:`SPLITTERS`::

    def one_step_per_sentence(pieces, settings):
        "Start a step after every token that ends with a full stop."
        ends = [token + 1 for token, piece in enumerate(pieces[:-1]) if piece.endswith(".")]
        return Steps((0, *ends) if pieces else (), len(pieces))
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

THINK_BEGIN, THINK_END = "<think>", "</think>"


@dataclass(frozen=True)
class Steps:
    """The steps of one response, as token offsets counted from the response's first token.

    Attributes:
        starts: first token of each step, strictly increasing from 0; empty for an empty response.
        length: number of tokens T of the response.
        think_end: index of the step with the end-of-thinking marker; None without a marker.

    Raises:
        ValueError: the steps do not cover the response in order, or ``think_end`` is not the index of a step.
    """

    starts: tuple[int, ...]
    length: int
    think_end: int | None = None

    def __post_init__(self) -> None:
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
        """Return the number of tokens of each step."""
        return tuple(end - start for start, end in self.ranges())

    def step_of(self, token: int) -> int:
        """Return the index of the step of the token at offset ``token``.

        Raises:
            IndexError: ``token`` is outside the response.
        """
        if not 0 <= token < self.length:
            raise IndexError(f"token {token} is outside a response of {self.length} tokens")
        return bisect_right(self.starts, token) - 1


@dataclass(frozen=True)
class StepSettings:
    """Settings of a splitter (``method.steps``).

    Attributes:
        delimiters: regular expressions of step delimiters, in order of preference.
        chunk_tokens: tokens of a step, for a response not split by any delimiter.
        think_marker: the text at the end of the thinking part of a response.

    Raises:
        ValueError: ``chunk_tokens`` below 1, an empty ``think_marker``, or a delimiter that is an invalid regular
            expression or matches empty text.
    """

    delimiters: tuple[str, ...] = (r"\n{2,}", r"\n+")
    chunk_tokens: int = 64
    think_marker: str = THINK_END

    def __post_init__(self) -> None:
        if self.chunk_tokens < 1:
            raise ValueError(f"chunk_tokens must be at least 1, got {self.chunk_tokens}")
        if not self.think_marker:
            raise ValueError("think_marker must not be empty")
        for delimiter in self.delimiters:
            try:
                matches_nothing = re.search(delimiter, "") is not None
            except re.error as error:
                raise ValueError(f"delimiters: {delimiter!r} is no regular expression ({error})") from None
            if matches_nothing:
                raise ValueError(f"delimiters: {delimiter!r} matches empty text")


#: ``(pieces, settings) -> Steps``, see :func:`split_steps`.
Splitter = Callable[[Sequence[str], StepSettings], Steps]


def split_steps(pieces: Sequence[str], settings: StepSettings = StepSettings()) -> Steps:
    """Split a response into steps by the response's text, independent of the tokenization of delimiters.

    A step ends with the last token of a delimiter. The first delimiter with at least two steps is used; without such a
    delimiter, the response is split into chunks of ``chunk_tokens`` tokens. A delimiter at the start or the end of the
    text starts no step.

    Args:
        pieces: the text added by each token; ``"".join(pieces)`` is the response. A piece may be ``""``
            (part of a character, or a special token without text).
        settings: delimiters, chunk size and end-of-thinking marker; the first occurrence of the marker in the text
            counts, for any number of tokens in the marker.
    """
    text, length = "".join(pieces), len(pieces)
    text_ends = list(accumulate(len(piece) for piece in pieces))
    for delimiter in settings.delimiters:
        starts = _starts_after(delimiter, text, text_ends)
        if len(starts) > 1:
            break
    else:
        starts = tuple(range(0, length, settings.chunk_tokens))
    steps = Steps(starts, length)

    marker = text.find(settings.think_marker)
    if marker < 0:
        return steps
    last_token = _token_of(marker + len(settings.think_marker) - 1, text_ends)
    return Steps(starts, length, think_end=steps.step_of(last_token))


SPLITTERS: dict[str, Splitter] = {"delimiters": split_steps}


def _token_of(character: int, text_ends: Sequence[int]) -> int:
    """Return the token of the character at an index, from the text length after each token."""
    return bisect_right(text_ends, character)


def _starts_after(delimiter: str, text: str, text_ends: Sequence[int]) -> tuple[int, ...]:
    """Return token 0 and each first token after a delimiter with text on both sides."""
    if not text_ends:
        return ()
    inner = (run for run in re.finditer(delimiter, text) if run.start() > 0 and run.end() < len(text))
    # A set: one token may contain the ends of several delimiters. The token after a delimiter may lie past the
    # response, if the last token contains both text and delimiter.
    after = {_token_of(run.end() - 1, text_ends) + 1 for run in inner}
    return tuple(sorted({0} | {token for token in after if token < len(text_ends)}))
