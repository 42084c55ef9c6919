"""The policy loss: PPO clip with separate bounds (clip-higher), and the KL penalty to a reference model (eq. 1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# exp(20) is far outside any clip range, and finite: an overflow to inf would give NaN in the backward pass.
_MAX_LOG_RATIO = 20.0


@dataclass(frozen=True)
class PolicyLoss:
    """The policy loss with diagnostics.

    Each value is a sum over unmasked tokens divided by the denominator of the whole batch, so the values of the batch
    are the sums over micro-batches.

    Attributes:
        loss: scalar for ``backward``.
        clip_fraction: share of tokens with a clipped ratio (no gradient), by the PPO clip or the dual clip.
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

    The loss of a token is ``-min(r * A, clip(r, 1 - clip_low, 1 + clip_high) * A)`` with ``r = exp(logprobs -
    old_logprobs)``; the sum over unmasked tokens is divided by ``denominator``.

    Args:
        logprobs: log-probabilities of the tokens under the trained policy, any shape, in nats.
        old_logprobs: log-probabilities under the policy that sampled the tokens, same shape.
        advantages: advantage of each token, same shape.
        mask: True for trained tokens, same shape; values at other positions have no effect, even NaN. None trains on
            all tokens.
        denominator: number of trained tokens of the WHOLE batch, not of the micro-batch ("token-mean").
        importance: factor on the loss of each token, same shape, from :func:`truncated_importance`.
        clip_low: the lower bound of the ratio is ``1 - clip_low``.
        clip_high: the upper bound of the ratio is ``1 + clip_high`` (clip-higher).
        dual_clip: above 1; bounds the loss of a token with negative advantage by ``-dual_clip * A`` for any ratio.
            None: no bound.

    Raises:
        ValueError: different shapes, or a setting out of range.
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

    The sampler has the weights of the policy, but rounds differently, so the tokens are drawn from a slightly different
    distribution. The ratio of the two probabilities corrects the gradient; the cap bounds the variance of the gradient
    (truncated importance sampling, token by token).

    Args:
        logprobs: log-probabilities computed by the policy with the weights of the sampler, any shape, in nats.
        sampler_logprobs: log-probabilities computed by the sampler, same shape.
        cap: largest weight, above 0.
    """
    return (logprobs - sampler_logprobs).clamp(max=_MAX_LOG_RATIO).exp().clamp(max=cap)


def kl_k3(logprobs: Tensor, ref_logprobs: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return the low-variance ("k3") estimate of KL(policy || reference) at each token (eq. 1).

    The estimate is ``exp(d) - d - 1`` with ``d = ref_logprobs - logprobs``, never negative, and unbiased for tokens
    drawn from the policy.

    Args:
        logprobs: log-probabilities of the tokens under the policy, any shape, in nats.
        ref_logprobs: log-probabilities under the reference, same shape.
        mask: the estimate is 0 where the mask is False, also for NaN; None: no mask.

    Raises:
        ValueError: different shapes.
    """
    mask = torch.ones_like(logprobs, dtype=torch.bool) if mask is None else mask.bool()
    if not logprobs.shape == ref_logprobs.shape == mask.shape:
        shapes = [list(tensor.shape) for tensor in (logprobs, ref_logprobs, mask)]
        raise ValueError(f"logprobs, ref_logprobs and mask must have one shape, got {shapes}")
    difference = _masked_difference(ref_logprobs, logprobs, mask)
    return difference.expm1() - difference


def _masked_difference(left: Tensor, right: Tensor, mask: Tensor) -> Tensor:
    """Return ``left - right``, bounded, and 0 where the mask is False.

    The mask is applied before any exponential: in the backward pass, a masked gradient 0 times inf would be NaN.
    """
    return (left - right).where(mask, 0.0).clamp(-_MAX_LOG_RATIO, _MAX_LOG_RATIO)


def cut_mini_batches(lengths: Sequence[int], count: int) -> list[range]:
    """Cut rows, in order, into at most ``count`` mini-batches of about equal token counts, without empty mini-batches.

    Returns:
        The range of row indices of each mini-batch.
    """
    total = sum(lengths)
    mini_batches: list[range] = []
    start = done = 0
    for row, length in enumerate(lengths):
        done += length
        if done * count >= total * (len(mini_batches) + 1) or row == len(lengths) - 1:
            mini_batches.append(range(start, row + 1))
            start = row + 1
    return mini_batches
