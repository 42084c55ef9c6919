"""Hybrids and mixtures of experts through the command line: train, resume, evaluate."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from command_line import EVAL, Attnrl, train
from state_models import build
from transformers import PreTrainedTokenizerBase

BY_CHANCE = """
import zlib

def by_chance(prompts, completions, **columns):
    return [float(zlib.crc32(str(completion).encode()) % 2) for completion in completions]
"""
SHORT = (
    *("eval.every=0", "sampling.max_new_tokens=20", "log.trees_every=0", "loss.kl=0.01"),
    "grader='rewards_by_chance:by_chance'",
)
# What the run says of each model.
SAID = {
    "Mixtral": [],
    "Qwen2-MoE": [],
    "Qwen3-Next": ["own cache", "optimizer.packing", "FCI skips 2 layers"],
    "Qwen3.5": ["own cache", "optimizer.packing", "FCI skips 2 layers"],
    "LFM2": ["own cache", "optimizer.packing", "FCI skips 2 layers"],
}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rewards_by_chance.py").write_text(BY_CHANCE)
    return tmp_path


def save(name: str, directory: Path, tokenizer: PreTrainedTokenizerBase, **settings: Any) -> None:
    """Write a tiny model with the ledger's vocabulary; ``settings`` go into config.json."""
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    build(name, vocab_size=len(tokenizer), max_position_embeddings=512, **ends).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    path = directory / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))


def rows(run: Path) -> list[dict[str, float]]:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if not k.startswith("time/")} for line in lines]


@pytest.mark.parametrize("name", sorted(SAID))
def test_train_resume_and_eval(name: str, folder: Path, attnrl: Attnrl, tokenizer: PreTrainedTokenizerBase) -> None:
    asked = {} if SAID[name] else {"output_router_logits": True}
    save(name, folder / "tiny", tokenizer, **asked)
    whole = attnrl(*train(*SHORT, "output_dir=whole"))
    assert whole.code == 0, whole.err
    said = whole.out + whole.err
    assert [part for part in SAID[name] if said.count(part) != 1] == []
    assert ("own cache" in said) == ("own cache" in SAID[name])
    assert "causal_conv1d" not in said
    trained = [row for row in rows(folder / "whole") if "loss/policy" in row]
    assert trained and all(row["mismatch/max"] < 1e-4 for row in trained)
    assert max(row["grad_norm"] for row in trained) > 0

    last = "checkpoints/step-000002"
    if name in {"LFM2", "Mixtral"}:
        assert attnrl(*train(*SHORT, "output_dir=parts", "steps=1")).code == 0
        assert attnrl(*train(*SHORT, "output_dir=parts")).code == 0
        parts = [(folder / run / last / "model.safetensors").read_bytes() for run in ("whole", "parts")]
        assert parts[0] == parts[1] and rows(folder / "parts") == rows(folder / "whole")

    written = json.loads((folder / "whole" / last / "config.json").read_text())
    state = json.loads((folder / "whole" / last / "trainer_state.json").read_text())
    assert written.get("output_router_logits", False) == bool(asked)
    assert state["packing"] == ("none" if SAID[name] else "tree")
    outcome = attnrl(*[EVAL[0], f"whole/{last}", *EVAL[2:]], "--task", "ledger")
    assert outcome.code == 0, outcome.err
    assert ("own cache" in outcome.out + outcome.err) == bool(SAID[name])


def test_a_model_without_attention_names_the_recipes_without_fci(
    folder: Path, attnrl: Attnrl, tokenizer: PreTrainedTokenizerBase
) -> None:
    save("Mamba", folder / "tiny", tokenizer)
    refused = attnrl(*train(*SHORT, "--dry-run"))
    assert (refused.code, refused.err.count("\n")) == (2, 1)
    assert "attnrl train grpo" in refused.err
    for recipe in ("grpo", "treerl"):
        assert attnrl(*train(*SHORT, "--dry-run", recipe=recipe)).code == 0


def test_packing_tree_is_refused_for_a_hybrid_and_a_resumed_run_keeps_its_packing(
    folder: Path, attnrl: Attnrl, tokenizer: PreTrainedTokenizerBase
) -> None:
    save("LFM2", folder / "tiny", tokenizer)
    refused = attnrl(*train(*SHORT, "optimizer.packing=tree"))
    assert (refused.code, refused.err.count("\n")) == (2, 1)
    assert "optimizer.packing=none" in refused.err and not (folder / "out").exists()

    save("Mixtral", folder / "tiny", tokenizer)
    assert attnrl(*train(*SHORT, "steps=1", "optimizer.packing=none")).code == 0
    assert attnrl(*train(*SHORT)).code == 0  # auto: as before the checkpoint
    state = json.loads((folder / "out" / "checkpoints" / "step-000002" / "trainer_state.json").read_text())
    assert state["packing"] == "none"


def test_attentions_are_dropped_and_said(folder: Path, attnrl: Attnrl, tokenizer: PreTrainedTokenizerBase) -> None:
    """With sdpa transformers refuses to save the setting, at the first checkpoint."""
    save("Mixtral", folder / "tiny", tokenizer, output_attentions=True, output_hidden_states=True, return_dict=False)
    outcome = attnrl(*train(*SHORT, "steps=1"))
    assert outcome.code == 0, outcome.err
    assert "output_attentions" in outcome.out + outcome.err
    written = json.loads((folder / "out" / "checkpoints" / "step-000001" / "config.json").read_text())
    assert (written["output_hidden_states"], written["return_dict"]) == (True, False)


def test_steps_of_a_hybrid_cannot_be_hidden(folder: Path, attnrl: Attnrl, tokenizer: PreTrainedTokenizerBase) -> None:
    save("LFM2", folder / "tiny", tokenizer)
    outcome = attnrl("disrupt", "tiny", "--task", "ledger", "--problems", "2", "--max-new-tokens", "64")
    assert (outcome.code, outcome.err.count("\n")) == (2, 1)
    assert "Lfm2ForCausalLM" in outcome.err
