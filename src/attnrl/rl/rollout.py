"""Records of the training loop: initial responses of a problem, continuations of trunks, and the problem's forest."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from statistics import fmean

from attnrl.errors import UserError
from attnrl.method.advantage import Advantage, weigh_advantages
from attnrl.method.branching import RolloutSignals
from attnrl.method.forest import Forest, Node, Path, Tree
from attnrl.method.ranking import mean_influence
from attnrl.method.steps import Steps
from attnrl.types import FinishReason, TrainingRow, Verdict


@dataclass(frozen=True)
class SampledTokens:
    """Sampled tokens with log-probs and entropy; all tuples have the same length.

    Attributes:
        tokens: sampled token ids; for a branch without the kept trunk tokens.
        logprobs: log-probability of each token under the sampling policy, computed by the policy.
        sampler_logprobs: log-probability of each token, computed by the sampler.
        entropy: entropy in nats of the sampling distribution of each token.
    """

    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    sampler_logprobs: tuple[float, ...]
    entropy: tuple[float, ...]

    @property
    def is_finite(self) -> bool:
        """Return True if every log-prob and entropy is finite (no NaN, no inf)."""
        return all(all(map(math.isfinite, values)) for values in (self.logprobs, self.sampler_logprobs, self.entropy))


@dataclass(frozen=True)
class Sample(SampledTokens):
    """Sampled tokens that complete a response.

    Attributes:
        reward: reward of the whole response, any finite number; None: not judged.
        verdict: the verdict of the grader, independent of the reward.
        finish_reason: the reason for the end of the sample.
        advantage_weights: weight of each token's advantage (``method.credit``); empty: equal weights.
        rewards: the reward of each reward function, None where a function does not apply; empty without functions.
        fault: the reason why the response, or a part of the reward, is not judged; None without a fault.
    """

    reward: float | None
    verdict: Verdict
    finish_reason: FinishReason
    advantage_weights: tuple[float, ...] = field(default=(), kw_only=True)
    rewards: Mapping[str, float | None] = field(default_factory=dict, kw_only=True, hash=False)
    fault: str | None = field(default=None, kw_only=True)

    @property
    def is_judged(self) -> bool:
        """Return True if the response has a reward."""
        return self.reward is not None

    @property
    def is_correct(self) -> bool:
        """Return True for the verdict ``correct``."""
        return self.verdict == "correct"


@dataclass(frozen=True)
class Trunk(Sample):
    """An initial response, with the response's steps and masked influence (empty if not measured)."""

    steps: Steps
    influence: tuple[float, ...]

    @property
    def signals(self) -> RolloutSignals:
        """Return the signals of the trunk for a branch criterion."""
        return RolloutSignals(self.steps, self.influence, self.entropy)


@dataclass(frozen=True)
class Group:
    """A problem's initial responses.

    Attributes:
        position: index of the problem in the run's order of problems; a permanent key.
        problem_id: id of the problem.
        answers: the accepted answers.
        prompt: token ids of the prompt.
        trunks: the initial responses.
    """

    position: int
    problem_id: str
    answers: tuple[str, ...]
    prompt: tuple[int, ...]
    trunks: tuple[Trunk, ...]

    @property
    def judged(self) -> list[int]:
        """Return the indices of the judged initial responses: the only ones that plans and baselines read."""
        return [index for index, trunk in enumerate(self.trunks) if trunk.is_judged]

    @property
    def correct(self) -> list[bool]:
        """Return whether each judged initial response is correct, in order."""
        return [trunk.is_correct for trunk in self.trunks if trunk.is_judged]

    @property
    def accuracy(self) -> float:
        """Return the share of correct initial responses among the judged.

        Raises:
            ValueError: no initial response is judged.
        """
        return fmean(self.correct)

    @cached_property
    def is_finite(self) -> bool:
        """Return True if every number of the initial responses is finite (no NaN, no inf)."""
        return all(trunk.is_finite and all(map(math.isfinite, trunk.influence)) for trunk in self.trunks)

    @property
    def mean_influence(self) -> float:
        """Return the mean influence of eq. 8, over the judged initial responses."""
        return mean_influence([trunk.influence for trunk in self.trunks if trunk.is_judged])


@dataclass(frozen=True)
class PartialGroup:
    """A problem with unfinished initial responses: new, or carried over to the next generation.

    Attributes:
        position: index of the problem in the run's order of problems.
        prompt: token ids of the prompt.
        trunks: initial responses: a :class:`Trunk` if finished, otherwise the tokens so far.
    """

    position: int
    prompt: tuple[int, ...]
    trunks: tuple[Trunk | SampledTokens, ...]

    @property
    def unfinished(self) -> list[SampledTokens]:
        """Return the unfinished responses, in order."""
        return [trunk for trunk in self.trunks if not isinstance(trunk, Trunk)]


@dataclass(frozen=True)
class BranchPlan:
    """The branch points of a group's trunks.

    Attributes:
        group: the initial responses.
        kept: False for a problem dropped for this step: filtered by eq. 8, with NaN or inf, or without a judged initial
            response.
        points: trunk chosen for expansion (and training) -> branch points, as numbers of kept response tokens.
        samples: continuations from each branch point.
    """

    group: Group
    kept: bool
    points: Mapping[int, tuple[int, ...]]
    samples: int

    @property
    def branches(self) -> list[tuple[int, int]]:
        """Return ``(trunk, kept tokens)`` of every continuation to sample, in order."""
        return [(trunk, at) for trunk, ats in self.points.items() for at in ats for _ in range(self.samples)]

    @property
    def is_filtered(self) -> bool:
        """Return True if attention-based filtering (eq. 8) drops the problem."""
        return not self.kept and self.group.is_finite and bool(self.group.judged)


@dataclass(frozen=True)
class RolloutTree:
    """A branch plan with the sampled continuations: the complete rollout of a problem."""

    plan: BranchPlan
    branches: tuple[Sample, ...]

    @cached_property
    def is_finite(self) -> bool:
        """Return True if every number of the responses and continuations is finite (no NaN, no inf)."""
        return self.plan.group.is_finite and all(branch.is_finite for branch in self.branches)

    @cached_property
    def forest(self) -> Forest:
        """Return the problem's trees, one per trunk, with branches in the order of ``plan.branches``."""
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
        """Return the samples of the nodes of a tree: the trunk, then the branches."""
        return [self.plan.group.trunks[tree], *(sample for _, sample in self._branches_of(tree))]

    def path_tokens(self, path: Path) -> tuple[int, ...]:
        """Return the token ids of the whole response of ``path``."""
        samples = self.node_samples(path.tree)
        return tuple(token for node, a, b in path.spans() for token in samples[node].tokens[a:b])

    def trained_paths(self, mask_truncated: bool = False) -> list[Path]:
        """Return the paths to train on: non-empty judged paths of the trained trees.

        Args:
            mask_truncated: leave out the paths that end in a response cut off at ``sampling.max_new_tokens``; tokens
                shared with other paths stay.
        """
        return [path for path in self.forest.paths() if self._is_trained(path, mask_truncated)]

    def _is_trained(self, path: Path, mask_truncated: bool) -> bool:
        if not path.trained or path.length == 0:
            return False
        return not (mask_truncated and self.node_samples(path.tree)[path.node].finish_reason == "length")

    def training_rows(self, advantage: Advantage, mask_truncated: bool = False) -> list[TrainingRow]:
        """Return one training row per path of :meth:`trained_paths`.

        Each token keeps the log-probability of the sampling policy: for trunk tokens in a one-step off-policy pipeline,
        the policy of the step before.

        Args:
            advantage: a row of ``ADVANTAGES``, or a function of the same form.
            mask_truncated: as in :meth:`trained_paths`.

        Raises:
            UserError: the number of advantages of a path is not the number of the path's tokens.
        """
        rows = []
        for path, advantages in zip(self.forest.paths(), advantage(self.forest), strict=True):
            if len(advantages) != path.length:
                raise UserError(f"method.advantage: {len(advantages)} advantages for a path of {path.length} tokens")
            if not self._is_trained(path, mask_truncated):
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
