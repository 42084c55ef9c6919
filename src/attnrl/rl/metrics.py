"""Compute the metrics of a training step; docs/metrics.md documents every metric.

Rewards and correctness are independent: ``reward`` metrics are means of the rewards, ``accuracy`` metrics are shares of
correct responses. Both leave out responses that are not judged.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import get_args

from attnrl.rl.rollout import RolloutTree, Sample
from attnrl.types import Verdict

MAX_EXPONENT = 700.0  # exp of a larger number overflows a float


def step_metrics(
    rollout_trees: Sequence[RolloutTree],
    trained: Sequence[RolloutTree],
    updated: Mapping[str, float],
    *,
    mask_truncated: bool,
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
        mask_truncated: truncated responses were left out of the update (``reward.truncated=mask``).
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
    samples: list[Sample] = [*trunks, *branches]
    batch_tokens = sum(len(sample.tokens) for sample in samples)
    valid_tokens = sum(_trained_tokens(problem, mask_truncated) for problem in trained)
    responses = sum(len(problem.trained_paths()) for problem in trained)
    unmasked = sum(len(problem.trained_paths(mask_truncated)) for problem in trained)
    solved = [problem for problem in rollout_trees if _all_correct(problem.plan.group.trunks)]
    return {
        **_means("", samples),
        **_means("/initial", trunks),
        **_means("/mc", branches),
        **function_means([sample.rewards for sample in samples]),
        **_not_judged(rollout_trees, samples),
        "entropy": fmean([fmean(s.entropy) for s in samples if s.entropy]),
        "response_length": fmean(paths),
        "truncated_ratio": fmean([s.finish_reason == "length" for s in samples]),
        "prompt_batch_size": prompt_batch_size,
        "carried_over": carried_over,
        "trained_responses": unmasked,
        "masked_responses": responses - unmasked,
        "tokens/generated": generated_tokens,
        "tokens/total": sampled_tokens,
        "tokens/valid": valid_tokens,
        "tokens/valid_ratio": valid_tokens / max(1, batch_tokens),
        "filtered_ratio": fmean([problem.plan.is_filtered for problem in rollout_trees]),
        **verdict_ratios([sample.verdict for sample in samples]),
        **_solve_ratios("initial", [problem.plan.group.trunks for problem in rollout_trees]),
        **_solve_ratios("mc", [problem.branches for problem in rollout_trees]),
        **_solve_ratios("all", [[*problem.plan.group.trunks, *problem.branches] for problem in rollout_trees]),
        "all_correct_then_valid_ratio": (fmean([problem.forest.has_signal for problem in solved]) if solved else 0.0),
        **_branch_places(rollout_trees),
        **_mismatch(samples),
        "nonfinite/problems": sum(not problem.is_finite for problem in rollout_trees),
        "update_skipped": float("loss/policy" not in updated),
        **updated,
        **{f"time/{phase}": seconds for phase, seconds in phases.items()},
        "time/generated_tokens_per_second": generated_tokens / max(1e-9, phases.get("generate", 0.0)),
    }


def verdict_ratios(verdicts: Sequence[Verdict]) -> dict[str, float]:
    """Return the share of each grading verdict, as ``grade/*_ratio``."""
    return {f"grade/{name}_ratio": verdicts.count(name) / len(verdicts) for name in get_args(Verdict)}


def function_means(rewards_of_samples: Sequence[Mapping[str, float | None]]) -> dict[str, float]:
    """Return the mean reward of each reward function over the responses where the function applies."""
    applied: dict[str, list[float]] = {}
    for rewards in rewards_of_samples:
        for name, reward in rewards.items():
            if reward is not None:
                applied.setdefault(name, []).append(reward)
    return {f"reward/functions/{name}": fmean(values) for name, values in applied.items()}


def _means(suffix: str, samples: Sequence[Sample]) -> dict[str, float]:
    """Return mean reward and accuracy of the judged samples; empty without judged samples."""
    judged = [(sample.reward, sample.is_correct) for sample in samples if sample.reward is not None]
    if not judged:
        return {}
    rewards, correct = zip(*judged, strict=True)
    return {f"reward{suffix}": fmean(rewards), f"accuracy{suffix}": fmean(correct)}


def _not_judged(rollout_trees: Sequence[RolloutTree], samples: Sequence[Sample]) -> dict[str, float]:
    """Return the number and the share of responses without a reward, and of problems without a judged trunk."""
    responses = sum(not sample.is_judged for sample in samples)
    return {
        "not_judged/responses": responses,
        "not_judged/ratio": responses / len(samples),
        "not_judged/groups": sum(not problem.plan.group.judged for problem in rollout_trees),
    }


def _solve_ratios(name: str, samples_of_problems: Sequence[Sequence[Sample]]) -> dict[str, float]:
    """Return the shares of problems with only correct samples, without correct samples, and with different rewards.

    Only judged samples count; problems without judged samples are left out.
    """
    judged = [[sample for sample in samples if sample.is_judged] for samples in samples_of_problems]
    known = [samples for samples in judged if samples]
    if not known:
        return {}
    return {
        f"{name}/solve_all_ratio": fmean([_all_correct(samples) for samples in known]),
        f"{name}/solve_none_ratio": fmean([not any(sample.is_correct for sample in samples) for samples in known]),
        f"{name}/valid_ratio": fmean([len({sample.reward for sample in samples}) > 1 for samples in known]),
    }


def _branch_places(rollout_trees: Sequence[RolloutTree]) -> dict[str, float]:
    """Return position, spread and agreement of the branch points; empty without branch points.

    Position is a share of the trunk's tokens; spread is the share of trunks with branch points other than the first
    possible steps; agreement is the share of branch points with equal rewards of the trunk and all continuations (those
    that are judged).
    """
    shares, beyond, agree = [], [], []
    for problem in rollout_trees:
        at_point: dict[tuple[int, int], set[float | None]] = {}
        for (index, at), sample in zip(problem.plan.branches, problem.branches, strict=True):
            at_point.setdefault((index, at), {problem.plan.group.trunks[index].reward}).add(sample.reward)
        agree += [len(rewards - {None}) <= 1 for rewards in at_point.values()]
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
    """Return True if all judged samples are correct, and at least one is judged."""
    judged = [sample for sample in samples if sample.is_judged]
    return bool(judged) and all(sample.is_correct for sample in judged)


def _trained_tokens(problem: RolloutTree, mask_truncated: bool) -> int:
    """Return the number of distinct sampled tokens used for training."""
    spans = {
        (path.tree, segment.owner, segment.start, segment.end)
        for path in problem.trained_paths(mask_truncated)
        for segment in path.segments
    }
    return sum(end - start for _, _, start, end in spans)
