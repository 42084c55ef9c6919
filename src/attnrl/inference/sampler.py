"""Batched decoding of any transformers decoder, built for reinforcement learning's many short-lived rows.

:class:`LocalSampler` implements :class:`attnrl.types.Sampler`. Four things make it fast where
``model.generate`` is general:

- **A cache written in place** (:mod:`attnrl.inference.kv_cache`), in which a finished row costs nothing: it is dropped
  at once, a waiting request takes its slot, and attention reads only live rows and columns.
- **One prefill for each distinct prompt.** A prompt that begins another prompt (a branch point on the trunk of
  another branch) costs nothing either. Prompts are prefilled up to their *last* token, which then is the first
  decoding step's input, so that all requests, however they came by their prefix, start in the same way.
- **A decoding attention** that works on grouped heads without repeating keys, with one mask for all layers.
- **Segments**: decoding runs many steps between two looks at the host's bookkeeping.

Randomness: the draw for a request's ``i``-th token is ``uniforms(seed, i)``, a counter-based hash, inverted
through the cumulative distribution in token-id order. It depends on nothing else, so a request yields the same
tokens in any batch, in any order, on any device, as far as the logits are numerically the same.

Suffixes: ``R`` requests, ``B`` live rows, ``V`` vocabulary, ``K`` key/value heads, ``G`` query heads for each of
them, ``C`` cache columns, ``T`` prompt tokens, ``D`` head dimension, ``S`` steps of a segment.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from attnrl.inference.decode_attention import DECODE_ATTENTION, decoding
from attnrl.inference.kv_cache import DecodeCache, KeysValues
from attnrl.inference.prefixes import carriers, shared_prefixes, worth_grouping
from attnrl.inference.token_sampling import sample_token, uniforms, wrapped
from attnrl.types import Completion, FinishReason, Request

ProgressHook = Callable[[int, int], None]
"""Called with (tokens sampled, requests finished) so far in this ``generate``, now and then."""


class UnsupportedModelError(ValueError):
    """The model keeps a state other than keys and values, so its rows cannot be cached, moved and dropped."""


@dataclass
class SamplerStats:
    """What the last ``generate`` did.

    Attributes:
        prompt_tokens: tokens of all prompts.
        prefilled_tokens: prompt tokens that really went through the model (shared prefixes once), padding not
            counted. The last token of a prompt is decoded, not prefilled.
        completion_tokens: tokens returned.
        decoded_tokens: row-steps of decoding; what exceeds ``completion_tokens`` was waste.
        steps: decoding steps.
    """

    prompt_tokens: int = 0
    prefilled_tokens: int = 0
    completion_tokens: int = 0
    decoded_tokens: int = 0
    steps: int = 0


class LocalSampler:
    """Draws completions from a transformers causal LM in this process; see the module's docstring."""

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        eos_token_ids: Collection[int],
        pad_token_id: int,
        temperature: float = 1.0,
        top_p: float = 1.0,
        top_k: int = 0,
        max_batch: int = 256,
        prefill_tokens: int = 8192,
        share_attention: bool = True,
        on_progress: ProgressHook | None = None,
    ) -> None:
        """Check the settings and the model; nothing is copied, the model's current weights are always used.

        Args:
            model: a causal LM; its device and dtype are used as they are.
            eos_token_ids: any of these ends a completion; may be empty.
            pad_token_id: fills prefill batches; never seen by any row.
            temperature: at least 0; 0 is greedy.
            top_p: in (0, 1].
            top_k: at least 0; 0 is off.
            max_batch: rows decoded at the same time; further requests wait for a free slot.
            prefill_tokens: tokens of one prefill batch, padding included (a longer prompt goes alone).
            share_attention: read the keys and values of a common prompt once per group of rows, where that is
                possible (CPU, full attention, sdpa) and pays; the numbers are the same up to rounding.
            on_progress: called between segments.

        Raises:
            UnsupportedModelError: the model is stateful (linear attention, SSM), an encoder-decoder, or keeps
                another kind of cache.
            ValueError: a setting is out of range; it is named.
        """
        check_range("temperature", temperature, temperature >= 0.0 and math.isfinite(temperature), ">= 0")
        check_range("top_p", top_p, 0.0 < top_p <= 1.0, "in (0, 1]")
        check_range("top_k", top_k, top_k >= 0, ">= 0")
        check_range("max_batch", max_batch, max_batch >= 1, ">= 1")
        check_range("prefill_tokens", prefill_tokens, prefill_tokens >= 1, ">= 1")
        self.model = model
        self.eos_token_ids = tuple(eos_token_ids)
        self.pad_token_id = pad_token_id
        self.temperature = float(temperature)
        self.top_p = float(top_p)
        self.top_k = top_k
        self.max_batch = max_batch
        self.prefill_tokens = prefill_tokens
        self.share_attention = share_attention
        self.on_progress = on_progress
        self.stats = SamplerStats()
        self._layers, self._windowed = _cached_layers(model)
        self._inputs = frozenset(inspect.signature(model.forward).parameters)

    def generate(
        self,
        requests: Sequence[Request],
        *,
        on_completion: Callable[[int, Completion], None] | None = None,
        should_stop: Callable[[Collection[int]], bool] | None = None,
    ) -> list[Completion]:
        """Return one completion per request, in order; see :meth:`attnrl.types.Sampler.generate`.

        Requests that finish are told, and ``should_stop`` is asked, between segments.

        Raises:
            ValueError: a request has an empty prompt, a budget below 1, or does not fit the model's positions;
                its index is named. Nothing has been sampled then.
            FloatingPointError: the model's logits are not finite.
        """
        check_requests(requests, _max_positions(self.model))
        self.stats = SamplerStats(prompt_tokens=sum(len(request.prompt) for request in requests))
        if not requests:
            return []
        with decoding(self.model):
            return _Run(self, requests, on_completion).finish(should_stop)

    def sync(self) -> None:
        """Nothing to do: it decodes with the very model that is trained."""


class _Run:
    """One call of ``generate``: the live batch, and what its requests have so far."""

    def __init__(
        self,
        sampler: LocalSampler,
        requests: Sequence[Request],
        on_completion: Callable[[int, Completion], None] | None,
    ) -> None:
        self.sampler = sampler
        self.on_completion = on_completion
        self.model = sampler.model
        self.stats = sampler.stats
        self.requests = requests
        self.device = next(self.model.parameters()).device
        self.max_positions = _max_positions(self.model)
        self.cache = DecodeCache(sampler._layers)
        self.eos_E = torch.tensor(sampler.eos_token_ids, dtype=torch.long, device=self.device)
        # The longest first: a long request admitted last would decode alone. The order never changes a result.
        self.waiting = sorted(range(len(requests)), key=lambda r: requests[r].max_new_tokens, reverse=True)[::-1]
        self.tokens: list[list[int]] = [[] for _ in requests]
        self.logprobs: list[list[float]] = [[] for _ in requests]
        self.stopped = [False] * len(requests)
        self.unfinished = set(range(len(requests)))
        # Per slot, on the host: the request there, the first cache column of its own, and its group.
        self.slots: list[int] = []
        self.starts: list[int] = []
        self.group_of: list[int] = []
        self.group_lengths: list[int] = []
        self.regrouped = False
        self.token_B = torch.empty(0, dtype=torch.long, device=self.device)
        # Ours is the attention of all layers, and all see the same columns.
        config = self.model.config.get_text_config(decoder=True)
        self.uniform = config._attn_implementation == DECODE_ATTENTION and not sampler._windowed
        self.grouping = (
            sampler.share_attention
            and self.uniform
            and self.device.type == "cpu"
            and worth_grouping([request.prompt[:-1] for request in requests])
        )

    def finish(self, should_stop: Callable[[Collection[int]], bool] | None) -> list[Completion]:
        """Decode until every request is done, or ``should_stop`` are."""
        while self.slots or self.waiting:
            free = self.sampler.max_batch - len(self.slots)
            # A few free slots are worth a prefill only when there are enough of them to share its overhead.
            if self.waiting and (not self.slots or 8 * free >= self.sampler.max_batch):
                self._admit([self.waiting.pop() for _ in range(min(free, len(self.waiting)))])
            self._collect(*self._segment())
            if self.sampler.on_progress is not None:
                self.sampler.on_progress(sum(map(len, self.tokens)), len(self.requests) - len(self.unfinished))
            if self.unfinished and should_stop is not None and should_stop(self.unfinished):
                break
        return [self._completion(r) for r in range(len(self.requests))]

    def _completion(self, r: int) -> Completion:
        ended: FinishReason = "stop" if self.stopped[r] else "length"
        return Completion(
            tuple(self.tokens[r]), tuple(self.logprobs[r]), "unfinished" if r in self.unfinished else ended
        )

    # Admission

    def _admit(self, arrivals: list[int]) -> None:
        """Prefill the prompts of the requests ``arrivals`` and append them to the live batch."""
        prefixes = [self.requests[r].prompt[:-1] for r in arrivals]
        groups = shared_prefixes(prefixes) if self.grouping else [(0, list(range(len(arrivals))))]
        shared = {i: length for length, members in groups for i in members}
        own = [len(prefix) - shared[i] for i, prefix in enumerate(prefixes)]
        users: dict[tuple[int, ...], dict[int, list[int]]] = {}  # prefix -> its shared length -> arrivals
        for i, prefix in enumerate(prefixes):
            users.setdefault(prefix, {}).setdefault(shared[i], []).append(i)

        first_slot, columns = len(self.slots), max(own)
        shift = max(0, columns - self.cache.columns)
        sources: dict[tuple[int, ...], tuple[list[KeysValues], int]] = {}
        longest = carriers(users)
        for batch in _microbatches(sorted(longest, key=len), self.sampler.prefill_tokens):
            prefill = self._prefill(batch)
            if not sources:
                self.cache.extend(len(arrivals), columns, prefill)
            for row, carrier in enumerate(batch):
                for prefix in longest[carrier]:
                    sources[prefix] = (prefill, row)
                    for length, members in users[prefix].items():
                        slots = [first_slot + i for i in members]
                        self.cache.fill(slots, prefill, row, slice(length, len(prefix)))
        if self.grouping:
            self.cache.add_groups([(*sources[prefixes[members[0]]], length) for length, members in groups])
            group = {i: g for g, (_, members) in enumerate(groups, len(self.group_lengths)) for i in members}
            self.group_of += [group[i] for i in range(len(arrivals))]
            self.group_lengths += [length for length, _ in groups]
            self.regrouped = True
        self.slots += arrivals
        self.starts = [start + shift for start in self.starts] + [self.cache.columns - n for n in own]
        self.token_B = torch.cat([self.token_B, self._tensor([self.requests[r].prompt[-1] for r in arrivals])])

    def _prefill(self, prompts: list[tuple[int, ...]]) -> list[KeysValues]:
        """Keys and values [B, K, T, D] of every layer for right-padded prompts.

        Under a causal mask a row never sees the padding to its right, so no padding mask is needed. A model whose
        prompts are all one token long (nothing to prefill) still runs once, on padding, to learn its cache's shapes.
        """
        width = max(1, max(map(len, prompts)))
        pad = self.sampler.pad_token_id
        ids_BT = torch.tensor([[*prompt, *[pad] * (width - len(prompt))] for prompt in prompts], device=self.device)
        cache = DynamicCache()  # without the config: its sliding layers would forget what shorter rows need
        optional = {"logits_to_keep": 1, "position_ids": torch.arange(width, device=self.device)[None]}
        self.model(input_ids=ids_BT, past_key_values=cache, use_cache=True, **self._accepted(optional))
        self.stats.prefilled_tokens += sum(map(len, prompts))
        return [(layer.keys, layer.values) for layer in cache.layers]

    def _accepted(self, optional: dict[str, Any]) -> dict[str, Any]:
        """The inputs that this model's forward knows by name."""
        return {name: value for name, value in optional.items() if name in self.sampler._inputs}

    # Decoding

    def _segment(self) -> tuple[Tensor, Tensor]:
        """Decode a fixed set of rows for up to ``_SEGMENT`` steps; finished rows run on, their tokens unused.

        The segment ends early when finished rows have cost as much as a turnover does.

        Returns:
            sampled tokens and their log-probabilities, each [steps, B].
        """
        sampler, cache = self.sampler, self.cache
        rows = len(self.slots)
        if self.regrouped:
            cache.set_groups(self.group_of, self.group_lengths)
            self.regrouped = False
        done_B = self._tensor([len(self.tokens[r]) for r in self.slots])
        budget_B = self._tensor([self.requests[r].max_new_tokens for r in self.slots])
        seeds_B = self._tensor([wrapped(self.requests[r].seed) for r in self.slots])
        position_B = self._tensor([len(self.requests[r].prompt) - 1 for r in self.slots]) + done_B
        left_B = budget_B - done_B
        steps = min(_SEGMENT, int(left_B.max()))
        if self.max_positions is not None:
            steps = min(steps, self.max_positions - int(position_B.max()))
        uniform_SB = uniforms(seeds_B, done_B[:, None] + torch.arange(steps, device=self.device)).T.contiguous()
        mask = self._mask()
        stopped_B = torch.zeros(rows, dtype=torch.bool, device=self.device)
        look = 1 if self.device.type == "cpu" else _LOOK_EVERY
        tokens: list[Tensor] = []
        logprobs: list[Tensor] = []
        wasted = 0
        for step in range(steps):
            optional = {"position_ids": position_B[:, None], "logits_to_keep": 1}
            if cache.columns == cache.capacity:
                cache.grow()
                mask = self._mask()
            mask[..., cache.columns] = 0.0 if mask.is_floating_point() else True
            logits_BV = self.model(
                input_ids=self.token_B[:, None],
                attention_mask=mask,
                past_key_values=cache,
                use_cache=True,
                **self._accepted(optional),
            ).logits[:, -1]
            if any(layer.unread for layer in cache.layers):
                raise UnsupportedModelError(
                    f"{type(self.model).__name__} does not hand its cached keys to the attention function as they "
                    "are: pass share_attention=False"
                )
            self.token_B, logprob_B = sample_token(
                logits_BV, uniform_SB[step], sampler.temperature, sampler.top_p, sampler.top_k
            )
            tokens.append(self.token_B)
            logprobs.append(logprob_B)
            position_B += 1
            stopped_B |= (self.token_B[:, None] == self.eos_E).any(1)
            if (step + 1) % look == 0:
                wasted += look * int((stopped_B | (left_B <= step + 1)).sum())
                if wasted * _TURNOVER >= rows:
                    break
        self.stats.steps += len(tokens)
        self.stats.decoded_tokens += len(tokens) * rows
        return torch.stack(tokens), torch.stack(logprobs)

    def _tensor(self, values: list[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.long, device=self.device)

    def _mask(self) -> Tensor:
        """What hides the columns before each row's start and those not yet written, over the cache's capacity.

        Models with full attention only take it ready-made, additive [B, 1, 1, C], shared by all layers. For others
        it is the padding mask [B, C], from which transformers makes each layer's own (with its windows).
        """
        column_C = torch.arange(self.cache.capacity, device=self.device)
        valid_BC = (column_C >= self._tensor(self.starts)[:, None]) & (column_C < self.cache.columns)
        if not self.uniform:
            return valid_BC
        dtype = self.model.dtype
        bias_BC = torch.zeros(valid_BC.shape, dtype=dtype, device=self.device)
        return bias_BC.masked_fill_(~valid_BC, torch.finfo(dtype).min)[:, None, None]

    # Bookkeeping

    def _collect(self, tokens_SB: Tensor, logprobs_SB: Tensor) -> None:
        """Hand a segment's tokens to their requests and drop the rows that are done."""
        eos = set(self.sampler.eos_token_ids)
        live = []
        rows = zip(tokens_SB.T.tolist(), logprobs_SB.T.tolist(), strict=True)
        for slot, (tokens, logprobs) in enumerate(rows):
            r = self.slots[slot]
            count = min(len(tokens), self.requests[r].max_new_tokens - len(self.tokens[r]))
            end = next((i for i in range(count) if tokens[i] in eos), None) if eos else None
            if end is not None:
                count, self.stopped[r] = end + 1, True
            if not all(map(math.isfinite, logprobs[:count])):
                raise FloatingPointError(f"request {r}: the model's logits are not finite")
            self.tokens[r] += tokens[:count]
            self.logprobs[r] += logprobs[:count]
            self.stats.completion_tokens += count
            if self.stopped[r] or len(self.tokens[r]) == self.requests[r].max_new_tokens:
                self.unfinished.remove(r)
                if self.on_completion is not None:
                    self.on_completion(r, self._completion(r))
            else:
                live.append(slot)
        if len(live) < len(self.slots):
            self._keep(live)

    def _keep(self, live: list[int]) -> None:
        """Keep the slots ``live``: the last ones move into the holes, so only as many rows move as have finished."""
        kept = set(live)
        holes = [slot for slot in range(len(live)) if slot not in kept]
        movers = [slot for slot in live if slot >= len(live)]
        order = list(range(len(live)))
        for hole, mover in zip(holes, movers, strict=True):
            order[hole] = mover
        self.cache.move(self._tensor(movers), self._tensor(holes), len(live))
        self.slots = [self.slots[slot] for slot in order]
        self.starts = [self.starts[slot] for slot in order]
        self.token_B = self.token_B[self._tensor(order)]
        if self.grouping:
            self.group_of = [self.group_of[slot] for slot in order]
            used = sorted(set(self.group_of))
            if len(used) < len(self.group_lengths):
                self.group_lengths = [self.group_lengths[group] for group in used]
                renamed = {group: i for i, group in enumerate(used)}
                self.group_of = [renamed[group] for group in self.group_of]
                self.cache.keep_groups(used, max(self.group_lengths, default=0))
            self.regrouped = bool(used)
        unused = min(self.starts, default=0)
        if unused * 8 >= self.cache.columns > 0 and unused >= 16:
            self.cache.trim(unused)
            self.starts = [start - unused for start in self.starts]


_SEGMENT = 64  # steps between two looks at the requests, at most
_LOOK_EVERY = 8  # steps between two synchronisations with an accelerator
_TURNOVER = 4  # a new segment costs about a quarter of a decoding step


def _microbatches(prompts: list[tuple[int, ...]], budget: int) -> Iterator[list[tuple[int, ...]]]:
    """Cut prompts, sorted by length, into batches of at most ``budget`` padded tokens."""
    batch: list[tuple[int, ...]] = []
    for prompt in prompts:
        if batch and (len(batch) + 1) * len(prompt) > budget:
            yield batch
            batch = []
        batch.append(prompt)
    yield batch


def _cached_layers(model: PreTrainedModel) -> tuple[int, bool]:
    """Number of cached layers, and whether any of them has a window, from the cache transformers would use.

    Raises:
        UnsupportedModelError: some layer keeps something else than keys and values.
    """
    name = type(model).__name__
    config = model.config.get_text_config(decoder=True)
    if getattr(model.config, "is_encoder_decoder", False) or getattr(model, "_is_stateful", False):
        raise UnsupportedModelError(f"{name}: only decoders with a plain key/value cache can be sampled")
    layers = DynamicCache(config=config).layers or [DynamicLayer() for _ in range(config.num_hidden_layers)]
    kinds = {type(layer) for layer in layers}
    if len(layers) != config.num_hidden_layers or not kinds <= {DynamicLayer, DynamicSlidingWindowLayer}:
        found = ", ".join(sorted(kind.__name__ for kind in kinds))
        raise UnsupportedModelError(
            f"{name}: only decoders with a plain key/value cache can be sampled, not one with {found} in "
            f"{len(layers)} of {config.num_hidden_layers} layers"
        )
    return len(layers), DynamicSlidingWindowLayer in kinds


def _max_positions(model: PreTrainedModel) -> int | None:
    value = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
    return int(value) if value else None


def check_range(name: str, value: float, ok: bool, wanted: str) -> None:
    """Raise ValueError, naming the setting, unless it is ``ok``."""
    if not ok:
        raise ValueError(f"{name} must be {wanted}, got {value}")


def check_requests(requests: Sequence[Request], max_positions: int | None) -> None:
    """Raise ValueError, naming the request, unless each can be sampled within ``max_positions`` tokens."""
    for r, request in enumerate(requests):
        if not request.prompt:
            raise ValueError(f"request {r}: the prompt is empty")
        if request.max_new_tokens < 1:
            raise ValueError(f"request {r}: max_new_tokens must be at least 1, got {request.max_new_tokens}")
        needed = len(request.prompt) + request.max_new_tokens
        if max_positions is not None and needed > max_positions:
            raise ValueError(
                f"request {r}: {len(request.prompt)} prompt tokens and a budget of {request.max_new_tokens} exceed "
                f"the model's {max_positions} positions"
            )
