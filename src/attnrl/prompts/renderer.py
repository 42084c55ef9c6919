"""The only way from a problem to the prompt that the model sees."""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import cast

from transformers import PreTrainedTokenizerBase

from attnrl.errors import UserError
from attnrl.method.steps import THINK_BEGIN, THINK_END
from attnrl.prompts.encoding import PromptEncoder
from attnrl.prompts.settings import PromptSettings
from attnrl.prompts.sources import find_template
from attnrl.prompts.template import ChatTemplate, TemplateError
from attnrl.tokenization import decode
from attnrl.types import Chat, FinishReason, Problem, Response

MOST_SHOWN = 4_000  # characters of a prompt in the output of a command
MOST_KNOWN = 4_096  # prompts whose rendering is known to end inside or outside of a thought
JOINT = "\n\n"  # between the contents of messages without a chat template
#: A popular role marker, possibly after a start token.
ROLE_MARKER = re.compile(
    r"\s*(?:<s>|<bos>|<[|｜]begin[^<>]*>)?\s*(<[|｜](?!begin|im_end|end|eot|pad)[^<>|｜\s]+[|｜]>|\[INST\]|<start_of_turn>)"
)


@dataclass(frozen=True)
class _Rendered:
    """A rendered prompt: the text, the ids before the text, and the text from the end of the user's text on."""

    text: str
    start: tuple[int, ...]
    tail: str


class PromptRenderer:
    """Renders and encodes the prompts of problems for one tokenizer.

    Attributes:
        tokenizer: the model's tokenizer.
        notes: remarks on the settings, one line each.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, settings: PromptSettings | None = None) -> None:
        """Find, check and probe the chat template.

        Args:
            tokenizer: the model's tokenizer.
            settings: the settings of prompts; None: the defaults.

        Raises:
            UserError: the chat template is missing, faulty, or leaves out the text of the user.
        """
        self.tokenizer = tokenizer
        self._settings = settings or PromptSettings()
        self._fault: UserError | None = None
        self._template: ChatTemplate | None = None
        try:
            source = find_template(tokenizer, self._settings.chat_template)
            self._template = ChatTemplate(source, tokenizer, self._settings) if source is not None else None
        except UserError as error:
            if self._settings.chat_template != "never":
                raise
            self._fault = error  # raised for chat messages; text needs no template
        markers = self._template.features.openings if self._template is not None else ()
        self._escapes = self._settings.special_tokens == "escape"
        self._encoder = PromptEncoder(tokenizer, markers, escapes=self._escapes)
        self.notes = tuple(self._remarks_on_settings())
        self._thinking: dict[Hashable, bool] = {}  # by prompt: every response to a problem asks again

    def asked(self, problem: Problem) -> Problem:
        """Return the problem with the prompt as asked: with the suffix; text as a user message if there is a template.

        Text that holds the model's template stays text, with the suffix at the end of the user's part.
        """
        prompt, suffix = problem.prompt, self._settings.suffix
        templated = self._templated_text(prompt)
        if templated is not None:
            return replace(problem, prompt=self._with_suffix_inside(templated))
        if not isinstance(prompt, str):
            return replace(problem, prompt=_with_suffix_in_chat(prompt, suffix))
        text = prompt if _foreign_marker(prompt) else with_suffix(prompt, suffix)
        if self._template is None or self._settings.chat_template == "never":
            return replace(problem, prompt=text)
        return replace(problem, prompt=({"role": "user", "content": text},), wrapped=True)

    def encode(self, problem: Problem, max_tokens: int | None = None) -> tuple[int, ...]:
        """Return the token ids of the prompt.

        Raises:
            UserError: the prompt has more than ``max_tokens`` tokens or none, or the template or the tokenizer fails;
                names file and row of the problem.
        """
        rendered = self._render(problem)
        ids = self._encoder.encode(rendered.text, problem.where, rendered.start)
        if not ids:
            raise UserError(f"{problem.where}: the prompt has no tokens")
        if max_tokens is not None and len(ids) > max_tokens:
            raise UserError(f"{problem.where}: its prompt has {len(ids)} tokens, max_prompt_tokens is {max_tokens}")
        return ids

    def is_thinking(self, problem: Problem) -> bool:
        """Return True if the prompt ends inside of a ``<think>``, which the response has to close."""
        prompt = problem.prompt
        key = prompt if isinstance(prompt, str) else tuple((one["role"], one["content"]) for one in prompt)
        if key not in self._thinking:
            if len(self._thinking) >= MOST_KNOWN:
                self._thinking.clear()
            tail = self._render(problem).tail
            self._thinking[key] = tail.rfind(THINK_BEGIN) > tail.rfind(THINK_END)
        return self._thinking[key]

    def finished_response(self, problem: Problem, tokens: Sequence[int], finish_reason: FinishReason) -> Response:
        """Return a finished response to the problem for grading: the text with and without special tokens."""
        plain_text = self.tokenizer.decode(list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return Response(
            problem,
            decode(self.tokenizer, tokens),
            tuple(tokens),
            finish_reason,
            thinking=self.is_thinking(problem),
            plain_text=cast(str, plain_text),
        )

    def remarks(self, problem: Problem, ids: Sequence[int]) -> tuple[str, ...]:
        """Return remarks on the prompt, each the end of a sentence ``N prompts ...``.

        Args:
            problem: the problem, before or after :meth:`asked`.
            ids: the ids of :meth:`encode`.
        """
        tokenizer, remarks = self.tokenizer, list(self._remarks(problem))
        known = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
        unknown, token = tokenizer.unk_token_id, str(tokenizer.unk_token)
        if unknown in ids and unknown not in known and token not in self._render(problem).text:
            remarks.append(f"with characters that the tokenizer does not know (encoded as {token})")
        return tuple(remarks)

    def show(self, problem: Problem) -> list[str]:
        """Return lines that show the prompt as the model sees the prompt, with special tokens and number of tokens."""
        ids = self.encode(problem)
        text = decode(self.tokenizer, ids)
        if len(text) > MOST_SHOWN:
            half = MOST_SHOWN // 2
            text = f"{text[:half]} [... {len(text) - 2 * half:,} characters ...] {text[-half:]}"
        lines = ["".join(c if c.isprintable() else repr(c)[1:-1] for c in line) for line in text.split("\n")]
        tokens = f"{len(ids):,} token{'' if len(ids) == 1 else 's'}"
        return [f"first prompt ({problem.where}, {tokens}):", *(f"  | {line}" for line in lines)]

    def _remarks_on_settings(self) -> Iterator[str]:
        if self._template is not None:
            yield from self._template.notes
            if self._settings.system_prompt is not None and not self._template.features.takes_system:
                yield (
                    f"system_prompt: the {self._template.name} has no system message: the system prompt begins the "
                    "user's message"
                )
        elif self._fault is None and self._settings.chat_template_kwargs:
            yield "chat_template_kwargs: without effect, because the model has no chat template"

    def _remarks(self, problem: Problem) -> Iterator[str]:
        prompt, settings = problem.prompt, self._settings
        if (templated := self._templated_text(prompt)) is not None:
            yield "already in the format of the chat template: not wrapped again"
            if settings.system_prompt is not None:
                yield "without system_prompt, because the text holds a chat template already"
            if not isinstance(prompt, str) and len(prompt) > 1:
                yield "without the system message of the row, because the text holds a chat template already"
            if self._escapes:
                yield "with special tokens that count in spite of special_tokens=escape, as parts of the chat template"
            if settings.suffix.strip() and settings.suffix.strip() not in self._with_suffix_inside(templated):
                yield "without prompt_suffix, because the end of the user's part was not found"
            return
        if marker := _foreign_marker(prompt):
            without = ": without prompt_suffix" if settings.suffix.strip() else ""
            yield f"beginning with {marker}, as in the chat template of another model{without}"
        if not isinstance(prompt, str):
            roles = [message["role"] for message in prompt]
            if settings.system_prompt is not None and "system" in roles:
                yield "with the system message of the row in place of system_prompt"
            if self._template is None and self._fault is None:
                yield "of chat messages, read as plain text (contents joined by blank lines): no chat template"
            elif "system" in roles and self._template is not None and not self._template.features.takes_system:
                yield "with the system message inside the user's message: the chat template has no system message"
            if roles[-1] == "assistant":
                yield "ending in a message of the assistant, which the response continues"
        texts = [prompt] if isinstance(prompt, str) else [message["content"] for message in prompt]
        if any(self._encoder.tokens_in(text) for text in texts):
            kept = "which count as special tokens (special_tokens=escape: as plain text)"
            yield f"with special tokens in the text, {'encoded as plain text' if self._escapes else kept}"

    def _render(self, problem: Problem) -> _Rendered:
        """Render the prompt as asked; the text has placeholders of special tokens if special tokens are escaped."""
        prompt = self.asked(problem).prompt
        system = self._settings.system_prompt
        if isinstance(prompt, str):
            if self._templated_text(prompt) is not None:
                return self._render_templated(prompt)
            return self._render_plain([prompt] if system is None else [system, prompt], problem.where)
        if system is not None and all(message["role"] != "system" for message in prompt):
            prompt = ({"role": "system", "content": system}, *prompt)
        if self._fault is not None:
            raise self._fault
        if self._template is None:
            return self._render_plain([message["content"] for message in prompt], problem.where)
        return self._render_chat(prompt, self._template, problem.where)

    def _render_plain(self, contents: list[str], where: str) -> _Rendered:
        text = self._hidden(JOINT.join(contents), where)
        tail = THINK_BEGIN if text.rstrip().endswith(THINK_BEGIN) else ""
        return _Rendered(text, self._encoder.start_ids, tail)

    def _render_templated(self, text: str) -> _Rendered:
        assert self._template is not None
        writes_start = self._template.features.writes_start
        start = (self.tokenizer.bos_token_id,) if writes_start else ()
        end = self._end_of_user_part(text)
        tail = text[end:] if end is not None else THINK_BEGIN if text.rstrip().endswith(THINK_BEGIN) else ""
        return _Rendered(text, start, tail)

    def _render_chat(self, prompt: Chat, template: ChatTemplate, where: str) -> _Rendered:
        messages: Chat = tuple({**one, "content": self._hidden(one["content"], where)} for one in prompt)
        if not template.features.takes_system:
            messages = merge_system(messages)
        try:
            text = template.render(messages)
        except TemplateError as fault:
            raise UserError(f"{where}: the {template.name} fails: {fault}") from None
        squeezed = "".join(text.split())
        for message in messages:
            # Templates leave out the thoughts of earlier responses.
            said = message["content"].rpartition(THINK_END)[2] if message["role"] == "assistant" else message["content"]
            if "".join(said.split()) not in squeezed:
                raise UserError(f"{where}: the {template.name} leaves out or changes the {message['role']} message")
        asked = [message["content"].strip() for message in messages if message["role"] == "user"]
        place = text.rfind(asked[-1]) if asked else -1
        return _Rendered(text, (), text[place + len(asked[-1]) :] if place >= 0 else text)

    def _hidden(self, text: str, where: str) -> str:
        return self._encoder.hide(text, where) if self._escapes else text

    def _templated_text(self, prompt: str | Chat) -> str | None:
        """Return the text if a prompt is in the format of the chat template.

        The prompt is a text or a user message, possibly after a system message. The text begins with the start token or
        a role marker, or ends with the header of the response (not if special tokens are escaped). Spaces before the
        start token or the marker are left out.
        """
        text = _lone_text(prompt)
        if self._template is None or text is None:
            return None
        start = self.tokenizer.bos_token
        openings = (*self._template.features.openings, *([str(start)] if start else []))
        text = text.lstrip()
        return text if text.startswith(openings) or self._ends_with_header(text) else None

    def _ends_with_header(self, text: str) -> bool:
        assert self._template is not None
        header = next(iter(self._template.features.user_closings), "")
        headers = (header, header.removesuffix(THINK_BEGIN).rstrip())
        return not self._escapes and bool(self._encoder.tokens_in(headers[1])) and text.rstrip().endswith(headers)

    def _end_of_user_part(self, text: str) -> int | None:
        """Return the place in templated text where the last part of the user ends; None if no end is found."""
        assert self._template is not None
        features = self._template.features
        for closing in features.user_closings:
            end = text.rfind(closing)
            opened = text.rfind(features.user_opening) if features.user_opening else -1
            if end >= 0 and opened <= end:
                return end
        return None

    def _with_suffix_inside(self, text: str) -> str:
        end = self._end_of_user_part(text)
        if end is None:
            return text
        asked = text[:end]
        spaces = asked[len(asked.rstrip()) :]
        return f"{with_suffix(asked.rstrip(), self._settings.suffix)}{spaces}{text[end:]}"


def _lone_text(prompt: str | Chat) -> str | None:
    """Return the text of a prompt of one user message, possibly after a system message; None for other messages."""
    if isinstance(prompt, str):
        return prompt
    roles = [message["role"] for message in prompt]
    return prompt[-1]["content"] if roles in (["user"], ["system", "user"]) else None


def _foreign_marker(prompt: str | Chat) -> str | None:
    """Return the role marker at the beginning of a text that the chat template of some model has written, or None."""
    found = ROLE_MARKER.match(_lone_text(prompt) or "")
    return found[1] if found else None


def with_suffix(text: str, suffix: str) -> str:
    """Return the text with ``suffix`` at the end, unless already present."""
    return text if text.rstrip().endswith(suffix.strip()) else text + suffix


def _with_suffix_in_chat(chat: Chat, suffix: str) -> Chat:
    """Return the messages with ``suffix`` at the end of the last user message, unless already present.

    Text that the chat template of another model has written stays the same.
    """
    if _foreign_marker(chat):
        return chat
    last = max(index for index, message in enumerate(chat) if message["role"] == "user")
    asked = {**chat[last], "content": with_suffix(chat[last]["content"], suffix)}
    return (*chat[:last], asked, *chat[last + 1 :])


def merge_system(messages: Chat) -> Chat:
    """Return the messages with the text of each system message at the beginning of the next user message.

    A system message after the last user message goes to the end of the last user message.
    """
    merged: list[dict[str, str]] = []
    rules: list[str] = []
    for message in messages:
        if message["role"] == "system":
            rules.append(message["content"])
        elif message["role"] == "user":
            merged.append({**message, "content": JOINT.join([*rules, message["content"]])})
            rules = []
        else:
            merged.append(dict(message))
    asked = next((message for message in reversed(merged) if message["role"] == "user"), None)
    if asked is not None:
        asked["content"] = JOINT.join([asked["content"], *rules])
    return tuple(merged)
