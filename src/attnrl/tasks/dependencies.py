"""The true dependency graph of a response, for tasks that know it: what the scale's upper end is made of."""

from __future__ import annotations

from collections.abc import Sequence

from attnrl.errors import UserError
from attnrl.tasks.ledger import line_of_step
from attnrl.types import Problem


def require_dependencies(problem: Problem) -> None:
    """Make sure that the task of ``problem`` knows its dependency graph.

    Raises:
        UserError: it does not.
    """
    if "needs" not in problem.info:
        raise UserError(
            f"task {problem.source or problem.id}: its true dependency graph is not known "
            "(it is for ledger and ledger_long)"
        )


def step_dependents(problem: Problem, steps: Sequence[str]) -> tuple[float, ...]:
    """How many lines of the problem look up directly what each step of a response works out.

    A step that works on no line (a recheck, the boxed answer, nonsense), or on one that an earlier step has
    worked on, counts 0.

    Args:
        problem: one whose ``info["needs"][i]`` lists the lines that line i looks up.
        steps: texts of the response's S steps.

    Returns:
        One number for each step, length S.

    Raises:
        UserError: the problem's graph is not known.
    """
    require_dependencies(problem)
    needs: Sequence[Sequence[int]] = problem.info["needs"]
    uses = [sum(line in needed for needed in needs) for line in range(len(needs))]
    dependents, seen = [], set()
    for text in steps:
        line = line_of_step(text)
        first = line is not None and line < len(needs) and line not in seen
        dependents.append(float(uses[line]) if line is not None and first else 0.0)
        seen.add(line)
    return tuple(dependents)
