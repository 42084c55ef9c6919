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

Up to the train phase nothing has changed that outlives the step: if sampling fails or is stopped, the state is put
back, and the step can be taken again, to the same end. Problems with numbers that are not finite are left out.

The two-phase pipeline samples batch m's initial responses at the start of step m instead, in a generation of
its own, and leaves nothing pending. Grading goes on beside generating; the phase is what is left of it afterwards.
With ``sampling.carry_over`` a generation does not wait for its last problems: they go on in the next step's.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from attnrl.config.schema import TrainConfig
from attnrl.data.stream import ProblemSource
from attnrl.method.adaptive import (
    BatchSizeController,
    RunningMean,
    choose_trunks,
    expansion_count,
    keep_problem,
)
from attnrl.method.branching import RolloutSignals, branch_points
from attnrl.rl.clock import PhaseClock, Span
from attnrl.rl.generation import Generation
from attnrl.rl.metrics import step_metrics
from attnrl.rl.rollout import BranchPlan, Group, PartialGroup, RolloutTree
from attnrl.tasks.dependencies import step_dependents
from attnrl.tokenization import encode_prompt, step_texts
from attnrl.types import Grader, Policy, Sampler


@dataclass(frozen=True)
class TrainerState:
    """All that the loop carries from one step to the next, beside the policy's weights.

    Every random choice is drawn from the run's seed and the step number, so no generator is part of it.

    Attributes:
        step: training steps done.
        position: problems drawn so far.
        pending: initial responses of the next batch.
        carried: problems whose initial responses the last generation left unfinished (``sampling.carry_over``).
        solved_influence: running mean FCI of all-correct problems (eq. 8).
        batch_size: the prompt batch size controller (eq. 10).
        sampled_tokens: tokens generated so far.
        nonfinite_steps: steps in a row, up to the last one, in which numbers were not finite.
    """

    step: int
    position: int
    pending: tuple[Group, ...]
    carried: tuple[PartialGroup, ...]
    solved_influence: RunningMean
    batch_size: BatchSizeController
    sampled_tokens: int
    nonfinite_steps: int


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
    return TrainerState(0, 0, (), (), RunningMean(), controller, 0, 0)


def drop_stale_samples(
    state: TrainerState, source: ProblemSource, tokenizer: PreTrainedTokenizerBase, max_prompt_tokens: int
) -> TrainerState:
    """The state without samples in flight whose problem ``source`` no longer has in its place.

    They would be graded by another problem's answers: where data files or held-out problems have changed since.
    """

    def prompt(position: int) -> tuple[int, ...]:
        return encode_prompt(tokenizer, source.at(position), max_prompt_tokens)

    def is_there(group: Group) -> bool:
        problem = source.at(group.position)
        same = (problem.id, problem.answers) == (group.problem_id, group.answers)
        return same and prompt(group.position) == group.prompt

    return replace(
        state,
        pending=tuple(group for group in state.pending if is_there(group)),
        carried=tuple(group for group in state.carried if prompt(group.position) == group.prompt),
    )


@dataclass(frozen=True)
class StepResult:
    """What one training step leaves to look at.

    Attributes:
        metrics: its numbers; names in docs/metrics.md.
        problems: its problems, sampled in full.
        timeline: when each phase began and ended, and the work beside it, in seconds since the step's start.
    """

    metrics: dict[str, float]
    problems: tuple[RolloutTree, ...]
    timeline: tuple[Span, ...]


class NextBatch(NamedTuple):
    """What a generation samples initial responses to: problems carried over, and the positions of new ones."""

    carried: tuple[PartialGroup, ...]
    positions: Sequence[int]


NO_PROBLEMS = NextBatch((), ())


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
        """One training step; see the module's table.

        Raises:
            BaseException: what sampler, grader or policy has raised. ``state`` is that of before the step, which can be
                taken again, unless it came from the policy's update.
        """
        self.clock.restart()
        method, before = self.config.method, self.state
        try:
            self.state = replace(self.state, step=self.state.step + 1)
            groups = self.state.pending or self._sample([], self._upcoming())[1]
            plans = self._plan(groups)
            rollout_trees, pending = self._sample(
                plans, self._upcoming() if method.pipeline == "one_step" else NO_PROBLEMS
            )
        except BaseException:
            self.state = before
            raise

        with self.clock.phase("train"):
            trained = [p for p in rollout_trees if p.plan.kept and p.is_finite and p.forest.has_signal]
            self._rng("mini-batches").shuffle(trained)
            rows = [row for problem in trained for row in problem.training_rows(method.advantage_function)]
            updated = self.policy.update(rows) if rows else {}
        with self.clock.phase("sync"):
            self.sampler.sync()

        metrics = step_metrics(
            rollout_trees,
            trained,
            updated,
            prompt_batch_size=len(groups),
            generated_tokens=self.state.sampled_tokens - before.sampled_tokens,
            sampled_tokens=self.state.sampled_tokens,
            carried_over=sum(len(group.unfinished) for group in self.state.carried),
            phases=self.clock.seconds,
        )
        controller = self.state.batch_size
        nonfinite = metrics["nonfinite/problems"] or updated.get("nonfinite/mini_batches", 0)
        self.state = replace(
            self.state,
            pending=pending,
            batch_size=controller.update(len(rows)) if method.adaptive.batch_size else controller,
            nonfinite_steps=self.state.nonfinite_steps + 1 if nonfinite else 0,
        )
        return StepResult({"step": self.state.step, **metrics}, tuple(rollout_trees), tuple(self.clock.spans))

    def _upcoming(self) -> NextBatch:
        """What the next generation gets initial responses to; it is taken out of the state."""
        carried, start = self.state.carried, self.state.position
        end = start + max(0, self.state.batch_size.size - len(carried))
        self.state = replace(self.state, position=end, carried=())
        return NextBatch(carried, range(start, end))

    def _plan(self, groups: Sequence[Group]) -> list[BranchPlan]:
        """Adaptive sampling and branching: what to sample from inside the initial responses."""
        with self.clock.phase("plan"):
            rng = self._rng("plan")
            return [self._plan_group(group, rng) for group in groups]

    def _plan_group(self, group: Group, rng: random.Random) -> BranchPlan:
        branching, adaptive = self.config.method.branching, self.config.method.adaptive
        if not group.is_finite:
            return BranchPlan(group, False, {}, branching.samples)
        rewards = [trunk.reward for trunk in group.trunks]
        if adaptive.filter:
            kept, solved_influence = keep_problem(rewards, group.mean_influence, self.state.solved_influence)
            self.state = replace(self.state, solved_influence=solved_influence)
            if not kept:
                return BranchPlan(group, False, {}, branching.samples)
        chosen: Sequence[int] = range(len(group.trunks))
        if adaptive.expansion != "all":
            count = expansion_count(group.accuracy, len(group.trunks), adaptive.expansion)
            chosen = choose_trunks([reward >= 1.0 for reward in rewards], count, rng)
        if branching.points == 0:  # nothing to choose, and perhaps no signal to choose by
            return BranchPlan(group, True, {trunk: () for trunk in chosen}, branching.samples)
        points = {
            trunk: branch_points(
                self._signals(group, trunk),
                criterion=branching.criterion_function,
                count=branching.points,
                rho=branching.rho,
                spacing=branching.spacing,
                rng=rng,
            )
            for trunk in chosen
        }
        return BranchPlan(group, True, points, branching.samples)

    def _signals(self, group: Group, trunk: int) -> RolloutSignals:
        """What the branch criterion looks at in one trunk."""
        signals = group.trunks[trunk].signals
        if not self.config.method.branching.reads("dependents"):
            return signals
        texts = step_texts(self.tokenizer, group.trunks[trunk].tokens, signals.steps)
        return replace(signals, dependents=step_dependents(self.source.at(group.position), texts))

    def _sample(self, plans: Sequence[BranchPlan], upcoming: NextBatch) -> tuple[list[RolloutTree], tuple[Group, ...]]:
        """One generation, graded and scored: the continuations that ``plans`` ask for, and initial responses."""
        generation = Generation(
            self.config, self.sampler, self.grader, self.policy, self.tokenizer, self.source, self.clock
        )
        seeds = self._rng(f"sample/{'mixed' if plans else 'initial'}")
        done = generation.run(plans, upcoming.carried, upcoming.positions, seeds)
        self.state = replace(
            self.state,
            carried=self.state.carried + done.carried,
            sampled_tokens=self.state.sampled_tokens + done.tokens,
        )
        return done.rollout_trees, done.groups

    def _rng(self, purpose: str) -> random.Random:
        """The generator of one purpose in this step."""
        return random.Random(f"{self.config.seed}/{self.state.step}/{purpose}")
