"""Batched decoding of any transformers decoder, built for reinforcement learning's many short-lived rows.

:class:`LocalSampler` implements :class:`attnrl.protocols.Sampler`. Four things make it fast where
``model.generate`` is general:

- **A cache written in place** (:mod:`attnrl.local.cache`), in which a finished row costs nothing: it is dropped
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
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from attnrl.local.cache import DecodeCache, DecodeLayer, KeysValues
from attnrl.protocols import Completion, Request

DECODE_ATTENTION = "attnrl_decode"

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


# --- random draws and the choice of a token -----------------------------------------------------------------------


def uniforms(seeds_B: Tensor, counters_BS: Tensor) -> Tensor:
    """Counter-based uniform draws in (0, 1): the same (seed, counter) gives the same number, always and anywhere.

    A splitmix64 finaliser over ``mix(seed) + counter * golden``, in wrapping int64 arithmetic, so that a draw
    needs no generator state and is the same on every device.

    Args:
        seeds_B: int64 seeds [B].
        counters_BS: int64 indices of the draws [B, S].

    Returns:
        float32 [B, S]: odd multiples of 2**-24, hence neither 0 nor 1.
    """
    bits_BS = _mix(_mix(seeds_B)[:, None] + counters_BS * -7046029254386353131)  # 0x9E3779B97F4A7C15
    return (_shift(bits_BS, 41).to(torch.float32) + 0.5) * 2.0**-23


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _shift(x, 30)) * -4658895280553007687  # 0xBF58476D1CE4E5B9
    x = (x ^ _shift(x, 27)) * -7723592293110705685  # 0x94D049BB133111EB
    return x ^ _shift(x, 31)


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical right shift; torch's own is arithmetic."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def draw(logits_BV: Tensor, uniform_B: Tensor, temperature: float, top_p: float, top_k: int) -> tuple[Tensor, Tensor]:
    """Choose one token per row by inverting the cumulative distribution at ``uniform_B``.

    Args:
        logits_BV: raw logits, any float dtype.
        uniform_B: draws in (0, 1).
        temperature: divides the logits; 0 takes the most probable token.
        top_p: keep the smallest set of most probable tokens whose mass reaches this; 1 keeps all.
        top_k: keep this many most probable tokens; 0 keeps all.

    Returns:
        ``(token_B, logprob_B)``; the log-probability is float32, under the full softmax of ``logits /
        temperature`` (under temperature 1 when greedy), before top-p and top-k.
    """
    logits_BV = logits_BV.float()
    if temperature not in (0.0, 1.0):
        logits_BV = logits_BV / temperature
    logprobs_BV = logits_BV.log_softmax(-1)
    if temperature == 0.0:
        logprob_B, token_B = logprobs_BV.max(-1)
        return token_B, logprob_B
    probs_BV = logprobs_BV.exp()
    if top_p < 1.0 or top_k:
        probs_BV = _truncated(probs_BV, top_p, top_k)
    cdf_BV = probs_BV.cumsum(-1)
    # u < 1 keeps u * total below the total in float32 too, so a token of probability 0 is never chosen.
    token_B1 = torch.searchsorted(cdf_BV, uniform_B[:, None] * cdf_BV[:, -1:], right=True)
    token_B1 = token_B1.clamp_max(cdf_BV.shape[1] - 1)  # a NaN row would point past the end; collected as an error
    return token_B1[:, 0], logprobs_BV.gather(1, token_B1)[:, 0]


def _truncated(probs_BV: Tensor, top_p: float, top_k: int) -> Tensor:
    sorted_BV, order_BV = probs_BV.sort(-1, descending=True)
    if top_k:
        sorted_BV[:, top_k:] = 0.0
    if top_p < 1.0:
        mass_before_BV = sorted_BV.cumsum(-1) - sorted_BV
        sorted_BV = sorted_BV.masked_fill(mass_before_BV >= top_p * sorted_BV.sum(-1, keepdim=True), 0.0)
    return torch.zeros_like(probs_BV).scatter_(1, order_BV, sorted_BV)


# --- attention ------------------------------------------------------------------------------------------------


def decode_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention for transformers' interface: grouped heads at one query token, else transformers' sdpa.

    Args:
        module: the attention module.
        query: [B, K*G, 1, D] when decoding.
        key: [B, K, C, D], ``value`` likewise; keys from a cache with shared prefixes carry ``decode_layer``.
        attention_mask: additive or boolean [B, 1, 1, C], or None.
        scaling: factor of the scores; D**-0.5 by default.
        kwargs: what else the model passes; anything that changes the result goes to transformers' sdpa.

    Returns:
        ``(output [B, 1, K*G, D], None)``.
    """
    if query.shape[2] > 1 or kwargs.get("softcap") is not None or kwargs.get("position_bias") is not None:
        return sdpa_attention_forward(  # type: ignore[no-any-return]
            module, query, key, value, attention_mask, scaling=scaling, **kwargs
        )
    B, heads, _, D = query.shape
    query_BKGD = query.reshape(B, key.shape[1], -1, D)
    layer: DecodeLayer | None = getattr(key, "decode_layer", None)
    if layer is not None:
        output_BKGD = _shared_prefix_attention(query_BKGD, key, value, attention_mask, layer, scaling)
    elif query.device.type == "cpu" and query.dtype == torch.float32:
        output_BKGD = _attend(query_BKGD, key, value, attention_mask, scaling)[0]
    else:
        output_BKGD = F.scaled_dot_product_attention(query_BKGD, key, value, attn_mask=attention_mask, scale=scaling)
    return output_BKGD.reshape(B, 1, heads, -1), None


def _attend(
    query_BKND: Tensor, key_BKCD: Tensor, value_BKCD: Tensor, mask_B11C: Tensor | None, scaling: float | None
) -> tuple[Tensor, Tensor]:
    """Attention [B, K, N, D] of N queries for each row and head, and the log-sum-exp [B, K, N, 1] of their scores.

    Two batched products beat the CPU's fused kernel, which splits the work by head, when queries are so few.
    """
    B, K, N, D = query_BKND.shape
    C = key_BKCD.shape[2]
    query_HND = query_BKND.reshape(B * K, N, D) * (D**-0.5 if scaling is None else scaling)  # H = B*K
    scores_BNC = torch.bmm(query_HND, key_BKCD.reshape(B * K, C, D).transpose(1, 2)).float().view(B, K * N, C)
    if mask_B11C is not None:
        if mask_B11C.dtype == torch.bool:
            scores_BNC.masked_fill_(~mask_B11C[:, 0], torch.finfo(torch.float32).min)
        else:
            scores_BNC += mask_B11C[:, 0]
    weights_BNC = scores_BNC.softmax(-1)
    # The highest score's weight is exp(highest - lse). (Not exp and sum: exp of masked scores is very slow here.)
    lse_BN1 = scores_BNC.amax(-1, keepdim=True) - weights_BNC.amax(-1, keepdim=True).log_()
    values_HCD = value_BKCD.reshape(B * K, C, -1)
    output_HND = torch.bmm(weights_BNC.view(B * K, N, C).to(values_HCD.dtype), values_HCD)
    return output_HND.view(B, K, N, -1), lse_BN1.view(B, K, N, 1)


def _shared_prefix_attention(
    query_BKGD: Tensor,
    key_BKCD: Tensor,
    value_BKCD: Tensor,
    mask_B11C: Tensor | None,
    layer: DecodeLayer,
    scaling: float | None,
) -> Tensor:
    """Attend to each row's own columns and to its group's prefix, and join the two by their normalisers.

    All rows of a group read the prefix in one product of N = M*G queries.
    """
    assert layer.shared is not None and layer.groups is not None
    groups, (prefix_keys_UKPD, prefix_values_UKPD) = layer.groups, layer.shared
    B, K, G, D = query_BKGD.shape
    U = prefix_keys_UKPD.shape[0]
    own_BKGD, own_lse_BKG1 = _attend(query_BKGD, key_BKCD, value_BKCD, mask_B11C, scaling)
    query_UKND = query_BKGD.reshape(B * K, G * D).index_select(0, groups.gather).view(U, K, -1, D)
    prefix_UKND, prefix_lse_UKN1 = _attend(query_UKND, prefix_keys_UKPD, prefix_values_UKPD, groups.bias, scaling)
    prefix_BKGD = prefix_UKND.view(-1, G * prefix_UKND.shape[3]).index_select(0, groups.scatter).view_as(own_BKGD)
    prefix_lse_BKG1 = prefix_lse_UKN1.view(-1, G).index_select(0, groups.scatter).view_as(own_lse_BKG1)
    layer.unread = False
    prefix_share_BKG1 = torch.sigmoid(prefix_lse_BKG1 - own_lse_BKG1)
    return torch.lerp(own_BKGD, prefix_BKGD, prefix_share_BKG1.to(own_BKGD.dtype))


AttentionInterface.register(DECODE_ATTENTION, decode_attention)
AttentionMaskInterface.register(DECODE_ATTENTION, sdpa_mask)


# --- the sampler --------------------------------------------------------------------------------------------------


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
        _check_range("temperature", temperature, temperature >= 0.0 and math.isfinite(temperature), ">= 0")
        _check_range("top_p", top_p, 0.0 < top_p <= 1.0, "in (0, 1]")
        _check_range("top_k", top_k, top_k >= 0, ">= 0")
        _check_range("max_batch", max_batch, max_batch >= 1, ">= 1")
        _check_range("prefill_tokens", prefill_tokens, prefill_tokens >= 1, ">= 1")
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

    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        """Return one completion per request, in order. An empty batch returns an empty list.

        Raises:
            ValueError: a request has an empty prompt, a budget below 1, or does not fit the model's positions;
                its index is named. Nothing has been sampled then.
            FloatingPointError: the model's logits are not finite.
        """
        _check_requests(requests, _max_positions(self.model))
        self.stats = SamplerStats(prompt_tokens=sum(len(request.prompt) for request in requests))
        if not requests:
            return []
        with _decoding(self.model):
            return _Run(self, requests).finish()


class _Run:
    """One call of ``generate``: the live batch, and what its requests have so far."""

    def __init__(self, sampler: LocalSampler, requests: Sequence[Request]) -> None:
        self.sampler = sampler
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
        self.done = 0
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
            and _worth_grouping([request.prompt[:-1] for request in requests])
        )

    def finish(self) -> list[Completion]:
        """Decode until every request is done."""
        while self.slots or self.waiting:
            free = self.sampler.max_batch - len(self.slots)
            # A few free slots are worth a prefill only when there are enough of them to share its overhead.
            if self.waiting and (not self.slots or 8 * free >= self.sampler.max_batch):
                self._admit([self.waiting.pop() for _ in range(min(free, len(self.waiting)))])
            self._collect(*self._segment())
            if self.sampler.on_progress is not None:
                self.sampler.on_progress(sum(map(len, self.tokens)), self.done)
        return [
            Completion(tuple(tokens), tuple(logprobs), "stop" if stopped else "length")
            for tokens, logprobs, stopped in zip(self.tokens, self.logprobs, self.stopped, strict=True)
        ]

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
        carriers = _carriers(users)
        for batch in _microbatches(sorted(carriers, key=len), self.sampler.prefill_tokens):
            prefill = self._prefill(batch)
            if not sources:
                self.cache.extend(len(arrivals), columns, prefill)
            for row, carrier in enumerate(batch):
                for prefix in carriers[carrier]:
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
        seeds_B = self._tensor([_wrapped(self.requests[r].seed) for r in self.slots])
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
            self.token_B, logprob_B = draw(
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
                self.done += 1
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
_GROUP_ROWS = 8  # rows that read a shared prefix together
_LOOK_EVERY = 8  # steps between two synchronisations with an accelerator
_TURNOVER = 4  # a new segment costs about a quarter of a decoding step


def _wrapped(seed: int) -> int:
    """Any integer as a signed 64-bit one."""
    return (seed + 2**63) % 2**64 - 2**63


@dataclass
class _Branch:
    """A node of the trie of prefixes, with the best grouping of the rows below it."""

    depth: int
    rows: list[int]
    groups: list[tuple[int, list[int]]]
    saved: int

    def absorb(self, other: _Branch) -> None:
        self.rows += other.rows
        self.groups += other.groups
        self.saved += other.saved

    def settled(self) -> _Branch:
        """One group at this depth instead of the finer ones, where that saves as much."""
        saved = self.depth * (len(self.rows) - 1)
        return _Branch(self.depth, self.rows, [(self.depth, self.rows)], saved) if saved >= self.saved else self


def shared_prefixes(prefixes: Sequence[tuple[int, ...]]) -> list[tuple[int, list[int]]]:
    """Group rows whose prefixes begin alike, so that most tokens are held and read once for several rows.

    The grouping maximises the sum of (rows - 1) * shared length, by one walk over the trie of the sorted prefixes;
    groups are then cut to at most ``_GROUP_ROWS`` rows, as the attention pads all of them to the largest.

    Returns:
        ``(shared length, row indices)`` of each group; every row is in exactly one.
    """
    rows: dict[tuple[int, ...], list[int]] = {}
    for i, prefix in enumerate(prefixes):
        rows.setdefault(prefix, []).append(i)
    root = _Branch(0, [], [], 0)
    path = [root]  # the branches that the last prefix lies on, outermost first
    previous: tuple[int, ...] = ()

    def close(depth: int) -> None:
        while path[-1].depth > depth:
            done = path.pop().settled()
            if path[-1].depth < depth:
                path.append(_Branch(depth, [], [], 0))
            path[-1].absorb(done)

    for prefix in sorted(rows):
        close(_common_length(previous, prefix))
        leaf = _Branch(len(prefix), rows[prefix], [(len(prefix), rows[prefix])], 0)
        if path[-1].depth < len(prefix):
            path.append(_Branch(len(prefix), [], [], 0))
        path[-1].absorb(leaf.settled())
        previous = prefix
    close(0)
    groups = []
    for length, members in root.groups:
        parts = -(-len(members) // _GROUP_ROWS)
        groups += [(length, members[part::parts]) for part in range(parts)]
    return groups


def _common_length(a: tuple[int, ...], b: tuple[int, ...]) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _worth_grouping(prefixes: Sequence[tuple[int, ...]]) -> bool:
    """Whether groups save at least a quarter of the prompts' columns: joining two attentions has its cost, too."""
    saved = sum(length * (len(members) - 1) for length, members in shared_prefixes(prefixes))
    return 4 * saved >= sum(map(len, prefixes)) > 0


def _carriers(prefixes: Collection[tuple[int, ...]]) -> dict[tuple[int, ...], list[tuple[int, ...]]]:
    """Group prefixes by the longest one that begins with them: in sorted order a prefix comes just before those."""
    carriers: dict[tuple[int, ...], list[tuple[int, ...]]] = {}
    carrier: tuple[int, ...] | None = None
    for prefix in sorted(prefixes, reverse=True):
        if carrier is None or carrier[: len(prefix)] != prefix:
            carrier = prefix
            carriers[carrier] = []
        carriers[carrier].append(prefix)
    return carriers


def _microbatches(prompts: list[tuple[int, ...]], budget: int) -> Iterator[list[tuple[int, ...]]]:
    """Cut prompts, sorted by length, into batches of at most ``budget`` padded tokens."""
    batch: list[tuple[int, ...]] = []
    for prompt in prompts:
        if batch and (len(batch) + 1) * len(prompt) > budget:
            yield batch
            batch = []
        batch.append(prompt)
    yield batch


@contextmanager
def _decoding(model: PreTrainedModel) -> Iterator[None]:
    """Evaluation mode, no gradients and the decoding attention, undone in any case."""
    training = [module for module in model.modules() if module.training]
    configs = {id(m.config): m.config for m in model.modules() if isinstance(m, PreTrainedModel)}.values()
    ours = [(config, config._attn_implementation) for config in configs]
    # Another choice than sdpa (eager for soft-capped scores, flash attention) is the model's or the user's: keep it.
    ours = [(config, name) for config, name in ours if name and (name == "sdpa" or name.startswith("attnrl_"))]
    try:
        for config, _ in ours:
            config._attn_implementation = DECODE_ATTENTION
        model.eval()
        with torch.inference_mode():
            yield
    finally:
        for config, name in ours:
            config._attn_implementation = name
        for module in training:
            module.training = True


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


def _check_range(name: str, value: float, ok: bool, wanted: str) -> None:
    if not ok:
        raise ValueError(f"{name} must be {wanted}, got {value}")


def _check_requests(requests: Sequence[Request], max_positions: int | None) -> None:
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
