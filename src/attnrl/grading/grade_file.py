"""Grading of a JSONL file of responses (the command ``attnrl grade``)."""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

from attnrl.config.columns import ANSWER, PROMPT, RESPONSE, find_columns
from attnrl.errors import UserError
from attnrl.grading.rewards import RewardManager
from attnrl.grading.standalone import accepted_answers
from attnrl.method.steps import THINK_BEGIN
from attnrl.types import Problem, Response
from attnrl.utils.files import require_writable_file
from attnrl.utils.near import near_names

ANSWERS = (*(spelling for spelling in ANSWER if "." not in spelling), "label", "target")
PROMPTS = PROMPT[:3]  # text, or messages without the response
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
) -> Counter[str]:
    """Grade the rows of a JSONL file and write each row with ``verdict``, ``extracted`` and ``reward`` added, in order.

    A row has ``response`` (text) and, for a grader that compares answers, ``answer`` (text, a number, or a list of
    accepted answers). With ``prompt`` (text or chat messages) in the row, a box that copies the problem is wrong.
    Popular names of the columns are found (:mod:`attnrl.config.columns`). All fields are kept, and a custom grader gets
    the fields as columns. The file is streamed, and the output is written atomically.

    Args:
        source: the file to read.
        output: the file to write; an existing file is replaced.
        rewards: grades :data:`BATCH_ROWS` rows per call.
        on_progress: called with the number of rows and of bytes of the source graded until now.
        taken: counts the rows by columns taken.

    Returns:
        The number of rows per verdict.

    Raises:
        UserError: the source cannot be read, is empty or is the output, a row is malformed (the line is named), or a
            grader of the user fails on a dummy response.
    """
    if not source.is_file():
        raise UserError(f"{source}: no such file")
    if output.exists() and output.samefile(source):
        raise UserError(f"--output {output} is the file to be graded")
    require_writable_file(output, f"--output {output}")
    new_folders = [folder for folder in (output.parent, *output.parent.parents) if not folder.exists()]
    part = output.with_name(f".{output.name}.{os.getpid()}.part")
    verdicts: Counter[str] = Counter()
    taken = Counter() if taken is None else taken
    done = 0
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with source.open("rb") as reader, part.open("w", encoding="utf-8") as writer:
            rows = _rows(reader, source)
            while batch := list(islice(rows, BATCH_ROWS)):
                responses = []
                for number, row, _ in batch:
                    columns = _find_columns(tuple(row))
                    taken[columns] += 1
                    responses.append(_response(row, columns, f"{source}, line {number}", rewards.compares_answers))
                if not done:
                    rewards.probe([response.problem for response in responses])
                for (_, row, _), grade in zip(batch, rewards.grade(responses, step=0), strict=True):
                    graded = {"verdict": grade.verdict, "extracted": grade.answer, "reward": grade.reward}
                    writer.write(json.dumps(row | graded) + "\n")
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


def _rows(reader: Any, source: Path) -> Iterator[tuple[int, dict[str, Any], int]]:
    """Yield line number, row and the byte offset of the end of the row."""
    end = 0
    for number, line in enumerate(reader, start=1):
        end += len(line)
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            message = error.msg if isinstance(error, json.JSONDecodeError) else error
            raise UserError(f"{source}, line {number}: not JSON ({message})") from None
        if not isinstance(row, dict):
            raise UserError(f"{source}, line {number}: expected an object, found {type(row).__name__}")
        yield number, row, end


@lru_cache(maxsize=64)
def _find_columns(names: tuple[str, ...]) -> Columns:
    response = next(iter(find_columns(names, RESPONSE)), None)
    others = [name for name in names if name != response]
    answer = next(iter(find_columns(others, ANSWERS)), None)
    prompt = next(iter(find_columns([name for name in others if name != answer], PROMPTS)), None)
    return Columns(response, answer, prompt)


def _absent(key: str, names: Sequence[str]) -> str:
    near = next((name for name in names if near_names(name, [key])), None)
    return f"no {key} (columns: {', '.join(names)}){f'; rename {near} to {key}?' if near else ''}"


def _accepted(answer: Any) -> tuple[str, ...]:
    """Return the accepted answers of a field: no answer for null and NaN, two spellings of a truth value."""
    if answer is None or (isinstance(answer, float) and math.isnan(answer)):
        return ()
    if isinstance(answer, bool):
        return (str(answer), str(answer).lower())
    return accepted_answers(answer)


def _response(row: Mapping[str, Any], columns: Columns, where: str, needs_answer: bool) -> Response:
    """Return the response of a row, with the problem; all columns but prompt and response are in ``problem.info``.

    Raises:
        UserError: a field is missing or has another type; names ``where``.
    """
    if columns.answer is None and needs_answer:
        raise UserError(f"{where}: {_absent('answer', list(row))}")
    try:
        answers = _accepted(row[columns.answer]) if columns.answer is not None else ()
    except TypeError as error:
        raise UserError(f"{where}: {error}") from None
    prompt = row[columns.prompt] if columns.prompt is not None else None
    if isinstance(prompt, list) and all(
        isinstance(message, dict) and all(isinstance(message.get(key), str) for key in ("role", "content"))
        for message in prompt
    ):
        prompt = tuple(prompt)
    elif prompt is None:
        prompt = ""
    elif not isinstance(prompt, str):
        raise UserError(f"{where}: {columns.prompt} must be text or chat messages with role and content")
    response = row[columns.response] if columns.response is not None else None
    if response is None:
        raise UserError(f"{where}: {_absent('response', list(row))}")
    if not isinstance(response, str):
        raise UserError(f"{where}: {columns.response}: expected text, found {type(response).__name__}")
    info = {key: value for key, value in row.items() if key not in (columns.prompt, columns.response)}
    end = prompt if isinstance(prompt, str) else prompt[-1]["content"] if prompt else ""
    thinking = end.rstrip().endswith(THINK_BEGIN)
    return Response(
        Problem(where.rpartition(" ")[2], prompt, answers, info=info, place=where), response, thinking=thinking
    )
