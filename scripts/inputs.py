"""Count the cases of wrong and unusual input tested through the command line, as a table for the documentation.

    python scripts/inputs.py

Runs ``tests/cli/inputs`` and writes ``results/inputs/results.md``: for each test file the first line of its docstring,
the number of cases and the number that failed. ``scripts/results_page.py`` brings the table into docs/reliability.md.
"""

from __future__ import annotations

import ast
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).parents[1]
CASES = ROOT / "tests" / "cli" / "inputs"


def measured() -> tuple[Counter[str], Counter[str]]:
    """Run the cases; return the number of cases and of failed cases by the name of the test file."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        subprocess.run([sys.executable, "-m", "pytest", "-q", str(CASES), f"--junitxml={report}"], cwd=ROOT)
        cases = list(ElementTree.parse(report).iter("testcase"))
    ran: Counter[str] = Counter()
    failed: Counter[str] = Counter()
    for case in cases:
        outcomes = {outcome.tag for outcome in case}
        if "skipped" in outcomes:
            continue
        name = next(part for part in case.attrib["classname"].split(".") if part.startswith("test_"))
        ran[name] += 1
        failed[name] += bool(outcomes & {"failure", "error"})
    return ran, failed


def table(ran: Counter[str], failed: Counter[str]) -> str:
    """Return the table in Markdown, one row per test file, with the sums."""
    lines = ["| input | tests | cases | failed |", "|---|---|---|---|"]
    for path in sorted(CASES.glob("test_*.py")):
        summary = (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or path.stem).splitlines()[0]
        lines.append(f"| {summary.rstrip('.')} | `{path.name}` | {ran[path.stem]} | {failed[path.stem]} |")
    lines.append(f"| all | | {ran.total()} | {failed.total()} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    output = ROOT / "results" / "inputs" / "results.md"
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(table(*measured()), encoding="utf-8")
    print(f"Wrote {output}")
