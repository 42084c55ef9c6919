"""The grader as a scorer of Inspect (checked with inspect_ai 0.3.285).

    Task(dataset=[Sample(input="What is $2+3$?", target="5")], solver=generate(), scorer=math_answer())

A target of several texts is a list of accepted answers. Grading waits for worker processes, so the scorer calls the
grader in a thread, and the requests of other samples go on.
"""

from __future__ import annotations

from anyio.to_thread import run_sync
from inspect_ai.scorer import Score, Scorer, Target, accuracy, scorer, stderr
from inspect_ai.solver import TaskState

from attnrl.grading import grade


@scorer(metrics=[accuracy(), stderr()])
def math_answer() -> Scorer:
    """Return the scorer: value 1 or 0, the verdict as explanation."""

    async def score(state: TaskState, target: Target) -> Score:
        result = await run_sync(grade, state.output.completion, list(target), state.input)
        return Score(value=result.reward, answer=result.answer, explanation=result.verdict)

    return score
