"""Which problems are the same, however they are set: duplicates, and training problems that are evaluated on."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from functools import lru_cache

from attnrl.config.base import PROMPT_SUFFIX
from attnrl.grading.answers import normalize_answer
from attnrl.types import Problem

_THOUSANDS = re.compile(r"(?<=\d)(?:,\\!|\{,\})(?=\d)")
_SPACING = re.compile(
    r"\\(?:[,;:!>/ ]|(?:left|right|displaystyle|textstyle|quad|qquad|thinspace|limits)(?![a-zA-Z]))|~"
)
_FRACTION = re.compile(r"\\[dt]frac(?![a-zA-Z])")
_DELIMITERS = re.compile(r"\\[()\[\]]|\$")
# Punctuation before or between digits means something (.5 and 1.5 are not 5 and 15), and so do n! and f'.
_PUNCTUATION = re.compile(r"\.(?!\d)|(?<!\d)[,;:?\"`*_#]|[,;:?\"`*_#](?!\d)")
_ONE_SPELLING = str.maketrans({"’": "'", "‘": "'", "“": '"', "”": '"', "−": "-", "–": "-", "—": "-"})
_WHITESPACE = re.compile(r"(?<!\w)\s+|\s+(?!\w)")


@lru_cache(maxsize=1 << 16)  # duplicates and overlap look at each text several times
def normalize_text(text: str) -> str:
    """Spell the same problem the same way: case, whitespace, punctuation, LaTeX spacing and delimiters go.

    Operators, brackets and digits stay. Spaces stay only between words and numbers.
    """
    text = unicodedata.normalize("NFKC", text).translate(_ONE_SPELLING)
    text = _FRACTION.sub(r"\\frac", _SPACING.sub(" ", _THOUSANDS.sub(",", text)))
    text = _PUNCTUATION.sub(" ", _DELIMITERS.sub(" ", text).casefold())
    return _WHITESPACE.sub("", " ".join(text.split()))


#: Instructions that data sets append to their problems.
_SUFFIXES = (
    normalize_text(PROMPT_SUFFIX),
    normalize_text("Please reason step by step, and put your final answer within \\boxed{}."),
)


def question_key(problem: Problem, suffix: str = "") -> str:
    """The normalised text of a problem, or of the last user message of a chat, without the suffix."""
    prompt = problem.prompt
    if not isinstance(prompt, str):
        prompt = [message["content"] for message in prompt if message["role"] == "user"][-1]
    key = normalize_text(prompt)
    for ending in (normalize_text(suffix), *_SUFFIXES):
        key = key.removesuffix(ending).rstrip()
    return key


def answers_key(problem: Problem) -> tuple[str, ...]:
    """The accepted answers as the rules of grading spell them, in an order of their own."""
    return tuple(sorted({normalize_answer(answer) for answer in problem.answers}))


def find_overlap(training: Sequence[Problem], evaluation: Sequence[Problem], suffix: str = "") -> dict[int, Problem]:
    """Training problems (by place) that are also evaluation problems, each with one that it equals."""
    known = {question_key(problem, suffix): problem for problem in reversed(evaluation)}
    keys = (question_key(problem, suffix) for problem in training)
    return {place: known[key] for place, key in enumerate(keys) if key in known}
