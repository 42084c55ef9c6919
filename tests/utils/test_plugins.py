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


def test_an_object_of_a_file(module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my rewards").mkdir()
    (tmp_path / "my rewards" / "users_module.py").write_text("import beside\nvalue = beside.value\n")
    (tmp_path / "my rewards" / "beside.py").write_text("value = []\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    found = import_object("my rewards/users_module.py:value", "some.setting")
    assert found == []
    assert import_object("~/my rewards/users_module.py:value", "some.setting") is found
    assert resolve("users_module:value", TABLE, "some.setting") == 7


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
        ("nowhere/rewards.py:value", "no such file"),
        ("raising_module.py:value", "ValueError"),
        ("users_module.py:valeu", "value"),
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
