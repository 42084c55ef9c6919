"""Decoding with zero attention to a hidden span of earlier tokens.

A batched decoding loop over a KV cache. Rows are left-padded, so distances between columns equal distances between
tokens, as sliding-window attention requires. Hidden tokens stay in the cache and keep their positions: a zero in the
padding mask removes the hidden columns before the softmax, and the remaining attention weights sum to 1.

Shape letters: see CONTRIBUTING.md.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache

from attnrl.errors import UserError
from attnrl.inference.base import UnsupportedModelError
from attnrl.inference.batch import cached_layers
from attnrl.inference.decode_attention import decoding
from attnrl.inference.model_call import ModelCall
from attnrl.inference.stop_strings import StopStrings
from attnrl.inference.token_sampling import sample_token, uniforms, wrapped
from attnrl.types import Completion, FinishReason, SamplingParams

PREFILL_TOKENS = 8192  # largest number of tokens per prefill forward, padding included; a longer prefix runs alone


@dataclass(frozen=True)
class HiddenRequest:
    """One continuation to sample without attention to a hidden span of the prompt.

    Attributes:
        prompt: token ids to continue, at least 2.
        hidden: start and end (exclusive) of the hidden span; an empty span hides nothing. The last token of the prompt
            cannot be hidden.
        unseen_from: index of the first token computed without attention to the span, at least the end of the span.
            The last token of the prompt and all sampled tokens never attend to the span.
        max_new_tokens: token budget, at least 1.
        seed: seed of all random draws, as in :class:`attnrl.types.Request`.
        response_tokens: number of last tokens of ``prompt`` that belong to the response.

    Raises:
        ValueError: an invalid prompt, span or budget.
    """

    prompt: tuple[int, ...]
    hidden: tuple[int, int]
    unseen_from: int
    max_new_tokens: int
    seed: int
    response_tokens: int = 0

    def __post_init__(self) -> None:
        start, end = self.hidden
        if len(self.prompt) < 2 or self.max_new_tokens < 1:
            raise ValueError("a prompt needs 2 tokens or more, and a budget of 1 or more")
        if not 0 <= start <= end < len(self.prompt) or self.unseen_from < max(1, end):
            raise ValueError(f"cannot hide {self.hidden} from {self.unseen_from} on in {len(self.prompt)} tokens")

    @property
    def prefix(self) -> tuple[int, ...]:
        """Return the tokens computed with the span visible, in one prefill forward."""
        return self.prompt[: min(self.unseen_from, len(self.prompt) - 1)]


class HiddenRows:
    """A batch of requests decoded token by token, each from the end of the request's prefix."""

    def __init__(self, model: PreTrainedModel, requests: Sequence[HiddenRequest], room: int, pad: int) -> None:
        """Prefill each distinct prefix once; ``room`` is the largest number of later tokens, ``pad`` the pad token."""
        self._call = ModelCall(model)
        device = model.device
        prefixes = [request.prefix for request in requests]
        distinct = list(dict.fromkeys(prefixes))
        index = {prefix: place for place, prefix in enumerate(distinct)}
        self.width = max(map(len, distinct))
        padding = [self.width - len(prefix) for prefix in distinct]
        ids_UP = torch.tensor([[pad] * p + list(prefix) for p, prefix in zip(padding, distinct, strict=True)])
        position_UP = torch.arange(self.width) - torch.tensor(padding)[:, None]
        self.cache = self._prefill(ids_UP.to(device), position_UP.to(device))
        self.cache.batch_select_indices(torch.tensor([index[prefix] for prefix in prefixes], device=device))

        start_B = torch.tensor([self.width - len(prefix) for prefix in prefixes])[:, None]
        hidden_B2 = torch.tensor([request.hidden for request in requests]) + start_B
        column_C = torch.arange(self.width + room)
        in_span_BC = (column_C >= hidden_B2[:, :1]) & (column_C < hidden_B2[:, 1:])
        self.visible_BC = ((column_C >= start_B) & ~in_span_BC).to(device)
        self.position_B = torch.tensor([len(prefix) for prefix in prefixes], device=device)
        self.columns = self.width

    def step(self, token_B: Tensor) -> Tensor:
        """Feed the next token [B] of each row, and return the logits [B, V] of the token after."""
        self.columns += 1
        visible = self.visible_BC[:, : self.columns]
        logits_BV = self._call(token_B[:, None], self.position_B[:, None], self.cache, visible)
        self.position_B = self.position_B + 1
        return logits_BV

    def keep(self, rows: Tensor) -> None:
        """Keep only ``rows`` (indices) in the batch."""
        self.cache.batch_select_indices(rows)
        self.visible_BC = self.visible_BC[rows]
        self.position_B = self.position_B[rows]

    def _prefill(self, ids_UP: Tensor, position_UP: Tensor) -> DynamicCache:
        """Return keys and values of the prefixes, prefilled in parts of at most :data:`PREFILL_TOKENS` tokens."""
        parts = []
        size = max(1, PREFILL_TOKENS // self.width)
        for start in range(0, len(ids_UP), size):
            place = slice(start, start + size)
            self.cache = DynamicCache()  # without a config: sliding layers would drop keys that shorter rows need
            positions = position_UP[place]
            self._call(ids_UP[place], positions.clamp(min=0), self.cache, positions >= 0)
            parts.append(self.cache)
        if len(parts) == 1:
            return parts[0]
        whole = DynamicCache()
        for layer, of_parts in enumerate(zip(*(part.layers for part in parts), strict=True)):
            keys, values = (torch.cat([getattr(part, side) for part in of_parts]) for side in ("keys", "values"))
            whole.update(keys, values, layer)
        return whole


def continue_hidden(
    model: PreTrainedModel,
    requests: Sequence[HiddenRequest],
    params: SamplingParams,
    *,
    eos_token_ids: Collection[int],
    pad_token_id: int,
    decode: Callable[[Sequence[int]], str] | None = None,
    max_batch: int = 256,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[Completion]:
    """Return one completion per request, in order, with the random draws of the ordinary sampler for the same seed.

    Args:
        model: a model accepted by :func:`check_hiding`.
        requests: the requests.
        params: distribution and stop strings.
        eos_token_ids: token ids that end a completion.
        pad_token_id: padding token of the batch.
        decode: returns the text of token ids; needed with stop strings only.
        max_batch: number of rows decoded at the same time.
        on_progress: called after each batch with the number of sampled tokens and of finished completions.
    """
    completions: dict[int, Completion] = {}
    stop_strings = StopStrings(params.stop, decode)
    tokens = 0
    for batch in _batches(requests, max_batch):
        with decoding(model):
            rows = [requests[place] for place in batch]
            done = _decode(model, rows, params, set(eos_token_ids), pad_token_id, stop_strings)
        completions |= dict(zip(batch, done, strict=True))
        tokens += sum(len(completion.tokens) for completion in done)
        if on_progress is not None:
            on_progress(tokens, len(completions))
    return [completions[place] for place in range(len(requests))]


def _batches(requests: Sequence[HiddenRequest], size: int) -> Iterator[list[int]]:
    """Yield batches of request indices, sorted by prefix length and prefix."""
    order = sorted(range(len(requests)), key=lambda place: (len(requests[place].prefix), requests[place].prefix))
    for start in range(0, len(order), size):
        yield order[start : start + size]


_DROP = 4  # finished rows are dropped when a quarter has finished: dropping copies the cache


def _decode(
    model: PreTrainedModel,
    requests: Sequence[HiddenRequest],
    params: SamplingParams,
    eos: set[int],
    pad: int,
    stop_strings: StopStrings,
) -> list[Completion]:
    device = model.device
    # The rest of each prompt is fed token by token, so rows may be at different places of their prompts.
    given = [request.prompt[len(request.prefix) :] for request in requests]
    rows = HiddenRows(
        model, requests, max(len(g) + r.max_new_tokens for g, r in zip(given, requests, strict=True)), pad
    )
    seed_B = torch.tensor([wrapped(request.seed) for request in requests], device=device)
    live = list(range(len(requests)))
    tokens: list[list[int]] = [[] for _ in requests]
    logprobs: list[list[float]] = [[] for _ in requests]
    following = [rest[0] for rest in given]
    kept = [stop_strings.kept(request.prompt, request.response_tokens) for request in requests]
    finished: dict[int, FinishReason] = {}
    time = 0
    while len(finished) < len(requests):
        logits_BV = rows.step(torch.tensor([following[r] for r in live], device=device))
        counter_B1 = torch.tensor([[len(tokens[r])] for r in live], device=device)
        uniform_B = uniforms(seed_B[live], counter_B1)[:, 0]
        token_B, logprob_B = sample_token(logits_BV, uniform_B, params)
        time += 1
        for r, token, logprob in zip(live, token_B.tolist(), logprob_B.tolist(), strict=True):
            if time < len(given[r]):
                following[r] = given[r][time]
            elif r not in finished:
                stopped = token in eos or stop_strings.end(kept[r], tokens[r], [token]) is not None
                tokens[r].append(token)
                logprobs[r].append(logprob)
                following[r] = token
                if stopped or len(tokens[r]) == requests[r].max_new_tokens:
                    finished[r] = "stop" if stopped else "length"
        left = [slot for slot, r in enumerate(live) if r not in finished]
        if left and _DROP * (len(live) - len(left)) >= len(live):
            rows.keep(torch.tensor(left, device=device))
            live = [live[slot] for slot in left]
    return [
        Completion(
            tuple(tokens[r]), tuple(logprobs[r]), finished[r], finished[r] == "stop" and tokens[r][-1] not in eos
        )
        for r in range(len(requests))
    ]


_CHECK_LENGTH = 6  # tokens before, in and after the hidden span of the check
_CHECK_TOLERANCE = 1e-3  # relative to the largest logit


def check_hiding(model: PreTrainedModel) -> None:
    """Check that the model's logits do not depend on hidden tokens.

    Raises:
        UserError: the logits depend on hidden tokens, the model derives positions from the attention mask, or a layer
            caches a state beside keys and values.
    """
    name = type(model).__name__
    config: Any = model.config.get_text_config(decoder=True)
    try:
        cached_layers(model)
    except UnsupportedModelError:
        raise UserError(f"model: {name} caches a state beside keys and values, so no step can be hidden") from None
    if "position_ids" not in inspect.signature(model.forward).parameters or getattr(config, "alibi", False):
        raise UserError(f"model: {name} derives positions from the attention mask, so no step can be hidden")
    generator = torch.Generator().manual_seed(0)
    n = _CHECK_LENGTH
    before, one, other, after = torch.randint(config.vocab_size, (4, n), generator=generator).tolist()
    requests = [HiddenRequest((*before, *span, *after), (n, 2 * n), 2 * n, 1, 0) for span in (one, other)]
    with decoding(model):
        rows = HiddenRows(model, requests, n, pad=before[0])
        for token in after:
            logits_BV = rows.step(torch.tensor([token, token], device=model.device)).float()
    difference = float((logits_BV[0] - logits_BV[1]).abs().max())
    if not difference <= _CHECK_TOLERANCE * float(logits_BV.abs().max()):  # also for NaN
        raise UserError(
            f"model: {name} ignores the attention mask (hidden tokens change the logits by {difference:.2g}), "
            "so no step can be hidden"
        )
