"""What a row says, in each format."""

import datetime
import json
from decimal import Decimal
from typing import Any

import pytest

from attnrl.data.columns import choose_columns
from attnrl.data.remarks import Remarks
from attnrl.data.rows import other_columns, read_row
from attnrl.errors import UserError
from attnrl.types import Problem

VERL = {
    "data_source": "aime24",
    "prompt": [{"role": "system", "content": "Think."}, {"role": "user", "content": "1+1?"}],
    "reward_model": {"ground_truth": "2", "style": "rule"},
    "extra_info": {"index": 0},
}


USER = {"role": "user", "content": "1+1?"}


def read(row: dict[str, Any], remarks: Remarks | None = None, **named: str) -> Problem:
    """The problem of a row that is the whole source."""
    return read_row(row, choose_columns([row], named), "here", "source", remarks or Remarks())


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
        ({"prompt": "x?", "answer": None}, "x?", ()),
        ({"prompt": "x?", "answer": [None, float("nan")]}, "x?", ()),
        ({"prompt": "x?", "verification_info": "{'ground_truth': '3'}"}, "x?", ("3",)),
        ({"prompt": "x?", "answer": "None"}, "x?", ("None",)),
        ({"prompt": "x?", "answer": float("nan")}, "x?", ()),
        ({"prompt": "x?", "answer": "NaN"}, "x?", ()),
        ({"prompt": "x?", "answer": Decimal("nan")}, "x?", ()),
        ({"prompt": "x?", "answer": []}, "x?", ()),
        ({"prompt": "x?", "answer": True}, "x?", ("True", "true")),
        ({"prompt": "x?", "answer": Decimal("72.00")}, "x?", ("72",)),
        ({"prompt": "x?", "answer": Decimal("-0.50")}, "x?", ("-0.5",)),
        ({"prompt": "x?", "answer": Decimal("100")}, "x?", ("100",)),
        ({"prompt": "x?", "answer": Decimal("1E+400")}, "x?", ("1E+400",)),
        ({"prompt": "x?", "answer": 72.0}, "x?", ("72",)),
        ({"prompt": "x?", "answer": 1e-05}, "x?", ("0.00001",)),
        ({"prompt": "x?", "answer": 1e16}, "x?", ("10000000000000000",)),
    ],
)
def test_formats(row: dict[str, Any], prompt: Any, answers: tuple[str, ...]) -> None:
    problem = read(row)
    assert (problem.prompt, problem.answers, problem.place) == (prompt, answers, "here")


@pytest.mark.parametrize(
    ("row", "field"),
    [
        ({"answer": "2"}, "prompt, problem, question"),
        ({"prompt": None, "answer": "2"}, "prompt"),
        ({"prompt": "  ", "answer": "2"}, "prompt"),
        ({"question": "", "answer": "2"}, "question"),
        ({"prompt": [], "answer": "2"}, "prompt"),
        ({"prompt": 7, "answer": "2"}, "prompt"),
        ({"problem": 7, "answer": "2"}, "problem"),
        ({"prompt": ["hi"], "answer": "2"}, "prompt"),
        ({"prompt": [{"role": "user"}], "answer": "2"}, "prompt"),
        ({"prompt": [{"role": "user", "content": [1]}], "answer": "2"}, "prompt"),
        ({"prompt": [{"role": "system", "content": "x"}], "answer": "2"}, "prompt"),
        ({"prompt": "1+1?"}, "answer=NAME"),
        ({"prompt": "1+1?", "anwser": "2"}, "answer=anwser?"),
        ({"promt": "1+1?", "answer": "2"}, "prompt=promt?"),
        ({"prompt": "1+1?", "answer": float("inf")}, "answer"),
        ({"prompt": "1+1?", "answer": {"value": "2"}}, "answer.KEY"),
        ({"prompt": {"text": "1+1?"}, "answer": "2"}, "prompt.KEY"),
        ({"prompt": "1+1?", "solution": {"a": 1}}, "solution"),
        ({"prompt": "1+1?", "answer": ["2", None]}, "answer"),
        ({"prompt": "1+1?", "answer": ["2", ""]}, "answer"),
        ({"prompt": "1+1?", "reward_model": "2"}, "reward_model.ground_truth"),
        ({"prompt": "1+1?", "reward_model": {"ground_truth": {}}}, "reward_model.ground_truth"),
        ({"prompt": "\ud800?", "answer": "2"}, "prompt"),
        ({"prompt": "1+1?", "answer": "\udfff"}, "answer"),
    ],
)
def test_a_faulty_row_is_named_with_the_field(row: dict[str, Any], field: str) -> None:
    with pytest.raises(UserError) as caught:
        read(row)
    assert str(caught.value).startswith("here: ") and field in str(caught.value)


NAMES = [
    ("Problem", "Answer"),
    ("question", "final_answer"),
    ("Question", "Final Answer"),
    ("problem", "expectedAnswer"),
    ("prompt", "ground_truth"),
    ("PROMPT", "reference-answer"),
    ("query", "response"),
    ("instruction", "output"),
    ("input", "label"),
    ("input", "target"),
    ("prompt", "completion"),
    ("question", "Correct Answer"),
    ("prompt", "reward_spec.ground_truth"),
    ("prompt", "verification_info.ground_truth"),
    ("Prompt", "Reward_Model.ground_truth"),
]


@pytest.mark.parametrize(("prompt", "answer"), NAMES)
def test_popular_names_are_found_and_said(prompt: str, answer: str) -> None:
    outer, dot, inner = answer.partition(".")
    remarks = Remarks()
    row = {"ID": 7, outer: {inner: "2"} if dot else "2", prompt: "1+1?"}
    problem = read(row, remarks)
    assert (problem.prompt, problem.answers) == ("1+1?", ("2",))
    (note,) = remarks.notes("data x", choose_columns([row], {}))
    assert note == f"data x: prompt from {prompt}, answer from {answer}; other columns: ID"


def test_the_preferred_of_several_candidates_is_taken_and_the_others_are_said() -> None:
    row = {"messages": [USER], "problem": "1+1?", "solution": "3", "expected_answer": "4", "answer": "2", "label": "5"}
    remarks = Remarks()
    problem = read(row, remarks)
    assert (problem.prompt, problem.answers) == ("1+1?", ("2",))
    (note,) = remarks.notes("data x", choose_columns([row], {}))
    assert "prompt from problem (preferred to messages)" in note
    assert "answer from answer (preferred to expected_answer, solution)" in note
    assert choose_columns([row], {}).answer == ("answer", "expected_answer", "solution")  # label is a weak name
    assert choose_columns([{"label": "1", "output": "2"}], {}).answer == ("label", "output")


def test_columns_are_named_with_dots_into_objects_lists_and_json_text() -> None:
    row = {
        "a.b": "whole name",
        "meta": {"ask": [{"text": "1+1?"}]},
        "info": json.dumps({"gold": {"value": 2}}),
        "prompt": "not this",
        "answer": "nor this",
    }
    problem = read(row, prompt="meta.ask.0.text", answer="info.gold.value")
    assert (problem.prompt, problem.answers) == ("1+1?", ("2",))
    assert set(problem.info) == set(row)
    assert read(row, prompt="a.b").prompt == "whole name"
    assert choose_columns([row], {"prompt": "meta.ask.1.text", "answer": "inf"}).missing == {
        "prompt": "meta.ask.1.text",
        "answer": "inf",
    }


CHAT = ({"role": "system", "content": "S"}, {"role": "user", "content": "1+1?"})
SHAREGPT = [{"from": "system", "value": "S"}, {"from": "human", "value": "1+1?"}]
PARTS = [
    {"role": "system", "content": "S"},
    {"role": "user", "content": [{"type": "text", "text": "1+"}, {"type": "text", "text": "1?"}]},
]


@pytest.mark.parametrize(
    "messages",
    [
        list(CHAT),
        SHAREGPT,
        PARTS,
        [CHAT[0], {"role": "User", "content": {"type": "text", "text": "1+1?"}}],
        [CHAT[0], {"role": "user", "content": json.dumps([{"type": "text", "text": "1+1?"}])}],
        [CHAT[0], {"role": "user", "content": ["1+", "1?"]}],
        json.dumps(CHAT),
        json.dumps(PARTS),
        json.dumps(json.dumps(SHAREGPT)),
        str(list(CHAT)),  # pandas writes Python into CSV
        str(PARTS),
        [{**CHAT[0], "from": None, "value": None}, {**CHAT[1], "from": None, "value": None}],  # a table of both
    ],
)
@pytest.mark.parametrize("column", ["prompt", "messages", "conversations", "input"])
def test_messages_in_every_format(messages: Any, column: str) -> None:
    assert read({column: messages, "answer": "2"}).prompt == CHAT
    assert read({column: json.dumps(USER), "answer": "2"}).prompt == (USER,)


@pytest.mark.parametrize(
    "prompt",
    [
        '{"question": "1+1?"}',
        '["1+1?"]',
        "['1+1?', '2+2?']",
        '[{"role": "user"}]',
        '[{"role": "user", "content": "1+1?"}',  # cut
        "[{'content': '1+1?', 'role': 'user'}\n {'content': '2', 'role': 'user'}]",  # printed by numpy
        "{}",
        '"[{\\"question\\": 1}]"',
    ],
)
def test_json_text_that_is_no_chat_is_refused(prompt: str) -> None:
    with pytest.raises(UserError, match=r"^here: prompt"):
        read({"prompt": prompt, "answer": "2"})


@pytest.mark.parametrize(
    "prompt",
    [
        "[3, 1, 2]",
        "[[1, 2], [3, 4]]",
        "{x | x > 2}",
        "[0, 1) is?",
        '"To be" is by?',
        "{1, 2}",
        "[A] or [B]?",
        "2",
        "null",
    ],
)
def test_a_text_like_json_stays_text(prompt: str) -> None:
    assert read({"prompt": prompt, "answer": "2"}).prompt == prompt


def test_a_faulty_message_is_named() -> None:
    image = {"role": "user", "content": [{"type": "image", "image": "x.png"}, {"type": "text", "text": "?"}]}
    for message, said in [(image, "'image'"), ({"from": "narrator", "value": "x"}, "'narrator'")]:
        with pytest.raises(UserError, match=rf"^here: prompt.*{said}"):
            read({"prompt": [USER, message], "answer": "2"})


def test_what_is_decoded_or_left_out_of_messages_is_counted() -> None:
    remarks = Remarks()
    read({"messages": json.dumps([{**USER, "name": "Ann", "weight": None}]), "answer": '["2", "two"]'}, remarks)
    assert remarks.others == {
        "messages decoded from JSON text": 1,
        "left out name of a message": 1,
        "answer decoded from JSON text": 1,
    }


@pytest.mark.parametrize(
    ("answer", "answers"),
    [
        ('["2", "two"]', ("2", "two")),
        ("['204']", ("204",)),
        ("['a' 'b']", ("['a' 'b']",)),  # printed by numpy: not the Python text 'ab'
        ("[1, 2]", ("[1, 2]",)),  # an interval
        ('{"a": 1}', ('{"a": 1}',)),
    ],
)
def test_a_list_of_answers_may_be_text(answer: str, answers: tuple[str, ...]) -> None:
    assert read({"prompt": "1+1?", "answer": answer}).answers == answers
    assert read({"prompt": "1+1?", "reward_model": {"ground_truth": answer}}).answers == answers
    assert read({"prompt": "1+1?", "reward_model": json.dumps({"ground_truth": answer})}).answers == answers


@pytest.mark.parametrize(
    ("response", "answers"),
    [
        ("2", ("2",)),
        ("<think>3?\n\\boxed{3}</think>\n2", ("2",)),
        ("First 1.\nSo \\boxed{2}.", ("2",)),
        ("1+1=2\n#### 2", ("2",)),
        ("1+1 is 2.\n#### 2\nThe answer is: 2", ("2",)),
        ("It grows.\nTherefore the answer is $2$.", ("$2$",)),
        ("It grows,\nand it grows.", ()),
        ("word " * 30, ()),
        ("so \\boxed{that never", ()),
    ],
)
def test_the_answer_in_a_whole_response(response: str, answers: tuple[str, ...]) -> None:
    for column in ("response", "output", "completion"):
        assert read({"prompt": "1+1?", column: response}).answers == answers
    assert read({"prompt": [USER], "completion": [{"role": "assistant", "content": response}]}).answers == answers
    # The last message of a chat without another answer.
    problem = read({"messages": [USER, {"role": "assistant", "content": response}]})
    assert (problem.prompt, problem.answers) == ((USER,), answers)
    assert read({"problem": "1+1?", "solution": response}, answer="solution").answers == answers


@pytest.mark.parametrize(
    ("last", "kept"), [("Let me think.", True), ("2", False), ("1+1 = \\boxed{2}", False), ("so\n#### 2", False)]
)
def test_a_last_message_beside_an_answer_is_continued_unless_finished(last: str, kept: bool) -> None:
    remarks = Remarks()
    reply = {"role": "assistant", "content": last}
    problem = read({"messages": [USER, reply], "answer": "2"}, remarks)
    assert problem.prompt == ((USER, reply) if kept else (USER,))
    assert problem.answers == ("2",)
    assert list(remarks.others.values()) == ([] if kept else [1])  # the renderer says which prompts are continued


def test_an_instruction_is_followed_by_its_input() -> None:
    remarks = Remarks()
    row = {"instruction": "Add.", "input": "1 and 1", "output": "2"}
    assert read(row, remarks).prompt == "Add.\n\n1 and 1"
    assert remarks.others == {"input joined to instruction": 1}
    assert read({**row, "input": ""}).prompt == read({**row, "input": None}).prompt == "Add."
    assert read(row, prompt="instruction").prompt == "Add."
    assert read({**row, "prompt": "1+1?"}).prompt == "1+1?"


def test_a_system_column_is_the_first_message() -> None:
    remarks = Remarks()
    system = {"role": "system", "content": "S"}
    assert read({"prompt": "1+1?", "system": "S", "answer": "2"}, remarks).prompt == (system, USER)
    assert remarks.taken["system message", "system"] == 1
    assert read({"messages": [USER], "System Prompt": "S", "answer": "2"}).prompt == (system, USER)
    assert read({"prompt": "1+1?", "rules": "S", "answer": "2"}, system="rules").prompt == (system, USER)
    own = [{"role": "system", "content": "own"}, USER]
    assert read({"messages": own, "system": "S", "answer": "2"}, remarks).prompt == tuple(own)
    assert len(remarks.others) == 1
    assert read({"prompt": "1+1?", "system": " ", "answer": "2"}).prompt == "1+1?"
    with pytest.raises(UserError, match=r"^here: system"):
        read({"prompt": "1+1?", "system": ["S"], "answer": "2"})


def test_an_id_is_taken_only_if_named() -> None:
    row = {"prompt": "1+1?", "answer": "2", "id": 7}
    assert read(row).id == ""
    assert read(row, id="id").id == "7"
    for value in (None, "", " ", True, [1], float("nan")):
        with pytest.raises(UserError, match=r"^here: id"):
            read({**row, "id": value}, id="id")


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
    columns = other_columns(row, "problem")
    assert columns == {
        "answer": "1",
        "level": 3,
        "seen": "2026-01-02",
        "score": None,
        "tests": [{"in": [1, 2]}],
        "7": None,
    }
    assert json.loads(json.dumps(columns)) == columns
