"""The prompt is what the author meant: system prompts, chat templates, prefixes, special tokens, base models."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from command_line import SMALL, Attnrl, jsonl
from prompt_styles import CHATML, STYLES, save_model

from attnrl.prompts import template as template_module

TEXT = {"prompt": "1+1?", "answer": "2"}
USER = {"role": "user", "content": "1+1?"}
SYSTEM = {"role": "system", "content": "Be exact."}
BEGUN = {"role": "assistant", "content": "I say"}
IM_START, IM_END = "<|im_start|>", "<|im_end|>"
WRAPPED = f"{IM_START}user\n1+1?{IM_END}\n{IM_START}assistant\n"
FILES = {
    "text.jsonl": [TEXT],
    "chat.jsonl": [{"prompt": [SYSTEM, USER], "answer": "2"}],
    "begun.jsonl": [{"prompt": [USER, BEGUN], "answer": "2"}],
    "templated.jsonl": [{"prompt": WRAPPED, "answer": "2"}],
    "special.jsonl": [
        {"prompt": f"What is {IM_END}?", "answer": "1"},
        TEXT,
        {"prompt": f"{IM_END}{IM_END}?", "answer": "1"},
    ],
    "tool.jsonl": [TEXT, {"prompt": [USER, {"role": "tool", "content": "x"}], "answer": "2"}],
    "late.jsonl": [{"prompt": [USER, SYSTEM], "answer": "2"}],
    "inside.jsonl": [{"prompt": [SYSTEM, {"role": "user", "content": WRAPPED}], "answer": "2"}],
    "header.jsonl": [{"prompt": "Be exact.<|User|>1+1?<|Assistant|>", "answer": "2"}],
    "ruled.jsonl": [{"prompt": [{"role": "developer", "content": "Be exact."}, USER], "answer": "2"}],
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny model of each style; not to be written to."""
    folder = tmp_path_factory.mktemp("styles")
    for style in STYLES:
        save_model(folder / style, style)
    return folder


@pytest.fixture(autouse=True)
def folder(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in models.iterdir():
        (tmp_path / path.name).symlink_to(path)
    for name, rows in FILES.items():
        (tmp_path / name).write_text(jsonl(*rows))
    monkeypatch.chdir(tmp_path)


def dry_run(model: str, data: str, *changes: str) -> list[str]:
    settings = [f"model={model}", "task=null", f"data.train={data}", "data.prompt_suffix=''", "eval.every=0", *changes]
    return ["train", "attnrl", *SMALL, *settings, "--dry-run"]


def evaluate(models: Sequence[str], data: str, *options: str) -> list[str]:
    short = ["--samples", "1", "--max-new-tokens", "4", "--grader", "rules", "--prompt-suffix", ""]
    return ["eval", *models, "--data", data, *short, *options]


def prompt_in(out: str) -> str:
    """The prompt that a command shows, with the lines joined."""
    lines = out.splitlines()
    start = next(place for place, line in enumerate(lines) if "first prompt (" in line) + 1
    shown = []
    for line in lines[start:]:
        if not line.startswith("  |"):
            break
        shown.append(line[4:])
    return "\n".join(shown)


# --- the prompt is shown, and is the prompt that is sampled from ------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "changes", "expected"),
    [
        ("text.jsonl", {}, WRAPPED),
        ("text.jsonl", {"prompt_suffix": "' Box it.'"}, WRAPPED.replace("1+1?", "1+1? Box it.")),
        ("text.jsonl", {"system_prompt": "Be brief."}, f"{IM_START}system\nBe brief.{IM_END}\n{WRAPPED}"),
        ("chat.jsonl", {"system_prompt": "Be brief."}, f"{IM_START}system\nBe exact.{IM_END}\n{WRAPPED}"),
        ("text.jsonl", {"chat_template": "never"}, "1+1?"),
        ("text.jsonl", {"chat_template": "mine.jinja"}, "Q: 1+1? A:"),
        ("text.jsonl", {"chat_template_kwargs": "{enable_thinking: false}"}, f"{WRAPPED}<think>\n\n</think>\n\n"),
        ("templated.jsonl", {}, WRAPPED),
        ("templated.jsonl", {"prompt_suffix": "' Box it.'"}, WRAPPED.replace("1+1?", "1+1? Box it.")),
        ("begun.jsonl", {}, f"{WRAPPED}I say"),
        ("begun.jsonl", {"prompt_suffix": "' Box it.'"}, WRAPPED.replace("1+1?", "1+1? Box it.") + "I say"),
    ],
)
def test_training_and_evaluation_show_and_use_the_same_prompt(
    data: str, changes: dict[str, str], expected: str, attnrl: Attnrl
) -> None:
    Path("mine.jinja").write_text("{% for m in messages %}Q: {{ m.content }} A:{% endfor %}")
    dry = attnrl(*dry_run("qwen3", data, *(f"data.{key}={value}" for key, value in changes.items())))
    assert dry.code == 0, dry.err
    assert prompt_in(dry.out) == expected
    values = {key: value.strip("'") for key, value in changes.items()}
    options = [part for key, value in values.items() for part in (f"--{key.replace('_', '-')}", value)]
    evaluated = attnrl(*evaluate(["qwen3"], data, "--output", "out", *options))
    assert evaluated.code == 0, evaluated.err
    assert prompt_in(evaluated.out) == prompt_in(dry.out)
    (row,) = map(json.loads, Path("out/samples.jsonl").read_text().splitlines())
    assert row["prompt"] == expected
    settings = json.loads(Path("out/results.json").read_text())["settings"]
    recorded = {key: value for key, value in values.items() if key != "chat_template_kwargs"}
    assert {key: settings[key] for key in recorded} == recorded
    assert settings["chat_template_kwargs"] == ({"enable_thinking": False} if "chat_template_kwargs" in changes else {})


def test_a_run_begins_with_its_first_prompt_and_samples_from_it(attnrl: Attnrl) -> None:
    settings = dry_run("chatml", "text.jsonl", "data.system_prompt=Be brief.", "steps=1", "sampling.max_new_tokens=8")[
        :-1
    ]
    outcome = attnrl(*settings)
    assert outcome.code == 0, outcome.err
    shown = prompt_in(outcome.out)
    assert shown == f"{IM_START}system\nBe brief.{IM_END}\n{WRAPPED}"
    assert {json.loads(line)["prompt"] for line in Path("out/trees.jsonl").read_text().splitlines()} == {shown}
    again = attnrl(*settings, "steps=2")  # samples in flight have the same prompt
    assert again.code == 0 and "changed with the data" not in again.out
    other = attnrl(*settings, "steps=3", "data.system_prompt=Be long.")
    assert other.code == 2 and "data.system_prompt" in other.err


def test_other_prompts_are_another_evaluation(attnrl: Attnrl) -> None:
    assert attnrl(*evaluate(["chatml"], "text.jsonl", "--output", "out")).code == 0
    for options in (["--system-prompt", "S"], ["--chat-template", "never"], ["--special-tokens", "escape"]):
        outcome = attnrl(*evaluate(["chatml"], "text.jsonl", "--output", "out", *options))
        assert outcome.code == 2 and options[0].strip("-").replace("-", "_") in outcome.err


@pytest.mark.parametrize("style", [name for name, style in STYLES.items() if style.bos])
def test_the_start_token_stands_once(style: str, attnrl: Attnrl) -> None:
    Path("starts.jsonl").write_text(jsonl(TEXT, {**TEXT, "prompt": f"{STYLES[style].bos}1+1?"}))
    assert attnrl(*evaluate([style], "starts.jsonl", "--output", "out")).code == 0
    prompts = [json.loads(line)["prompt"] for line in Path("out/samples.jsonl").read_text().splitlines()]
    assert [prompt.count(STYLES[style].bos) for prompt in prompts[:1]] == [1 if style != "vicuna" else 0]
    assert prompts[1].count(STYLES[style].bos) == 1


@pytest.mark.parametrize("style", ["gemma", "mistral"])
def test_a_template_without_system_message(style: str, attnrl: Attnrl) -> None:
    for data, system in (("text.jsonl", "Be brief."), ("chat.jsonl", "Be exact.")):
        outcome = attnrl(*dry_run(style, data, "data.system_prompt=Be brief."))
        assert outcome.code == 0 and f"{system}\n\n1+1?" in prompt_in(outcome.out)
        assert "system message" in outcome.out


BOX = "data.prompt_suffix=' Box it.'"
BOXED = WRAPPED.replace("1+1?", "1+1? Box it.")


@pytest.mark.parametrize(
    ("model", "data", "expected", "said"),
    [
        # A text that some template has written keeps its end: the header of the response.
        ("base", "templated.jsonl", WRAPPED, "without prompt_suffix"),
        ("llama3", "templated.jsonl", None, "without prompt_suffix"),
        ("chatml", "inside.jsonl", BOXED, "without the system message"),
        ("r1", "header.jsonl", "<|begin|>Be exact.<|User|>1+1? Box it.<|Assistant|>", "not wrapped again"),
        ("gemma", "late.jsonl", "<bos><start_of_turn>user\n1+1? Box it.\n\nBe exact.<end_of_turn>\n", "system message"),
        ("chatml", "chat.jsonl", f"{IM_START}system\nBe exact.{IM_END}\n{BOXED}", "system_prompt"),
    ],
)
def test_nothing_of_a_row_is_lost_or_wrapped_twice(
    model: str, data: str, expected: str | None, said: str, attnrl: Attnrl
) -> None:
    system = ["data.system_prompt=Be brief."] if data == "chat.jsonl" else []
    outcome = attnrl(*dry_run(model, data, BOX, *system))
    assert outcome.code == 0, outcome.err
    assert said in outcome.out
    if expected is not None:
        assert prompt_in(outcome.out).startswith(expected)
    else:
        assert "Box it" not in prompt_in(outcome.out)


def test_a_message_that_the_template_leaves_out_names_the_row(attnrl: Attnrl) -> None:
    Path("users.jinja").write_text("{% for m in messages if m.role != 'developer' %}{{ m.content }}{% endfor %}")
    outcome = attnrl(*dry_run("base", "ruled.jsonl", "data.chat_template=users.jinja"))
    assert (outcome.code, outcome.err.count("\n")) == (2, 1)
    assert "ruled.jsonl, line 1" in outcome.err and "developer" in outcome.err


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("Answer after #### please", "Answer after #### please"),
        ("# Rules:\n\n- be brief\n- add", "# Rules:\n\n- be brief\n- add"),
        ("Note: be brief", "Note: be brief"),
        ('"One\\nTwo"', "One\nTwo"),
    ],
)
def test_free_text_is_taken_as_is(value: str, expected: str, attnrl: Attnrl) -> None:
    outcome = attnrl(*dry_run("chatml", "text.jsonl", f"data.system_prompt={value}", "data.prompt_suffix= # Box: it"))
    assert outcome.code == 0, outcome.err
    turn = WRAPPED.replace("1+1?", "1+1? # Box: it")
    assert prompt_in(outcome.out) == f"{IM_START}system\n{expected}{IM_END}\n{turn}"


def test_a_template_file_of_a_windows_editor(attnrl: Attnrl) -> None:
    Path("mine.jinja").write_bytes(b"\xef\xbb\xbf" + CHATML.encode())
    assert prompt_in(attnrl(*dry_run("chatml", "text.jsonl", "data.chat_template=mine.jinja")).out) == WRAPPED
    outcome = attnrl(*dry_run("chatml", "text.jsonl", "data.chat_template=Never"))
    assert outcome.code == 2 and "did you mean never?" in outcome.err


# --- special tokens in the text ---------------------------------------------------------------------------------------


def test_special_tokens_in_the_text_are_counted_and_escaped(attnrl: Attnrl) -> None:
    tokens = {}
    for choice in ("keep", "escape"):
        for arguments in (
            dry_run("chatml", "special.jsonl", f"data.special_tokens={choice}"),
            evaluate(["chatml"], "special.jsonl", "--special-tokens", choice),
        ):
            outcome = attnrl(*arguments)
            assert outcome.code == 0, outcome.err
            note = next(line for line in outcome.out.splitlines() if "special tokens" in line)
            assert "2 prompts" in note and "line 1" in note and "line 2" not in note
            (tokens[choice],) = re.findall(r"first prompt \(.*, (\d+) tokens\)", outcome.out)
            assert prompt_in(outcome.out) == WRAPPED.replace("1+1?", f"What is {IM_END}?")
    # The tokenizer has a token per byte: escaped, the special token becomes one token per byte.
    assert int(tokens["escape"]) == int(tokens["keep"]) + len(IM_END) - 1


# --- base models ------------------------------------------------------------------------------------------------------


def test_a_base_model_reads_chats_as_text(attnrl: Attnrl) -> None:
    dry = attnrl(*dry_run("base", "chat.jsonl"))
    assert dry.code == 0 and prompt_in(dry.out) == "Be exact.\n\n1+1?"
    assert dry.out.count("plain text") == 1
    assert attnrl(*dry_run("base", "chat.jsonl", "steps=1", "sampling.max_new_tokens=8")[:-1]).code == 0
    evaluated = attnrl(*evaluate(["base"], "chat.jsonl"))
    assert evaluated.code == 0 and prompt_in(evaluated.out) == "Be exact.\n\n1+1?"


# --- several models ---------------------------------------------------------------------------------------------------


def test_a_model_that_fails_does_not_stop_the_others(attnrl: Attnrl) -> None:
    save_model(Path("faulty"), replace(STYLES["chatml"], template="{{ 1/0 }}"))
    broken = shutil.copytree("base", "broken")
    (Path(broken) / "model.safetensors").write_bytes(b"\0" * 64)
    outcome = attnrl(*evaluate(["faulty", "base", "broken", "nowhere", "chatml"], "text.jsonl", "--output", "out"))
    assert outcome.code == 1 and outcome.err.count("\n") == 1
    results: dict[str, Any] = json.loads(Path("out/results.json").read_text())
    assert set(results["failures"]) == {"faulty", "broken", "nowhere"} and not results["complete"]
    assert [row["model"] for row in results["results"]] == ["base", "chatml"]
    for name in ("faulty", "broken", "nowhere"):
        assert f"{name} is left out" in outcome.out and name in outcome.err
    shutil.rmtree("broken")
    shutil.copytree("base", "broken")
    assert attnrl(*evaluate(["base", "broken", "chatml"], "text.jsonl", "--output", "out")).code == 0
    results = json.loads(Path("out/results.json").read_text())
    assert results["complete"] and results["failures"] == {}


def test_a_single_model_that_fails_is_bad_input(attnrl: Attnrl) -> None:
    save_model(Path("faulty"), replace(STYLES["chatml"], template="{{ 1/0 }}"))
    for models in (["faulty"], ["faulty", "nowhere"]):
        outcome = attnrl(*evaluate(models, "text.jsonl", "--output", "out"))
        assert (outcome.code, outcome.err.count("\n")) == (2, 1) and "ZeroDivisionError" in outcome.err
        assert not Path("out").exists()


def test_disrupt_has_the_settings_too(attnrl: Attnrl) -> None:
    options = ["--samples", "1", "--max-new-tokens", "4", "--grader", "rules", "--prompt-suffix", " Box it."]
    outcome = attnrl("disrupt", "chatml", "--data", "text.jsonl", *options, "--system-prompt", "Be brief.")
    assert outcome.code == 2 and "--bins" in outcome.err  # a random model has too few steps
    assert prompt_in(outcome.out) == f"{IM_START}system\nBe brief.{IM_END}\n{WRAPPED}".replace("1+1?", "1+1? Box it.")


# --- faults of templates ----------------------------------------------------------------------------------------------


FAULTS = {
    "division": "{{ 1/0 }}",
    "syntax": "{% for m in messages %}",
    "undefined": "{{ nothing.at.all }}",
    "printed": CHATML + "{{ date_of_today }}",
    "exception": "{{ raise_exception('never') }}",
    "recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "power": CHATML + "{{ 10 ** 10 ** 10 }}",
    "width": CHATML + "{{ 'x'|center(9999999999) }}",
    "format": CHATML + "{{ '%9999999999d' % 1 }}",
    "repeats": CHATML + "{% set n = 99999999 %}{{ 'x' * n * 100 }}",
    "endless": CHATML + "{% for i in range(99999) %}" * 4 + "{% endfor %}" * 4,
    "ignores": "Hello {{ bos_token }}",
    "empty": " ",
    "text": "no template",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_template_is_one_line(fault: str, attnrl: Attnrl, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_module, "SECONDS", 0.3)
    Path("faulty.jinja").write_text(FAULTS[fault])
    for arguments in (
        dry_run("base", "text.jsonl", "data.chat_template=faulty.jinja"),
        evaluate(["base"], "text.jsonl", "--chat-template", "faulty.jinja"),
        ["disrupt", "base", "--data", "text.jsonl", "--chat-template", "faulty.jinja"],
    ):
        outcome = attnrl(*arguments)
        assert (outcome.code, outcome.err.count("\n")) == (2, 1) and "faulty.jinja" in outcome.err


def test_a_template_that_fails_for_a_row_names_the_row(attnrl: Attnrl) -> None:
    Path("users.jinja").write_text(
        "{% for m in messages %}{{ m.content if m.role == 'user' else m.no.way }}{% endfor %}"
    )
    for arguments in (
        dry_run("base", "tool.jsonl", "data.chat_template=users.jinja"),
        evaluate(["base"], "tool.jsonl", "--chat-template", "users.jinja"),
    ):
        outcome = attnrl(*arguments)
        assert (outcome.code, outcome.err.count("\n")) == (2, 1)
        assert "tool.jsonl, line 2" in outcome.err and "users.jinja" in outcome.err


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--chat-template", "nowhere.jinja"], "nowhere.jinja"),
        (["--chat-template-kwargs", "[1]"], "--chat-template-kwargs"),
        (["--chat-template-kwargs", "{a: 1"], "--chat-template-kwargs"),
        (["--chat-template-kwargs", "{tokenize: true}"], "tokenize"),
        (["--chat-template-kwargs", "{day: 2020-01-01}"], "--chat-template-kwargs"),
        (["--special-tokens", "drop"], "--special-tokens"),
    ],
)
def test_settings_that_are_wrong(options: list[str], named: str, attnrl: Attnrl) -> None:
    outcome = attnrl(*evaluate(["chatml"], "text.jsonl", *options))
    assert (outcome.code, outcome.err.count("\n")) == (2, 1) and named in outcome.err


def test_an_argument_that_the_template_does_not_read_is_said(attnrl: Attnrl) -> None:
    outcome = attnrl(*dry_run("qwen3", "text.jsonl", "data.chat_template_kwargs={enable_thinkin: false}"))
    assert outcome.code == 0 and "enable_thinkin changes nothing" in outcome.out
    outcome = attnrl(*dry_run("qwen3", "text.jsonl", "data.chat_template_kwargs={enable_thinking: 'False'}"))
    assert outcome.code == 0 and "without quotes" in outcome.out


def test_a_tokenizer_with_its_template_in_a_file_or_with_several(attnrl: Attnrl) -> None:
    shutil.copytree("base", "mine")
    Path("mine/chat_template.jinja").write_text(CHATML)
    assert prompt_in(attnrl(*dry_run("mine", "text.jsonl")).out) == WRAPPED
    config = json.loads(Path("base/tokenizer_config.json").read_text())
    named = [{"name": name, "template": CHATML.replace("user", name)} for name in ("default", "rag")]
    Path("mine/chat_template.jinja").unlink()
    Path("mine/tokenizer_config.json").write_text(json.dumps({**config, "chat_template": named}))
    assert prompt_in(attnrl(*dry_run("mine", "text.jsonl")).out) == WRAPPED
    assert attnrl(*dry_run("mine", "text.jsonl", "data.chat_template=rag")).code == 0
    Path("mine/tokenizer_config.json").write_text(json.dumps({**config, "chat_template": named[1:] * 1}))
    outcome = attnrl(*dry_run("mine", "text.jsonl"))
    assert outcome.code == 2 and "rag" in outcome.err


def test_a_dry_run_with_verl_shows_the_prompt_too(attnrl: Attnrl) -> None:
    settings = ["engine=verl", "data.system_prompt=Be brief.", "sampling.score_continuations=true"]
    outcome = attnrl(*dry_run("chatml", "text.jsonl", *settings))
    assert outcome.code == 0, outcome.err
    assert prompt_in(outcome.out) == f"{IM_START}system\nBe brief.{IM_END}\n{WRAPPED}"
    Path("faulty.jinja").write_text("{{ 1/0 }}")
    outcome = attnrl(*dry_run("chatml", "text.jsonl", *settings, "data.chat_template=faulty.jinja"))
    assert outcome.code == 2 and "faulty.jinja" in outcome.err
    outcome = attnrl(*dry_run("owner/absent", "text.jsonl", *settings))
    assert outcome.code == 0 and "first prompt (" not in outcome.out and "not checked" in outcome.out
