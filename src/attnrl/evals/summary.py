"""Numbers of one model on one benchmark: avg@k with a confidence interval, mean reward, pass@k, lengths, verdicts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean

from torch import Tensor

from attnrl.grading.not_judged import OUT_OF_THE_REWARD, not_judged_line
from attnrl.rl.evaluation import mean_reward
from attnrl.rl.metrics import verdict_ratios
from attnrl.types import Verdict
from attnrl.utils.statistics import bootstrap_means, estimate_pass_at_k, pass_ks, percentile_interval, standard_error


@dataclass(frozen=True)
class EvaluationOutcome:
    """The graded outcome of one response: an :class:`attnrl.rl.evaluation.EvaluatedSample` without texts."""

    problem: str
    reward: float | None
    verdict: Verdict
    tokens: int
    finish_reason: str
    rewards: Mapping[str, float | None] = field(default_factory=dict, hash=False)
    fault: str | None = None

    @property
    def is_correct(self) -> bool:
        """Return True for the verdict ``correct``."""
        return self.verdict == "correct"


@dataclass(frozen=True)
class Summary:
    """Statistics of the responses to a set of problems, ``samples`` responses per problem.

    Attributes:
        problems: number of problems, skipped problems included.
        skipped: number of problems with a prompt too long for the model. A skipped problem has no responses and
            counts as not solved, so that all models are measured on the same problems.
        samples: responses per problem.
        accuracy: avg@k, the mean over problems of the problem's share of correct responses; a response that is not
            judged is not correct.
        standard_error: standard error of ``accuracy`` over problems.
        means: bootstrap means of ``accuracy``.
        reward: mean reward of the judged responses; None without judged responses.
        rewards_tell_more: True if some reward is another number than 1 for correct and 0 for not correct.
        responses: number of responses.
        not_judged: number of responses without a reward.
        remark: a line about the responses without a reward, with the reasons; None if every response is judged.
        pass_at_k: unbiased estimates of pass@k, by k.
        response_length: mean number of tokens per response.
        truncated_ratio: share of responses cut off at the token budget.
        verdicts: share of each verdict of the grader, by name.
    """

    problems: int
    skipped: int
    samples: int
    accuracy: float
    standard_error: float
    means: Tensor
    reward: float | None
    rewards_tell_more: bool
    responses: int
    not_judged: int
    remark: str | None
    pass_at_k: dict[int, float]
    response_length: float
    truncated_ratio: float
    verdicts: dict[str, float]

    @property
    def interval(self) -> tuple[float, float]:
        """Return the 95 % confidence interval (low, high) of ``accuracy``."""
        return percentile_interval(self.means)

    def as_dict(self) -> dict[str, object]:
        """Return the statistics as written to ``results.json``."""
        return {
            "problems": self.problems,
            "skipped_problems": self.skipped,
            "samples": self.samples,
            "accuracy": self.accuracy,
            "confidence_interval": list(self.interval),
            "standard_error": self.standard_error,
            "reward": self.reward,
            "not_judged": self.not_judged,
            "pass_at_k": {str(k): value for k, value in self.pass_at_k.items()},
            "response_length": self.response_length,
            "truncated_ratio": self.truncated_ratio,
            "verdicts": self.verdicts,
        }


def summarize_outcomes(outcomes: Sequence[EvaluationOutcome], *, samples: int, skipped: int, seed: int) -> Summary:
    """Return the summary of graded responses.

    Args:
        outcomes: graded responses, at least one, ``samples`` per problem.
        samples: responses per problem.
        skipped: number of problems without responses.
        seed: seed of the bootstrap.

    Raises:
        ValueError: ``outcomes`` is empty, or a problem has more or fewer than ``samples`` outcomes.
    """
    of_problems: dict[str, list[bool]] = {}
    for outcome in outcomes:
        of_problems.setdefault(outcome.problem, []).append(outcome.is_correct)
    if not of_problems or any(len(of_problem) != samples for of_problem in of_problems.values()):
        raise ValueError(f"expected {samples} outcomes per problem")
    correct = [sum(of_problem) for of_problem in of_problems.values()] + [0] * skipped
    means = [count / samples for count in correct]
    judged = [outcome for outcome in outcomes if outcome.reward is not None]
    return Summary(
        problems=len(means),
        skipped=skipped,
        samples=samples,
        accuracy=fmean(means),
        standard_error=standard_error(means),
        means=bootstrap_means(means, seed),
        reward=mean_reward([outcome.reward for outcome in outcomes]),
        rewards_tell_more=any(outcome.reward != float(outcome.is_correct) for outcome in judged),
        responses=len(outcomes),
        not_judged=len(outcomes) - len(judged),
        remark=not_judged_line(outcomes, consequence=OUT_OF_THE_REWARD),
        pass_at_k={k: fmean(estimate_pass_at_k(samples, c, k) for c in correct) for k in pass_ks(samples)},
        response_length=fmean(outcome.tokens for outcome in outcomes),
        truncated_ratio=fmean(outcome.finish_reason == "length" for outcome in outcomes),
        verdicts={
            name.removeprefix("grade/").removesuffix("_ratio"): share
            for name, share in verdict_ratios([outcome.verdict for outcome in outcomes]).items()
        },
    )
