"""Find the text of a chat template and check the text without rendering: syntax, variables, arithmetic."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import TemplateError, meta, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from transformers import PreTrainedTokenizerBase

from attnrl.errors import UserError, one_line
from attnrl.prompts.settings import PromptSettings
from attnrl.utils.deadline import DeadlineError, deadline
from attnrl.utils.memory import memory_limit
from attnrl.utils.near import did_you_mean

WAY_OUT = "set data.chat_template (attnrl eval: --chat-template) to a file with a sound template"
COMPILE_SECONDS, MEMORY_GIB = 10.0, 1  # limits of the computation of constant expressions
MOST_REPEATS = 1_000_000  # of a text multiplied by a number

#: Variables and functions that transformers gives to every template.
_GIVEN = {"messages", "tools", "documents", "add_generation_prompt"}
_FUNCTIONS = ("raise_exception", "strftime_now", "dict", "namespace")


@dataclass(frozen=True)
class TemplateSource:
    """The text of a chat template.

    Attributes:
        name: name in messages: the file, or the tokenizer's template.
        text: the template, in jinja.
    """

    name: str
    text: str


class _Generation(Extension):
    """The block ``{% generation %}`` of transformers, parsed as the text inside the block."""

    tags = {"generation"}  # noqa: RUF012 (an attribute of jinja's class)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def find_template(tokenizer: PreTrainedTokenizerBase, choice: str) -> TemplateSource | None:
    """Return the template that the setting ``data.chat_template`` names; None if the tokenizer has no template.

    Args:
        tokenizer: the model's tokenizer.
        choice: the setting: ``auto``, ``never``, the name of one of several templates of the tokenizer, or a file.

    Raises:
        UserError: the file cannot be read or is empty, or none of several templates is the default.
    """
    own: str | dict[str, str] | None = tokenizer.chat_template
    named = own if isinstance(own, dict) else {}
    if own is not None and not isinstance(own, str | dict) and choice == "auto":
        raise UserError(f"chat template of the model: a text expected, not {own!r:.40}; {WAY_OUT}")
    if choice in named:
        return TemplateSource(f"chat template {choice!r} of the model", named[choice])
    if choice not in ("auto", "never"):
        return _read_template(Path(choice).expanduser(), sorted(named))
    if isinstance(own, str):
        return TemplateSource("chat template of the model", own)
    if not named:
        return None
    if "default" not in named:
        raise UserError(f"chat_template: the model has no default template: choose one of {', '.join(sorted(named))}")
    return TemplateSource("chat template 'default' of the model", named["default"])


def _read_template(path: Path, names: list[str]) -> TemplateSource:
    others = f"auto, never, {''.join(f'{name}, ' for name in names)}or a file"
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        near = did_you_mean(str(path), ["auto", "never", *names])
        raise UserError(f"chat_template {path}: no such file ({others}){near}") from None
    except (OSError, ValueError) as error:
        raise UserError(f"chat_template {path}: cannot be read ({one_line(error)})") from None
    if not text.strip():
        raise UserError(f"chat_template {path}: the file is empty")
    if "{{" not in text:
        raise UserError(f"chat_template {path}: not a chat template: no jinja expression {{{{ ... }}}}")
    return TemplateSource(f"chat template {path}", text)


def check_variables(source: TemplateSource, tokenizer: PreTrainedTokenizerBase, settings: PromptSettings) -> list[str]:
    """Check the syntax of the template and the variables of the template; return notes of one line each.

    A variable that is only printed and has no value would print nothing: refused. An argument that the template does
    not read changes nothing: a note.

    Raises:
        UserError: a fault of syntax, a variable without a value, a power or a product without bound, or a reserved
            name in ``chat_template_kwargs``.
    """
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.globals.update(dict.fromkeys(_FUNCTIONS))
    try:
        with deadline(COMPILE_SECONDS), memory_limit(MEMORY_GIB << 30):  # jinja computes constant expressions
            tree = environment.parse(source.text)
            read = meta.find_undeclared_variables(tree)
    except (DeadlineError, MemoryError):
        limits = f"{COMPILE_SECONDS:g} seconds or {MEMORY_GIB} GiB"
        raise UserError(f"{source.name}: a constant expression takes more than {limits}; {WAY_OUT}") from None
    except (TemplateError, RecursionError, ValueError) as error:
        raise UserError(f"{source.name}: {type(error).__name__}: {one_line(error)}; {WAY_OUT}") from None
    if fault := next(_boundless(tree), None):
        raise UserError(f"{source.name}: {fault}; {WAY_OUT}")
    given = settings.chat_template_kwargs
    _refuse_reserved(given, tokenizer)
    missing = {name for name in read - _GIVEN - set(given) if not name.endswith("_token")}
    uses = Counter(name.name for name in tree.find_all(nodes.Name) if name.ctx == "load")
    printed = Counter(
        part.name for output in tree.find_all(nodes.Output) for part in output.nodes if isinstance(part, nodes.Name)
    )
    if valueless := sorted(name for name in missing if uses[name] == printed[name]):
        raise UserError(
            f"{source.name}: prints {', '.join(valueless)}, and no such variable has a value: set "
            f"chat_template_kwargs to {{{valueless[0]}: VALUE}}"
        )
    unread = [
        f"chat_template_kwargs: {name} changes nothing, because the {source.name} reads no variable of this name"
        for name in given
        if name not in read
    ]
    quoted = [
        f"chat_template_kwargs: {name} is the text {value!r}, no truth value: write {value.lower()} without quotes"
        for name, value in given.items()
        if isinstance(value, str) and value.lower() in ("true", "false", "null")
    ]
    return unread + quoted


def _refuse_reserved(given: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> None:
    parameters = inspect.signature(tokenizer.apply_chat_template).parameters.values()
    named = {parameter.name for parameter in parameters if parameter.kind is not inspect.Parameter.VAR_KEYWORD}
    for name in given:
        if name in (named | _GIVEN) - {"tools", "documents"}:
            raise UserError(f"chat_template_kwargs: {name} is set by attnrl itself")


def _boundless(tree: nodes.Template) -> Iterator[str]:
    """Yield a fault for each operation that compiled code carries out, where no time limit interrupts."""
    if next(tree.find_all(nodes.Pow), None) is not None:
        yield "powers (**) are not supported, because a large power has no time limit"
    for product in tree.find_all(nodes.Mul):
        numbers = [factor.value for factor in (product.left, product.right) if isinstance(factor, nodes.Const)]
        yield from (
            f"multiplies by {number:,}"
            for number in numbers
            if isinstance(number, (int, float)) and abs(number) > MOST_REPEATS
        )
