"""Answers in texts: the boxes of a response, and the true answers of data sets."""

from __future__ import annotations

import re
from collections.abc import Sequence

from attnrl.grading.reading.characters import undoubled
from attnrl.grading.reading.spelling import spelling
from attnrl.method.steps import THINK_END

MAX_WORDS_BETWEEN_BOXES = 2  # of a true answer with several boxes
MAX_ANSWER_CHARS = 2_000  # a box with more characters than that is not an answer


def conclusion_of(response: str) -> str:
    """Return the text after the last ``</think>``; the whole response without ``</think>``."""
    return response.rpartition(THINK_END)[2]


def without_unfinished_thought(response: str, *, thinking: bool = False, think_end: str = THINK_END) -> str:
    """Return the response without a thought that never ends; boxes inside of an unfinished thought are no answers.

    Args:
        response: text of the response.
        thinking: the prompt ends inside of a thought, which the response has to end.
        think_end: the mark of the end of a thought; without the slash, the mark of the beginning.
    """
    before, end, after = response.rpartition(think_end)
    if thinking and not end:
        return ""
    think_begin = think_end.replace("/", "", 1)
    if think_begin == think_end or think_begin not in after:
        return response
    return before + end + after[: after.index(think_begin)]


def extract_boxed(response: str) -> str | None:
    """Return the content of the last ``\\boxed{...}`` after the last ``</think>``, or None.

    Braces inside the box may nest; of nested boxes, the outer box counts. ``\\fbox{5}``, ``\\boxed {5}``,
    ``\\boxed 5`` and ``\\boxed\\{5\\}`` are boxes too. An unclosed last box, or a box of more than
    :data:`MAX_ANSWER_CHARS` characters, gives None.
    """
    found = _boxes(conclusion_of(response))
    return found[-1][2] if found else None


def all_boxes(response: str) -> list[str]:
    """Return the contents of the boxes after the last ``</think>``, in order, without nested and unclosed boxes."""
    return [content for _, _, content in _boxes(conclusion_of(response)) if content is not None]


def final_answer(text: str, *, worked: bool = False) -> str:
    """Return the true answer stated in a field of a data set.

    The answer is the text after ``####`` in the last line (GSM8K), or else the content of the last box (MATH), or else
    the whole text. An unreadable box gives ``""``. With ``worked`` (the text is a worked solution), a text without
    ``####`` and without a box gives ``""`` too.
    """
    last_line = text.rstrip().rsplit("\n", 1)[-1]
    before, mark, marked = last_line.rpartition("####")
    if mark and not before.strip("# "):
        marked = marked.strip()
        return marked.replace(",", "") if re.fullmatch(r"[-+$]*\d{1,3}(,\d{3})+(\.\d+)?", marked) else marked
    box = extract_boxed(re.sub(r"(\\(?:boxed|fbox))\s+", r"\1 ", text))  # data sets break lines before a brace
    if box is not None:
        return box.strip()
    return "" if worked or "\\boxed" in text else text


def last_number(response: str) -> str | None:
    """Return the last number after the last ``</think>``, or None."""
    numbers = re.findall(r"-?\d[\d,]*(?:\.\d+)?", conclusion_of(response)[-MAX_ANSWER_CHARS:])
    return numbers[-1].rstrip(",") if numbers else None


_PART = re.compile(r"(?P<box>\\{1,2}(?:boxed|fbox)\s*(?P<opening>\\?\{))|\\.|[{}]", re.DOTALL)
_WITHOUT_BRACES = re.compile(r"\\(?:boxed|fbox)[ \n]+([^\s$.,\\{}]+)")


def _boxes(text: str) -> list[tuple[int, int, str | None]]:
    """Return start, end and content of the outer boxes of a text, in order.

    The content of an unclosed box, and of a box too long, is None.
    """
    text = undoubled(text)
    text = _WITHOUT_BRACES.sub(r"\\boxed{\1}", text)
    if "\\boxed" not in text and "\\fbox" not in text:
        return []
    # First without escaped braces, because \left\{ has no partner in a case distinction. If a box then stays open,
    # every brace counts, because the answer may end in a backslash.
    spans = _box_spans(text, escapes=True)
    if any(end is None for _, end in spans):
        closed = dict(_box_spans(text, escapes=False))
        spans = [(start, end if end is not None else closed.get(start)) for start, end in spans]
    outer: list[tuple[int, int, str | None]] = []
    ends = dict(spans)
    reached = 0
    for start, end in sorted(spans):
        if start < reached:
            continue
        reached = end or reached
        while end is not None and (inner := _PART.match(text, start)) and inner["box"] and ends[inner.end()] == end - 1:
            start, end = inner.end(), end - 1  # a box around nothing but a box
        content = None if end is None or end - start > MAX_ANSWER_CHARS else text[start:end]
        outer.append((start, len(text) if end is None else end, content))
    return outer


def _box_spans(text: str, *, escapes: bool) -> list[tuple[int, int | None]]:
    """Return start and end of the content of each box; the end of an unclosed box is None."""
    spans: dict[int, int | None] = {}
    open_braces: list[tuple[str, int]] = []
    for part in _PART.finditer(text):
        piece = part[0]
        if part["box"]:
            spans[part.end()] = None
            open_braces.append((part["opening"].replace("{", "}"), part.end()))
        elif piece == "{":
            open_braces.append(("}", -1))
        elif open_braces and (piece == open_braces[-1][0] or (piece == "\\}" and not escapes)):
            _, start = open_braces.pop()
            if start >= 0:
                spans[start] = part.end() - (1 if piece == "\\}" and not escapes else len(piece))
    return list(spans.items())


def true_answers(answers: Sequence[str]) -> list[str]:
    """Return the non-empty accepted answers; for a worked solution, the content of the last box.

    Several boxes close together, as in ``\\boxed{2} and \\boxed{-2}``, give a list ``2, -2``.
    """
    found = [_last_boxes(answer) or answer for answer in answers]
    return [answer for answer in found if spelling(answer) is not None]


def _last_boxes(text: str) -> str:
    """Return the last box and the boxes before with at most two words between, as a list."""
    text = undoubled(text)
    kept: dict[object, str] = {}
    following = -1
    for start, end, content in reversed(_boxes(text)):
        between = re.sub(r"\\[a-z]+", "", text[end:following]) if following >= 0 else ""
        if content is None or len(re.findall(r"\w+", between)) > MAX_WORDS_BETWEEN_BOXES:
            break
        kept.setdefault(spelling(content), content)
        following = start
    return ", ".join(reversed(kept.values()))
