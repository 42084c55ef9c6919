"""AdamW on fp32 master weights: gradients, moments, learning-rate warm-up, rounding, and tensors of a checkpoint."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor
from transformers import PreTrainedModel

from attnrl.config.schema import OptimizerConfig
from attnrl.errors import RunError

MASTER = "master"  # key of an fp32 master weight in a checkpoint
MOMENTS = ("step", "exp_avg", "exp_avg_sq")  # keys of AdamW's state of a weight


class MasterOptimizer:
    """AdamW that updates fp32 master weights and rounds the result to the model's 16-bit weights.

    Most updates are smaller than the spacing of 16-bit numbers, so a 16-bit weight would not change. A weight of 32 or
    64 bits is its own master.

    Attributes:
        masters: master weight of each parameter, by parameter name.
        adamw: torch's AdamW of the masters.
        updates: optimizer steps taken.
    """

    def __init__(self, model: PreTrainedModel, settings: OptimizerConfig) -> None:
        """Copy the 16-bit weights of ``model`` to fp32 masters."""
        self.weights = dict(model.named_parameters())
        self.settings = settings
        self.updates = 0
        self.masters = {
            name: weight if weight.dtype.itemsize >= 4 else weight.detach().float().requires_grad_()
            for name, weight in self.weights.items()
        }
        self.adamw: torch.optim.Optimizer = torch.optim.AdamW(
            self.masters.values(),
            lr=settings.learning_rate,
            betas=settings.betas,
            weight_decay=settings.weight_decay,
        )

    @property
    def learning_rate(self) -> float:
        """Learning rate of the last step."""
        rate: float = self.adamw.param_groups[0]["lr"]
        return rate

    def allocate_moments(self) -> None:
        """Allocate AdamW's moments now instead of at the first step, so that a lack of memory costs no training step.

        Raises:
            RunError: out of memory.
        """
        with self._explain_out_of_memory():
            for master in self.masters.values():
                if not self.adamw.state[master]:
                    moments = [torch.zeros_like(master, memory_format=torch.preserve_format) for _ in range(2)]
                    self.adamw.state[master] = dict(zip(MOMENTS, (torch.tensor(0.0), *moments), strict=True))

    def collect_gradients(self) -> None:
        """Add the gradients of 16-bit weights to the fp32 gradients of the masters, and clear the former."""
        for name, weight in self.weights.items():
            master = self.masters[name]
            if master is not weight and weight.grad is not None:
                master.grad = weight.grad.float() if master.grad is None else master.grad.add_(weight.grad)
                weight.grad = None

    def zero_grad(self) -> None:
        """Clear the gradients of masters and weights."""
        self.adamw.zero_grad(set_to_none=True)
        for weight in self.weights.values():
            weight.grad = None

    def clip_gradients(self) -> float:
        """Scale the gradients to a norm of at most ``optimizer.max_grad_norm``; return the norm before clipping.

        Raises:
            RunError: out of memory.
        """
        with self._explain_out_of_memory():
            return float(torch.nn.utils.clip_grad_norm_(self.masters.values(), self.settings.max_grad_norm))

    def step(self) -> None:
        """Take an AdamW step with the warmed-up learning rate, and round the masters to the 16-bit weights.

        Raises:
            RunError: out of memory.
        """
        warmup = min(1.0, (self.updates + 1) / self.settings.warmup_steps) if self.settings.warmup_steps else 1.0
        for group in self.adamw.param_groups:
            group["lr"] = self.settings.learning_rate * warmup
        with self._explain_out_of_memory():
            self.adamw.step()
            self._round_masters()
        self.updates += 1

    @torch.no_grad()
    def _round_masters(self) -> None:
        for name, weight in self.weights.items():
            if self.masters[name] is not weight:
                weight.copy_(self.masters[name])

    @contextmanager
    def _explain_out_of_memory(self) -> Iterator[None]:
        """Turn an out-of-memory error into a RunError that says how to free memory; smaller packs would not help."""
        try:
            yield
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            gib = sum(2 * master.nbytes for master in self.masters.values()) / 2**30
            device = next(iter(self.masters.values())).device
            raise RunError(
                f"out of memory in the optimizer, whose moments take {gib:.1f} GiB on {device}: free memory (loss.kl=0 "
                "needs no reference model, a smaller vllm.gpu_memory_utilization leaves more memory), or use a smaller "
                "model or a larger device"
            ) from error

    def tensors(self) -> dict[str, Tensor]:
        """Return the optimizer's state for a checkpoint: tensors by ``PARAMETER/KEY``.

        AdamW's moments (``lm_head.weight/exp_avg``) are included after the first step, masters
        (``lm_head.weight/master``) for 16-bit weights only.
        """
        tensors: dict[str, Tensor] = {}
        if self.updates:
            for name, master in self.masters.items():
                tensors |= {f"{name}/{moment}": self.adamw.state[master][moment] for moment in MOMENTS}
        copies = {f"{name}/{MASTER}": m.detach() for name, m in self.masters.items() if m is not self.weights[name]}
        return tensors | copies

    @torch.no_grad()
    def load_tensors(self, tensors: Mapping[str, Tensor], *, updates: int, exported: bool = False) -> None:
        """Load the state that :meth:`tensors` has returned.

        Args:
            tensors: the saved tensors.
            updates: optimizer steps taken before the tensors were saved.
            exported: True for tensors exported from another engine, which may lack the moments of a weight that never
                had a gradient, and the masters of weights trained in 16 bits.

        Raises:
            ValueError: a tensor is missing, unknown, not finite or of another shape; the message names the tensor. The
                optimizer is unchanged.
            RunError: out of memory.
        """
        self._check_tensors(tensors, updates, exported)
        self.updates = updates
        self.allocate_moments()
        for name, master in self.masters.items():
            for key, target in {MASTER: master, **self.adamw.state[master]}.items():
                if f"{name}/{key}" in tensors:
                    target.copy_(tensors[f"{name}/{key}"])

    def _check_tensors(self, tensors: Mapping[str, Tensor], updates: int, exported: bool) -> None:
        known = {f"{name}/{key}": name for name in self.weights for key in (*MOMENTS, MASTER)}
        for key, tensor in tensors.items():
            if key not in known:
                raise ValueError(f"{key} is not a tensor of this model")
            _check_tensor(key, tensor, self.masters[known[key]])
        for name, weight in self.weights.items():
            moments = [moment for moment in MOMENTS if f"{name}/{moment}" in tensors]
            if moments and not updates:
                raise ValueError(f"{name}/{moments[0]} is present, and no optimizer step was taken")
            if updates and len(moments) < len(MOMENTS) and (moments or not exported):
                raise ValueError(f"{name}/{min(set(MOMENTS) - set(moments))} is missing")
            if weight is not self.masters[name] and f"{name}/{MASTER}" not in tensors and not exported:
                raise ValueError(f"{name}/{MASTER} is missing")
        steps = max((float(tensor) for key, tensor in tensors.items() if key.endswith("/step")), default=0.0)
        if steps != updates:
            raise ValueError(f"the tensors are of optimizer step {steps:g}, and the trainer's state of {updates}")


def _check_tensor(key: str, tensor: Tensor, master: Tensor) -> None:
    """Raise ValueError unless the tensor has the master's shape and dtype (AdamW's step: a scalar) and valid values."""
    shape, dtype = (torch.Size(), torch.float32) if key.endswith("/step") else (master.shape, master.dtype)
    if (tensor.shape, tensor.dtype) != (shape, dtype):
        raise ValueError(f"{key} is {list(tensor.shape)} of {tensor.dtype}, not {list(shape)} of {dtype}")
    never_negative = key.endswith(("/step", "/exp_avg_sq"))
    if not tensor.isfinite().all() or (never_negative and (tensor < 0).any()):
        raise ValueError(f"{key} has NaN, infinite or negative values, which AdamW never produces")


def is_out_of_memory(error: RuntimeError) -> bool:
    """Return True for an out-of-memory error of a GPU, or of the CPU, where torch raises a plain RuntimeError."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
