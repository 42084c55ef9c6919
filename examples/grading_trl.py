"""The grader as a reward function of TRL (checked with TRL 1.16.0: GRPO, RLOO, online DPO).

    trainer = GRPOTrainer(model, reward_funcs=accuracy, train_dataset=rows)  # rows: prompt, answer

TRL calls the function once per batch with lists of equal length: prompts and completions (texts, or lists of chat
messages), and each further column of the data set.
"""

from __future__ import annotations

from typing import Any

from attnrl.grading import grade_batch


def accuracy(prompts: list[Any], completions: list[Any], answer: list[Any], **_: Any) -> list[float]:
    """Return 1 for each correct completion, else 0."""
    return [grade.reward for grade in grade_batch(completions, answer, prompts)]
