"""The training loop: AttnRL's one-step off-policy pipeline; TreeRL and GRPO are other settings of the same loop.

Training step m consumes the initial responses of batch m, sampled in the step before, and produces an updated
policy and the initial responses of batch m + 1:

========  ==========================================================  ====================================
phase     consumes                                                    produces
========  ==========================================================  ====================================
plan      initial responses of batch m (verdicts, influence, entropy) branch points on the trunks to expand
generate  branch points of batch m, problems of batch m + 1, pi_m     continuations and initial responses
grade     whole responses, reference answers                          verdicts and rewards
score     sampled tokens, pi_m                                        old log-probs, entropy, influence
train     forests of batch m that have signal                         pi_{m+1}
========  ==========================================================  ====================================

The state changes once, at the end of a step: if sampling fails or is stopped before the train phase, the same step can
be taken again, with the same outcome. Problems with a NaN or inf are left out and counted, and so are responses without
a reward (not judged) and problems without a judged initial response.

The two-phase pipeline samples the initial responses of batch m at the start of step m, in a generation of its own, and
leaves nothing pending. Grading overlaps with generating; the grade phase is the rest of grading. With
``sampling.carry_over`` a generation does not wait for its last problems: they go on in the generation of the next step.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from attnrl.config.schema import TrainConfig
from attnrl.data.stream import ProblemSource
from attnrl.grading.rewards import RewardManager
from attnrl.method.adaptive import RunningMean, choose_trunks, expansion_count, keep_problem
from attnrl.method.branching import RolloutSignals, branch_points
from attnrl.prompts.renderer import PromptRenderer
from attnrl.rl.clock import PhaseClock, Span
from attnrl.rl.generation import Generation
from attnrl.rl.metrics import step_metrics
from attnrl.rl.rollout import BranchPlan, Group, RolloutTree
from attnrl.rl.state import NextBatch, TrainerState, initial_state
from attnrl.tasks.dependencies import step_dependents
from attnrl.tokenization import step_texts
from attnrl.types import Policy, Sampler


@dataclass(frozen=True)
class StepResult:
    """The outcome of one training step.

    Attributes:
        metrics: metrics by name; docs/metrics.md explains every name.
        problems: the problems of the batch, sampled in full.
        timeline: start and end of each phase, and of overlapped work, in seconds since the start of the step.
    """

    metrics: dict[str, float]
    problems: tuple[RolloutTree, ...]
    timeline: tuple[Span, ...]


class Trainer:
    """Runs training steps with a sampler, a grader and a policy; knows neither files nor devices."""

    def __init__(
        self,
        config: TrainConfig,
        *,
        sampler: Sampler,
        rewards: RewardManager,
        policy: Policy,
        renderer: PromptRenderer,
        source: ProblemSource,
        state: TrainerState | None = None,
        on_phase: Callable[[str], None] | None = None,
    ) -> None:
        """Start from ``state``, or from the beginning; ``on_phase`` is called with the name of each phase."""
        self.config = config
        self.sampler = sampler
        self.rewards = rewards
        self.policy = policy
        self.renderer = renderer
        self.source = source
        self.state = state or initial_state(config)
        self.clock = PhaseClock(on_phase)

    def step(self) -> StepResult:
        """Take one training step; see the table of the module.

        Raises:
            BaseException: an exception of sampler, grader or policy. ``state`` is still the state before the step; the
                step can be taken again, unless the exception came from the policy's update.
        """
        self.clock.restart()
        method, before = self.config.method, self.state
        state = replace(before, step=before.step + 1, pending=())
        groups: Sequence[Group] = before.pending
        if not groups:
            batch, state = state.take_next_batch()
            _, groups, state = self._sample(state, [], batch)
        plans, state = self._plan(state, groups)
        batch = NextBatch()
        if method.pipeline == "one_step":
            batch, state = state.take_next_batch()
        problems, pending, state = self._sample(state, plans, batch)

        with self.clock.phase("train"):
            trained = [p for p in problems if p.plan.kept and p.is_finite and p.forest.has_signal]
            self._rng(state.step, "mini-batches").shuffle(trained)
            masked = self.config.reward.truncated == "mask"
            rows = [row for problem in trained for row in problem.training_rows(method.advantage_function, masked)]
            updated = self.policy.update(rows) if rows else {}
        with self.clock.phase("sync"):
            self.sampler.sync()

        metrics = step_metrics(
            problems,
            trained,
            updated,
            mask_truncated=masked,
            prompt_batch_size=len(groups),
            generated_tokens=state.sampled_tokens - before.sampled_tokens,
            sampled_tokens=state.sampled_tokens,
            carried_over=sum(len(group.unfinished) for group in state.carried),
            phases=self.clock.seconds,
        )
        nonfinite = metrics["nonfinite/problems"] or updated.get("nonfinite/mini_batches", 0)
        self.state = replace(
            state,
            pending=pending,
            batch_size=state.batch_size.update(len(rows)) if method.adaptive.batch_size else state.batch_size,
            nonfinite_steps=state.nonfinite_steps + 1 if nonfinite else 0,
        )
        return StepResult(
            {"step": state.step, **metrics, **self.rewards.take_metrics()},
            tuple(problems),
            tuple(self.clock.spans),
        )

    def _plan(self, state: TrainerState, groups: Sequence[Group]) -> tuple[list[BranchPlan], TrainerState]:
        """Return a plan for each group (adaptive sampling and branching), and the state with the new running mean."""
        plans, solved_influence = [], state.solved_influence
        with self.clock.phase("plan"):
            rng = self._rng(state.step, "plan")
            for group in groups:
                plan, solved_influence = self._plan_group(group, solved_influence, rng)
                plans.append(plan)
        return plans, replace(state, solved_influence=solved_influence)

    def _plan_group(
        self, group: Group, solved_influence: RunningMean, rng: random.Random
    ) -> tuple[BranchPlan, RunningMean]:
        """Return the plan of one group (eq. 7 to 9), and the running mean of eq. 8 with the group."""
        branching, adaptive = self.config.method.branching, self.config.method.adaptive
        dropped = BranchPlan(group, False, {}, branching.samples)
        if not group.is_finite or not group.judged:
            return dropped, solved_influence
        if adaptive.filter:
            kept, solved_influence = keep_problem(group.correct, group.mean_influence, solved_influence)
            if not kept:
                return dropped, solved_influence
        chosen = group.judged
        if adaptive.expansion != "all":
            count = expansion_count(group.accuracy, len(group.judged), adaptive.expansion)
            chosen = [group.judged[index] for index in choose_trunks(group.correct, count, rng)]
        points = {trunk: self._branch_points(group, trunk, rng) for trunk in chosen}
        return BranchPlan(group, True, points, branching.samples), solved_influence

    def _branch_points(self, group: Group, trunk: int, rng: random.Random) -> tuple[int, ...]:
        """Return the branch points of one trunk (eq. 7)."""
        branching = self.config.method.branching
        if branching.points == 0:  # the signals of the criterion may not have been measured
            return ()
        return branch_points(
            self._signals(group, trunk),
            criterion=branching.criterion_function,
            count=branching.points,
            rho=branching.rho,
            spacing=branching.spacing,
            rng=rng,
        )

    def _signals(self, group: Group, trunk: int) -> RolloutSignals:
        """Return the signals of one trunk, with the true dependents of its steps if the criterion reads dependents."""
        signals = group.trunks[trunk].signals
        if not self.config.method.branching.reads("dependents"):
            return signals
        texts = step_texts(self.renderer.tokenizer, group.trunks[trunk].tokens, signals.steps)
        return replace(signals, dependents=step_dependents(self.source.at(group.position), texts))

    def _sample(
        self, state: TrainerState, plans: Sequence[BranchPlan], batch: NextBatch
    ) -> tuple[list[RolloutTree], tuple[Group, ...], TrainerState]:
        """Run one generation; return the rollout trees of ``plans``, the groups of ``batch``, and the new state."""
        generation = Generation(
            self.config, self.sampler, self.rewards, self.policy, self.renderer, self.source, self.clock, state.step
        )
        seeds = self._rng(state.step, f"sample/{'mixed' if plans else 'initial'}")
        done = generation.run(plans, batch.carried, batch.positions, seeds)
        state = replace(state, carried=state.carried + done.carried, sampled_tokens=state.sampled_tokens + done.tokens)
        return done.rollout_trees, done.groups, state

    def _rng(self, step: int, purpose: str) -> random.Random:
        """Return the generator of one purpose in one step."""
        return random.Random(f"{self.config.seed}/{step}/{purpose}")
