"""Forward context influence (FCI): how much later reasoning attends back to each step of a response.

The package works with any transformers decoder with causal softmax attention::

    from attnrl.fci import forward_context_influence
    fci_S = forward_context_influence(model, input_ids, step_starts)

:func:`capture` computes FCI within a forward pass that also serves another purpose (log-probs, a training step), on
padded or packed batches. Reading order: :mod:`attnrl.fci.columns` has the arithmetic of one layer,
:mod:`attnrl.fci.attention` the logsumexp of each attention row, :mod:`attnrl.fci.layout` the interval of queries that
count for each key, :mod:`attnrl.fci.interface` the registration in transformers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from operator import index
from typing import Any

import torch
from torch import Tensor, nn

from attnrl.fci.captured import Capture
from attnrl.fci.interface import ATTENTION, capture, decoder_of
from attnrl.fci.spec import CaptureSpec, FciUnsupportedError, StepStartsError
from attnrl.method.measures import REDUCTIONS

__all__ = [
    "ATTENTION",
    "Capture",
    "CaptureSpec",
    "FciUnsupportedError",
    "StepStartsError",
    "capture",
    "check_attention",
    "evaluating",
    "forward_context_influence",
    "influence_by_head",
    "step_attention_by_head",
]


def forward_context_influence(
    model: nn.Module,
    input_ids: Tensor,
    step_starts: Sequence[int],
    *,
    delta: int = 4,
    reduction: str = "max",
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
) -> Tensor:
    """Return the raw FCI of each step of one response (eq. 5-6), before any masking rule.

    ``y[l, h, k] = sum_{j >= k + delta} alpha[l, h, j, k]``, reduced over layers l and heads h; alpha is the mean
    attention probability from the tokens of step j to the tokens of step k (eq. 4). The attention implementation, the
    training mode and the gradients of the model stay unchanged.

    Args:
        model: a transformers causal language model.
        input_ids: token ids of prompt and response, [T] or [1, T].
        step_starts: absolute token offset of each step of the response, ascending; the last step ends with
            the sequence, and tokens before the first step (the prompt) belong to no step.
        delta: smallest distance in steps between a later step and the step that receives attention.
        reduction: a key of :data:`attnrl.method.measures.REDUCTIONS`.
        layers: indices of the layers to capture; None for all.
        heads: indices of the query heads to capture in each layer; None for all.

    Returns:
        fp32 [S] on the model's device. With ``max`` the unit is attention probability per key token, and the last
        ``delta`` steps have 0.

    Raises:
        StepStartsError: no starts, unsorted starts, or a start outside the sequence.
        FciUnsupportedError: the attention of the model cannot be captured.
        ValueError: another shape of ``input_ids``, a negative ``delta``, an unknown ``reduction``, or an index of a
            layer or head out of range.
    """
    if reduction not in REDUCTIONS:
        raise ValueError(f"unknown reduction {reduction!r}; known: {', '.join(sorted(REDUCTIONS))}")
    return REDUCTIONS[reduction](
        influence_by_head(model, input_ids, step_starts, delta=delta, layers=layers, heads=heads)
    )


def influence_by_head(
    model: nn.Module,
    input_ids: Tensor,
    step_starts: Sequence[int],
    *,
    delta: int = 4,
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
) -> Tensor:
    """Return the FCI of each layer and head (eq. 5): fp32 [L, H, S], layers in ascending order.

    Layers without softmax attention are left out. Arguments and errors are as in :func:`forward_context_influence`.
    """
    return _captured(model, input_ids, step_starts, delta=delta, layers=layers, heads=heads).influence()[0]


def step_attention_by_head(
    model: nn.Module,
    input_ids: Tensor,
    step_starts: Sequence[int],
    *,
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
) -> Tensor:
    """Return the step-to-step attention alpha (eq. 4) of each layer and head: fp32 [L, H, S, S].

    ``alpha[l, h, j, k]`` is the mean attention probability from the tokens of step j to the tokens of step k, as a
    heat map shows. Arguments and errors are as in :func:`forward_context_influence`.
    """
    return _captured(model, input_ids, step_starts, layers=layers, heads=heads, matrix=True).step_matrices()[0]


def check_attention(model: nn.Module) -> dict[int, str]:
    """Run a forward pass of two tokens to verify that the attention of ``model`` can be captured.

    Returns:
        The kind of each layer without softmax attention, by layer index; FCI leaves these layers out.

    Raises:
        FciUnsupportedError: the attention cannot be captured; the message gives the reason.
    """
    captured = _captured(model, torch.zeros(2, dtype=torch.long), [0])
    captured.influence()
    return captured.skipped


def _captured(model: nn.Module, input_ids: Tensor, step_starts: Sequence[int], **options: Any) -> Capture:
    """Run the decoder on one sequence and return the capture."""
    input_ids = torch.as_tensor(input_ids)
    ids_BT = input_ids[None] if input_ids.dim() == 1 else input_ids
    if ids_BT.dim() != 2 or ids_BT.shape[0] != 1:
        raise ValueError(f"input_ids must be [T] or [1, T], got {list(input_ids.shape)}")
    if len(step_starts) == 0:
        raise StepStartsError("step_starts is empty: the response needs at least one step")
    spec = CaptureSpec([[*map(index, step_starts)]], [ids_BT.shape[1]], **options)
    with evaluating(model), torch.no_grad(), capture(model, spec) as captured:
        device = next(model.parameters()).device
        # Weights offloaded by accelerate are on the meta device until the layer runs; accelerate moves the ids.
        decoder_of(model)(ids_BT if device.type == "meta" else ids_BT.to(device), use_cache=False)
    return captured


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put ``model`` in evaluation mode within a block; afterwards restore the mode of each module."""
    former = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        yield
    finally:
        for module, training in former:
            module.training = training
