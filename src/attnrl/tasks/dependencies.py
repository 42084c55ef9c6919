"""The true dependency graph of a response, for tasks with a known graph: the signal of the oracle criterion."""

from __future__ import annotations

from collections.abc import Sequence

from attnrl.errors import UserError
from attnrl.tasks.ledger import SHAPES, line_of_step
from attnrl.types import Problem


def require_dependencies(problem: Problem) -> None:
    """Check that the true dependency graph of ``problem`` is known.

    Raises:
        UserError: the dependency graph is unknown; names the task.
    """
    if "needs" not in problem.info:
        raise unknown_dependencies(f"task {problem.source or problem.id}")


def unknown_dependencies(problems: str) -> UserError:
    """Return the error for ``problems`` (a task or a setting) without a known dependency graph."""
    return UserError(f"{problems}: the true dependency graph is unknown (known for {', '.join(SHAPES)})")


def step_dependents(problem: Problem, steps: Sequence[str]) -> tuple[float, ...]:
    """Return the number of lines of the problem that look up the result of each step directly.

    A step that solves no line (a recheck, the boxed answer, nonsense), or a line solved by an earlier step, has 0
    dependents.

    Args:
        problem: a problem with ``info["needs"][i]``, the lines that line i looks up.
        steps: texts of the S steps of a response.

    Returns:
        Dependents per step, length S.

    Raises:
        UserError: the dependency graph of the problem is unknown.
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
