"""What the disruption experiment found, from one record for each step that was hidden."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

from attnrl.experiments.disruption.choice import CONTRASTS, conditions
from attnrl.utils.statistics import bootstrap_means, percentile_interval


@dataclass(frozen=True)
class HiddenStep:
    """One step of one response, hidden and not, with the same cut, the same seeds and as many continuations each.

    Attributes:
        problem: id of the problem.
        sample: number of the response to it.
        step: number of the step.
        steps: how many the response has.
        tokens: length of the step.
        conditions: those that chose it, with whether the choice contrasts (:class:`Choice`).
        signals: its value of each signal.
        undisturbed, disrupted: rewards of the continuations.
        undisturbed_agrees, disrupted_agrees: whether their answer is that of the whole response.
    """

    problem: str
    sample: int
    step: int
    steps: int
    tokens: int
    conditions: dict[str, bool]
    signals: dict[str, float]
    undisturbed: tuple[float, ...]
    disrupted: tuple[float, ...]
    undisturbed_agrees: tuple[bool, ...]
    disrupted_agrees: tuple[bool, ...]

    @property
    def accuracy_drop(self) -> float:
        """How much worse the continuations are when the step is hidden."""
        return fmean(self.undisturbed) - fmean(self.disrupted)

    @property
    def agreement_drop(self) -> float:
        """How much less often they come to the response's own answer."""
        return fmean(self.undisturbed_agrees) - fmean(self.disrupted_agrees)

    def as_dict(self) -> dict[str, Any]:
        """A row for a jsonl file."""
        return asdict(self)


Measure = Callable[[HiddenStep], float]
MEASURES: dict[str, Measure] = {
    "accuracy_undisturbed": lambda hidden: fmean(hidden.undisturbed),
    "accuracy_disrupted": lambda hidden: fmean(hidden.disrupted),
    "accuracy_drop": lambda hidden: hidden.accuracy_drop,
    "agreement_undisturbed": lambda hidden: fmean(hidden.undisturbed_agrees),
    "agreement_disrupted": lambda hidden: fmean(hidden.disrupted_agrees),
    "agreement_drop": lambda hidden: hidden.agreement_drop,
}


def summarize(records: Sequence[HiddenStep], bins: int, seed: int) -> dict[str, Any]:
    """Means over problems with 95 % bootstrap intervals: of each condition, and of the contrasts between two."""
    return {
        "problems": len({record.problem for record in records}),
        "responses": len({(record.problem, record.sample) for record in records}),
        "conditions": {name: _condition(records, name, seed) for name in conditions(bins)},
        "contrasts": list(_contrasts(records, seed)),
    }


def estimate(values: Sequence[tuple[str, float]], seed: int) -> dict[str, Any]:
    """The mean over problems of the mean of each one's values, given as (problem, value), with its interval."""
    by_problem: dict[str, list[float]] = {}
    for problem, value in values:
        by_problem.setdefault(problem, []).append(value)
    means = [fmean(its) for its in by_problem.values()]
    low, high = percentile_interval(bootstrap_means(means, seed))
    return {"mean": fmean(means), "interval": [low, high]}


def _condition(records: Sequence[HiddenStep], name: str, seed: int) -> dict[str, Any]:
    its = [record for record in records if name in record.conditions]
    return {
        "mean_step": fmean(record.step for record in its),
        "mean_tokens": fmean(record.tokens for record in its),
        **{
            measure: estimate([(record.problem, of(record)) for record in its], seed)
            for measure, of in MEASURES.items()
        },
    }


def _contrasts(records: Sequence[HiddenStep], seed: int) -> Iterator[dict[str, Any]]:
    for pair in CONTRASTS:
        of_all, of_some = (_contrast(records, pair, strict, seed) for strict in (False, True))
        yield of_all
        if of_some["responses"] < of_all["responses"]:
            yield of_some


def _contrast(records: Sequence[HiddenStep], pair: tuple[str, str], strict: bool, seed: int) -> dict[str, Any]:
    """How much more is lost by the first condition than by the second, on the same responses.

    ``strict`` takes the responses only in which the second one is a contrast to the first.
    """
    one, other = (
        {(record.problem, record.sample): record for record in records if name in record.conditions} for name in pair
    )
    keys = [key for key in one if not strict or other[key].conditions[pair[1]]]
    contrast: dict[str, Any] = {"more": pair[0], "than": pair[1], "strict": strict, "responses": len(keys)}
    for measure in ("accuracy_drop", "agreement_drop") if keys else ():
        of = MEASURES[measure]
        contrast[measure] = estimate([(key[0], of(one[key]) - of(other[key])) for key in keys], seed)
    return contrast
