"""A wrong key, name, column, file, flag or command is answered with the nearest right one."""

from __future__ import annotations

from pathlib import Path

import pytest
from command_line import FILE, ROWS, Attnrl, jsonl, stages, train

ARMS = "output_dir: out\ntokens: 100\narms: {A: {recipe: grpo, %s: []}}\n"
INSIDE = "output_dir: out\ntokens: 100\narms: {A: {recipe: grpo, settings: [loss.kll=1]}}\n"
SFT = ["sft", "sft_ledger", "output_dir=out", "--dry-run"]
LEDGER = ["eval", "ledger", "--task", "ledger"]

# Arguments, and the suggestion.
MISSES: dict[str, tuple[list[str], str]] = {
    "a key": (train("method.branching.critrion=random"), "method.branching.criterion?"),
    "a group": (train("methd.branching.criterion=random"), "method?"),
    "a group inside": (train("method.branchin.criterion=random"), "method.branching?"),
    "a key without its group": (train("critrion=random"), "method.branching.criterion?"),
    "a key of a mapping": (train("data.columns.promt=x"), "prompt?"),
    "a choice": (train("dtype=bf16"), "bfloat16?"),
    "a choice of a list": (train("log.trackers=[wandbb]"), "wandb?"),
    "a criterion": (train("method.branching.criterion=entrpy"), "entropy?"),
    "an advantage": (train("method.advantage=tre"), "tree?"),
    "a sampler": (train("sampler=vlm"), "vllm?"),
    "a grader": (train("grader=maths"), "math?"),
    "a task": (train("task=leger"), "ledger?"),
    "a data set of reasoning-gym": (train("task=reasoning_gym:chain_sun"), "chain_sum?"),
    "a data set that resembles none": (train("task=reasoning_gym:nosuch"), "chain_sum"),
    "reasoning-gym itself": (train("task=reasoning_gmy:chain_sum"), "reasoning_gym:chain_sum?"),
    "a data set alone": (train("task=chain_sum"), "reasoning_gym:chain_sum?"),
    "a parameter of reasoning-gym": (train("task=reasoning_gym:chain_sum?min_term=2"), "min_terms?"),
    "a model": (train("model=leger"), "ledger"),
    "a recipe": (train(recipe="atnrl"), "attnrl?"),
    "a recipe file": (train(recipe="arm.yaml"), "arms.yaml?"),
    "a data file": (train(*FILE, "data.train=row.jsonl"), "rows.jsonl?"),
    "a split": (train("task=null", "data.train=shards[trian]"), "train?"),
    "a recipe of sft": (["sft", "sft_leger"], "sft_ledger?"),
    "a key of sft": (["sft", "sft_ledger", stages("ledger, sav: x")], "stages.0.save?"),
    "a key of the architecture": ([*SFT, "architecture.hidden_sze=32"], "hidden_size?"),
    "a type of model": ([*SFT, "architecture.model_type=lama"], "llama?"),
    "a comparison": (["compare", "quik"], "quick?"),
    "a key of a comparison": (["compare", "grpo,attnrl", "token=1000"], "tokens?"),
    "a key of an arm": (["compare", "arms.yaml", "--dry-run"], "arms.A.settings?"),
    "a key inside an arm": (["compare", "inside.yaml", "--dry-run"], "loss.kl?"),
    "a benchmark": (["eval", "ledger", "--benchmark", "aim24"], "aime24?"),
    "a benchmark in a folder": (["eval", "ledger", "--benchmark", "aim24", "--data-dir", "."], "aime24?"),
    "a precision": ([*LEDGER, "--dtype", "float23"], "float32?"),
    "a choice of disrupt": (["disrupt", *LEDGER[1:], "--hide-from", "nextstep"], "next_step?"),
    "a flag": (["eval", "ledger", "--benchmrk", "aime24"], "--benchmark"),
    "a command": (["trian", "attnrl"], "train"),
}


@pytest.mark.parametrize("name", MISSES)
def test_a_near_miss_is_corrected(
    name: str, attnrl: Attnrl, tmp_path: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tiny").symlink_to(tiny_checkpoint)
    (tmp_path / "rows.jsonl").write_text(jsonl(*ROWS))
    (tmp_path / "arms.yaml").write_text(ARMS % "setings")
    (tmp_path / "inside.yaml").write_text(INSIDE)
    (tmp_path / "shards").mkdir()
    for split in ("train", "test"):
        (tmp_path / "shards" / f"{split}.jsonl").write_text(jsonl(*ROWS))
    monkeypatch.chdir(tmp_path)
    arguments, suggestion = MISSES[name]
    outcome = attnrl(*arguments)
    assert outcome.code == 2
    assert outcome.err.startswith("attnrl: ") and outcome.err.count("\n") == 1
    assert suggestion in outcome.err
