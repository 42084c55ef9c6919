"""Tables, progress and output directory of ``attnrl eval``."""

import json
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from attnrl.errors import UserError
from attnrl.evals.directory import EvalDirectory
from attnrl.evals.summary import EvaluationOutcome, Summary, summarize_outcomes
from attnrl.evals.tables import TABLE_1, TABLE_1_COLUMNS, EvalProgress, Report


def summary(rewards: list[list[float]], skipped: int = 0) -> Summary:
    outcomes = [
        EvaluationOutcome(
            f"p{i}", reward, "correct" if reward else "no_answer", 100 * (i + 1), "stop" if reward else "length"
        )
        for i, row in enumerate(rewards)
        for reward in row
    ]
    return summarize_outcomes(outcomes, samples=len(rewards[0]), skipped=skipped, seed=0)


def printed(report: Report, *deviations: str, width: int = 80) -> str:
    console = Console(file=StringIO(), width=width)
    report.print(console, deviations)
    return console.file.getvalue()  # type: ignore[attr-defined]


def line(text: str, start: str) -> list[str]:
    """Return the cells of the only table row that starts with ``start``."""
    (found,) = [row for row in text.splitlines() if row.strip("│┃ ").startswith(start)]
    return [cell.strip() for cell in found.strip("│┃").replace("┃", "│").split("│")]


HALF = summary([[1.0, 0.0]] * 4)
ALL = summary([[1.0, 1.0]] * 4)


def test_the_papers_average_is_the_mean_of_its_columns() -> None:
    for _, values, average in TABLE_1:
        assert len(values) == len(TABLE_1_COLUMNS)
        assert sum(values) / 6 == pytest.approx(average, abs=0.051)


def test_models_are_rows_and_benchmarks_columns() -> None:
    report = Report([("aime24", "AIME24"), ("math500", "MATH-500")])
    for model, first, second in (("base", HALF, HALF), ("mine", ALL, HALF)):
        report.add(model, {"aime24": first, "math500": second})
    text = printed(report)
    assert line(text.partition("pass@k in %")[0], "model") == ["model", "avg@2", "avg@2", "average"]
    rows = [row for row in text.splitlines() if row.startswith(("│ base ", "│ mine "))]
    assert [cell.strip() for cell in rows[1].strip("│").split("│")] == ["mine", "100.0", "50.0", "75.0"]
    assert "50.0–50.0" in text  # every problem alike: nothing to be uncertain about
    assert line(text, "1.5B + AttnRL (paper)")[1:] == ["39.7", "90.0", f"{(39.7 + 90.0) / 2:.1f}"]
    assert "2 problems; 9 tokens" not in text
    assert "2 problems; 9 tokens" in printed(report, "2 problems", "9 tokens")
    assert "100.0%" in text and "pass@2" in text


def test_all_six_show_the_average_that_the_paper_prints() -> None:
    report = Report([(name, name) for name in TABLE_1_COLUMNS])
    report.add("m", dict.fromkeys(TABLE_1_COLUMNS, HALF))
    assert line(printed(report), "7B + TreeRL (paper)")[-1] == "66.9"  # the mean is 66.93


def test_other_benchmarks_are_not_compared_and_alone_have_no_average() -> None:
    report = Report([("mine", "mine")])
    report.add("a [bold]name", {"mine": summary([[1.0, 0.0, 0.0]] * 3, skipped=1)})
    text = printed(report)
    assert "paper" not in text and "average" not in text
    assert "a [bold]name" in text and "1 skipped" in text
    assert line(text, "a [bold]name │ mine")[2:] == ["4", "50.0%", "75.0%", "200", "66.7%", "66.7%", "0.0%"]


def test_a_file_gets_whole_lines_however_many_columns() -> None:
    name = "runs/some/where/with/a/long/name/checkpoints/step-000500"
    report = Report([(column, column) for column in TABLE_1_COLUMNS])
    report.add(name, dict.fromkeys(TABLE_1_COLUMNS, HALF))
    assert sum(name in row for row in printed(report).splitlines()) == 7


def test_progress_of_a_log_is_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("attnrl.evals.tables.time.monotonic", lambda: now)
    console = Console(file=StringIO(), width=80)
    with EvalProgress(console, 20, 10) as progress:
        progress.begin("m · B")
        for done in range(1, 6):
            now += 8
            progress.sampled(100 * done, done)
        progress.finished(5, 500)
        now += 10
        progress.finished(5, 500)
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert lines == [
        "m · B: 14/20 samples  0.12 samples/s  12 tokens/s  left 0:00:48",  # 4 in 32 s, 6 to go
        "m · B: 20/20 samples  0.20 samples/s  20 tokens/s  left 0:00:00",
    ]
    terminal = Console(file=StringIO(), width=80, force_terminal=True)
    with EvalProgress(terminal, 20, 10) as progress:
        progress.begin("m · B")
        progress.finished(10, 500)
    assert "20/20" in terminal.file.getvalue()  # type: ignore[attr-defined]


# --- The directory --------------------------------------------------------------------------------------------------

ROW = {"model": "m", "benchmark": "b", "problem": "p", "sample": 0, "prompt": "?", "answers": ["1"], "seed": 7}
ROW |= {"reward": 1.0, "verdict": "correct", "tokens": 3, "finish_reason": "stop"}


def test_a_directory_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "samples.jsonl").write_text("{}\n")
    with pytest.raises(UserError, match=r"samples\.jsonl"):
        EvalDirectory(tmp_path).read_results()
    for text in ("{", "[]", "{}"):
        (tmp_path / "results.json").write_text(text)
        with pytest.raises(UserError, match=r"results\.json"):
            EvalDirectory(tmp_path).read_results()
    assert EvalDirectory(tmp_path / "new" / "one").read_results() is None
    assert not (tmp_path / "new").exists()


def test_a_line_that_is_no_sample_is_named(tmp_path: Path) -> None:
    for faulty in ([1], {}, {**ROW, "reward": "high"}, {**ROW, "model": ["m"]}):
        (tmp_path / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in (ROW, ROW, faulty)))
        with pytest.raises(UserError, match=r"samples\.jsonl, line 3\b"):
            list(EvalDirectory(tmp_path).rows())


@pytest.mark.parametrize("left", [0, 1, 70_000, 200_000])
def test_what_a_kill_left_of_a_line_is_cut_off(tmp_path: Path, left: int) -> None:
    directory = EvalDirectory(tmp_path)
    directory.open()
    directory.append([ROW, {**ROW, "sample": 1}])
    directory.close()
    path = tmp_path / "samples.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole + b"x" * left)
    assert [row["sample"] for row in directory.rows()] == [0, 1]
    directory.open()
    directory.append([{**ROW, "sample": 2}])
    directory.close()
    assert path.read_bytes().startswith(whole)
    assert [row["sample"] for row in directory.rows()] == [0, 1, 2]
    path.write_bytes(b"x" * left)
    directory.open()
    directory.close()
    assert path.read_bytes() == b""


def test_two_at_once_are_refused(tmp_path: Path) -> None:
    pytest.importorskip("fcntl")
    first = EvalDirectory(tmp_path)
    first.open()
    with pytest.raises(UserError, match=tmp_path.name):
        EvalDirectory(tmp_path).open()
    first.close()
    second = EvalDirectory(tmp_path)
    second.open()
    second.close()
