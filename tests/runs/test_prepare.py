"""What a run is made of: its problems, its grader, and what is said of them before it starts."""

from __future__ import annotations

import json
from pathlib import Path

import helpers
import pytest
from transformers import PreTrainedTokenizerBase

from attnrl.config.load import load_config
from attnrl.config.schema import TrainConfig
from attnrl.data.run_data import held_out_problems, load_run_data
from attnrl.data.stream import ProceduralProblems, ShuffledProblems
from attnrl.errors import UserError
from attnrl.grading.math import MathGrader
from attnrl.grading.rules import RulesGrader
from attnrl.runs.compatibility import require_positions
from attnrl.tasks.ledger import build_tokenizer
from attnrl.tasks.reasoning_gym import ReasoningGymGrader

GYM = "task=reasoning_gym:chain_sum?min_terms=2&max_terms=2"
FILE = ["task=null", "data.prompt_suffix=''"]


def config(*overrides: str) -> TrainConfig:
    return load_config(TrainConfig, "attnrl", ["sampling.max_prompt_tokens=128", *overrides])


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Twenty sums to train on, six to evaluate on, of which two are among the twenty."""
    monkeypatch.chdir(tmp_path)
    for name, numbers in {"train": range(20), "test": range(18, 24)}.items():
        rows = [{"prompt": f"A={n}?", "answer": str(n)} for n in numbers]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def test_a_run_keeps_its_evaluation_problems_out_of_training(tokenizer: PreTrainedTokenizerBase) -> None:
    data = load_run_data(config("task=ledger_single", "eval.problems=50"), tokenizer)
    assert data.training_problems is None and len({problem.id for problem in data.held_out}) == 50
    assert isinstance(data.source, ProceduralProblems)
    assert data.source.held_out == {problem.id for problem in data.held_out}
    # They are the same for every seed, and a smaller evaluation uses the first of them.
    again = load_run_data(config("task=ledger_single", "eval.problems=50", "seed=7"), tokenizer)
    assert again.held_out == data.held_out
    assert held_out_problems("ledger_single", 10) == list(data.held_out[:10])
    assert load_run_data(config("task=ledger_single", "eval.every=0"), tokenizer).held_out == ()


def test_a_run_on_reasoning_gym(tokenizer: PreTrainedTokenizerBase) -> None:
    data = load_run_data(config(GYM, "eval.problems=5"), tokenizer)
    assert data.training_problems is None and len(data.held_out) == 5
    assert list(data.held_out) == held_out_problems(GYM.removeprefix("task="), 5)
    assert data.source.at(3) == load_run_data(config(GYM, "eval.problems=5"), tokenizer).source.at(3)
    chatty = build_tokenizer()
    chatty.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    chats = load_run_data(config(GYM, "eval.problems=5"), chatty)
    assert [problem.id for problem in chats.held_out] == [problem.id for problem in data.held_out]
    assert chats.source.at(3).prompt == ({"role": "user", "content": data.source.at(3).prompt},)
    plain = load_run_data(config(GYM, "eval.problems=5", "data.chat_template=never"), chatty)
    assert plain.source.at(3) == data.source.at(3)
    with pytest.raises(UserError, match="max_prompt_tokens = 9"):
        load_run_data(config(GYM, "sampling.max_prompt_tokens=9"), tokenizer)


def test_a_run_on_files(files: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    settings = [*FILE, "data.train=train.jsonl", "data.eval=test.jsonl"]
    data = load_run_data(config(*settings), tokenizer)
    assert (data.training_problems, len(data.held_out)) == (18, 6)
    assert isinstance(data.source, ShuffledProblems)
    assert sum(note.startswith("data train.jsonl: left out 2 ") for note in data.notes) == 1
    # How many are evaluated on changes nothing in what is trained on.
    fewer = load_run_data(config(*settings, "eval.problems=2"), tokenizer)
    assert len(fewer.held_out) == 2 and fewer.source == data.source
    assert load_run_data(config(*settings, "data.overlap=warn"), tokenizer).training_problems == 20
    assert load_run_data(config(*settings, "eval.every=0"), tokenizer).training_problems == 20


def test_duplicates_stay_in_an_evaluation_and_where_they_are_asked_for(
    files: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    twice = "data.train=[train.jsonl, train.jsonl]"
    data = load_run_data(config(*FILE, twice, "data.eval=[test.jsonl, test.jsonl]"), tokenizer)
    assert (data.training_problems, len(data.held_out)) == (18, 12)
    assert len({problem.id for problem in data.held_out}) == 12
    assert "data train.jsonl and 1 more: left out 20 duplicates of other problems" in data.notes
    assert load_run_data(config(*FILE, twice, "data.deduplicate=false"), tokenizer).training_problems == 40


def test_true_answers_that_cannot_be_parsed_are_told(files: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    with (files / "train.jsonl").open("a") as file:
        file.write(json.dumps({"prompt": "A=77?", "answer": "\\frac"}) + "\n")
    notes = load_run_data(config(*FILE, "data.train=train.jsonl"), tokenizer).notes
    assert sum("unusable" in note and "train.jsonl line 21" in note for note in notes) == 1
    notes = load_run_data(config(*FILE, "data.train=train.jsonl", "grader=rules"), tokenizer).notes
    assert not any("unusable" in note for note in notes)


def test_the_grader_is_the_tasks_own_unless_one_is_named(files: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    expected = [
        (RulesGrader, ["task=ledger"]),
        (ReasoningGymGrader, [GYM]),
        (MathGrader, ["task=null", "data.train=train.jsonl"]),
        (RulesGrader, [GYM, "grader=rules"]),
    ]
    for kind, overrides in expected:
        with load_run_data(config(*overrides), tokenizer).rewards as rewards:
            assert isinstance(rewards.grader, kind)
    assert load_run_data(config("task=ledger", "flexible_answers=true"), tokenizer).rewards.grader == RulesGrader(True)
    with pytest.raises(UserError, match="exact"):
        load_run_data(config("grader=exact"), tokenizer)


def test_the_grader_is_closed_even_after_a_fault(
    files: Path, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = []
    monkeypatch.setattr(MathGrader, "close", lambda self: closed.append(self))
    data = load_run_data(config("task=null", "data.train=train.jsonl"), tokenizer)
    with pytest.raises(KeyboardInterrupt), data.rewards:
        raise KeyboardInterrupt
    assert closed == [data.rewards.grader]


def test_the_task_says_whether_the_dependency_graph_is_known(files: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    load_run_data(config("task=ledger"), tokenizer).require_dependencies()
    rows = [{"prompt": "A=1?", "answer": "1", "needs": "a column of the user"}]
    (files / "needs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for overrides, named in [([*FILE, "data.train=needs.jsonl"], "data.train"), ([GYM], "reasoning_gym:chain_sum")]:
        with pytest.raises(UserError, match=named):
            load_run_data(config(*overrides), tokenizer).require_dependencies()


@pytest.mark.parametrize(
    ("rope", "limit"),
    [
        ({"rope_type": "dynamic", "factor": 2.0}, 512),
        ({"rope_type": "longrope", "original_max_position_embeddings": 16, "short_factor": [1.0] * 4}, 16),
        ({"rope_type": "linear", "factor": 2.0}, 512),
    ],
)
def test_positions_that_depend_on_the_rest_of_a_batch_are_refused(rope: dict, limit: int) -> None:
    """``longrope`` and ``dynamic`` rotate all sequences of a forward by the longest of them."""
    if rope["rope_type"] == "longrope":
        rope = {**rope, "long_factor": [2.0] * 4}
    model = helpers.tiny_model(rope_parameters={"rope_theta": 1e4, **rope})
    require_positions(model, limit)
    named = rf"\b{limit + 1}\b.*\b{limit}\b" + (rf".*\b{rope['rope_type']}\b" if limit < 512 else "")
    with pytest.raises(UserError, match=named):
        require_positions(model, limit + 1)
