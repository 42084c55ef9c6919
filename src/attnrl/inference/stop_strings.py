"""Stop strings: find the token that ends a response; every sampler uses the same check."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

from attnrl.tokenization import UNFINISHED


class StopStrings:
    """Finds the first token that completes a stop string in the text of a response.

    Only the last tokens of a response are decoded, and only after a token that can complete a stop string.
    """

    def __init__(self, stop: Sequence[str], decode: Callable[[Sequence[int]], str] | None) -> None:
        """Prepare the check.

        Args:
            stop: the stop strings; without stop strings no token is decoded.
            decode: returns the text of token ids, special tokens included; needed with stop strings only.

        Raises:
            ValueError: stop strings without ``decode``.
        """
        if stop and decode is None:
            raise ValueError("decode must be given with stop strings")
        self.stop = tuple(stop)
        self._decode = decode or (lambda tokens: "")
        self._piece = cache(lambda token: self._decode([token]))
        self._last_characters = {text[-1] for text in stop}
        # A character has at most four byte tokens. The other tokens are decoded because the first characters of a cut
        # text may differ: a leading space is lost, a character is incomplete.
        self._window = 4 * max(map(len, stop), default=0) + 16

    def kept(self, prompt: Sequence[int], response_tokens: int) -> tuple[int, ...]:
        """Return the tokens of a prompt in which a stop string may begin: of the last ``response_tokens`` tokens."""
        return tuple(prompt[len(prompt) - min(response_tokens, self._window) :])

    def end(self, kept: Sequence[int], sampled: Sequence[int], new: Sequence[int]) -> int | None:
        """Return the number of ``new`` tokens up to the end of the first stop string; None without a stop string.

        Args:
            kept: result of :meth:`kept`.
            sampled: tokens sampled before, which complete no stop string.
            new: tokens sampled after ``sampled``.
        """
        if not self.stop:
            return None
        before = [*kept, *sampled[-self._window :]]
        for count, token in enumerate(new, 1):
            if self._can_complete(token) and self._holds_stop_string([*before, *new[:count]][-self._window :]):
                return count
        return None

    def _can_complete(self, token: int) -> bool:
        """Return False if the token's text holds no last character of a stop string.

        A token alone may lose a leading space or be a part of a character; such tokens return True.
        """
        piece = self._piece(token)
        if " " in self._last_characters or not piece or UNFINISHED in piece:
            return True
        return not self._last_characters.isdisjoint(piece)

    def _holds_stop_string(self, tokens: Sequence[int]) -> bool:
        text = self._decode(tokens)
        return any(stop in text for stop in self.stop)
