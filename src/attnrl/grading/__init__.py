"""Graders: rules, math-verify in worker processes, and graders of the user.

The public names are imported on first use (PEP 562): a worker process imports the package without the grader.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from attnrl.grading.standalone import grade, grade_batch

__all__ = ["grade", "grade_batch"]


def __getattr__(name: str) -> Any:
    """Import a public name on first use."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("attnrl.grading.standalone"), name)
