"""The training loop: AttnRL's one-step off-policy pipeline, from which TreeRL and GRPO differ in settings only.

Training step m consumes the initial responses of batch m, sampled in the step before, and produces an updated
policy and the initial responses of batch m + 1:

========  ==========================================================  ====================================
phase     consumes                                                    produces
========  ==========================================================  ====================================
plan      initial responses of batch m (rewards, FCI, entropy)        branch points on the trunks worth it
generate  branch points of batch m, problems of batch m + 1, pi_m     continuations and initial responses
grade     whole responses, true answers                               rewards
score     sampled tokens, pi_m                                        old log-probs, entropy, FCI
train     forests of batch m that have signal                         pi_{m+1}
========  ==========================================================  ====================================

The two-phase pipeline samples batch m's initial responses at the start of step m instead, in a generation of
its own, and leaves nothing pending.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from transformers import PreTrainedTokenizerBase

from attnrl.config import MethodConfig, TrainConfig
from attnrl.method.adaptive import (
    BatchSizeController,
    RunningMean,
    choose_trunks,
    expansion_count,
    keep_problem,
)
from attnrl.method.branching import branch_points
from attnrl.method.influence import mask_influence
from attnrl.method.steps import Steps, split_steps
from attnrl.metrics import PhaseClock, step_metrics
from attnrl.protocols import Completion, Grader, Policy, Request, Sampler
from attnrl.rollout import Group, Grown, Plan, Sample, Trunk
from attnrl.tasks.problem import Problem
from attnrl.tasks.stream import ProblemSource
from attnrl.tokens import decode, encode_prompt, token_pieces


@dataclass(frozen=True)
class TrainerState:
    """All that the loop carries from one step to the next, beside the policy's weights.

    Every random choice is drawn from the run's seed and the step number, so no generator is part of it.

    Attributes:
        step: training steps done.
        position: problems drawn so far.
        pending: initial responses of the next batch.
        solved_fci: running mean FCI of all-correct problems (eq. 8).
        batch_size: the prompt batch size controller (eq. 10).
        sampled_tokens: tokens generated so far.
    """

    step: int
    position: int
    pending: tuple[Group, ...]
    solved_fci: RunningMean
    batch_size: BatchSizeController
    sampled_tokens: int


def initial_state(config: TrainConfig) -> TrainerState:
    """The state before the first step."""
    growth = config.method.adaptive.max_growth
    controller = BatchSizeController(
        batch=config.prompts,
        target=config.prompts * config.method.leaves,
        minimum=max(1, round(config.prompts / growth)),
        maximum=round(config.prompts * growth),
        smoothing=config.method.adaptive.smoothing,
    )
    return TrainerState(0, 0, (), RunningMean(), controller, 0)


@dataclass(frozen=True)
class StepResult:
    """What one training step leaves to look at: its metrics and its problems, sampled in full."""

    metrics: dict[str, float]
    problems: tuple[Grown, ...]


class Trainer:
    """Runs training steps against a sampler, a grader and a policy; knows neither files nor devices."""

    def __init__(
        self,
        config: TrainConfig,
        *,
        sampler: Sampler,
        grader: Grader,
        policy: Policy,
        tokenizer: PreTrainedTokenizerBase,
        source: ProblemSource,
        state: TrainerState | None = None,
        on_phase: Callable[[str], None] | None = None,
    ) -> None:
        """Start from ``state``, or from the beginning; ``on_phase`` hears the name of each phase it enters."""
        self.config = config
        self.sampler = sampler
        self.grader = grader
        self.policy = policy
        self.tokenizer = tokenizer
        self.source = source
        self.state = state or initial_state(config)
        self.clock = PhaseClock(on_phase)

    def step(self) -> StepResult:
        """One training step; see the module's table."""
        self.clock.restart()
        method, tokens_before = self.config.method, self.state.sampled_tokens
        self.state = replace(self.state, step=self.state.step + 1)

        groups = self.state.pending or self._sample([], self._draw_problems())[1]
        plans = self._plan(groups)
        upcoming = self._draw_problems() if method.pipeline == "one_step" else []
        grown, pending = self._sample(plans, upcoming)

        with self.clock.phase("train"):
            trained = [problem for problem in grown if problem.plan.kept and problem.forest.has_signal]
            self._rng("mini-batches").shuffle(trained)
            rows = [row for problem in trained for row in problem.training_rows(method.advantage)]
            updated = self.policy.update(rows) if rows else {}
        with self.clock.phase("sync"):
            self.sampler.sync()

        metrics = step_metrics(
            grown,
            trained,
            updated,
            prompt_batch_size=len(groups),
            generated_tokens=self.state.sampled_tokens - tokens_before,
            sampled_tokens=self.state.sampled_tokens,
            phases=self.clock.seconds,
        )
        controller = self.state.batch_size
        self.state = replace(
            self.state,
            pending=pending,
            batch_size=controller.update(len(rows)) if method.adaptive.batch_size else controller,
        )
        return StepResult({"step": self.state.step, **metrics}, tuple(grown))

    def _draw_problems(self) -> list[tuple[int, Problem]]:
        start, size = self.state.position, self.state.batch_size.size
        self.state = replace(self.state, position=start + size)
        return [(position, self.source.at(position)) for position in range(start, start + size)]

    def _plan(self, groups: Sequence[Group]) -> list[Plan]:
        """Adaptive sampling and branching: what to sample from inside the initial responses."""
        with self.clock.phase("plan"):
            rng = self._rng("plan")
            return [self._plan_group(group, rng) for group in groups]

    def _plan_group(self, group: Group, rng: random.Random) -> Plan:
        branching, adaptive = self.config.method.branching, self.config.method.adaptive
        rewards = [trunk.reward for trunk in group.trunks]
        if adaptive.filter:
            kept, solved_fci = keep_problem(rewards, group.mean_fci, self.state.solved_fci)
            self.state = replace(self.state, solved_fci=solved_fci)
            if not kept:
                return Plan(group, False, {}, branching.samples)
        chosen: Sequence[int] = range(len(group.trunks))
        if adaptive.expansion != "all":
            count = expansion_count(group.accuracy, len(group.trunks), adaptive.expansion)
            chosen = choose_trunks([reward >= 1.0 for reward in rewards], count, rng)
        if branching.points == 0:  # nothing to choose, and perhaps no signal to choose by
            return Plan(group, True, {trunk: () for trunk in chosen}, branching.samples)
        points = {
            trunk: branch_points(
                group.trunks[trunk].signals,
                criterion=branching.criterion,
                count=branching.points,
                rho=branching.rho,
                spacing=branching.spacing,
                rng=rng,
            )
            for trunk in chosen
        }
        return Plan(group, True, points, branching.samples)

    def _sample(
        self, plans: Sequence[Plan], problems: Sequence[tuple[int, Problem]]
    ) -> tuple[list[Grown], tuple[Group, ...]]:
        """One generation: the continuations that ``plans`` ask for, and initial responses to ``problems``."""
        limits = self.config.sampling
        # A continuation's context is its prompt and the trunk tokens it keeps.
        branches = [
            (plan.group.prompt, plan.group.trunks[trunk].tokens[:at], self.source.at(plan.group.position))
            for plan in plans
            for trunk, at in plan.branches
        ]
        prompts = [encode_prompt(self.tokenizer, problem, limits.max_prompt_tokens) for _, problem in problems]
        initial = [
            (prompt, (), problem)
            for prompt, (_, problem) in zip(prompts, problems, strict=True)
            for _ in range(self.config.method.trunks)
        ]
        contexts = [*branches, *initial]
        with self.clock.phase("generate"):
            seeds = self._rng(f"sample/{'mixed' if plans else 'initial'}")
            completions = self.sampler.generate(
                [
                    Request(prompt + kept, limits.max_new_tokens - len(kept), seeds.getrandbits(62))
                    for prompt, kept, _ in contexts
                ]
            )
        with self.clock.phase("grade"):
            grades = self.grader.grade(
                [problem for _, _, problem in contexts],
                [
                    decode(self.tokenizer, kept + completion.tokens)
                    for (_, kept, _), completion in zip(contexts, completions, strict=True)
                ],
            )
        with self.clock.phase("score"):
            first = len(branches)
            steps = [self._steps(completion) for completion in completions[first:]]
            scores = self.policy.score(
                [prompt + kept for prompt, kept, _ in branches], [c.tokens for c in completions[:first]]
            ) + self.policy.score(
                [prompt for prompt, _, _ in initial],
                [c.tokens for c in completions[first:]],
                steps if needs_fci(self.config.method) else None,
            )
        self.state = replace(
            self.state, sampled_tokens=self.state.sampled_tokens + sum(len(c.tokens) for c in completions)
        )
        samples = [
            Sample(
                completion.tokens,
                score.logprobs,
                completion.logprobs,
                score.entropy,
                grade.reward,
                grade.verdict,
                completion.finish_reason,
            )
            for completion, score, grade in zip(completions, scores, grades, strict=True)
        ]
        trunks = [
            Trunk(**vars(sample), steps=its_steps, fci=mask_influence(score.fci, its_steps) if score.fci else ())
            for sample, its_steps, score in zip(samples[first:], steps, scores[first:], strict=True)
        ]
        return _grow(plans, samples[:first]), _group(problems, prompts, trunks)

    def _steps(self, completion: Completion) -> Steps:
        pieces = token_pieces(self.tokenizer, completion.tokens)
        if completion.finish_reason == "stop":
            pieces[-1] = ""  # the end-of-sequence token says nothing, and is no step of its own
        return split_steps(pieces)

    def _rng(self, purpose: str) -> random.Random:
        """The generator of one purpose in this step."""
        return random.Random(f"{self.config.seed}/{self.state.step}/{purpose}")


def needs_fci(method: MethodConfig) -> bool:
    """Whether anything in the method looks at FCI."""
    return method.adaptive.filter or (method.branching.points > 0 and method.branching.criterion == "fci")


def _grow(plans: Sequence[Plan], samples: Sequence[Sample]) -> list[Grown]:
    """Give each plan its continuations, which come in the order in which they were asked for."""
    supply = iter(samples)
    return [Grown(plan, tuple(next(supply) for _ in plan.branches)) for plan in plans]


def _group(
    problems: Sequence[tuple[int, Problem]], prompts: Sequence[tuple[int, ...]], trunks: Sequence[Trunk]
) -> tuple[Group, ...]:
    """Give each problem its initial responses, equally many each."""
    each = len(trunks) // len(problems) if problems else 0
    return tuple(
        Group(position, problem.id, problem.answers, prompt, tuple(trunks[i * each : (i + 1) * each]))
        for i, ((position, problem), prompt) in enumerate(zip(problems, prompts, strict=True))
    )
