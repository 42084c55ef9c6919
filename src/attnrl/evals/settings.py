"""Settings of an evaluation: sampling, prompts and grading."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast, get_args

from attnrl.config.base import PROMPT_SUFFIX
from attnrl.config.reward import RewardConfig
from attnrl.data.datasets import Answers
from attnrl.data.run_data import task_prompts
from attnrl.errors import UserError, one_line
from attnrl.grading.base import ClosableGrader
from attnrl.grading.registry import GRADERS, build_grader
from attnrl.grading.rewards import RewardManager
from attnrl.prompts.settings import PromptSettings, SpecialTokens
from attnrl.tasks.registry import find_task
from attnrl.types import SamplingParams
from attnrl.utils.near import did_you_mean
from attnrl.utils.yaml import load_yaml

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
        prompt_suffix: text appended to every prompt that lacks the suffix.
        system_prompt, chat_template, chat_template_kwargs, special_tokens: see
            :class:`attnrl.prompts.settings.PromptSettings`.
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
    system_prompt: str | None = None
    chat_template: str = "auto"
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    special_tokens: SpecialTokens = "keep"

    @property
    def prompts(self) -> PromptSettings:
        """Return the settings of the prompts."""
        settings = PromptSettings(
            suffix=self.prompt_suffix,
            system_prompt=self.system_prompt,
            chat_template=self.chat_template,
            chat_template_kwargs=self.chat_template_kwargs,
            special_tokens=self.special_tokens,
        )
        return settings if self.task is None else task_prompts(find_task(self.task), settings)

    @property
    def answers(self) -> Answers:
        """Return whether rows need a true answer: graders of the user do without."""
        return "required" if self.grader == TASK_GRADER or self.grader in GRADERS else "optional"


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
    system_prompt: str | None,
    chat_template: str,
    chat_template_kwargs: str,
    special_tokens: str,
) -> EvalSettings:
    """Return the settings for the options of the command line, with defaults filled in.

    The default grader is the task's own grader for a task, and ``math`` otherwise. The default suffix is the paper's
    suffix, and empty for a task.

    Raises:
        UserError: an invalid option; the message names the option.
    """
    if dtype not in {"float32", "bfloat16"}:
        raise UserError(f"--dtype {dtype}: expected float32 or bfloat16{did_you_mean(dtype, ['float32', 'bfloat16'])}")
    try:
        sampling = SamplingParams(temperature, top_p, top_k, min_p, tuple(stop))
    except ValueError as error:
        name, _, rest = str(error).partition(" ")
        raise UserError(f"--{name.replace('_', '-')} {rest}") from None
    if special_tokens not in get_args(SpecialTokens):
        raise UserError(f"--special-tokens {special_tokens}: expected {' or '.join(get_args(SpecialTokens))}")
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
        system_prompt=system_prompt,
        chat_template=chat_template,
        chat_template_kwargs=_mapping(chat_template_kwargs),
        special_tokens=cast(SpecialTokens, special_tokens),
    )


def _mapping(text: str) -> dict[str, Any]:
    """Return the mapping written as YAML or JSON in the option ``--chat-template-kwargs``."""
    option = "--chat-template-kwargs"
    try:
        found = load_yaml(text)
        json.dumps(found)  # results.json holds the settings
    except (TypeError, ValueError) as error:
        raise UserError(f"{option} {text}: {one_line(error)}") from None
    if not isinstance(found, dict) or not all(isinstance(key, str) for key in found):
        raise UserError(f"{option} {text}: expected names and values, as in '{{enable_thinking: false}}'")
    return found


def open_rewards(settings: EvalSettings) -> RewardManager:
    """Return the rewards of responses, with the grader named by ``settings``: a context manager."""
    return RewardManager(_grader(settings), RewardConfig(while_thinking=settings.while_thinking))


def _grader(settings: EvalSettings) -> ClosableGrader:
    if settings.grader == TASK_GRADER and settings.task is not None:
        return find_task(settings.task).grader(flexible=settings.flexible_answers)
    return build_grader(settings.grader, flexible=settings.flexible_answers)
