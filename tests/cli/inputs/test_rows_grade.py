"""Rows of responses as people have them, through ``attnrl grade``."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from command_line import Attnrl, jsonl

ASK = [{"role": "user", "content": "1+1?"}]
ANSWER = {"response": "\\boxed{2}"}
PARTS = [{"role": "user", "content": [{"type": "text", "text": "1+1?"}]}]

# A row whose answer is right, and the columns said to be taken.
ROWS: dict[str, tuple[dict[str, Any], str]] = {
    "verl": ({**ANSWER, "prompt": ASK, "reward_model": {"ground_truth": "2"}}, "reward_model.ground_truth"),
    "JSON text": ({**ANSWER, "prompt": json.dumps(ASK), "reward_model": '{"ground_truth": "2"}'}, "prompt from prompt"),
    "list as JSON text": ({**ANSWER, "answer": '["3", "2"]'}, "answer from answer"),
    "a truth value": ({"response": "\\boxed{true}", "answer": True}, "answer from answer"),
    "a whole number": ({**ANSWER, "Answer": 2.0}, "answer from Answer"),
    "GSM8K": ({**ANSWER, "question": "1+1?", "answer": "1+1=2\n#### 2"}, "prompt from question"),
    "messages": ({"completion": [{"role": "assistant", "content": "\\boxed{2}"}], "gold": "2"}, "completion"),
    "parts": ({**ANSWER, "prompt": PARTS, "label": 2}, "answer from label"),
    "Python text": ({**ANSWER, "prompt": str(ASK), "target": "['2']"}, "answer from target"),
}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def graded(attnrl: Attnrl, source: str, *arguments: str) -> tuple[str, list[dict[str, Any]]]:
    outcome = attnrl("grade", source, "--output", "out.jsonl", "--grader", "rules", *arguments)
    assert outcome.code == 0, outcome.err
    return outcome.out, [json.loads(line) for line in Path("out.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("name", ROWS)
def test_a_popular_format_is_graded_and_said(name: str, attnrl: Attnrl) -> None:
    row, said = ROWS[name]
    Path("x.jsonl").write_text(jsonl(row))
    shown, (written,) = graded(attnrl, "x.jsonl")
    assert (written["verdict"], written["reward"]) == ("correct", 1.0)
    assert {key: written[key] for key in row} == row
    assert said in shown and ("decoded from JSON text (1 time)" in shown) == (
        name in {"list as JSON text", "Python text"}
    )


def test_a_null_or_nan_answer_is_like_an_empty_one(attnrl: Attnrl) -> None:
    rows = [{**ANSWER, "answer": answer} for answer in ("", None, float("nan"), "nan", [], [None], "2")]
    Path("x.jsonl").write_text(jsonl(*rows))
    _, written = graded(attnrl, "x.jsonl")
    assert [(row["verdict"], row["reward"]) for row in written] == [("bad_gold", None)] * 6 + [("correct", 1.0)]


def test_files_of_every_kind(attnrl: Attnrl) -> None:
    lines = jsonl({**ANSWER, "answer": "2"}, {**ANSWER, "answer": "3"})
    Path("a.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    Path("b.ndjson").write_text(lines)
    Path("c.json").write_text(json.dumps([json.loads(line) for line in lines.splitlines()]))
    Path("d.csv").write_text("response,answer\n\\boxed{2},2\n\\boxed{2},3\n")
    Path("e.tsv").write_text("response\tanswer\n\\boxed{2}\t2\n\\boxed{2}\t3\n")
    table = pyarrow.table({"response": ["\\boxed{2}"] * 2, "answer": [2.0, 3.0], "image": [b"1", b"2"]})
    pyarrow.parquet.write_table(table, "f.parquet")
    for source in ("a.jsonl.gz", "b.ndjson", "c.json", "d.csv", "e.tsv", "f.parquet"):
        _, written = graded(attnrl, source)
        assert [row["verdict"] for row in written] == ["correct", "wrong"]


def test_columns_are_named(attnrl: Attnrl) -> None:
    Path("x.jsonl").write_text(jsonl({"said": {"text": "\\boxed{2}"}, "meta": {"gold": "2"}, "answer": "3"}))
    shown, (written,) = graded(attnrl, "x.jsonl", "--columns", "response=said.text,answer=meta.gold")
    assert "response from said.text, answer from meta.gold" in shown and written["verdict"] == "correct"


def test_what_the_row_had_before_is_counted(attnrl: Attnrl) -> None:
    Path("x.jsonl").write_text(jsonl({**ANSWER, "answer": "2", "reward": 7}))
    shown, (written,) = graded(attnrl, "x.jsonl")
    assert written["reward"] == 1.0 and "replaced reward of the row (1 time)" in shown


FAULTS: dict[str, tuple[Any, list[str], list[str]]] = {
    "a misspelt response": ({"responce": "2", "answer": "2"}, [], ["line 1", "response=responce?"]),
    "a misspelt answer": ({"question": "1+1?", "response": "2", "anwser": "2"}, [], ["line 1", "answer=anwser?"]),
    "a nested answer": ({"response": "2", "meta": {"answer": "2"}}, [], ["line 1", "answer=meta.answer?"]),
    "several responses": ({"response": ["2", "3"], "answer": "2"}, [], ["line 1", "a row each"]),
    "a null response": ({"response": None, "answer": "2"}, [], ["line 1", "response is null"]),
    "an object": ({"response": "2", "answer": {"value": 2}}, [], ["line 1", "answer.KEY"]),
    "a wrong key": ({"response": "2"}, ["--columns", "anser=x"], ["--columns", "did you mean answer?"]),
    "a wrong column": ({"response": "2", "gold": "2"}, ["--columns", "answer=glod"], ["line 1", "did you mean gold?"]),
    "a wrong column of responses": ({"text": "2", "gold": "2"}, ["--columns", "response=txt"], ["response=text?"]),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_names_the_row_and_the_way_out(name: str, attnrl: Attnrl) -> None:
    row, arguments, named = FAULTS[name]
    Path("x.jsonl").write_text(jsonl(row))
    outcome = attnrl("grade", "x.jsonl", "--output", "out.jsonl", *arguments)
    assert outcome.code == 2 and not Path("out.jsonl").exists()
    assert outcome.err.splitlines()[-1].startswith("attnrl: ") and outcome.err.count("attnrl: ") == 1
    assert [part for part in named if part not in outcome.err] == []


def test_a_misspelt_file_is_corrected(attnrl: Attnrl) -> None:
    Path("responses.jsonl").write_text(jsonl({**ANSWER, "answer": "2"}))
    Path("folder").mkdir()
    for source, said in (("response.jsonl", "did you mean responses.jsonl?"), ("folder", "folder")):
        outcome = attnrl("grade", source, "--output", "out.jsonl", "--grader", "rules")
        assert outcome.code == 2 and said in outcome.err
