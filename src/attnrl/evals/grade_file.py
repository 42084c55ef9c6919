"""Grading of a file of responses (the command ``attnrl grade``)."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import Any

from attnrl.config.columns import PROMPT, RESPONSE, find_columns, spelling_of
from attnrl.data.columns import choose_columns, first_value, is_null, missing_column, value_at
from attnrl.data.files import GZIP, file_kind, neighbours, read_file
from attnrl.data.held import held_structure
from attnrl.data.messages import are_messages, is_message, read_messages
from attnrl.data.remarks import Remarks
from attnrl.data.rows import RESPONSES, other_columns, read_answers
from attnrl.errors import UserError
from attnrl.grading.rewards import RewardManager
from attnrl.method.steps import THINK_BEGIN
from attnrl.types import Chat, Problem, Response
from attnrl.utils.files import require_writable_file
from attnrl.utils.near import did_you_mean, near_names

PROMPTS = frozenset(PROMPT[:3])  # text, or messages without the response
BATCH_ROWS = 256  # graded in one call: work for every worker, and frequent progress


@dataclass(frozen=True)
class Columns:
    """The columns of a row to be graded; None: no such column."""

    response: str | None
    answer: str | None
    prompt: str | None

    def __str__(self) -> str:
        """Return the columns in words."""
        taken = {"response": self.response, "answer": self.answer, "prompt": self.prompt}
        return ", ".join(f"{key} from {column}" for key, column in taken.items() if column is not None)


def grade_file(
    source: Path,
    output: Path,
    rewards: RewardManager,
    on_progress: Callable[[int, int], None] | None = None,
    taken: Counter[Columns] | None = None,
    *,
    named: Mapping[str, str] = MappingProxyType({}),
    remarks: Remarks | None = None,
) -> Counter[str]:
    """Grade the rows of a file and write each row with ``verdict``, ``extracted`` and ``reward`` added, in order.

    A row has ``response`` (text, or chat messages with the response last) and, for a grader that compares answers,
    an answer as in :func:`attnrl.data.rows.read_answers`; a null, NaN or empty answer is a ``bad_gold``. With
    ``prompt`` (text or chat messages) in the row, a box that copies the problem is wrong. Popular names of the columns
    are found (:mod:`attnrl.config.columns`). All fields are kept (bytes of tables are left out), and a custom grader
    gets the fields as columns. JSON lines are streamed, and the output is written atomically.

    Args:
        source: the file to read.
        output: the file to write; an existing file is replaced.
        rewards: grades :data:`BATCH_ROWS` rows per call.
        on_progress: called with the number of rows and of bytes of the source graded until now.
        taken: counts the rows by columns taken.
        named: names of columns by key (``response``, ``answer``, ``prompt``).
        remarks: counts what is decoded or left out of a row.

    Returns:
        The number of rows per verdict.

    Raises:
        UserError: the source cannot be read, is empty or is the output, a row is malformed (the line is named), or a
            grader of the user fails on a dummy response.
    """
    if source.is_dir():
        raise UserError(f"{source}: expected a file, found a folder")
    if not source.is_file():
        raise UserError(f"{source}: no such file{did_you_mean(source.name, neighbours(source))}")
    if output.exists() and output.samefile(source):
        raise UserError(f"--output {output} is the file to be graded")
    require_writable_file(output, f"--output {output}")
    new_folders = [folder for folder in (output.parent, *output.parent.parents) if not folder.exists()]
    part = output.with_name(f".{output.name}.{os.getpid()}.part")
    verdicts: Counter[str] = Counter()
    taken = Counter() if taken is None else taken
    remarks = remarks or Remarks()
    needs_answer = rewards.compares_answers
    done = 0
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with part.open("w", encoding="utf-8") as writer:
            rows = _rows(source)
            while batch := list(islice(rows, BATCH_ROWS)):
                responses = []
                for where, row, _ in batch:
                    columns, response = _read_row(row, where, named, remarks, needs_answer)
                    taken[columns] += 1
                    responses.append(response)
                if not done:
                    rewards.probe([response.problem for response in responses])
                for (_, row, _), grade in zip(batch, rewards.grade(responses, step=0), strict=True):
                    graded = {"verdict": grade.verdict, "extracted": grade.answer, "reward": grade.reward}
                    for name in graded.keys() & row.keys():
                        remarks.others[f"replaced {name} of the row"] += 1
                    writer.write(json.dumps({**row, **graded}) + "\n")
                    verdicts[grade.verdict] += 1
                    done += 1
                if on_progress is not None:
                    on_progress(done, batch[-1][2])
        if not done:
            raise UserError(f"{source}: no rows")
        part.replace(output)
    except OSError as error:
        raise UserError(f"{error.filename or output}: {error.strerror or error}") from None
    finally:
        with suppress(OSError):
            part.unlink()
            for folder in new_folders:  # fails, and is suppressed, once a folder holds the output
                folder.rmdir()
    return verdicts


def _rows(source: Path) -> Iterator[tuple[str, Mapping[str, Any], int]]:
    """Yield the place of a row, the row, and the byte offset of the end of the row (of a table: of the file)."""
    if source.name.lower().endswith(GZIP) or file_kind(source) in {".parquet", ".json", ".csv", ".tsv"}:
        size = source.stat().st_size
        for one in read_file(source):
            yield one.where, other_columns(_object(one.fields, one.where)), size
        return
    end = 0
    with source.open("rb") as reader:
        for number, line in enumerate(reader, start=1):
            end += len(line)
            if not line.strip():
                continue
            where = f"{source}, line {number}"
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                message = error.msg if isinstance(error, json.JSONDecodeError) else error
                raise UserError(f"{where}: not JSON ({message})") from None
            yield where, _object(row, where), end


def _object(row: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(row, Mapping):
        raise UserError(f"{where}: expected an object, found {type(row).__name__}")
    return row


def _read_row(
    row: Mapping[str, Any], where: str, named: Mapping[str, str], remarks: Remarks, needs_answer: bool
) -> tuple[Columns, Response]:
    """Return the columns taken and the response; all columns but prompt and response are in ``problem.info``.

    Raises:
        UserError: a column is absent or has another type; names ``where``.
    """
    response_column, text = _read_response(row, where, named, remarks)
    others = {name: value for name, value in row.items() if name != response_column}
    chosen = choose_columns([others], {key: name for key, name in named.items() if key != "response"})
    for key in chosen.missing:
        raise UserError(f"{where}: {missing_column(chosen, key)}")
    if "answer" not in named:  # a further column of responses is no true answer
        chosen = replace(chosen, answer=tuple(one for one in chosen.answer if spelling_of(one) not in RESPONSES))
    answers = read_answers(others, chosen, where, remarks, needs_answer)
    answer = first_value(others, chosen.answer)
    prompts = chosen.prompt if "prompt" in named else [one for one in chosen.prompt if spelling_of(one) in PROMPTS]
    prompt = first_value(others, prompts)
    prompt_column = None if prompt is None else prompt[0]
    problem = Problem(
        id=where.rpartition(" ")[2],
        prompt="" if prompt is None else _read_prompt(prompt[1], f"{where}: {prompt_column}", remarks),
        answers=answers,
        info={name: value for name, value in others.items() if name != prompt_column},
        place=where,
    )
    last = problem.prompt if isinstance(problem.prompt, str) else problem.prompt[-1]["content"]
    columns = Columns(response_column, None if answer is None else answer[0], prompt_column)
    return columns, Response(problem, text, thinking=last.rstrip().endswith(THINK_BEGIN))


def _read_response(row: Mapping[str, Any], where: str, named: Mapping[str, str], remarks: Remarks) -> tuple[str, str]:
    """Return the column of the response and the text of the response."""
    column = named.get("response") or next(iter(find_columns(row, RESPONSE)), None)
    value = None if column is None else value_at(row, column)
    if column is None or is_null(value):
        raise UserError(f"{where}: {_absent_response(list(row), column)}")
    if isinstance(value, (list, tuple)) and value and all(map(is_message, value)):
        last = read_messages(value, f"{where}: {column}", remarks)[-1]
        if last["role"] == "assistant":
            return column, last["content"]
        raise UserError(f"{where}: {column}: the last message is not the assistant's")
    if not isinstance(value, str):
        further = "; several responses need a row each" if isinstance(value, (list, tuple)) else ""
        raise UserError(f"{where}: {column}: expected text, found {type(value).__name__}{further}")
    return column, value


def _absent_response(names: Sequence[str], column: str | None) -> str:
    if column in names:
        return f"{column} is null"
    wanted = [column] if column is not None else ["response"]
    near = next((name for name in names if near_names(name, wanted)), None)
    way_out = f"did you mean response={near}?" if near else "name the column with response=NAME"
    return f"no {wanted[0]} (columns: {', '.join(names)}); {way_out} (--columns)"


def _read_prompt(value: Any, where: str, remarks: Remarks) -> str | Chat:
    if is_null(value):
        return ""
    if isinstance(value, str):
        held = held_structure(value)
        if not are_messages(held):
            return value
        value = held
    if are_messages(value):
        return read_messages([value] if is_message(value) else value, where, remarks)
    raise UserError(f"{where} must be text or chat messages with role and content")
