"""Statistics of the disruption experiment: effect of each condition, and contrasts between conditions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

from attnrl.experiments.disruption.choice import CONTRASTS, condition_names
from attnrl.utils.statistics import bootstrap_means, percentile_interval


@dataclass(frozen=True)
class HiddenStep:
    """Continuations of one response with nothing hidden and with one step hidden: same cut, same seeds, same number.

    Attributes:
        problem: id of the problem.
        sample: number of the response to the problem.
        step: number of the step.
        steps: number of steps of the response.
        tokens: length of the step in tokens.
        conditions: the conditions that chose the step, each with :attr:`ChosenStep.contrasts`.
        signals: value of each signal at the step.
        undisturbed: whether each continuation with nothing hidden is correct.
        disrupted: whether each continuation with the step hidden is correct.
        undisturbed_rewards: rewards of the continuations with nothing hidden; None: not judged.
        disrupted_rewards: rewards of the continuations with the step hidden.
        undisturbed_agrees: whether each continuation's answer equals the answer of the whole response, nothing hidden.
        disrupted_agrees: the same with the step hidden.
    """

    problem: str
    sample: int
    step: int
    steps: int
    tokens: int
    conditions: dict[str, bool]
    signals: dict[str, float]
    undisturbed: tuple[bool, ...]
    disrupted: tuple[bool, ...]
    undisturbed_rewards: tuple[float | None, ...]
    disrupted_rewards: tuple[float | None, ...]
    undisturbed_agrees: tuple[bool, ...]
    disrupted_agrees: tuple[bool, ...]

    @property
    def accuracy_drop(self) -> float:
        """Return the loss of accuracy caused by hiding the step; a continuation not judged is not correct."""
        return fmean(self.undisturbed) - fmean(self.disrupted)

    @property
    def agreement_drop(self) -> float:
        """Return the loss of agreement with the response's own answer caused by hiding the step."""
        return fmean(self.undisturbed_agrees) - fmean(self.disrupted_agrees)

    def as_dict(self) -> dict[str, Any]:
        """Return the record as a row of a JSON lines file."""
        return asdict(self)


Statistic = Callable[[HiddenStep], float]
STATISTICS: dict[str, Statistic] = {
    "accuracy_undisturbed": lambda hidden: fmean(hidden.undisturbed),
    "accuracy_disrupted": lambda hidden: fmean(hidden.disrupted),
    "accuracy_drop": lambda hidden: hidden.accuracy_drop,
    "agreement_undisturbed": lambda hidden: fmean(hidden.undisturbed_agrees),
    "agreement_disrupted": lambda hidden: fmean(hidden.disrupted_agrees),
    "agreement_drop": lambda hidden: hidden.agreement_drop,
}


def summarize_hidden_steps(records: Sequence[HiddenStep], bins: int, seed: int) -> dict[str, Any]:
    """Return means over problems with 95 % bootstrap intervals: per condition, and per contrast of two conditions."""
    return {
        "problems": len({record.problem for record in records}),
        "responses": len({(record.problem, record.sample) for record in records}),
        "conditions": {name: _condition(records, name, seed) for name in condition_names(bins)},
        "contrasts": list(_contrasts(records, seed)),
    }


def mean_over_problems(values: Sequence[tuple[str, float]], seed: int) -> dict[str, Any]:
    """Return the mean over problems of each problem's mean value, with a 95 % bootstrap interval.

    ``values`` are pairs (problem id, value); ``seed`` seeds the bootstrap.
    """
    by_problem: dict[str, list[float]] = {}
    for problem, value in values:
        by_problem.setdefault(problem, []).append(value)
    means = [fmean(of_problem) for of_problem in by_problem.values()]
    low, high = percentile_interval(bootstrap_means(means, seed))
    return {"mean": fmean(means), "interval": [low, high]}


def _condition(records: Sequence[HiddenStep], name: str, seed: int) -> dict[str, Any]:
    chosen = [record for record in records if name in record.conditions]
    return {
        "mean_step": fmean(record.step for record in chosen),
        "mean_tokens": fmean(record.tokens for record in chosen),
        **{
            measure: mean_over_problems([(record.problem, of(record)) for record in chosen], seed)
            for measure, of in STATISTICS.items()
        },
    }


def _contrasts(records: Sequence[HiddenStep], seed: int) -> Iterator[dict[str, Any]]:
    for pair in CONTRASTS:
        all_responses, contrasting = (_contrast(records, pair, strict, seed) for strict in (False, True))
        yield all_responses
        if contrasting["responses"] < all_responses["responses"]:
            yield contrasting


def _contrast(records: Sequence[HiddenStep], pair: tuple[str, str], strict: bool, seed: int) -> dict[str, Any]:
    """Return the difference in loss between the first and the second condition of ``pair``, on the same responses.

    ``strict`` restricts the comparison to responses with a contrasting step for the second condition.
    """
    one, other = (
        {(record.problem, record.sample): record for record in records if name in record.conditions} for name in pair
    )
    keys = [key for key in one if not strict or other[key].conditions[pair[1]]]
    contrast: dict[str, Any] = {"more": pair[0], "than": pair[1], "strict": strict, "responses": len(keys)}
    for measure in ("accuracy_drop", "agreement_drop") if keys else ():
        of = STATISTICS[measure]
        contrast[measure] = mean_over_problems([(key[0], of(one[key]) - of(other[key])) for key in keys], seed)
    return contrast
