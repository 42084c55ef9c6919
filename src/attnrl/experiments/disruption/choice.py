"""Choice of the steps to hide, and of the control steps.

The position in the response confounds the effect of FCI: early steps matter to more later steps, and FCI, a sum over
later steps, falls with the position. A step of high FCI is therefore also compared with a control step in the same
position bin.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from attnrl.method.ranking import eligible_steps, rank_steps, share_of
from attnrl.method.steps import Steps


@dataclass(frozen=True)
class ChosenStep:
    """One step to hide.

    Attributes:
        step: number of the step.
        bin: position bin of the step, from 0.
        contrasts: whether a control step is outside the top share or has a lower value, as the condition intends. A
            position bin of a short response may hold no contrasting step.
    """

    step: int
    bin: int
    contrasts: bool = True


def hideable_steps(steps: Steps, lag: int) -> list[int]:
    """Return the steps that may be hidden: steps eligible for branching with at least ``lag`` later steps."""
    return [step for step in eligible_steps(steps) if step + lag < len(steps)]


def position_bins(eligible: Sequence[int], bins: int) -> dict[int, int]:
    """Split the eligible steps, in order, into ``bins`` bins of about equal size; return the bin of each step."""
    return {step: place * bins // len(eligible) for place, step in enumerate(eligible)}


def top_share(values: Sequence[float], eligible: Sequence[int], rho: float) -> list[int]:
    """Return the top ``ceil(rho * n)`` of the ``n`` eligible steps by value; ties go to the earlier step."""
    return sorted(rank_steps(values, eligible)[: share_of(rho, len(eligible))])


#: Names of the signals that rank steps.
SIGNALS = ("fci", "zscore_fci", "lookups", "entropy")


def choose_steps(
    eligible: Sequence[int],
    signals: Mapping[str, Sequence[float]],
    *,
    bins: int,
    rho: float,
    name: str,
) -> dict[str, ChosenStep]:
    """Choose one step of a response per condition.

    ======================  ====================================================================================
    ``SIGNAL``              a random step of the top share by the signal
    ``SIGNAL_matched``      a random other step of the same position bin, outside the top share if possible
    ``random``              a random step outside the top share by FCI
    ``bin_top_fci``         the step of highest FCI in a random bin
    ``bin_low_fci``         the step of lowest FCI in the same bin
    ``bin_1``, ...          a random step of each bin
    ======================  ====================================================================================

    Args:
        eligible: the steps that may be hidden, at least two per bin.
        signals: name of each of :data:`SIGNALS` -> one value per step of the response.
        bins: number of position bins.
        rho: the top share.
        name: seeds the random choices; each condition has a random generator of its own.
    """
    bin_of = position_bins(eligible, bins)
    members = [[step for step in eligible if bin_of[step] == b] for b in range(bins)]

    def rng(condition: str) -> random.Random:
        return random.Random(f"{name}/{condition}")

    chosen: dict[str, ChosenStep] = {}
    for signal in SIGNALS:
        top = top_share(signals[signal], eligible, rho)
        step = rng(signal).choice(top)
        chosen[signal] = ChosenStep(step, bin_of[step])
        others = [other for other in members[bin_of[step]] if other != step]
        outside = [other for other in others if other not in top]
        control = rng(f"{signal}_matched").choice(outside or others)
        chosen[f"{signal}_matched"] = ChosenStep(control, bin_of[step], bool(outside))
    fci = signals["fci"]
    top = top_share(fci, eligible, rho)
    rest = [step for step in eligible if step not in top] or [s for s in eligible if s != chosen["fci"].step]
    step = rng("random").choice(rest)
    chosen["random"] = ChosenStep(step, bin_of[step], step not in top)
    b = rng("bin").randrange(bins)
    high = max(members[b], key=lambda step: (fci[step], -step))
    low = min(members[b], key=lambda step: (fci[step], -step))
    chosen["bin_top_fci"] = ChosenStep(high, b, fci[high] > fci[low])
    chosen["bin_low_fci"] = ChosenStep(low, b, fci[high] > fci[low])
    for b in range(bins):
        chosen[f"bin_{b + 1}"] = ChosenStep(rng(f"bin_{b + 1}").choice(members[b]), b)
    return chosen


def condition_names(bins: int) -> list[str]:
    """Return the names of all conditions, in the order of the tables."""
    by_signal = [name for signal in SIGNALS for name in (signal, f"{signal}_matched")]
    return [*by_signal, "random", "bin_top_fci", "bin_low_fci", *(f"bin_{b + 1}" for b in range(bins))]


#: Pairs of conditions compared response by response.
CONTRASTS = (
    *((signal, f"{signal}_matched") for signal in SIGNALS),
    *((signal, "random") for signal in SIGNALS),
    ("fci", "entropy"),
    ("bin_top_fci", "bin_low_fci"),
)
