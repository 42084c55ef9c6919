"""Which texts are the same problem."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attnrl.config.base import PROMPT_SUFFIX
from attnrl.data.overlap import answers_key, find_overlap, normalize_text, question_key
from attnrl.types import Problem


def problem(prompt: str, *answers: str) -> Problem:
    return Problem(id=prompt, prompt=prompt, answers=answers or ("1",))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Find $x$.", "find x"),
        ("Let $a+b = 2014$, find\n\n$c$.", "Let $a + b=2014,$ find $c$"),
        ("What is \\(x\\)?", "What is $$x$$"),
        ("\\dfrac{1}{2}", "\\frac{1}{2}"),
        ("\\left( 3, \\, y \\right)", "(3, y)"),
        ("the “sum” of Euler’s", 'the "sum" of Euler\'s'),
        ("1,\\!000 and 1{,}000", "1,000 and 1,000"),
        ("an inﬁnite grid", "an infinite grid"),
        ("5 − 3", "5 - 3"),
        ("**Note** x", "Note x"),
    ],
)
def test_the_same_problem(one: str, other: str) -> None:
    assert normalize_text(one) == normalize_text(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("x + 1", "x - 1"),
        ("1.5", "15"),
        (".5", "5"),
        ("f(1,2)", "f(12)"),
        ("1 2", "12"),
        ("{1, 2}", "{12}"),
        ("n!", "n"),
        ("f'(x)", "f(x)"),
        ("2^{3}", "23"),
        ("x > 1", "x < 1"),
        ("a b", "ab"),
    ],
)
def test_not_the_same_problem(one: str, other: str) -> None:
    assert normalize_text(one) != normalize_text(other)


@given(st.text(alphabet=st.characters(codec="utf-8")))
def test_spaces_around_and_doubled_never_matter(text: str) -> None:
    assert normalize_text(f"  {text}\n") == normalize_text(text)
    assert normalize_text(text.replace(" ", "  ")) == normalize_text(text)


@given(st.lists(st.sampled_from(["Find", "$x$", "+", "12", "3.5", "\\frac{1}{2}", "for", "all", "n!"]), min_size=1))
def test_normalising_twice_changes_nothing(words: list[str]) -> None:
    once = normalize_text(" ".join(words))
    assert normalize_text(once) == once


def test_the_suffix_and_the_rest_of_a_chat_do_not_matter() -> None:
    chat = Problem(
        id="c",
        prompt=({"role": "system", "content": "Think."}, {"role": "user", "content": f"Find $x$.{PROMPT_SUFFIX}"}),
        answers=("1",),
    )
    mine = problem("Find $x$. Answer now!")
    assert question_key(chat) == question_key(problem("Find x")) == question_key(mine, " Answer now!")


def test_overlap_names_the_training_problem_and_the_first_that_it_equals() -> None:
    training = [problem("Find $x$."), problem("Find $y$."), problem("find z")]
    evaluation = [problem("Find z?"), problem("find x"), problem("Find x")]
    assert find_overlap(training, evaluation) == {0: evaluation[1], 2: evaluation[0]}
    assert find_overlap(training, []) == find_overlap([], evaluation) == {}


def test_answers_are_compared_as_the_rules_of_grading_do() -> None:
    assert answers_key(problem("?", "072", "x")) == answers_key(problem("?", "x", "72"))
    assert answers_key(problem("?", "72")) != answers_key(problem("?", "73"))
