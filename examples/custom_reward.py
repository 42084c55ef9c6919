"""A reward function, with the signature of TRL's: correct answers, and short correct answers most.

    cd examples
    attnrl train attnrl reward.functions=[custom_reward:short_and_correct] output_dir=../runs/reward

The reward is any number; the task's grader decides which responses are correct. The reward is a pure function of the
texts, so the function may run in a second thread while the sampler still generates (``overlaps``).
"""

from __future__ import annotations

import re

TARGET_LINES = 20


def short_and_correct(completions: list[str], answer: list[str], **_: object) -> list[float]:
    """Return 1 for a correct answer, less for a correct answer of over 20 lines, 0 for a wrong answer, -0.5 without."""
    rewards = []
    for completion, expected in zip(completions, answer, strict=True):
        boxes = re.findall(r"\\boxed\{([^{}]*)\}", completion)
        lines = sum(bool(line.strip()) for line in completion.splitlines())
        if not boxes:
            rewards.append(-0.5)
        else:
            rewards.append(min(1.0, TARGET_LINES / lines) if boxes[-1].strip() == expected else 0.0)
    return rewards


short_and_correct.overlaps = True  # type: ignore[attr-defined]
