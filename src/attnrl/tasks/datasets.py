"""Problems from files: verl rows and TRL rows, in parquet, jsonl or json."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from attnrl.errors import UserError
from attnrl.tasks.problem import Chat, Problem


def read_rows(path: Path) -> list[Any]:
    """Read the rows of a .parquet, .jsonl or .json file.

    Raises:
        UserError: the file is missing, empty, of another kind or malformed (with the line where one is known).
    """
    if not path.is_file():
        raise UserError(f"data file {path}: no such file")
    if path.suffix == ".parquet":
        try:
            rows: list[Any] = pyarrow.parquet.read_table(path).to_pylist()
        except (pyarrow.ArrowException, OSError) as error:
            raise UserError(f"data file {path}: not readable as parquet ({' '.join(str(error).split())})") from None
    elif path.suffix in {".jsonl", ".json"}:
        rows = _read_json(path)
    else:
        raise UserError(f"data file {path}: expected .parquet, .jsonl or .json")
    if not rows:
        raise UserError(f"data file {path}: no rows")
    return rows


def _read_json(path: Path) -> list[Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise UserError(f"data file {path}: not UTF-8 text") from None
    if path.suffix == ".json":
        try:
            rows = json.loads(text) if text.strip() else []
        except json.JSONDecodeError as error:
            raise UserError(f"data file {path}, line {error.lineno}: not JSON ({error.msg})") from None
        except (ValueError, RecursionError) as error:
            raise UserError(f"data file {path}: not readable as JSON ({error})") from None
        if not isinstance(rows, list):
            raise UserError(f"data file {path}: expected a list of rows")
        return rows
    parsed = []
    # Not splitlines(): text in a row may hold line separators such as U+2028 as they are.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                parsed.append(json.loads(line))
            except (ValueError, RecursionError) as error:
                message = error.msg if isinstance(error, json.JSONDecodeError) else error
                raise UserError(f"data file {path}, line {number}: not JSON ({message})") from None
    return parsed


def load_problems(path: Path, *, prompt_suffix: str = "") -> list[Problem]:
    """Read problems from a file; ``prompt_suffix`` is appended to each last user message that has not got it.

    A row has ``prompt`` (text or chat messages) and its true answer in ``reward_model.ground_truth`` (verl) or
    ``answer`` or ``solution`` (TRL). Ids are the file's name and the row's number, so no two rows share one.
    A row whose true answer is empty text cannot be graded and is left out.

    Raises:
        UserError: naming the file and row.
    """
    problems = [
        _to_problem(row, f"data file {path}, row {number}", f"{path.stem}:{number}", prompt_suffix)
        for number, row in enumerate(read_rows(path))
    ]
    gradable = [problem for problem in problems if problem.answers]
    if not gradable:
        raise UserError(f"data file {path}: the true answer of every row is empty")
    return gradable


def _to_problem(row: Any, where: str, problem_id: str, prompt_suffix: str) -> Problem:
    if not isinstance(row, Mapping):
        raise UserError(f"{where}: expected an object, found {type(row).__name__}")
    return Problem(
        id=problem_id,
        prompt=_prompt(row.get("prompt"), where, prompt_suffix),
        answers=_answers(row, where),
        source=str(row.get("data_source") or problem_id.rpartition(":")[0]),
    )


def _prompt(prompt: Any, where: str, suffix: str) -> str | Chat:
    if isinstance(prompt, str):
        if not prompt.strip():
            raise UserError(f"{where}: prompt is empty")
        return _with_suffix(prompt, suffix)
    if not isinstance(prompt, Sequence) or not prompt:
        raise UserError(f"{where}: prompt must be text or a non-empty list of chat messages")
    messages = []
    for message in prompt:
        if not isinstance(message, Mapping) or not all(
            isinstance(message.get(key), str) for key in ("role", "content")
        ):
            raise UserError(f"{where}: each prompt message needs a role and a content, both text")
        messages.append({"role": message["role"], "content": message["content"]})
    users = [message for message in messages if message["role"] == "user"]
    if not users:
        raise UserError(f"{where}: prompt has no user message")
    users[-1]["content"] = _with_suffix(users[-1]["content"], suffix)
    return tuple(messages)


def _with_suffix(text: str, suffix: str) -> str:
    return text if text.endswith(suffix) else text + suffix


def _answers(row: Mapping[str, Any], where: str) -> tuple[str, ...]:
    """The accepted answers; none where the row says that they are empty."""
    reward_model = row.get("reward_model")
    found = reward_model.get("ground_truth") if isinstance(reward_model, Mapping) else None
    found = next((answer for answer in (found, row.get("answer"), row.get("solution")) if answer is not None), None)
    if isinstance(found, str) and not found.strip():
        return ()
    answers = tuple(
        str(answer)
        for answer in (found if isinstance(found, list) else [found])
        if isinstance(answer, (str, int, float)) and not isinstance(answer, bool) and str(answer).strip()
    )
    if not answers or (isinstance(found, list) and len(answers) < len(found)):
        raise UserError(f"{where}: no true answer in reward_model.ground_truth, answer or solution (text, or a list)")
    return answers
