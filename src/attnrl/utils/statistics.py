"""Estimates over problems: standard error, pass@k, and bootstrap confidence intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean

import torch
from torch import Tensor

BOOTSTRAP_RESAMPLES = 10_000
_RESAMPLED_AT_ONCE = 2_000_000  # indices held in memory


def standard_error(means: Sequence[float]) -> float:
    """Return the standard error of the mean of the problems' ``means`` (0 for a single problem)."""
    centre = fmean(means)
    spread = sum((mean - centre) ** 2 for mean in means)
    return math.sqrt(spread / (len(means) * max(1, len(means) - 1)))


def estimate_pass_at_k(samples: int, correct: int, k: int) -> float:
    """Return the unbiased estimate of pass@k, ``1 - C(n-c, k) / C(n, k)`` (Chen et al., 2021).

    pass@k is the probability that at least one of ``k`` responses is correct. The estimate equals the share of all
    subsets of size ``k`` of the samples with at least one correct sample.

    Args:
        samples: number n of sampled responses.
        correct: number c of correct responses among the n.
        k: number of attempts, at most n.
    """
    return 1.0 - math.comb(samples - correct, k) / math.comb(samples, k)


def pass_ks(samples: int) -> list[int]:
    """Return the values of k at which pass@k is reported: 1, 2, 4, ..., and the number of samples."""
    return sorted({2**power for power in range(samples.bit_length())} | {samples})


def bootstrap_means(values: Sequence[float], seed: int, resamples: int = BOOTSTRAP_RESAMPLES) -> Tensor:
    """Return the means [``resamples``] of bootstrap resamples of ``values``, in double precision.

    Each resample draws ``len(values)`` values with replacement; ``seed`` seeds the random generator.
    """
    generator = torch.Generator().manual_seed(seed)
    scores = torch.tensor(values, dtype=torch.float64)
    problems = len(values)
    block = max(1, _RESAMPLED_AT_ONCE // problems)
    return torch.cat(
        [
            scores[torch.randint(problems, (min(block, resamples - start), problems), generator=generator)].mean(1)
            for start in range(0, resamples, block)
        ]
    )


def percentile_interval(means: Tensor, confidence: float = 0.95) -> tuple[float, float]:
    """Return the percentile bootstrap interval (low, high): the central ``confidence`` mass of bootstrap means."""
    tail = (1.0 - confidence) / 2
    low, high = torch.quantile(means, torch.tensor([tail, 1.0 - tail], dtype=means.dtype)).tolist()
    return low, high
