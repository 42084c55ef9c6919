"""Calling ``attnrl`` in this process, and the arguments that several tests call it with."""

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROWS = [{"prompt": f"A={digit}; B+1; C+2?", "answer": str((digit + 3) % 10)} for digit in range(6)]
# A run that takes a second at most.
SMALL = [
    "output_dir=out",
    "model=tiny",
    "steps=2",
    "prompts=2",
    "method.trunks=3",
    "sampling.max_new_tokens=96",
    "eval.problems=3",
    "eval.samples=2",
    "eval.every=1",
    "log.samples=2",
    "log.trees_every=1",
    "checkpoint.every=1",
    "threads=1",
]
FILE = ["task=null", "data.train=rows.jsonl", "data.prompt_suffix=''"]
EVAL = ["eval", "tiny", "--samples", "2", "--max-new-tokens", "16", "--max-prompt-tokens", "64", "--problems", "3"]


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str


Attnrl = Callable[..., Outcome]


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, and every folder."""
    return {str(path): path.read_bytes() if path.is_file() else b"" for path in sorted(folder.rglob("*"))}


def train(*changes: str, recipe: str = "attnrl") -> list[str]:
    return ["train", recipe, *SMALL, *changes]


def stages(task: str) -> str:
    return f"stages=[{{task: {task}, steps: 1, learning_rate: [1e-3, 1e-3], save: it}}]"


def working_folder(folder: Path, checkpoint: Path, module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in ``folder``, with the model ``tiny``, the rows ``rows.jsonl`` and the module ``mine`` of the user."""
    shutil.copytree(checkpoint, folder / "tiny")
    (folder / "mine.py").write_text(module)
    (folder / "rows.jsonl").write_text(jsonl(*ROWS))
    monkeypatch.chdir(folder)
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)


def read_jsonl(path: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def jsonl(*rows: object) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)
