"""Measures of influence: one number per step from the attention of all layers and heads (eq. 6 and ours).

A measure has two parts: the signal of each head (FCI or lookups) and the reduction over layers and heads. ``MEASURES``
and ``REDUCTIONS`` are the only lists of their names. The module does not import torch, so that the configuration can
read the tables.

Shape letters: see CONTRIBUTING.md.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

#: Reduces ``[L, H, S]`` to ``[S]``.
Reduction = Callable[["Tensor"], "Tensor"]


@dataclass(frozen=True)
class Measure:
    """A measure of influence.

    Attributes:
        uses_lookups: the signal of each head is the lookups of a step; otherwise FCI (eq. 5).
        reduce: the reduction of the signal over layers and heads.
    """

    uses_lookups: bool
    reduce: Reduction


def fci_measure(reduction: Reduction) -> Measure:
    """Return FCI (eq. 5), reduced by ``reduction`` (the paper's: :func:`reduce_max`, eq. 6)."""
    return Measure(uses_lookups=False, reduce=reduction)


def lookups_measure(reduction: Reduction) -> Measure:
    """Return lookups, summed over layers and heads; lookups are counts, so ``reduction`` is not used (ours)."""
    return Measure(uses_lookups=True, reduce=reduce_sum)


def reduce_sum(lookups_LHS: Tensor) -> Tensor:
    """Return the sum over layers and heads, shape ``[S]``."""
    return lookups_LHS.sum((0, 1))


def reduce_max(influence_LHS: Tensor) -> Tensor:
    """Return the maximum over layers and heads, shape ``[S]`` (eq. 6)."""
    return influence_LHS.amax(dim=(0, 1))


def reduce_zscore_max(influence_LHS: Tensor) -> Tensor:
    """Return the maximum over layers and heads of the z-score over steps within each head, shape ``[S]`` (ours).

    With the plain maximum the head with the largest scale decides; z-scores give all heads one scale. A head that is
    constant over steps has z-score 0.
    """
    import torch

    centred = influence_LHS - influence_LHS.mean(dim=-1, keepdim=True)
    spread = influence_LHS.std(dim=-1, correction=0, keepdim=True)
    # Rounding of the mean gives a constant head a spread of a few ulps instead of 0.
    rounding = 8 * torch.finfo(influence_LHS.dtype).eps * influence_LHS.abs().amax(dim=-1, keepdim=True)
    varies = spread > rounding
    return reduce_max(torch.where(varies, centred / spread.where(varies, 1.0), 0.0))


MEASURES: dict[str, Callable[[Reduction], Measure]] = {"fci": fci_measure, "lookups": lookups_measure}
REDUCTIONS: dict[str, Reduction] = {"max": reduce_max, "zscore_max": reduce_zscore_max}
