"""Branch points: criteria that rank the places of a response, and the rule that selects among the places (eq. 7).

A new criterion is one function ``(signals, rho, rng) -> tiers``. :func:`needs` declares the signals that the criterion
reads. Select the criterion by ``method.branching.criterion=module:object``, or add a row to :data:`CRITERIA`::

    @needs("influence")
    def prefer_last(signals, rho, rng):
        "Prefer the latest of the steps with influence above 0."
        order = [step for step in reversed(eligible_steps(signals.steps)) if signals.influence[step] > 0]
        return step_tiers(signals.steps, order)
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from attnrl.method.ranking import eligible_steps, rank_steps, share_of
from attnrl.method.steps import Steps

#: A per-response signal: the name of a field of :class:`RolloutSignals`.
Signal = Literal["influence", "entropy", "dependents"]


@dataclass(frozen=True)
class RolloutSignals:
    """The signals of one response, for branch criteria.

    Attributes:
        steps: the S steps of the response's T tokens.
        influence: influence of each step (FCI or lookups), length S; empty if not measured.
        entropy: entropy in nats of the sampling distribution of each token, length T; empty if not measured.
        dependents: number of later steps that depend on each step, length S; empty if the task has no known graph.

    Raises:
        ValueError: the length of a measured signal does not fit the steps.
    """

    steps: Steps
    influence: tuple[float, ...] = ()
    entropy: tuple[float, ...] = ()
    dependents: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        lengths = {"influence": len(self.steps), "entropy": self.steps.length, "dependents": len(self.steps)}
        for name, length in lengths.items():
            values = getattr(self, name)
            if values and len(values) != length:
                raise ValueError(f"{name}: {len(values)} values, expected {length}")


#: ``(signals, rho, rng) -> tiers``: token offsets in order of preference, in tiers. A tier is used only after all
#: earlier tiers are exhausted. Offset 0 is never a branch point, because a continuation must keep a token.
Criterion = Callable[[RolloutSignals, float, random.Random], list[list[int]]]
CriterionT = TypeVar("CriterionT", bound=Criterion)


def needs(*signals: Signal) -> Callable[[CriterionT], CriterionT]:
    """Declare the signals that a criterion reads (decorator); training measures the declared signals only."""

    def declare(criterion: CriterionT) -> CriterionT:
        vars(criterion)["needs"] = frozenset(signals)
        return criterion

    return declare


def signals_of(criterion: Criterion) -> frozenset[Signal]:
    """Return the signals that :func:`needs` declared for ``criterion``; none without the decorator."""
    declared: frozenset[Signal] = getattr(criterion, "needs", frozenset())
    return declared


@needs("influence")
def prefer_influence(signals: RolloutSignals, rho: float, rng: random.Random) -> list[list[int]]:
    """Prefer the earliest of the ``ceil(rho * S)`` steps of highest influence, then lower influence (eq. 7)."""
    ranked = rank_steps(signals.influence, eligible_steps(signals.steps))
    candidates = share_of(rho, len(signals.steps))
    return step_tiers(signals.steps, sorted(ranked[:candidates]) + ranked[candidates:])


@needs("entropy")
def prefer_entropy(signals: RolloutSignals, rho: float, rng: random.Random) -> list[list[int]]:
    """Prefer the tokens of highest entropy (TreeRL); the continuation resamples the token."""
    entropy = signals.entropy
    return [sorted(range(1, len(entropy)), key=lambda token: (-entropy[token], token))]


def prefer_random(signals: RolloutSignals, rho: float, rng: random.Random) -> list[list[int]]:
    """Prefer eligible steps in random order."""
    order = eligible_steps(signals.steps)
    rng.shuffle(order)
    return step_tiers(signals.steps, order)


@needs("dependents")
def prefer_dependents(signals: RolloutSignals, rho: float, rng: random.Random) -> list[list[int]]:
    """Prefer the steps with most dependents in the task's true dependency graph: the upper bound in comparisons."""
    return step_tiers(signals.steps, rank_steps(signals.dependents, eligible_steps(signals.steps)))


CRITERIA: dict[str, Criterion] = {
    "fci": prefer_influence,
    "entropy": prefer_entropy,
    "random": prefer_random,
    "oracle": prefer_dependents,
}


def branch_points(
    signals: RolloutSignals,
    *,
    criterion: Criterion,
    count: int,
    rho: float = 0.2,
    spacing: int = 0,
    rng: random.Random,
) -> tuple[int, ...]:
    """Select the branch points of a response (eq. 7).

    Points are taken in the order of the criterion, at least ``spacing`` tokens from each other and from the start.
    With too few such points, the spacing is dropped; with too few places in the response, points repeat.

    Args:
        signals: the signals of the response.
        criterion: a row of ``CRITERIA`` or a function of the same form.
        count: number of branch points N.
        rho: share of steps that are candidates of ``fci``.
        spacing: minimum distance in tokens.
        rng: random generator of the criterion.

    Returns:
        ``count`` sorted token offsets ``at``: the number of response tokens that a continuation keeps. Empty if the
        response has no place to branch (one step; for ``entropy`` one token).

    Raises:
        ValueError: a signal that the criterion needs is missing, or a setting is out of range.
    """
    if count < 0 or spacing < 0 or not 0 < rho <= 1:
        raise ValueError(
            f"need count >= 0, spacing >= 0, 0 < rho <= 1; got count {count}, spacing {spacing}, rho {rho}"
        )
    missing = sorted(name for name in signals_of(criterion) if not getattr(signals, name))
    if missing and len(signals.steps):
        raise ValueError(f"the branch criterion needs the signal {missing[0]}, which was not measured")
    points = _take(criterion(signals, rho, rng), count, spacing)
    return tuple(sorted(points[i % len(points)] for i in range(count))) if points else ()


def step_tiers(steps: Steps, order: Sequence[int]) -> list[list[int]]:
    """Return the offsets of eligible steps in the given order, then a last tier: the steps from ``</think>`` on."""
    masked = range(len(steps) if steps.think_end is None else max(steps.think_end, 1), len(steps))
    return [[steps.starts[step] for step in tier] for tier in (order, masked)]


def _take(tiers: list[list[int]], count: int, spacing: int) -> list[int]:
    """Take up to ``count`` distinct offsets: from each tier the offsets that keep the spacing, then the rest."""
    taken: list[int] = []
    for tier in tiers:
        for gap in (spacing, 0):
            for at in tier:
                if len(taken) == count:
                    return taken
                if at >= gap and at not in taken and all(abs(at - other) >= gap for other in taken):
                    taken.append(at)
    return taken
