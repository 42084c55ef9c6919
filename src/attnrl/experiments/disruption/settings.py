"""Settings of the disruption experiment."""

from __future__ import annotations

from dataclasses import dataclass

from attnrl.errors import UserError
from attnrl.evals.settings import EvalSettings
from attnrl.utils.near import did_you_mean

HIDE_FROM = ("continuation", "next_step")


@dataclass(frozen=True)
class DisruptSettings:
    """Everything that decides the results, besides the model and the problems.

    Attributes:
        evaluation: sampling and grading of responses.
        lag: number of steps kept before the cut, the hidden step included.
        delta: minimal distance in steps of FCI.
        rho: share of a response's eligible steps that count as top steps.
        bins: number of position bins.
        continuations: continuations sampled per cut, with the step hidden and with nothing hidden.
        hide_from: ``continuation`` hides the step from the sampled tokens only; the kept steps after the hidden step
            are computed with the step visible. ``next_step`` hides the step from all later tokens.
    """

    evaluation: EvalSettings
    lag: int
    delta: int
    rho: float
    bins: int
    continuations: int
    hide_from: str


def check_disruption_options(*, hide_from: str, rho: float, task: str | None, data: str | None) -> None:
    """Check the options of ``attnrl disrupt`` that the command line parser leaves open.

    Raises:
        UserError: an invalid option; the message names the option.
    """
    if hide_from not in HIDE_FROM:
        raise UserError(
            f"--hide-from {hide_from}: expected {' or '.join(HIDE_FROM)}{did_you_mean(hide_from, HIDE_FROM)}"
        )
    if rho <= 0:
        raise UserError(f"--rho {rho}: expected more than 0")
    if (task is None) == (data is None):
        raise UserError("give one of --task and --data")
