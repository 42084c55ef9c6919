"""Evaluation runs: chunks, the files written, and resuming after an interruption or a crash."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import helpers
import pytest
from rich.console import Console
from transformers import PreTrainedTokenizerBase

from attnrl.cli import app as cli
from attnrl.errors import UserError
from attnrl.evals import runner as evaluation_runner
from attnrl.evals.candidates import sample_seed
from attnrl.evals.runner import EvaluationRun
from attnrl.evals.settings import EvalSettings
from attnrl.evals.suites import Suite, load_suites
from attnrl.evals.tables import Report
from attnrl.types import Completion, Problem, Request, SamplingParams

SETTINGS = EvalSettings(
    sampling=SamplingParams(),
    seed=0,
    dtype="float32",
    task=None,
    grader="rules",
    flexible_answers=False,
    prompt_suffix="",
    max_prompt_tokens=None,
)
SUMS = Suite(
    "sums", "Sums", "nowhere", tuple(Problem(f"s:{i}", f"A={i}; B+1?", (str(i + 1),)) for i in range(5)), 3, 24
)
FEW = Suite("few", "Few", "nowhere", SUMS.problems[:2], 2, 24)


class Stopped(BaseException):
    """Stand-in for a crash: no handler catches it."""


class FakeEngine:
    """Sampler whose responses depend on the seed alone; records requests, and raises ``stop`` at call ``after``."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop: BaseException | None = None, after: int = 0) -> None:
        self.fake = helpers.FakeSampler(tokenizer)
        self.stop, self.after = stop, after
        self.settings: list[dict[str, Any]] = []

    def build(self, model: Any, tokenizer: Any, params: SamplingParams, **settings: Any) -> "FakeEngine":
        self.settings.append({"params": params, **settings})
        return self

    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        if self.stop is not None and len(self.fake.calls) == self.after:
            raise self.stop
        return self.fake.generate(requests)

    @property
    def asked(self) -> list[int]:
        return [request.seed for call in self.fake.calls for request in call]


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch, tokenizer: PreTrainedTokenizerBase) -> Any:
    """Replace the sampler by a fake."""

    def put(stop: BaseException | None = None, after: int = 0) -> FakeEngine:
        engine = FakeEngine(tokenizer, stop, after)
        monkeypatch.setattr(evaluation_runner, "build_sampler", engine.build)
        return engine

    return put


@pytest.fixture
def model(tiny_checkpoint: Path) -> str:
    return str(tiny_checkpoint)


def evaluate(models: Sequence[str], *suites: Suite, said: StringIO | None = None, **more: Any) -> Report:
    settings = more.pop("settings", SETTINGS)
    console = Console(file=said or StringIO(), width=200)
    return EvaluationRun(models, suites or (SUMS,), settings, console=console, **{"chunk": 4, **more}).run()


def read(folder: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    rows = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    return rows, json.loads((folder / "results.json").read_text())


def test_what_is_written(use: Any, model: str, tmp_path: Path) -> None:
    engine = use()
    evaluate([model], SUMS, FEW, output=tmp_path / "out")
    assert [len(call) for call in engine.fake.calls] == [4, 4, 4, 3, 4]  # chunks, of one suite each
    rows, results = read(tmp_path / "out")
    expected = [("sums", f"s:{i}", k) for i in range(5) for k in range(3)]
    expected += [("few", f"s:{i}", k) for i in range(2) for k in range(2)]
    assert [(row["benchmark"], row["problem"], row["sample"]) for row in rows] == expected
    fields = {"model", "benchmark", "problem", "sample", "seed", "prompt", "response", "answers", "extracted"}
    assert set(rows[0]) == fields | {"verdict", "reward", "rewards", "fault", "tokens", "finish_reason"}
    assert [row["seed"] for row in rows] == engine.asked == [sample_seed(0, *key) for key in expected]
    assert len(set(engine.asked)) == len(engine.asked)
    assert rows[0]["prompt"] == "A=0; B+1?" and rows[0]["answers"] == ["1"]
    assert results["complete"] and results["settings"]["temperature"] == 1.0
    assert {"attnrl", "torch", "transformers", "device"} <= set(results["versions"])
    first, second = results["results"]
    assert (first["benchmark"], first["problems"], first["samples"]) == ("sums", 5, 3)
    assert first["accuracy"] == first["reward"] == sum(row["reward"] for row in rows[:15]) / 15
    assert first["not_judged"] == 0
    assert first["response_length"] == sum(row["tokens"] for row in rows[:15]) / 15
    assert set(first["pass_at_k"]) == {"1", "2", "3"} and set(second["pass_at_k"]) == {"1", "2"}
    assert results["averages"][0]["accuracy"] == pytest.approx((first["accuracy"] + second["accuracy"]) / 2)


def test_without_output_nothing_is_written(
    use: Any, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    use()
    evaluate([model])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("left", ["", '{"model": "half', '{"model": "half a line \\u2028 é'])
@pytest.mark.parametrize("after", [0, 1, 3])
def test_after_a_stop_it_goes_on_as_if_nothing_had_happened(
    after: int, left: str, use: Any, model: str, tmp_path: Path
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    use()
    evaluate([model], SUMS, FEW, output=whole)
    first = use(Stopped(), after)
    with pytest.raises(Stopped):
        evaluate([model], SUMS, FEW, output=parts)
    assert not read(parts)[1]["complete"]
    with (parts / "samples.jsonl").open("a") as file:
        file.write(left)
    second = use()
    said = StringIO()
    evaluate([model], SUMS, FEW, output=parts, said=said)
    assert sorted(first.asked + second.asked) == sorted(set(first.asked + second.asked))
    if after:
        assert re.search(rf"^{4 * after} .*{re.escape(str(parts))}", said.getvalue(), re.MULTILINE)
    else:
        assert str(parts) not in said.getvalue().splitlines()[0]
    for name in ("samples.jsonl", "results.json"):
        assert (parts / name).read_bytes() == (whole / name).read_bytes()
    # And once more: nothing is left to sample.
    third = use()
    evaluate([model], SUMS, FEW, output=parts)
    assert third.asked == [] and third.settings == []
    assert (parts / "results.json").read_bytes() == (whole / "results.json").read_bytes()


def test_a_chunk_that_was_written_in_part_is_completed(use: Any, model: str, tmp_path: Path) -> None:
    use()
    evaluate([model], output=tmp_path)
    before = (tmp_path / "samples.jsonl").read_bytes()
    (tmp_path / "samples.jsonl").write_bytes(b"".join(before.splitlines(keepends=True)[:6]) + before[:50])
    engine = use()
    evaluate([model], output=tmp_path)
    assert [len(call) for call in engine.fake.calls] == [2, 4, 3]  # the second chunk's rest, then whole chunks
    assert (tmp_path / "samples.jsonl").read_bytes() == before


def test_ctrl_c_keeps_what_is_finished_and_says_how_to_go_on(use: Any, model: str, tmp_path: Path) -> None:
    use(KeyboardInterrupt(), 2)
    said = StringIO()
    with pytest.raises(KeyboardInterrupt):
        evaluate([model], output=tmp_path / "out", said=said)
    assert len(read(tmp_path / "out")[0]) == 8
    assert "8 of 15" in said.getvalue() and str(tmp_path / "out") in said.getvalue()
    use(KeyboardInterrupt(), 2)
    said = StringIO()
    with pytest.raises(KeyboardInterrupt):
        evaluate([model], said=said)
    assert "8 of 15" in said.getvalue()


OTHER_SETTINGS: dict[str, tuple[dict[str, Any], str]] = {
    "temperature": ({"sampling": SamplingParams(0.5)}, "temperature 1.0 -> 0.5"),
    "top-p": ({"sampling": SamplingParams(top_p=0.9)}, "top_p 1.0 -> 0.9"),
    "top-k": ({"sampling": SamplingParams(top_k=5)}, "top_k 0 -> 5"),
    "min-p": ({"sampling": SamplingParams(min_p=0.1)}, "min_p 0.0 -> 0.1"),
    "stop": ({"sampling": SamplingParams(stop=("B",))}, "stop [] -> ['B']"),
    "seed": ({"seed": 1}, "seed 0 -> 1"),
    "dtype": ({"dtype": "bfloat16"}, "dtype 'float32' -> 'bfloat16'"),
    "grader": ({"grader": "math"}, "grader 'rules' -> 'math'"),
    "flexible": ({"flexible_answers": True}, "flexible_answers False -> True"),
    "suffix": ({"prompt_suffix": " Go."}, "prompt_suffix '' -> ' Go.'"),
    "prompt limit": ({"max_prompt_tokens": 100}, "max_prompt_tokens None -> 100"),
}


@pytest.mark.parametrize("name", OTHER_SETTINGS)
def test_other_settings_are_refused(name: str, use: Any, model: str, tmp_path: Path) -> None:
    change, said = OTHER_SETTINGS[name]
    use()
    evaluate([model], FEW, output=tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    engine = use()
    with pytest.raises(UserError) as refused:
        evaluate([model], FEW, output=tmp_path, settings=replace(SETTINGS, **change))
    assert said in str(refused.value) and engine.asked == []
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_other_tokens_problems_or_weights_are_refused(
    use: Any, model: str, tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    out, mine = tmp_path / "out", tmp_path / "mine"
    helpers.tiny_model(vocab_size=len(tokenizer)).save_pretrained(mine)
    tokenizer.save_pretrained(mine)
    use()
    evaluate([str(mine)], FEW, output=out)
    other = replace(FEW, problems=(replace(FEW.problems[0], prompt="A=5?"), FEW.problems[1]))
    answer = replace(FEW, problems=(replace(FEW.problems[0], answers=("5",)), FEW.problems[1]))
    for suite, named in [
        (replace(FEW, max_new_tokens=23), "few max_new_tokens 24 -> 23"),
        (other, "few, problem s:0"),
        (answer, "few, problem s:0"),
    ]:
        with pytest.raises(UserError, match=named):
            evaluate([str(mine)], suite, output=out)
    helpers.tiny_model(vocab_size=len(tokenizer), seed=1).save_pretrained(mine)
    with pytest.raises(UserError, match=str(mine)):
        evaluate([str(mine)], FEW, output=out)


def test_more_samples_problems_benchmarks_and_models_are_added(
    use: Any, model: str, tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    second = tmp_path / "second"
    helpers.tiny_model(vocab_size=len(tokenizer), seed=1).save_pretrained(second)
    tokenizer.save_pretrained(second)
    grown, whole = tmp_path / "grown", tmp_path / "whole"
    few_sums = replace(SUMS, problems=SUMS.problems[:2], samples=2)
    for models, suites in [
        ([model], [few_sums]),
        ([model], [SUMS]),
        ([model, str(second)], [SUMS]),
        ([model, str(second)], [SUMS, FEW]),
    ]:
        engine = use()
        evaluate(models, *suites, output=grown)
    assert len(engine.asked) == 2 * 4
    evaluate([model, str(second)], SUMS, FEW, output=whole)
    assert read(grown)[1] == read(whole)[1]
    rows = [sorted(map(json.dumps, read(folder)[0])) for folder in (grown, whole)]
    assert rows[0] == rows[1]
    # What another command found out is kept beside it.
    evaluate([model], FEW, output=grown)
    results = read(grown)[1]
    kept = {(row["model"], row["benchmark"]) for row in results["results"]}
    assert kept == {(m, s) for m in (model, str(second)) for s in ("sums", "few")}
    assert {(row["model"], *row["benchmarks"]) for row in results["averages"]} == {(model, "few")}


def test_prompts_that_are_too_long_count_as_not_solved(use: Any, model: str, tmp_path: Path) -> None:
    long = Suite("long", "Long", "", (*FEW.problems, Problem("l:0", "A=1; " * 200, ("1",))), 2, 24)
    engine = use()
    said = StringIO()
    evaluate([model], long, output=tmp_path, said=said)
    rows, results = read(tmp_path)
    assert len(engine.asked) == len(rows) == 4
    (numbers,) = results["results"]
    assert (numbers["problems"], numbers["skipped_problems"]) == (3, 1)
    assert numbers["accuracy"] == pytest.approx(sum(row["reward"] for row in rows) / 6)
    assert "long: 1 " in said.getvalue()
    with pytest.raises(UserError, match=r"\bfew\b"):
        evaluate([model], FEW, settings=replace(SETTINGS, max_prompt_tokens=3))


def test_responses_end_where_the_models_positions_do(use: Any, model: str) -> None:
    engine = use()
    said = StringIO()
    evaluate([model], replace(FEW, max_new_tokens=32_768), said=said)
    for request in engine.fake.calls[0]:
        assert len(request.prompt) + request.max_new_tokens == 512
    assert "512" in said.getvalue() and "32,768" in said.getvalue()


def test_models_are_told_apart(use: Any, model: str) -> None:
    use()
    with pytest.raises(UserError, match="model"):
        evaluate([model, model])


def test_exactly_one_source_of_problems() -> None:
    for chosen in ({}, {"task": "ledger", "data": "x.jsonl"}, {"benchmarks": ["aime24"], "task": "ledger"}):
        with pytest.raises(UserError, match="--benchmark"):
            load_suites(**chosen)  # type: ignore[arg-type]


# --- A kill that cannot be caught -----------------------------------------------------------------------------------


def test_killed_half_way_and_started_again(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After SIGKILL of a real process and resume, no sample is repeated and the files equal an uninterrupted run."""
    (tmp_path / "few.jsonl").write_text(
        "".join(json.dumps({"prompt": f"A={i}; B+1?", "answer": str(i)}) + "\n" for i in range(4))
    )

    def command(output: str) -> list[str]:
        options = (
            "--benchmark few --data-dir . --grader rules --prompt-suffix= --samples 6 --max-new-tokens 240 --chunk 2"
        )
        start = [sys.executable, "-c", "from attnrl.cli.app import main; main()", "eval", str(tiny_checkpoint)]
        return [*start, *options.split(), "--output", output]

    process_settings: dict[str, Any] = {
        "cwd": tmp_path,
        "env": {**os.environ, "OMP_NUM_THREADS": "1"},
        "stdout": subprocess.DEVNULL,
    }
    samples = tmp_path / "killed" / "samples.jsonl"
    process = subprocess.Popen(command("killed"), **process_settings)
    deadline = time.monotonic() + 60
    while (not samples.exists() or samples.read_bytes().count(b"\n") < 4) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    before = samples.read_bytes()
    assert 4 <= before.count(b"\n") < 24
    with samples.open("ab") as file:
        file.write(b'{"model": "tin')  # as if the kill had come within a line
    monkeypatch.chdir(tmp_path)
    for output in ("killed", "whole"):
        monkeypatch.setattr(sys, "argv", ["attnrl", *command(output)[3:]])
        cli.app(standalone_mode=False)
    after = samples.read_bytes()
    assert after.startswith(before[: before.rfind(b"\n") + 1])
    assert after == (tmp_path / "whole" / "samples.jsonl").read_bytes()
    assert after.count(b"\n") == 24
    results = [json.loads((tmp_path / name / "results.json").read_text()) for name in ("killed", "whole")]
    assert results[0] == results[1] and results[0]["complete"]
