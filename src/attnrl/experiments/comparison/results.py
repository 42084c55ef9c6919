"""What a comparison comes to: curves of its runs, numbers of its arms, and tests between them.

All runs of a comparison share the held-out problems, and runs of one seed share the training problems; so arms are
tested seed by seed (paired).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from attnrl.errors import UserError, one_line
from attnrl.experiments.comparison.config import Comparison, PlannedRun
from attnrl.runs.directory import METRICS, RunDirectory
from attnrl.runs.metrics_file import read_metrics

# The curves that the paper watches (its figures 6, 7 and 8), in its order.
DYNAMICS = (
    "mc/solve_all_ratio",
    "mc/solve_none_ratio",
    "mc/valid_ratio",
    "all/valid_ratio",
    "all_correct_then_valid_ratio",
    "tokens/valid_ratio",
    "filtered_ratio",
    "prompt_batch_size",
    "entropy",
    "reward",
    "response_length",
    "branch/position",
)


@dataclass(frozen=True)
class RunResult:
    """One finished run.

    Attributes:
        arm: its arm.
        seed: its seed.
        tokens: sampled in training, at each evaluation.
        seconds: spent in training (not evaluating), at each evaluation.
        accuracy: held-out accuracy (avg@k), at each evaluation.
        steps: training steps within the budget.
        updates: optimizer steps in them.
        valid_ratio: share of the tokens sampled that were trained on.
        dynamics: the paper's curves by metric, a value a step; nan where a step has none.
    """

    arm: str
    seed: int
    tokens: tuple[float, ...]
    seconds: tuple[float, ...]
    accuracy: tuple[float, ...]
    steps: int
    updates: int
    valid_ratio: float
    dynamics: dict[str, tuple[float, ...]]

    def accuracy_at(self, tokens: float) -> float:
        """Accuracy when so many tokens were sampled, on straight lines between evaluations."""
        return interpolate(self.tokens, self.accuracy, tokens)

    def seconds_at(self, tokens: float) -> float:
        """Seconds of training until so many tokens were sampled."""
        return interpolate(self.tokens, self.seconds, tokens)

    def area(self, budget: float) -> float:
        """Mean accuracy over the tokens up to ``budget``: the area under the curve, divided by its width."""
        places = [*(tokens for tokens in self.tokens if tokens < budget), budget]
        heights = [self.accuracy_at(place) for place in places]
        parts = zip(pairwise(places), pairwise(heights), strict=True)
        return sum((right - left) * (low + high) / 2 for (left, right), (low, high) in parts) / budget

    def tokens_to(self, target: float) -> float | None:
        """Tokens sampled when the curve first reaches ``target``; None if it never does."""
        if self.accuracy[0] >= target:
            return self.tokens[0]
        for (left, right), (low, high) in zip(pairwise(self.tokens), pairwise(self.accuracy), strict=True):
            if high >= target:
                return left + (right - left) * (target - low) / (high - low)
        return None


def interpolate(xs: Sequence[float], ys: Sequence[float], x: float) -> float:
    """The height at ``x`` of the line through points of ascending ``xs``; beyond the ends, that of the nearest."""
    if x <= xs[0]:
        return ys[0]
    for (left, right), (low, high) in zip(pairwise(xs), pairwise(ys), strict=True):
        if x <= right:
            return low + (high - low) * (x - left) / (right - left)
    return ys[-1]


def read_run(run: PlannedRun) -> RunResult:
    """The result of one finished run, from its ``metrics.jsonl``.

    Raises:
        UserError: it has no evaluation, or is damaged.
    """
    try:
        return _result(run, read_metrics(RunDirectory(run.directory)))
    except (KeyError, TypeError) as error:
        raise UserError(f"{run.directory / METRICS}: not the metrics of a run ({one_line(error)})") from None


def _result(run: PlannedRun, rows: Sequence[Mapping[str, Any]]) -> RunResult:
    seconds = list(accumulate(row.get("time/step", 0.0) for row in rows))
    evaluated = [index for index, row in enumerate(rows) if "eval/accuracy" in row]
    if not evaluated:
        raise UserError(f"{run.directory}: no evaluations in {METRICS}")
    steps = rows[1:]
    sampled = [row["tokens/valid"] / row["tokens/valid_ratio"] for row in steps if row["tokens/valid_ratio"]]
    return RunResult(
        arm=run.arm,
        seed=run.seed,
        tokens=tuple(rows[index].get("tokens/total", 0.0) for index in evaluated),
        seconds=tuple(seconds[index] for index in evaluated),
        accuracy=tuple(rows[index]["eval/accuracy"] for index in evaluated),
        steps=len(steps),
        updates=sum(not row["update_skipped"] for row in steps) * run.config.optimizer.mini_batches,
        valid_ratio=sum(row["tokens/valid"] for row in steps) / max(1.0, sum(sampled)),
        dynamics={name: tuple(row.get(name, math.nan) for row in steps) for name in DYNAMICS},
    )


def recorded_runs(file: Path, comparison: Comparison) -> dict[tuple[str, int], RunResult]:
    """Results in a ``results.json`` of runs that this comparison has too, by arm and seed; none if there is no file.

    So a comparison goes on from its results alone, where run directories were not kept.

    Raises:
        UserError: the file is damaged.
    """
    if not file.exists():
        return {}
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
        before = Comparison.model_validate(document["comparison"])
        runs = [_recorded(fields) for fields in document["runs"]]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{file}: not readable ({one_line(error)})") from None
    if (before.tokens, before.settings) != (comparison.tokens, comparison.settings):
        return {}
    same = {name for name, arm in comparison.arms.items() if before.arms.get(name) == arm}
    return {(run.arm, run.seed): run for run in runs if run.arm in same}


def _recorded(fields: Mapping[str, Any]) -> RunResult:
    curves = {name: tuple(fields[name]) for name in ("tokens", "seconds", "accuracy")}
    dynamics = {
        name: tuple(math.nan if value is None else value for value in values)
        for name, values in fields["dynamics"].items()
    }
    return RunResult(**{**fields, **curves, "dynamics": dynamics})


@dataclass(frozen=True)
class Spread:
    """A mean over seeds and its standard error (0 for one seed)."""

    mean: float
    standard_error: float


def spread(values: Sequence[float]) -> Spread:
    """Mean and standard error of one value for each seed."""
    return Spread(fmean(values), stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0)


@dataclass(frozen=True)
class Difference:
    """A paired comparison with the first arm over seeds.

    Attributes:
        mean: mean difference, this arm less the first.
        low: lower end of its 95 % confidence interval (Student's t).
        high: its upper end.
        p: of a two-sided paired t-test; nan with fewer than two seeds.
    """

    mean: float
    low: float
    high: float
    p: float


def paired(values: Sequence[float], first: Sequence[float]) -> Difference:
    """Compare two arms seed by seed.

    Raises:
        UserError: scipy is missing.
    """
    differences = [value - other for value, other in zip(values, first, strict=True)]
    if len(differences) < 2:
        return Difference(fmean(differences), math.nan, math.nan, math.nan)
    if len(set(differences)) == 1:  # the test divides by their spread
        return Difference(differences[0], differences[0], differences[0], 0.0 if differences[0] else 1.0)
    try:
        from scipy import stats
    except ImportError:
        raise UserError("attnrl compare needs scipy: pip install 'attnrl[report]'") from None
    test = stats.ttest_rel(values, first)
    low, high = test.confidence_interval()
    return Difference(fmean(differences), float(low), float(high), float(test.pvalue))


@dataclass(frozen=True)
class ArmResult:
    """The numbers of one arm over its seeds, at the budget of the comparison.

    Attributes:
        arm: its name.
        seeds: how many.
        accuracy: held-out accuracy when the budget is spent.
        area: mean accuracy over the tokens up to the budget.
        tokens_to_target: tokens until the target; runs that never get there count with the budget.
        reached: runs that get there.
        speedup: the first arm's mean tokens to the target by this one's; a bound where runs never get there.
        seconds: of training until the budget is spent.
        seconds_to_target: of training until the target, as ``tokens_to_target``.
        steps: training steps.
        updates: optimizer steps.
        valid_ratio: share of the tokens sampled that were trained on.
        accuracy_difference: of ``accuracy`` to the first arm's.
        area_difference: of ``area`` to the first arm's.
    """

    arm: str
    seeds: int
    accuracy: Spread
    area: Spread
    tokens_to_target: Spread
    reached: int
    speedup: float
    seconds: Spread
    seconds_to_target: Spread
    steps: Spread
    updates: Spread
    valid_ratio: Spread
    accuracy_difference: Difference
    area_difference: Difference


def complete_seeds(results: Sequence[RunResult]) -> list[RunResult]:
    """The results of the seeds that all arms have, in their order.

    Raises:
        UserError: there is none.
    """
    seeds_of: dict[str, set[int]] = {}
    for result in results:
        seeds_of.setdefault(result.arm, set()).add(result.seed)
    seeds = set.intersection(*seeds_of.values()) if seeds_of else set()
    if not seeds:
        raise UserError("no seed has finished runs of all arms yet")
    return [result for result in results if result.seed in seeds]


def summarize_arms(results: Sequence[RunResult], budget: float, target: float) -> list[ArmResult]:
    """Sum runs up by arm, in the order in which arms first appear; seeds that not all arms have are left out.

    Raises:
        UserError: no seed has runs of all arms; or scipy is missing.
    """
    of_arm: dict[str, list[RunResult]] = {}
    for result in sorted(complete_seeds(results), key=lambda result: result.seed):
        of_arm.setdefault(result.arm, []).append(result)
    first = next(iter(of_arm.values()))
    return [_summarize(arm, runs, first, budget, target) for arm, runs in of_arm.items()]


def _summarize(
    arm: str, runs: Sequence[RunResult], first: Sequence[RunResult], budget: float, target: float
) -> ArmResult:
    def until_target(run: RunResult) -> float:
        reached = run.tokens_to(target)
        return budget if reached is None else min(reached, budget)

    def reaches(run: RunResult) -> bool:
        reached = run.tokens_to(target)
        return reached is not None and reached <= budget

    accuracies, areas = [run.accuracy_at(budget) for run in runs], [run.area(budget) for run in runs]
    own = fmean(until_target(run) for run in runs)
    return ArmResult(
        arm=arm,
        seeds=len(runs),
        accuracy=spread(accuracies),
        area=spread(areas),
        tokens_to_target=spread([until_target(run) for run in runs]),
        reached=sum(map(reaches, runs)),
        speedup=fmean(until_target(run) for run in first) / own if own else math.nan,
        seconds=spread([run.seconds_at(budget) for run in runs]),
        seconds_to_target=spread([run.seconds_at(until_target(run)) for run in runs]),
        steps=spread([run.steps for run in runs]),
        updates=spread([run.updates for run in runs]),
        valid_ratio=spread([run.valid_ratio for run in runs]),
        accuracy_difference=paired(accuracies, [run.accuracy_at(budget) for run in first]),
        area_difference=paired(areas, [run.area(budget) for run in first]),
    )


def as_document(
    comparison: Comparison, results: Sequence[RunResult], arms: Sequence[ArmResult], machine: Mapping[str, Any]
) -> dict[str, Any]:
    """All of it, as it goes into ``results.json``: enough to draw and to tabulate again without the runs."""
    return {
        "comparison": comparison.model_dump(mode="json"),
        "machine": dict(machine),
        "arms": [asdict(arm) for arm in arms],
        "runs": [rounded(asdict(result)) for result in results],
    }


def rounded(value: Any) -> Any:
    """Floats at six digits, nan as null: files that are kept in a repository should be small, and JSON."""
    if isinstance(value, float):
        return None if math.isnan(value) else float(f"{value:.6g}")
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(item) for item in value]
    return value
