"""Rows as people have them, through the command line: which columns are taken, and what is said."""

from __future__ import annotations

import csv
import gzip
import io
import json
import shutil
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from command_line import EVAL, ROWS, Attnrl, jsonl, train
from transformers import AutoTokenizer

ASK = [row["prompt"] for row in ROWS]
GOLD = [row["answer"] for row in ROWS]
DATA = ["task=null", "data.prompt_suffix=''", "eval.every=0", "--dry-run"]
TEMPLATE = (  # in the words of the tokenizer: 0=SYSTEM; 1=USER; 2=ASSISTANT
    "{% for message in messages %}{{ {'system': 0, 'user': 1, 'assistant': 2}[message['role']] }}="
    "{{ message['content'] }}; {% endfor %}{% if add_generation_prompt %}2={% endif %}"
)


@pytest.fixture(scope="module")
def chat_model(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> Path:
    """The tiny model with a chat template."""
    directory = tmp_path_factory.mktemp("chat") / "chat"
    shutil.copytree(tiny_checkpoint, directory)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(directory)
    return directory


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, chat_model: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "tiny").symlink_to(chat_model)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def rows_of(row: Callable[[str, str], Any]) -> list[Any]:
    return [row(ask, gold) for ask, gold in zip(ASK, GOLD, strict=True)]


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def share(ask: str, gold: str) -> list[dict[str, str]]:
    turns = {"system": "A=1", "human": ask, "gpt": gold}
    return [{"from": speaker, "value": text} for speaker, text in turns.items()]


def parts(text: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": text[:5]}, {"type": "text", "text": text[5:]}]


def verl(ask: str, gold: str) -> dict[str, Any]:
    return {"prompt": [user(ask)], "reward_model": {"ground_truth": gold, "style": "rule"}, "data_source": "sums"}


LAST = "the last message of"

# A row, and the columns said to be taken.
SPELLINGS: dict[str, tuple[Callable[[str, str], Any], str, str]] = {
    "names in capitals": (lambda ask, gold: {"Problem": ask, "Answer": gold}, "Problem", "Answer"),
    "final_answer": (lambda ask, gold: {"question": ask, "final_answer": gold}, "question", "final_answer"),
    "expected_answer": (lambda ask, gold: {"problem": ask, "expected_answer": gold}, "problem", "expected_answer"),
    "ground_truth": (lambda ask, gold: {"prompt": ask, "ground_truth": gold}, "prompt", "ground_truth"),
    "response": (lambda ask, gold: {"query": ask, "response": f"So\n\\boxed{{{gold}}}"}, "query", "response"),
    "input and label": (lambda ask, gold: {"input": ask, "label": int(gold)}, "input", "label"),
    "Alpaca": (lambda ask, gold: {"instruction": ask, "input": "", "output": gold}, "instruction", "output"),
    "messages": (lambda ask, gold: {"messages": [user(ask)], "answer": gold}, "messages", "answer"),
    "dialogue": (lambda ask, gold: {"messages": [user(ask), assistant(gold)]}, "messages", f"{LAST} messages"),
    "ShareGPT": (lambda ask, gold: {"conversations": share(ask, gold)}, "conversations", f"{LAST} conversations"),
    "parts": (
        lambda ask, gold: {"prompt": [{"role": "user", "content": parts(ask)}], "answer": gold},
        "prompt",
        "answer",
    ),
    "JSON text": (
        lambda ask, gold: {"prompt": json.dumps([user(ask)]), "reward_model": json.dumps({"ground_truth": gold})},
        "prompt",
        "reward_model.ground_truth",
    ),
    "JSON text after a byte order mark": (
        lambda ask, gold: {"prompt": "\ufeff" + json.dumps([user(ask)]), "answer": gold},
        "prompt",
        "answer",
    ),
    "Python object": (
        lambda ask, gold: {"prompt": ask, "reward_model": str({"ground_truth": gold, "style": "rule"})},
        "prompt",
        "reward_model.ground_truth",
    ),
    "Open-Reasoner-Zero": (
        lambda ask, gold: [{"from": "human", "value": ask}, {"from": "assistant", "ground_truth": {"value": gold}}],
        "messages",
        "ground_truth",
    ),
    "JSON object": (lambda ask, gold: {"prompt": json.dumps(user(ask)), "answer": gold}, "prompt", "answer"),
    "Python text": (lambda ask, gold: {"prompt": str([user(ask)]), "answer": str([gold])}, "prompt", "answer"),
    "verl": (verl, "prompt", "reward_model.ground_truth"),
    "system": (lambda ask, gold: {"system": "A=1", "prompt": ask, "answer": gold}, "prompt", "answer"),
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_a_popular_format_is_read_and_said(name: str, attnrl: Attnrl) -> None:
    row, prompt, answer = SPELLINGS[name]
    Path("x.jsonl").write_text(jsonl(*rows_of(row)))
    outcome = attnrl(*train(*DATA, "data.train=x.jsonl"))
    assert outcome.code == 0, outcome.err
    assert f"data x.jsonl: prompt from {prompt}, answer from {answer}" in outcome.out.replace(
        " (preferred to input)", ""
    )
    assert "problems    6 to train on" in outcome.out
    assert outcome.out.count("prompt from") == 1


def evaluated(attnrl: Attnrl, *arguments: str) -> list[dict[str, Any]]:
    """The first responses of an evaluation to each problem."""
    outcome = attnrl(*EVAL, "--prompt-suffix", "", "--grader", "rules", "--output", "out", *arguments)
    assert outcome.code == 0, outcome.err
    rows = [json.loads(line) for line in Path("out", "samples.jsonl").read_text().splitlines()]
    return [row for row in rows if row["sample"] == 0]


def test_every_format_is_the_same_problem_for_the_model(attnrl: Attnrl) -> None:
    """The prompt that an evaluation records, and the answer that is right."""
    for name in ("names in capitals", "ShareGPT", "dialogue", "parts", "JSON text", "Python text", "system"):
        Path("x.jsonl").write_text(jsonl(*rows_of(SPELLINGS[name][0])))
        first = evaluated(attnrl, "--data", "x.jsonl")[0]
        shutil.rmtree("out")
        system = "0=A=1; " if name in {"ShareGPT", "system"} else ""
        assert (name, first["prompt"], first["answers"]) == (name, f"{system}1={ASK[0]}; 2=", [GOLD[0]])


def test_a_begun_answer_stays_in_the_prompt_and_a_finished_one_does_not(attnrl: Attnrl) -> None:
    begun = {"messages": [user(ASK[0]), assistant("B=")], "answer": GOLD[0]}
    done = {"messages": [user(ASK[1]), assistant(f"\\boxed{{{GOLD[1]}}}")], "answer": GOLD[1]}
    Path("x.jsonl").write_text(jsonl(begun, done))
    first, second = evaluated(attnrl, "--data", "x.jsonl")
    assert first["prompt"].startswith(f"1={ASK[0]}; 2=B=")
    assert second["prompt"] == f"1={ASK[1]}; 2="
    outcome = attnrl(*train(*DATA, "data.train=x.jsonl"))
    assert outcome.code == 0 and outcome.out.count("(1 time)") == 1
    assert "data file x.jsonl, line 1" in outcome.out  # the response continues the message


ODD = [
    {"ID": f"p{n}", "ask": {"text": ask}, "gold": gold, "rules": "A=1"}
    for n, (ask, gold) in enumerate(zip(ASK, GOLD, strict=True))
]
NAMED = {"prompt": "ask.text", "answer": "gold", "system": "rules", "id": "ID"}


def test_columns_are_named_in_training_and_evaluation(attnrl: Attnrl) -> None:
    Path("x.jsonl").write_text(jsonl(*ODD))
    outcome = attnrl(
        *train(*DATA, "data.train=x.jsonl", *(f"data.columns.{key}={name}" for key, name in NAMED.items()))
    )
    assert outcome.code == 0, outcome.err
    assert "prompt from ask.text, answer from gold, system message from rules, id from ID" in outcome.out
    options = ["--columns", ",".join(f"{key}={name}" for key, name in NAMED.items())]
    for source in (["--data", "x.jsonl"], ["--benchmark", "mine=x.jsonl"]):
        rows = evaluated(attnrl, *source, *options)
        shutil.rmtree("out")
        assert [row["problem"] for row in rows] == ["p0", "p1", "p2"]
        assert rows[0]["prompt"] == f"0=A=1; 1={ASK[0]}; 2="
        assert rows[0]["answers"] == [GOLD[0]]


def test_named_columns_of_the_training_file_need_not_be_in_the_evaluation_file(attnrl: Attnrl) -> None:
    Path("x.jsonl").write_text(jsonl(*ODD[:3]))
    Path("y.jsonl").write_text(jsonl(*ROWS[3:]))
    sources = ["data.train=x.jsonl", "data.eval=y.jsonl", "data.columns={prompt: ask.text, answer: gold}"]
    outcome = attnrl(*train(*DATA, *sources, "eval.every=1"))
    assert outcome.code == 0, outcome.err
    assert "data x.jsonl: prompt from ask.text, answer from gold" in outcome.out
    assert "data y.jsonl: prompt from prompt, answer from answer" in outcome.out


WRONG = {
    "a column in train": (
        train(*DATA, "data.train=x.jsonl", "data.columns.prompt=asks"),
        ["asks", "did you mean ask?"],
    ),
    "a key in train": (
        train(*DATA, "data.train=x.jsonl", "data.columns.promt=ask"),
        ["data.columns.promt", "'prompt'"],
    ),
    "a column in eval": (
        [*EVAL, "--data", "x.jsonl", "--columns", "prompt=ask.text,answer=golds"],
        ["golds", "did you mean gold?"],
    ),
    "a key in eval": ([*EVAL, "--data", "x.jsonl", "--columns", "anser=gold"], ["--columns", "did you mean answer?"]),
    "no equals sign": ([*EVAL, "--data", "x.jsonl", "--columns", "gold"], ["--columns gold", "KEY=COLUMN"]),
    "a task": ([*EVAL, "--task", "ledger", "--columns", "prompt=ask"], ["--columns", "--data"]),
    "an id twice": (
        train(*DATA, "data.train=[x.jsonl, twin.jsonl]", "data.columns={prompt: ask.text, answer: gold, id: ID}"),
        ["twin.jsonl, line 1", "x.jsonl, line 2", "'p1'"],
    ),
    "a misspelt column": (
        train(*DATA, "data.train=anwser.jsonl"),
        ["anwser.jsonl, line 1", "answer=anwser?"],
    ),
    "JSON text": (train(*DATA, "data.train=json.jsonl"), ["json.jsonl, line 2", "prompt=prompt.KEY"]),
    "a nested column": (train(*DATA, "data.train=nested.jsonl"), ["nested.jsonl, line 1", "prompt=ask.question?"]),
    "a nested near miss": (
        [*EVAL, "--data", "nested.jsonl", "--columns", "prompt=ask.qestion,answer=gold"],
        ["ask.qestion", "did you mean ask.question?"],
    ),
    "an infinite answer": (train(*DATA, "data.train=inf.jsonl"), ["inf.jsonl, line 1", "answer", "finite"]),
    "a list without an answer": (train(*DATA, "data.train=list.jsonl"), ["list.jsonl, line 1", "list of messages"]),
    "cut JSON text": (train(*DATA, "data.train=cut.jsonl"), ["cut.jsonl, line 1", "prompt"]),
    "an image": (train(*DATA, "data.train=image.jsonl"), ["image.jsonl, line 1", "'image_url'"]),
    "a prompt too long": (
        [*EVAL, "--data", "long.jsonl", "--max-prompt-tokens", "3", "--prompt-suffix", ""],
        ["model tiny", "long"],
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_fault_names_file_row_and_way_out(name: str, attnrl: Attnrl) -> None:
    image = {**user(""), "content": [{"type": "image_url", "image_url": "x.png"}]}
    files = {
        "x.jsonl": ODD,
        "twin.jsonl": ODD[1:2],
        "anwser.jsonl": [{"prompt": ASK[0], "anwser": "1"}],
        "json.jsonl": [ROWS[0], {"prompt": json.dumps({"text": ASK[0]}), "answer": "1"}],
        "nested.jsonl": [{"ask": {"question": ASK[0]}, "gold": "1"}],
        "inf.jsonl": [{"prompt": ASK[0], "answer": float("inf")}],
        "list.jsonl": [[user(ASK[0]), {"from": "assistant"}]],
        "cut.jsonl": [{"prompt": json.dumps([user(ASK[0])])[:-3], "answer": "1"}],
        "image.jsonl": [{"prompt": [image], "answer": "1"}],
        "long.jsonl": ROWS,
    }
    for file, rows in files.items():
        Path(file).write_text(jsonl(*rows))
    arguments, named = WRONG[name]
    outcome = attnrl(*arguments)
    assert outcome.code == 2
    assert outcome.err.startswith("attnrl: ") and outcome.err.count("\n") == 1
    assert [part for part in named if part not in outcome.err] == []


def test_null_answers_are_left_out_and_counted_and_a_value_of_any_type_is_an_answer(attnrl: Attnrl) -> None:
    Path("x.jsonl").write_text(jsonl(ROWS[0], {**ROWS[1], "answer": None}, {**ROWS[2], "answer": float("nan")}))
    outcome = attnrl(*train(*DATA, "data.train=x.jsonl"))
    assert outcome.code == 0, outcome.err
    assert "left out 2 rows without a true answer (x.jsonl line 2, x.jsonl line 3)" in outcome.out
    Path("y.jsonl").write_text(jsonl({**ROWS[0], "answer": True}, {**ROWS[1], "answer": 2.5}))
    assert [row["answers"] for row in evaluated(attnrl, "--data", "y.jsonl")] == [["True", "true"], ["2.5"]]
    shutil.rmtree("out")
    table = pyarrow.table({"prompt": ASK[:3], "answer": pyarrow.array([Decimal("3.00"), None, Decimal("0.50")])})
    pyarrow.parquet.write_table(table, "z.parquet")
    assert [row["answers"] for row in evaluated(attnrl, "--data", "z.parquet")] == [["3"], ["0.5"]]


def as_text(rows: list[dict[str, str]], separator: str) -> bytes:
    written = io.StringIO()
    writer = csv.DictWriter(written, list(rows[0]), delimiter=separator)
    writer.writeheader()
    writer.writerows(rows)
    return written.getvalue().encode()


def test_files_of_every_kind_give_the_same_problems(attnrl: Attnrl) -> None:
    lines = jsonl(*ROWS).encode()
    files = {
        "a.tsv": as_text(ROWS, "\t"),
        "b.ndjson": lines,
        "c.jsonl.gz": gzip.compress(lines),
        "d.csv.gz": gzip.compress(as_text(ROWS, ",")),
        "e.json": lines,
        "shards/0.jsonl": jsonl(*ROWS[:2]).encode(),
        "shards/1.jsonl": jsonl(*ROWS[2:]).encode(),
    }
    Path("shards").mkdir()
    Path("tables").mkdir()
    for name, content in files.items():
        Path(name).write_bytes(content)
    for number, rows in enumerate([ROWS[:4], ROWS[4:]]):
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), f"tables/part-{number}.parquet")
    for source in ["a.tsv", "b.ndjson", "c.jsonl.gz", "d.csv.gz", "e.json", "shards", "tables"]:
        outcome = attnrl(*train(*DATA, f"data.train={source}"))
        assert outcome.code == 0, outcome.err
        assert "problems    6 to train on" in outcome.out
        assert (f"data {source}: 2 files" in outcome.out) == (source in {"shards", "tables"})


def test_all_columns_reach_the_reward_function(attnrl: Attnrl, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(folder)
    (folder / "rows_reward.py").write_text(
        "def reward(prompts, completions, level, Answer, **columns):\n"
        "    assert 'Problem' not in columns and set(level) <= {1, 2}\n"
        "    return [float(gold == answer) for gold, answer in zip(Answer, columns['answer'])]\n"
    )
    rows = [
        {"Problem": ask, "Answer": gold, "level": 1 + n % 2}
        for n, (ask, gold) in enumerate(zip(ASK, GOLD, strict=True))
    ]
    Path("x.jsonl").write_text(jsonl(*rows))
    arguments = [*EVAL, "--prompt-suffix", "", "--grader", "rows_reward:reward", "--data", "x.jsonl", "--output", "out"]
    outcome = attnrl(*arguments)
    assert outcome.code == 0, outcome.err
    assert {json.loads(line)["reward"] for line in Path("out", "samples.jsonl").read_text().splitlines()} == {1.0}
