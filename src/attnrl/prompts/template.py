"""Render conversations with a chat template, within a time limit, and probe the features of the template."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import cast

from transformers import PreTrainedTokenizerBase

from attnrl.errors import UserError, one_line
from attnrl.prompts.settings import PromptSettings
from attnrl.prompts.sources import MEMORY_GIB, WAY_OUT, TemplateSource, check_variables
from attnrl.types import Chat
from attnrl.utils.deadline import DeadlineError, deadline
from attnrl.utils.memory import memory_limit

SECONDS = 10.0  # time limit of the rendering of one conversation
FEWEST_CHARACTERS = 3  # of a role marker without special tokens

_QUESTION, _ANSWER, _NEXT, _SYSTEM = "first probe question", "probe answer", "second probe question", "probe of rules"


class TemplateError(Exception):
    """A chat template failed; the message is one line."""


class TemplateTimeoutError(TemplateError):
    """A chat template did not end in time."""


@dataclass(frozen=True)
class Features:
    """Features of a chat template, read from renderings of probe conversations.

    Attributes:
        takes_system: a system message appears in the rendering.
        writes_start: a rendering begins with the tokenizer's start token.
        openings: role markers (special tokens or texts) that begin a rendering, without the start token.
        user_opening: text before the last user message.
        user_closings: texts between the last user message and the response, in the order to look for.
    """

    takes_system: bool
    writes_start: bool
    openings: tuple[str, ...]
    user_opening: str
    user_closings: tuple[str, ...]


class ChatTemplate:
    """A chat template with the tokenizer that renders.

    Attributes:
        name: name of the template in messages.
        features: features of the template.
        notes: remarks of one line each: arguments that the template does not read.
    """

    def __init__(self, source: TemplateSource, tokenizer: PreTrainedTokenizerBase, settings: PromptSettings) -> None:
        """Check the template and render probe conversations.

        Raises:
            UserError: the template is faulty, fails, does not end in time, or leaves out the user's text.
        """
        self.name = source.name
        self._text = source.text
        self._tokenizer = tokenizer
        self._arguments = dict(settings.chat_template_kwargs)
        self.notes = check_variables(source, tokenizer, settings)
        self.features = self._probe()

    def render(self, messages: Chat) -> str:
        """Return the text of a conversation, with the header of the response.

        A last message of the assistant is continued: the text ends with the content of the message.

        Raises:
            TemplateError: the template fails, does not end in time, or the text does not end with the message.
        """
        last = messages[-1]
        if last["role"] != "assistant":
            return self._apply(messages, continues=False)
        if not last["content"].strip():
            return self._apply(messages[:-1], continues=False)
        text = self._apply(messages, continues=True)
        content = last["content"]
        if not text.rstrip().endswith(content.strip()):
            raise TemplateError("the template changes the assistant's last message, so the message cannot be continued")
        # Some templates strip the message; the spaces at the end belong to the text to continue.
        return text.rstrip() + content[len(content.rstrip()) :]

    def _apply(self, messages: Chat, *, continues: bool) -> str:
        try:
            with deadline(SECONDS):
                text = self._tokenizer.apply_chat_template(
                    [dict(message) for message in messages],
                    chat_template=self._text,
                    tokenize=False,
                    add_generation_prompt=not continues,
                    continue_final_message=continues,
                    **self._arguments,
                )
        except DeadlineError:
            raise TemplateTimeoutError(f"no end after {SECONDS:g} seconds") from None
        except MemoryError:
            raise TemplateError("the text needs too much memory") from None
        except Exception as error:  # anything: a template is a program
            raise TemplateError(f"{type(error).__name__}: {one_line(error)[:200]}") from None
        return cast(str, text)

    def _probe(self) -> Features:
        """Render probe conversations: a question; rules and a question; a dialogue of two questions."""
        user, system = {"role": "user", "content": _QUESTION}, {"role": "system", "content": _SYSTEM}
        plain, fault = self._try((user,))
        guided, _ = self._try((system, user))
        if guided is not None and not _in_order(guided, (_SYSTEM, _QUESTION)):
            guided = None
        rendered = plain if plain is not None else guided
        if rendered is None:
            raise UserError(f"{self.name}: {fault}; {WAY_OUT}")
        if _QUESTION not in rendered:
            raise UserError(f"{self.name}: leaves out or changes the text of the user; {WAY_OUT}")
        turns = (user, {"role": "assistant", "content": _ANSWER}, {"role": "user", "content": _NEXT})
        dialogue, _ = self._try(turns if plain is not None else (system, *turns))
        if dialogue is not None and not _in_order(dialogue, (_QUESTION, _ANSWER, _NEXT)):
            dialogue = None
        return self._features(rendered, guided, dialogue)

    def _try(self, messages: Chat) -> tuple[str | None, str]:
        """Return the rendering, or None and the fault.

        Raises:
            UserError: the rendering does not end in time.
        """
        try:
            with memory_limit(MEMORY_GIB << 30):
                return self._apply(messages, continues=False), ""
        except TemplateTimeoutError as error:
            raise UserError(f"{self.name}: {error}; {WAY_OUT}") from None
        except TemplateError as error:
            return None, str(error)

    def _features(self, rendered: str, guided: str | None, dialogue: str | None) -> Features:
        specials = special_tokens(self._tokenizer)
        heads = [self._without_start(rendered.partition(_QUESTION)[0])]
        if guided is not None:
            heads.append(self._without_start(guided.partition(_SYSTEM)[0]))
        user_opening, closings = heads[0].strip(), [rendered.partition(_QUESTION)[2].strip()]
        if dialogue is not None:
            head, _, rest = dialogue.partition(_QUESTION)
            to_answer, _, rest = rest.partition(_ANSWER)
            between = rest.partition(_NEXT)[0]
            user_opening = self._without_start(_common_ending(head, between, specials))
            # With a system message in front, the end of the message is common, too.
            user_opening = user_opening.removeprefix(_leading(closings[0], specials) or "").strip()
            closings.append(to_answer.strip())
        texts = [_leading(head, specials) or head.strip() for head in heads]
        openings = [text for text in (*texts, user_opening) if len(text) >= FEWEST_CHARACTERS]
        closings.append(_leading(closings[0], specials) or "")
        return Features(
            takes_system=guided is not None,
            writes_start=bool(self._tokenizer.bos_token) and rendered.startswith(self._tokenizer.bos_token),
            openings=tuple(dict.fromkeys(openings)),
            user_opening=user_opening,
            user_closings=tuple(dict.fromkeys(closing for closing in closings if closing)),
        )

    def _without_start(self, head: str) -> str:
        return head.removeprefix(self._tokenizer.bos_token or "").lstrip()


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """Return the special tokens of a tokenizer: text -> token id."""
    added = {str(token): number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    named = dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True))
    return {text: number for text, number in (named | added).items() if text}


def _leading(text: str, specials: dict[str, int]) -> str | None:
    """Return the longest special token at the beginning of ``text``, or None."""
    found = [token for token in specials if text.startswith(token)]
    return max(found, key=len, default=None)


def _in_order(text: str, parts: Sequence[str]) -> bool:
    places = [text.find(part) for part in parts]
    return -1 not in places and places == sorted(places)


def _common_ending(first: str, second: str, specials: Collection[str]) -> str:
    """Return the longest common ending of two texts that does not begin inside of a special token."""
    pattern = re.compile(f"({'|'.join(map(re.escape, sorted(specials, key=len, reverse=True)))})")
    pieces = [[piece for piece in pattern.split(text) if piece] for text in (first, second)]
    ending = ""
    for one, other in zip(*map(reversed, pieces), strict=False):
        if one != other:
            if one not in specials and other not in specials:
                equal = takewhile(lambda pair: pair[0] == pair[1], zip(reversed(one), reversed(other), strict=False))
                ending = "".join(letter for letter, _ in equal)[::-1] + ending
            break
        ending = one + ending
    return ending
