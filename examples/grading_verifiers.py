"""The grader as the reward of a verifiers task (checked with verifiers 0.4.0; for a Rubric, see the end).

    MathTask(MathData(prompt="What is $2+3$?", answer="5"))  # in ``load()`` of a Taskset

Grading waits for worker processes, so the reward calls the grader in a thread, and other rollouts go on.
"""

from __future__ import annotations

import asyncio

import verifiers.v1 as vf

from attnrl.grading import grade


class MathData(vf.TaskData):
    """A problem and the accepted answer."""

    answer: str


class MathTask(vf.Task[MathData]):
    """A problem with a reward of 1 for a correct last reply, else 0."""

    @vf.reward
    async def correct(self, trace: vf.Trace) -> float:
        """Grade the last reply."""
        result = await asyncio.to_thread(grade, trace.last_reply, self.data.answer, self.data.prompt_text)
        return result.reward
