"""The records of the loop: a problem's initial responses, what is sampled from inside them, and its forest."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from attnrl.errors import UserError
from attnrl.method.advantage import Advantage, weigh_advantages
from attnrl.method.branching import RolloutSignals
from attnrl.method.forest import Forest, Node, Path, Tree
from attnrl.method.ranking import mean_influence
from attnrl.method.steps import Steps
from attnrl.types import FinishReason, TrainingRow, Verdict


@dataclass(frozen=True)
class SampledTokens:
    """Sampled tokens and what is known of each; all tuples have the same length.

    Attributes:
        tokens: token ids of its own (a branch does not repeat the trunk tokens it keeps).
        logprobs: log-probability of each under the policy that sampled it, as the policy computes it.
        sampler_logprobs: the same as the sampler computed it.
        entropy: entropy of the distribution each was drawn from.
    """

    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    sampler_logprobs: tuple[float, ...]
    entropy: tuple[float, ...]

    @property
    def is_finite(self) -> bool:
        """Whether no number about its tokens is infinite or none at all."""
        return all(all(map(math.isfinite, values)) for values in (self.logprobs, self.sampler_logprobs, self.entropy))


@dataclass(frozen=True)
class Sample(SampledTokens):
    """Sampled tokens that complete a response.

    Attributes:
        reward: reward of the whole response.
        verdict: why.
        finish_reason: why it ended.
        advantage_weights: how much the advantage of each of its tokens counts (``method.credit``); empty: all alike.
    """

    reward: float
    verdict: Verdict
    finish_reason: FinishReason
    advantage_weights: tuple[float, ...] = field(default=(), kw_only=True)


@dataclass(frozen=True)
class Trunk(Sample):
    """An initial response, with its steps and their masked influence (empty where it was not measured)."""

    steps: Steps
    influence: tuple[float, ...]

    @property
    def signals(self) -> RolloutSignals:
        """What a branch criterion looks at."""
        return RolloutSignals(self.steps, self.influence, self.entropy)


@dataclass(frozen=True)
class Group:
    """A problem's initial responses.

    Attributes:
        position: place of the problem in the order of the run; names it for good.
        problem_id: its id.
        answers: its accepted answers.
        prompt: its prompt's token ids.
        trunks: the initial responses.
    """

    position: int
    problem_id: str
    answers: tuple[str, ...]
    prompt: tuple[int, ...]
    trunks: tuple[Trunk, ...]

    @property
    def accuracy(self) -> float:
        """Share of correct initial responses."""
        return sum(trunk.reward >= 1.0 for trunk in self.trunks) / len(self.trunks)

    @cached_property
    def is_finite(self) -> bool:
        """Whether no number about its responses is infinite or none at all."""
        return all(trunk.is_finite and all(map(math.isfinite, trunk.influence)) for trunk in self.trunks)

    @property
    def mean_influence(self) -> float:
        """Mean influence of eq. 8."""
        return mean_influence([trunk.influence for trunk in self.trunks])


@dataclass(frozen=True)
class PartialGroup:
    """A problem not all of whose initial responses have ended: a new one, or one carried over to the next generation.

    Attributes:
        position: place of the problem in the order of the run.
        prompt: its prompt's token ids.
        trunks: its initial responses: a :class:`Trunk` where it has ended, else its tokens so far.
    """

    position: int
    prompt: tuple[int, ...]
    trunks: tuple[SampledTokens, ...]

    @property
    def unfinished(self) -> list[SampledTokens]:
        """The responses that have not ended, in order."""
        return [trunk for trunk in self.trunks if not isinstance(trunk, Trunk)]


@dataclass(frozen=True)
class BranchPlan:
    """What is to be sampled from inside a group's trunks.

    Attributes:
        group: the initial responses.
        kept: False for a problem that attention-based filtering drops for this step.
        points: for each trunk chosen for expansion (and training), its branch points: response tokens kept.
        samples: continuations from each branch point.
    """

    group: Group
    kept: bool
    points: Mapping[int, tuple[int, ...]]
    samples: int

    @property
    def branches(self) -> list[tuple[int, int]]:
        """``(trunk, tokens kept)`` of every continuation to sample, in order."""
        return [(trunk, at) for trunk, ats in self.points.items() for at in ats for _ in range(self.samples)]


@dataclass(frozen=True)
class RolloutTree:
    """A plan with its continuations sampled: all that is known of a problem when it comes to training."""

    plan: BranchPlan
    branches: tuple[Sample, ...]

    @cached_property
    def is_finite(self) -> bool:
        """Whether no number about its responses and continuations is infinite or none at all."""
        return self.plan.group.is_finite and all(branch.is_finite for branch in self.branches)

    @cached_property
    def forest(self) -> Forest:
        """The trees of this problem, one for each trunk, branches in the order of ``plan.branches``."""
        trees = []
        for index, trunk in enumerate(self.plan.group.trunks):
            nodes = [Node(None, 0, len(trunk.tokens), trunk.reward)]
            nodes += [Node(0, at, len(sample.tokens), sample.reward) for at, sample in self._branches_of(index)]
            trees.append(Tree(tuple(nodes), trained=index in self.plan.points))
        return Forest(tuple(trees))

    def _branches_of(self, trunk: int) -> list[tuple[int, Sample]]:
        pairs = zip(self.plan.branches, self.branches, strict=True)
        return [(at, sample) for (owner, at), sample in pairs if owner == trunk]

    def node_samples(self, tree: int) -> list[Sample]:
        """The samples behind the nodes of one tree: the trunk, then its branches."""
        return [self.plan.group.trunks[tree], *(sample for _, sample in self._branches_of(tree))]

    def path_tokens(self, path: Path) -> tuple[int, ...]:
        """The whole response that ends in the leaf of ``path``."""
        samples = self.node_samples(path.tree)
        return tuple(token for node, a, b in path.spans() for token in samples[node].tokens[a:b])

    def training_rows(self, advantage: Advantage) -> list[TrainingRow]:
        """One row for each path of the trees trained on.

        Each token keeps the log-probability of the policy that sampled it: for trunk tokens in a one-step
        off-policy pipeline that is the policy of one step before.

        Args:
            advantage: a row of ``ADVANTAGES``, or a function of the same form.

        Raises:
            UserError: the number of advantages of a path is not the number of the path's tokens.
        """
        rows = []
        for path, advantages in zip(self.forest.paths(), advantage(self.forest), strict=True):
            if len(advantages) != path.length:
                raise UserError(f"method.advantage: {len(advantages)} advantages for a path of {path.length} tokens")
            if not path.trained or path.length == 0:
                continue
            samples = self.node_samples(path.tree)
            weights = [weight for node, a, b in path.spans() for weight in samples[node].advantage_weights[a:b]]
            rows.append(
                TrainingRow(
                    prompt=self.plan.group.prompt,
                    response=self.path_tokens(path),
                    old_logprobs=tuple(p for node, a, b in path.spans() for p in samples[node].logprobs[a:b]),
                    sampler_logprobs=tuple(
                        p for node, a, b in path.spans() for p in samples[node].sampler_logprobs[a:b]
                    ),
                    advantages=tuple(weigh_advantages(advantages, weights) if weights else advantages),
                )
            )
        return rows


def sampled_tokens(samples: Sequence[Sample]) -> int:
    """Number of tokens that these samples drew."""
    return sum(len(sample.tokens) for sample in samples)
