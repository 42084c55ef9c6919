"""The live batch of the local sampler: slots, prefill, decoding steps and compaction.

A *slot* is a row of the key/value cache in which one request is decoded. :class:`LiveBatch` admits requests into free
slots, decodes all slots for a *segment* of steps, and compacts the cache when requests finish. The tokens sampled so
far are kept by the caller (:mod:`attnrl.inference.sampler`).

Shape letters: see CONTRIBUTING.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from attnrl.inference.base import SamplerStats, UnsupportedModelError
from attnrl.inference.decode_attention import DECODE_ATTENTION
from attnrl.inference.kv_cache import DecodeCache, KeysValues
from attnrl.inference.model_call import ModelCall
from attnrl.inference.prefixes import carriers, shared_prefixes, worth_grouping
from attnrl.inference.token_sampling import sample_token, uniforms, wrapped
from attnrl.types import Request, SamplingParams

SEGMENT_STEPS = 64  # decoding steps of a segment, at most
STOP_SEGMENT_STEPS = 8  # the same with stop strings, which are searched between segments
_SYNC_EVERY = 8  # decoding steps between two synchronisations with an accelerator
_SEGMENT_COST = 0.25  # cost of starting a segment, in decoding steps


@dataclass(frozen=True)
class DecodeSettings:
    """Settings of the local sampler; see :class:`attnrl.inference.sampler.LocalSampler`."""

    eos_token_ids: tuple[int, ...]
    pad_token_id: int
    params: SamplingParams
    max_batch: int
    prefill_tokens: int
    share_attention: bool

    @property
    def segment_steps(self) -> int:
        """Return the decoding steps of a segment, at most."""
        return STOP_SEGMENT_STEPS if self.params.stop else SEGMENT_STEPS


class SharedKeysError(Exception):
    """The model does not pass its cached keys to the attention function unchanged, so no prefix can be shared."""


class LiveBatch:
    """The requests being decoded, a slot each, and their key/value cache.

    Attributes:
        slots: index of the request in each slot.
    """

    def __init__(
        self, model: PreTrainedModel, settings: DecodeSettings, requests: Sequence[Request], stats: SamplerStats
    ) -> None:
        """Start without live rows; prefill and decoding are counted in ``stats``.

        Raises:
            UnsupportedModelError: see :func:`cached_layers`.
        """
        layers, windowed = cached_layers(model)
        self.model = model
        self.settings = settings
        self.requests = requests
        self.stats = stats
        self.device = next(model.parameters()).device
        self.max_positions = max_positions(model)
        self.cache = DecodeCache(layers)
        self.slots: list[int] = []
        self._starts: list[int] = []  # of each slot: the first cache column of the slot's own tokens
        self._group_of: list[int] = []  # of each slot: its group of rows with a shared prefix
        self._group_lengths: list[int] = []
        self._regrouped = False
        self._token_B = torch.empty(0, dtype=torch.long, device=self.device)
        self._eos_tokens = torch.tensor(settings.eos_token_ids, dtype=torch.long, device=self.device)
        self._call = ModelCall(model)
        # True if all layers use the decoding attention and see the same columns.
        config = model.config.get_text_config(decoder=True)
        self._uniform = config._attn_implementation == DECODE_ATTENTION and not windowed
        self._grouping = (
            settings.share_attention
            and self._uniform
            and self.device.type == "cpu"
            and worth_grouping([request.prompt[:-1] for request in requests])
        )

    def admit(self, arrivals: list[int]) -> None:
        """Prefill the prompts of the requests ``arrivals`` and append a slot for each request."""
        prefixes = [self.requests[r].prompt[:-1] for r in arrivals]
        groups = shared_prefixes(prefixes) if self._grouping else [(0, list(range(len(arrivals))))]
        shared = {i: length for length, members in groups for i in members}
        own = [len(prefix) - shared[i] for i, prefix in enumerate(prefixes)]
        users: dict[tuple[int, ...], dict[int, list[int]]] = {}  # prefix -> shared length -> arrivals
        for i, prefix in enumerate(prefixes):
            users.setdefault(prefix, {}).setdefault(shared[i], []).append(i)

        # One column at least: transformers takes a decoding step from an empty cache for a prefill without padding.
        first_slot, columns = len(self.slots), max(1, *own)
        shift = max(0, columns - self.cache.columns)
        sources: dict[tuple[int, ...], tuple[list[KeysValues], int]] = {}
        longest = carriers(users)
        for batch in _microbatches(sorted(longest, key=len), self.settings.prefill_tokens):
            prefill = self._prefill(batch)
            if not sources:
                self.cache.extend(len(arrivals), columns, prefill)
            for row, carrier in enumerate(batch):
                for prefix in longest[carrier]:
                    sources[prefix] = (prefill, row)
                    for length, members in users[prefix].items():
                        slots = [first_slot + i for i in members]
                        self.cache.fill(slots, prefill, row, slice(length, len(prefix)))
        if self._grouping:
            self.cache.add_groups([(*sources[prefixes[members[0]]], length) for length, members in groups])
            group = {i: g for g, (_, members) in enumerate(groups, len(self._group_lengths)) for i in members}
            self._group_of += [group[i] for i in range(len(arrivals))]
            self._group_lengths += [length for length, _ in groups]
            self._regrouped = True
        self.slots += arrivals
        self._starts = [start + shift for start in self._starts] + [self.cache.columns - n for n in own]
        self._token_B = torch.cat([self._token_B, self._tensor([self.requests[r].prompt[-1] for r in arrivals])])

    def _prefill(self, prompts: list[tuple[int, ...]]) -> list[KeysValues]:
        """Return the keys [B, G, T, D] and values [B, G, T, E] of every layer for right-padded prompts.

        Attention is causal, so a row never attends to the padding on its right and needs no padding mask. Prompts of
        one token each leave nothing to prefill; the model then runs once on padding, to learn the cache's shapes.
        """
        width = max(1, max(map(len, prompts)))
        pad = self.settings.pad_token_id
        ids_BT = torch.tensor([[*prompt, *[pad] * (width - len(prompt))] for prompt in prompts], device=self.device)
        cache = DynamicCache()  # without the config: sliding layers would drop columns that shorter rows need
        self._call(ids_BT, torch.arange(width, device=self.device)[None], cache, None)
        self.stats.prefilled_tokens += sum(map(len, prompts))
        return [(layer.keys, layer.values) for layer in cache.layers]

    def decode_segment(self, sampled: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Decode all slots for up to ``segment_steps`` steps; tokens of a row past its end are not used.

        The segment ends early when the finished rows have cost as much as a new segment costs.

        Args:
            sampled: number of tokens sampled before, of each slot.

        Returns:
            Sampled tokens and log-probs in nats, each [J, B].

        Raises:
            SharedKeysError: the model does not pass the cached keys to the attention function unchanged.
        """
        settings, cache = self.settings, self.cache
        rows = len(self.slots)
        if self._regrouped:
            cache.set_groups(self._group_of, self._group_lengths)
            self._regrouped = False
        done_B = self._tensor(list(sampled))
        budget_B = self._tensor([self.requests[r].max_new_tokens for r in self.slots])
        seeds_B = self._tensor([wrapped(self.requests[r].seed) for r in self.slots])
        position_B = self._tensor([len(self.requests[r].prompt) - 1 for r in self.slots]) + done_B
        left_B = budget_B - done_B
        steps = min(settings.segment_steps, int(left_B.max()))
        if self.max_positions is not None:
            steps = min(steps, self.max_positions - int(position_B.max()))
        uniform_JB = uniforms(seeds_B, done_B[:, None] + torch.arange(steps, device=self.device)).T.contiguous()
        mask = self._mask()
        stopped_B = torch.zeros(rows, dtype=torch.bool, device=self.device)
        sync_every = 1 if self.device.type == "cpu" else _SYNC_EVERY
        tokens: list[Tensor] = []
        logprobs: list[Tensor] = []
        wasted = 0
        for step in range(steps):
            if cache.columns == cache.capacity:
                cache.grow()
                mask = self._mask()
            mask[..., cache.columns] = 0.0 if mask.is_floating_point() else True
            logits_BV = self._call(self._token_B[:, None], position_B[:, None], cache, mask)
            if any(layer.unread for layer in cache.layers):
                raise SharedKeysError
            self._token_B, logprob_B = sample_token(logits_BV, uniform_JB[step], settings.params)
            tokens.append(self._token_B)
            logprobs.append(logprob_B)
            position_B += 1
            stopped_B |= (self._token_B[:, None] == self._eos_tokens).any(1)
            if (step + 1) % sync_every == 0:
                wasted += sync_every * int((stopped_B | (left_B <= step + 1)).sum())
                if wasted >= _SEGMENT_COST * rows:
                    break
        self.stats.steps += len(tokens)
        self.stats.decoded_tokens += len(tokens) * rows
        return torch.stack(tokens), torch.stack(logprobs)

    def _tensor(self, values: list[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.long, device=self.device)

    def _mask(self) -> Tensor:
        """Return the attention mask over the cache's capacity: the columns of each row that are written.

        If all layers have full attention, the mask is additive [B, 1, 1, C] and shared by all layers. Otherwise the
        mask is a boolean padding mask [B, C], from which transformers makes the mask of each layer's window.
        """
        column_C = torch.arange(self.cache.capacity, device=self.device)
        valid_BC = (column_C >= self._tensor(self._starts)[:, None]) & (column_C < self.cache.columns)
        if not self._uniform:
            return valid_BC
        dtype = self.model.dtype
        bias_BC = torch.zeros(valid_BC.shape, dtype=dtype, device=self.device)
        return bias_BC.masked_fill_(~valid_BC, torch.finfo(dtype).min)[:, None, None]

    def keep(self, live: list[int]) -> None:
        """Keep the slots ``live`` and compact the cache: the last live rows move into the slots of dropped rows."""
        kept = set(live)
        holes = [slot for slot in range(len(live)) if slot not in kept]
        movers = [slot for slot in live if slot >= len(live)]
        order = list(range(len(live)))
        for hole, mover in zip(holes, movers, strict=True):
            order[hole] = mover
        self.cache.move(self._tensor(movers), self._tensor(holes), len(live))
        self.slots = [self.slots[slot] for slot in order]
        self._starts = [self._starts[slot] for slot in order]
        self._token_B = self._token_B[self._tensor(order)]
        if self._grouping:
            self._keep_groups(order)
        unused = min(self._starts, default=0)
        if unused * 8 >= self.cache.columns > 0 and unused >= 16:
            self.cache.trim(unused)
            self._starts = [start - unused for start in self._starts]

    def _keep_groups(self, order: list[int]) -> None:
        """Drop the groups without a live row, after the slots ``order`` were kept."""
        self._group_of = [self._group_of[slot] for slot in order]
        used = sorted(set(self._group_of))
        if len(used) < len(self._group_lengths):
            self._group_lengths = [self._group_lengths[group] for group in used]
            renamed = {group: i for i, group in enumerate(used)}
            self._group_of = [renamed[group] for group in self._group_of]
            self.cache.keep_groups(used, max(self._group_lengths, default=0))
        self._regrouped = bool(used)


def _microbatches(prompts: list[tuple[int, ...]], budget: int) -> Iterator[list[tuple[int, ...]]]:
    """Cut prompts, sorted by length, into batches of at most ``budget`` tokens, padding included."""
    batch: list[tuple[int, ...]] = []
    for prompt in prompts:
        if batch and (len(batch) + 1) * len(prompt) > budget:
            yield batch
            batch = []
        batch.append(prompt)
    yield batch


def cached_layers(model: PreTrainedModel) -> tuple[int, bool]:
    """Return the number of cached layers, and True if any layer has a sliding window.

    Raises:
        UnsupportedModelError: the model is an encoder-decoder, or a layer caches another state than keys and values.
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


def max_positions(model: PreTrainedModel) -> int | None:
    """Return the number of positions of the model's text decoder; None if the config gives none."""
    value = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
    return int(value) if value else None
