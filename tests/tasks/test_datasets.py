"""Problems from files, and what a faulty file is told."""

import json
import os
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from attnrl.errors import UserError
from attnrl.tasks.datasets import load_problems
from attnrl.tasks.grading import AnswerGrader

VERL = {
    "data_source": "aime24",
    "prompt": [{"role": "system", "content": "Think."}, {"role": "user", "content": "1+1?"}],
    "reward_model": {"ground_truth": "2", "style": "rule"},
    "extra_info": {"index": 0},
}
TRL = {"prompt": "1+1?", "answer": "2"}


def write(path: Path, rows: list[Any]) -> Path:
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    else:
        path.write_text(json.dumps(rows), encoding="utf-8")
    return path


def complaint(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        load_problems(path)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message.removeprefix(f"data file {path}")


@pytest.mark.parametrize("suffix", ["parquet", "jsonl", "json"])
def test_every_kind_of_file_gives_the_same_problems(tmp_path: Path, suffix: str) -> None:
    problems = load_problems(write(tmp_path / f"sums.{suffix}", [VERL, {**VERL, "data_source": "amc"}]))
    assert [problem.id for problem in problems] == ["sums:0", "sums:1"]
    assert [problem.source for problem in problems] == ["aime24", "amc"]
    assert [dict(message) for message in problems[0].prompt] == VERL["prompt"]
    assert problems[0].answers == ("2",)


@pytest.mark.parametrize(
    ("fields", "answers"),
    [
        ({"answer": "2"}, ("2",)),
        ({"solution": "2"}, ("2",)),
        ({"answer": 2}, ("2",)),
        ({"answer": 2.5}, ("2.5",)),
        ({"reward_model": {"ground_truth": ["2"]}}, ("2",)),
        ({"reward_model": {"ground_truth": ["2", "two"]}}, ("2", "two")),
        ({"reward_model": {"ground_truth": 2}, "answer": "3"}, ("2",)),
        ({"reward_model": None, "answer": None, "solution": "4"}, ("4",)),
    ],
)
def test_where_the_true_answer_may_be(tmp_path: Path, fields: dict[str, Any], answers: tuple[str, ...]) -> None:
    (problem,) = load_problems(write(tmp_path / "x.jsonl", [{"prompt": "1+1?", **fields}]))
    assert problem.answers == answers
    assert problem.source == "x"


def test_rows_without_an_index_are_still_different_problems(tmp_path: Path) -> None:
    """An unindexed row must never merge with another (a fault of the authors' release)."""
    problems = load_problems(write(tmp_path / "x.jsonl", [TRL] * 5))
    assert len({problem.id for problem in problems}) == 5


def test_the_suffix_goes_to_the_last_user_message_only(tmp_path: Path) -> None:
    chat = [
        {"role": "system", "content": "S"},
        {"role": "user", "content": "A"},
        {"role": "assistant", "content": "B"},
        {"role": "user", "content": "C"},
        {"role": "assistant", "content": "D"},
    ]
    path = write(
        tmp_path / "x.jsonl", [{"prompt": chat, "answer": "1"}, TRL, {"prompt": "2+2? Box it.", "answer": "4"}]
    )
    talk, text, has_it = load_problems(path, prompt_suffix=" Box it.")
    assert [message["content"] for message in talk.prompt] == ["S", "A", "B", "C Box it.", "D"]
    assert text.prompt == "1+1? Box it."
    assert has_it.prompt == "2+2? Box it."  # not twice
    assert [problem.prompt for problem in load_problems(path)][1] == "1+1?"


def test_text_may_hold_any_character(tmp_path: Path) -> None:
    """Such as line separators that JSON leaves as they are."""
    odd = "a\u2028b\u0085c\x1cd 世界 👩‍🚀\n\n?"
    for name in ("x.jsonl", "x.json", "x.parquet"):
        (problem,) = load_problems(write(tmp_path / name, [{"prompt": odd, "answer": "1"}]))
        assert problem.prompt == odd


def test_blank_lines_and_windows_line_ends_are_no_rows(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'\r\n{"prompt": "a", "answer": "1"}\r\n\r\n{"prompt": "b", "answer": "2"}')
    assert [problem.prompt for problem in load_problems(path)] == ["a", "b"]


def test_a_row_whose_answer_is_empty_is_left_out_and_moves_no_other(tmp_path: Path) -> None:
    rows = [TRL, {**TRL, "answer": ""}, {"prompt": "p", "reward_model": {"ground_truth": " "}}, TRL]
    assert [p.id for p in load_problems(write(tmp_path / "x.jsonl", rows))] == ["x:0", "x:3"]
    assert "answer of every row is empty" in complaint(write(tmp_path / "y.jsonl", rows[1:3]))


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ([1], "expected an object, found list"),
        ("text", "expected an object, found str"),
        ({"answer": "2"}, "prompt must be"),
        ({"prompt": None, "answer": "2"}, "prompt must be"),
        ({"prompt": "  ", "answer": "2"}, "prompt is empty"),
        ({"prompt": [], "answer": "2"}, "prompt must be"),
        ({"prompt": 7, "answer": "2"}, "prompt must be"),
        ({"prompt": ["hi"], "answer": "2"}, "role and a content"),
        ({"prompt": [{"role": "user"}], "answer": "2"}, "role and a content"),
        ({"prompt": [{"role": "user", "content": [1]}], "answer": "2"}, "role and a content"),
        ({"prompt": [{"role": "system", "content": "x"}], "answer": "2"}, "no user message"),
        ({"prompt": "1+1?"}, "no true answer"),
        ({"prompt": "1+1?", "answer": None}, "no true answer"),
        ({"prompt": "1+1?", "answer": True}, "no true answer"),
        ({"prompt": "1+1?", "answer": {"a": 1}}, "no true answer"),
        ({"prompt": "1+1?", "answer": []}, "no true answer"),
        ({"prompt": "1+1?", "answer": ["2", ""]}, "no true answer"),
        ({"prompt": "1+1?", "reward_model": "2"}, "no true answer"),
    ],
)
def test_a_faulty_row_is_named(tmp_path: Path, row: Any, said: str) -> None:
    message = complaint(write(tmp_path / "x.jsonl", [TRL, TRL, row, TRL]))
    assert message.startswith(", row 2: ") and said in message


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("x.jsonl", b"", ": no rows"),
        ("x.jsonl", b"\n\n", ": no rows"),
        ("x.json", b"", ": no rows"),
        ("x.json", b"[]", ": no rows"),
        ("x.json", b'{"prompt": "a"}', ": expected a list of rows"),
        ("x.json", b'[\n{"prompt": "a",\n', ", line 3: not JSON"),
        ("x.json", b"[" * 200_000, ": not readable as JSON"),
        ("x.jsonl", b'{"prompt": "a", "answer": "1"}\n{"prompt": \n', ", line 2: not JSON"),
        ("x.jsonl", b'\n\n{"prompt": "a" "answer": "1"}\n', ", line 3: not JSON"),
        ("x.jsonl", b"[" * 200_000, ", line 1: not JSON"),
        ("x.jsonl", b'{"answer": ' + b"1" * 5_000 + b"}", ", line 1: not JSON"),
        ("x.jsonl", b"\xff\xfe", ": not UTF-8 text"),
        ("x.parquet", b"", ": not readable as parquet"),
        ("x.parquet", b"no parquet at all", ": not readable as parquet"),
        ("x.csv", b"prompt,answer\na,1\n", ": expected .parquet, .jsonl or .json"),
    ],
)
def test_a_faulty_file_is_named(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    assert complaint(path).startswith(said)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    assert complaint(tmp_path / "nothing.parquet") == ": no such file"
    (tmp_path / "folder.jsonl").mkdir()
    assert complaint(tmp_path / "folder.jsonl") == ": no such file"


def test_an_empty_table(tmp_path: Path) -> None:
    pyarrow.parquet.write_table(pyarrow.table({"prompt": pyarrow.array([], pyarrow.string())}), tmp_path / "x.parquet")
    assert complaint(tmp_path / "x.parquet") == ": no rows"


def shared_data() -> Path:
    """The folder ``shared/data`` of $ATTNRL_SHARED, or of a folder ``shared`` above the checkout."""
    repository = Path(__file__).resolve().parents[2]
    places = [Path(os.environ["ATTNRL_SHARED"])] if "ATTNRL_SHARED" in os.environ else []
    places += [above / "shared" for above in repository.parents]
    for place in places:
        if (place / "data").is_dir():
            return place / "data"
    pytest.skip("no shared/data above the checkout, and ATTNRL_SHARED does not point to one")


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("aime24_1", 30),
        ("aime25_1", 30),
        ("amc23_1", 40),
        ("math500_1", 500),
        ("olympiad_1", 674),
        ("minerva_1", 272),
        ("dapo_math_train", 24_898 - 2),  # rows 22739 and 22741 have an empty answer
    ],
)
def test_the_sets_of_the_paper(name: str, count: int) -> None:
    problems = load_problems(shared_data() / f"{name}.parquet", prompt_suffix=" So?")
    assert len(problems) == len({problem.id for problem in problems}) == count
    assert all(problem.prompt[-1]["content"].endswith("\\boxed{}. So?") for problem in problems)
    # Every true answer, boxed, is graded as correct, and so is each other accepted one.
    pairs = [(problem, answer) for problem in problems for answer in problem.answers]
    grades = AnswerGrader().grade([problem for problem, _ in pairs], [f"so \\boxed{{{answer}}}" for _, answer in pairs])
    assert [answer for (_, answer), grade in zip(pairs, grades, strict=True) if grade.reward != 1] == []
