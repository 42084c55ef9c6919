"""Grading a file of responses, row by row: what ``attnrl grade`` does."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

from attnrl.data.rows import final_answer
from attnrl.errors import UserError
from attnrl.types import Grader, Problem
from attnrl.utils.files import require_writable_file

ROWS_AT_ONCE = 256  # graded together: enough for every worker, and progress is seen


def grade_file(
    source: Path, output: Path, grader: Grader, on_progress: Callable[[int, int], None] | None = None
) -> Counter[str]:
    """Grade the rows of a jsonl file and write them, in order, with ``verdict``, ``extracted`` and ``reward`` added.

    A row has ``response`` (text) and ``answer`` (text, a number or a list of them: any is accepted). If it has a
    ``prompt`` (text or chat messages), a box that only copies from it is not correct. All other fields stay, and a
    custom grader gets them as columns. Memory does not grow with the file, and the output appears when it is whole.

    Args:
        source: the file to read.
        output: the file to write; it replaces one of that name.
        grader: grades the rows, a few hundred at a time.
        on_progress: called with the rows and the bytes of the source done so far.

    Returns:
        How many rows came to each verdict.

    Raises:
        UserError: the source cannot be read or is the output, or a row is malformed (with its line).
    """
    if not source.is_file():
        raise UserError(f"{source}: no such file")
    if output.exists() and output.samefile(source):
        raise UserError(f"--output {output}: is the file to be graded")
    require_writable_file(output, f"--output {output}")
    made = [folder for folder in (output.parent, *output.parent.parents) if not folder.exists()]
    aside = output.with_name(f".{output.name}.{os.getpid()}.part")
    verdicts: Counter[str] = Counter()
    done = 0
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with source.open("rb") as reader, aside.open("w", encoding="utf-8") as writer:
            rows = _rows(reader, source)
            while batch := list(islice(rows, ROWS_AT_ONCE)):
                problems = [_problem(row, number, source) for number, row, _ in batch]
                responses = [_response(row, number, source) for number, row, _ in batch]
                for (_, row, _), grade in zip(batch, grader.grade(problems, responses), strict=True):
                    graded = {"verdict": grade.verdict, "extracted": grade.answer, "reward": grade.reward}
                    writer.write(json.dumps(row | graded) + "\n")
                    verdicts[grade.verdict] += 1
                    done += 1
                if on_progress is not None:
                    on_progress(done, batch[-1][2])
        if not done:
            raise UserError(f"{source}: no rows")
        aside.replace(output)
    except OSError as error:
        raise UserError(f"{error.filename or output}: {error.strerror or error}") from None
    finally:
        with suppress(OSError):
            aside.unlink()
            for folder in made:  # where the output was not written: those with something in them stay
                folder.rmdir()
    return verdicts


def _rows(reader: Any, source: Path) -> Iterator[tuple[int, dict[str, Any], int]]:
    """Line number, row and the offset of the row's end."""
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


def _response(row: Mapping[str, Any], number: int, source: Path) -> str:
    response = row.get("response")
    if not isinstance(response, str):
        problem = "no response" if response is None else f"response is a {type(response).__name__}, not text"
        raise UserError(f"{source}, line {number}: {problem}")
    return response


def _problem(row: Mapping[str, Any], number: int, source: Path) -> Problem:
    answer = row.get("answer")
    if answer is None:
        raise UserError(f"{source}, line {number}: no answer")
    answers = answer if isinstance(answer, list) else [answer]
    if not all(isinstance(one, (str, int, float)) and not isinstance(one, bool) for one in answers):
        raise UserError(f"{source}, line {number}: answer must be text, a number or a list of them")
    prompt = row.get("prompt")
    if isinstance(prompt, list) and all(
        isinstance(message, dict) and all(isinstance(message.get(key), str) for key in ("role", "content"))
        for message in prompt
    ):
        prompt = tuple(prompt)
    elif not isinstance(prompt, str):
        prompt = ""
    info = {key: value for key, value in row.items() if key not in ("prompt", "answer", "response")}
    return Problem(str(number), prompt, tuple(final_answer(str(one)) for one in answers), info=info)
