"""Bring the newest results into the documentation: ``make results`` and ``make soak`` end with it.

Copies tables, numbers and pictures from ``results/NAME`` to ``docs/results/NAME``, and puts each table into the pages
(``docs/results.md``, ``docs/disruption.md``, ``docs/reliability.md``) between its markers, ``<!-- NAME -->`` and
``<!-- /NAME -->``. What stands around them is written by hand, and has to be read again when numbers change.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).parents[1]
KEPT = ("results.json", "results.md", "curves.png", "dynamics.png", "disruption.png")
PAGES = ("results.md", "disruption.md", "reliability.md")
TABLE = re.compile(r"<!-- (?P<name>[\w-]+) -->.*?<!-- /(?P=name) -->", re.DOTALL)


def copy_results(source: Path, target: Path, names: Iterable[str]) -> None:
    """Copy what is kept of the directories of results called so, if they are there."""
    for directory in (source / name for name in names):
        files = [directory / name for name in KEPT if (directory / name).is_file()]
        for file in files:
            (target / directory.name).mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target / directory.name / file.name)


def fill_tables(page: str, results: Path) -> str:
    """The page with each table that has markers as it is in ``results/NAME/results.md``, if there is one."""

    def table(match: re.Match[str]) -> str:
        name = match["name"]
        file = results / name / "results.md"
        if not file.is_file():
            return match[0]
        text = file.read_text(encoding="utf-8")
        return f"<!-- {name} -->\n{text.strip()}\n<!-- /{name} -->"

    return TABLE.sub(table, page)


def main() -> None:
    docs = ROOT / "docs"
    pages = {docs / name: (docs / name).read_text(encoding="utf-8") for name in PAGES}
    names = [match["name"] for page in pages.values() for match in TABLE.finditer(page)]
    copy_results(ROOT / "results", docs / "results", names)
    for path, page in pages.items():
        path.write_text(fill_tables(page, docs / "results"), encoding="utf-8")


if __name__ == "__main__":
    main()
