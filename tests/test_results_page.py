"""``scripts/results_page.py``: measured tables and pictures reach the pages of docs."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
spec = importlib.util.spec_from_file_location("results_page", ROOT / "scripts" / "results_page.py")
results_page = importlib.util.module_from_spec(spec)
spec.loader.exec_module(results_page)


@pytest.mark.parametrize("name", results_page.PAGES)
def test_every_marker_of_a_page_is_closed(name: str) -> None:
    page = (ROOT / "docs" / name).read_text()
    tables = list(results_page.TABLE.finditer(page))
    assert len(tables) == page.count("<!-- /") >= 2
    assert all((ROOT / "docs" / picture).is_file() for picture in results_page.PICTURES)


def test_tables_and_pictures_are_replaced_where_results_exist(tmp_path: Path) -> None:
    docs, results = tmp_path / "docs", tmp_path / "results"
    docs.mkdir()
    for name in ("a", "ledger"):
        (results / name).mkdir(parents=True)
        (results / name / "results.md").write_text("| new |\n")
    (results / "ledger" / "curves.png").write_bytes(b"picture")
    page = "before\n<!-- a -->\n| old |\n<!-- /a -->\n<!-- b -->\n| as measured |\n<!-- /b -->\nafter\n"
    for name in results_page.PAGES:
        (docs / name).write_text(page)
    results_page.update_docs(docs, results)
    assert {(docs / name).read_text() for name in results_page.PAGES} == {page.replace("old", "new")}
    assert (docs / "learning-curves.png").read_bytes() == b"picture"
    assert not (docs / "disruption.png").exists()
