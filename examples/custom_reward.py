"""A reward function, with the signature of TRL's: correct answers, and short correct answers most.

    cd examples
    attnrl train attnrl grader=custom_reward:short_and_correct output_dir=../runs/reward

Only a reward of 1 counts as correct. The reward is a pure function of the texts, so the function may run in a second
thread while the sampler still generates (``overlaps``).
"""

from __future__ import annotations

import re

TARGET_LINES = 20


def short_and_correct(completions: list[str], answer: list[str], **_: object) -> list[float]:
    """Return 0 for a wrong answer, 1 for a correct answer, and less for a correct answer of over 20 lines."""
    rewards = []
    for completion, expected in zip(completions, answer, strict=True):
        boxes = re.findall(r"\\boxed\{([^{}]*)\}", completion)
        lines = sum(bool(line.strip()) for line in completion.splitlines())
        correct = bool(boxes) and boxes[-1].strip() == expected
        rewards.append(min(1.0, TARGET_LINES / lines) if correct else 0.0)
    return rewards


short_and_correct.overlaps = True  # type: ignore[attr-defined]
