"""A model is the model of the directory: faulty weights and configs end in one line, exit code 2, and no file."""

from __future__ import annotations

import json
import math
import shlex
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import helpers
import pytest
import torch
from command_line import EVAL, Attnrl, stages, train, tree
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    MixtralConfig,
    PreTrainedTokenizerBase,
    dynamic_module_utils,
)

Weights = dict[str, Tensor]
TASK = ["--task", "ledger"]
FIRST = "model.layers.0.mlp.up_proj.weight"


def prefixed(prefix: str) -> Callable[[Weights], Weights]:
    return lambda weights: {prefix + name: tensor for name, tensor in weights.items()}


def without(*parts: str) -> Callable[[Weights], Weights]:
    return lambda weights: {name: t for name, t in weights.items() if not any(part in name for part in parts)}


def changed(name: str, change: Callable[[Tensor], Tensor]) -> Callable[[Weights], Weights]:
    return lambda weights: {**weights, name: change(weights[name])}


def first_value(value: float) -> Callable[[Tensor], Tensor]:
    def change(tensor: Tensor) -> Tensor:
        tensor = tensor.clone()
        tensor[0] = value
        return tensor

    return change


def compiled_layers(weights: Weights) -> Weights:
    return {name.replace(".self_attn.", ".self_attn._orig_mod."): tensor for name, tensor in weights.items()}


def with_adapter(weights: Weights) -> Weights:
    base = prefixed("base_model.model.")(weights)
    return {**base, "base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight": torch.zeros(2, 32)}


# The change of the weights, and what the line has to name.
FAULTY_WEIGHTS: dict[str, tuple[Callable[[Weights], Weights], list[str]]] = {
    "compiled": (
        prefixed("_orig_mod."),
        ["21 tensors", "_orig_mod.", "torch.compile", "`attnrl export faulty faulty-clean`"],
    ),
    "ddp": (prefixed("module."), ["module.", "`attnrl export faulty faulty-clean`"]),
    "both": (prefixed("module._orig_mod."), ["module.", "_orig_mod.", "attnrl export"]),
    "both the other way": (prefixed("_orig_mod.module."), ["module.", "_orig_mod.", "attnrl export"]),
    "compiled_layers": (compiled_layers, ["_orig_mod.", "in 8", "attnrl export"]),
    "fsdp": (prefixed("_fsdp_wrapped_module."), ["_fsdp_wrapped_module.", "attnrl export"]),
    "peft": (prefixed("base_model.model."), ["base_model.model.", "attnrl export"]),
    "adapter": (with_adapter, ["LoRA", "q_proj.lora_A.default.weight"]),
    "unknown prefix": (prefixed("actor."), ["21 of 21", "lm_head.weight", "18 more", "actor.lm_head.weight"]),
    "missing layer": (without("layers.1."), ["9 of 21", "model.layers.1.input_layernorm.weight", "6 more"]),
    "missing head": (without("lm_head"), ["1 of 21", "lm_head.weight", "tie_word_embeddings"]),
    "missing embedding": (without("embed_tokens"), ["1 of 21", "model.embed_tokens.weight"]),
    "missing norm": (without("model.norm"), ["1 of 21", "model.norm.weight"]),
    "another shape": (changed(FIRST, lambda t: t[:5].clone()), [FIRST, "[5, 32]", "[48, 32]"]),
    "fewer rows": (changed("lm_head.weight", lambda t: t[:-1].clone()), ["lm_head.weight", "config.json"]),
    "no weights": (lambda weights: {}, ["21 of 21"]),
    "integers": (changed(FIRST, lambda t: (100 * t).to(torch.int8)), [FIRST, "I8", "quantization_config"]),
    "8 bits": (changed(FIRST, lambda t: t.to(torch.float8_e4m3fn)), [FIRST, "F8_E4M3"]),
    "nan": (changed(FIRST, first_value(math.nan)), [FIRST, "32 of 1536"]),
    "inf": (changed("lm_head.weight", first_value(math.inf)), ["1 tensors", "lm_head.weight"]),
}
# Changes of config.json, and what the line has to name.
FAULTY_CONFIGS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "no heads": ({"num_attention_heads": 0}, ["config.json", "num_attention_heads", "0"]),
    "negative size": ({"hidden_size": -32}, ["config.json", "hidden_size", "-32"]),
    "no layers": ({"num_hidden_layers": 0}, ["num_hidden_layers"]),
    "odd heads": ({"num_attention_heads": 5, "head_dim": None}, ["config.json"]),
    "more heads for keys": ({"num_key_value_heads": 3}, ["config.json"]),
    "endless layers": ({"num_hidden_layers": 10**7}, ["num_hidden_layers", "10000000"]),
    "endless vocabulary": ({"vocab_size": 10**12}, ["embed_tokens", "1000000000000"]),
    "endless width": ({"intermediate_size": 10**12}, ["mlp", "1000000000000"]),
    "one layer more": ({"num_hidden_layers": 3}, ["9 of 30", "model.layers.2."]),
    "rope_theta of NaN": ({"rope_theta": math.nan}, ["config.json", "rope_theta", "nan"]),
    "rope_theta without bound": (
        {"rope_parameters": {"rope_theta": math.inf, "rope_type": "default"}},
        ["rope_theta", "inf"],
    ),
    "rope_theta below zero": (
        {"rope_parameters": {"rope_theta": -1e4, "rope_type": "default"}},
        ["rope_theta", "-10000"],
    ),
    "epsilon of NaN": ({"rms_norm_eps": math.nan}, ["rms_norm_eps", "nan"]),
    "epsilon of minus infinity": ({"rms_norm_eps": -math.inf}, ["rms_norm_eps", "-inf"]),
    "epsilon below zero": ({"rms_norm_eps": -1e9}, ["NaN", "config.json"]),
    "number that is a list": ({"hidden_size": [32]}, ["hidden_size"]),
    "number that is text": ({"num_attention_heads": "4"}, ["num_attention_heads"]),
    "number that is an object": ({"intermediate_size": {"a": 1}}, ["intermediate_size"]),
    "number without end": ({"intermediate_size": 10**400}, ["config.json"]),
    "nested without end": ({"more": "DEEP"}, ["config.json"]),
    "nested deep": ({"more": "NESTED"}, ["config.json"]),
    "half a head": ({"num_attention_heads": 2.5}, ["num_attention_heads"]),
    "unknown activation": ({"hidden_act": "swish2"}, ["swish2"]),
    "padding beyond the vocabulary": ({"pad_token_id": 5000}, ["faulty", "config.json"]),
    "end of sequence beyond the vocabulary": ({"eos_token_id": 5000}, ["config.json", "eos_token_id", "5000"]),
    "end of sequence below zero": ({"eos_token_id": -1}, ["config.json", "eos_token_id", "-1"]),
    "second end of sequence beyond the vocabulary": ({"eos_token_id": [1, 5000]}, ["eos_token_id", "5000"]),
    "tied to another head": ({"tie_word_embeddings": True}, ["lm_head.weight", "tie_word_embeddings"]),
}


def copy_of(
    untied: Path, folder: Path, *, weights: Weights | None = None, config: Mapping[str, Any] | None = None
) -> Path:
    """Return the copy ``folder/faulty`` of a model directory, with other weights or with changes of the config."""
    faulty = folder / "faulty"
    shutil.copytree(untied, faulty)
    if weights is not None:
        save_file(weights, faulty / "model.safetensors", metadata={"format": "pt"})
    if config is not None:
        path = faulty / "config.json"
        text = json.dumps({**json.loads(path.read_text()), **config})
        for word, depth in (("DEEP", 100_000), ("NESTED", 900)):
            text = text.replace(f'"{word}"', "[" * depth + "]" * depth)
        path.write_text(text)
    return faulty


@pytest.fixture(scope="module")
def untied(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerBase) -> Path:
    """The directory of a tiny model with a head of its own."""
    directory = tmp_path_factory.mktemp("untied")
    helpers.tiny_model(vocab_size=len(tokenizer), tie_word_embeddings=False).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def refuses(attnrl: Attnrl, folder: Path, named: list[str], *arguments: str) -> None:
    """Check that a command ends in one line with the named parts and exit code 2, and writes nothing."""
    before = tree(folder)
    outcome = attnrl(*arguments)
    assert outcome.code == 2, outcome.out
    assert outcome.err.startswith("attnrl: ") and outcome.err.count("\n") == 1, outcome.err
    assert [part for part in ["faulty", *named] if part not in outcome.err] == [], outcome.err
    assert "Traceback" not in outcome.err + outcome.out
    assert tree(folder) == before


@pytest.mark.parametrize("name", FAULTY_WEIGHTS)
def test_weights_of_another_model_are_refused(
    name: str, untied: Path, tmp_path: Path, attnrl: Attnrl, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    change, named = FAULTY_WEIGHTS[name]
    copy_of(untied, tmp_path, weights=change(load_file(untied / "model.safetensors")))
    refuses(attnrl, tmp_path, named, *train("model=faulty", "--dry-run"))
    refuses(attnrl, tmp_path, named, "eval", "faulty", *EVAL[2:], *TASK, "--output", "out")


@pytest.mark.parametrize("name", FAULTY_CONFIGS)
def test_a_config_of_another_model_is_refused(
    name: str, untied: Path, tmp_path: Path, attnrl: Attnrl, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    changes, named = FAULTY_CONFIGS[name]
    copy_of(untied, tmp_path, config=changes)
    refuses(attnrl, tmp_path, named, *train("model=faulty", "--dry-run"))
    refuses(attnrl, tmp_path, named, "eval", "faulty", *EVAL[2:], *TASK, "--output", "out")


def test_unexpected_tensors_are_said(
    untied: Path, tmp_path: Path, attnrl: Attnrl, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A layer more than config.json has, in a dry run, a run and an evaluation."""
    monkeypatch.chdir(tmp_path)
    copy_of(untied, tmp_path, config={"num_hidden_layers": 1})
    said = ("model faulty: 9 tensors", "model.layers.1.input_layernorm.weight", "6 more")
    for arguments in (
        train("model=faulty", "--dry-run"),
        train("model=faulty", "steps=1", "loss.kl=0.1", "eval.every=0", "sampling.max_new_tokens=24"),
        ["eval", "faulty", *EVAL[2:], *TASK],
    ):
        outcome = attnrl(*arguments)
        assert (outcome.code, outcome.err) == (0, "")
        assert [part for part in said if part not in " ".join(outcome.out.split())] == []


def test_every_model_of_an_evaluation_is_checked_first(
    untied: Path, tmp_path: Path, attnrl: Attnrl, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    weights = load_file(untied / "model.safetensors")
    copy_of(untied, tmp_path, weights=changed(FIRST, first_value(math.nan))(weights))
    (tmp_path / "sound").symlink_to(untied)
    outcome = attnrl("eval", "sound", "faulty", *EVAL[2:], *TASK, "--output", "out")
    assert outcome.code == 1 and "faulty" in outcome.err  # the other models are evaluated
    said = " ".join(outcome.out.split())
    assert said.index(FIRST) < said.index("6/6 samples")
    assert json.loads((tmp_path / "out" / "results.json").read_text())["complete"] is False


@pytest.mark.parametrize(
    "arguments", [["point"], ["disrupt"], ["sft"], ["sft", "--dry-run"], ["train"], ["verl", "--dry-run"]]
)
def test_every_command_checks_the_weights(
    arguments: list[str], untied: Path, tmp_path: Path, attnrl: Attnrl, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    copy_of(untied, tmp_path, weights=prefixed("_orig_mod.")(load_file(untied / "model.safetensors")))
    command, *options = arguments
    given = {
        "point": ["point", "faulty", *TASK],
        "disrupt": ["disrupt", "faulty", *TASK],
        "sft": ["sft", "sft_ledger", "output_dir=out", "start=faulty", stages("ledger")],
        "train": train("model=faulty", "loss.kl=0.1"),
        "verl": train("model=faulty", "engine=verl", "sampling.score_continuations=true"),
    }[command]
    refuses(attnrl, tmp_path, ["_orig_mod.", "attnrl export faulty faulty-clean"], *given, *options)


@pytest.mark.parametrize("command", ["train", "eval", "point", "disrupt"])
def test_token_ids_beyond_the_embedding_are_refused(
    command: str, untied: Path, tmp_path: Path, attnrl: Attnrl, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    faulty = copy_of(untied, tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(faulty)
    rows = len(tokenizer)
    tokenizer.add_tokens(["<extra>", "<more>"])
    tokenizer.save_pretrained(faulty)
    arguments = train("model=faulty", "--dry-run") if command == "train" else [command, "faulty", *TASK]
    refuses(attnrl, tmp_path, ["'<extra>'", str(rows), f"up to {rows + 1}"], *arguments)


def test_an_end_of_sequence_beyond_the_vocabulary_is_refused_in_every_file(
    untied: Path, tmp_path: Path, attnrl: Attnrl, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    faulty = copy_of(untied, tmp_path)
    path = faulty / "generation_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "eos_token_id": [1, 777]}))
    refuses(attnrl, tmp_path, ["generation_config.json", "eos_token_id", "777"], *train("model=faulty", "--dry-run"))


NOISY = """
import functools
from transformers import LlamaConfig, LlamaForCausalLM

class NoisyConfig(LlamaConfig):
    model_type = "noisy"

class NoisyForCausalLM(LlamaForCausalLM):
    config_class = NoisyConfig

    @functools.wraps(LlamaForCausalLM.forward)
    def forward(self, *arguments, **options):
        output = super().forward(*arguments, **options)
        if self.training:
            output.logits = output.logits * 1.01
        return output
"""

BY_CHANCE = """
import zlib

def by_chance(prompts, completions, **columns):
    return [float(zlib.crc32(str(completion).encode()) % 2) for completion in completions]
"""


def first_kl(run: Path) -> float:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return next(float(row["loss/kl"]) for row in rows if "loss/kl" in row)


def test_the_kl_of_a_new_run_is_exactly_zero_and_must_be(
    untied: Path, tmp_path: Path, attnrl: Attnrl, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model whose training changes its forward is stopped before the first update."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rewards_by_chance.py").write_text(BY_CHANCE)
    run = ("steps=1", "eval.every=0", "sampling.max_new_tokens=24", "grader='rewards_by_chance:by_chance'")
    small = ("loss.kl=0.1", "optimizer.mini_batches=1", *run)
    outcome = attnrl(*train(f"model={untied}", "dtype=bfloat16", *small))
    assert (outcome.code, first_kl(tmp_path / "out")) == (0, 0.0)
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    classes = {"AutoConfig": "noisy.NoisyConfig", "AutoModelForCausalLM": "noisy.NoisyForCausalLM"}
    faulty = copy_of(untied, tmp_path, config={"model_type": "noisy", "auto_map": classes})
    (faulty / "noisy.py").write_text(NOISY)
    outcome = attnrl(*train("model=faulty", "trust_remote_code=true", "output_dir=noisy", *small))
    assert (outcome.code, outcome.err.count("\n")) == (1, 1), outcome.err
    assert [part for part in ("loss.kl", "reference", "nats") if part not in outcome.err] == []


def test_a_missing_or_misshapen_expert_is_named(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path, attnrl: Attnrl, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers joins the experts of a layer to one tensor while loading."""
    monkeypatch.chdir(tmp_path)
    sizes = dict(vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=1, eos_token_id=1)
    shape = MixtralConfig(**sizes, num_attention_heads=2, num_key_value_heads=2, num_local_experts=4, bos_token_id=None)
    model = AutoModelForCausalLM.from_config(shape)
    model.save_pretrained(tmp_path / "faulty")
    tokenizer.save_pretrained(tmp_path / "faulty")
    path = tmp_path / "faulty" / "model.safetensors"
    weights = load_file(path)
    expert = next(name for name in weights if ".experts.2." in name)
    save_file(without(expert)(weights), path)
    refuses(attnrl, tmp_path, [expert, "1 of 12"], *train("model=faulty", "--dry-run"))
    save_file(changed(expert, lambda tensor: tensor[:5].clone())(weights), path)
    refuses(attnrl, tmp_path, [expert, "[5, 16]", "[16, 16]"], *train("model=faulty", "--dry-run"))


# --- attnrl export of a model directory -----------------------------------------------------------------------------


def sharded(directory: Path, weights: Weights) -> None:
    """Replace the weight file of a model directory by two shards with an index."""
    (directory / "model.safetensors").unlink()
    shards = {name: f"model-0000{1 + (index % 2)}-of-00002.safetensors" for index, name in enumerate(sorted(weights))}
    for shard in set(shards.values()):
        part = {name: weights[name] for name in shards if shards[name] == shard}
        save_file(part, directory / shard, metadata={"format": "pt"})
    index = {"metadata": {"total_size": 1}, "weight_map": shards}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("wrap", "shards"),
    [("compiled", False), ("both the other way", True), ("compiled_layers", False), ("fsdp", False), ("peft", True)],
)
def test_the_named_command_writes_a_clean_copy(
    wrap: str, shards: bool, untied: Path, tmp_path: Path, attnrl: Attnrl, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The copy holds the bytes of the tensors, and every other file but pickles."""
    monkeypatch.chdir(tmp_path)
    weights = load_file(untied / "model.safetensors")
    wrapped = FAULTY_WEIGHTS[wrap][0]({name: tensor.bfloat16() for name, tensor in weights.items()})
    faulty = copy_of(untied, tmp_path, weights=wrapped)
    if shards:
        sharded(faulty, wrapped)
    torch.save({}, faulty / "optimizer.pt")
    (faulty / "chat_template.jinja").write_text("{% for message in messages %}{{ message['content'] }}{% endfor %}")
    refused = attnrl("eval", "faulty", *EVAL[2:], *TASK)
    command = refused.err.split("`")[1]
    done = attnrl(*shlex.split(command)[1:])
    assert (done.code, done.err) == (0, "")
    clean = tmp_path / "faulty-clean"
    found = {k: v for path in clean.glob("*.safetensors") for k, v in load_file(path).items()}
    assert found.keys() == weights.keys()
    assert all(torch.equal(found[name], tensor.bfloat16()) for name, tensor in weights.items())
    others = {path.name for path in faulty.iterdir()} - {"optimizer.pt"}
    assert {path.name for path in clean.iterdir()} == others | {"manifest.json"}
    assert "optimizer.pt" in done.out
    unchanged = ("config.json", "tokenizer.json", "chat_template.jinja")
    assert all((clean / name).read_bytes() == (faulty / name).read_bytes() for name in unchanged)
    assert attnrl(*train("model=faulty-clean", "--dry-run")).code == 0


def test_a_copy_that_would_not_be_clean_is_refused(
    untied: Path, tmp_path: Path, attnrl: Attnrl, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    weights = load_file(untied / "model.safetensors")
    faulty = copy_of(untied, tmp_path)
    refuses(attnrl, tmp_path, ["no tensor name"], "export", "faulty", "out")
    save_file({**weights, f"module.{FIRST}": weights[FIRST].clone()}, faulty / "model.safetensors")
    refuses(attnrl, tmp_path, [FIRST, "two tensors"], "export", "faulty", "out")
    save_file(prefixed("module.")({**weights, FIRST: weights[FIRST][:5].clone()}), faulty / "model.safetensors")
    refuses(attnrl, tmp_path, [FIRST, "[5, 32]"], "export", "faulty", "out")
    save_file(with_adapter(weights), faulty / "model.safetensors")
    refuses(attnrl, tmp_path, ["LoRA"], "export", "faulty", "out")
    save_file(prefixed("module.")(weights), faulty / "model.safetensors")
    (tmp_path / "taken").mkdir()
    outcome = attnrl("export", "faulty", "taken")
    assert outcome.code == 2 and "output taken" in outcome.err
