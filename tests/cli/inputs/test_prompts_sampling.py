"""Stop strings, top-k, min-p and top-p through the command line, in training and evaluation."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from command_line import EVAL, Attnrl, train
from transformers import PreTrainedTokenizerBase

from attnrl.tokenization import decode

TASK = ["--task", "ledger"]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(tiny_checkpoint, tmp_path / "tiny")
    monkeypatch.chdir(tmp_path)


def rows(path: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def responses(path: str, step: int) -> list[dict[str, Any]]:
    """The initial responses of a step."""
    return [tree["nodes"][0] for row in rows(path) if row["step"] == step for tree in row["trees"]]


def common_pair(texts: list[str]) -> str:
    """A text of two characters in about a third of the texts."""
    counts = Counter(pair for text in texts for pair in {text[i : i + 2] for i in range(len(text) - 1)})
    return min(sorted(counts), key=lambda pair: abs(counts[pair] - len(texts) / 3))


def test_training_responses_end_at_stop_strings(attnrl: Attnrl) -> None:
    plain = ["steps=1", "eval.every=0", "output_dir=plain", "method.pipeline=two_phase"]
    assert attnrl(*train(*plain)).code == 0
    before = responses("plain/trees.jsonl", 1)
    stop = common_pair([response["text"] for response in before])
    settings = [*plain[:-2], "output_dir=out", "method.pipeline=two_phase", f"sampling.stop=[{json.dumps(stop)}]"]
    assert attnrl(*train(*settings[:-1], f"sampling.stop={json.dumps(stop)}")).code == 0  # a text or a list of texts
    after = responses("out/trees.jsonl", 1)
    ended = 0
    for one, other in zip(before, after, strict=True):
        place = one["text"].find(stop)
        if place < 0:
            assert other["text"] == one["text"]
            continue
        ended += 1
        assert other["finish_reason"] == "stop"
        assert one["text"].startswith(other["text"]) and stop in other["text"]
        assert stop not in other["text"][: place + len(stop) - 1]
    assert ended > 0
    assert rows("out/metrics.jsonl")[-1]["mismatch/max"] < 1e-4
    # A run that resumes with other stop strings is refused.
    refused = attnrl(*train(*settings[:-1], "steps=2"))
    assert refused.code == 2 and "sampling.stop" in refused.err


def test_branches_end_at_stop_strings_that_begin_in_kept_tokens(
    attnrl: Attnrl, tokenizer: PreTrainedTokenizerBase
) -> None:
    stop = [blank + character for blank in ("\n\n", "; ") for character in "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"]
    settings = ["steps=4", "eval.every=0", "sampling.carry_over=0.5", "method.trunks=6", "prompts=4"]
    assert attnrl(*train(*settings, f"sampling.stop={json.dumps(stop)}")).code == 0
    across = 0
    for row in rows("out/trees.jsonl"):
        for trunk, *branches in (tree["nodes"] for tree in row["trees"]):
            for node in (trunk, *branches):
                kept = trunk["tokens"][: node["at"]]
                whole = [*kept, *node["tokens"]]
                before, text = decode(tokenizer, whole[:-1]), decode(tokenizer, whole)
                assert not any(stop_string in before for stop_string in stop)
                by_text = any(stop_string in text for stop_string in stop)
                assert by_text or node["finish_reason"] == "length" or whole[-1] == tokenizer.eos_token_id
                assert node["finish_reason"] == "stop" or not by_text
                across += by_text and len(node["tokens"]) == 1
    assert across > 0
    assert max(row.get("mismatch/max", 0.0) for row in rows("out/metrics.jsonl")) < 1e-4


@pytest.mark.parametrize("setting", ["sampling.top_p=0.5", "sampling.top_k=3", "sampling.min_p=0.3"])
def test_logprobs_are_before_truncation(attnrl: Attnrl, setting: str) -> None:
    name = setting.partition("=")[0].replace("sampling", "eval")
    value = setting.partition("=")[2]
    assert attnrl(*train(setting, f"{name}={value}", "steps=1", "sampling.temperature=0.8")).code == 0
    row = rows("out/metrics.jsonl")[-1]
    # After truncation the log-probs would be larger: by log 2 for half of the mass.
    assert row["mismatch/max"] < 1e-4
    assert row["entropy"] > 1.0


REFUSED = {
    "empty": ("sampling.stop=['']", "sampling.stop"),
    "a number": ("sampling.stop=[3]", "sampling.stop"),
    "a colon": ("sampling.stop=Question:", "quotes"),
    "a written line break": ("sampling.stop=\\n\\n", "double quotes"),
    "top_k": ("sampling.top_k=-1", "sampling.top_k"),
    "min_p": ("sampling.min_p=1.5", "sampling.min_p"),
    "eval.top_k": ("eval.top_k=2.5", "eval.top_k"),
    "eval.min_p": ("eval.min_p=-1", "eval.min_p"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_wrong_settings_are_named(attnrl: Attnrl, case: str) -> None:
    setting, named = REFUSED[case]
    refused = attnrl(*train(setting))
    assert refused.code == 2 and named in refused.err
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--stop", ""], "--stop"),
        (["--stop", "\\n\\n"], "--stop"),
        (["--top-k", "-1"], "--top-k"),
        (["--min-p", "2"], "--min-p"),
        (["--top-p", "0"], "--top-p"),
    ],
)
def test_wrong_options_are_named(attnrl: Attnrl, options: list[str], named: str) -> None:
    refused = attnrl(*EVAL, *TASK, *options)
    assert refused.code == 2 and named in refused.err


def test_evaluation_has_the_same_options_and_records_each(attnrl: Attnrl) -> None:
    options = ["--temperature", "1", "--top-k", "20", "--min-p", "0.01"]
    assert attnrl(*EVAL, *TASK, *options, "--output", "plain").code == 0
    before = rows("plain/samples.jsonl")
    stop = common_pair([row["response"] for row in before])
    options += ["--stop", stop, "--stop", "no such text"]
    assert attnrl(*EVAL, *TASK, *options, "--output", "out").code == 0
    for one, other in zip(before, rows("out/samples.jsonl"), strict=True):
        assert one["response"].startswith(other["response"])
        assert (stop in one["response"]) == (stop in other["response"])
        if stop in other["response"]:
            assert other["finish_reason"] == "stop"
    assert any(stop in row["response"] for row in before)
    recorded = json.loads(Path("out/results.json").read_text())["settings"]
    assert (recorded["top_k"], recorded["min_p"], recorded["stop"]) == (20, 0.01, [stop, "no such text"])
    assert attnrl(*EVAL, *TASK, *options, "--output", "out").code == 0  # the same evaluation
    refused = attnrl(*EVAL, *TASK, *options[:-2], "--output", "out")
    assert refused.code == 2 and "stop" in refused.err
