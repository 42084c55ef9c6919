"""Load problems from data files and data sets: read, assign ids, drop duplicates, fit to a tokenizer."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from transformers import PreTrainedTokenizerBase

from attnrl.config.base import PROMPT_SUFFIX
from attnrl.data.files import Row
from attnrl.data.fitting import fit_problems
from attnrl.data.overlap import answers_key, find_overlap, question_key
from attnrl.data.rows import (
    other_columns,
    read_answers,
    read_prompt,
    read_source_name,
    with_suffix,
)
from attnrl.data.sources import read_source, source_name
from attnrl.errors import UserError
from attnrl.grading.golds import UnusableGold
from attnrl.types import Problem

MAX_NAMED = 3  # problems named in a note


@dataclass(frozen=True)
class ProblemSet:
    """Problems of one or more sources, with notes.

    Attributes:
        name: name of the sources, for messages.
        problems: the problems, in the order of the rows.
        notes: remarks of one line each: problems left out, conflicts, unusable true answers.
    """

    name: str
    problems: tuple[Problem, ...]
    notes: tuple[str, ...] = ()


def load_problems(source: str | Path | Sequence[str], *, prompt_suffix: str = PROMPT_SUFFIX) -> list[Problem]:
    """Return the problems of :func:`load_problem_set`.

    Raises:
        UserError: a source or row is invalid; names the source and the row.
    """
    return list(load_problem_set(source, prompt_suffix=prompt_suffix).problems)


def load_problem_set(source: str | Path | Sequence[str], *, prompt_suffix: str = PROMPT_SUFFIX) -> ProblemSet:
    """Read problems from files or data sets; see :mod:`attnrl.data.rows` for the formats of a row.

    ``prompt_suffix`` is appended to the text or the last user message, unless already present. Rows with an empty true
    answer are left out. Ids do not depend on the position of a row: see :func:`problem_ids`.

    Raises:
        UserError: a source or row is invalid (names source and row), or no row has a true answer.
    """
    sources = [source] if isinstance(source, (str, Path)) else list(source)
    name = f"data {sources[0]}" + (f" and {len(sources) - 1} more" if len(sources) > 1 else "")
    problems = [_to_problem(row, source_name(one)) for one in sources for row in read_source(one)]
    problems = [replace(p, id=new) for p, new in zip(problems, problem_ids(problems), strict=True)]
    gradable = [
        replace(problem, prompt=with_suffix(problem.prompt, prompt_suffix)) for problem in problems if problem.answers
    ]
    if not gradable:
        raise UserError(f"{name}: the true answer of every row is empty")
    notes = []
    if unanswered := [problem for problem in problems if not problem.answers]:
        first = _some([_row(problem.place) for problem in unanswered])
        notes.append(f"{name}: left out {_count(len(unanswered), 'row')} without a true answer ({first})")
    return ProblemSet(name, tuple(gradable), tuple(notes))


def _to_problem(row: Row, default_source: str) -> Problem:
    if not isinstance(row.fields, Mapping):
        raise UserError(f"{row.where}: expected an object, found {type(row.fields).__name__}")
    try:
        return Problem(
            id="",
            prompt=read_prompt(row.fields, row.where),
            answers=read_answers(row.fields, row.where),
            source=read_source_name(row.fields, default_source, row.where),
            info=other_columns(row.fields),
            place=row.where,
        )
    except RecursionError:
        raise UserError(f"{row.where}: nested too deep") from None


def problem_ids(problems: Sequence[Problem]) -> list[str]:
    """Return a distinct id per problem: the source, and a hash of source, prompt and answers.

    Ids are stable when rows are added or removed. Repeated problems get ``-2``, ``-3``, ... appended.
    """
    seen: Counter[str] = Counter()
    ids = []
    for problem in problems:
        prompt = problem.prompt if isinstance(problem.prompt, str) else [dict(message) for message in problem.prompt]
        content = json.dumps([problem.source, prompt, problem.answers], sort_keys=True)
        name = f"{problem.source}:{hashlib.sha256(content.encode()).hexdigest()[:16]}"
        seen[name] += 1
        ids.append(name if seen[name] == 1 else f"{name}-{seen[name]}")
    return ids


def drop_duplicates(problems: Sequence[Problem], suffix: str = "") -> list[Problem]:
    """Return the problems without duplicates (equal normalised prompt and answers); the first of equals is kept."""
    kept: dict[Hashable, Problem] = {}
    for problem in problems:
        # Chats with different system prompts or examples are different problems.
        others = () if isinstance(problem.prompt, str) else tuple(m["content"] for m in problem.prompt[:-1])
        kept.setdefault((question_key(problem, suffix), others, answers_key(problem)), problem)
    return list(kept.values())


def leave_out_duplicates(data: ProblemSet, suffix: str = "") -> ProblemSet:
    """Apply :func:`drop_duplicates` and add a note with the number of duplicates."""
    kept = tuple(drop_duplicates(data.problems, suffix))
    if len(kept) == len(data.problems):
        return data
    note = f"{data.name}: left out {_count(len(data.problems) - len(kept), 'duplicate')} of other problems"
    return replace(data, problems=kept, notes=(*data.notes, note))


def find_conflicts(problems: Sequence[Problem], suffix: str = "") -> list[list[Problem]]:
    """Return groups of problems with equal normalised questions and no common accepted answer."""
    groups: dict[str, list[Problem]] = {}
    for problem in problems:
        groups.setdefault(question_key(problem, suffix), []).append(problem)
    repeated = [group for group in groups.values() if len(group) > 1]
    return [group for group in repeated if not set.intersection(*(set(answers_key(one)) for one in group))]


def note_conflicts(data: ProblemSet, suffix: str = "") -> ProblemSet:
    """Add a note on the groups of :func:`find_conflicts`. No problem is dropped: the correct answer is unknown."""
    conflicts = find_conflicts(data.problems, suffix)
    if not conflicts:
        return data
    rows = _some([" and ".join(_row(problem.place) for problem in group) for group in conflicts])
    note = f"{data.name}: {_count(len(conflicts), 'problem')} with conflicting answers ({rows})"
    return replace(data, notes=(*data.notes, note))


def fit_problem_set(
    data: ProblemSet,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_prompt_tokens: int,
    chat_template: str = "auto",
) -> ProblemSet:
    """Apply :func:`attnrl.data.fitting.fit_problems` and add a note with the number of problems left out.

    Raises:
        UserError: a prompt cannot be rendered or has no tokens, or every prompt is too long.
    """
    fitting = fit_problems(data.problems, tokenizer, max_prompt_tokens=max_prompt_tokens, chat_template=chat_template)
    dropped = len(data.problems) - len(fitting)
    if not fitting:
        raise UserError(f"{data.name}: every prompt has more than max_prompt_tokens = {max_prompt_tokens} tokens")
    note = f"{data.name}: left out {_count(dropped, 'prompt')} of more than {max_prompt_tokens} tokens"
    return replace(data, problems=tuple(fitting), notes=(*data.notes, *([note] if dropped else [])))


def note_unusable(data: ProblemSet, unusable: Sequence[UnusableGold]) -> ProblemSet:
    """Add a note on the rows without a usable true answer."""
    if not unusable:
        return data
    found = [f"{_row(data.problems[gold.row].place)}: {gold.answers[0][:60]!r} {gold.reason}" for gold in unusable]
    rows = _some(found, named=20)
    note = f"{data.name}: {_count(len(unusable), 'unusable true answer')} ({rows})"
    return replace(data, notes=(*data.notes, note))


def leave_out_overlap(
    training: ProblemSet, evaluation: Sequence[Problem], *, overlap: Literal["drop", "warn"], suffix: str = ""
) -> ProblemSet:
    """Drop the training problems equal to an evaluation problem, or only add a note with ``overlap="warn"``.

    Raises:
        UserError: no training problem is left.
    """
    found = find_overlap(training.problems, evaluation, suffix)
    if not found:
        return training
    named = _some([f"{training.problems[place].id} is {other.id}" for place, other in found.items()])
    if overlap == "warn":
        note = f"{training.name}: trains on {_count(len(found), 'evaluation problem')} ({named})"
        return replace(training, notes=(*training.notes, note))
    kept = tuple(problem for place, problem in enumerate(training.problems) if place not in found)
    if not kept:
        raise UserError(
            f"{training.name}: every training problem is an evaluation problem (to train anyway: data.overlap=warn)"
        )
    note = f"{training.name}: left out {_count(len(found), 'evaluation problem')} ({named})"
    return replace(training, problems=kept, notes=(*training.notes, note))


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _row(place: str) -> str:
    """Return a place without the folder of the file: ``train.jsonl line 3``."""
    source, _, row = place.rpartition(", ")
    return f"{Path(re.sub('^data (file|set) ', '', source)).name} {row}"


def _some(names: Sequence[str], named: int = MAX_NAMED) -> str:
    return ", ".join(names[:named]) + (", ..." if len(names) > named else "")
