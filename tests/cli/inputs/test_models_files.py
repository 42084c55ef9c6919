"""Hostile and damaged config and tokenizer files: one line and exit code 2, before the first token."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import EVAL, FILE, ROWS, Attnrl, jsonl, train
from safetensors.torch import load_file, save_file

from attnrl.local import loading, model_config, tokenizer_check

EVALUATE = [*EVAL[2:], "--task", "ledger"]
TOKENIZER, SETTINGS, CONFIG = "tokenizer.json", "tokenizer_config.json", "config.json"
GENERATION, WEIGHTS, SHARD = "generation_config.json", "model.safetensors", "model-00001-of-00002.safetensors"
Edit = Callable[[dict[str, Any]], None]


def put(**values: Any) -> Edit:
    return lambda content: content.update(values)


def vocabulary(number: object) -> Edit:
    return lambda content: content["model"]["vocab"].update({"A": number})


def split_at(regex: str) -> Edit:
    return put(pre_tokenizer={"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False})


def replace(pattern: dict[str, str], content: str, times: int = 1) -> Edit:
    one = {"type": "Replace", "pattern": pattern, "content": content}
    return put(normalizer={"type": "Sequence", "normalizers": [one] * times})


def added(number: int) -> Edit:
    token = {"id": number, "content": "<added>", "single_word": False, "lstrip": False, "rstrip": False}
    return lambda content: content["added_tokens"].append({**token, "normalized": False, "special": True})


TEMPLATE = {
    "type": "TemplateProcessing",
    "single": [{"SpecialToken": {"id": "<nowhere>", "type_id": 0}}],
    "pair": [],
    "special_tokens": {},
}
# Name: the file, and its new content or a change to its content.
CASES: dict[str, tuple[str, str | Edit]] = {
    "tokenizer cut short": (TOKENIZER, '{"version": "1.0", "model": {"vocab": {"A'),
    "tokenizer that is null": (TOKENIZER, "null"),
    "tokenizer that is a list": (TOKENIZER, "[]"),
    "tokenizer nested deep": (TOKENIZER, "[" * 200_000 + "]" * 200_000),
    "tokenizer that is binary": (TOKENIZER, "\0\1\2"),
    "tokenizer of an unknown kind": (TOKENIZER, put(model={"type": "Sorcery"})),
    "negative id": (TOKENIZER, vocabulary(-1)),
    "id of 40 bits": (TOKENIZER, vocabulary(2**40)),
    "id of 32 bits": (TOKENIZER, vocabulary(2**32 - 1)),
    "fraction as id": (TOKENIZER, vocabulary(1.5)),
    "added token far beyond": (TOKENIZER, added(2**32 - 1)),
    "added token of 40 bits": (TOKENIZER, added(2**40)),
    "regex that is none": (TOKENIZER, split_at("(((")),
    "regex that backtracks": (TOKENIZER, split_at("(a+)+$")),
    "regex that backtracks in a normalizer": (TOKENIZER, replace({"Regex": "(.*)*x"}, "x")),
    "text doubled forty times": (TOKENIZER, replace({"String": "A"}, "AA", 40)),
    "panic at the load": (TOKENIZER, put(normalizer={"type": "Precompiled", "precompiled_charsmap": "AAAA"})),
    "panic at the first text": (TOKENIZER, put(post_processor=TEMPLATE)),
    "merge of unknown tokens": (TOKENIZER, put(model={"type": "BPE", "vocab": {"a": 0}, "merges": ["x y"]})),
    "settings that are a list": (SETTINGS, "[]"),
    "settings that are null": (SETTINGS, "null"),
    "settings nested deep": (SETTINGS, '{"a":' * 100_000),
    "class that is a number": (SETTINGS, put(tokenizer_class=3)),
    "class of another kind": (SETTINGS, put(tokenizer_class="RagTokenizer")),
    "class in a remote module": (
        SETTINGS,
        put(tokenizer_class="Evil", auto_map={"AutoTokenizer": ["other/repository--evil.Evil", None]}),
    ),
    "auto_map that is a number": (SETTINGS, put(auto_map=3)),
    "end of sequence that is a number": (SETTINGS, put(eos_token=3)),
    "end of sequence beyond": (SETTINGS, put(eos_token="<nowhere>")),
    "length that is text": (SETTINGS, put(model_max_length="many")),
    "added tokens without numbers": (SETTINGS, put(added_tokens_decoder={"abc": {"content": "x"}})),
    "added tokens that are a list": (SETTINGS, put(added_tokens_decoder=[1])),
    "padding on the ceiling": (SETTINGS, put(padding_side="up")),
    "config nested deep": (CONFIG, '{"a":' * 100_000 + "1" + "}" * 100_000),
    "config nested 700 deep": (CONFIG, '{"model_type": "llama", "a":' + '{"a":' * 700 + "1" + "}" * 701),
    "billion layers": (CONFIG, put(model_type="qwen3", num_hidden_layers=10**9)),
    "billion labels": (CONFIG, put(num_labels=10**9)),
    "dtype that is none": (CONFIG, put(dtype="os.system")),
    "labels that are a list": (CONFIG, put(id2label=[1])),
    "class beneath": (CONFIG, put(sub_configs={"a": 1})),
}


@pytest.fixture
def folder(tmp_path: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_checkpoint, "evil")
    return tmp_path / "evil"


def write(path: Path, content: str | Edit) -> None:
    if callable(content):
        settings = json.loads(path.read_text())
        content(settings)
        content = json.dumps(settings)
    path.write_text(content)


@pytest.mark.parametrize("case", CASES)
def test_one_line_and_exit_code_2(
    case: str, folder: Path, attnrl: Attnrl, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tokenizer_check, "SECONDS", 5.0)
    file, content = CASES[case]
    write(folder / file, content)
    calls = [train("model=evil", "--dry-run"), ["eval", "evil", *EVALUATE]]
    for call in calls if file == CONFIG else calls[len(case) % 2 :][:1]:
        outcome = attnrl(*call)
        assert outcome.code == 2, outcome
        assert len(outcome.err.splitlines()) == 1, outcome.err
        assert "model evil" in outcome.err
    assert list(tmp_path.iterdir()) == [folder]


DOUBLES = (
    "{% set kept = namespace(text='ab' * 1000000) %}{% for time in range(40) %}"
    "{% set kept.text = kept.text + kept.text %}{% endfor %}{{ messages[0]['content'] }}"
)
LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:0a\nsize 123\n"
# Name: a change of the directory, and parts of the line.
INCOMPLETE: dict[str, tuple[Callable[[Path], Any], list[str]]] = {
    "weights are a pointer": (lambda evil: write(evil / WEIGHTS, LFS), [WEIGHTS, "git lfs pull"]),
    "tokenizer is a pointer": (lambda evil: write(evil / TOKENIZER, LFS), [TOKENIZER, "git lfs pull"]),
    "weights link nowhere": (lambda evil: link(evil / WEIGHTS), [WEIGHTS, "../blobs/0a"]),
    "config links nowhere": (lambda evil: link(evil / CONFIG), [CONFIG, "../blobs/0a"]),
    "generation config cut short": (lambda evil: write(evil / GENERATION, "{"), [GENERATION]),
    "generation config that is null": (lambda evil: write(evil / GENERATION, "null"), ["evil"]),
    "no tokenizer": (lambda evil: [(evil / name).unlink() for name in (TOKENIZER, SETTINGS)], [TOKENIZER]),
    "shard without index": (lambda evil: (evil / WEIGHTS).rename(evil / SHARD), [SHARD]),
    "other format": (lambda evil: (evil / WEIGHTS).rename(evil / "model.gguf"), ["model.gguf"]),
    "reward model": (
        lambda evil: write(evil / CONFIG, put(architectures=["LlamaForSequenceClassification"])),
        ["LlamaForSequenceClassification"],
    ),
    "template that is a number": (lambda evil: write(evil / SETTINGS, put(chat_template=3)), ["chat_template"]),
    "template that fills the memory": (
        lambda evil: write(evil / "chat_template.jinja", "{{ '%9999999999d'|format(1) }}{{ messages }}"),
        ["chat_template", "memory"],
    ),
    "template that doubles a text": (
        lambda evil: write(evil / "chat_template.jinja", DOUBLES),
        ["chat_template", "memory"],
    ),
}


def link(path: Path) -> None:
    path.unlink()
    path.symlink_to("../blobs/0a")


@pytest.mark.parametrize("case", INCOMPLETE)
def test_an_incomplete_directory_names_the_file(case: str, folder: Path, attnrl: Attnrl) -> None:
    change, named = INCOMPLETE[case]
    change(folder)
    write(folder.parent / "rows.jsonl", jsonl(*ROWS))
    outcome = attnrl(*train("model=evil", "--dry-run", *FILE))
    assert (outcome.code, outcome.err.count("\n")) == (2, 1), outcome
    assert [part for part in named if part not in outcome.err] == [], outcome.err


def test_a_second_set_of_weights_and_matrices_of_zeros_are_said(folder: Path, attnrl: Attnrl) -> None:
    shutil.copy(folder / WEIGHTS, folder / SHARD)
    weights = load_file(folder / WEIGHTS)
    name = "model.layers.1.mlp.up_proj.weight"
    save_file({**weights, name: torch.zeros_like(weights[name])}, folder / WEIGHTS, metadata={"format": "pt"})
    for call in (train("model=evil", "--dry-run"), ["eval", "evil", *EVALUATE]):
        outcome = attnrl(*call)
        assert outcome.code == 0, outcome.err
        said = " ".join(outcome.out.split())
        assert f"not from {SHARD}" in said and name in said


def test_transformers_has_a_time_limit(folder: Path, attnrl: Attnrl, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_config, "MOST", 10**12)
    monkeypatch.setattr(loading, "LOADING_SECONDS", 0.5)
    write(folder / CONFIG, put(num_labels=10**9))
    for call in (train("model=evil", "--dry-run"), ["eval", "evil", *EVALUATE]):
        started = time.monotonic()
        outcome = attnrl(*call)
        assert outcome.code == 2
        assert len(outcome.err.splitlines()) == 1
        assert "model evil" in outcome.err
        assert "0.5 s" in outcome.err
        assert time.monotonic() - started < 5


def test_unusual_files_are_no_fault(folder: Path, attnrl: Attnrl) -> None:
    padded = {"strategy": {"Fixed": 10**9}, "direction": "Right", "pad_to_multiple_of": None}
    cut = {"direction": "Right", "max_length": 8, "strategy": "LongestFirst", "stride": 0}
    write(
        folder / TOKENIZER,
        put(padding={**padded, "pad_id": 0, "pad_type_id": 0, "pad_token": "<pad>"}, truncation=cut),
    )
    write(folder / SETTINGS, put(model_max_length=10**400, unknown_setting={"a": [1]}))
    write(folder / CONFIG, put(unknown_setting={"a": [1]}, transformers_version="99.0"))
    assert attnrl(*train("model=evil", "--dry-run")).code == 0
    assert attnrl("eval", "evil", *EVALUATE).code == 0
