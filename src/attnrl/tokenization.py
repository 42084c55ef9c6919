"""Convert between text and token ids with any transformers tokenizer, and split responses into steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

from transformers import GenerationConfig, PreTrainedTokenizerBase

from attnrl.errors import UserError
from attnrl.method.steps import Steps, split_steps

UNFINISHED = "\ufffd"  # decoded from an incomplete UTF-8 character


def decode(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int]) -> str:
    """Return the text of ``tokens``, with special tokens and without clean-up of spaces."""
    return cast(str, tokenizer.decode(list(tokens), skip_special_tokens=False, clean_up_tokenization_spaces=False))


def token_pieces(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int]) -> list[str]:
    """Return the text added by each token; the pieces join to the text of all tokens.

    A token that ends inside a character adds ``""``; the token that completes the character adds the character. The
    last token adds the rest of the text.
    """
    piece_of = {token: decode(tokenizer, [token]) for token in set(tokens)}
    pieces = [piece_of[token] for token in tokens]
    if "".join(pieces) == decode(tokenizer, tokens):
        return pieces
    # Tokens whose text depends on their neighbours: decode growing windows, each opened one piece back.
    pieces = []
    start = done = 0
    for end in range(1, len(tokens) + 1):
        before = decode(tokenizer, tokens[start:done])
        text = decode(tokenizer, tokens[start:end])
        finished = len(text) > len(before) and (end == len(tokens) or not text.endswith(UNFINISHED))
        pieces.append(text[len(before) :] if finished else "")
        if finished:
            start, done = done, end
    return pieces


def response_steps(
    tokenizer: PreTrainedTokenizerBase,
    tokens: Sequence[int],
    *,
    ended: bool,
    split: Callable[[Sequence[str]], Steps] = split_steps,
) -> Steps:
    """Split a sampled response into steps.

    Args:
        tokenizer: the model's tokenizer.
        tokens: token ids of the response.
        ended: the last token is an end-of-sequence token.
        split: the splitter with its settings (``method.steps``).

    Raises:
        UserError: the splitter returns steps of another number of tokens.
    """
    pieces = token_pieces(tokenizer, tokens)
    if ended:
        pieces[-1] = ""  # the end-of-sequence token has no text and makes no step
    steps = split(pieces)
    if steps.length != len(tokens):
        raise UserError(f"method.steps.splitter: steps of {steps.length} tokens for a response of {len(tokens)} tokens")
    return steps


def step_texts(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int], steps: Steps) -> list[str]:
    """Return the text of each step of a response."""
    return [decode(tokenizer, tokens[start:end]) for start, end in steps.ranges()]


def end_of_sequence_ids(generation: GenerationConfig | None, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the end-of-sequence token ids of the tokenizer and of the model's generation config."""
    declared = generation.eos_token_id if generation is not None else None
    more = declared if isinstance(declared, list) else [declared]
    return sorted({token for token in (tokenizer.eos_token_id, *more) if token is not None})
