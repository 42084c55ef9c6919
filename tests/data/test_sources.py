"""Rows from files and data sets, and the messages for faulty rows."""

import gzip
import json
import sys
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from attnrl.data.files import read_file
from attnrl.data.sources import read_source, source_name
from attnrl.errors import UserError

ROWS = [{"prompt": "1+1?", "answer": "2"}, {"prompt": "2+2?", "answer": "4"}]


@pytest.fixture
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """What ``datasets`` makes of a folder goes elsewhere, and it does not look for the Hub."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


def write(path: Path, rows: list[Any]) -> Path:
    """Write rows in the format of the ending; ``.gz`` compresses."""
    path.parent.mkdir(exist_ok=True)
    kind = path.name.lower().removesuffix(".gz").rpartition(".")[2]
    if kind == "parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
        return path
    if kind in {"csv", "tsv"}:
        separator = "," if kind == "csv" else "\t"
        lines = [separator.join(rows[0]), *(separator.join(row.values()) for row in rows)]
    elif kind in {"jsonl", "ndjson"}:
        lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    else:
        lines = [json.dumps(rows)]
    content = "".join(f"{line}\n" for line in lines).encode()
    path.write_bytes(gzip.compress(content, mtime=0) if path.suffix == ".gz" else content)
    return path


def complaint(source: Path | str) -> str:
    with pytest.raises(UserError) as caught:
        read_source(source)
    message = str(caught.value)
    assert "\n" not in message
    assert str(source) in message
    return message


def fields(source: Path | str) -> list[Any]:
    return [row.fields for row in read_source(source)]


@pytest.mark.parametrize(
    ("kind", "places"),
    [
        ("parquet", ["row 0", "row 1"]),
        ("json", ["row 0", "row 1"]),
        ("jsonl", ["line 1", "line 2"]),
        ("csv", ["line 2", "line 3"]),
        ("tsv", ["line 2", "line 3"]),
        ("ndjson", ["line 1", "line 2"]),
        ("JSONL", ["line 1", "line 2"]),
        ("jsonl.gz", ["line 1", "line 2"]),
        ("ndjson.gz", ["line 1", "line 2"]),
        ("json.gz", ["row 0", "row 1"]),
        ("csv.gz", ["line 2", "line 3"]),
        ("tsv.gz", ["line 2", "line 3"]),
    ],
)
def test_every_kind_of_file_gives_the_same_rows(tmp_path: Path, kind: str, places: list[str]) -> None:
    path = write(tmp_path / f"x.{kind}", ROWS)
    assert fields(path) == fields(str(path)) == ROWS
    assert [row.where for row in read_file(path)] == [f"data file {path}, {place}" for place in places]
    assert source_name(path) == "x"


def test_a_json_file_may_hold_lines_or_an_object_around_the_rows(tmp_path: Path) -> None:
    lines, around = tmp_path / "lines.json", tmp_path / "around.json"
    lines.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    around.write_text(json.dumps({"version": 1, "tags": ["a"], "rows": ROWS}))
    assert fields(lines) == fields(around) == ROWS
    assert [row.where for row in read_file(lines)] == [f"data file {lines}, line {number}" for number in (1, 2)]
    assert [row.where for row in read_file(around)] == [f"data file {around}, rows, row {number}" for number in (0, 1)]


@pytest.mark.parametrize("kind", ["parquet", "jsonl", "csv.gz"])
def test_a_folder_of_files_is_read_in_order_and_each_row_names_its_file(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "shards"
    second, first = write(folder / f"b.{kind}", ROWS[1:]), write(folder / f"a.{kind}", ROWS[:1])
    (folder / "README.md").write_text("# Sums\n")
    (folder / ".cache").mkdir()
    write(folder / ".cache" / "c.jsonl", ROWS)
    rows = read_source(folder)
    assert [row.fields for row in rows] == ROWS
    assert [row.where.rpartition(", ")[0] for row in rows] == [f"data file {first}", f"data file {second}"]


def test_the_splits_and_kinds_of_a_folder_are_never_mixed(tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    for number in range(2):
        write(folder / f"train-0000{number}-of-00002.parquet", [ROWS[number]])
    assert fields(folder) == fields(f"{folder}[train]") == ROWS
    (folder / "test").mkdir()
    write(folder / "test" / "0.parquet", ROWS[1:])
    assert fields(f"{folder}[test]") == ROWS[1:]
    assert "(train, test): choose one" in complaint(folder) or "(test, train): choose one" in complaint(folder)
    mixed = tmp_path / "mixed"
    write(mixed / "a.csv", ROWS)
    write(mixed / "b.jsonl", ROWS)
    assert ".csv, .jsonl" in complaint(mixed)


def test_a_misspelt_file_or_split_is_corrected(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", ROWS)
    write(tmp_path / "test.jsonl", ROWS)
    assert complaint(tmp_path / "trian.jsonl").endswith("; did you mean train.jsonl?")
    with pytest.raises(UserError, match=r"no split trian .*; did you mean train\?"):
        read_source(f"{tmp_path}[trian]")


def test_a_path_may_begin_with_the_home_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path / "x.jsonl", ROWS)
    assert fields("~/x.jsonl") == ROWS


def test_text_may_hold_any_character(tmp_path: Path) -> None:
    """Such as line separators that JSON leaves as they are."""
    odd = "a\u2028b\u0085c\x1cd 世界 👩‍🚀\n\n?"
    for name in ("x.jsonl", "x.json", "x.parquet"):
        assert fields(write(tmp_path / name, [{"prompt": odd}])) == [{"prompt": odd}]


def test_blank_lines_windows_line_ends_and_a_byte_order_mark_are_no_rows(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'\xef\xbb\xbf\r\n{"prompt": "a"}\r\n\r\n{"prompt": "b"}')
    assert [(row.fields["prompt"], row.where[-6:]) for row in read_file(path)] == [("a", "line 2"), ("b", "line 4")]


def test_csv_fields_may_hold_commas_quotes_and_line_ends(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_bytes(b'\xef\xbb\xbfproblem,answer\r\n"a, ""b""\r\nc",1\r\n\r\nd,2\r\n')
    rows = read_file(path)
    assert [row.fields for row in rows] == [
        {"problem": 'a, "b"\r\nc', "answer": "1"},
        {"problem": "d", "answer": "2"},
    ]
    assert [row.where.rpartition(", ")[2] for row in rows] == ["line 2", "line 5"]


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
        ("x.csv", b"", ": no rows"),
        ("x.csv", b"prompt,answer\n", ": no rows"),
        ("x.csv", b"prompt,answer\na,1\nb\n", ", line 3: 1 fields, but the first line names 2 columns"),
        ("x.csv", b"prompt,answer\na,1\nb,2,3\n", ", line 3: 3 fields"),
        ("x.csv", b"prompt,prompt\na,1\n", ", line 1: two columns have the same name"),
        ("x.csv", b'prompt,a,"a\n\x1b[2J",2,2\n', r", line 1: two columns have the same name (prompt, a, a\n\x1b[2J,"),
        ("x.csv", b'prompt,answer\na,1\n"b,2\nc,3\n', ", line 3: not CSV"),
        ("x.csv", b'prompt,answer\n"a" b,1\n', ", line 2: not CSV"),
        ("x.csv", b"\xff\xfe", ": not UTF-8 text"),
        ("x.jsonl.gz", b"no gzip", ": not readable as gzip"),
        ("x.jsonl.gz", gzip.compress(b"{}" * 500, mtime=0)[:-9], ": not readable as gzip"),
        ("x.jsonl.gz", gzip.compress(b"\xff", mtime=0), ": not UTF-8 text"),
        ("x.parquet.gz", gzip.compress(b"PAR1", mtime=0), ": expected .parquet"),
        ("x.txt", b"prompt", ": expected .parquet, .jsonl"),
    ],
)
def test_a_faulty_file_is_named(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    assert complaint(path).removeprefix(f"data file {path}").startswith(said)


def test_what_is_not_there(tmp_path: Path) -> None:
    assert complaint(tmp_path / "nothing.parquet").endswith("nothing.parquet: no such file")
    (tmp_path / "folder.jsonl").mkdir()
    assert complaint(tmp_path / "folder.jsonl").endswith("folder.jsonl: an empty folder")
    assert "no such file or folder" in complaint(tmp_path / "nowhere")
    assert "no such file or folder" in complaint("a/b/c[train]")


def test_an_empty_table(tmp_path: Path) -> None:
    pyarrow.parquet.write_table(pyarrow.table({"prompt": pyarrow.array([], pyarrow.string())}), tmp_path / "x.parquet")
    assert complaint(tmp_path / "x.parquet").endswith(": no rows")


@pytest.mark.parametrize(
    ("source", "asked"),
    [
        ("openai/gsm8k:main[train]", ("openai/gsm8k", "main", None, "train")),
        ("openai/gsm8k:main@v1.0[train[:10%]]", ("openai/gsm8k", "main", "v1.0", "train[:10%]")),
        ("gsm8k@refs/convert/parquet", ("gsm8k", None, "refs/convert/parquet", None)),
        ("HuggingFaceH4/MATH-500", ("HuggingFaceH4/MATH-500", None, None, None)),
    ],
)
def test_a_data_set_of_the_hub(source: str, asked: tuple[Any, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def load_dataset(name: str, config: str | None, *, revision: str | None, split: str | None) -> Any:
        calls.append((name, config, revision, split))
        loaded = datasets.Dataset.from_list(ROWS)
        return loaded if split else datasets.DatasetDict({"test": loaded})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    rows = read_source(source)
    assert calls == [asked]
    assert [row.fields for row in rows] == ROWS
    assert [row.where for row in rows] == [f"data set {source}, row {number}" for number in (0, 1)]
    assert source_name(source) == asked[0]


def test_a_data_set_of_several_splits_needs_one(monkeypatch: pytest.MonkeyPatch) -> None:
    both = datasets.DatasetDict({"train": datasets.Dataset.from_list(ROWS), "test": datasets.Dataset.from_list(ROWS)})
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: both)
    assert complaint("a/b").endswith("has splits train, test: choose one, as in a/b[train]")


def test_what_goes_wrong_on_the_way_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(*_: Any, **__: Any) -> Any:
        raise RuntimeError("no\nnetwork")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert complaint("a/b").endswith("cannot be loaded (RuntimeError: no network)")


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert "pip install attnrl[hub]" in complaint("openai/gsm8k")


def test_a_folder_of_data_files(tmp_path: Path, cache: None) -> None:
    folder = tmp_path / "sums"
    folder.mkdir()
    write(folder / "train.jsonl", ROWS)
    assert fields(folder) == ROWS
    write(folder / "test.jsonl", ROWS[1:])
    assert fields(f"{folder}[test]") == ROWS[1:]
    assert "choose one" in complaint(folder)
    with pytest.raises(UserError, match=r"sums: no split dev \(known: test, train\)"):
        read_source(f"{folder}[dev]")
    assert source_name(folder) == source_name(f"{folder}[test]") == "sums"


def test_a_folder_that_save_to_disk_wrote(tmp_path: Path) -> None:
    one = datasets.Dataset.from_list(ROWS)
    one.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": one, "test": one.select([1])}).save_to_disk(tmp_path / "both")
    assert fields(tmp_path / "one") == ROWS
    assert fields(f"{tmp_path / 'both'}[test]") == ROWS[1:]
    assert "choose one" in complaint(tmp_path / "both")
    assert complaint(f"{tmp_path / 'both'}[dev]").endswith("no split dev (known: train, test)")


def test_a_loading_script_is_not_run(tmp_path: Path, cache: None) -> None:
    folder = tmp_path / "script"
    folder.mkdir()
    (folder / "script.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    assert "cannot be loaded" in complaint(folder)
    assert not (tmp_path / "ran").exists()
