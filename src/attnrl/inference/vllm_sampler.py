"""Sampling with a vLLM engine in this process (:mod:`attnrl.inference.vllm_engine`).

A run has one engine, and one :class:`VllmSampler` for each :class:`attnrl.types.SamplingParams`. The engine has no
tokenizer: stop strings are found here, as in the local sampler, and a request is aborted after a stop string.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from attnrl.config.schema import TrainConfig
from attnrl.inference.base import ProgressHook, SamplerFactory, SamplerStats, check_requests
from attnrl.inference.stop_strings import StopStrings
from attnrl.inference.vllm_engine import VllmEngine, open_engine
from attnrl.inference.vllm_worker import set_temperature
from attnrl.tokenization import decode, end_of_sequence_ids
from attnrl.types import Completion, FinishReason, Request, SamplingParams


class VllmSampler:
    """Samples completions from a :class:`VllmEngine`; implements :class:`attnrl.types.Sampler`.

    The random draws of a request depend on the request's seed and the position in the response alone. The logits may
    differ in the last bits with the other requests of the batch, as always in vLLM.
    """

    def __init__(
        self,
        engine: VllmEngine,
        params: SamplingParams = SamplingParams(),
        *,
        eos_token_ids: Collection[int],
        decode: Callable[[Sequence[int]], str] | None = None,
        on_progress: ProgressHook | None = None,
    ) -> None:
        """Check the settings.

        Args:
            engine: may be shared with other samplers.
            params: distribution and stop strings.
            eos_token_ids: each of these tokens ends a completion; may be empty.
            decode: returns the text of token ids; needed with stop strings only.
            on_progress: called between steps of the engine.

        Raises:
            ValueError: a setting is out of range; the message names the setting.
        """
        self.engine = engine
        self.params = params
        self.eos_token_ids = tuple(eos_token_ids)
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

        ``on_completion`` and ``should_stop`` are called between steps of the engine.

        Raises:
            ValueError: a request has an empty prompt, a budget below 1, or more tokens than the engine's sequences;
                the message gives the request's index. No token has been sampled then.
            FloatingPointError: the model's logits are not finite.
        """
        check_requests(requests, self.engine.max_length)
        self.stats = SamplerStats(prompt_tokens=sum(len(request.prompt) for request in requests))
        if not requests:
            return []
        with self.engine.awake() as llm:
            llm.collective_rpc(set_temperature, args=(self.params.temperature,))
            return _Generation(self, llm, requests, on_completion).run(should_stop)

    def sync(self) -> None:
        """Load the policy's current weights into the engine."""
        self.engine.sync()


class _Generation:
    """One call of ``generate``: the tokens of each request so far."""

    def __init__(
        self,
        sampler: VllmSampler,
        llm: Any,
        requests: Sequence[Request],
        on_completion: Callable[[int, Completion], None] | None,
    ) -> None:
        self.sampler = sampler
        self.llm = llm
        self.requests = requests
        self.on_completion = on_completion
        self.tokens: list[list[int]] = [[] for _ in requests]
        self.logprobs: list[list[float]] = [[] for _ in requests]
        self.by_stop_string = [False] * len(requests)
        self.kept = [sampler.stop_strings.kept(request.prompt, request.response_tokens) for request in requests]
        self.unfinished = set(range(len(requests)))

    def run(self, should_stop: Callable[[Collection[int]], bool] | None) -> list[Completion]:
        """Step the engine until every request is finished or ``should_stop`` returns True, then abort the rest."""
        stats, on_progress = self.sampler.stats, self.sampler.on_progress
        try:
            # The longest first: a long request admitted last would be decoded alone.
            for r in sorted(self.unfinished, key=lambda r: -self.requests[r].max_new_tokens):
                request = self.requests[r]
                self.llm.add_request(str(r), {"prompt_token_ids": list(request.prompt)}, self._parameters(request))
            while self.unfinished:
                for output in self.llm.step():
                    self._collect(output)
                stats.steps += 1
                if on_progress is not None:
                    on_progress(stats.completion_tokens, len(self.requests) - len(self.unfinished))
                if self.unfinished and should_stop is not None and should_stop(self.unfinished):
                    break
        finally:
            self.llm.abort_request([str(r) for r in self.unfinished])
        return [self._completion(r) for r in range(len(self.requests))]

    def _parameters(self, request: Request) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        params = self.sampler.params
        return SamplingParams(
            temperature=0.0 if params.temperature == 0.0 else 1.0,  # set_temperature scales the logits
            top_p=params.top_p,
            top_k=params.top_k,
            min_p=params.min_p,
            max_tokens=request.max_new_tokens,
            seed=request.seed % 2**63,  # vLLM reads -1 as no seed
            logprobs=0,  # of the sampled token only
            flat_logprobs=True,
            stop_token_ids=list(self.sampler.eos_token_ids),
            ignore_eos=True,  # stop_token_ids replaces the engine's end-of-sequence token
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
        )

    def _collect(self, output: Any) -> None:
        """Append the new tokens of one request; abort the request if the tokens complete a stop string."""
        r = int(output.request_id)
        new = output.outputs[0]
        if not self.tokens[r]:
            cached = output.num_cached_tokens or 0
            self.sampler.stats.prefilled_tokens += len(self.requests[r].prompt) - cached
        if not all(map(math.isfinite, new.logprobs.logprobs)):
            raise FloatingPointError(f"request {r}: the model's logits are not finite")
        cut = self.sampler.stop_strings.end(self.kept[r], self.tokens[r], new.token_ids)
        count = len(new.token_ids) if cut is None else cut
        self.tokens[r] += new.token_ids[:count]
        self.logprobs[r] += new.logprobs.logprobs[:count]
        self.by_stop_string[r] = cut is not None and new.token_ids[cut - 1] not in self.sampler.eos_token_ids
        self.sampler.stats.completion_tokens += count
        self.sampler.stats.decoded_tokens += len(new.token_ids)
        if output.finished and new.finish_reason not in {"stop", "length"}:
            raise RuntimeError(f"request {r}: vLLM ended the request early ({new.finish_reason})")
        if not output.finished and cut is not None:
            self.llm.abort_request([str(r)])
        if output.finished or cut is not None:
            self.unfinished.remove(r)
            if self.on_completion is not None:
                self.on_completion(r, self._completion(r))

    def _completion(self, r: int) -> Completion:
        tokens = self.tokens[r]
        stopped = self.by_stop_string[r] or (bool(tokens) and tokens[-1] in self.sampler.eos_token_ids)
        ended: FinishReason = "stop" if stopped else "length"
        return Completion(
            tuple(tokens),
            tuple(self.logprobs[r]),
            "unfinished" if r in self.unfinished else ended,
            self.by_stop_string[r],
        )


@contextmanager
def open_vllm(
    config: TrainConfig,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    directory: Path,
    on_progress: ProgressHook | None = None,
) -> Iterator[SamplerFactory]:
    """Open the samplers of ``sampler=vllm``, which share an engine: an :data:`attnrl.inference.base.Opener`.

    Raises:
        UserError: vLLM is missing, or does not support the model, the device or the settings.
    """
    sampling = config.sampling
    with open_engine(
        model,
        directory,
        max_length=sampling.max_prompt_tokens + sampling.max_new_tokens,
        max_batch=sampling.max_batch,
        settings=config.vllm,
        trust_remote_code=config.trust_remote_code,
    ) as engine:
        yield lambda params: VllmSampler(
            engine,
            params,
            eos_token_ids=end_of_sequence_ids(model.generation_config, tokenizer),
            decode=partial(decode, tokenizer),
            on_progress=on_progress,
        )
