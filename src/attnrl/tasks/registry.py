"""The table of tasks: the names that the setting ``task`` accepts.

A new task of the package is one class (:class:`attnrl.tasks.base.Task`) and one row of :data:`TASKS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from attnrl.errors import UserError
from attnrl.tasks.base import DemonstratedTask, Task
from attnrl.tasks.chain_sum import ChainSumTask
from attnrl.tasks.custom import custom_task
from attnrl.tasks.ledger import SHAPES, LedgerTask
from attnrl.tasks.reasoning_gym import REASONING_GYM, find_reasoning_gym_task, nearest_task
from attnrl.utils.near import near_names
from attnrl.utils.plugins import resolve

#: The only list of task names. A row makes the task from the full name; a key that ends with a colon is a prefix.
TASKS: Mapping[str, Callable[[str], Task]] = {
    **{name: partial(LedgerTask, shape=shape) for name, shape in SHAPES.items()},
    REASONING_GYM: partial(find_reasoning_gym_task, demonstrated={"chain_sum": ChainSumTask}),
}


def find_task(name: str) -> Task:
    """Return the task with a name.

    Args:
        name: a row of :data:`TASKS`; ``reasoning_gym:NAME?KEY=VALUE&...``; or ``module:object``, a task of the user
            (:func:`attnrl.tasks.custom.custom_task`).

    Raises:
        UserError: unknown name, invalid parameters, failed import, or the object is not a task.
    """
    prefix = "".join(name.partition(":")[:2])
    row = prefix if prefix in TASKS else name
    try:
        found = resolve(row, TASKS, "task")
    except UserError:
        near = nearest_task(name)
        if near is None or near_names(row, TASKS) not in ([], [REASONING_GYM]):
            raise
        raise UserError(f"task {name}: neither a task nor an importable module:object; did you mean {near}?") from None
    return found(name) if row in TASKS else custom_task(name, found)


def find_demonstrated_task(name: str) -> DemonstratedTask:
    """Return the task with a name (:func:`find_task`); the task must have demonstrations.

    Raises:
        UserError: as :func:`find_task`, or the task has no demonstrations.
    """
    task = find_task(name)
    if not isinstance(task, DemonstratedTask):
        raise UserError(
            f"task {name}: has no demonstrations (with demonstrations: {', '.join(SHAPES)}, reasoning_gym:chain_sum)"
        )
    return task
