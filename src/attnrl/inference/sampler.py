"""Batched decoding of any transformers decoder, built for the many short requests of reinforcement learning.

:class:`LocalSampler` implements :class:`attnrl.types.Sampler`. Four design choices make :class:`LocalSampler` faster
than ``model.generate``:

- **A key/value cache written in place** (:mod:`attnrl.inference.kv_cache`): a finished row is dropped at once, a
  waiting request takes the slot, and attention reads only live rows and columns.
- **One prefill for each distinct prompt.** A prompt that is a prefix of another prompt (a branch point on the trunk of
  another branch) needs no prefill either. Prompts are prefilled up to their *last* token, the input of the first
  decoding step, so all requests start in the same way, however their prefix was computed.
- **A decoding attention** (:mod:`attnrl.inference.decode_attention`) over grouped heads without repeated keys, with
  one mask for all layers.
- **Segments** (:mod:`attnrl.inference.batch`): many decoding steps between two updates of the host's records.

Models with layers of linear attention, state spaces or convolutions decode with transformers' own cache instead
(:mod:`attnrl.inference.plain_batch`): the same draws, more slowly.

Randomness: the uniform draw for a request's ``i``-th token is ``uniforms(seed, i)``, a counter-based hash, inverted
through the cumulative distribution in token-id order. The draw depends on nothing else, so a request yields the same
tokens in any batch, in any order, on any device, as far as the logits are numerically equal.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from attnrl.config.schema import TrainConfig
from attnrl.errors import UserError, one_line
from attnrl.fci import evaluating
from attnrl.inference.base import (
    ProgressHook,
    SamplerFactory,
    SamplerStats,
    UnsupportedModelError,
    check_range,
    check_requests,
)
from attnrl.inference.batch import DecodeSettings, LiveBatch, SharedKeysError, cached_layers, max_positions
from attnrl.inference.decode_attention import decoding
from attnrl.inference.plain_batch import PlainBatch
from attnrl.inference.plain_cache import plain_cache
from attnrl.inference.stop_strings import StopStrings
from attnrl.tokenization import decode, end_of_sequence_ids
from attnrl.types import Completion, FinishReason, Request, SamplingParams
from attnrl.utils.model_outputs import logits_only


class LocalSampler:
    """Samples completions from a transformers causal LM in this process; see the module's docstring."""

    def __init__(
        self,
        model: PreTrainedModel,
        params: SamplingParams = SamplingParams(),
        *,
        eos_token_ids: Collection[int],
        pad_token_id: int,
        decode: Callable[[Sequence[int]], str] | None = None,
        max_batch: int = 256,
        prefill_tokens: int = 8192,
        share_attention: bool = True,
        on_progress: ProgressHook | None = None,
    ) -> None:
        """Check the settings and the model. The weights are not copied: ``generate`` uses the current weights.

        Args:
            model: a causal LM; device and dtype stay unchanged.
            params: distribution and stop strings.
            eos_token_ids: each of these tokens ends a completion; may be empty.
            pad_token_id: fills prefill batches; no row attends to the padding.
            decode: returns the text of token ids; needed with stop strings only.
            max_batch: rows decoded at the same time; further requests wait for a free slot.
            prefill_tokens: tokens of one prefill batch, padding included; a longer prompt is a batch of its own.
            share_attention: read the keys and values of a shared prefix once per group of rows, where possible (CPU,
                full attention, sdpa, keys not transformed after the cache) and faster; the logits are the same up to
                rounding.
            on_progress: called between segments.

        Raises:
            UnsupportedModelError: the model is an encoder-decoder, or has a cache of unknown layers.
            ValueError: a setting is out of range; the message names the setting.
        """
        check_range("max_batch", max_batch, max_batch >= 1, ">= 1")
        check_range("prefill_tokens", prefill_tokens, prefill_tokens >= 1, ">= 1")
        self.model = model
        self.batch_class = batch_class(model)
        self.settings = DecodeSettings(
            eos_token_ids=tuple(eos_token_ids),
            pad_token_id=pad_token_id,
            params=params,
            max_batch=max_batch,
            prefill_tokens=prefill_tokens,
            share_attention=share_attention,
        )
        self.stop_strings = StopStrings(params.stop, decode)
        self.on_progress = on_progress
        self.stats = SamplerStats()

    def generate(
        self,
        requests: Sequence[Request],
        *,
        on_completion: Callable[[int, Completion], None] | None = None,
        should_stop: Callable[[Collection[int]], bool] | None = None,
    ) -> list[Completion]:
        """Return one completion per request, in order; see :meth:`attnrl.types.Sampler.generate`.

        ``on_completion`` and ``should_stop`` are called between segments.

        Raises:
            ValueError: a request has an empty prompt, a budget below 1, or more tokens than the model has positions;
                the message gives the request's index. No token has been sampled then.
            FloatingPointError: the model's logits are not finite.
        """
        check_requests(requests, max_positions(self.model))
        self.stats = SamplerStats(prompt_tokens=sum(len(request.prompt) for request in requests))
        if not requests:
            return []
        with decoding(self.model):
            try:
                return _Generation(self, requests, on_completion).run(should_stop)
            except SharedKeysError:  # raised by the first decoding step, before any request is complete
                self.settings = replace(self.settings, share_attention=False)
                self.stats = SamplerStats(prompt_tokens=self.stats.prompt_tokens)
                return _Generation(self, requests, on_completion).run(should_stop)

    def sync(self) -> None:
        """Do nothing: the sampler decodes with the policy's own model."""


class _Generation:
    """One call of ``generate``: the waiting requests, the live batch, and the tokens of each request so far."""

    def __init__(
        self,
        sampler: LocalSampler,
        requests: Sequence[Request],
        on_completion: Callable[[int, Completion], None] | None,
    ) -> None:
        self.settings = sampler.settings
        self.stats = sampler.stats
        self.stop_strings = sampler.stop_strings
        self.on_progress = sampler.on_progress
        self.on_completion = on_completion
        self.requests = requests
        self.batch = sampler.batch_class(sampler.model, sampler.settings, requests, sampler.stats)
        # The longest first: a long request admitted last would be decoded alone. The order never changes a result.
        self.waiting = sorted(range(len(requests)), key=lambda r: requests[r].max_new_tokens, reverse=True)[::-1]
        self.tokens: list[list[int]] = [[] for _ in requests]
        self.logprobs: list[list[float]] = [[] for _ in requests]
        self.stopped = [False] * len(requests)
        self.by_stop_string = [False] * len(requests)
        self.kept = [self.stop_strings.kept(request.prompt, request.response_tokens) for request in requests]
        self.unfinished = set(range(len(requests)))

    def run(self, should_stop: Callable[[Collection[int]], bool] | None) -> list[Completion]:
        """Decode until every request is finished or ``should_stop`` returns True."""
        batch, max_batch = self.batch, self.settings.max_batch
        while batch.slots or self.waiting:
            free = max_batch - len(batch.slots)
            # A prefill has an overhead: a few free slots wait until an eighth of all slots is free.
            if self.waiting and (not batch.slots or 8 * free >= max_batch):
                batch.admit([self.waiting.pop() for _ in range(min(free, len(self.waiting)))])
            self._collect(*batch.decode_segment([len(self.tokens[r]) for r in batch.slots]))
            if self.on_progress is not None:
                self.on_progress(sum(map(len, self.tokens)), len(self.requests) - len(self.unfinished))
            if self.unfinished and should_stop is not None and should_stop(self.unfinished):
                break
        return [self._completion(r) for r in range(len(self.requests))]

    def _collect(self, tokens_JB: Tensor, logprobs_JB: Tensor) -> None:
        """Append a segment's tokens to their requests and drop the finished rows."""
        eos = set(self.settings.eos_token_ids)
        live = []
        rows = zip(tokens_JB.T.tolist(), logprobs_JB.T.tolist(), strict=True)
        for slot, (tokens, logprobs) in enumerate(rows):
            r = self.batch.slots[slot]
            count = min(len(tokens), self.requests[r].max_new_tokens - len(self.tokens[r]))
            end = next((i for i in range(count) if tokens[i] in eos), None) if eos else None
            if end is not None:
                count, self.stopped[r] = end + 1, True
            cut = self.stop_strings.end(self.kept[r], self.tokens[r], tokens[:count])
            if cut is not None and tokens[cut - 1] not in eos:
                count, self.stopped[r], self.by_stop_string[r] = cut, True, True
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
        if len(live) < len(self.batch.slots):
            self.batch.keep(live)

    def _completion(self, r: int) -> Completion:
        ended: FinishReason = "stop" if self.stopped[r] else "length"
        return Completion(
            tuple(self.tokens[r]),
            tuple(self.logprobs[r]),
            "unfinished" if r in self.unfinished else ended,
            self.by_stop_string[r],
        )


def batch_class(model: PreTrainedModel) -> type[LiveBatch] | type[PlainBatch]:
    """Return the live batch for the model's cache: :class:`LiveBatch`, or :class:`PlainBatch` for other states.

    Raises:
        UnsupportedModelError: neither supports the model's cache.
    """
    try:
        cached_layers(model)
    except UnsupportedModelError:
        plain_cache(model)
        return PlainBatch
    return LiveBatch


def build_sampler(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    params: SamplingParams,
    *,
    max_batch: int,
    on_progress: ProgressHook | None = None,
) -> LocalSampler:
    """Return a local sampler of ``model`` with the tokenizer's end-of-sequence and padding tokens.

    Raises:
        UserError: the local sampler does not support the model's cache.
    """
    with _naming_the_model():
        batch_class(model)
    return LocalSampler(
        model,
        params,
        eos_token_ids=end_of_sequence_ids(model.generation_config, tokenizer),
        pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id,
        decode=partial(decode, tokenizer),
        max_batch=max_batch,
        on_progress=on_progress,
    )


@contextmanager
def _naming_the_model() -> Iterator[None]:
    try:
        yield
    except UnsupportedModelError as error:
        raise UserError(f"model: {one_line(error)}") from None


def check_cache(model: PreTrainedModel) -> str | None:
    """Check the model's cache, and with samples of a few tokens that decoding gives the model's log-probs.

    Returns:
        A note for the user if the model decodes with transformers' own cache, else None.

    Raises:
        UserError: the model's cache is not supported, or decoding with the cache changes the log-probs.
    """
    with _naming_the_model():
        plain = batch_class(model) is PlainBatch
        check_decoding(model)
    name = type(model).__name__
    return f"{name}: not a plain key/value cache: sampled through transformers' own cache, slower" if plain else None


def check_decoding(model: PreTrainedModel) -> None:
    """Check, with greedy samples of a few tokens, that decoding gives the log-probs of a forward without a cache.

    Raises:
        UnsupportedModelError: the log-probs differ, or the model fails.
    """
    name = type(model).__name__
    # Prompts of two lengths, rows that end at different times, and a row admitted last.
    requests = [Request((0, 1, 2, 3, 1), 2, 0), Request((3, 1), 4, 0), Request((0, 1, 2), 3, 0)]
    greedy = SamplingParams(temperature=0.0)
    sampler = LocalSampler(model, greedy, eos_token_ids=(), pad_token_id=0, max_batch=2, share_attention=False)
    try:
        with decoding(model):
            completions = _Generation(sampler, requests, None).run(None)
        with evaluating(model), torch.inference_mode(), logits_only(model):
            sequences = [torch.tensor([[*r.prompt, *c.tokens]]) for r, c in zip(requests, completions, strict=True)]
            logits = [model(ids_1T.to(model.device), use_cache=False).logits[0].float() for ids_1T in sequences]
    except Exception as error:  # whatever a model raises for a cache that the model does not know
        raise UnsupportedModelError(f"{name}: decoding with a cache fails ({one_line(error)})") from error
    difference = 0.0
    for request, completion, logits_TV in zip(requests, completions, logits, strict=True):
        logprobs_JV = logits_TV[len(request.prompt) - 1 : -1].log_softmax(-1).cpu()
        alone_J = logprobs_JV.gather(1, torch.tensor(completion.tokens)[:, None])[:, 0]
        difference = max(difference, float((torch.tensor(completion.logprobs) - alone_J).abs().max()))
    if not difference <= (1e-3 if model.dtype == torch.float32 else 0.25):
        raise UnsupportedModelError(f"{name}: decoding with a cache changes log-probs (by {difference:.2g})")


@contextmanager
def open_local(
    config: TrainConfig,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    directory: Path,
    on_progress: ProgressHook | None = None,
) -> Iterator[SamplerFactory]:
    """Open the samplers of ``sampler=transformers``: an :data:`attnrl.inference.base.Opener`."""
    yield lambda params: build_sampler(
        model, tokenizer, params, max_batch=config.sampling.max_batch, on_progress=on_progress
    )
