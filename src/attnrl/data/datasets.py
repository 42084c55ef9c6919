"""Load problems from data files and data sets: read, assign ids, drop duplicates, fit to a tokenizer."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from attnrl.data.columns import choose_columns, missing_column
from attnrl.data.files import Row
from attnrl.data.fitting import fit_problems
from attnrl.data.messages import is_message
from attnrl.data.overlap import answers_key, find_overlap, question_key
from attnrl.data.remarks import Remarks
from attnrl.data.rows import read_row
from attnrl.data.sources import read_source, source_name
from attnrl.errors import UserError
from attnrl.grading.golds import UnusableGold
from attnrl.prompts.renderer import PromptRenderer
from attnrl.types import Problem

Answers = Literal["required", "optional", "any"]
"""Whether rows need a true answer, see :func:`load_problem_set`."""

MAX_NAMED = 3  # problems named in a note


@dataclass(frozen=True)
class ProblemSet:
    """Problems of one or more sources, with notes.

    Attributes:
        name: name of the sources, for messages.
        problems: the problems, in the order of the rows.
        notes: remarks of one line each: columns taken, problems left out, conflicts, unusable true answers.
        missing: a clause per key of ``data.columns`` whose column every source lacks.
    """

    name: str
    problems: tuple[Problem, ...]
    notes: tuple[str, ...] = ()
    missing: Mapping[str, str] = field(default_factory=dict)


def load_problems(
    source: str | Path | Sequence[str], *, columns: Mapping[str, str] = MappingProxyType({})
) -> list[Problem]:
    """Return the problems of :func:`load_problem_set`.

    Raises:
        UserError: a source or row is invalid, or a named column is absent; names the source and the row.
    """
    data = load_problem_set(source, columns=columns)
    require_columns([data])
    return list(data.problems)


def load_problem_set(
    source: str | Path | Sequence[str],
    *,
    columns: Mapping[str, str] = MappingProxyType({}),
    answers: Answers = "required",
) -> ProblemSet:
    """Read problems from files or data sets; see :mod:`attnrl.data.rows` for the formats of a row.

    Ids do not depend on the position of a row: see :func:`problem_ids`.

    Args:
        source: a file, a folder or a data set, or several.
        columns: names of columns by key (``prompt``, ``answer``, ``system``, ``id``). A source without the column is
            read by the popular spellings; :func:`require_columns` checks that another source has the column.
        answers: required: rows with an empty true answer are left out, and rows without a column of the true answer
            are invalid; optional: rows without a true answer stay; any: rows without a true answer are left out if
            another row has a true answer.

    Raises:
        UserError: a source or row is invalid (names source and row), or no row has a required true answer.
    """
    sources = [source] if isinstance(source, (str, Path)) else list(source)
    name = f"data {sources[0]}" + (f" and {len(sources) - 1} more" if len(sources) > 1 else "")
    parts = [_read_problems(one, columns, needs_answer=answers == "required") for one in sources]
    problems = [problem for part in parts for problem in part.problems]
    _require_distinct_ids(problems)
    problems = [replace(p, id=p.id or new) for p, new in zip(problems, problem_ids(problems), strict=True)]
    needed = answers == "required" or (answers == "any" and any(problem.answers for problem in problems))
    gradable = [problem for problem in problems if problem.answers or not needed]
    if not gradable:
        raise UserError(f"{name}: the true answer of every row is empty")
    notes = [note for part in parts for note in part.notes]
    unanswered = [problem for problem in problems if not problem.answers]
    if unanswered and needed:
        first = _some([_row(problem.place) for problem in unanswered])
        notes.append(f"{name}: left out {_count(len(unanswered), 'row')} without a true answer ({first})")
    missing = {key: clause for key, clause in parts[0].missing.items() if all(key in part.missing for part in parts)}
    return ProblemSet(name, tuple(gradable), tuple(notes), missing)


def _read_problems(source: str | Path, named: Mapping[str, str], *, needs_answer: bool) -> ProblemSet:
    """Return the problems of one source; the ids are empty without a column of ids."""
    name, short_name = f"data {source}", source_name(source)
    rows = read_source(source)
    fields = [_as_object(row) for row in rows]
    columns = choose_columns(fields, named)
    remarks = Remarks()
    problems = []
    for row, values in zip(rows, fields, strict=True):
        try:
            problems.append(read_row(values, columns, row.where, short_name, remarks, needs_answer=needs_answer))
        except RecursionError:
            raise UserError(f"{row.where}: nested too deep") from None
    files = {row.where.rpartition(", ")[0] for row in rows}
    notes = [f"{name}: {len(files)} files"] if len(files) > 1 else []
    missing = {key: f"{name}: {missing_column(columns, key)}" for key in columns.missing}
    return ProblemSet(name, tuple(problems), (*notes, *remarks.notes(name, columns)), missing)


def _as_object(row: Row) -> Mapping[str, Any]:
    """Return the columns of a row; a row that is a list of messages has the column ``messages``.

    A last message with a ``ground_truth`` in place of the text (Open-Reasoner-Zero) is the column ``ground_truth``.

    Raises:
        UserError: the row is neither an object nor a list of messages.
    """
    if isinstance(row.fields, Mapping):
        return row.fields
    if isinstance(row.fields, list) and row.fields and all(map(is_message, row.fields[:-1])):
        last = row.fields[-1]
        if is_message(last):
            return {"messages": row.fields}
        if isinstance(last, Mapping) and "ground_truth" in last:
            truth = last["ground_truth"]
            return {
                "messages": row.fields[:-1],
                "ground_truth": truth.get("value") if isinstance(truth, Mapping) else truth,
            }
    raise UserError(
        f"{row.where}: expected an object or a list of messages (role and content), found {type(row.fields).__name__}"
    )


def require_columns(sets: Iterable[ProblemSet]) -> None:
    """Check that each named column is a column of at least one source.

    Raises:
        UserError: every source lacks a column; names the source, the column and the nearest column.
    """
    sets = list(sets)
    for key, clause in sets[0].missing.items():
        if all(key in data.missing for data in sets):
            raise UserError(clause)


def _require_distinct_ids(problems: Sequence[Problem]) -> None:
    places: dict[str, str] = {}
    for problem in problems:
        if problem.id and problem.id in places:
            first = places[problem.id]
            raise UserError(f"{problem.place}: the id {problem.id[:80]!r} repeats the id of {first}")
        places[problem.id] = problem.place


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
        kept.setdefault((question_key(problem, suffix), _messages_beside(problem), answers_key(problem)), problem)
    return list(kept.values())


def _messages_beside(problem: Problem) -> tuple[str, ...]:
    """Return the messages besides the last of the user: another system prompt, example or prefix is another problem."""
    if isinstance(problem.prompt, str):
        return ()
    last = max(place for place, message in enumerate(problem.prompt) if message["role"] == "user")
    return tuple(message["content"] for place, message in enumerate(problem.prompt) if place != last)


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
        if problem.answers:
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


def fit_problem_set(data: ProblemSet, renderer: PromptRenderer, *, max_prompt_tokens: int) -> ProblemSet:
    """Apply :func:`attnrl.data.fitting.fit_problems`; add notes on the problems left out and on the other prompts.

    Raises:
        UserError: a prompt cannot be rendered or has no tokens, or every prompt is too long.
    """
    fitted = fit_problems(data.problems, renderer, max_prompt_tokens=max_prompt_tokens)
    kept = {problem.id for problem in fitted.problems}
    dropped = [_row_of(problem) for problem in data.problems if problem.id not in kept]
    if not fitted.problems:
        raise UserError(f"{data.name}: every prompt has more than max_prompt_tokens = {max_prompt_tokens} tokens")
    notes = [f"{data.name}: {remark}" for remark in fitted.remarks]
    if dropped:
        prompts = _count(len(dropped), "prompt")
        notes.append(f"{data.name}: left out {prompts} of more than {max_prompt_tokens} tokens ({_some(dropped)})")
    return replace(data, problems=fitted.problems, notes=(*data.notes, *notes))


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
    named = _some([f"{_row_of(training.problems[place])} is {_row_of(other)}" for place, other in found.items()])
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


def _row_of(problem: Problem) -> str:
    return _row(problem.place) if problem.place else problem.id


def _row(place: str) -> str:
    """Return a place without the folder of the file: ``train.jsonl line 3``."""
    source, _, row = place.rpartition(", ")
    return f"{Path(re.sub('^data (file|set) ', '', source)).name} {row}"


def _some(names: Sequence[str], named: int = MAX_NAMED) -> str:
    return ", ".join(names[:named]) + (", ..." if len(names) > named else "")
