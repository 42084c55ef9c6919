"""Resolve names in settings: a row of a table of the package, or ``module:object`` for an object of the user.

All settings with a name (criterion, advantage, splitter, task, grader, sampler) follow the same rule and give the same
error message.
"""

from __future__ import annotations

import difflib
import importlib
import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

from attnrl.errors import UserError, one_line

T = TypeVar("T")

REFERENCE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")


def resolve(name: str, table: Mapping[str, T], setting: str) -> T:
    """Return the row ``name`` of ``table``, or the object that ``module:object`` names.

    Args:
        name: a key of ``table``, or ``module:object``. The module is imported, the working directory included.
        table: the rows that the package ships.
        setting: the name of the setting, for messages.

    Raises:
        UserError: ``name`` is neither, or the module or the object cannot be imported; the message suggests near names.
    """
    if name in table:
        return table[name]
    if ":" in name:
        found: T = import_object(name, setting)
        return found
    near = difflib.get_close_matches(name, table, n=1)
    suggestion = f"; did you mean {near[0]}?" if near else ""
    raise UserError(f"{setting}: {name!r} is neither one of {', '.join(table)} nor module:object{suggestion}")


def import_object(reference: str, setting: str) -> Any:
    """Import ``module:object`` and return the object; the working directory is on the path meanwhile.

    Raises:
        UserError: the reference is malformed, the module cannot be imported, or the module lacks the object.
    """
    if not REFERENCE.fullmatch(reference):
        raise UserError(f"{setting}: {reference!r}: expected module:object")
    module_name, _, attribute = reference.partition(":")
    with _working_directory_on_path():
        try:
            module = importlib.import_module(module_name)
        except ImportError as error:
            raise UserError(f"{setting}: module {module_name} cannot be imported ({one_line(error)})") from None
        except (Exception, SystemExit) as error:  # SystemExit: a script that runs whenever it is imported
            said = f"{type(error).__name__}: {one_line(error)}"
            raise UserError(f"{setting}: importing {module_name} raised {said}") from error
    if not hasattr(module, attribute):
        near = difflib.get_close_matches(attribute, vars(module), n=1)
        suggestion = f"; did you mean {near[0]}?" if near else ""
        raise UserError(f"{setting}: module {module_name} has no {attribute}{suggestion}")
    return getattr(module, attribute)


@contextmanager
def _working_directory_on_path() -> Iterator[None]:
    """Append the working directory to ``sys.path``: ``python -m`` does so, a console script does not."""
    working = os.getcwd()
    added = working not in sys.path and "" not in sys.path
    if added:
        sys.path.append(working)
    try:
        yield
    finally:
        if added:
            sys.path.remove(working)
