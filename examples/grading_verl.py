"""The grader as the reward of verl (checked with verl 0.9.1).

    python -m verl.trainer.main_ppo reward.custom_reward_function.path=examples/grading_verl.py ...

verl calls ``compute_score`` once per response, from several threads and processes. The column ``reward_model`` of the
data set holds the accepted answer as ``ground_truth``. verl does not pass the prompt: with the text of the problem in
``extra_info["question"]`` (as in verl's GSM8K), a copy of the problem earns nothing.
"""

from __future__ import annotations

from typing import Any

from attnrl.grading import grade


def compute_score(
    data_source: str, solution_str: str, ground_truth: Any, extra_info: dict[str, Any] | None = None, **_: Any
) -> dict[str, float]:
    """Return the reward as ``score``, and as ``acc`` for verl's validation."""
    result = grade(solution_str, ground_truth, (extra_info or {}).get("question", ""))
    return {"score": result.reward, "acc": result.reward}
