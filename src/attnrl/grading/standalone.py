"""The grader as a function, for reward functions and scorers of other projects.

Each process has a single :class:`attnrl.grading.math.MathGrader`, built by the first call. Worker processes start with
the first comparison by computer algebra and end with the process. The functions take calls from any thread, a call at
a time; the child of a fork builds a grader of its own.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

from attnrl.grading.answers import final_answer
from attnrl.grading.math import MathGrader
from attnrl.types import Chat, Grade, Problem

Messages = Sequence[Any]  # mappings (``{"role": ..., "content": ...}``) or objects with the same attributes
Answer = str | float | Sequence[str | float]


def grade(response: str | Messages, answer: Answer, prompt: str | Messages = "") -> Grade:
    """Grade a single response with the grader ``math``.

    Args:
        response: text, or chat messages: the last message of the assistant is graded. The content of a message is
            text, a list of parts (the parts of type ``text`` are joined), or None (empty text).
        answer: the accepted answer, text or a number, or a sequence of accepted answers. A worked solution is replaced
            by the answer after ``####`` or in the last ``\\boxed{}`` (:func:`attnrl.grading.answers.final_answer`).
        prompt: text or chat messages of the problem. With the prompt, a copy of the problem is wrong.

    Raises:
        TypeError: an argument has another type.
        ValueError: ``response`` holds messages, but no message of the assistant.
        UserError: no worker process can be started.
    """
    return grade_batch([response], [answer], [prompt])[0]


def grade_batch(
    responses: Sequence[str | Messages],
    answers: Sequence[Answer],
    prompts: Sequence[str | Messages] | None = None,
) -> list[Grade]:
    """Grade many responses and return a grade per response, in order.

    The workers compare side by side, and equal comparisons run once: faster than many calls of :func:`grade`.

    Args:
        responses: N responses, each as in :func:`grade`.
        answers: N answers, each as in :func:`grade`.
        prompts: N prompts, each as in :func:`grade`; None: no prompts, and copies of the problems are not detected.

    Raises:
        TypeError: an argument has another type.
        ValueError: the lengths differ, or messages hold no message of the assistant.
        UserError: no worker process can be started.
    """
    texts = [_response(response) for response in _items("responses", responses)]
    golds = [accepted_answers(answer) for answer in _items("answers", answers)]
    asked = [""] * len(texts) if prompts is None else [_prompt(prompt) for prompt in _items("prompts", prompts)]
    if not len(texts) == len(golds) == len(asked):
        prompted = "" if prompts is None else f", {len(asked)} prompts"
        raise ValueError(f"as many answers as responses: found {len(texts)} responses, {len(golds)} answers{prompted}")
    problems = [Problem(str(row), prompt, gold) for row, (prompt, gold) in enumerate(zip(asked, golds, strict=True))]
    return _SHARED.grade(problems, texts)


def accepted_answers(answer: Answer) -> tuple[str, ...]:
    """Return the accepted answers as text, each reduced to the final answer of a worked solution.

    Raises:
        TypeError: ``answer`` is not text, a number, or a sequence of text and numbers.
    """
    answers = [answer] if isinstance(answer, (str, Real)) else _items("answer", answer)
    for item in answers:
        if not isinstance(item, (str, Real)) or isinstance(item, bool):
            raise TypeError(f"answer: expected text or a number, found {type(item).__name__}")
    return tuple(final_answer(str(item)) for item in answers)


class _SharedGrader:
    """The grader of the process, built by the first call, behind a lock.

    The cache of :class:`MathGrader` is not safe without the lock.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._grader: MathGrader | None = None

    def grade(self, problems: Sequence[Problem], responses: Sequence[str]) -> list[Grade]:
        with self._lock:
            if self._grader is None:
                self._grader = MathGrader()
            return self._grader.grade(problems, responses)

    def forget(self) -> None:
        """Start anew in the child of a fork: workers, and a lock held by another thread, belong to the parent."""
        self._lock = threading.Lock()
        self._grader = None


_SHARED = _SharedGrader()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_SHARED.forget)


def _items(name: str, values: Any) -> list[Any]:
    """Return the items of a list, tuple, array or column.

    Raises:
        TypeError: ``values`` is text, a mapping, or not iterable.
    """
    if isinstance(values, (str, bytes, Mapping)) or not hasattr(values, "__iter__"):
        raise TypeError(f"{name}: expected a sequence, found {type(values).__name__}")
    return list(values)


def _response(response: str | Messages) -> str:
    if isinstance(response, str):
        return response
    messages = _messages("response", response)
    contents = [_text(message) for message in messages if _field(message, "role") == "assistant"]
    if messages and not contents:
        raise ValueError("response: no message of the assistant")
    return contents[-1] if contents else ""


def _prompt(prompt: str | Messages) -> str | Chat:
    if isinstance(prompt, str):
        return prompt
    messages = _messages("prompt", prompt)
    return tuple({"role": _field(message, "role"), "content": _text(message)} for message in messages)


def _messages(name: str, values: Any) -> list[Any]:
    """Return the chat messages of a response or prompt.

    Raises:
        TypeError: not a sequence of messages with a role.
    """
    messages = _items(name, values)
    for message in messages:
        if not isinstance(_field(message, "role"), str):
            raise TypeError(f"{name}: expected text or chat messages with a role, found {type(message).__name__}")
    return messages


def _text(message: Any) -> str:
    """Return the text of a message; parts of other types (images) are left out.

    Raises:
        TypeError: the content is not text, None, or a list of parts.
    """
    content = _field(message, "content")
    if content is None or isinstance(content, str):
        return content or ""
    parts = _items("content of a message", content)
    return "".join(str(_field(part, "text")) for part in parts if _field(part, "type") == "text")


def _field(item: Any, key: str) -> Any:
    return item.get(key) if isinstance(item, Mapping) else getattr(item, key, None)
