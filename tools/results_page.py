"""Bring the newest results into the documentation: ``make results`` ends with it.

Copies tables, numbers and pictures from ``results/NAME`` to ``docs/results/NAME``, and puts each table into
``docs/results.md`` between its markers, ``<!-- NAME -->`` and ``<!-- /NAME -->``. What stands around them is written by
hand, and has to be read again when numbers change.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

ROOT = Path(__file__).parents[1]
KEPT = ("results.json", "results.md", "curves.png", "dynamics.png")


def copy_results(source: Path, target: Path) -> None:
    """Copy what is kept of every directory of results that there is."""
    for directory in sorted(source.glob("*/")):
        files = [directory / name for name in KEPT if (directory / name).is_file()]
        for file in files:
            (target / directory.name).mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target / directory.name / file.name)


def fill_tables(page: str, results: Path) -> str:
    """The page with each table that has markers as it is in ``results/NAME/results.md``."""

    def table(match: re.Match[str]) -> str:
        name = match["name"]
        text = (results / name / "results.md").read_text(encoding="utf-8")
        return f"<!-- {name} -->\n{text.strip()}\n<!-- /{name} -->"

    return re.sub(r"<!-- (?P<name>[\w-]+) -->.*?<!-- /(?P=name) -->", table, page, flags=re.DOTALL)


def main() -> None:
    copy_results(ROOT / "results", ROOT / "docs" / "results")
    page = ROOT / "docs" / "results.md"
    page.write_text(fill_tables(page.read_text(encoding="utf-8"), ROOT / "docs" / "results"), encoding="utf-8")


if __name__ == "__main__":
    main()
