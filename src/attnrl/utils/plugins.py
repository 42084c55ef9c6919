"""Resolve names in settings: a row of a table of the package, or ``module:object`` for an object of the user.

All settings with a name (criterion, advantage, splitter, task, grader, sampler) follow the same rule and give the same
error message.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from attnrl.errors import UserError, one_line
from attnrl.utils.near import did_you_mean

T = TypeVar("T")

REFERENCE = re.compile(r"([A-Za-z_]\w*(\.[A-Za-z_]\w*)*|.+\.py):[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")


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
    known = ", ".join(table)
    raise UserError(f"{setting}: {name!r} is neither one of {known} nor module:object{did_you_mean(name, table)}")


def import_object(reference: str, setting: str) -> Any:
    """Import ``module:object`` or ``path/to/file.py:object`` and return the object; ``object`` may be ``Class.method``.

    The working directory (the folder of the file) is on the path meanwhile.

    Raises:
        UserError: the reference is malformed, the module cannot be imported, or the module lacks the object.
    """
    if not REFERENCE.fullmatch(reference):
        raise UserError(f"{setting}: {reference!r}: expected module:object or path/to/file.py:object")
    module_name, _, attribute = reference.rpartition(":")
    is_file = module_name.endswith(".py")
    if is_file and not Path(module_name).expanduser().is_file():
        raise UserError(f"{setting}: {module_name}: no such file")
    with _on_path(Path(module_name).expanduser().parent if is_file else Path()):
        try:
            module = _import_file(module_name) if is_file else importlib.import_module(module_name)
        except ImportError as error:
            raise UserError(f"{setting}: module {module_name} cannot be imported ({one_line(error)})") from None
        except (Exception, SystemExit) as error:  # SystemExit: a script that runs whenever it is imported
            said = f"{type(error).__name__}: {one_line(error)}"
            raise UserError(f"{setting}: importing {module_name} raised {said}") from error
    found: Any = module
    owner = f"module {module_name}"
    for name in attribute.split("."):
        if not hasattr(found, name):
            raise UserError(f"{setting}: {owner} has no {name}{did_you_mean(name, dir(found))}")
        found, owner = getattr(found, name), f"{name} of {owner}"
    return found


def _import_file(name: str) -> ModuleType:
    """Return the module of a Python file; a second call returns the same module."""
    path = Path(name).expanduser().resolve()
    if str(path) in sys.modules:
        return sys.modules[str(path)]
    spec = importlib.util.spec_from_file_location(str(path), path)
    assert spec is not None and spec.loader is not None  # the name ends with .py
    module = sys.modules[str(path)] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[str(path)]
        raise
    return module


@contextmanager
def _on_path(folder: Path) -> Iterator[None]:
    """Append ``folder`` to ``sys.path``: ``python -m`` does so for the working directory, a console script does not."""
    added = str(folder.resolve())
    is_new = added not in sys.path and not (folder == Path() and "" in sys.path)
    if is_new:
        sys.path.append(added)
    try:
        yield
    finally:
        if is_new:
            sys.path.remove(added)
