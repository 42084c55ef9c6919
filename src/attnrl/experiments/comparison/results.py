"""Results of a comparison: curves of the runs, statistics of the arms, and tests between arms.

All runs of a comparison share the held-out problems, and runs with the same seed share the training problems;
therefore arms are compared by paired tests over seeds.
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

#: Metrics of the training dynamics in figures 6, 7 and 8 of the paper, in the paper's order.
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
    "accuracy",
    "response_length",
    "branch/position",
)


@dataclass(frozen=True)
class RunResult:
    """Result of one finished run.

    Attributes:
        arm: name of the arm.
        seed: seed of the run.
        tokens: tokens sampled in training, at each evaluation.
        seconds: seconds of training (without evaluation), at each evaluation.
        accuracy: held-out accuracy (avg@k), at each evaluation.
        reward: held-out mean reward, at each evaluation; NaN where an evaluation has no reward.
        steps: number of training steps within the budget.
        updates: number of optimizer steps within the budget.
        valid_ratio: share of the sampled tokens used for training.
        dynamics: metric of :data:`DYNAMICS` -> one value per step; NaN where a step has no value.
    """

    arm: str
    seed: int
    tokens: tuple[float, ...]
    seconds: tuple[float, ...]
    accuracy: tuple[float, ...]
    reward: tuple[float, ...]
    steps: int
    updates: int
    valid_ratio: float
    dynamics: dict[str, tuple[float, ...]]

    def accuracy_at(self, tokens: float) -> float:
        """Return the accuracy at ``tokens`` sampled tokens, interpolated linearly between evaluations."""
        return interpolate(self.tokens, self.accuracy, tokens)

    def reward_at(self, tokens: float) -> float:
        """Return the held-out reward at ``tokens`` sampled tokens, interpolated linearly; NaN beside a NaN."""
        return interpolate(self.tokens, self.reward, tokens)

    @property
    def reward_tells_more(self) -> bool:
        """Return True if some held-out reward is known and differs from the accuracy."""
        pairs = zip(self.reward, self.accuracy, strict=True)
        return any(not math.isnan(reward) and reward != accuracy for reward, accuracy in pairs)

    def seconds_at(self, tokens: float) -> float:
        """Return the seconds of training at ``tokens`` sampled tokens, interpolated linearly."""
        return interpolate(self.tokens, self.seconds, tokens)

    def area(self, budget: float) -> float:
        """Return the mean accuracy over the tokens up to ``budget``: area under the curve divided by ``budget``."""
        places = [*(tokens for tokens in self.tokens if tokens < budget), budget]
        heights = [self.accuracy_at(place) for place in places]
        parts = zip(pairwise(places), pairwise(heights), strict=True)
        return sum((right - left) * (low + high) / 2 for (left, right), (low, high) in parts) / budget

    def tokens_to(self, target: float) -> float | None:
        """Return the number of sampled tokens when the accuracy first reaches ``target``, or None."""
        if self.accuracy[0] >= target:
            return self.tokens[0]
        for (left, right), (low, high) in zip(pairwise(self.tokens), pairwise(self.accuracy), strict=True):
            if high >= target:
                return left + (right - left) * (target - low) / (high - low)
        return None


def interpolate(xs: Sequence[float], ys: Sequence[float], x: float) -> float:
    """Interpolate linearly at ``x`` between points with ascending ``xs``; constant beyond both ends."""
    if x <= xs[0]:
        return ys[0]
    for (left, right), (low, high) in zip(pairwise(xs), pairwise(ys), strict=True):
        if x <= right:
            return low + (high - low) * (x - left) / (right - left)
    return ys[-1]


def read_run_result(run: PlannedRun) -> RunResult:
    """Read the result of one finished run from ``metrics.jsonl``.

    Raises:
        UserError: ``metrics.jsonl`` has no evaluation or is damaged.
    """
    try:
        return _run_result(run, read_metrics(RunDirectory(run.directory)))
    except (KeyError, TypeError) as error:
        raise UserError(f"{run.directory / METRICS}: not the metrics of a run ({one_line(error)})") from None


def _run_result(run: PlannedRun, rows: Sequence[Mapping[str, Any]]) -> RunResult:
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
        reward=tuple(rows[index].get("eval/reward", math.nan) for index in evaluated),
        steps=len(steps),
        updates=sum(not row["update_skipped"] for row in steps) * run.config.optimizer.mini_batches,
        valid_ratio=sum(row["tokens/valid"] for row in steps) / max(1.0, sum(sampled)),
        dynamics={name: tuple(row.get(name, math.nan) for row in steps) for name in DYNAMICS},
    )


def recorded_runs(file: Path, comparison: Comparison) -> dict[tuple[str, int], RunResult]:
    """Return the results of this comparison's runs in an earlier ``results.json``, by (arm, seed).

    Empty without a file, or if budget or settings differ. A comparison can thus resume without the run directories.

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
    # A file written before rewards and correctness were two numbers has no held-out reward, and fewer dynamics.
    unknown = [None] * fields["steps"]
    dynamics = {name: _with_nan(fields["dynamics"].get(name, unknown)) for name in DYNAMICS}
    reward = _with_nan(fields.get("reward", [None] * len(fields["tokens"])))
    return RunResult(**{**fields, **curves, "reward": reward, "dynamics": dynamics})


def _with_nan(values: Sequence[float | None]) -> tuple[float, ...]:
    return tuple(math.nan if value is None else value for value in values)


@dataclass(frozen=True)
class SeedMean:
    """Mean over seeds with the standard error of the mean (0 for one seed)."""

    mean: float
    standard_error: float


def mean_over_seeds(values: Sequence[float]) -> SeedMean:
    """Return mean and standard error of ``values``, one value per seed; NaN if a value is NaN."""
    if any(map(math.isnan, values)):
        return SeedMean(math.nan, math.nan)
    return SeedMean(fmean(values), stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0)


@dataclass(frozen=True)
class Difference:
    """Paired comparison of an arm with the first arm over seeds.

    Attributes:
        mean: mean difference, this arm minus the first arm.
        low: lower end of the 95 % confidence interval (Student's t).
        high: upper end of the 95 % confidence interval.
        p: p-value of a two-sided paired t-test; NaN with fewer than two seeds.
    """

    mean: float
    low: float
    high: float
    p: float


def paired_difference(values: Sequence[float], first: Sequence[float]) -> Difference:
    """Return the paired difference of two arms, with one value per seed and arm.

    Raises:
        UserError: scipy is missing.
    """
    differences = [value - other for value, other in zip(values, first, strict=True)]
    if len(differences) < 2:
        return Difference(fmean(differences), math.nan, math.nan, math.nan)
    if len(set(differences)) == 1:  # the t-test divides by the standard deviation
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
    """Statistics of one arm over seeds, at the budget of the comparison.

    Attributes:
        arm: name of the arm.
        seeds: number of seeds.
        accuracy: held-out accuracy at the budget.
        reward: held-out reward at the budget; NaN if unknown for a seed.
        reward_tells_more: True if some held-out reward of a seed differs from the accuracy.
        area: mean accuracy over the tokens up to the budget.
        tokens_to_target: sampled tokens at the target accuracy; a run that misses the target counts with the budget.
        reached: number of runs that reach the target.
        speedup: mean tokens to the target of the first arm divided by the mean of this arm; a bound if runs miss the
            target.
        seconds: seconds of training at the budget.
        seconds_to_target: seconds of training at ``tokens_to_target``.
        steps: number of training steps.
        updates: number of optimizer steps.
        valid_ratio: share of the sampled tokens used for training.
        accuracy_difference: paired difference of ``accuracy`` to the first arm.
        area_difference: paired difference of ``area`` to the first arm.
    """

    arm: str
    seeds: int
    accuracy: SeedMean
    reward: SeedMean
    reward_tells_more: bool
    area: SeedMean
    tokens_to_target: SeedMean
    reached: int
    speedup: float
    seconds: SeedMean
    seconds_to_target: SeedMean
    steps: SeedMean
    updates: SeedMean
    valid_ratio: SeedMean
    accuracy_difference: Difference
    area_difference: Difference


def complete_seeds(results: Sequence[RunResult]) -> list[RunResult]:
    """Return the results of the seeds finished by all arms, in the given order.

    Raises:
        UserError: no seed is finished by all arms.
    """
    seeds_of: dict[str, set[int]] = {}
    for result in results:
        seeds_of.setdefault(result.arm, set()).add(result.seed)
    seeds = set.intersection(*seeds_of.values()) if seeds_of else set()
    if not seeds:
        raise UserError("no seed has finished runs of all arms yet")
    return [result for result in results if result.seed in seeds]


def summarize_arms(results: Sequence[RunResult], budget: float, target: float) -> list[ArmResult]:
    """Summarize runs by arm, in the order of first appearance; seeds not finished by all arms are left out.

    Raises:
        UserError: no seed is finished by all arms, or scipy is missing.
    """
    of_arm: dict[str, list[RunResult]] = {}
    for result in sorted(complete_seeds(results), key=lambda result: result.seed):
        of_arm.setdefault(result.arm, []).append(result)
    first = next(iter(of_arm.values()))
    return [_arm_result(arm, runs, first, budget, target) for arm, runs in of_arm.items()]


def _arm_result(
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
        accuracy=mean_over_seeds(accuracies),
        reward=mean_over_seeds([run.reward_at(budget) for run in runs]),
        reward_tells_more=any(run.reward_tells_more for run in runs),
        area=mean_over_seeds(areas),
        tokens_to_target=mean_over_seeds([until_target(run) for run in runs]),
        reached=sum(map(reaches, runs)),
        speedup=fmean(until_target(run) for run in first) / own if own else math.nan,
        seconds=mean_over_seeds([run.seconds_at(budget) for run in runs]),
        seconds_to_target=mean_over_seeds([run.seconds_at(until_target(run)) for run in runs]),
        steps=mean_over_seeds([run.steps for run in runs]),
        updates=mean_over_seeds([run.updates for run in runs]),
        valid_ratio=mean_over_seeds([run.valid_ratio for run in runs]),
        accuracy_difference=paired_difference(accuracies, [run.accuracy_at(budget) for run in first]),
        area_difference=paired_difference(areas, [run.area(budget) for run in first]),
    )


def results_document(
    comparison: Comparison, results: Sequence[RunResult], arms: Sequence[ArmResult], machine: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the contents of ``results.json``: sufficient to redraw all curves and tables without the runs."""
    return {
        "comparison": comparison.model_dump(mode="json"),
        "machine": dict(machine),
        "arms": [asdict(arm) for arm in arms],
        "runs": [compact_json(asdict(result)) for result in results],
    }


def compact_json(value: Any) -> Any:
    """Return ``value`` with floats rounded to six significant digits, NaN as None, and tuples as lists."""
    if isinstance(value, float):
        return None if math.isnan(value) else float(f"{value:.6g}")
    if isinstance(value, dict):
        return {key: compact_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [compact_json(item) for item in value]
    return value
