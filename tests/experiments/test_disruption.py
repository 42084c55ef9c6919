"""The disruption experiment from end to end, and errors of invalid input."""

import json
from io import StringIO
from pathlib import Path
from typing import Any

import helpers
import pytest
from rich.console import Console
from transformers import PreTrainedTokenizerBase

from attnrl.cli import app as cli
from attnrl.errors import UserError
from attnrl.evals.settings import EvalSettings
from attnrl.evals.suites import Suite
from attnrl.experiments.disruption import experiment as disruption
from attnrl.experiments.disruption.hidden_steps import HiddenRequest
from attnrl.experiments.disruption.runner import run_disruption
from attnrl.experiments.disruption.settings import DisruptSettings
from attnrl.types import Problem, SamplingParams

EVALUATION = EvalSettings(
    sampling=SamplingParams(),
    seed=0,
    dtype="float32",
    task=None,
    grader="rules",
    flexible_answers=True,
    prompt_suffix="",
    max_prompt_tokens=None,
)
SETTINGS = DisruptSettings(EVALUATION, lag=1, delta=1, rho=0.5, bins=1, continuations=2, hide_from="continuation")
SUITE = Suite("sums", "Sums", "nowhere", tuple(Problem(f"s:{i}", f"A={i}?", (str(i),)) for i in range(4)), 2, 40)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tokenizer: PreTrainedTokenizerBase) -> helpers.FakeSampler:
    """Sampler with responses of several steps (a random model writes single steps)."""
    sampler = helpers.FakeSampler(tokenizer)
    monkeypatch.setattr(disruption, "build_sampler", lambda *args, **settings: sampler)
    return sampler


def run(model: Path, settings: DisruptSettings = SETTINGS, suite: Suite = SUITE, **more: Any) -> dict[str, Any]:
    return run_disruption(str(model), suite, settings, console=Console(file=StringIO()), **more)


def test_it_writes_results_tables_steps_and_a_picture(
    tiny_checkpoint: Path, fake: helpers.FakeSampler, tmp_path: Path
) -> None:
    results = run(tiny_checkpoint, output=tmp_path / "out")
    assert results["sampled"]["responses"] == 8
    assert json.loads((tmp_path / "out" / "results.json").read_text()) == json.loads(json.dumps(results))
    rows = [json.loads(line) for line in (tmp_path / "out" / "steps.jsonl").read_text().splitlines()]
    of_response: dict[tuple[str, int], list[str]] = {}
    for row in rows:
        assert len(row["undisturbed"]) == len(row["disrupted"]) == 2
        of_response.setdefault((row["problem"], row["sample"]), []).extend(row["conditions"])
    # Every condition has one step of each of the same responses.
    assert len(of_response) == results["responses"]
    assert all(sorted(names) == sorted(results["conditions"]) for names in of_response.values())
    table = (tmp_path / "out" / "results.md").read_text()
    assert "| top FCI |" in table and "95 %" in table
    assert (tmp_path / "out" / "disruption.png").stat().st_size > 10_000
    with pytest.raises(UserError, match=r"--output .*out"):
        run(tiny_checkpoint, output=tmp_path / "out")


def test_the_same_seed_gives_the_same_numbers(tiny_checkpoint: Path, fake: helpers.FakeSampler) -> None:
    assert run(tiny_checkpoint) == run(tiny_checkpoint, max_batch=3)


@pytest.mark.parametrize("hide_from", ["continuation", "next_step"])
@pytest.mark.parametrize("lag", [1, 2])
def test_hidden_and_seen_continuations_have_the_same_cut_and_seeds(
    tiny_checkpoint: Path,
    fake: helpers.FakeSampler,
    monkeypatch: pytest.MonkeyPatch,
    tokenizer: PreTrainedTokenizerBase,
    hide_from: str,
    lag: int,
) -> None:
    asked: list[HiddenRequest] = []
    continue_hidden = disruption.continue_hidden

    def spy(model: Any, requests: list[HiddenRequest], params: SamplingParams, **settings: Any) -> Any:
        asked.extend(requests)
        return continue_hidden(model, requests, params, **settings)

    monkeypatch.setattr(disruption, "continue_hidden", spy)
    run(tiny_checkpoint, DisruptSettings(EVALUATION, lag, 1, 0.5, 1, 2, hide_from))
    assert len(asked) % 4 == 0 and asked
    for place in range(0, len(asked), 4):
        seen, hidden = asked[place : place + 2], asked[place + 2 : place + 4]
        assert [(r.prompt, r.seed, r.max_new_tokens) for r in seen] == [
            (r.prompt, r.seed, r.max_new_tokens) for r in hidden
        ]
        assert seen[0].seed != seen[1].seed
        assert {r.hidden for r in seen} == {(0, 0)} and len({r.hidden for r in hidden}) == 1
        request = hidden[0]
        kept = tokenizer.decode(request.prompt)
        step = tokenizer.decode(request.prompt[slice(*request.hidden)])
        assert kept.endswith("\n\n")  # a whole number of steps
        if lag == 1:
            assert kept.endswith(step + "\n\n")  # but for its last token, which has to be read
        else:
            assert step.endswith("\n\n") and step.count("\n\n") == 1
            assert kept.removesuffix("\n\n").rsplit("\n\n", 1)[0].endswith(step.removesuffix("\n\n"))
        end = request.hidden[1] if hide_from == "next_step" else len(request.prompt) - 1
        assert request.unseen_from == end


def test_responses_with_too_few_steps_are_told_with_what_would_do(
    tiny_checkpoint: Path, fake: helpers.FakeSampler, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"--bins 5 .*\b10\b.*--lag 4"):
        run(tiny_checkpoint, DisruptSettings(EVALUATION, 4, 4, 0.2, 5, 2, "continuation"), output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_interruption_says_that_nothing_is_written(
    tiny_checkpoint: Path, fake: helpers.FakeSampler, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def stop(*args: Any, **settings: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(disruption, "continue_hidden", stop)
    said = StringIO()
    with pytest.raises(KeyboardInterrupt):
        run_disruption(
            str(tiny_checkpoint), SUITE, SETTINGS, console=Console(file=said, width=200), output=tmp_path / "out"
        )
    assert said.getvalue().strip()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["ledger"], "--task"),
        (["ledger", "--task", "ledger", "--data", "x.jsonl"], "--data"),
        (["ledger", "--task", "nonsense"], "nonsense"),
        (["nowhere", "--task", "ledger"], "model nowhere"),
        (["ledger", "--task", "ledger", "--hide-from", "me"], "--hide-from me"),
        (["ledger", "--task", "ledger", "--rho", "0"], "--rho 0.0"),
        (["ledger", "--task", "ledger", "--top-p", "0"], "--top-p 0.0"),
        (["ledger", "--task", "ledger", "--dtype", "int8"], "--dtype int8"),
        (["ledger", "--task", "ledger", "--grader", "x"], "grader"),
        (["ledger", "--task", "ledger", "--max-new-tokens", "100000"], "--max-new-tokens 100000"),
    ],
)
def test_wrong_input_ends_in_one_line(
    arguments: list[str], named: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["attnrl", "disrupt", "--problems", "2", *arguments])
    with pytest.raises(SystemExit) as exit_:
        cli.main()
    assert exit_.value.code == 2
    said = capsys.readouterr().err.strip()
    assert named in said and "\n" not in said
