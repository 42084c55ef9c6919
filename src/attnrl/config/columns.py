"""Popular names of the columns of data sets, in order of preference. Case, spaces and punctuation do not count.

A dot leads into a nested column. :mod:`attnrl.data.columns` chooses among the columns of a source.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache

from attnrl.errors import UserError
from attnrl.utils.near import did_you_mean

PROMPT = (
    "prompt",
    "problem",
    "question",
    "messages",
    "conversations",
    "conversation",
    "query",
    "instruction",
    "input",
    "problem_statement",
    "question_text",
    "user_prompt",
)
ANSWER = (
    "reward_model.ground_truth",
    "reward_spec.ground_truth",
    "verification_info.ground_truth",
    "answer",
    "final_answer",
    "expected_answer",
    "ground_truth",
    "reference_answer",
    "correct_answer",
    "gold_answer",
    "golden_answer",
    "golden_answers",
    "target_answer",
    "true_answer",
    "gold",
    "answers",
    "solution",
)
#: Names with other meanings too: taken as the true answer of a source without a column of :data:`ANSWER`.
WEAK_ANSWER = ("label", "target", "ideal", "output", "response", "completion")
SYSTEM = ("system", "system_prompt", "system_message")
#: The text after an ``instruction`` (Alpaca).
INSTRUCTION, INSTRUCTION_INPUT = "instruction", "input"
#: The response to be graded by ``attnrl grade``.
RESPONSE = ("response", "completion", "output", "generation", "prediction", "generated_text", "model_output")


#: The columns that a setting can name.
KEYS = ("prompt", "answer", "system", "id")
#: The columns that the option ``--columns`` of ``attnrl grade`` can name.
GRADE_KEYS = ("response", "answer", "prompt")


def parse_columns(text: str | None, keys: Sequence[str] = KEYS) -> dict[str, str]:
    """Return the columns named by the option ``--columns``: ``prompt=Problem,answer=meta.gold``.

    Raises:
        UserError: an entry has another form, an unknown key, or a key is given twice.
    """
    columns: dict[str, str] = {}
    for entry in text.split(",") if text is not None else []:
        key, equals, name = (part.strip() for part in entry.partition("="))
        if not equals or not name:
            raise UserError(f"--columns {text}: expected KEY=COLUMN,... with the keys {', '.join(keys)}")
        if key not in keys:
            raise UserError(
                f"--columns {text}: unknown key {key!r} (known: {', '.join(keys)}){did_you_mean(key, keys)}"
            )
        if key in columns:
            raise UserError(f"--columns {text}: {key} is given twice")
        columns[key] = name
    return columns


@lru_cache(maxsize=4096)  # the names of the columns of every row
def spelling_of(name: str) -> str:
    """Return a column name in lower case without spaces and punctuation: ``finalanswer`` for ``Final Answer``."""
    return re.sub(r"[\W_]+", "", name.casefold())


def find_columns(names: Iterable[str], spellings: Sequence[str]) -> list[str]:
    """Return the names with a spelling in ``spellings``, in the order of ``spellings``; equal spellings come first."""
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(spelling_of(name), []).append(name)
    ordered: list[str] = []
    for spelling in spellings:
        alike = found.get(spelling_of(spelling), [])
        ordered += [name for name in alike if name == spelling] + [name for name in alike if name != spelling]
    return ordered
