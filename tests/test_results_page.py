"""The tables of the pages of results are those that were measured."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
spec = importlib.util.spec_from_file_location("results_page", ROOT / "scripts" / "results_page.py")
results_page = importlib.util.module_from_spec(spec)
spec.loader.exec_module(results_page)


@pytest.mark.parametrize("name", results_page.PAGES)
def test_the_page_holds_the_tables_as_they_are_in_the_results(name: str) -> None:
    page = (ROOT / "docs" / name).read_text()
    assert results_page.fill_tables(page, ROOT / "docs" / "results") == page
    assert page.count("<!-- /") >= 2


def test_tables_are_brought_in_between_their_markers(tmp_path: Path) -> None:
    (tmp_path / "from" / "a").mkdir(parents=True)
    (tmp_path / "from" / "a" / "results.md").write_text("| new |\n")
    (tmp_path / "from" / "a" / "steps.jsonl").write_text("{}\n")
    (tmp_path / "from" / "unnamed").mkdir()
    (tmp_path / "from" / "unnamed" / "results.md").write_text("| other |\n")
    results_page.copy_results(tmp_path / "from", tmp_path / "to", ["a", "not measured yet"])
    assert [str(path.relative_to(tmp_path / "to")) for path in (tmp_path / "to").rglob("*.*")] == ["a/results.md"]
    page = "before\n<!-- a -->\n| old |\n<!-- /a -->\nafter\n"
    assert results_page.fill_tables(page, tmp_path / "to") == page.replace("old", "new")
    not_measured = "<!-- b -->\n| as it was |\n<!-- /b -->"
    assert results_page.fill_tables(not_measured, tmp_path / "to") == not_measured
