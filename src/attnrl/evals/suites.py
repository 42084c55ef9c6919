"""Suites of an evaluation: problems of a benchmark, a data file or a task, with the sampling protocol."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

from attnrl.data.benchmarks import KNOWN, MAX_NEW_TOKENS, deviations, find_benchmarks
from attnrl.data.datasets import Answers, load_problem_set, require_columns
from attnrl.data.run_data import held_out_problems
from attnrl.data.sources import source_name
from attnrl.errors import UserError
from attnrl.evals.settings import EvalSettings
from attnrl.types import Problem

#: Defaults of ``--task`` and ``--data``: responses per problem, token budget, number of problems.
DEFAULT_SAMPLES, DEFAULT_NEW_TOKENS, DEFAULT_PROBLEMS = 8, 512, 200


@dataclass(frozen=True)
class Suite:
    """A set of problems with the number and the token budget of the responses to each problem.

    Attributes:
        name: key of the suite in ``samples.jsonl`` and ``results.json``.
        title: column head in tables.
        source: file, dataset or task of the problems.
        problems: the problems, in order.
        samples: responses per problem.
        max_new_tokens: token budget of a response, if the model has enough positions.
        notes: remarks of the reader of the file: rows left out, unexpected number of problems.
    """

    name: str
    title: str
    source: str
    problems: tuple[Problem, ...]
    samples: int
    max_new_tokens: int
    notes: tuple[str, ...] = ()


def load_suites(
    *,
    benchmarks: Sequence[str] = (),
    data_dir: Path | None = None,
    data: str | None = None,
    task: str | None = None,
    problems: int | None = None,
    samples: int | None = None,
    max_new_tokens: int | None = None,
    columns: Mapping[str, str] = MappingProxyType({}),
    answers: Answers = "required",
) -> list[Suite]:
    """Load the suites named by the options of the command line.

    Args:
        benchmarks: benchmark names, or ``NAME=PATH``; each becomes a suite with the paper's protocol as default.
        data_dir: directory of the benchmark files.
        data: a data file or dataset.
        task: a task; the held-out problems are taken.
        problems: number of problems, the first ones.
        samples: responses per problem.
        max_new_tokens: token budget of a response.
        columns: names of columns by key; a suite without a named column is read by the popular spellings.
        answers: whether rows need a true answer (:func:`attnrl.data.datasets.load_problem_set`).

    Raises:
        UserError: not exactly one of ``benchmarks``, ``data`` and ``task`` is given, a source cannot be found or
            read, or no source has a named column.
    """
    if sum(map(bool, (benchmarks, data, task))) != 1:
        raise UserError("give one of --benchmark, --task and --data")
    if task is not None and columns:
        raise UserError("--columns: a task has no columns; the option belongs to --data and --benchmark")
    if task is not None:
        chosen = tuple(held_out_problems(task, problems or DEFAULT_PROBLEMS))
        return [Suite(task, task, task, chosen, samples or DEFAULT_SAMPLES, max_new_tokens or DEFAULT_NEW_TOKENS)]
    limit = problems
    if data is not None:
        name = source_name(data)
        suites, limit = [Suite(name, name, data, (), DEFAULT_SAMPLES, DEFAULT_NEW_TOKENS)], problems or DEFAULT_PROBLEMS
    else:
        found = find_benchmarks(benchmarks, data_dir)
        suites = [Suite(b.name, b.title, str(b.source), (), b.samples, MAX_NEW_TOKENS) for b in found]
    sets = [load_problem_set(suite.source, columns=columns, answers=answers) for suite in suites]
    require_columns(sets)
    return [
        replace(
            suite,
            problems=problem_set.problems[:limit],
            samples=samples or suite.samples,
            max_new_tokens=max_new_tokens or suite.max_new_tokens,
            notes=(*problem_set.notes, *_unexpected_size(suite.name, len(problem_set.problems))),
        )
        for suite, problem_set in zip(suites, sets, strict=True)
    ]


def _unexpected_size(name: str, problems: int) -> Iterator[str]:
    if name in KNOWN and problems != KNOWN[name].problems:
        yield f"{name}: {problems} problems; the paper's benchmark has {KNOWN[name].problems}."


def protocol_deviations(suites: Sequence[Suite], settings: EvalSettings) -> list[str]:
    """Return the deviations from the paper's evaluation protocol, without duplicates."""
    found = [
        deviation
        for suite in suites
        for deviation in deviations(
            suite.name,
            problems=len(suite.problems),
            samples=suite.samples,
            max_new_tokens=suite.max_new_tokens,
            sampling=settings.sampling,
        )
    ]
    return list(dict.fromkeys(found))
