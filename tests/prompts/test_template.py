"""Faults of chat templates: each is one line that names the template, before any problem is rendered."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from prompt_styles import CHATML, STYLES, tokenizer_of

from attnrl.errors import UserError
from attnrl.prompts import template as template_module
from attnrl.prompts.renderer import PromptRenderer
from attnrl.prompts.settings import PromptSettings
from attnrl.prompts.sources import find_template
from attnrl.prompts.template import ChatTemplate
from attnrl.types import Problem

PROBLEM = Problem("mine:3", "1+1?", ("2",))
FAULTS = {
    "division": "{{ 1/0 }}",
    "syntax": "{% for m in messages %}",
    "undefined attribute": "{{ nothing.at.all }}",
    "undefined function": "{{ nothing() }}",
    "undefined name": CHATML + "{{ date_of_today }}",
    "exception": "{{ raise_exception('never') }}",
    "recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "include": "{% include 'other' %}",
    "power": CHATML + "{{ 10 ** 10 ** 10 }}",
    "long text": CHATML + "{{ 'a' * 99999999999 }}",
    "nested": "{{ " + "(" * 3000 + ")" * 3000 + " }}",
    "without the user": "Hello {{ bos_token }}",
    "upper case": "{% for m in messages %}{{ m.content | upper }}{% endfor %}",
    "cut": "{% for m in messages %}{{ m.content[:3] }}{% endfor %}",
    "wrong type": "{{ messages + 1 }}",
    "secret": "{{ messages.__class__.__mro__ }}",
    "empty": "",
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_faulty_template_is_one_line(name: str) -> None:
    with pytest.raises(UserError, match="chat template of the model") as caught:
        PromptRenderer(tokenizer_of(replace(STYLES["chatml"], template=FAULTS[name])))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600


def test_an_endless_template_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_module, "SECONDS", 0.2)
    loops = "{% for i in range(99999) %}" * 4 + "{% endfor %}" * 4
    with pytest.raises(UserError, match=r"chat template of the model.*0\.2 seconds"):
        PromptRenderer(tokenizer_of(replace(STYLES["chatml"], template=CHATML + loops)))


@pytest.mark.parametrize("content", [None, "", " \n", "just text", b"\xff{{ messages }}", "folder"])
def test_a_file_that_is_no_template(content: str | bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "template.jinja"
    if content == "folder":
        path.mkdir()
    elif content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=r"template\.jinja"):
        PromptRenderer(tokenizer_of("chatml"), PromptSettings(chat_template=str(path)))


def test_a_file_replaces_the_template_of_the_model(tmp_path: Path) -> None:
    path = tmp_path / "template.jinja"
    path.write_text("{% for m in messages %}Q: {{ m.content }}\nA:{% endfor %}")
    for style in ("chatml", "base"):
        renderer = PromptRenderer(tokenizer_of(style), PromptSettings(chat_template=str(path)))
        assert renderer.show(PROBLEM)[1:] == ["  | Q: 1+1?", "  | A:"]
    path.write_text("{{ 1/0 }}")
    with pytest.raises(UserError, match=r"template\.jinja.*ZeroDivisionError"):
        PromptRenderer(tokenizer_of("chatml"), PromptSettings(chat_template=str(path)))


@pytest.mark.parametrize("name", ["tokenize", "messages", "add_generation_prompt", "chat_template"])
def test_arguments_with_reserved_names(name: str) -> None:
    with pytest.raises(UserError, match=f"chat_template_kwargs.*{name}"):
        PromptRenderer(tokenizer_of("chatml"), PromptSettings(chat_template_kwargs={name: 1}))


def test_a_printed_variable_may_be_given() -> None:
    tokenizer = tokenizer_of(replace(STYLES["chatml"], template=CHATML + "{{ today }}"))
    renderer = PromptRenderer(tokenizer, PromptSettings(chat_template_kwargs={"today": "Monday"}))
    assert renderer.show(PROBLEM)[-1] == "  | Monday"
    optional = "{% if today is not defined %}{% set today = 'Sunday' %}{% endif %}{{ today }}"
    marked = CHATML + optional + "{% generation %}!{% endgeneration %}"
    renderer = PromptRenderer(tokenizer_of(replace(STYLES["chatml"], template=marked)))
    assert renderer.show(PROBLEM)[-1] == "  | Sunday!"


OPENINGS = {
    "chatml": "<|im_start|>user",
    "qwen2": "<|im_start|>user",
    "qwen3": "<|im_start|>user",
    "llama3": "<|start_header_id|>user<|end_header_id|>",
    "r1": "<|User|>",
    "mistral": "[INST]",
    "gemma": "<start_of_turn>user",
    "vicuna": "USER:",
}


@pytest.mark.parametrize("style", OPENINGS)
def test_the_role_markers_of_a_template(style: str) -> None:
    tokenizer = tokenizer_of(style)
    source = find_template(tokenizer, "auto")
    assert source is not None
    features = ChatTemplate(source, tokenizer, PromptSettings()).features
    assert features.user_opening == OPENINGS[style]
    assert features.takes_system == (style not in ("mistral", "gemma"))
    assert features.writes_start == (style in ("llama3", "r1", "mistral", "gemma"))
