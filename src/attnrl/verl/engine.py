"""verl's FSDP engine with a log-prob forward that also returns the influence of each step.

Registered for the vendor ``attnrl`` (``VERL_ENGINE_VENDOR=attnrl``). For a batch with :data:`STEP_STARTS` the output
holds :data:`INFLUENCE` beside the log-probs; every other batch goes through verl's engine unchanged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor
from verl.utils import tensordict_utils
from verl.utils.device import get_device_name
from verl.workers.engine import EngineRegistry
from verl.workers.engine.fsdp import transformer_impl

from attnrl.config.method import BranchingConfig
from attnrl.fci import CaptureSpec, capture
from attnrl.verl.settings import NAME

STEP_STARTS = "step_starts"  # nested [rows, tokens]: 1 at the first token of each step, else 0
INFLUENCE = "influence"  # nested [rows, tokens]: raw influence of the step at the first token of the step, else 0
MEASURE = "influence_measure"  # {"delta": ..., "influence": ..., "reduction": ...}, see BranchingConfig


@EngineRegistry.register(
    model_type="language_model", backend=["fsdp", "fsdp2"], device=["cuda", "npu", "cpu"], vendor=NAME
)
class InfluenceEngine(transformer_impl.FSDPEngineWithLMHead):  # type: ignore[misc]
    """FSDP engine with influence in the log-prob forward."""

    def forward_step(
        self, micro_batch: TensorDict, loss_function: Callable[..., Any] | None, forward_only: bool
    ) -> tuple[Tensor, dict[str, Any]]:
        """Run the forward of a micro-batch, with the influence of each step if the batch holds :data:`STEP_STARTS`.

        Raises:
            FciUnsupportedError: the model's attention does not support FCI.
        """
        if STEP_STARTS not in micro_batch.keys():  # noqa: SIM118  (`in` asks for rows)
            result: tuple[Tensor, dict[str, Any]] = super().forward_step(micro_batch, loss_function, forward_only)
            return result
        starts = [row.nonzero().flatten().tolist() for row in micro_batch[STEP_STARTS].unbind()]
        offsets = micro_batch["input_ids"].offsets()
        branching = BranchingConfig(**tensordict_utils.get_non_tensor_data(micro_batch, MEASURE, None))
        with capture(self.module, self._spec(micro_batch, starts, offsets.diff().tolist(), branching)) as captured:
            loss, output = super().forward_step(micro_batch, loss_function, forward_only)
        influence_N = torch.zeros(int(offsets[-1]), device=offsets.device)
        if any(starts):
            of_steps = captured.of_steps(branching.measure)
            for first, row_starts, row_influence in zip(offsets.tolist(), starts, of_steps, strict=False):
                influence_N[[first + start for start in row_starts]] = row_influence.to(influence_N)
        output["model_output"][INFLUENCE] = torch.nested.nested_tensor_from_jagged(influence_N, offsets)
        return loss, output

    def _spec(
        self, micro_batch: TensorDict, starts: list[list[int]], lengths: list[int], branching: BranchingConfig
    ) -> CaptureSpec:
        packed = tensordict_utils.get_non_tensor_data(micro_batch, "use_remove_padding", True)
        # verl appends the padding as one more sequence.
        padding = self._get_packed_pad_size(sum(lengths)) if packed else 0
        return CaptureSpec(
            [*starts, []] if padding else starts,
            [*lengths, padding] if padding else lengths,
            branching.delta,
            packed=packed,
            lookups=branching.measure.uses_lookups,
        )

    def _build_fsdp_module(self, module: torch.nn.Module) -> torch.nn.Module:
        with _pageable_offload():
            built: torch.nn.Module = super()._build_fsdp_module(module)
        return built


@contextmanager
def _pageable_offload() -> Iterator[None]:
    """Patch verl's CPU offload to use pageable memory: torch cannot pin memory without an accelerator."""
    if get_device_name() != "cpu":
        yield
        return
    policy = transformer_impl.CPUOffloadPolicy
    transformer_impl.CPUOffloadPolicy = lambda pin_memory: policy(pin_memory=False)
    try:
        yield
    finally:
        transformer_impl.CPUOffloadPolicy = policy
