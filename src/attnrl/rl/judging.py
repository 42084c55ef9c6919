"""Lines about responses that are not judged or cut off: counted, left out, and said."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from attnrl.config.schema import TrainConfig
from attnrl.grading.not_judged import OUT_OF_THE_REWARD, not_judged_line
from attnrl.rl.evaluation import Evaluation
from attnrl.rl.rollout import RolloutTree


def step_warnings(step: int, problems: Sequence[RolloutTree], config: TrainConfig) -> Iterator[str]:
    """Yield a line about the responses that are not judged, and a line at step 1 about many truncated responses.

    The first line names the problems dropped for lack of a judged initial response; the line is a warning above
    ``reward.max_not_judged``.

    Args:
        step: the training step, from 1.
        problems: the problems of the step.
        config: settings of the run: ``reward.max_not_judged``, ``sampling.max_new_tokens``.
    """
    samples = [sample for problem in problems for sample in [*problem.plan.group.trunks, *problem.branches]]
    dropped = sum(not problem.plan.group.judged for problem in problems)
    consequence = f"{dropped:,} of {len(problems):,} problems dropped (no initial response judged)" if dropped else ""
    line = not_judged_line(samples, config.reward.max_not_judged, consequence=consequence)
    if line is not None:
        yield f"step {step}: {line}"
    truncated = sum(sample.finish_reason == "length" for sample in samples)
    if step == 1 and truncated > 0.5 * len(samples):
        yield (
            f"step 1: {truncated / len(samples):.0%} of the responses are cut off at sampling.max_new_tokens="
            f"{config.sampling.max_new_tokens}: raise sampling.max_new_tokens, or see reward.truncated (now "
            f"{config.reward.truncated})"
        )


def evaluation_warnings(step: int, evaluation: Evaluation, config: TrainConfig) -> Iterator[str]:
    """Yield a line about the responses of an evaluation that are not judged, if any."""
    line = not_judged_line(evaluation.samples, config.reward.max_not_judged, consequence=OUT_OF_THE_REWARD)
    if line is not None:
        yield f"evaluation of step {step}: {line}"
