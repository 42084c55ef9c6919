"""One generation of a training step: what is asked of the sampler in it, and what comes back graded and scored.

A generation mixes three kinds of requests, in this order: continuations from inside the trunks of the batch that is
trained on, initial responses that the generation before left unfinished, and initial responses to new problems.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from transformers import PreTrainedTokenizerBase

from attnrl.config.schema import TrainConfig
from attnrl.data.stream import ProblemSource
from attnrl.method.advantage import influence_weights
from attnrl.method.ranking import mask_influence
from attnrl.method.steps import Steps
from attnrl.rl.clock import PhaseClock
from attnrl.rl.grading_thread import OverlappedGrading
from attnrl.rl.rollout import BranchPlan, Group, PartialGroup, RolloutTree, Sample, SampledTokens, Trunk
from attnrl.tokenization import decode, encode_prompt, response_steps
from attnrl.types import Completion, Grade, Grader, Policy, Problem, Request, Sampler, Score

NOTHING = SampledTokens((), (), (), ())


@dataclass(frozen=True)
class GenerationResult:
    """What one generation comes to.

    Attributes:
        rollout_trees: the plans with their continuations, in order.
        groups: the problems whose initial responses have all ended, carried ones first.
        carried: the problems that go on in the next generation.
        tokens: how many were sampled.
    """

    rollout_trees: list[RolloutTree]
    groups: tuple[Group, ...]
    carried: tuple[PartialGroup, ...]
    tokens: int


@dataclass(frozen=True)
class Continuation:
    """Where a response to sample begins.

    Attributes:
        problem: its problem.
        prompt: the problem's prompt.
        kept: tokens of the trunk that a continuation keeps.
        begun: what the generation before has sampled of it.
    """

    problem: Problem
    prompt: tuple[int, ...]
    kept: tuple[int, ...] = ()
    begun: SampledTokens = NOTHING

    def request(self, max_new_tokens: int, seed: int) -> Request:
        """Ask for the rest of the response; ``max_new_tokens`` is the budget of the whole."""
        so_far = self.kept + self.begun.tokens
        return Request(self.prompt + so_far, max_new_tokens - len(so_far), seed)

    def own(self, completion: Completion) -> tuple[int, ...]:
        """The tokens of the sample: all that was sampled from here."""
        return self.begun.tokens + completion.tokens


@dataclass(frozen=True)
class Generation:
    """Samples, grades and scores one mixed batch, with the parts of a :class:`attnrl.rl.trainer.Trainer`."""

    config: TrainConfig
    sampler: Sampler
    grader: Grader
    policy: Policy
    tokenizer: PreTrainedTokenizerBase
    source: ProblemSource
    clock: PhaseClock

    def run(
        self,
        plans: Sequence[BranchPlan],
        carried: Sequence[PartialGroup],
        positions: Sequence[int],
        seeds: random.Random,
    ) -> GenerationResult:
        """Sample what ``plans`` ask for, the rest of ``carried``, and initial responses to new problems.

        With ``sampling.carry_over`` some of the new problems may come back unfinished; at least one group is whole.

        Args:
            plans: of the batch that is trained on.
            carried: what the generation before left unfinished; it ends in this one.
            positions: of the new problems.
            seeds: draws the seed of each request, in order.

        Raises:
            UserError: a prompt is too long.
            Exception: whatever the grader or an engine raises.
        """
        groups = [*carried, *map(self._new_group, positions)]
        branches = [opening for plan in plans for opening in self._continuations(plan)]
        initial = [opening for group in groups for opening in self._responses(group)]
        # Continuations and carried responses are waited for; some new problems may go on in the next generation.
        waited_for = len(branches) + sum(len(group.unfinished) for group in carried)
        may_go_on = min(int(self.config.sampling.carry_over * len(groups)), len(groups) - 1)

        def should_stop(unfinished: Collection[int]) -> bool:
            if len(unfinished) > may_go_on * self.config.method.trunks:
                return False  # at once: it is asked after every token
            late = {(index - waited_for) // self.config.method.trunks for index in unfinished}
            return len(late) <= may_go_on and all(place >= 0 for place in late)

        openings = [*branches, *initial]
        completions, grades = self._complete(openings, seeds, should_stop)
        with self.clock.phase("score"):
            steps = {
                index: response_steps(
                    self.tokenizer,
                    openings[index].own(completions[index]),
                    ended=completions[index].finish_reason == "stop",
                    split=self.config.method.steps.split,
                )
                for index in grades
                if index >= len(branches) or self.config.method.weighs_steps
            }
            scores = self._score(openings, completions, steps, continuations=len(branches))

        tokens = [_tokens(*result) for result in zip(openings, completions, scores, strict=True)]
        samples = {
            index: self._sample(tokens[index], grade, completions[index], steps.get(index), scores[index])
            for index, grade in grades.items()
        }
        trunks = {
            index: _trunk(samples[index], its_steps, scores[index])
            for index, its_steps in steps.items()
            if index >= len(branches)
        }
        continuations = iter([samples[index] for index in range(len(branches))])
        responses = iter([trunks.get(index, tokens[index]) for index in range(len(branches), len(openings))])
        groups = [_filled(group, responses) for group in groups]
        return GenerationResult(
            rollout_trees=[RolloutTree(plan, tuple(next(continuations) for _ in plan.branches)) for plan in plans],
            groups=tuple(self._whole(group) for group in groups if not group.unfinished),
            carried=tuple(group for group in groups if group.unfinished),
            tokens=sum(len(completion.tokens) for completion in completions),
        )

    def _new_group(self, position: int) -> PartialGroup:
        prompt = encode_prompt(self.tokenizer, self.source.at(position), self.config.sampling.max_prompt_tokens)
        return PartialGroup(position, prompt, (NOTHING,) * self.config.method.trunks)

    def _whole(self, group: PartialGroup) -> Group:
        problem = self.source.at(group.position)
        trunks = tuple(trunk for trunk in group.trunks if isinstance(trunk, Trunk))
        return Group(group.position, problem.id, problem.answers, group.prompt, trunks)

    def _continuations(self, plan: BranchPlan) -> list[Continuation]:
        """One for each of ``plan.branches``, in order."""
        group, problem = plan.group, self.source.at(plan.group.position)
        return [Continuation(problem, group.prompt, group.trunks[trunk].tokens[:at]) for trunk, at in plan.branches]

    def _responses(self, group: PartialGroup) -> list[Continuation]:
        """One for each of ``group.unfinished``, in order."""
        problem = self.source.at(group.position)
        return [Continuation(problem, group.prompt, begun=tokens) for tokens in group.unfinished]

    def _complete(
        self, openings: Sequence[Continuation], seeds: random.Random, should_stop: Callable[[Collection[int]], bool]
    ) -> tuple[list[Completion], dict[int, Grade]]:
        """Sample, and grade what finishes: completions in order, and the grades of the finished ones by index."""
        requests = [opening.request(self.config.sampling.max_new_tokens, seeds.getrandbits(62)) for opening in openings]
        with OverlappedGrading(self.grader) as grading:

            def grade(index: int, completion: Completion) -> None:
                opening = openings[index]
                response = decode(self.tokenizer, opening.kept + opening.own(completion))
                grading.submit(index, opening.problem, response)

            def ends(unfinished: Collection[int]) -> bool:
                grading.check()  # a grader that has failed need not wait for the longest response
                return should_stop(unfinished)

            with self.clock.phase("generate"):
                completions = self.sampler.generate(requests, on_completion=grade, should_stop=ends)
            with self.clock.phase("grade"):
                grades = grading.results()
        self.clock.overlapped("grade", grading.spans, during="generate")
        return completions, dict(sorted(grades.items()))

    def _score(
        self,
        openings: Sequence[Continuation],
        completions: Sequence[Completion],
        steps: Mapping[int, Steps],
        continuations: int,
    ) -> list[Score]:
        """Score the samples' own tokens in one call, with the FCI of those in ``steps`` where it is looked at."""
        scores_all = self.config.sampling.score_continuations or self.config.method.weighs_steps
        own = [opening.own(completion) for opening, completion in zip(openings, completions, strict=True)]
        asked = [
            index
            for index in range(0 if scores_all else continuations, len(openings))
            if own[index]  # others were still waiting for a place
        ]
        scored = self.policy.score(
            [openings[index].prompt + openings[index].kept for index in asked],
            [own[index] for index in asked],
            [steps.get(index) for index in asked] if self.config.method.needs_influence else None,
        )
        scores = dict(zip(asked, scored, strict=True))
        return [scores.get(index, Score(completion.logprobs, (), ())) for index, completion in enumerate(completions)]

    def _sample(
        self, tokens: SampledTokens, grade: Grade, completion: Completion, steps: Steps | None, score: Score
    ) -> Sample:
        advantage_weights: tuple[float, ...] = ()
        if steps is not None and self.config.method.weighs_steps:
            credit = self.config.method.credit
            advantage_weights = influence_weights(score.influence, steps, credit.top_share, credit.rest_weight)
        return Sample(
            **vars(tokens),
            reward=grade.reward,
            verdict=grade.verdict,
            finish_reason=completion.finish_reason,
            advantage_weights=advantage_weights,
        )


def _tokens(opening: Continuation, completion: Completion, score: Score) -> SampledTokens:
    """The sample's own tokens, each with the numbers of the policy that sampled it; ``score`` is of all of them."""
    begun = opening.begun
    old = len(begun.tokens)
    return SampledTokens(
        opening.own(completion),
        begun.logprobs + score.logprobs[old:],
        begun.sampler_logprobs + completion.logprobs,
        begun.entropy + score.entropy[old:],
    )


def _trunk(sample: Sample, steps: Steps, score: Score) -> Trunk:
    return Trunk(
        **vars(sample), steps=steps, influence=mask_influence(score.influence, steps) if score.influence else ()
    )


def _filled(group: PartialGroup, responses: Iterator[SampledTokens]) -> PartialGroup:
    """The group with the next of ``responses`` in place of each unfinished one."""
    trunks = tuple(trunk if isinstance(trunk, Trunk) else next(responses) for trunk in group.trunks)
    return replace(group, trunks=trunks)
