"""Token soup and hostile answers through the ``math`` grader: a known verdict for each, in bounded time.

``tests/hostile.py`` draws characters and bytes; here the pieces are those of answers, so that more of them are read as
values. ``benchmarks/hostile_answers.py`` has the answers that need much time, memory or stack.
"""

from __future__ import annotations

import importlib
import random
import time
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path
from types import ModuleType
from typing import get_args

import pytest

from attnrl.grading.base import ClosableGrader
from attnrl.grading.registry import build_grader
from attnrl.types import Grade, Problem, Verdict

DEADLINE = 1.0


def pieces(text: str) -> list[str]:
    """Return the pieces between white space; ``␣`` stands for a space inside a piece."""
    return [piece.replace("␣", " ") for piece in text.split()]


ATOMS = pieces(
    r"0 1 2 10 12 100 1000 3.5 .5 0.25 1,000 1{,}000 x y n k R e i \pi \infty \theta \alpha x_1 a_{n} f(x) f'(x) dx"
    r" \emptyset \mathbb{R} ½ π"
)
WORDS = pieces(
    r"\text{even} \text{␣cm} \text{␣or␣} \text{and} \mathrm{m} yes true A (B) Monday km \text{␣million} \% % ^\circ"
    r" ^{\circ} \$ p.m. \pmod␣7 \bmod␣4 _8 _{10} dozen"
)
SIGNS = pieces(
    r"+ - * / \cdot␣ \times␣ \div␣ \pm␣ \mp␣ = < \le␣ > \ge␣ \ne␣ \in␣ \cup␣ \cap␣ \setminus␣ , ,␣ ; : \colon␣"
    r" \approx␣ \to␣ \Rightarrow␣ \mid␣ \lor␣ ! !! ' ^ ^2 ^{-1} _ | \& & \\ \quad␣ \, \! ~ ␣ . \ldots␣ \cdots␣"
)
OPENING = pieces(
    r"( [ \{ { \left( \left[ \lfloor␣ \lceil␣ | \sqrt{ \sqrt[3]{ \frac{1}{ \text{ \frac{ ^{ _{ \sin( \ln␣ \log_2␣"
    r" \binom{5}{ \gcd( \max( \overline{ \boldsymbol{ \begin{pmatrix} \begin{cases} \sum_{k=1}^{10} \int_0^1␣"
    r" \lim_{x\to␣0} \displaystyle␣ {\bf␣"
)
CLOSING = pieces(r") ] \} } \right) \right] \rfloor \rceil | }{2} \end{pmatrix} \end{cases} dx")
MATCHING = {
    "(": ")",
    "[": "]",
    "\\{": "\\}",
    "\\left(": "\\right)",
    "\\left[": "\\right]",
    "\\lfloor ": "\\rfloor",
    "|": "|",
}
MATCHING |= {"\\lceil ": "\\rceil", "\\sin(": ")", "\\gcd(": ")", "\\max(": ")", "\\begin{pmatrix}": "\\end{pmatrix}"}
MATCHING |= {"\\frac{": "}{2}", "\\begin{cases}": "\\end{cases}", "\\ln ": "", "\\log_2 ": "", "\\displaystyle ": ""}
MATCHING |= {"\\sum_{k=1}^{10}": "", "\\int_0^1 ": "dx", "\\lim_{x\\to 0}": ""}


def soup(rng: random.Random) -> str:
    """Pieces in any order: rarely readable."""
    pools = [ATOMS, ATOMS, WORDS, SIGNS, SIGNS, OPENING, CLOSING]
    return "".join(rng.choice(rng.choice(pools)) for _ in range(rng.randint(1, 14)))


def phrase(rng: random.Random, depth: int = 0) -> str:
    """Pieces that nearly fit: atoms, signs between them and closed brackets; mostly readable."""
    kind = rng.random()
    if depth > 3 or kind < 0.4:
        text = rng.choice(ATOMS)
    elif kind < 0.75:
        text = f"{phrase(rng, depth + 1)}{rng.choice(SIGNS)}{phrase(rng, depth + 1)}"
    else:
        opening = rng.choice(OPENING)
        text = f"{opening}{phrase(rng, depth + 1)}{MATCHING.get(opening, '}')}"
    return text + (rng.choice(WORDS) if rng.random() < 0.08 else "")


def closes_braces(text: str) -> bool:
    """Return True if the text in a box ends where the box ends."""
    depths = list(
        accumulate((character == "{") - (character == "}") for character in text.replace("\\{", "").replace("\\}", ""))
    )
    return min(depths, default=0) >= 0 and depths[-1:] in ([], [0])


def texts(rng: random.Random, count: int) -> list[str]:
    return [rng.choice([soup, phrase, phrase])(rng) for _ in range(count)]


@pytest.fixture(scope="module")
def grader() -> Iterator[ClosableGrader]:
    with build_grader("math", workers=2, deadline=DEADLINE) as built:
        yield built


def require_grades(grades: list[Grade], count: int) -> None:
    assert len(grades) == count
    for grade in grades:
        assert grade.verdict in get_args(Verdict)
        expected = None if grade.verdict in ("bad_gold", "not_judged") else float(grade.verdict == "correct")
        assert grade.reward == expected
        assert grade.answer is None or isinstance(grade.answer, str)


@pytest.mark.parametrize("sign", ["-", "+", "--", "/", "\\frac", "-\\frac", "-/", "%", "-%", ".", "-.", "\\pm"])
def test_signs_alone_have_a_verdict(grader: ClosableGrader, sign: str) -> None:
    """A text without a number, as an answer and as a gold, ends neither the grader nor the comparison."""
    problems = [Problem("0", "?", ("5",)), Problem("1", "?", (sign,)), Problem("2", f"Find ${sign}$.", ("5",))]
    grades = grader.grade(problems, [f"\\boxed{{{text}}}" for text in (sign, "5", sign)])
    assert {grade.verdict for grade in grades} <= {"wrong", "no_answer", "bad_gold"}


@pytest.mark.parametrize("seed", range(2))
def test_token_soup_has_a_verdict(grader: ClosableGrader, seed: int) -> None:
    """Soup as answer, as gold and as problem text; few comparisons run into the deadline."""
    rng = random.Random(seed)
    golds, answers, prompts = texts(rng, 300), texts(rng, 300), texts(rng, 300)
    problems = [
        Problem(str(n), f"Find ${prompt}$.", (gold,))
        for n, (prompt, gold) in enumerate(zip(prompts, golds, strict=True))
    ]
    fixed = [Problem(str(n), prompt, ("5",)) for n, prompt in enumerate(prompts)]
    started = time.monotonic()
    grades = grader.grade([*problems, *fixed], [f"So \\boxed{{{answer}}}." for answer in [*answers, *answers]])
    assert time.monotonic() - started < 120
    require_grades(grades, 600)
    assert sum(grade.verdict in ("timeout", "error") for grade in grades) <= 30


def test_a_readable_text_equals_itself(grader: ClosableGrader) -> None:
    rng = random.Random(7)
    phrases = [text for text in texts(rng, 300) if closes_braces(text)]
    grades = grader.grade(
        [Problem(str(n), "?", (text,)) for n, text in enumerate(phrases)],
        [f"\\boxed{{{text}}}" for text in phrases],
    )
    require_grades(grades, len(phrases))
    refused = [(text, grade.verdict) for text, grade in zip(phrases, grades, strict=True) if grade.verdict == "wrong"]
    assert refused == []


def test_soup_in_several_boxes_and_without_boxes() -> None:
    rng = random.Random(11)
    responses = [" so ".join(f"\\boxed{{{text}}}" for text in texts(rng, rng.randint(2, 6))) for _ in range(100)]
    responses += [f"The answer is ${text}$" for text in texts(rng, 100)]
    golds = texts(rng, 200)
    with build_grader("math", flexible=True, workers=2, deadline=DEADLINE) as flexible:
        grades = flexible.grade([Problem(str(n), "?", (gold, "5")) for n, gold in enumerate(golds)], responses)
    require_grades(grades, 200)


@pytest.fixture(scope="module")
def hostile() -> Iterator[ModuleType]:
    """The module ``benchmarks/hostile_answers.py``."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
        yield importlib.import_module("hostile_answers")


#: Hostile answers that are the number itself: much markup, one value.
HARMLESS = {
    *("round brackets", "braces", "sized brackets", "floors", "boxes closed", "text", "text and dollars", "lines over"),
    *(
        "colors",
        "fonts",
        "one box in hundreds",
        "boxes",
        "braces unbalanced",
        "matrices",
        "cases",
        "square brackets",
        "directions",
        "dollars around",
        "line breaks",
        "equations",
    ),
}


def test_a_hostile_answer_is_refused_in_time(grader: ClosableGrader, hostile: ModuleType) -> None:
    """Hostile answers for 17: none is correct but the number itself under markup; the next comparison works."""
    names = list(hostile.HOSTILE)
    pairs = [hostile.numbered(name, 17) for name in names]
    problems = [Problem(name, text, ("17",)) for name, (text, _) in zip(names, pairs, strict=True)]
    slow, accepted = [], []
    for name, problem, (_, answer) in zip(names, problems, pairs, strict=True):
        started = time.monotonic()
        (grade,) = grader.grade([problem], [f"\\boxed{{{answer}}}"])
        require_grades([grade], 1)
        if grade.verdict == "correct" and name not in HARMLESS:
            accepted.append(name)
        if time.monotonic() - started > 8 * (DEADLINE + 1.0):  # at most eight boxes, and a new worker for each
            slow.append(name)
    assert (slow, accepted) == ([], [])
    sound = [Problem("0", "?", ("\\frac{1}{2}",))] * 2
    assert [grade.verdict for grade in grader.grade(sound, ["\\boxed{0.5}", "\\boxed{0.25+x}"])] == ["correct", "wrong"]


def test_a_hostile_gold_ends_in_time(grader: ClosableGrader, hostile: ModuleType) -> None:
    pairs = [hostile.numbered(name, 17) for name in hostile.HOSTILE]
    started = time.monotonic()
    grades = grader.grade(
        [Problem(str(n), "?", (gold,)) for n, (_, gold) in enumerate(pairs)], ["\\boxed{7+x}"] * len(pairs)
    )
    assert time.monotonic() - started < len(pairs) * (DEADLINE + 1.0)
    require_grades(grades, len(pairs))
    assert all(grade.verdict != "correct" for grade in grades)
