"""Held-out evaluation during training, with the settings under ``eval``; the same for every engine."""

from __future__ import annotations

from collections.abc import Sequence

from attnrl.config.schema import TrainConfig
from attnrl.data.run_data import EVALUATION_SEED
from attnrl.grading.rewards import RewardManager
from attnrl.prompts.renderer import PromptRenderer
from attnrl.rl.evaluation import Evaluation, evaluate
from attnrl.types import Problem, Sampler


def is_evaluation_due(config: TrainConfig, held_out: Sequence[Problem], step: int, sampled_tokens: int) -> bool:
    """Return True if ``step`` is evaluated: every ``eval.every`` steps, and the last step of the run."""
    return bool(held_out) and (step % config.eval.every == 0 or config.is_over(step, sampled_tokens))


def evaluate_held_out(
    config: TrainConfig,
    held_out: Sequence[Problem],
    *,
    sampler: Sampler,
    rewards: RewardManager,
    renderer: PromptRenderer,
    step: int,
) -> Evaluation:
    """Sample ``eval.samples`` responses per held-out problem after ``step`` and grade them; the seed is fixed."""
    return evaluate(
        held_out,
        sampler=sampler,
        rewards=rewards,
        renderer=renderer,
        samples=config.eval.samples,
        max_new_tokens=config.sampling.max_new_tokens,
        max_prompt_tokens=config.sampling.max_prompt_tokens,
        seed=EVALUATION_SEED,
        step=step,
    )
