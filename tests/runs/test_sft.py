"""Supervised training of a base model: small, deterministic, and on the responses only."""

import random
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from attnrl.config.load import load_config
from attnrl.config.sft import SftConfig, SftStage
from attnrl.errors import UserError
from attnrl.grading.answers import extract_boxed
from attnrl.runs.sft import (
    IGNORED,
    SftProgress,
    build_model,
    demonstration_batches,
    learning_rate,
    prepare_sft,
    train_sft,
)
from attnrl.tasks.chain_sum import build_tokenizer
from attnrl.tasks.registry import find_task

TINY = [
    "architecture={model_type: llama, hidden_size: 32, num_hidden_layers: 2, num_attention_heads: 4, "
    "num_key_value_heads: 2, intermediate_size: 48, max_position_embeddings: 256}",
    "batch_size=2",
    "warmup_steps=2",
]
TWO_STAGES = (
    "stages=[{task: ledger_single, steps: 2, learning_rate: [1e-2, 1e-3], save: first}, "
    "{task: ledger_single, steps: 1, learning_rate: [1e-2, 1e-2], save: second}]"
)


def config(directory: Path, *overrides: str) -> SftConfig:
    return load_config(SftConfig, "sft_ledger", [*TINY, TWO_STAGES, f"output_dir={directory}", *overrides])


def weights(directory: Path) -> dict[str, torch.Tensor]:
    return AutoModelForCausalLM.from_pretrained(directory).state_dict()


def test_every_saved_stage_is_a_checkpoint_that_loads(tmp_path: Path) -> None:
    progress: list[SftProgress] = []
    checkpoints = train_sft(prepare_sft(config(tmp_path / "out")), progress.append)
    assert checkpoints == [tmp_path / "out" / "first", tmp_path / "out" / "second"]
    assert [(row.step, row.total_steps) for row in progress] == [(1, 3), (2, 3), (3, 3)]
    assert all(row.loss > 0 and row.tokens_per_second > 0 for row in progress)
    first, second = (weights(directory) for directory in checkpoints)
    assert not torch.equal(first["model.embed_tokens.weight"], second["model.embed_tokens.weight"])
    tokenizer = AutoTokenizer.from_pretrained(checkpoints[1])
    assert tokenizer.decode(tokenizer("so A#47: +1\n\n")["input_ids"]) == "so A#47: +1\n\n"
    loaded = AutoModelForCausalLM.from_pretrained(checkpoints[1])
    assert loaded.config.vocab_size == len(tokenizer)
    assert loaded.config.eos_token_id == tokenizer.eos_token_id


def test_the_seed_decides_the_weights(tmp_path: Path) -> None:
    results = []
    for number, (name, seed) in enumerate([("one", 0), ("same", 0), ("other", 1)]):
        torch.manual_seed(number)  # whatever happened before
        results.append(weights(train_sft(prepare_sft(config(tmp_path / name, f"seed={seed}")))[-1]))
    one, same, other = results
    assert all(torch.equal(one[key], same[key]) for key in one)
    assert not all(torch.equal(one[key], other[key]) for key in one)


def test_it_learns(tmp_path: Path) -> None:
    stages = "stages=[{task: ledger_single, steps: 40, learning_rate: [1e-2, 1e-2]}]"
    losses: list[float] = []
    train_sft(prepare_sft(config(tmp_path, stages, "batch_size=8")), lambda row: losses.append(row.loss))
    assert losses[0] > 3.5  # about log 67: it starts knowing nothing
    assert losses[-1] < 0.6 * losses[0]


def test_a_task_of_reasoning_gym_that_has_demonstrations(tmp_path: Path) -> None:
    pytest.importorskip("reasoning_gym")
    stages = "stages=[{task: 'reasoning_gym:chain_sum?max_digits=1', steps: 1, learning_rate: [1e-2, 1e-2], save: m}]"
    (checkpoint,) = train_sft(prepare_sft(config(tmp_path, stages)))
    assert AutoTokenizer.from_pretrained(checkpoint).get_vocab() == build_tokenizer().get_vocab()


def test_only_the_response_and_its_end_have_labels(tokenizer: PreTrainedTokenizerBase) -> None:
    batches = demonstration_batches(find_task("ledger"), tokenizer, 3, random.Random(0))
    for _ in range(9):  # beyond one pool
        input_ids_BT, labels_BT = next(batches)
        assert input_ids_BT.shape == labels_BT.shape and len(input_ids_BT) == 3
        for ids, labels in zip(input_ids_BT.tolist(), labels_BT.tolist(), strict=True):
            trained = [place for place, label in enumerate(labels) if label != IGNORED]
            start, end = trained[0], trained[-1] + 1
            assert trained == list(range(start, end))
            assert labels[start:end] == ids[start:end]
            assert tokenizer.decode(ids[:start]).endswith("?")
            response = tokenizer.decode(ids[start : end - 1])
            assert response.startswith(("so", "now", "then", "next", "well", "okay", "thus", "and"))
            assert extract_boxed(response) is not None and response.endswith("}")
            assert ids[end - 1] == tokenizer.eos_token_id
            assert set(ids[end:]) <= {tokenizer.pad_token_id}
        assert any(labels[-1] != IGNORED for labels in labels_BT.tolist())  # no wider than its longest row


def test_batches_hold_demonstrations_of_like_length(tokenizer: PreTrainedTokenizerBase) -> None:
    batches = demonstration_batches(find_task("ledger_single"), tokenizer, 8, random.Random(0))
    padded = total = 0
    for _ in range(8):
        input_ids_BT, _ = next(batches)
        padded += int((input_ids_BT == tokenizer.pad_token_id).sum())
        total += input_ids_BT.numel()
    assert padded / total < 0.1


def test_the_learning_rate_goes_straight_from_start_to_end() -> None:
    stage = SftStage(task="ledger", steps=10, learning_rate=(1.0, 0.5))
    assert learning_rate(stage, 0) == 1.0
    assert learning_rate(stage, 5) == pytest.approx(0.75)


def test_the_model_is_the_one_described(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    model = build_model(config(tmp_path, "architecture.num_hidden_layers=3"), tokenizer).model
    assert (model.config.model_type, model.config.num_hidden_layers, model.config.hidden_size) == ("llama", 3, 32)
    assert model.get_input_embeddings().num_embeddings == len(tokenizer)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("architecture.model_type=nonsense", "architecture: .*nonsense"),
        ("architecture.hidden_size=wide", "architecture: .*hidden_size"),
        ("architecture={hidden_size: 32}", "architecture: .*model_type"),
        ("stages=[{task: leger, steps: 1, learning_rate: [1, 1]}]", r"stages\.0\.task.*'leger'.*ledger"),
        (
            "stages=[{task: 'reasoning_gym:gcd', steps: 1, learning_rate: [1, 1]}]",
            r"stages\.0\.task.*reasoning_gym:gcd",
        ),
    ],
)
def test_what_cannot_be_trained_is_named_and_nothing_is_written(tmp_path: Path, override: str, said: str) -> None:
    if "reasoning_gym" in override:
        pytest.importorskip("reasoning_gym")
    with pytest.raises(UserError, match=said) as caught:
        prepare_sft(config(tmp_path / "out", override))
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_an_output_dir_that_cannot_be_written_is_named_before_training(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    steps: list[SftProgress] = []
    with pytest.raises(UserError, match=r"^output_dir .*file/out: "):
        train_sft(prepare_sft(config(tmp_path / "file" / "out")), steps.append)
    assert steps == []


def test_a_misspelt_key_of_the_architecture_is_refused(tmp_path: Path) -> None:
    for architecture, named in [
        ({"model_type": "llama", "hidden_sze": 32}, r"hidden_sze.*hidden_size\?"),
        ({"model_type": "lama"}, r"lama.*llama\?"),
    ]:
        stage = SftStage(task="ledger", steps=1, learning_rate=(1e-3, 1e-3))
        with pytest.raises(UserError, match=named):
            prepare_sft(SftConfig(output_dir=tmp_path / "out", architecture=architecture, stages=(stage,)))
