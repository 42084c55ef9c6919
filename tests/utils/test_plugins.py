"""Names resolve to rows of a table or to objects of a user's module; faults name the setting."""

from __future__ import annotations

from pathlib import Path

import pytest

from attnrl.errors import UserError
from attnrl.utils.plugins import import_object, resolve

TABLE = {"first": 1, "second": 2}


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "users_module.py").write_text("value = 7\n")
    (tmp_path / "raising_module.py").write_text("raise ValueError('broken')\n")
    (tmp_path / "exiting_module.py").write_text("raise SystemExit(3)\n")
    monkeypatch.chdir(tmp_path)
    return "users_module"


def test_a_row_of_the_table() -> None:
    assert resolve("second", TABLE, "some.setting") == 2


def test_an_object_of_a_module_in_the_working_directory(module: str) -> None:
    assert resolve(f"{module}:value", TABLE, "some.setting") == 7


@pytest.mark.parametrize(
    ("name", "named"),
    [
        ("secnd", "second"),
        ("nothing_like_it", "first, second"),
        ("users_module:valeu", "value"),
        ("users_module:", "module:object"),
        ("users module:value", "module:object"),
        ("a:b:c", "module:object"),
        ("no_such_module:value", "no_such_module"),
        ("raising_module:value", "ValueError"),
        ("exiting_module:value", "SystemExit"),
    ],
)
def test_faults_name_the_setting_and_what_is_wrong(module: str, name: str, named: str) -> None:
    with pytest.raises(UserError) as caught:
        resolve(name, TABLE, "some.setting")
    assert str(caught.value).startswith("some.setting: ") and named in str(caught.value)


def test_the_path_is_left_as_it_was(module: str) -> None:
    import sys

    before = list(sys.path)
    import_object(f"{module}:value", "some.setting")
    assert sys.path == before
