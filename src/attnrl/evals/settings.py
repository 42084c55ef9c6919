"""Settings of an evaluation: sampling, prompts and grading."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from attnrl.config.base import PROMPT_SUFFIX
from attnrl.config.reward import RewardConfig
from attnrl.errors import UserError
from attnrl.grading.base import ClosableGrader
from attnrl.grading.registry import build_grader
from attnrl.grading.rewards import RewardManager
from attnrl.tasks.registry import find_task
from attnrl.types import SamplingParams

TASK_GRADER = "task"


@dataclass(frozen=True)
class EvalSettings:
    """Everything that decides the samples and grades, besides the models and the suites.

    Attributes:
        sampling: distribution of the tokens, and stop strings.
        seed: seed of the evaluation; decides the seed of every response.
        dtype: ``float32`` or ``bfloat16``, the data type of the weights.
        task: name of the task, or None for benchmarks and data files.
        grader: a name known to :func:`attnrl.grading.registry.build_grader`, or ``task`` for the task's own grader.
        flexible_answers: whether the grader accepts an answer outside of a box.
        prompt_suffix: text appended to every prompt.
        max_prompt_tokens: longest allowed prompt in tokens; a problem with a longer prompt is skipped. None for no
            limit besides the model's positions.
        while_thinking: whether an answer inside of a thought that never ends counts.
    """

    sampling: SamplingParams
    seed: int
    dtype: str
    task: str | None
    grader: str
    flexible_answers: bool
    prompt_suffix: str
    max_prompt_tokens: int | None
    while_thinking: bool = False


def evaluation_settings(
    *,
    temperature: float,
    top_p: float,
    top_k: int,
    min_p: float,
    stop: Sequence[str],
    seed: int,
    dtype: str,
    task: str | None,
    grader: str | None,
    flexible_answers: bool,
    while_thinking: bool,
    prompt_suffix: str | None,
    max_prompt_tokens: int | None,
) -> EvalSettings:
    """Return the settings for the options of the command line, with defaults filled in.

    The default grader is the task's own grader for a task, and ``math`` otherwise. The default suffix is the paper's
    suffix, and empty for a task.

    Raises:
        UserError: an invalid option; the message names the option.
    """
    if dtype not in {"float32", "bfloat16"}:
        raise UserError(f"--dtype {dtype}: expected float32 or bfloat16")
    try:
        sampling = SamplingParams(temperature, top_p, top_k, min_p, tuple(stop))
    except ValueError as error:
        name, _, rest = str(error).partition(" ")
        raise UserError(f"--{name.replace('_', '-')} {rest}") from None
    if prompt_suffix is None:
        prompt_suffix = PROMPT_SUFFIX if task is None else ""
    return EvalSettings(
        sampling=sampling,
        seed=seed,
        dtype=dtype,
        task=task,
        grader=grader or ("math" if task is None else TASK_GRADER),
        flexible_answers=flexible_answers,
        while_thinking=while_thinking,
        prompt_suffix=prompt_suffix,
        max_prompt_tokens=max_prompt_tokens,
    )


def open_rewards(settings: EvalSettings) -> RewardManager:
    """Return the rewards of responses, with the grader named by ``settings``: a context manager."""
    return RewardManager(_grader(settings), RewardConfig(while_thinking=settings.while_thinking))


def _grader(settings: EvalSettings) -> ClosableGrader:
    if settings.grader == TASK_GRADER and settings.task is not None:
        return find_task(settings.task).grader(flexible=settings.flexible_answers)
    return build_grader(settings.grader, flexible=settings.flexible_answers)
