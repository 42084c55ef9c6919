"""verl without a GPU: a platform for processes on CPUs, which talk to each other through gloo.

For tests, and for trying a recipe out. ``VERL_PLATFORM=cpu`` chooses it. Ray is told of as many GPUs as there are to be
processes (``ray_kwargs.ray_init.num_gpus``), since that is what verl counts processes in.
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
    # verl asks for gloo on the CPU and for the platform's backend on its device, which torch takes for asking twice.
    distributed.initialize_global_process_group_ray = partial(
        distributed.initialize_global_process_group_ray, backend="gloo"
    )


def _cpu_module() -> ModuleType:
    """``torch.cpu`` with what verl also asks of ``torch.cuda``: there is no memory of a device to speak of."""
    module = ModuleType("attnrl_cpu")
    vars(module).update(vars(torch.cpu))

    def nothing(*_: Any, **__: Any) -> None:
        return None

    def none_used(*_: Any) -> int:
        return 0

    module.empty_cache = module.ipc_collect = module.reset_peak_memory_stats = nothing  # type: ignore[attr-defined]
    module.max_memory_allocated = module.max_memory_reserved = none_used  # type: ignore[attr-defined]
    module.memory_allocated = module.memory_reserved = none_used  # type: ignore[attr-defined]
    module.get_device_name = lambda *_: "CPU"  # type: ignore[attr-defined]
    module.mem_get_info = lambda *_: (0, 0)  # type: ignore[attr-defined]
    module.get_rng_state, module.set_rng_state = torch.get_rng_state, torch.set_rng_state  # type: ignore[attr-defined]
    return module


CPU_MODULE = _cpu_module()


@PlatformRegistry.register(platform="cpu")
class CpuPlatform(PlatformBase):  # type: ignore[misc]
    """See the module."""

    @property
    def device_name(self) -> str:
        """What torch calls it."""
        return "cpu"

    @property
    def vendor_name(self) -> str:
        """Nobody's in particular."""
        return "cpu"

    @property
    def device_module(self) -> ModuleType:
        """``torch.cpu``, completed."""
        return CPU_MODULE

    def is_available(self) -> bool:
        """Always."""
        return True

    def current_device(self) -> Any:
        """What verl hands to ``Tensor.to``: a GPU's index elsewhere, here the device's name."""
        return "cpu"

    def device_count(self) -> int:
        """One, whatever the number of cores."""
        return 1

    def set_device(self, device_index: int) -> None:
        """There is none to choose."""

    def synchronize(self, device_index: int | None = None) -> None:
        """Nothing is ever pending."""

    def manual_seed(self, seed: int) -> None:
        """Seed torch."""
        torch.manual_seed(seed)

    def manual_seed_all(self, seed: int) -> None:
        """Seed torch."""
        torch.manual_seed(seed)

    def set_allocator_settings(self, settings: str) -> None:
        """There are none."""

    def empty_cache(self) -> None:
        """There is none."""

    def get_device_capability(self, device_index: int = 0) -> tuple[int | None, int | None]:
        """Unknown, as verl says it."""
        return None, None

    def communication_backend_name(self) -> str:
        """gloo."""
        return "gloo"

    def visible_devices_envvar(self) -> str:
        """What Ray sets for the GPUs that it takes our processes for."""
        return "CUDA_VISIBLE_DEVICES"

    @contextmanager
    def nvtx_range(self, msg: str) -> Iterator[None]:
        """No profiler."""
        yield

    def profiler_start(self) -> None:
        """No profiler."""

    def profiler_stop(self) -> None:
        """No profiler."""

    def ray_resource_name(self) -> str:
        """The resource that verl counts; see the module."""
        return "GPU"

    def ray_noset_envvars(self) -> list[str]:
        """None of them matters."""
        return []

    def is_ipc_supported(self) -> bool:
        """No memory of a device to share."""
        return False

    def cudart(self) -> Any:
        """There is none."""
        return None
