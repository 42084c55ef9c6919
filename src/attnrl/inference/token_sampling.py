"""Counter-based random draws and token sampling: a request's i-th draw depends on the seed and i alone.

Shape letters: see CONTRIBUTING.md.
"""

from __future__ import annotations

import torch
from torch import Tensor

from attnrl.types import SamplingParams


def uniforms(seeds_B: Tensor, counters_BJ: Tensor) -> Tensor:
    """Return uniform draws in (0, 1); equal seeds and counters give equal draws on every device.

    Each draw is a splitmix64 hash of ``mix(seed) + counter * golden`` in wrapping int64 arithmetic, without any
    generator state.

    Args:
        seeds_B: int64 seeds [B].
        counters_BJ: int64 indices of the draws [B, J].

    Returns:
        float32 [B, J], odd multiples of 2**-24: neither 0 nor 1.
    """
    bits_BJ = _mix(_mix(seeds_B)[:, None] + counters_BJ * -7046029254386353131)  # 0x9E3779B97F4A7C15
    return (_shift(bits_BJ, 41).to(torch.float32) + 0.5) * 2.0**-23


def wrapped(seed: int) -> int:
    """Return the seed modulo 2**64 as a signed 64-bit integer, for :func:`uniforms`."""
    return (seed + 2**63) % 2**64 - 2**63


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _shift(x, 30)) * -4658895280553007687  # 0xBF58476D1CE4E5B9
    x = (x ^ _shift(x, 27)) * -7723592293110705685  # 0x94D049BB133111EB
    return x ^ _shift(x, 31)


def _shift(x: Tensor, bits: int) -> Tensor:
    """Return the logical right shift of ``x``; torch's shift is arithmetic."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def sample_token(logits_BV: Tensor, uniform_B: Tensor, params: SamplingParams) -> tuple[Tensor, Tensor]:
    """Sample one token per row by inverting the cumulative distribution at ``uniform_B``.

    Args:
        logits_BV: raw logits, any float dtype.
        uniform_B: draws in (0, 1).
        params: temperature and filters; stop strings are not read.

    Returns:
        ``(token_B, logprob_B)``; the log-probs (float32, nats) are of the full softmax of ``logits / temperature``
        (temperature 1 for greedy decoding), before min-p, top-k and top-p.
    """
    temperature = params.temperature
    logits_BV = logits_BV.float()
    if temperature not in (0.0, 1.0):
        logits_BV = logits_BV / temperature
    logprobs_BV = logits_BV.log_softmax(-1)
    if temperature == 0.0:
        logprob_B, token_B = logprobs_BV.max(-1)
        return token_B, logprob_B
    probs_BV = logprobs_BV.exp()
    if params.min_p:
        probs_BV = probs_BV.masked_fill(probs_BV < params.min_p * probs_BV.amax(-1, keepdim=True), 0.0)
    if params.top_p < 1.0 or params.top_k:
        probs_BV = _most_probable(probs_BV, params.top_p, params.top_k)
    cdf_BV = probs_BV.cumsum(-1)
    # u < 1 keeps u * total below the total in float32 too, so a token of probability 0 is never chosen.
    token_B1 = torch.searchsorted(cdf_BV, uniform_B[:, None] * cdf_BV[:, -1:], right=True)
    token_B1 = token_B1.clamp_max(cdf_BV.shape[1] - 1)  # a NaN row would give an index past the end; the caller raises
    return token_B1[:, 0], logprobs_BV.gather(1, token_B1)[:, 0]


def _most_probable(probs_BV: Tensor, top_p: float, top_k: int) -> Tensor:
    """Return the probabilities with 0 for tokens outside of top-k, then top-p; of equal tokens lower ids are kept."""
    sorted_BV, order_BV = probs_BV.sort(dim=-1, descending=True, stable=True)
    if top_k:
        sorted_BV[:, top_k:] = 0.0
    if top_p < 1.0:
        mass_before_BV = sorted_BV.cumsum(-1) - sorted_BV
        sorted_BV = sorted_BV.masked_fill(mass_before_BV >= top_p * sorted_BV.sum(-1, keepdim=True), 0.0)
    return torch.zeros_like(probs_BV).scatter_(1, order_BV, sorted_BV)
