"""What a row says, in each format."""

import datetime
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attnrl.config.base import PROMPT_SUFFIX
from attnrl.data.rows import (
    other_columns,
    read_answers,
    read_prompt,
    with_suffix,
)
from attnrl.errors import UserError

VERL = {
    "data_source": "aime24",
    "prompt": [{"role": "system", "content": "Think."}, {"role": "user", "content": "1+1?"}],
    "reward_model": {"ground_truth": "2", "style": "rule"},
    "extra_info": {"index": 0},
}


@pytest.mark.parametrize(
    ("row", "prompt", "answers"),
    [
        (VERL, tuple(VERL["prompt"]), ("2",)),
        ({"prompt": "1+1?", "reward_model": {"ground_truth": ["2", "two"]}}, "1+1?", ("2", "two")),
        ({"prompt": "1+1?", "reward_model": {"ground_truth": 2}, "answer": "3"}, "1+1?", ("2",)),
        ({"prompt": "1+1?", "answer": "2"}, "1+1?", ("2",)),
        ({"prompt": "1+1?", "answer": 2}, "1+1?", ("2",)),
        ({"prompt": "1+1?", "answer": 2.5}, "1+1?", ("2.5",)),
        ({"prompt": "1+1?", "answer": ["2", 3]}, "1+1?", ("2", "3")),
        ({"prompt": "1+1?", "solution": "$2$"}, "1+1?", ("$2$",)),
        ({"prompt": "1+1?", "reward_model": None, "answer": None, "solution": "4"}, "1+1?", ("4",)),
        ({"question": "How many?", "answer": "48 / 2 = 24\n48 + 24 = 72\n#### 72"}, "How many?", ("72",)),
        ({"question": "How many?", "answer": "so\n#### 1,234,567\n"}, "How many?", ("1234567",)),
        ({"question": "How much?", "answer": "so\n#### -$1,000.50"}, "How much?", ("-$1000.50",)),
        ({"question": "Where?", "answer": "so\n#### (1,2)"}, "Where?", ("(1,2)",)),
        ({"problem": "x?", "solution": "First \\boxed{1}, so \\boxed{\\frac{1}{2}}."}, "x?", ("\\frac{1}{2}",)),
        ({"problem": "x?", "solution": "so $\\boxed{1}$", "answer": "2"}, "x?", ("2",)),
        ({"problem": "x?", "solution": "", "answer": "12"}, "x?", ("12",)),
        ({"problem": "x?", "solution": "a proof without a box"}, "x?", ()),
        ({"problem": "x?", "solution": "a box \\boxed{that never"}, "x?", ()),
        ({"prompt": "x?", "answer": " "}, "x?", ()),
        ({"prompt": "x?", "answer": ["", " "]}, "x?", ()),
        ({"prompt": "x?", "reward_model": {"ground_truth": ""}}, "x?", ()),
    ],
)
def test_formats(row: dict[str, Any], prompt: Any, answers: tuple[str, ...]) -> None:
    assert read_prompt(row, "here") == prompt
    assert read_answers(row, "here") == answers


@pytest.mark.parametrize(
    ("row", "field"),
    [
        ({"answer": "2"}, "prompt, problem or question"),
        ({"prompt": None, "answer": "2"}, "prompt, problem or question"),
        ({"prompt": "  ", "answer": "2"}, "prompt"),
        ({"question": "", "answer": "2"}, "question"),
        ({"prompt": [], "answer": "2"}, "prompt"),
        ({"prompt": 7, "answer": "2"}, "prompt"),
        ({"problem": 7, "answer": "2"}, "problem"),
        ({"prompt": ["hi"], "answer": "2"}, "prompt"),
        ({"prompt": [{"role": "user"}], "answer": "2"}, "prompt"),
        ({"prompt": [{"role": "user", "content": [1]}], "answer": "2"}, "prompt"),
        ({"prompt": [{"role": "system", "content": "x"}], "answer": "2"}, "prompt"),
        ({"prompt": "1+1?"}, "reward_model.ground_truth, answer or solution"),
        ({"prompt": "1+1?", "answer": None}, "answer or solution"),
        ({"prompt": "1+1?", "answer": True}, "answer"),
        ({"prompt": "1+1?", "answer": float("nan")}, "answer"),
        ({"prompt": "1+1?", "solution": {"a": 1}}, "solution"),
        ({"prompt": "1+1?", "answer": ["2", None]}, "answer"),
        ({"prompt": "1+1?", "answer": ["2", ""]}, "answer"),
        ({"prompt": "1+1?", "reward_model": "2"}, "answer or solution"),
        ({"prompt": "1+1?", "reward_model": {"ground_truth": {}}}, "reward_model.ground_truth"),
        ({"prompt": "\ud800?", "answer": "2"}, "prompt"),
        ({"prompt": "1+1?", "answer": "\udfff"}, "answer"),
    ],
)
def test_a_faulty_row_is_named_with_the_field(row: dict[str, Any], field: str) -> None:
    with pytest.raises(UserError) as caught:
        read_prompt(row, "here")
        read_answers(row, "here")
    assert str(caught.value).startswith("here: ") and field in str(caught.value)


def test_an_empty_list_is_an_empty_answer() -> None:
    assert read_answers({"answer": []}, "here") == ()


def test_other_columns_are_what_json_can_say() -> None:
    row = {
        "problem": "x?",
        "answer": "1",
        "level": 3,
        "seen": datetime.date(2026, 1, 2),
        "score": float("nan"),
        "image": b"1",
        "tests": [{"in": (1, 2), "raw": b"x"}],
        7: None,
    }
    columns = other_columns(row)
    assert columns == {
        "answer": "1",
        "level": 3,
        "seen": "2026-01-02",
        "score": None,
        "tests": [{"in": [1, 2]}],
        "7": None,
    }
    assert json.loads(json.dumps(columns)) == columns


def test_the_suffix_goes_to_the_last_user_message_only_and_not_twice() -> None:
    chat = tuple(
        {"role": role, "content": content}
        for role, content in [("system", "S"), ("user", "A"), ("assistant", "B"), ("user", "C"), ("assistant", "D")]
    )
    once = with_suffix(chat, " Box it.")
    assert [message["content"] for message in once] == ["S", "A", "B", "C Box it.", "D"]
    assert with_suffix(once, " Box it.") == once
    assert chat[3]["content"] == "C"
    assert with_suffix("1+1?\nBox it. ", " Box it.") == "1+1?\nBox it. "
    assert with_suffix("1+1?", "") == "1+1?"


@given(st.text(), st.sampled_from([PROMPT_SUFFIX, " Box it.", ""]))
def test_a_suffix_given_twice_is_there_once(text: str, suffix: str) -> None:
    once = with_suffix(text, suffix)
    assert once.rstrip().endswith(suffix.strip()) and with_suffix(once, suffix) == once
