"""One generation of a training step: requests to the sampler, and the completions graded and scored.

A generation mixes two kinds of requests: continuations from inside the trunks of the batch that is trained on, and
initial responses, new or carried over from the generation before. Each request is tagged with the place of the result.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from attnrl.config.schema import TrainConfig
from attnrl.data.stream import ProblemSource
from attnrl.grading.rewards import RewardManager
from attnrl.method.advantage import influence_weights
from attnrl.method.ranking import mask_influence
from attnrl.method.steps import Steps
from attnrl.prompts.renderer import PromptRenderer
from attnrl.rl.clock import PhaseClock
from attnrl.rl.grading_thread import OverlappedGrading
from attnrl.rl.rollout import BranchPlan, Group, PartialGroup, RolloutTree, Sample, SampledTokens, Trunk
from attnrl.tokenization import response_steps
from attnrl.types import Completion, Grade, Policy, Problem, Request, Sampler, Score

NOTHING = SampledTokens((), (), (), ())


class Tag(NamedTuple):
    """Place of the result of a request.

    Attributes:
        kind: ``branch``, a continuation of a plan; or ``trunk``, an initial response of a group.
        group: index of the plan or of the group.
        slot: index among ``plan.branches`` or ``group.trunks``.
    """

    kind: Literal["branch", "trunk"]
    group: int
    slot: int


@dataclass(frozen=True)
class Continuation:
    """A response to sample from some token on.

    Attributes:
        tag: place of the result.
        problem: the problem of the response.
        prompt: token ids of the problem's prompt.
        kept: trunk tokens that a branch keeps; empty for an initial response.
        begun: tokens of the response that the generation before has sampled.
        may_be_carried: True for a new initial response, which may go on in the next generation.
    """

    tag: Tag
    problem: Problem
    prompt: tuple[int, ...]
    kept: tuple[int, ...] = ()
    begun: SampledTokens = NOTHING
    may_be_carried: bool = False

    def request(self, max_new_tokens: int, seed: int) -> Request:
        """Return the request for the rest of the response; ``max_new_tokens`` is the budget of the whole response."""
        so_far = self.kept + self.begun.tokens
        return Request(self.prompt + so_far, max_new_tokens - len(so_far), seed, len(so_far))

    def sampled(self, completion: Completion) -> tuple[int, ...]:
        """Return all sampled tokens: those of the generation before and those of ``completion``."""
        return self.begun.tokens + completion.tokens


@dataclass(frozen=True)
class GenerationResult:
    """The outcome of one generation.

    Attributes:
        rollout_trees: the plans with their continuations, in order.
        groups: the problems whose initial responses have all ended, carried problems first.
        carried: the problems that go on in the next generation.
        tokens: number of tokens sampled.
    """

    rollout_trees: list[RolloutTree]
    groups: tuple[Group, ...]
    carried: tuple[PartialGroup, ...]
    tokens: int


@dataclass(frozen=True)
class Generation:
    """Samples, grades and scores mixed batches, with the parts of a :class:`attnrl.rl.trainer.Trainer`."""

    config: TrainConfig
    sampler: Sampler
    rewards: RewardManager
    policy: Policy
    renderer: PromptRenderer
    source: ProblemSource
    clock: PhaseClock
    step: int

    def run(
        self,
        plans: Sequence[BranchPlan],
        carried: Sequence[PartialGroup],
        positions: Sequence[int],
        seeds: random.Random,
    ) -> GenerationResult:
        """Sample the continuations of ``plans``, the rest of ``carried``, and initial responses to new problems.

        With ``sampling.carry_over`` some new problems may come back unfinished; at least one group is whole.

        Args:
            plans: plans of the batch that is trained on.
            carried: unfinished groups of the generation before; all end in this generation.
            positions: positions of the new problems in the order of the run.
            seeds: draws the seed of each request, in order.

        Raises:
            UserError: a prompt is too long.
            Exception: an exception of the grader, the sampler or the policy.
        """
        groups = [*carried, *map(self._new_group, positions)]
        continuations = [
            *(branch for index, plan in enumerate(plans) for branch in self._branches(index, plan)),
            *(trunk for index, group in enumerate(groups) for trunk in self._trunks(index, group, len(carried))),
        ]
        completions, grades = self._complete(continuations, seeds, self._stop_rule(continuations, len(groups)))
        with self.clock.phase("score"):
            steps = self._steps(continuations, completions, grades)
            scores = self._score(continuations, completions, steps)
        results = {
            continuation.tag: self._result(continuation, completions[i], scores[i], grades.get(i), steps.get(i))
            for i, continuation in enumerate(continuations)
        }
        finished = [_fill(index, group, results) for index, group in enumerate(groups)]
        return GenerationResult(
            rollout_trees=[_grow(index, plan, results) for index, plan in enumerate(plans)],
            groups=tuple(self._whole(group) for group in finished if not group.unfinished),
            carried=tuple(group for group in finished if group.unfinished),
            tokens=sum(len(completion.tokens) for completion in completions),
        )

    def _new_group(self, position: int) -> PartialGroup:
        prompt = self.renderer.encode(self.source.at(position), self.config.sampling.max_prompt_tokens)
        return PartialGroup(position, prompt, (NOTHING,) * self.config.method.trunks)

    def _whole(self, group: PartialGroup) -> Group:
        problem = self.source.at(group.position)
        trunks = tuple(trunk for trunk in group.trunks if isinstance(trunk, Trunk))
        return Group(group.position, problem.id, problem.answers, group.prompt, trunks)

    def _branches(self, index: int, plan: BranchPlan) -> list[Continuation]:
        """Return a continuation for each of ``plan.branches``, in order."""
        group, problem = plan.group, self.source.at(plan.group.position)
        return [
            Continuation(Tag("branch", index, slot), problem, group.prompt, kept=group.trunks[trunk].tokens[:at])
            for slot, (trunk, at) in enumerate(plan.branches)
        ]

    def _trunks(self, index: int, group: PartialGroup, carried: int) -> list[Continuation]:
        """Return a continuation for each unfinished initial response; the first ``carried`` groups must end."""
        problem, is_new = self.source.at(group.position), index >= carried
        return [
            Continuation(Tag("trunk", index, slot), problem, group.prompt, begun=tokens, may_be_carried=is_new)
            for slot, tokens in enumerate(group.trunks)
            if not isinstance(tokens, Trunk)
        ]

    def _stop_rule(self, continuations: Sequence[Continuation], groups: int) -> Callable[[Collection[int]], bool]:
        """Return the rule that ends a generation: only new responses of few enough groups are unfinished."""
        may_go_on = min(int(self.config.sampling.carry_over * groups), groups - 1)

        def should_stop(unfinished: Collection[int]) -> bool:
            if len(unfinished) > may_go_on * self.config.method.trunks:
                return False  # the cheap answer first: the sampler asks after every token
            late = {continuations[index].tag.group for index in unfinished}
            return len(late) <= may_go_on and all(continuations[index].may_be_carried for index in unfinished)

        return should_stop

    def _complete(
        self,
        continuations: Sequence[Continuation],
        seeds: random.Random,
        should_stop: Callable[[Collection[int]], bool],
    ) -> tuple[list[Completion], dict[int, Grade]]:
        """Sample all responses and grade finished responses meanwhile; return completions, and grades by index."""
        budget = self.config.sampling.max_new_tokens
        requests = [continuation.request(budget, seeds.getrandbits(62)) for continuation in continuations]
        with OverlappedGrading(self.rewards, self.step - 1) as grading:

            def grade(index: int, completion: Completion) -> None:
                continuation = continuations[index]
                tokens = continuation.kept + continuation.sampled(completion)
                response = self.renderer.finished_response(continuation.problem, tokens, completion.finish_reason)
                grading.submit(index, response)

            def stop_or_raise(unfinished: Collection[int]) -> bool:
                grading.check()  # a grader that has failed need not wait for the longest response
                return should_stop(unfinished)

            with self.clock.phase("generate"):
                completions = self.sampler.generate(requests, on_completion=grade, should_stop=stop_or_raise)
            with self.clock.phase("grade"):
                grades = grading.results()
        self.clock.overlapped("grade", grading.spans, during="generate")
        return completions, grades

    def _steps(
        self, continuations: Sequence[Continuation], completions: Sequence[Completion], grades: Mapping[int, Grade]
    ) -> dict[int, Steps]:
        """Return the steps of each graded response whose steps are read: trunks, and branches if credit is weighed."""
        return {
            index: response_steps(
                self.renderer.tokenizer,
                continuations[index].sampled(completions[index]),
                ended=completions[index].ends_with_eos,
                split=self.config.method.steps.split,
            )
            for index in sorted(grades)
            if continuations[index].tag.kind == "trunk" or self.config.method.weighs_steps
        }

    def _score(
        self, continuations: Sequence[Continuation], completions: Sequence[Completion], steps: Mapping[int, Steps]
    ) -> list[Score]:
        """Score the sampled tokens in one call, with the influence of ``steps`` if the method reads influence."""
        scores_branches = self.config.sampling.score_continuations or self.config.method.weighs_steps
        sampled = [c.sampled(completion) for c, completion in zip(continuations, completions, strict=True)]
        asked = [
            index
            for index, continuation in enumerate(continuations)
            # Without tokens: a response that was still waiting for a slot when the generation ended.
            if sampled[index] and (scores_branches or continuation.tag.kind == "trunk")
        ]
        scored = self.policy.score(
            [continuations[index].prompt + continuations[index].kept for index in asked],
            [sampled[index] for index in asked],
            [steps.get(index) for index in asked] if self.config.method.needs_influence else None,
        )
        scores = dict(zip(asked, scored, strict=True))
        return [scores.get(index, Score(completion.logprobs, (), ())) for index, completion in enumerate(completions)]

    def _result(
        self,
        continuation: Continuation,
        completion: Completion,
        score: Score,
        grade: Grade | None,
        steps: Steps | None,
    ) -> SampledTokens:
        """Return a :class:`Trunk` or a branch's :class:`Sample`; the tokens alone of a response that has not ended."""
        tokens = _sampled_tokens(continuation, completion, score)
        if grade is None:
            return tokens
        weights: tuple[float, ...] = ()
        if steps is not None and self.config.method.weighs_steps:
            credit = self.config.method.credit
            weights = influence_weights(score.influence, steps, credit.top_share, credit.rest_weight)
        sample = Sample(
            **vars(tokens),
            reward=grade.reward,
            verdict=grade.verdict,
            finish_reason=completion.finish_reason,
            advantage_weights=weights,
            rewards=grade.rewards,
            fault=grade.fault,
        )
        if continuation.tag.kind == "branch":
            return sample
        assert steps is not None  # every graded trunk has been split
        influence = mask_influence(score.influence, steps) if score.influence else ()
        return Trunk(**vars(sample), steps=steps, influence=influence)


def _sampled_tokens(continuation: Continuation, completion: Completion, score: Score) -> SampledTokens:
    """Return all sampled tokens, each with the numbers of the policy that sampled the token; ``score`` is of all."""
    begun = continuation.begun
    old = len(begun.tokens)
    return SampledTokens(
        continuation.sampled(completion),
        begun.logprobs + score.logprobs[old:],
        begun.sampler_logprobs + completion.logprobs,
        begun.entropy + score.entropy[old:],
    )


def _grow(index: int, plan: BranchPlan, results: Mapping[Tag, SampledTokens]) -> RolloutTree:
    """Return the plan with the samples of its branches."""
    samples = [results[Tag("branch", index, slot)] for slot in range(len(plan.branches))]
    return RolloutTree(plan, tuple(sample for sample in samples if isinstance(sample, Sample)))


def _fill(index: int, group: PartialGroup, results: Mapping[Tag, SampledTokens]) -> PartialGroup:
    """Return the group with the result of each initial response that was unfinished."""
    trunks = (results.get(Tag("trunk", index, slot), trunk) for slot, trunk in enumerate(group.trunks))
    return replace(group, trunks=tuple(trunks))
