"""Settings of the algorithm, the group ``method``: steps, branch points, credit, adaptive sampling."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import (
    Field,
    NonNegativeInt,
    PositiveInt,
    model_validator,
)

from attnrl.config.base import RowOf, Strict
from attnrl.method.advantage import ADVANTAGES, Advantage, takes_branches
from attnrl.method.branching import CRITERIA, Criterion, Signal, signals_of
from attnrl.method.measures import MEASURES, REDUCTIONS, Measure
from attnrl.method.steps import SPLITTERS, Steps, StepSettings
from attnrl.utils.plugins import resolve


class BranchingConfig(Strict):
    """Branch points: number, criterion, and the influence measure that the criterion ``fci`` ranks steps by."""

    criterion: Annotated[str, RowOf(CRITERIA, "method.branching.criterion")] = Field(
        "fci",
        description="signal that ranks branch points. fci: influence of steps (paper); entropy: token entropy "
        "(TreeRL); random: uniform over steps; oracle: the task's true dependency graph (an upper bound); or "
        "module:object",
    )
    points: NonNegativeInt = Field(2, description="branch points on each expanded trunk (N); 0: no branching")
    samples: PositiveInt = Field(2, description="continuations sampled at each branch point (T)")
    rho: float = Field(
        0.2, gt=0, le=1, description="share of a response's steps, those of highest influence, that are candidates"
    )
    delta: NonNegativeInt = Field(
        4, description="distance in steps: the influence of step k counts attention from step k + delta on"
    )
    spacing: NonNegativeInt = Field(
        0, description="smallest distance between branch points, in tokens; ignored if too few points remain"
    )
    influence: Annotated[str, RowOf(MEASURES, "method.branching.influence")] = Field(
        "fci",
        description="influence of a step. fci: attention received from later steps (eq. 5-6); lookups: number of "
        "(head, later step) pairs in which a single token gives the step over half of the attention; or module:object",
    )
    reduction: Annotated[str, RowOf(REDUCTIONS, "method.branching.reduction")] = Field(
        "max",
        description="reduction of FCI over layers and heads. max: the largest value (eq. 6); zscore_max: z-scores "
        "over the steps within each head, then the largest; or module:object",
    )

    @property
    def criterion_function(self) -> Criterion:
        """The function named by ``criterion``."""
        return resolve(self.criterion, CRITERIA, "method.branching.criterion")

    @property
    def measure(self) -> Measure:
        """The measure of influence named by ``influence`` and ``reduction``."""
        reduction = resolve(self.reduction, REDUCTIONS, "method.branching.reduction")
        return resolve(self.influence, MEASURES, "method.branching.influence")(reduction)

    def reads(self, signal: Signal) -> bool:
        """Return whether the choice of branch points reads ``signal``."""
        return self.points > 0 and signal in signals_of(self.criterion_function)


class StepsConfig(Strict):
    """How responses are split into steps."""

    splitter: Annotated[str, RowOf(SPLITTERS, "method.steps.splitter")] = Field(
        "delimiters", description="function that splits a response: delimiters, or module:object"
    )
    delimiters: tuple[str, ...] = Field(
        StepSettings.delimiters,
        description="regular expressions of step delimiters; the first that gives at least two steps is used",
    )
    chunk_tokens: PositiveInt = Field(
        StepSettings.chunk_tokens, description="tokens of a step if no delimiter splits the response"
    )
    think_marker: str = Field(
        StepSettings.think_marker, description="text that ends the thinking part; later steps are no branch points"
    )

    @property
    def settings(self) -> StepSettings:
        """The settings that the splitter receives."""
        return StepSettings(self.delimiters, self.chunk_tokens, self.think_marker)

    def split(self, pieces: Sequence[str]) -> Steps:
        """Split a response, given as the text of each token, into steps."""
        return resolve(self.splitter, SPLITTERS, "method.steps.splitter")(pieces, self.settings)

    @model_validator(mode="after")
    def _splitter_takes_the_settings(self) -> StepsConfig:
        _ = self.settings  # raises ValueError
        return self


class CreditConfig(Strict):
    """Per-step weights of the advantages; the paper weighs all steps alike."""

    top_share: float = Field(
        0.2, gt=0, le=1, description="share of a response's steps, those of highest influence, with weight 1"
    )
    rest_weight: float = Field(1.0, gt=0, le=1, description="weight of the advantages of all other steps; 1: off")


class AdaptiveConfig(Strict):
    """Adaptive sampling (eq. 8-10): filtering of problems, expansion of trunks, prompts per step."""

    filter: bool = Field(
        True, description="drop an all-correct problem whose mean influence is below the running mean (eq. 8)"
    )
    expansion: Literal["ceil", "round", "all"] = Field(
        "ceil",
        description="number of trunks to expand (eq. 9). ceil: exp(-accuracy) * n rounded up (released code); round: "
        "rounded to nearest (paper); all: every trunk",
    )
    batch_size: bool = Field(
        True, description="adapt the number of problems per step to keep the training batch full (eq. 10)"
    )
    smoothing: float = Field(0.9, ge=0, lt=1, description="weight of the previous batch size (lambda in eq. 10)")
    max_growth: float = Field(
        4.0, ge=1, description="bound on the batch size: between prompts / max_growth and prompts * max_growth"
    )


class MethodConfig(Strict):
    """The algorithm: AttnRL, TreeRL, GRPO, and mixtures of the three."""

    pipeline: Literal["one_step", "two_phase"] = Field(
        "one_step",
        description="one_step: one generation per training step, one-step off-policy (paper); two_phase: two "
        "generations per training step, initial responses and then continuations",
    )
    trunks: PositiveInt = Field(6, description="initial responses per problem (n)")
    advantage: Annotated[str, RowOf(ADVANTAGES, "method.advantage")] = Field(
        "tree",
        description="advantage estimator. tree: of each segment, from leaf values (eq. 3); grpo: of each response, "
        "normalised by the mean and standard deviation of the group; grpo_no_std: by the mean only; or module:object",
    )
    steps: StepsConfig = StepsConfig()
    branching: BranchingConfig = BranchingConfig()
    credit: CreditConfig = CreditConfig()
    adaptive: AdaptiveConfig = AdaptiveConfig()

    @property
    def leaves(self) -> int:
        """Number of leaves of a fully expanded problem: n * (1 + N * T)."""
        return self.trunks * (1 + self.branching.points * self.branching.samples)

    @property
    def weighs_steps(self) -> bool:
        """True if advantages have per-step weights other than 1."""
        return self.credit.rest_weight < 1

    @property
    def advantage_function(self) -> Advantage:
        """The function named by ``advantage``."""
        return resolve(self.advantage, ADVANTAGES, "method.advantage")

    @property
    def needs_influence(self) -> bool:
        """Whether training reads the influence of steps: for filtering, branch points or advantage weights."""
        return self.adaptive.filter or self.branching.reads("influence") or self.weighs_steps

    @model_validator(mode="after")
    def _whole_responses_have_no_branches(self) -> MethodConfig:
        if self.branching.points and not takes_branches(self.advantage_function):
            raise ValueError(f"advantage={self.advantage} gives whole responses one advantage: set branching.points=0")
        return self
