"""Grading of a JSONL file of responses (the command ``attnrl grade``)."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

from attnrl.errors import UserError
from attnrl.grading.rewards import RewardManager
from attnrl.grading.standalone import accepted_answers
from attnrl.method.steps import THINK_BEGIN
from attnrl.types import Problem, Response
from attnrl.utils.files import require_writable_file

BATCH_ROWS = 256  # graded in one call: work for every worker, and frequent progress


def grade_file(
    source: Path, output: Path, rewards: RewardManager, on_progress: Callable[[int, int], None] | None = None
) -> Counter[str]:
    """Grade the rows of a JSONL file and write each row with ``verdict``, ``extracted`` and ``reward`` added, in order.

    A row has ``response`` (text) and, for a grader that compares answers, ``answer`` (text, a number, or a list of
    accepted answers). With ``prompt`` (text or chat messages) in the row, a box that copies the problem is wrong. All
    fields are kept, and a custom grader gets the fields as columns. The file is streamed, and the output is written
    atomically.

    Args:
        source: the file to read.
        output: the file to write; an existing file is replaced.
        rewards: grades :data:`BATCH_ROWS` rows per call.
        on_progress: called with the number of rows and of bytes of the source graded until now.

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
    done = 0
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with source.open("rb") as reader, part.open("w", encoding="utf-8") as writer:
            rows = _rows(reader, source)
            while batch := list(islice(rows, BATCH_ROWS)):
                responses = [_response(row, number, source, rewards.compares_answers) for number, row, _ in batch]
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


def _response(row: Mapping[str, Any], number: int, source: Path, needs_answer: bool) -> Response:
    """Return the response of a row, with the problem; all columns but prompt and response are in ``problem.info``.

    Raises:
        UserError: a field is missing or has another type; the line is named.
    """
    answer = row.get("answer")
    if answer is None and needs_answer:
        raise UserError(f"{source}, line {number}: no answer")
    try:
        answers = () if answer is None else accepted_answers(answer)
    except TypeError as error:
        raise UserError(f"{source}, line {number}: {error}") from None
    prompt = row.get("prompt")
    if isinstance(prompt, list) and all(
        isinstance(message, dict) and all(isinstance(message.get(key), str) for key in ("role", "content"))
        for message in prompt
    ):
        prompt = tuple(prompt)
    elif prompt is None:
        prompt = ""
    elif not isinstance(prompt, str):
        raise UserError(f"{source}, line {number}: prompt must be text or chat messages with role and content")
    response = row.get("response")
    if not isinstance(response, str):
        problem = "no response" if response is None else f"response: expected text, found {type(response).__name__}"
        raise UserError(f"{source}, line {number}: {problem}")
    info = {key: value for key, value in row.items() if key not in ("prompt", "response")}
    end = prompt if isinstance(prompt, str) else prompt[-1]["content"] if prompt else ""
    thinking = end.rstrip().endswith(THINK_BEGIN)
    return Response(Problem(str(number), prompt, answers, info=info), response, thinking=thinking)
