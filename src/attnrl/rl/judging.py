"""Lines about responses that are not judged or cut off: counted, left out, and said."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

from attnrl.config.schema import TrainConfig
from attnrl.rl.evaluation import EvaluatedSample
from attnrl.rl.rollout import RolloutTree, Sample

#: Reason for a missing reward without a fault, by the verdict of the response.
REASONS: Mapping[str, str] = {
    "bad_gold": "the problem has no usable true answer (bad_gold)",
    "not_judged": "the grader gave no verdict (not_judged)",
}


def most_frequent_reason(samples: Iterable[Sample | EvaluatedSample]) -> str:
    """Return the most frequent reason for a missing reward among responses that are not judged, with a count."""
    reasons = Counter(sample.fault or REASONS.get(sample.verdict, "no reward function applies") for sample in samples)
    [(reason, count)] = reasons.most_common(1)
    return f"{reason} ({count:,} times)"


def step_warnings(step: int, problems: Sequence[RolloutTree], config: TrainConfig) -> Iterator[str]:
    """Yield a line for each of: problems dropped as not judged, a rate above the limit, many truncated responses.

    Args:
        step: the training step, from 1.
        problems: the problems of the step.
        config: settings of the run: ``reward.max_not_judged``, ``sampling.max_new_tokens``.
    """
    samples = [sample for problem in problems for sample in [*problem.plan.group.trunks, *problem.branches]]
    not_judged = [sample for sample in samples if not sample.is_judged]
    dropped = sum(not problem.plan.group.judged for problem in problems)
    if dropped:
        yield (
            f"step {step}: {dropped:,} of {len(problems):,} problems dropped, because no initial response is judged; "
            f"most often: {most_frequent_reason(not_judged)}"
        )
    limit = config.reward.max_not_judged
    if len(not_judged) > limit * len(samples):
        yield (
            f"step {step}: warning: {len(not_judged):,} of {len(samples):,} responses are not judged "
            f"({len(not_judged) / len(samples):.1%}, more than reward.max_not_judged={limit:g}); most often: "
            f"{most_frequent_reason(not_judged)}"
        )
    truncated = sum(sample.finish_reason == "length" for sample in samples)
    if step == 1 and truncated > 0.5 * len(samples):
        yield (
            f"step 1: {truncated / len(samples):.0%} of the responses are cut off at sampling.max_new_tokens="
            f"{config.sampling.max_new_tokens}: raise sampling.max_new_tokens, or see reward.truncated (now "
            f"{config.reward.truncated})"
        )
