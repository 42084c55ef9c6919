"""Answers in texts: extraction from ``\\boxed{}``, normalisation, and equality of normalised strings."""

from __future__ import annotations

import re
from collections.abc import Sequence

BOX = "\\boxed{"
THINK_END = "</think>"
MAX_ANSWER_CHARS = 2_000  # a box with more characters than that is not an answer
MAX_BOXES = 32  # boxes of one response that are read


def conclusion_of(response: str) -> str:
    """Return the text after the last ``</think>``; the whole response without ``</think>``."""
    return response.rpartition(THINK_END)[2]


def extract_boxed(response: str) -> str | None:
    """Return the content of the last ``\\boxed{...}`` after the last ``</think>``, or None.

    Braces inside the box may nest. ``\\fbox{5}``, ``\\boxed {5}`` and ``\\boxed 5`` are boxes too. An unclosed
    box, or a box of more than :data:`MAX_ANSWER_CHARS` characters, gives None.
    """
    conclusion = _with_braces(conclusion_of(response))
    start = conclusion.rfind(BOX)
    return None if start < 0 else _box_content(conclusion, start + len(BOX))


def other_boxes(response: str) -> list[str]:
    """Return the distinct contents of the boxes before the last box, latest first, from :data:`MAX_BOXES` boxes.

    A box around another box, and an unclosed box, are left out.
    """
    conclusion = _with_braces(conclusion_of(response))
    end = conclusion.rfind(BOX)
    found: dict[str, None] = {}
    for _ in range(MAX_BOXES):
        following, end = end, conclusion.rfind(BOX, 0, max(end, 0))
        if end < 0:
            break
        content = _box_content(conclusion, end + len(BOX))
        if content is not None and end + len(BOX) + len(content) < following:
            found[content] = None
    return list(found)


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


def _with_braces(text: str) -> str:
    r"""Replace ``\boxed {5}``, ``\fbox{5}`` and ``\boxed 5`` by ``\boxed{5}``."""
    text = re.sub(r"\\(?:boxed|fbox) ?\{", r"\\boxed{", text)
    return re.sub(r"\\boxed ([^\s$.,\\{}]+)", r"\\boxed{\1}", text)


def _box_content(text: str, start: int) -> str | None:
    """Return the text from ``start`` to the matching closing brace, or None if the box stays open."""
    window = text[start : start + MAX_ANSWER_CHARS]
    # First without escaped braces, because \left\{ has no partner in a case distinction. If the box then stays open,
    # every brace counts, because the answer may end in a backslash.
    for pattern in (r"\\.|[{}]", r"[{}]"):
        depth = 1
        for brace in re.finditer(pattern, window, re.DOTALL):
            depth += {"{": 1, "}": -1}.get(brace.group(), 0)
            if depth == 0:
                return window[: brace.start()]
    return None


def normalize_answer(answer: str) -> str:
    """Return the canonical spelling of an answer.

    White space, dollar signs, percent signs, degree signs, bracket sizes (``\\left``), ``\\text``, thousands commas and
    trailing zeros of decimals are removed; ``\\dfrac`` and ``\\tfrac`` become ``\\frac``.
    """
    text = answer.replace("\\$", "").strip().strip("$").strip()
    text = re.sub(r"\\(?:[,;!:]|(?:left|right|displaystyle)(?![a-zA-Z]))", "", text)
    text = re.sub(r"\\(?:text|mathrm|mbox)\{([^{}]*)\}", r"\1", text)
    text = re.sub(r"\\[dt]frac(?![a-zA-Z])", r"\\frac", text)
    text = re.sub(r"\^\{?\\circ\}?|\\%|%", "", text)
    text = re.sub(r"\s+", "", text).rstrip(".")
    if re.fullmatch(r"[+-]?\d{1,3}(,\d{3})+(\.\d+)?", text):  # thousands; the comma of (100,101) stays
        text = text.replace(",", "")
    if re.fullmatch(r"[+-]?(?:\d+(?:\.\d+)?|\.\d+)", text):
        sign = "-" if text.startswith("-") else ""
        whole, _, fraction = text.lstrip("+-").partition(".")
        fraction = fraction.rstrip("0")
        text = sign + (whole.lstrip("0") or "0") + (f".{fraction}" if fraction else "")
    return "0" if text == "-0" else text


def is_correct(found: str | None, answers: Sequence[str]) -> bool:
    """Return True if ``found`` equals an accepted answer after :func:`normalize_answer`; empty answers never do."""
    normalized = "" if found is None else normalize_answer(found)
    return normalized != "" and any(normalize_answer(answer) == normalized for answer in answers)


def true_answers(answers: Sequence[str]) -> list[str]:
    """Return the non-empty accepted answers; for a worked solution, the content of the boxes."""
    found = [_all_boxes(answer) or answer for answer in answers]
    return [answer for answer in found if normalize_answer(answer)]


def _all_boxes(text: str) -> str | None:
    """Return the contents of all boxes as a list ``a, b``, or None without a box."""
    last = extract_boxed(text) if BOX in text else None
    return None if last is None else ", ".join([*reversed(other_boxes(text)), last])
