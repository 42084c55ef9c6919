"""Token ids of rendered prompts: start tokens, and special tokens of the problem's text as plain text."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Sequence

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from attnrl.errors import UserError, one_line
from attnrl.prompts.template import special_tokens
from attnrl.tokenization import decode

# Private-use characters: no normalizer changes these characters, and no text has a reason for them.
_HIDDEN, _RENAMED = "\ue000attnrl-text-{}\ue001", "\ue000attnrl-token-{}\ue001"
_PRIVATE = re.compile("\ue000attnrl-[a-z]+-[0-9]+\ue001")


class PromptEncoder:
    """Encodes rendered prompts with a tokenizer.

    Attributes:
        control_tokens: special tokens, and the role markers of the chat template among the other added tokens.
        start_ids: ids that the tokenizer puts before plain text; mostly the start token, or none.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, markers: Collection[str], *, escapes: bool) -> None:
        """``markers`` are texts of the chat template; with ``escapes``, :meth:`hide` may be used.

        Raises:
            UserError: the tokenizer cannot escape special tokens.
        """
        self._tokenizer = tokenizer
        added = [str(token) for token in tokenizer.added_tokens_decoder.values()]
        roles = [token for token in added if any(token in marker for marker in markers)]
        self.control_tokens = tuple(sorted({*special_tokens(tokenizer), *roles}, key=len, reverse=True))
        self._pattern = re.compile("|".join(map(re.escape, self.control_tokens)) or r"(?!)")
        self.start_ids = _start_ids(tokenizer)
        self._escaping = _EscapingTokenizer(tokenizer, self.control_tokens) if escapes else None

    def tokens_in(self, text: str) -> list[str]:
        """Return the control tokens written in ``text``, without duplicates."""
        return list(dict.fromkeys(self._pattern.findall(text)))

    def hide(self, text: str, where: str) -> str:
        """Return ``text`` with a placeholder for each control token; :meth:`encode` puts the plain text back.

        Raises:
            UserError: the text holds a placeholder already; names ``where``.
        """
        if _PRIVATE.search(text):
            raise UserError(f"{where}: special_tokens=escape: the text holds a placeholder of attnrl")
        return self._pattern.sub(lambda found: _HIDDEN.format(self.control_tokens.index(found[0])), text)

    def reveal(self, text: str) -> str:
        """Return ``text`` with the control tokens in place of the placeholders of :meth:`hide`."""
        for number, token in enumerate(self.control_tokens):
            text = text.replace(_HIDDEN.format(number), token)
        return text

    def encode(self, text: str, where: str, start: tuple[int, ...] = ()) -> tuple[int, ...]:
        """Return the token ids of a rendered prompt; the start token never stands twice.

        Args:
            text: the prompt, possibly with placeholders of :meth:`hide`.
            where: place of the problem, for messages.
            start: ids to put first, unless the text begins with the same ids.

        Raises:
            UserError: the tokenizer fails, or cannot write a special token as plain text.
        """
        try:
            hidden = self._escaping is not None and _PRIVATE.search(text) is not None
            ids = self._encode_hidden(text, where) if hidden else self._plain_ids(text)
        except Exception as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"{where}: the tokenizer fails ({type(error).__name__}: {one_line(error)})") from None
        if tuple(ids[: len(start)]) != start:
            ids = [*start, *ids]
        token = self._tokenizer.bos_token_id
        while token is not None and ids[:2] == [token, token]:
            ids = ids[1:]
        return tuple(ids)

    def _plain_ids(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def _encode_hidden(self, text: str, where: str) -> list[int]:
        """Encode with the copy of the tokenizer, and check text and number of the control tokens."""
        assert self._escaping is not None
        ids, written = self._escaping.encode(text, self._pattern, self.reveal)
        controls = {self._tokenizer.convert_tokens_to_ids(token) for token in self.control_tokens}
        as_text = decode(self._tokenizer, ids)
        expected = decode(self._tokenizer, self._plain_ids(self.reveal(text)))
        if sum(number in controls for number in ids) != written or as_text.split() != expected.split():
            raise UserError(
                f"{where}: special_tokens=escape: the tokenizer has no plain tokens for the text of its special tokens"
            )
        return ids


class _EscapingTokenizer:
    """A copy of a tokenizer in which the control tokens have private names: their text is plain text."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, control_tokens: Sequence[str]) -> None:
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if not isinstance(backend, Tokenizer):
            raise UserError("special_tokens=escape: the tokenizer has no tokenizer.json, which escaping needs")
        self._control_tokens = control_tokens
        fields = json.loads(backend.to_str()) | {"post_processor": None, "truncation": None, "padding": None}
        number_of = {token: number for number, token in enumerate(control_tokens)}
        original: dict[str, int] = {}
        for token in fields["added_tokens"]:
            if token["content"] in number_of:
                renamed = _RENAMED.format(number_of[token["content"]])
                original[renamed], token["content"] = token["id"], renamed
            else:
                original[token["content"]] = token["id"]
        self._copy = Tokenizer.from_str(json.dumps(fields))
        # The copy numbers the renamed tokens anew.
        self._original_id = {self._copy.token_to_id(content): number for content, number in original.items()}

    def encode(self, text: str, pattern: re.Pattern[str], reveal: Callable[[str], str]) -> tuple[list[int], int]:
        """Return the ids, and the number of control tokens that the template has written."""
        renamed, written = pattern.subn(lambda found: _RENAMED.format(self._control_tokens.index(found[0])), text)
        ids = self._copy.encode(reveal(renamed), add_special_tokens=False).ids
        return [self._original_id.get(number, number) for number in ids], written


def _start_ids(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Return the ids that the tokenizer puts before the text ``a``."""
    try:
        with_special = tokenizer("a")["input_ids"]
        plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    except Exception as error:
        raise UserError(f"model: the tokenizer fails ({type(error).__name__}: {one_line(error)})") from None
    if not plain:
        return tuple(with_special[:1]) if with_special[:1] == [tokenizer.bos_token_id] else ()
    for start in range(len(with_special) - len(plain) + 1):
        if with_special[start : start + len(plain)] == plain:
            return tuple(with_special[:start])
    return ()
