"""Extraction of the answer of a response, normalisation, and equality by rules."""

import time
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attnrl.grading.answers import all_boxes, extract_boxed, final_answer, true_answers
from attnrl.grading.reading.spelling import spelling
from attnrl.grading.rules import RulesGrader
from attnrl.types import Problem


def rewards_of(**settings: bool) -> Callable[[Sequence[Sequence[str]], Sequence[str]], list[float]]:
    """Return a function from accepted answers and responses to the rewards of the ``rules`` grader."""

    def rewards(answers: Sequence[Sequence[str]], responses: Sequence[str]) -> list[float]:
        problems = [Problem(str(i), "?", tuple(accepted)) for i, accepted in enumerate(answers)]
        return [grade.reward for grade in RulesGrader(**settings).grade(problems, responses)]

    return rewards


@pytest.mark.parametrize(
    ("response", "found"),
    [
        ("so \\boxed{6}", "6"),
        ("\\boxed{5} no, \\boxed{6}", "6"),
        ("\\boxed{\\frac{1}{2}}", "\\frac{1}{2}"),
        ("\\boxed{{{a}}{b}} rest}", "{{a}}{b}"),
        ("\\boxed{\\boxed{6}}", "6"),
        ("\\boxed{}", ""),
        ("\\boxed{5} <think> \\boxed{6} </think> it is \\boxed{7}", "7"),
        ("\\boxed{a\nb}", "a\nb"),
        ("\\boxed{\\left\\{ 1 \\right.}", "\\left\\{ 1 \\right."),
        ("\\boxed{\\{1, 2\\}}", "\\{1, 2\\}"),
        ("\\boxed{1\\}", "1\\"),
        ("no box at all", None),
        ("", None),
        ("boxed{6}", None),
        ("\\boxed 6", "6"),
        ("\\boxed{6", None),
        ("\\boxed{\\frac{1}{2}", None),
        ("\\boxed{5} and \\boxed{6", None),
        ("\\boxed{6} </think> so it is 6", None),
        ("\\boxed{6} </think> \\boxed{7} </think>", None),
    ],
)
def test_the_last_box_of_the_conclusion_counts(response: str, found: str | None) -> None:
    assert extract_boxed(response) == found


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("1,000", "1000"),
        ("1,234,567.50", "1234567.5"),
        ("-12,345", "-12345"),
        ("\\$32,\\!348", "32348"),
        ("0.50", ".5"),
        ("007", "7"),
        ("+7", "7"),
        ("7.000", "7"),
        ("7.", "7"),
        ("-0", "0"),
        ("-0.0", "0"),
        ("\\dfrac{1}{2}", "\\frac{1}{2}"),
        ("\\tfrac12", "\\frac12"),
        ("\\text{Evelyn}", "Evelyn"),
        ("\\mathrm{B}", "B"),
        ("5 \\text{ cm}", "5cm"),
        ("90^\\circ", "90"),
        ("90^{\\circ}", "90"),
        ("50\\%", "50"),
        ("50%", "50"),
        ("$2n$", "2n"),
        ("\\$18.90", "18.9"),
        (" \\$ 5", "5"),
        ("9.6\n", "9.6"),
        ("\\left( 3, \\frac{\\pi}{2} \\right)", "(3,\\frac{\\pi}{2})"),
        ("(100,101)", "(100, 101)"),
        ("3\\,x", "3x"),
        ("3\\, x", "3x"),
        ("\\displaystyle 3", "3"),
    ],
)
def test_the_same_answer_in_other_words(one: str, other: str) -> None:
    grade = rewards_of()
    assert grade([[one]], [f"\\boxed{{{other}}}"]) == grade([[other]], [f"\\boxed{{{one}}}"]) == [1.0]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("1", "2"),
        ("1", "-1"),
        ("1", "10"),
        ("10", "100"),
        ("0.5", "5"),
        ("0.05", "0.5"),
        ("1.10", "1.01"),
        ("(100,101)", "(100101)"),
        ("(1,2)", "(2,1)"),
        ("1,2", "12"),
        ("12,34", "1234"),
        ("\\frac{1}{2}", "\\frac{2}{1}"),
        ("a", "A"),
        ("x^2", "x2"),
        ("2n", "n"),
        ("\\leftarrow", "arrow"),
        ("\\{1\\}", "1"),
    ],
)
def test_other_answers_are_not_the_same(one: str, other: str) -> None:
    assert rewards_of()([[one], [other]], [f"\\boxed{{{other}}}", f"\\boxed{{{one}}}"]) == [0.0, 0.0]


def test_any_accepted_answer_will_do() -> None:
    grade = rewards_of()
    assert grade([["1", "2"]] * 3, ["\\boxed{1}", "\\boxed{2.0}", "\\boxed{3}"]) == [1.0, 1.0, 0.0]


def test_nothing_is_never_correct() -> None:
    """An empty box is not correct, even if the normalised true answer is empty too."""
    grade = rewards_of()
    assert grade([["1"], ["1"], ["1"]], ["\\boxed{}", "1", "\\boxed{ }"]) == [0.0] * 3
    assert grade([[""], ["$$"]], ["\\boxed{}", "\\boxed{\\%}"]) == [None, None]  # not judged: no true answer


def test_answers_and_responses_must_be_as_many() -> None:
    with pytest.raises(ValueError):
        rewards_of()([["1"]], [])


mathematics = st.lists(
    st.sampled_from(
        [
            *("\\boxed{", "}", "{", "</think>", "\\frac", "\\text{", "\\left", "\\right", "$", "\\$", ",", "000", "1"),
            *(".", "-", "+", "^\\circ", "^{", "%", "\\", " ", "\n", "\\,", "٣", "²", "é", "\x00", "\ud83d"),
        ]
    ),
    max_size=40,
).map("".join)


@pytest.mark.parametrize(
    ("response", "found"),
    [
        ("\\boxed{1}", ["1"]),
        ("none", []),
        ("\\boxed{1}, \\boxed{2}, \\boxed{1}, \\boxed{3}", ["1", "2", "1", "3"]),
        ("\\boxed{1} </think> \\boxed{2}", ["2"]),
        ("\\boxed{\\boxed{6}}", ["6"]),
        ("\\boxed{23 \\boxed{17}}", ["23 \\boxed{17}"]),
        ("\\boxed{1 and \\boxed{2}", ["2"]),
        ("\\boxed\\{17\\}", ["17"]),
        ("".join(f"\\boxed{{{n}}}" for n in range(100)), [str(n) for n in range(100)]),
    ],
)
def test_boxes_in_order(response: str, found: list[str]) -> None:
    assert all_boxes(response) == found


def test_true_answers_that_say_something() -> None:
    assert true_answers(["5", "", "$$", "So it is $\\boxed{7}$.", "\\boxed{1} and \\boxed{2}"]) == ["5", "7", "1, 2"]


@given(mathematics | st.text(max_size=60), mathematics | st.text(max_size=60))
def test_grading_never_raises(answer: str, response: str) -> None:
    (reward,) = rewards_of()([[answer]], [response])
    assert reward in (0.0, 1.0) if true_answers([answer]) else reward is None
    assert spelling(response) == spelling(response + " ")
    assert all(box in response or "boxed" in response for box in all_boxes(response))


@given(mathematics | st.text(max_size=60))
def test_an_answer_without_braces_is_itself_when_boxed(answer: str) -> None:
    answer = answer.replace("{", "").replace("}", "").replace("</think>", "")
    expected = 1.0 if spelling(answer) is not None else None  # None: the true answer is empty
    assert rewards_of()([[answer]], [f"so \\boxed{{{answer}}}."]) == [expected]


@given(st.integers(-(10**12), 10**12))
def test_numbers_with_and_without_thousands(number: int) -> None:
    assert spelling(f"{number:,}") == spelling(str(number))


@pytest.mark.parametrize(
    "hostile",
    [
        "{" * 200_000,
        "\\boxed{" * 50_000,
        "\\boxed{" + "{" * 100_000,
        "\\boxed{" + "1," * 100_000 + "}",
        "\\boxed{" + "1" * 1_900 + "x}",
        "\\boxed{" + "\\text{" * 300 + "}",
        "\\boxed{" + "1,000" * 350 + "}",
        "\\boxed{" + " " * 1_900 + "}",
        "\\boxed{" + "0." * 900 + "}",
        "</think>" * 50_000,
        "\\boxed{1}" * 50_000,
        "\\boxed{" + "1" * 1_990 + "!}",
    ],
)
def test_hostile_responses_are_graded_at_once(hostile: str) -> None:
    started = time.perf_counter()
    rewards_of()([["1"]], [hostile])
    assert time.perf_counter() - started < 2


def test_flexible_grading_takes_the_last_number_only_where_nothing_is_boxed() -> None:
    grade = rewards_of(flexible=True)
    responses = [
        "3 and 4 make 7.",
        "1,007, I think",
        "\\boxed{8} and not 7",
        "no number",
        "7 </think> none",
        "-7",
    ]
    assert grade([["7"], ["1007"], ["7"], ["7"], ["7"], ["7"]], responses) == [1.0, 1.0, 0.0, 0.0, 0.0, 0.0]
    assert rewards_of()([["7"]], ["3 and 4 make 7."]) == [0.0]


@pytest.mark.parametrize("box", ["\\boxed {5}", "\\fbox{5}", "\\boxed 5", "\\fbox {5}", "so $\\boxed 5$."])
def test_boxes_in_other_spellings(box: str) -> None:
    assert extract_boxed(box) == "5"


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("\\boxed{1} and \\boxed{2}", "2"),
        ("\\boxed{\\frac{1}{\\sqrt{2}}}", "\\frac{1}{\\sqrt{2}}"),
        ("\\boxed{ \\{1, 2\\} }.", "\\{1, 2\\}"),
        ("\\boxed{\\left\\{1\\right.}", "\\left\\{1\\right."),
        ("$\\boxed 5$", "5"),
        ("\\boxed\n{5}", "5"),
        ("\\fbox{A}", "A"),
        ("6 * 12\n#### 72", "72"),
        ("#### $1,234", "$1234"),
        ("\\boxedfoo{5}", ""),
        ("\\boxed{5", ""),
        ("\\boxed", ""),
        ("5", ""),
    ],
)
def test_the_answer_of_a_worked_solution(text: str, answer: str) -> None:
    assert final_answer(text, worked=True) == answer


@pytest.mark.parametrize("text", ["5", "C#", "# Title\n#### 5\nis the start"])
def test_a_text_without_a_mark_is_the_answer(text: str) -> None:
    assert final_answer(text) == text


@given(st.text())
def test_any_text_has_a_final_answer(text: str) -> None:
    assert isinstance(final_answer(text), str)
    assert extract_boxed(f"so \\boxed{{{text}") is None or "}" in text or "\\" in text
