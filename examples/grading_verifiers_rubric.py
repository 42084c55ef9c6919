"""The grader as a rubric of verifiers before 0.4 (checked with verifiers 0.3.1).

    vf.SingleTurnEnv(dataset=rows, rubric=rubric())  # rows: prompt or question, and answer

A rubric calls the function once per rollout with the arguments that the function names. Grading waits for worker
processes, so the function calls the grader in a thread, and other rollouts go on. From 0.4 on, verifiers has no
rubrics: see ``grading_verifiers.py``.
"""

from __future__ import annotations

import asyncio
from typing import Any

import verifiers as vf

from attnrl.grading import grade


async def correct(prompt: Any, completion: Any, answer: Any) -> float:
    """Return 1 for a correct completion, else 0. Prompt and completion are texts or lists of chat messages."""
    return (await asyncio.to_thread(grade, completion, answer, prompt)).reward


def rubric() -> vf.Rubric:
    """Return the rubric with the function as the only reward."""
    return vf.Rubric(funcs=[correct])
