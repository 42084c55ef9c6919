"""Forward context influence (FCI): how much later reasoning attends back to each step of a response.

Works on its own, on any transformers decoder with causal softmax attention::

    from attnrl.fci import forward_context_influence
    fci_S = forward_context_influence(model, input_ids, step_starts)

:mod:`attnrl.fci.capture` takes it from a batched forward that also serves another purpose (a policy's
scoring), :mod:`attnrl.fci.columns` is the arithmetic of one layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from attnrl.fci.capture import (
    ATTENTION,
    Capture,
    CaptureSpec,
    FciUnsupportedError,
    StepStartsError,
    capture,
    enable,
    enabled,
)
from attnrl.method.influence import REDUCTIONS

__all__ = [
    "ATTENTION",
    "Capture",
    "CaptureSpec",
    "FciUnsupportedError",
    "StepStartsError",
    "capture",
    "enable",
    "enabled",
    "forward_context_influence",
]


def forward_context_influence(
    model: nn.Module,
    input_ids: Tensor,
    step_starts: Sequence[int],
    *,
    delta: int = 4,
    reduction: str = "max",
) -> Tensor:
    """Raw FCI of each step of one response (eq. 5-6), before any masking rule.

    ``y[l, h, k] = sum_{j >= k + delta} alpha[l, h, j, k]``, reduced over layers l and heads h; alpha is the
    mean attention probability from the tokens of step j to those of step k. The model is left as it was
    found: attention implementation, training mode, gradients.

    Args:
        model: a transformers causal language model.
        input_ids: token ids of prompt and response, [T] or [1, T].
        step_starts: absolute token offset of each step of the response, ascending; the last step ends with
            the sequence, and tokens before the first (the prompt) belong to no step.
        delta: how many steps ahead attention must come from to count.
        reduction: a key of :data:`attnrl.method.influence.REDUCTIONS`.

    Returns:
        fp32 [steps] on the model's device; with ``max`` in units of attention probability per key token, and
        then zero for the last ``delta`` steps.

    Raises:
        StepStartsError: no starts, unsorted starts, or a start outside the sequence.
        FciUnsupportedError: the attention of the model cannot be captured.
        ValueError: another shape of ``input_ids``, a negative ``delta`` or an unknown ``reduction``.
    """
    ids_BT = input_ids[None] if input_ids.dim() == 1 else input_ids
    if ids_BT.dim() != 2 or ids_BT.shape[0] != 1:
        raise ValueError(f"input_ids must be [T] or [1, T], got {list(input_ids.shape)}")
    if reduction not in REDUCTIONS:
        raise ValueError(f"unknown reduction {reduction!r}; known: {', '.join(sorted(REDUCTIONS))}")
    if len(step_starts) == 0:
        raise StepStartsError("step_starts is empty: the response needs at least one step")
    spec = CaptureSpec([list(step_starts)], [ids_BT.shape[1]], delta)
    # The model under the language modelling head: nobody reads the logits, T x vocabulary of them.
    decoder = getattr(model, "base_model", model)
    with _evaluating(model), enabled(model), torch.no_grad(), capture(spec) as captured:
        decoder(ids_BT.to(next(model.parameters()).device), use_cache=False)
    return REDUCTIONS[reduction](captured.influence()[0])


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode for the length of a block; each module then returns to the mode it was in."""
    former = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        yield
    finally:
        for module, training in former:
            module.training = training
