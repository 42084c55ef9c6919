"""Bring measured tables and pictures from ``results/`` into the documentation.

    python scripts/results_page.py

``make results`` and ``make soak`` end with this script. Each table between ``<!-- NAME -->`` and ``<!-- /NAME -->`` is
replaced by ``results/NAME/results.md``; a table without a file in ``results/`` stays. The text around the markers is
written by hand: read the text again when numbers change.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = ("findings.md", "reliability.md")
PICTURES = {"learning-curves.png": "ledger/curves.png", "disruption.png": "disruption-demo/disruption.png"}
TABLE = re.compile(r"<!-- (?P<name>[\w-]+) -->.*?<!-- /(?P=name) -->", re.DOTALL)


def fill_tables(page: str, results: Path) -> str:
    """Return the page with each marked table replaced by ``results/NAME/results.md``, where the file exists."""

    def table(match: re.Match[str]) -> str:
        name = match["name"]
        file = results / name / "results.md"
        if not file.is_file():
            return match[0]
        return f"<!-- {name} -->\n{file.read_text(encoding='utf-8').strip()}\n<!-- /{name} -->"

    return TABLE.sub(table, page)


def update_docs(docs: Path, results: Path) -> None:
    """Fill the tables of all pages of ``docs`` and copy the measured pictures."""
    for name in PAGES:
        page = docs / name
        page.write_text(fill_tables(page.read_text(encoding="utf-8"), results), encoding="utf-8")
    for name, source in PICTURES.items():
        if (results / source).is_file():
            shutil.copyfile(results / source, docs / name)


if __name__ == "__main__":
    update_docs(ROOT / "docs", ROOT / "results")
