"""The live batch of models whose cache :mod:`attnrl.inference.kv_cache` cannot hold, such as hybrids.

:class:`PlainBatch` has the methods of :class:`attnrl.inference.batch.LiveBatch` and decodes with transformers' own
cache (:mod:`attnrl.inference.plain_cache`). A decoding step copies the keys and values of all rows, so decoding is
slower.

Shape letters: see CONTRIBUTING.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

import torch
from torch import Tensor
from transformers import PreTrainedModel

from attnrl.inference.base import SamplerStats
from attnrl.inference.batch import DecodeSettings
from attnrl.inference.model_call import ModelCall
from attnrl.inference.plain_cache import has_columns, keep_rows, merge_caches, plain_cache
from attnrl.inference.token_sampling import sample_token, uniforms, wrapped
from attnrl.types import Request


class PlainBatch:
    """The requests being decoded, a row of transformers' cache each.

    Attributes:
        slots: index of the request in each row.
    """

    def __init__(
        self, model: PreTrainedModel, settings: DecodeSettings, requests: Sequence[Request], stats: SamplerStats
    ) -> None:
        """Start without live rows; prefill and decoding are counted in ``stats``.

        Raises:
            UnsupportedModelError: see :func:`attnrl.inference.plain_cache.plain_cache`.
        """
        self.model = model
        self.settings = settings
        self.requests = requests
        self.stats = stats
        self.device = next(model.parameters()).device
        self.slots: list[int] = []
        self._call = ModelCall(model)
        self._cache = plain_cache(model)
        self._columns = 0  # of the cache: tokens of the longest row
        self._starts: list[int] = []  # of each row: the first column of the row's own tokens
        self._token_B = torch.empty(0, dtype=torch.long, device=self.device)  # sampled last
        self._logits_BV: Tensor | None = None  # after the last token; None: the last token is still to be fed
        self._eos_tokens = self._tensor(settings.eos_token_ids)

    def admit(self, arrivals: list[int]) -> None:
        """Prefill the prompts of the requests ``arrivals`` and append a row for each request."""
        caches, columns, logits = [], [], []
        if self.slots:
            logits = [self._next_logits()]
            caches, columns = [self._cache], [self._columns]
        before = self._columns
        for batch in self._same_length(arrivals):
            prompts = list(dict.fromkeys(self.requests[r].prompt for r in batch))
            place = {prompt: i for i, prompt in enumerate(prompts)}
            rows_B = self._tensor([place[self.requests[r].prompt] for r in batch])
            cache, width = plain_cache(self.model), len(prompts[0])
            logits_UV = self._call(self._tensor(prompts), torch.arange(width, device=self.device)[None], cache, None)
            self.stats.prefilled_tokens += len(prompts) * width
            keep_rows(cache, rows_B)
            caches.append(cache)
            columns.append(width)
            logits.append(logits_UV[rows_B])
            self.slots += batch
        self._columns = max(columns)
        self._cache = merge_caches(caches, columns)
        shift = self._columns - before
        arrived = self.slots[len(self._starts) :]
        self._starts = [start + shift for start in self._starts]
        self._starts += [self._columns - len(self.requests[r].prompt) for r in arrived]
        self._logits_BV = torch.cat(logits)

    def _same_length(self, arrivals: Sequence[int]) -> Iterator[list[int]]:
        """Yield batches of requests with prompts of one length, of at most ``prefill_tokens`` prompt tokens."""

        def length(r: int) -> int:
            return len(self.requests[r].prompt)

        for tokens, requests in groupby(sorted(arrivals, key=lambda r: (length(r), self.requests[r].prompt)), length):
            whole, size = list(requests), max(1, self.settings.prefill_tokens // tokens)
            yield from (whole[start : start + size] for start in range(0, len(whole), size))

    def _next_logits(self) -> Tensor:
        """Return the logits [B, V] after the last token of each row; feed the last token if necessary."""
        if self._logits_BV is None:
            starts_B = self._tensor(self._starts)
            column_C = torch.arange(self._columns + 1, device=self.device)
            padded = any(self._starts) and has_columns(self._cache)
            mask_BC = (column_C >= starts_B[:, None]).long() if padded else None
            position_B1 = (self._columns - starts_B)[:, None]
            self._logits_BV = self._call(self._token_B[:, None], position_B1, self._cache, mask_BC)
            self._columns += 1
        return self._logits_BV

    def decode_segment(self, sampled: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Decode all rows until a row ends, for up to ``segment_steps`` steps.

        Args:
            sampled: number of tokens sampled before, of each row.

        Returns:
            Sampled tokens and log-probs in nats, each [J, B].
        """
        settings = self.settings
        done_B = self._tensor(sampled)
        left_B = self._tensor([self.requests[r].max_new_tokens for r in self.slots]) - done_B
        seeds_B = self._tensor([wrapped(self.requests[r].seed) for r in self.slots])
        steps = min(settings.segment_steps, int(left_B.min()))
        uniform_JB = uniforms(seeds_B, done_B[:, None] + torch.arange(steps, device=self.device)).T.contiguous()
        tokens: list[Tensor] = []
        logprobs: list[Tensor] = []
        for uniform_B in uniform_JB:
            logits_BV = self._next_logits()
            self._token_B, logprob_B = sample_token(logits_BV, uniform_B, settings.params)
            self._logits_BV = None
            tokens.append(self._token_B)
            logprobs.append(logprob_B)
            if bool((self._token_B[:, None] == self._eos_tokens).any()):
                break
        self.stats.steps += len(tokens)
        self.stats.decoded_tokens += len(tokens) * len(self.slots)
        return torch.stack(tokens), torch.stack(logprobs)

    def keep(self, live: list[int]) -> None:
        """Keep the rows ``live``, and drop the columns that no live row uses."""
        rows_B = self._tensor(live)
        self.slots = [self.slots[row] for row in live]
        self._starts = [self._starts[row] for row in live]
        self._token_B = self._token_B[rows_B]
        if not live:
            self._cache, self._columns = plain_cache(self.model), 0
            return
        unused = min(self._starts)
        keep_rows(self._cache, rows_B, unused)
        self._columns -= unused
        self._starts = [start - unused for start in self._starts]

    def _tensor(self, values: object) -> Tensor:
        return torch.tensor(values, dtype=torch.long, device=self.device)
