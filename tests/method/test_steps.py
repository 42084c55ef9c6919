import re
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attnrl.method.steps import Steps, StepSettings, split_steps

texts = st.text(alphabet="ab.\n", max_size=40)


@st.composite
def cut_texts(draw: st.DrawFn) -> list[str]:
    """A text cut into pieces at random places; some pieces are empty."""
    text = draw(texts)
    cuts = sorted(draw(st.lists(st.integers(0, len(text)), max_size=20)))
    return [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]


@pytest.mark.parametrize(
    ("pieces", "starts"),
    [
        ([], ()),
        (["a", "\n\n", "b"], (0, 2)),
        (["a", ".\n\n", "b"], (0, 2)),  # delimiter inside a token
        (["a", "\n", "\n", "b"], (0, 3)),  # spread over tokens
        (["a", ".\n", "\n\n", "\n", "b"], (0, 4)),  # a long run is one delimiter
        (["a", "\n\nThe", " b"], (0, 2)),  # text after the delimiter in the same token
        (["a\n\nb\n\nc", "d"], (0, 1)),  # two delimiters in one token
        (["a", "\n\n", "", "b"], (0, 2)),  # part of a character opens the next step
        (["a", "\n\n", "b", "\n\n"], (0, 2)),  # trailing delimiter
        (["a", "\n\n", "b", "\n\n", ""], (0, 2)),  # and an end-of-sequence token that prints nothing
        (["\n\n", "a", "\n\n", "b"], (0, 3)),  # leading delimiter
        (["a", "\n\n", "b", "\n", "c"], (0, 2)),  # single newlines do not count beside double ones
        (["a", "\n", "b", "\n", "c"], (0, 2, 4)),  # alone they do
        (["a", "\n\n", "", ""], (0,)),
        (["\n\n"], (0,)),
    ],
)
def test_boundaries(pieces: list[str], starts: tuple[int, ...]) -> None:
    assert split_steps(pieces) == Steps(starts, len(pieces))


def test_text_without_newlines_falls_back_to_chunks() -> None:
    assert split_steps(["a"] * 10, StepSettings(chunk_tokens=4)).starts == (0, 4, 8)
    assert split_steps(["a"] * 4, StepSettings(chunk_tokens=4)).starts == (0,)


@pytest.mark.parametrize(
    ("pieces", "think_end"),
    [
        (["a", "\n\n", "b", "</think>", "\n\n", "c"], 1),
        (["a", "\n\n", "b", "</", "think", ">", "\n\n", "c"], 1),
        (["a", "\n\n", "b", ".</", "think", ">\n\n", "c"], 1),
        (["x", ">", "\n\n", "y", "</think"], None),  # its last sub-token alone is no marker
        (["a", "\n\n", "</think>", "\n\n", "b", "</think>"], 1),  # the first one counts
        (["</think>", "\n\n", "b"], 0),
        ([], None),
    ],
)
def test_think_marker_is_found_in_the_text(pieces: list[str], think_end: int | None) -> None:
    assert split_steps(pieces).think_end == think_end


def test_marker_across_a_chunk_boundary_belongs_to_the_step_of_its_last_character() -> None:
    assert split_steps(["a", "</", "think", ">", "b"], StepSettings(chunk_tokens=2)) == Steps((0, 2, 4), 5, think_end=1)


@given(cut_texts(), st.integers(1, 9))
def test_steps_cover_the_response(pieces: list[str], chunk_tokens: int) -> None:
    steps = split_steps(pieces, StepSettings(chunk_tokens=chunk_tokens))
    assert [token for start, end in steps.ranges() for token in range(start, end)] == list(range(len(pieces)))
    assert sum(steps.lengths) == len(pieces)
    assert all(length > 0 for length in steps.lengths)
    for step, (start, end) in enumerate(steps.ranges()):
        assert {steps.step_of(token) for token in range(start, end)} == {step}


@given(texts, st.data())
def test_boundaries_do_not_depend_on_the_tokenizer(text: str, data: st.DataObject) -> None:
    """Cut one text in two ways that both cut after its delimiters: steps start at the same characters."""
    needed = {run.end() for run in re.finditer("\n+", text)} - {0, len(text)}
    starts = []
    for _ in range(2):
        extra = data.draw(st.sets(st.integers(0, len(text))))
        cuts = sorted({0, len(text)} | needed | extra)
        pieces = [text[a:b] for a, b in pairwise(cuts)]
        starts.append([cuts[start] for start in split_steps(pieces, StepSettings(chunk_tokens=1000)).starts])
    assert starts[0] == starts[1]


@pytest.mark.parametrize(
    ("starts", "length", "think_end"),
    [((), 3, None), ((1,), 3, None), ((0, 2, 2), 3, None), ((0, 3), 3, None), ((0,), 3, 1), ((), -1, None)],
)
def test_steps_that_do_not_cover_are_refused(starts: tuple[int, ...], length: int, think_end: int | None) -> None:
    with pytest.raises(ValueError, match=r"start|length|think_end"):
        Steps(starts, length, think_end)


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="chunk_tokens"):
        split_steps(["a"], StepSettings(chunk_tokens=0))
    with pytest.raises(ValueError, match="think_marker"):
        split_steps(["a"], StepSettings(think_marker=""))
    for delimiter in ("(", "x*"):
        with pytest.raises(ValueError, match="delimiters"):
            StepSettings(delimiters=(delimiter,))
    for token in (-1, 3):
        with pytest.raises(IndexError):
            Steps((0,), 3).step_of(token)


def test_the_first_delimiter_that_splits_is_used() -> None:
    pieces = ["a.", " b", ";", "c.", "d"]
    assert split_steps(pieces, StepSettings(delimiters=("!", r"\.", ";"))).starts == (0, 1, 4)
    assert split_steps(pieces, StepSettings(delimiters=(";",))).starts == (0, 3)
    assert split_steps(pieces, StepSettings(delimiters=(), chunk_tokens=2)).starts == (0, 2, 4)
