"""Decoding in which attention to one span of earlier tokens is zero: the instrument of the disruption experiment.

A plain batched loop over a key/value cache. Rows are padded on the left, so that every distance between columns is
one between tokens, as sliding windows want it. Hidden tokens stay in the cache and keep their positions: a zero in
the padding mask takes their columns out before the softmax, and the weights of the others sum to 1 again.

Suffixes: ``B`` rows, ``U`` different prefixes, ``W`` tokens of the longest one, ``C`` columns, ``V`` vocabulary.
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
from attnrl.inference.decode_attention import decoding
from attnrl.inference.token_sampling import sample_token, uniforms, wrapped
from attnrl.types import Completion

PREFILL_TOKENS = 8192  # of one forward, padding included; a longer prefix goes alone


@dataclass(frozen=True)
class HiddenRequest:
    """One continuation to sample that does not see a span of what it continues.

    Attributes:
        prompt: token ids to continue, at least 2.
        hidden: first token of the hidden span, and the first after it; an empty span hides nothing. The last token
            of the prompt is never hidden, since it has to be read to go on.
        unseen_from: tokens from this one on are computed without seeing the span: the end of the span, or later. The
            last token of the prompt and what is sampled never see it.
        max_new_tokens: budget, at least 1.
        seed: decides every random draw, as in :class:`attnrl.types.Request`.

    Raises:
        ValueError: the prompt, the span or the budget will not do.
    """

    prompt: tuple[int, ...]
    hidden: tuple[int, int]
    unseen_from: int
    max_new_tokens: int
    seed: int

    def __post_init__(self) -> None:
        """Check the attributes."""
        start, end = self.hidden
        if len(self.prompt) < 2 or self.max_new_tokens < 1:
            raise ValueError("a prompt needs 2 tokens or more, and a budget of 1 or more")
        if not 0 <= start <= end < len(self.prompt) or self.unseen_from < max(1, end):
            raise ValueError(f"cannot hide {self.hidden} from {self.unseen_from} on in {len(self.prompt)} tokens")

    @property
    def prefix(self) -> tuple[int, ...]:
        """What is computed as always, in one forward."""
        return self.prompt[: min(self.unseen_from, len(self.prompt) - 1)]


class HiddenRows:
    """Requests that are read and continued together, one token of each at a time, from the end of its prefix."""

    def __init__(self, model: PreTrainedModel, requests: Sequence[HiddenRequest], room: int, pad: int) -> None:
        """Compute each different prefix once; at most ``room`` tokens will follow."""
        self.model = model
        device = model.device
        prefixes = [request.prefix for request in requests]
        distinct = list(dict.fromkeys(prefixes))
        index = {prefix: place for place, prefix in enumerate(distinct)}
        self.width = max(map(len, distinct))
        self._inputs = frozenset(inspect.signature(model.forward).parameters)
        padding = [self.width - len(prefix) for prefix in distinct]
        ids_UW = torch.tensor([[pad] * p + list(prefix) for p, prefix in zip(padding, distinct, strict=True)])
        position_UW = torch.arange(self.width) - torch.tensor(padding)[:, None]
        self.cache = self._prefill(ids_UW.to(device), position_UW.to(device))
        self.cache.batch_select_indices(torch.tensor([index[prefix] for prefix in prefixes], device=device))

        start_B = torch.tensor([self.width - len(prefix) for prefix in prefixes])[:, None]
        hidden_B2 = torch.tensor([request.hidden for request in requests]) + start_B
        column_C = torch.arange(self.width + room)
        in_span_BC = (column_C >= hidden_B2[:, :1]) & (column_C < hidden_B2[:, 1:])
        self.visible_BC = ((column_C >= start_B) & ~in_span_BC).to(device)
        self.position_B = torch.tensor([len(prefix) for prefix in prefixes], device=device)
        self.columns = self.width

    def step(self, token_B: Tensor) -> Tensor:
        """Read the next token of each row; returns the logits [B, V] of the one after it."""
        self.columns += 1
        visible = self.visible_BC[:, : self.columns]
        logits_BV = self._forward(token_B[:, None], visible, self.position_B[:, None])
        self.position_B = self.position_B + 1
        return logits_BV

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows only."""
        self.cache.batch_select_indices(rows)
        self.visible_BC = self.visible_BC[rows]
        self.position_B = self.position_B[rows]

    def _prefill(self, ids_UW: Tensor, position_UW: Tensor) -> DynamicCache:
        """Keys and values of the prefixes, a few of which go through the model at a time."""
        parts = []
        size = max(1, PREFILL_TOKENS // self.width)
        for start in range(0, len(ids_UW), size):
            place = slice(start, start + size)
            self.cache = DynamicCache()  # without the config: its sliding layers would forget what shorter rows need
            positions = position_UW[place]
            self._forward(ids_UW[place], positions >= 0, positions.clamp(min=0))
            parts.append(self.cache)
        if len(parts) == 1:
            return parts[0]
        whole = DynamicCache()
        for layer, of_parts in enumerate(zip(*(part.layers for part in parts), strict=True)):
            keys, values = (torch.cat([getattr(part, side) for part in of_parts]) for side in ("keys", "values"))
            whole.update(keys, values, layer)
        return whole

    def _forward(self, ids: Tensor, mask: Tensor, positions: Tensor) -> Tensor:
        optional = {"logits_to_keep": 1} if "logits_to_keep" in self._inputs else {}
        output: Any = self.model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=self.cache,
            use_cache=True,
            **optional,
        )
        logits: Tensor = output.logits[:, -1]
        return logits


def continue_hidden(
    model: PreTrainedModel,
    requests: Sequence[HiddenRequest],
    *,
    eos_token_ids: Collection[int],
    pad_token_id: int,
    temperature: float = 1.0,
    top_p: float = 1.0,
    max_batch: int = 256,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[Completion]:
    """One completion for each request, in order; the draws are those of the ordinary sampler for the same seed.

    Args:
        model: one that :func:`check_hiding` has passed.
        requests: what to continue.
        eos_token_ids: any of these ends a completion.
        pad_token_id: fills the batch; seen by no row.
        temperature: 0 is greedy.
        top_p: in (0, 1].
        max_batch: rows decoded at the same time.
        on_progress: called with the tokens and the completions so far, after each batch.
    """
    completions: dict[int, Completion] = {}
    tokens = 0
    for batch in _batches(requests, max_batch):
        its = [requests[place] for place in batch]
        with decoding(model):
            done = _decode(model, its, set(eos_token_ids), pad_token_id, temperature, top_p)
        completions |= dict(zip(batch, done, strict=True))
        tokens += sum(len(completion.tokens) for completion in done)
        if on_progress is not None:
            on_progress(tokens, len(completions))
    return [completions[place] for place in range(len(requests))]


def _batches(requests: Sequence[HiddenRequest], size: int) -> Iterator[list[int]]:
    """Requests of about equal length together, and those of one prefix beside each other."""
    order = sorted(range(len(requests)), key=lambda place: (len(requests[place].prefix), requests[place].prefix))
    for start in range(0, len(order), size):
        yield order[start : start + size]


_DROP = 4  # rows are dropped when one in so many has finished: dropping copies the cache


def _decode(
    model: PreTrainedModel,
    requests: Sequence[HiddenRequest],
    eos: set[int],
    pad: int,
    temperature: float,
    top_p: float,
) -> list[Completion]:
    device = model.device
    # What is left of a prompt is read token by token, so rows may be at different places of it: there is no gap.
    given = [request.prompt[len(request.prefix) :] for request in requests]
    rows = HiddenRows(
        model, requests, max(len(g) + r.max_new_tokens for g, r in zip(given, requests, strict=True)), pad
    )
    seed_B = torch.tensor([wrapped(request.seed) for request in requests], device=device)
    live = list(range(len(requests)))
    tokens: list[list[int]] = [[] for _ in requests]
    logprobs: list[list[float]] = [[] for _ in requests]
    following = [its[0] for its in given]
    finished: set[int] = set()
    time = 0
    while len(finished) < len(requests):
        logits_BV = rows.step(torch.tensor([following[r] for r in live], device=device))
        counter_B1 = torch.tensor([[len(tokens[r])] for r in live], device=device)
        uniform_B = uniforms(seed_B[live], counter_B1)[:, 0]
        token_B, logprob_B = sample_token(logits_BV, uniform_B, temperature, top_p, 0)
        time += 1
        for r, token, logprob in zip(live, token_B.tolist(), logprob_B.tolist(), strict=True):
            if time < len(given[r]):
                following[r] = given[r][time]
            elif r not in finished:
                tokens[r].append(token)
                logprobs[r].append(logprob)
                following[r] = token
                if token in eos or len(tokens[r]) == requests[r].max_new_tokens:
                    finished.add(r)
        left = [slot for slot, r in enumerate(live) if r not in finished]
        if left and _DROP * (len(live) - len(left)) >= len(live):
            rows.keep(torch.tensor(left, device=device))
            live = [live[slot] for slot in left]
    return [
        Completion(tuple(its), tuple(its_logprobs), "stop" if its[-1] in eos else "length")
        for its, its_logprobs in zip(tokens, logprobs, strict=True)
    ]


_CHECK_LENGTH = 6  # tokens before, in and after the hidden span of the check
_CHECK_TOLERANCE = 1e-3  # of the largest logit


def check_hiding(model: PreTrainedModel) -> None:
    """Make sure that hidden tokens are hidden: whichever they are, the logits after them are the same.

    Raises:
        UserError: they are not, or hiding them would shift the positions of others.
    """
    name = type(model).__name__
    config: Any = model.config.get_text_config(decoder=True)
    if "position_ids" not in inspect.signature(model.forward).parameters or getattr(config, "alibi", False):
        raise UserError(f"model: {name} takes its positions from the attention mask, so no step can be hidden from it")
    generator = torch.Generator().manual_seed(0)
    n = _CHECK_LENGTH
    before, one, other, after = torch.randint(config.vocab_size, (4, n), generator=generator).tolist()
    requests = [HiddenRequest((*before, *span, *after), (n, 2 * n), 2 * n, 1, 0) for span in (one, other)]
    with decoding(model):
        rows = HiddenRows(model, requests, n, pad=before[0])
        for token in after:
            logits_BV = rows.step(torch.tensor([token, token], device=model.device)).float()
    difference = float((logits_BV[0] - logits_BV[1]).abs().max())
    if not difference <= _CHECK_TOLERANCE * float(logits_BV.abs().max()):  # also if it is not a number
        raise UserError(
            f"model: {name} does not heed the attention mask (hidden tokens change its logits by {difference:.2g}), "
            "so no step can be hidden from it"
        )
