"""Compute the metrics of a training step; docs/metrics.md documents every metric."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import get_args

from attnrl.rl.rollout import RolloutTree, Sample, sampled_tokens
from attnrl.types import Verdict

CORRECT = 1.0  # reward of a correct response
MAX_EXPONENT = 700.0  # exp of a larger number overflows a float


def step_metrics(
    rollout_trees: Sequence[RolloutTree],
    trained: Sequence[RolloutTree],
    updated: Mapping[str, float],
    *,
    prompt_batch_size: int,
    generated_tokens: int,
    sampled_tokens: int,
    carried_over: int,
    phases: Mapping[str, float],
) -> dict[str, float]:
    """Return the metrics of a training step.

    Args:
        rollout_trees: the rollouts of the step's batch.
        trained: the rollouts used for the policy update.
        updated: metrics of the policy update; without ``loss/policy`` if the update was skipped.
        prompt_batch_size: problems in the batch.
        generated_tokens: tokens sampled during the step, also for the next batch.
        sampled_tokens: tokens sampled since the start of the run.
        carried_over: initial responses left unfinished, continued in the next step.
        phases: seconds of each phase of the step.
    """
    trunks = [trunk for problem in rollout_trees for trunk in problem.plan.group.trunks]
    branches = [branch for problem in rollout_trees for branch in problem.branches]
    paths = [len(trunk.tokens) for trunk in trunks] + [
        at + len(sample.tokens)
        for problem in rollout_trees
        for (_, at), sample in zip(problem.plan.branches, problem.branches, strict=True)
    ]
    batch_tokens = sum(len(sample.tokens) for sample in [*trunks, *branches])
    valid_tokens = sum(_trained_tokens(problem) for problem in trained)
    solved = [problem for problem in rollout_trees if _all_correct(problem.plan.group.trunks)]
    rewards_initial = [[t.reward for t in problem.plan.group.trunks] for problem in rollout_trees]
    rewards_mc = [[branch.reward for branch in problem.branches] for problem in rollout_trees if problem.branches]
    rewards_all = [problem.forest.leaf_rewards for problem in rollout_trees]
    return {
        "reward": fmean([reward for rewards in rewards_all for reward in rewards]),
        "reward/initial": fmean([trunk.reward for trunk in trunks]),
        **({"reward/mc": fmean([branch.reward for branch in branches])} if branches else {}),
        "entropy": fmean([fmean(s.entropy) for s in [*trunks, *branches] if s.entropy]),
        "response_length": fmean(paths),
        "truncated_ratio": fmean([s.finish_reason == "length" for s in [*trunks, *branches]]),
        "prompt_batch_size": prompt_batch_size,
        "carried_over": carried_over,
        "trained_responses": sum(_trained_paths(problem) for problem in trained),
        "tokens/generated": generated_tokens,
        "tokens/total": sampled_tokens,
        "tokens/valid": valid_tokens,
        "tokens/valid_ratio": valid_tokens / max(1, batch_tokens),
        "filtered_ratio": fmean([not problem.plan.kept for problem in rollout_trees]),
        **verdict_ratios([sample.verdict for sample in [*trunks, *branches]]),
        **_solve_ratios("initial", rewards_initial),
        **_solve_ratios("mc", rewards_mc),
        **_solve_ratios("all", rewards_all),
        "all_correct_then_valid_ratio": (fmean([problem.forest.has_signal for problem in solved]) if solved else 0.0),
        **_branch_places(rollout_trees),
        **_mismatch([*trunks, *branches]),
        "nonfinite/problems": sum(not problem.is_finite for problem in rollout_trees),
        "update_skipped": float("loss/policy" not in updated),
        **updated,
        **{f"time/{phase}": seconds for phase, seconds in phases.items()},
        "time/generated_tokens_per_second": generated_tokens / max(1e-9, phases.get("generate", 0.0)),
    }


def verdict_ratios(verdicts: Sequence[Verdict]) -> dict[str, float]:
    """Return the share of each grading verdict, as ``grade/*_ratio``."""
    return {f"grade/{name}_ratio": verdicts.count(name) / len(verdicts) for name in get_args(Verdict)}


def _solve_ratios(samples: str, rewards_of_problems: Sequence[Sequence[float]]) -> dict[str, float]:
    """Return the shares of problems with only correct samples, with only wrong samples, and with both (valid)."""
    if not rewards_of_problems:
        return {}
    solve_all = fmean([min(rewards) >= CORRECT for rewards in rewards_of_problems])
    solve_none = fmean([max(rewards) < CORRECT for rewards in rewards_of_problems])
    return {
        f"{samples}/solve_all_ratio": solve_all,
        f"{samples}/solve_none_ratio": solve_none,
        f"{samples}/valid_ratio": 1.0 - solve_all - solve_none,
    }


def _branch_places(rollout_trees: Sequence[RolloutTree]) -> dict[str, float]:
    """Return position, spread and agreement of the branch points; empty without branch points.

    Position is a share of the trunk's tokens; spread is the share of trunks with branch points other than the first
    possible steps; agreement is the share of branch points with equal rewards of the trunk and all continuations.
    """
    shares, beyond, agree = [], [], []
    for problem in rollout_trees:
        at_point: dict[tuple[int, int], set[float]] = {}
        for (index, at), sample in zip(problem.plan.branches, problem.branches, strict=True):
            at_point.setdefault((index, at), {problem.plan.group.trunks[index].reward}).add(sample.reward)
        agree += [len(rewards) == 1 for rewards in at_point.values()]
        for index, points in problem.plan.points.items():
            trunk = problem.plan.group.trunks[index]
            if points:
                shares += [at / len(trunk.tokens) for at in points]
                # The first possible branch points are the starts of the second step, the third step and so on.
                beyond.append(set(points) != set(trunk.steps.starts[1 : 1 + len(points)]))
    if not shares:
        return {}
    return {
        "branch/position": fmean(shares),
        "branch/beyond_first_steps_ratio": fmean(beyond),
        "branch/agreement_ratio": fmean(agree),
    }


def _mismatch(samples: Sequence[Sample]) -> dict[str, float]:
    """Return the mismatch of the policy's and the sampler's log-probs of the sampled tokens, in nats."""
    differences = [
        policy - sampler
        for sample in samples
        if sample.entropy  # a sample without entropy was not scored by the policy
        for policy, sampler in zip(sample.logprobs, sample.sampler_logprobs, strict=True)
    ]
    return {
        "mismatch/mean": fmean(map(abs, differences)),
        "mismatch/max": max(map(abs, differences)),
        "mismatch/k3": fmean(math.expm1(min(d, MAX_EXPONENT)) - d for d in differences),
    }


def _all_correct(samples: Sequence[Sample]) -> bool:
    return all(sample.reward >= CORRECT for sample in samples)


def _trained_paths(problem: RolloutTree) -> int:
    return sum(path.trained for path in problem.forest.paths())


def _trained_tokens(problem: RolloutTree) -> int:
    """Return the number of distinct sampled tokens used for training."""
    return sum(sampled_tokens(problem.node_samples(tree)) for tree in problem.plan.points)
