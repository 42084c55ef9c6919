"""Advantages: of a segment of a tree (eq. 3), of a response in a group (GRPO), and weights of steps (ours).

A new advantage is one function ``forest -> advantages``: for every path of ``forest.paths()``, in order, one number for
each token. The paths are those of the judged leaves, so every reward is a finite number. Mark a function that is
defined without branches with :func:`whole_responses`. Select the function by ``method.advantage=module:object``, or add
a row to :data:`ADVANTAGES`::

    def leaf_reward(forest):
        "Give every token the reward of the path's leaf minus the value of the root."
        return [[path.reward - forest.root_value] * path.length for path in forest.paths()]
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import fmean, stdev
from typing import TypeVar

from attnrl.method.forest import Forest
from attnrl.method.ranking import rank_steps, share_of
from attnrl.method.steps import Steps

#: ``forest -> advantages``: for every path of ``forest.paths()``, in order, one advantage for each token.
Advantage = Callable[[Forest], Sequence[Sequence[float]]]
AdvantageT = TypeVar("AdvantageT", bound=Advantage)


def whole_responses(advantage: AdvantageT) -> AdvantageT:
    """Mark an advantage as defined for forests without branches (decorator); the config then refuses branch points."""
    vars(advantage)["whole_responses"] = True
    return advantage


def takes_branches(advantage: Advantage) -> bool:
    """Return False for an advantage marked by :func:`whole_responses`."""
    return not getattr(advantage, "whole_responses", False)


def grpo_advantages(rewards: Sequence[float], normalize_std: bool = True, eps: float = 1e-6) -> list[float]:
    """Return the advantage of each response of one problem: ``(R_i - mean R) / (std R + eps)``.

    The standard deviation is the sample standard deviation (divisor G - 1), as in torch and verl. Equal rewards
    (also a group of one response) give exact zeros.

    Args:
        rewards: rewards of the G judged responses, any finite numbers.
        normalize_std: divide by the standard deviation (False: "Dr. GRPO").
        eps: added to the standard deviation.
    """
    if len(set(rewards)) < 2:
        return [0.0] * len(rewards)
    mean = fmean(rewards)
    scale = stdev(rewards) + eps if normalize_std else 1.0
    return [(reward - mean) / scale for reward in rewards]


def tree_advantages(forest: Forest) -> list[list[float]]:
    """Return the advantage of eq. 3 (:func:`attnrl.method.forest.tree_advantage`) for every token of every path."""
    return [path.token_advantages() for path in forest.paths()]


@whole_responses
def group_advantages(forest: Forest) -> list[list[float]]:
    """Return the GRPO advantage of every response, for each of the response's tokens."""
    return _spread(forest, grpo_advantages(forest.leaf_rewards))


@whole_responses
def group_advantages_without_std(forest: Forest) -> list[list[float]]:
    """Return the GRPO advantages without the division by the standard deviation (Dr. GRPO)."""
    return _spread(forest, grpo_advantages(forest.leaf_rewards, normalize_std=False))


def _spread(forest: Forest, of_responses: Sequence[float]) -> list[list[float]]:
    return [[value] * path.length for value, path in zip(of_responses, forest.paths(), strict=True)]


ADVANTAGES: dict[str, Advantage] = {
    "tree": tree_advantages,
    "grpo": group_advantages,
    "grpo_no_std": group_advantages_without_std,
}


def influence_weights(
    influence: Sequence[float], steps: Steps, top_share: float, rest_weight: float
) -> tuple[float, ...]:
    """Return the advantage weight of each token, by the influence of the token's step (ours).

    Most tokens of a response do not affect the outcome; equal advantages on all tokens are noise. The tokens of the
    ``ceil(top_share * S)`` steps of highest influence (the earlier step on a tie) have weight 1, all other tokens
    ``rest_weight``.

    Args:
        influence: raw influence of each of the S steps, before masking: the first step may decide the outcome.
        steps: the steps of T tokens.
        top_share: share of steps of weight 1, in (0, 1].
        rest_weight: weight of the other steps.

    Returns:
        One weight per token, length T.

    Raises:
        ValueError: the number of values is not the number of steps.
    """
    if len(influence) != len(steps):
        raise ValueError(f"{len(influence)} values of influence for {len(steps)} steps")
    full = set(rank_steps(influence, range(len(steps)))[: share_of(top_share, len(steps))])
    return tuple(
        1.0 if step in full else rest_weight for step, length in enumerate(steps.lengths) for _ in range(length)
    )


def weigh_advantages(advantages: Sequence[float], weights: Sequence[float]) -> list[float]:
    """Return the advantages of one response times the token weights, with weights scaled to a mean of 1.

    The scale keeps the total weight of a response independent of ``top_share``.

    Raises:
        ValueError: the number of weights is not the number of advantages.
    """
    scale = len(weights) / sum(weights) if weights else 1.0
    return [advantage * weight * scale for advantage, weight in zip(advantages, weights, strict=True)]
