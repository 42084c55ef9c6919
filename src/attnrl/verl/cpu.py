"""verl platform for machines without a GPU (gloo backend), chosen by ``VERL_PLATFORM=cpu``; for tests and trials.

verl counts processes in GPUs, so Ray is started with one fictitious GPU per process (``ray_kwargs.ray_init.num_gpus``).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from types import ModuleType
from typing import Any

import torch
from verl.plugin.platform.platform_base import PlatformBase
from verl.plugin.platform.platform_manager import PlatformRegistry
from verl.utils import distributed

if os.environ.get("VERL_PLATFORM") == "cpu":
    # verl requests gloo for the CPU plus the platform's backend for the device; torch rejects the same backend twice.
    distributed.initialize_global_process_group_ray = partial(
        distributed.initialize_global_process_group_ray, backend="gloo"
    )


def _cpu_module() -> ModuleType:
    """Return a copy of ``torch.cpu`` with the functions of ``torch.cuda`` that verl calls; memory is always 0."""
    module = ModuleType("attnrl_cpu")
    vars(module).update(vars(torch.cpu))

    def no_op(*_: Any, **__: Any) -> None:
        return None

    def zero_bytes(*_: Any) -> int:
        return 0

    module.empty_cache = module.ipc_collect = module.reset_peak_memory_stats = no_op  # type: ignore[attr-defined]
    module.max_memory_allocated = module.max_memory_reserved = zero_bytes  # type: ignore[attr-defined]
    module.memory_allocated = module.memory_reserved = zero_bytes  # type: ignore[attr-defined]
    module.get_device_name = lambda *_: "CPU"  # type: ignore[attr-defined]
    module.mem_get_info = lambda *_: (0, 0)  # type: ignore[attr-defined]
    module.get_rng_state, module.set_rng_state = torch.get_rng_state, torch.set_rng_state  # type: ignore[attr-defined]
    return module


CPU_MODULE = _cpu_module()


@PlatformRegistry.register(platform="cpu")
class CpuPlatform(PlatformBase):  # type: ignore[misc]
    """Implements verl's platform interface on ``torch.cpu``, without device memory, cache, profiler and IPC."""

    @property
    def device_name(self) -> str:
        """Device type, by the name in torch."""
        return "cpu"

    @property
    def vendor_name(self) -> str:
        """Vendor name in verl's registry."""
        return "cpu"

    @property
    def device_module(self) -> ModuleType:
        """``torch.cpu`` with the missing functions of ``torch.cuda``."""
        return CPU_MODULE

    def is_available(self) -> bool:
        """Return True: a CPU is always available."""
        return True

    def current_device(self) -> Any:
        """Return the argument for ``Tensor.to``: the device name, where GPU platforms return an index."""
        return "cpu"

    def device_count(self) -> int:
        """Return 1, for any number of cores."""
        return 1

    def set_device(self, device_index: int) -> None:
        """Do nothing: a CPU is a single device."""

    def synchronize(self, device_index: int | None = None) -> None:
        """Do nothing: CPU operations are synchronous."""

    def manual_seed(self, seed: int) -> None:
        """Seed the default generator of torch."""
        torch.manual_seed(seed)

    def manual_seed_all(self, seed: int) -> None:
        """Seed the default generator of torch."""
        torch.manual_seed(seed)

    def set_allocator_settings(self, settings: str) -> None:
        """Do nothing: no device allocator."""

    def empty_cache(self) -> None:
        """Do nothing: no device cache."""

    def get_device_capability(self, device_index: int = 0) -> tuple[int | None, int | None]:
        """Return (None, None): unknown, in verl's convention."""
        return None, None

    def communication_backend_name(self) -> str:
        """Return the backend of torch.distributed."""
        return "gloo"

    def visible_devices_envvar(self) -> str:
        """Return the variable that Ray sets for the fictitious GPUs."""
        return "CUDA_VISIBLE_DEVICES"

    @contextmanager
    def nvtx_range(self, msg: str) -> Iterator[None]:
        """Do nothing: a CPU has no profiler."""
        yield

    def profiler_start(self) -> None:
        """Do nothing: a CPU has no profiler."""

    def profiler_stop(self) -> None:
        """Do nothing: a CPU has no profiler."""

    def ray_resource_name(self) -> str:
        """Return the Ray resource that verl counts processes in."""
        return "GPU"

    def ray_noset_envvars(self) -> list[str]:
        """Return no variables: Ray manages no visible devices."""
        return []

    def is_ipc_supported(self) -> bool:
        """Return False: no device memory to share."""
        return False

    def cudart(self) -> Any:
        """Return None: no CUDA runtime."""
        return None
