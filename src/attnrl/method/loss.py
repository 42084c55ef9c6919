"""The loss: PPO clip with separate bounds, and the KL penalty to a reference model (eq. 1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# exp(20) is far outside any clip range, yet finite: an overflow would turn into NaN in the backward pass.
_MAX_LOG_RATIO = 20.0


@dataclass(frozen=True)
class PolicyLoss:
    """A policy loss and what to watch beside it.

    Each is a sum over unmasked tokens divided by the denominator of the whole batch, so the values of
    micro-batches add up to those of the batch.

    Attributes:
        loss: scalar to call ``backward`` on.
        clip_fraction: share of tokens whose ratio is clipped (no gradient), by either clip.
        ratio: mean probability ratio of new to old policy.
        old_kl: k3 estimate of KL(old || new).
    """

    loss: Tensor
    clip_fraction: Tensor
    ratio: Tensor
    old_kl: Tensor


def policy_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor | None = None,
    *,
    denominator: float,
    importance: Tensor | None = None,
    clip_low: float = 0.2,
    clip_high: float = 0.28,
    dual_clip: float | None = None,
) -> PolicyLoss:
    """Return the clipped policy-gradient loss (eq. 1, without the KL term).

    Per token ``-min(r * A, clip(r, 1 - clip_low, 1 + clip_high) * A)`` with ``r = exp(logprobs -
    old_logprobs)``, summed over unmasked tokens and divided by ``denominator``.

    Args:
        logprobs: log-probabilities under the policy being trained, any shape, in nats.
        old_logprobs: those under the policy that sampled the tokens, same shape.
        advantages: advantage of each token, same shape.
        mask: True for tokens to train on, same shape; other positions may hold anything, even NaN. None trains
            on all.
        denominator: number of trained tokens of the WHOLE batch, not of this micro-batch ("token-mean").
        importance: a factor on the loss of each token, same shape, as :func:`truncated_importance` gives it.
        clip_low: the ratio is clipped below ``1 - clip_low``.
        clip_high: and above ``1 + clip_high`` (clip-higher).
        dual_clip: if given (above 1), bounds the loss of a token of negative advantage by
            ``-dual_clip * A``, however large its ratio.

    Raises:
        ValueError: shapes that differ, or a setting out of range.
    """
    mask = torch.ones_like(logprobs, dtype=torch.bool) if mask is None else mask.bool()
    importance = torch.ones_like(old_logprobs) if importance is None else importance
    if not logprobs.shape == old_logprobs.shape == advantages.shape == mask.shape == importance.shape:
        shapes = [list(tensor.shape) for tensor in (logprobs, old_logprobs, advantages, mask, importance)]
        raise ValueError(f"logprobs, old_logprobs, advantages, mask and importance must have one shape, got {shapes}")
    if denominator <= 0 or not 0 <= clip_low <= 1 or clip_high < 0:
        raise ValueError(
            f"need denominator > 0, 0 <= clip_low <= 1, clip_high >= 0, got {denominator}, {clip_low}, {clip_high}"
        )
    if dual_clip is not None and dual_clip <= 1:
        raise ValueError(f"dual_clip must be above 1, got {dual_clip}")
    log_ratio = _masked_difference(logprobs, old_logprobs, mask)
    advantages = advantages.where(mask, 0.0)

    ratio = log_ratio.exp()
    unclipped = -ratio * advantages
    clipped = -ratio.clamp(1 - clip_low, 1 + clip_high) * advantages
    losses = torch.maximum(unclipped, clipped)
    is_clipped = clipped > unclipped
    if dual_clip is not None:
        bound = -dual_clip * advantages
        is_bounded = (advantages < 0) & (losses > bound)
        losses = torch.where(is_bounded, bound, losses)
        is_clipped = is_clipped | is_bounded

    old_kl = log_ratio.expm1() - log_ratio
    return PolicyLoss(
        loss=(losses * importance.where(mask, 0.0)).sum() / denominator,
        clip_fraction=is_clipped.sum() / denominator,
        ratio=ratio.detach().where(mask, 0.0).sum() / denominator,
        old_kl=old_kl.detach().sum() / denominator,
    )


def truncated_importance(logprobs: Tensor, sampler_logprobs: Tensor, cap: float) -> Tensor:
    """Return ``min(exp(logprobs - sampler_logprobs), cap)``, the weight of each token in the policy loss.

    Tokens are drawn by a sampler whose arithmetic is not quite the policy's. Weighing them by the ratio of the
    two probabilities makes the gradient that of the policy's own samples; the cap bounds its variance
    (truncated importance sampling, token by token).

    Args:
        logprobs: log-probabilities under the policy whose weights the sampler had, any shape, in nats.
        sampler_logprobs: those that the sampler computed, same shape.
        cap: largest weight, above 0.
    """
    return (logprobs - sampler_logprobs).clamp(max=_MAX_LOG_RATIO).exp().clamp(max=cap)


def kl_k3(logprobs: Tensor, ref_logprobs: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return the low-variance ("k3") estimate of KL(policy || reference) at each token (eq. 1).

    With ``d = ref_logprobs - logprobs``: ``exp(d) - d - 1``, never negative, and unbiased for tokens drawn
    from the policy.

    Args:
        logprobs: log-probabilities under the policy, any shape.
        ref_logprobs: those under the reference, same shape.
        mask: if given, the estimate is 0 where it is False, and those positions may hold anything.

    Raises:
        ValueError: shapes that differ.
    """
    mask = torch.ones_like(logprobs, dtype=torch.bool) if mask is None else mask.bool()
    if not logprobs.shape == ref_logprobs.shape == mask.shape:
        shapes = [list(tensor.shape) for tensor in (logprobs, ref_logprobs, mask)]
        raise ValueError(f"logprobs, ref_logprobs and mask must have one shape, got {shapes}")
    difference = _masked_difference(ref_logprobs, logprobs, mask)
    return difference.expm1() - difference


def _masked_difference(left: Tensor, right: Tensor, mask: Tensor) -> Tensor:
    """Return ``left - right``, bounded, and 0 where masked.

    The mask comes before any exponential: in the backward pass its gradient of 0 times inf would be NaN.
    """
    return (left - right).where(mask, 0.0).clamp(-_MAX_LOG_RATIO, _MAX_LOG_RATIO)


def cut_mini_batches(lengths: Sequence[int], count: int) -> list[range]:
    """Cut rows, in order, into at most ``count`` runs of about equal token counts; none is empty."""
    total = sum(lengths)
    runs: list[range] = []
    start = done = 0
    for row, length in enumerate(lengths):
        done += length
        if done * count >= total * (len(runs) + 1) or row == len(lengths) - 1:
            runs.append(range(start, row + 1))
            start = row + 1
    return runs
