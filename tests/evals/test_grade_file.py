"""The file that ``attnrl grade`` writes."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from attnrl.cli.app import app
from attnrl.errors import UserError
from attnrl.evals.grade_file import Columns, grade_file
from attnrl.grading.registry import build_grader
from attnrl.grading.rewards import RewardManager
from attnrl.grading.rules import RulesGrader


def write_rows(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_grade_writes_verdicts_in_order(tmp_path: Path) -> None:
    rows = [
        {"response": "\\boxed{10/2}", "answer": "5", "id": "first"},
        {"response": "\\boxed{6}", "answer": ["5", "6"]},
        {"response": "\\boxed{7}", "answer": 5},
        {"response": "none", "answer": "5"},
        {"response": "\\boxed{\ud83d}", "answer": ""},
        {"response": "\\boxed{2+3}", "answer": "5", "prompt": [{"role": "user", "content": "What is $2+3$?"}]},
    ]
    source, output = write_rows(tmp_path / "in.jsonl", rows), tmp_path / "new" / "out.jsonl"
    result = CliRunner().invoke(app, ["grade", str(source), "--output", str(output), "--workers", "1"])
    assert result.exit_code == 0, result.output
    written = [json.loads(line) for line in output.read_text().splitlines()]
    assert [(row["verdict"], row["extracted"], row["reward"]) for row in written] == [
        ("correct", "10/2", 1.0),
        ("correct", "6", 1.0),
        ("wrong", "7", 0.0),
        ("no_answer", None, 0.0),
        ("bad_gold", "\ud83d", None),
        ("wrong", "2+3", 0.0),
    ]
    assert [{key: row[key] for key in old} for row, old in zip(written, rows, strict=True)] == rows
    assert "Wrote 6 rows" in result.output
    assert "33.3%" in result.output
    assert [path.name for path in output.parent.iterdir()] == ["out.jsonl"]


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("{", "JSON"),
        ("[]", "list"),
        ('{"answer": "5"}', "response"),
        ('{"response": 5, "answer": "5"}', "response"),
        ('{"response": "5"}', "answer"),
        ('{"response": "5", "answer": {"a": 1}}', "answer"),
        ('{"response": "5", "answer": Infinity}', "answer"),
        ('{"response": ["5"], "answer": "5"}', "response"),
        ('{"response": null, "answer": "5"}', "response is null"),
        ('{"response": "5", "answer": "5", "prompt": 7}', "prompt"),
    ],
)
def test_a_malformed_row_is_named_and_nothing_is_written(tmp_path: Path, line: str, named: str) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text('{"response": "\\\\boxed{5}", "answer": "5"}\n\n' + line + "\n")
    output = tmp_path / "out.jsonl"
    output.write_text("old")
    with pytest.raises(UserError, match=f"line 3: .*{named}"), RewardManager(build_grader("rules")) as rules:
        grade_file(source, output, rules)
    assert output.read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl"]


@pytest.mark.parametrize(
    ("answer", "verdict"), [("null", "bad_gold"), ("NaN", "bad_gold"), ("true", "correct"), ("false", "wrong")]
)
def test_answers_without_a_value_are_not_judged_and_truth_values_are_answers(
    tmp_path: Path, answer: str, verdict: str
) -> None:
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text(f'{{"response": "\\\\boxed{{true}}", "answer": {answer}}}\n')
    with RewardManager(build_grader("rules")) as rules:
        assert grade_file(source, output, rules) == {verdict: 1}
    assert (json.loads(output.read_text())["reward"] is None) == (verdict == "bad_gold")


def test_grade_refuses_its_own_input_and_what_is_not_there(tmp_path: Path) -> None:
    source = write_rows(tmp_path / "in.jsonl", [{"response": "\\boxed{5}", "answer": "5"}])
    (tmp_path / "link.jsonl").symlink_to(source)
    (tmp_path / "empty.jsonl").touch()
    with RewardManager(build_grader("rules")) as rules:
        for output in (source, tmp_path / "link.jsonl"):
            with pytest.raises(UserError, match=output.name):
                grade_file(source, output, rules)
        with pytest.raises(UserError, match=r"none\.jsonl"):
            grade_file(tmp_path / "none.jsonl", tmp_path / "out.jsonl", rules)
        with pytest.raises(UserError, match=r"empty\.jsonl"):
            grade_file(tmp_path / "empty.jsonl", tmp_path / "out.jsonl", rules)
        with pytest.raises(UserError):
            grade_file(source, tmp_path, rules)
        seen: list[tuple[int, int]] = []
        assert grade_file(source, tmp_path / "out.jsonl", rules, lambda *done: seen.append(done)) == {"correct": 1}
        assert seen == [(1, source.stat().st_size)]


def test_popular_names_are_found_and_counted(tmp_path: Path) -> None:
    source, taken = tmp_path / "x.jsonl", Counter[Columns]()
    rows = [{"Completion": "\\boxed{2}", "Expected Answer": "2", "question": "1+1?"}, {"output": "3", "label": 3}]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with RewardManager(RulesGrader(flexible=True)) as rewards:
        assert grade_file(source, tmp_path / "out.jsonl", rewards, taken=taken) == {"correct": 2}
    assert taken == {Columns("Completion", "Expected Answer", "question"): 1, Columns("output", "label", None): 1}
    misspelt = [
        ({"respons": "2", "answer": "2"}, "did you mean response=respons"),
        ({"response": "2", "anwser": "2"}, "did you mean answer=anwser"),
    ]
    for row, said in misspelt:
        source.write_text(json.dumps(row))
        with RewardManager(RulesGrader()) as rewards, pytest.raises(UserError, match=f"line 1: .*{said}"):
            grade_file(source, tmp_path / "out.jsonl", rewards)
