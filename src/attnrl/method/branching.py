"""Where to branch: the criteria and the rule that turns a criterion into branch points (eq. 7)."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from attnrl.method.influence import eligible_steps, rank_steps, share_of
from attnrl.method.steps import Steps


@dataclass(frozen=True)
class RolloutSignals:
    """All that a criterion may look at in one response.

    Attributes:
        steps: the S steps of its T tokens.
        fci: forward context influence of each step, length S; empty if not measured.
        entropy: entropy of the distribution each token was drawn from, length T; empty if not measured.
        dependents: how many later steps truly depend on each step, length S; empty where nobody knows.

    Raises:
        ValueError: a measured signal of another length.
    """

    steps: Steps
    fci: tuple[float, ...] = ()
    entropy: tuple[float, ...] = ()
    dependents: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        """Check the attributes."""
        if self.fci and len(self.fci) != len(self.steps):
            raise ValueError(f"{len(self.fci)} FCI values for {len(self.steps)} steps")
        if self.entropy and len(self.entropy) != self.steps.length:
            raise ValueError(f"{len(self.entropy)} entropies for {self.steps.length} tokens")
        if self.dependents and len(self.dependents) != len(self.steps):
            raise ValueError(f"{len(self.dependents)} numbers of dependents for {len(self.steps)} steps")


# Takes the signals, rho and the generator. Returns token offsets, preferred ones first, in tiers: a tier is
# used only when all those before it are used up. No offset is 0: there the continuation would keep nothing.
Criterion = Callable[[RolloutSignals, float, random.Random], list[list[int]]]


def prefer_influence(signals: RolloutSignals, rho: float, rng: random.Random) -> list[list[int]]:
    """Prefer the earliest of the ``ceil(rho * S)`` steps of highest FCI, then the next highest FCI.

    Raises:
        ValueError: FCI was not measured.
    """
    steps, fci = signals.steps, signals.fci
    if len(fci) != len(steps):
        raise ValueError("the fci criterion needs the FCI of every step")
    ranked = rank_steps(fci, eligible_steps(steps))
    candidates = share_of(rho, len(steps))
    return _step_tiers(steps, sorted(ranked[:candidates]) + ranked[candidates:])


def prefer_entropy(signals: RolloutSignals, rho: float, rng: random.Random) -> list[list[int]]:
    """Prefer the tokens of highest entropy (TreeRL); that token itself is sampled anew.

    Raises:
        ValueError: entropy was not measured.
    """
    entropy = signals.entropy
    if len(entropy) != signals.steps.length:
        raise ValueError("the entropy criterion needs the entropy of every token")
    return [sorted(range(1, len(entropy)), key=lambda token: (-entropy[token], token))]


def prefer_random(signals: RolloutSignals, rho: float, rng: random.Random) -> list[list[int]]:
    """Prefer steps in random order."""
    order = eligible_steps(signals.steps)
    rng.shuffle(order)
    return _step_tiers(signals.steps, order)


def prefer_dependents(signals: RolloutSignals, rho: float, rng: random.Random) -> list[list[int]]:
    """Prefer the steps that most later steps truly depend on: the upper end of the scale in comparisons.

    Raises:
        ValueError: nobody knows what depends on what.
    """
    steps, dependents = signals.steps, signals.dependents
    if len(dependents) != len(steps):
        raise ValueError("the oracle criterion needs to know how many steps depend on each")
    return _step_tiers(steps, rank_steps(dependents, eligible_steps(steps)))


CRITERIA: dict[str, Criterion] = {
    "fci": prefer_influence,
    "entropy": prefer_entropy,
    "random": prefer_random,
    "oracle": prefer_dependents,
}


def branch_points(
    signals: RolloutSignals,
    *,
    criterion: str,
    count: int,
    rho: float = 0.2,
    spacing: int = 0,
    rng: random.Random,
) -> tuple[int, ...]:
    """Choose where to branch off a response (eq. 7).

    Points are taken in the order the criterion prefers, at least ``spacing`` tokens from each other and
    from the start; if that yields too few, the spacing is given up; if the response has too few places
    to branch at all, points repeat.

    Args:
        signals: the response.
        criterion: a key of ``CRITERIA``.
        count: number of branch points N.
        rho: share of steps that are candidates for ``fci``.
        spacing: least distance in tokens.
        rng: makes the choices of ``random``.

    Returns:
        ``count`` sorted token offsets ``at``, each the number of response tokens that are kept; or none
        when there is no place to branch (one step; for ``entropy`` one token).

    Raises:
        ValueError: an unknown criterion, a missing signal or a setting out of range.
    """
    if criterion not in CRITERIA:
        raise ValueError(f"unknown criterion {criterion!r}, choose one of {', '.join(CRITERIA)}")
    if count < 0 or spacing < 0 or not 0 < rho <= 1:
        raise ValueError(
            f"need count >= 0, spacing >= 0, 0 < rho <= 1; got count {count}, spacing {spacing}, rho {rho}"
        )
    points = _take(CRITERIA[criterion](signals, rho, rng), count, spacing)
    return tuple(sorted(points[i % len(points)] for i in range(count))) if points else ()


def _step_tiers(steps: Steps, order: Sequence[int]) -> list[list[int]]:
    """Turn an order of eligible steps into offsets; masked steps (``</think>`` on) are the last resort."""
    masked = range(len(steps) if steps.think_end is None else max(steps.think_end, 1), len(steps))
    return [[steps.starts[step] for step in tier] for tier in (order, masked)]


def _take(tiers: list[list[int]], count: int, spacing: int) -> list[int]:
    """Take up to ``count`` distinct offsets: from each tier those that keep the spacing, then the rest."""
    taken: list[int] = []
    for tier in tiers:
        for gap in (spacing, 0):
            for at in tier:
                if len(taken) == count:
                    return taken
                if at >= gap and at not in taken and all(abs(at - other) >= gap for other in taken):
                    taken.append(at)
    return taken
