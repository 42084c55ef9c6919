"""Terminals and pipes without Unicode print ``?``, never a traceback; ``--version`` works everywhere."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from command_line import EVAL, FILE, ROWS, Outcome, jsonl, train

from attnrl import __version__
from attnrl.cli import app as cli

NAMES = [{**row, "prompt": f"Déjà vu: {row['prompt']} → ∑"} for row in ROWS]


class Ascii(io.TextIOWrapper):
    """A terminal or a pipe with the encoding of ``PYTHONIOENCODING=ascii``."""

    def __init__(self, terminal: bool) -> None:
        super().__init__(io.BytesIO(), encoding="ascii", errors="strict", write_through=True)
        self.terminal = terminal

    def isatty(self) -> bool:
        return self.terminal

    @property
    def text(self) -> str:
        return bytes(self.buffer.getvalue()).decode("ascii")  # type: ignore[attr-defined]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(tiny_checkpoint, tmp_path / "tiny")
    (tmp_path / "rows.jsonl").write_text(jsonl(*ROWS))
    (tmp_path / "names.jsonl").write_text(jsonl(*NAMES), encoding="utf-8")
    monkeypatch.chdir(tmp_path)


def ascii_call(monkeypatch: pytest.MonkeyPatch, terminal: bool, *arguments: str) -> Outcome:
    out, err = Ascii(terminal), Ascii(terminal)
    monkeypatch.setattr(sys, "argv", ["attnrl", *arguments])
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    threads = torch.get_num_threads()
    with pytest.raises(SystemExit) as stop:
        cli.main()
    torch.set_num_threads(threads)
    assert isinstance(stop.value.code, int)
    return Outcome(stop.value.code, out.text, err.text)


@pytest.mark.parametrize("terminal", [True, False], ids=["terminal", "pipe"])
def test_commands_print_question_marks(monkeypatch: pytest.MonkeyPatch, terminal: bool) -> None:
    monkeypatch.setenv("TERM", "xterm")
    shown = ascii_call(monkeypatch, terminal, "--help")
    assert shown.code == 0 and "train" in shown.out
    trained = ascii_call(monkeypatch, terminal, *train("output_dir=dé", "steps=1"))
    assert (trained.code, trained.err) == (0, "")
    assert "d?" in trained.out
    assert terminal == ("??" in trained.out)  # the sparkline of the live panel
    evaluated = ascii_call(monkeypatch, terminal, *EVAL, "--task", "ledger")
    assert (evaluated.code, evaluated.err) == (0, "")


def test_dry_runs_and_messages_with_names_of_any_language(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [*FILE[:1], "data.train=names.jsonl", "data.prompt_suffix=' → ½'"]
    shown = ascii_call(monkeypatch, False, *train(*rows), "--dry-run")
    assert shown.code == 0 and "?" in shown.out
    refused = ascii_call(monkeypatch, False, *train("model=größe"))
    assert refused.code == 2 and "gr??e" in refused.err and refused.err.count("\n") == 1
    graded = ascii_call(monkeypatch, False, "grade", "ß.jsonl", "--output", "out.jsonl")
    assert graded.code == 2 and "?.jsonl" in graded.err


@pytest.mark.parametrize(
    "environment",
    [
        {"PYTHONIOENCODING": "ascii"},
        {"LC_ALL": "C", "LANG": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "NO_COLOR": "1"},
    ],
    ids=["PYTHONIOENCODING", "LANG"],
)
def test_a_process_of_its_own(environment: dict[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "attnrl", "train", "attnrl", "modèle=∑"],
        capture_output=True,
        env={**os.environ, **environment},
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.count(b"\n") == 1 and b"mod" in done.stderr and b"Traceback" not in done.stderr


@pytest.mark.parametrize("words", [["--version"], ["train", "--version"], ["eval", "tiny", "--version"]])
def test_the_version_is_printed_before_and_after_a_command(monkeypatch: pytest.MonkeyPatch, words: list[str]) -> None:
    assert ascii_call(monkeypatch, False, *words) == Outcome(0, f"{__version__}\n", "")
