"""Problems from data files and Hugging Face data sets: read, named, rid of duplicates, fitted to a tokenizer."""

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
from attnrl.data.fitting import ChatTemplate, fit_problems
from attnrl.data.overlap import answers_key, find_overlap, question_key
from attnrl.data.rows import (
    other_columns,
    read_answers,
    read_prompt,
    read_source_name,
    with_suffix,
)
from attnrl.data.sources import Row, read_source, source_name
from attnrl.errors import UserError
from attnrl.grading.golds import UnusableGold
from attnrl.types import Problem

NAMED = 3  # problems that a note names


@dataclass(frozen=True)
class ProblemSet:
    """Problems of one or more sources, and what was left out of them.

    Attributes:
        name: of the sources, for messages.
        problems: in the order of their rows.
        places: the file and row of each problem, by its id.
        notes: what was left out and what is odd, in a line each; none if there is nothing to tell.
    """

    name: str
    problems: tuple[Problem, ...]
    places: Mapping[str, str]
    notes: tuple[str, ...] = ()


def load_problems(source: str | Path | Sequence[str], *, prompt_suffix: str = PROMPT_SUFFIX) -> list[Problem]:
    """The problems of :func:`load_problem_set`.

    Raises:
        UserError: naming the source and row.
    """
    return list(load_problem_set(source, prompt_suffix=prompt_suffix).problems)


def load_problem_set(source: str | Path | Sequence[str], *, prompt_suffix: str = PROMPT_SUFFIX) -> ProblemSet:
    """Read problems from files or data sets; see :mod:`attnrl.data.rows` for the formats of a row.

    ``prompt_suffix`` is appended to each last user message that has not got it. A row whose true answer is empty
    cannot be graded and is left out. Ids do not depend on place: see :func:`problem_ids`.

    Raises:
        UserError: a source or row that will not do (it is named), or no row has a true answer.
    """
    sources = [source] if isinstance(source, (str, Path)) else list(source)
    name = f"data {sources[0]}" + (f" and {len(sources) - 1} more" if len(sources) > 1 else "")
    rows: list[Row] = []
    problems: list[Problem] = []
    for one in sources:
        for row in read_source(one):
            rows.append(row)
            problems.append(_to_problem(row, source_name(one)))
    problems = [replace(p, id=new) for p, new in zip(problems, problem_ids(problems), strict=True)]
    places = {problem.id: row.where for problem, row in zip(problems, rows, strict=True)}
    gradable = [
        replace(problem, prompt=with_suffix(problem.prompt, prompt_suffix)) for problem in problems if problem.answers
    ]
    if not gradable:
        raise UserError(f"{name}: the true answer of every row is empty")
    notes = []
    if unanswered := [problem for problem in problems if not problem.answers]:
        first = _some([_row(places[problem.id]) for problem in unanswered])
        notes.append(f"{name}: left out {_count(len(unanswered), 'row')} without a true answer ({first})")
    return ProblemSet(name, tuple(gradable), places, tuple(notes))


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
        )
    except RecursionError:
        raise UserError(f"{row.where}: nested too deep") from None


def problem_ids(problems: Sequence[Problem]) -> list[str]:
    """An id for each problem: its source and a hash of source, prompt and answers, so that rows may come and go.

    The second and later of problems that agree in all three get ``-2``, ``-3``, ... appended: no two ids are equal.
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
    """The first of all problems with the same normalised prompt and answers."""
    kept: dict[Hashable, Problem] = {}
    for problem in problems:
        # What a chat says beside the question (a system prompt, examples) makes another problem of it.
        others = () if isinstance(problem.prompt, str) else tuple(m["content"] for m in problem.prompt[:-1])
        kept.setdefault((question_key(problem, suffix), others, answers_key(problem)), problem)
    return list(kept.values())


def leave_out_duplicates(data: ProblemSet, suffix: str = "") -> ProblemSet:
    """:func:`drop_duplicates` with a note of how many were left out."""
    kept = tuple(drop_duplicates(data.problems, suffix))
    if len(kept) == len(data.problems):
        return data
    note = f"{data.name}: left out {_count(len(data.problems) - len(kept), 'duplicate')} of other problems"
    return replace(data, problems=kept, notes=(*data.notes, note))


def find_conflicts(problems: Sequence[Problem], suffix: str = "") -> list[list[Problem]]:
    """Groups of problems with the same normalised question and no accepted answer that all of them share."""
    groups: dict[str, list[Problem]] = {}
    for problem in problems:
        groups.setdefault(question_key(problem, suffix), []).append(problem)
    repeated = [group for group in groups.values() if len(group) > 1]
    return [group for group in repeated if not set.intersection(*(set(answers_key(one)) for one in group))]


def note_conflicts(data: ProblemSet, suffix: str = "") -> ProblemSet:
    """A note of :func:`find_conflicts`; the problems stay, since nobody knows which of them is right."""
    conflicts = find_conflicts(data.problems, suffix)
    if not conflicts:
        return data
    rows = _some([" and ".join(_row(data.places[problem.id]) for problem in group) for group in conflicts])
    note = f"{data.name}: {_count(len(conflicts), 'problem')} with other answers in other rows ({rows})"
    return replace(data, notes=(*data.notes, note))


def fit_problem_set(
    data: ProblemSet,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_prompt_tokens: int,
    chat_template: ChatTemplate = "auto",
) -> ProblemSet:
    """:func:`attnrl.data.fitting.fit_problems` with a note of how many were left out.

    Raises:
        UserError: a prompt that cannot be rendered or has no tokens, or none is short enough.
    """
    fitting = fit_problems(data.problems, tokenizer, max_prompt_tokens=max_prompt_tokens, chat_template=chat_template)
    dropped = len(data.problems) - len(fitting)
    if not fitting:
        raise UserError(f"{data.name}: every prompt has more than max_prompt_tokens = {max_prompt_tokens} tokens")
    note = f"{data.name}: left out {_count(dropped, 'prompt')} of more than {max_prompt_tokens} tokens"
    return replace(data, problems=tuple(fitting), notes=(*data.notes, *([note] if dropped else [])))


def note_unusable(data: ProblemSet, unusable: Sequence[UnusableGold]) -> ProblemSet:
    """A note of the rows whose true answer no response can be compared with."""
    if not unusable:
        return data
    found = [f"{_row(data.places[gold.id])}: {gold.answers[0][:60]!r} {gold.reason}" for gold in unusable]
    rows = _some(found, named=20)
    note = f"{data.name}: {_count(len(unusable), 'true answer')} that no response can match ({rows})"
    return replace(data, notes=(*data.notes, note))


def leave_out_overlap(
    training: ProblemSet, evaluation: Sequence[Problem], *, overlap: Literal["drop", "warn"], suffix: str = ""
) -> ProblemSet:
    """Drop or only note the training problems that are evaluation problems too, however they are set.

    Raises:
        UserError: none is left.
    """
    found = find_overlap(training.problems, evaluation, suffix)
    if not found:
        return training
    named = _some([f"{training.problems[place].id} is {other.id}" for place, other in found.items()])
    if overlap == "warn":
        note = f"{training.name}: trains on {_count(len(found), 'problem')} that it is evaluated on ({named})"
        return replace(training, notes=(*training.notes, note))
    kept = tuple(problem for place, problem in enumerate(training.problems) if place not in found)
    if not kept:
        raise UserError(
            f"{training.name}: every training problem is an evaluation problem too (data.overlap=warn trains on them)"
        )
    note = f"{training.name}: left out {_count(len(found), 'problem')} that it is evaluated on ({named})"
    return replace(training, problems=kept, notes=(*training.notes, note))


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _row(place: str) -> str:
    """A place without the folder of its file: ``train.jsonl line 3``."""
    source, _, row = place.rpartition(", ")
    return f"{Path(re.sub('^data (file|set) ', '', source)).name} {row}"


def _some(names: Sequence[str], named: int = NAMED) -> str:
    return ", ".join(names[:named]) + (", ..." if len(names) > named else "")
