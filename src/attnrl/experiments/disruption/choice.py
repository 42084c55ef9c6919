"""Which steps of a response the disruption experiment hides, and in the place of which others.

Later steps are told less often than early ones what they need, whatever FCI says, and FCI itself, a sum over later
steps, falls with the position. So a step of high FCI is compared with another of the same position bin as well.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from attnrl.method.influence import eligible_steps, rank_steps, share_of
from attnrl.method.steps import Steps


@dataclass(frozen=True)
class Choice:
    """One step to hide.

    Attributes:
        step: its number.
        bin: its position bin, from 0.
        contrasts: whether it differs as its condition means it to: a control that is outside the top share, or of
            lower value. In a short response a bin may have none.
    """

    step: int
    bin: int
    contrasts: bool = True


def hideable(steps: Steps, lag: int) -> list[int]:
    """The steps that may be hidden: those worth branching at, with ``lag`` steps kept from there and one to follow."""
    return [step for step in eligible_steps(steps) if step + lag < len(steps)]


def position_bins(eligible: Sequence[int], bins: int) -> dict[int, int]:
    """Cut the eligible steps, in order, into ``bins`` runs of about equal length; returns the bin of each."""
    return {step: place * bins // len(eligible) for place, step in enumerate(eligible)}


def top_share(values: Sequence[float], eligible: Sequence[int], rho: float) -> list[int]:
    """The ``ceil(rho * n)`` of the ``n`` eligible steps with the largest values; of equal ones the earlier."""
    return sorted(rank_steps(values, eligible)[: share_of(rho, len(eligible))])


#: The signals that a step may stand out by, as conditions name them.
SIGNALS = ("fci", "zscore_fci", "lookups", "entropy")


def choose_steps(
    eligible: Sequence[int],
    signals: Mapping[str, Sequence[float]],
    *,
    bins: int,
    rho: float,
    name: str,
) -> dict[str, Choice]:
    """One step of a response for each condition.

    ======================  ====================================================================================
    ``SIGNAL``              a random one of the top share by this signal
    ``SIGNAL_matched``      a random other step of the same position bin, outside the top share if there is one
    ``random``              a random step outside the top share by FCI
    ``bin_top_fci``         the highest FCI of a random bin, and
    ``bin_low_fci``         the lowest of the same bin
    ``bin_1``, ...          a random step of each bin
    ======================  ====================================================================================

    Args:
        eligible: the steps that may be hidden, at least two for each bin.
        signals: of each of :data:`SIGNALS` the value of every step of the response.
        bins: number of position bins.
        rho: the top share.
        name: decides all random choices, those of a condition whatever the others are.
    """
    bin_of = position_bins(eligible, bins)
    members = [[step for step in eligible if bin_of[step] == b] for b in range(bins)]

    def rng(condition: str) -> random.Random:
        return random.Random(f"{name}/{condition}")

    chosen: dict[str, Choice] = {}
    for signal in SIGNALS:
        top = top_share(signals[signal], eligible, rho)
        step = rng(signal).choice(top)
        chosen[signal] = Choice(step, bin_of[step])
        others = [other for other in members[bin_of[step]] if other != step]
        outside = [other for other in others if other not in top]
        control = rng(f"{signal}_matched").choice(outside or others)
        chosen[f"{signal}_matched"] = Choice(control, bin_of[step], bool(outside))
    fci = signals["fci"]
    top = top_share(fci, eligible, rho)
    rest = [step for step in eligible if step not in top] or [s for s in eligible if s != chosen["fci"].step]
    step = rng("random").choice(rest)
    chosen["random"] = Choice(step, bin_of[step], step not in top)
    b = rng("bin").randrange(bins)
    high = max(members[b], key=lambda step: (fci[step], -step))
    low = min(members[b], key=lambda step: (fci[step], -step))
    chosen["bin_top_fci"] = Choice(high, b, fci[high] > fci[low])
    chosen["bin_low_fci"] = Choice(low, b, fci[high] > fci[low])
    for b in range(bins):
        chosen[f"bin_{b + 1}"] = Choice(rng(f"bin_{b + 1}").choice(members[b]), b)
    return chosen


def conditions(bins: int) -> list[str]:
    """The names of all conditions, in the order of tables."""
    by_signal = [name for signal in SIGNALS for name in (signal, f"{signal}_matched")]
    return [*by_signal, "random", "bin_top_fci", "bin_low_fci", *(f"bin_{b + 1}" for b in range(bins))]


#: Pairs of conditions whose effects are compared, response by response.
CONTRASTS = (
    *((signal, f"{signal}_matched") for signal in SIGNALS),
    *((signal, "random") for signal in SIGNALS),
    ("fci", "entropy"),
    ("bin_top_fci", "bin_low_fci"),
)
