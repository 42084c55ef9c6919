"""The files of a run, as a killed and resumed run leaves them."""

from pathlib import Path

import pytest

from attnrl.errors import UserError
from attnrl.runs.directory import METRICS, SAMPLES, TIMELINE, TREES, RunDirectory


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    """A run of four steps, with two samples of each evaluation."""
    run = RunDirectory(tmp_path / "runs" / "one")
    run.open("steps: 4\n", None)
    run.append(METRICS, [{"step": step, "reward": step / 10} for step in range(5)])
    run.append(TIMELINE, [{"step": step, "spans": []} for step in range(1, 5)])
    run.append(TREES, [{"step": 1}, {"step": 1}, {"step": 3}])
    run.append(SAMPLES, [{"step": 0}, {"step": 2}, {"step": 4}])
    return run


def steps(run: RunDirectory, name: str) -> list[int]:
    return [row["step"] for row in run.read(name)]


def test_a_new_run_makes_its_directory_and_keeps_nothing(run: RunDirectory) -> None:
    assert steps(run, METRICS) == [0, 1, 2, 3, 4]
    run.open("steps: 9\n", None)
    assert (run.root / "config.yaml").read_text() == "steps: 9\n"
    assert [run.read(name) for name in (METRICS, TIMELINE, TREES, SAMPLES)] == [[], [], [], []]


def test_holding_a_run(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "new")
    assert not run.holds_a_run()
    assert not run.root.exists()  # asking writes nothing
    run.open("", None)
    assert run.holds_a_run()


def test_resuming_drops_what_came_after_the_checkpoint(run: RunDirectory) -> None:
    run.open("steps: 4\n", 2)
    assert steps(run, METRICS) == [0, 1, 2]
    assert steps(run, TIMELINE) == [1, 2]
    assert steps(run, TREES) == [1, 1]
    assert steps(run, SAMPLES) == [0, 2]
    run.append(METRICS, [{"step": 3, "reward": 9.0}])
    assert run.read(METRICS)[2:] == [{"step": 2, "reward": 0.2}, {"step": 3, "reward": 9.0}]
    assert sorted(path.name for path in run.root.iterdir()) == ["config.yaml", METRICS, SAMPLES, TIMELINE, TREES]


def test_a_last_line_cut_short_is_left_out_and_the_next_row_gets_a_line_of_its_own(run: RunDirectory) -> None:
    path = run.root / METRICS
    path.write_bytes(path.read_bytes()[:-7])
    assert steps(run, METRICS) == [0, 1, 2, 3]
    run.open("", 3)
    run.append(METRICS, [{"step": 4}])
    assert steps(run, METRICS) == [0, 1, 2, 3, 4]


def test_a_damaged_line_elsewhere_is_named(run: RunDirectory) -> None:
    path = run.root / METRICS
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], lines[1][:-3], *lines[2:]]) + "\n")
    with pytest.raises(UserError, match=r"metrics\.jsonl, line 2\b"):
        run.read(METRICS)
    path.write_text("\n".join([*lines, "{cut}"]) + "\n")  # a whole line, newline and all: not a write cut short
    with pytest.raises(UserError, match=r"metrics\.jsonl, line 6\b"):
        run.read(METRICS)


def test_a_file_that_is_not_there_has_no_rows(tmp_path: Path) -> None:
    assert RunDirectory(tmp_path).read(METRICS) == []


def test_text_of_any_script_survives(run: RunDirectory) -> None:
    run.append(SAMPLES, [{"step": 5, "response": "世\u2028界\n👩"}])
    assert run.read(SAMPLES)[-1]["response"] == "世\u2028界\n👩"


@pytest.mark.parametrize("name", ["file", "file/below"])
def test_a_directory_that_cannot_be_made_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match=f"^output_dir .*{name}: .*/file\\b"):
        RunDirectory(tmp_path / name).require_writable()
    assert (tmp_path / "file").read_text() == "mine"
