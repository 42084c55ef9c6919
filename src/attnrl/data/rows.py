"""Read the values of a row: prompt, true answers, id, and the further columns for reward functions.

:mod:`attnrl.data.columns` says which columns; :mod:`attnrl.data.messages` reads chat messages. Everything that is left
out, joined or decoded is counted in ``remarks``, so that the run can say so.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

from attnrl.config.columns import ANSWER, PROMPT, spelling_of
from attnrl.data.columns import Columns, absent_column, first_value, is_null, value_at
from attnrl.data.held import held_structure, looks_like_structure
from attnrl.data.messages import are_messages, is_message, read_messages
from attnrl.data.remarks import Remarks
from attnrl.errors import UserError
from attnrl.grading.answers import conclusion_of, final_answer
from attnrl.types import Chat, Problem

#: Columns of whole responses: a text without a marked answer is the answer only if the text is short.
RESPONSES = frozenset({"output", "response", "completion"})
#: Columns with the true answer alone in a nested column, not reduced to a marked answer.
PLAIN = frozenset(spelling_of(spelling.partition(".")[0]) for spelling in ANSWER if "." in spelling)
_STATED = re.compile(
    r"\banswer(?: is)?:\s*(?P<after_colon>\S.{0,99}?)\.?$|\banswer is\s+(?P<number>[-+$\\(]*\d\S{0,99}?)\.?$",
    re.IGNORECASE,
)
#: Texts that may stand for a missing answer, or be an answer: reported.
NULL_TEXTS = frozenset({"null", "none", "n/a", "na", "<na>"})
MAX_PLAIN_ANSWER = 100  # characters of a response that is an answer without a mark
MAX_PLAIN_DIGITS = 30  # of a number written without an exponent


def read_row(
    row: Mapping[str, Any],
    columns: Columns,
    where: str,
    default_source: str,
    remarks: Remarks,
    *,
    needs_answer: bool = True,
) -> Problem:
    """Return the problem of a row; the id is empty without ``columns.id``, and the answers are empty without an answer.

    Args:
        row: the columns of the row.
        columns: the columns of the source of the row.
        where: file and row, for messages.
        default_source: source of the problem, if the row has no ``data_source``.
        remarks: counts what is left out, joined or decoded, by description.
        needs_answer: a row without a column of the true answer is invalid.

    Raises:
        UserError: a column is absent, or a value is invalid; names ``where`` and the column.
    """
    prompt_column, prompt = read_prompt(row, columns, where, remarks)
    if isinstance(prompt, str) or prompt[-1]["role"] != "assistant":
        answers = read_answers(row, columns, where, remarks, needs_answer)
    elif columns.answer:
        answers = read_answers(row, columns, where, remarks, needs_answer)
        if is_finished(prompt[-1]["content"], answers):
            remarks.others["left out the last message, a finished response of the assistant"] += 1
            prompt = prompt[:-1]
    else:
        remarks.taken["answer", f"the last message of {prompt_column}"] += 1
        answers = _response_answer(prompt[-1]["content"])
        prompt = prompt[:-1]
    return Problem(
        id="" if columns.id is None else _read_id(row, columns.id, where),
        prompt=_with_system(prompt, row, columns, where, remarks),
        answers=answers,
        source=read_source_name(row, default_source, where),
        info=other_columns(row, prompt_column),
        place=where,
    )


def read_prompt(row: Mapping[str, Any], columns: Columns, where: str, remarks: Remarks) -> tuple[str, str | Chat]:
    """Return the column of the prompt and the prompt: text or chat messages.

    Messages may be held as JSON text. Other JSON text is refused: no model should be trained on JSON by accident.

    Raises:
        UserError: the column is absent or null, or the value is neither text nor chat messages.
    """
    found = first_value(row, columns.prompt)
    if found is None:
        raise UserError(f"{where}: no prompt: {absent_column(columns, 'prompt', PROMPT)}")
    column, value = found
    if value is None:
        raise UserError(f"{where}: {column} is null")
    remarks.taken["prompt", column] += 1
    if isinstance(value, str):
        held = held_structure(value)
        if held is None and looks_like_structure(value):
            raise UserError(f"{where}: {column} looks like JSON of messages, but cannot be parsed")
        if held is None:
            return column, _joined(_text(value, where, column), row, columns, column, where, remarks)
        if not are_messages(held):
            raise UserError(
                f"{where}: {column} is JSON text, but not a list of messages. prompt={column}.KEY (data.columns or "
                "--columns) names a text inside; a message {role: user, content: TEXT} holds any text"
            )
        remarks.others[f"{column} decoded from JSON text"] += 1
        value = held
    if is_message(value):
        value = [value]
    if isinstance(value, Mapping):
        keys = ", ".join(map(str, value))
        raise UserError(f"{where}: {column} is an object with {keys}: name a text or the messages, as {column}.KEY")
    if isinstance(value, (bytes, bytearray)) or not isinstance(value, Sequence) or not value:
        raise UserError(f"{where}: {column} must be text or a non-empty list of chat messages")
    messages = read_messages(value, f"{where}: {column}", remarks)
    for message in messages:
        _sound(message["role"] + message["content"], where, column)
    if all(message["role"] != "user" for message in messages):
        raise UserError(f"{where}: {column} has no user message")
    return column, messages


def _text(value: str, where: str, column: str) -> str:
    if not value.strip():
        raise UserError(f"{where}: {column} is empty")
    return _sound(value, where, column)


def _joined(text: str, row: Mapping[str, Any], columns: Columns, column: str, where: str, remarks: Remarks) -> str:
    """Return an instruction followed by the input of the row (Alpaca); any other prompt unchanged."""
    further = columns.instruction_input
    if further is None or further == column or spelling_of(column) != "instruction":
        return text
    addition = row.get(further)
    if is_null(addition) or not str(addition).strip():
        return text
    remarks.others[f"{further} joined to {column}"] += 1
    return f"{text}\n\n{_sound(str(addition), where, further)}"


def _with_system(
    prompt: str | Chat, row: Mapping[str, Any], columns: Columns, where: str, remarks: Remarks
) -> str | Chat:
    """Return the prompt with the system message of the row's own column, if any."""
    found = first_value(row, columns.system)
    if found is None or found[1] is None:
        return prompt
    column, text = found
    if not isinstance(text, str):
        raise UserError(f"{where}: {column}: expected text, found {type(text).__name__}")
    if not text.strip():
        return prompt
    messages = ({"role": "user", "content": prompt},) if isinstance(prompt, str) else prompt
    if messages[0]["role"] == "system":
        if messages[0]["content"] != text:
            remarks.others[f"{column} ignored: the messages begin with another system message"] += 1
        return prompt
    remarks.taken["system message", column] += 1
    return ({"role": "system", "content": _sound(text, where, column)}, *messages)


def read_answers(
    row: Mapping[str, Any], columns: Columns, where: str, remarks: Remarks, needs_answer: bool = True
) -> tuple[str, ...]:
    """Return the accepted answers of a row; () if the answer is null, NaN or empty, or absent and not needed.

    The value is text, a number, a truth value, or a list of these; a list of texts may be held as JSON text. Text with
    a last line ``#### 72`` (GSM8K) gives the text after the mark, and text with a ``\\boxed{}`` (MATH) gives the last
    box, but not in nested columns such as ``reward_model.ground_truth``. A worked ``solution`` to a ``problem`` or
    ``question`` without a box gives no answer, but in a row with a ``prompt``, the ``solution`` is the answer (TRL). A
    response (:data:`RESPONSES`) without a mark is the answer if the response is one short line.

    Raises:
        UserError: every candidate is absent and the answer needed, or the value has another type; names ``where`` and
            the column.
    """
    found = first_value(row, columns.answer)
    if found is None:
        if not needs_answer:
            return ()
        raise UserError(f"{where}: no true answer: {absent_column(columns, 'answer', ANSWER)}")
    column, value = found
    remarks.taken["answer", column] += 1
    if value is None:
        return ()
    if isinstance(value, str) and _is_list_of_texts(held := held_structure(value)):
        remarks.others[f"{column} decoded from JSON text"] += 1
        value = held
    spelling = spelling_of(column.rpartition(".")[2])
    if spelling in RESPONSES and are_messages(value):
        value = read_messages([value] if is_message(value) else value, f"{where}: {column}", remarks)[-1]["content"]
    is_response = spelling in RESPONSES or (spelling == "solution" and columns.answer_is_named)
    worked = spelling == "solution" and not _has_prompt_of_trl(row, columns)
    texts: list[str] = []
    for answer in value if isinstance(value, (list, tuple)) else [value]:
        text = _sound(_answer_text(answer, where, column), where, column)
        texts.append(text)
        if text.strip().casefold() in NULL_TEXTS:
            remarks.others[f"{column} is the text {text.strip()!r}, taken as an answer"] += 1
        if isinstance(answer, bool):
            texts.append(text.lower())
        elif isinstance(answer, str) and is_response:
            texts[-1] = "".join(_response_answer(text))
        elif isinstance(answer, str) and spelling_of(column.partition(".")[0]) not in PLAIN:
            texts[-1] = final_answer(text, worked=worked)
    if all(_is_blank(text) for text in texts):
        return ()
    if any(_is_blank(text) for text in texts):
        raise UserError(f"{where}: {column}: an answer of the list is empty")
    return tuple(texts)


def _has_prompt_of_trl(row: Mapping[str, Any], columns: Columns) -> bool:
    return any(spelling_of(name) == "prompt" and not is_null(value_at(row, name)) for name in columns.prompt)


def _is_list_of_texts(held: Any) -> bool:
    return isinstance(held, list) and bool(held) and all(isinstance(item, str) for item in held)


def _is_blank(text: str) -> bool:
    return not text.strip() or text.strip().casefold() == "nan"


def _answer_text(answer: Any, where: str, column: str) -> str:
    """Return an answer as text, "" for null; a number without trailing zeros of a decimal and without an exponent."""
    if is_null(answer):
        return ""
    if isinstance(answer, (str, bool, int)):
        return str(answer)
    if isinstance(answer, (float, Decimal)):
        number = Decimal(str(answer))
        if not number.is_finite():
            raise UserError(f"{where}: {column}: expected a finite number, found {answer}")
        return _plain(number)
    keys = f" with {', '.join(map(str, answer))} ({column}.KEY names a value)" if isinstance(answer, Mapping) else ""
    raise UserError(
        f"{where}: {column}: expected text, a number, true or false, or a list of them, "
        f"found {type(answer).__name__}{keys}"
    )


def _plain(number: Decimal) -> str:
    if abs(number.adjusted()) > MAX_PLAIN_DIGITS:
        return str(number)
    plain = format(number, "f")
    return plain.rstrip("0").rstrip(".") if "." in plain else plain


def _response_answer(response: str) -> tuple[str, ...]:
    """Return the answer of a whole response: the marked answer, or a response of one short line; else ()."""
    conclusion = conclusion_of(response).strip()
    answer = final_answer(conclusion, worked=True)
    if not answer and (stated := _STATED.search(conclusion.rpartition("\n")[2])):
        return (stated["after_colon"] or stated["number"],)
    if not answer and "\\boxed" not in conclusion and len(conclusion) <= MAX_PLAIN_ANSWER and "\n" not in conclusion:
        answer = conclusion
    return (answer,) if answer.strip() else ()


def is_finished(message: str, answers: Sequence[str]) -> bool:
    """Return True if a message of the assistant is a whole response: with a marked answer, or a true answer itself."""
    conclusion = conclusion_of(message).strip()
    return bool(final_answer(conclusion, worked=True).strip()) or conclusion in answers


def _read_id(row: Mapping[str, Any], column: str, where: str) -> str:
    value = value_at(row, column)
    text = _sound(str(value).strip(), where, column)
    if is_null(value) or isinstance(value, bool) or not isinstance(value, (str, int)) or not text:
        raise UserError(f"{where}: {column}: expected an id, text or an integer")
    return text


def read_source_name(row: Mapping[str, Any], default: str, where: str) -> str:
    """Return the ``data_source`` of the row, or ``default`` if absent or empty.

    Raises:
        UserError: the value is not valid Unicode; names ``where``.
    """
    return _sound(" ".join(str(row.get("data_source") or default).split()), where, "data_source")


def other_columns(row: Mapping[str, Any], prompt_column: str = "") -> dict[str, Any]:
    """Return all columns except the prompt as JSON values, for reward functions.

    Values of other types, e.g. dates, become text; bytes are left out.
    """
    columns = {str(name): value for name, value in row.items() if name != prompt_column}
    return {name: _jsonable(value) for name, value in columns.items() if not isinstance(value, (bytes, bytearray))}


def _jsonable(value: Any) -> Any:
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(k): _jsonable(v) for k, v in value.items() if not isinstance(v, (bytes, bytearray))}
    if isinstance(value, (list, tuple)):
        return [_jsonable(item) for item in value if not isinstance(item, (bytes, bytearray))]
    return str(value)


def _sound(text: str, where: str, field: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:  # a lone surrogate: possible in JSON, unreadable for tokenizers
        raise UserError(f"{where}: {field} is not valid Unicode text") from None
    return text
