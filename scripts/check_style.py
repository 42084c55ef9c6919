"""Check the style rules that no linter knows: length of files, loose modules, and the language of docstrings.

python scripts/check_style.py

Rules (CONTRIBUTING.md gives the reasons):

- a Python file of ``src`` or a script of the HTML report has at most 400 lines;
- ``src/attnrl`` has at most 5 modules beside ``__init__`` and ``__main__``;
- pronouns and relative words are under 5 per 100 words of docstring over the whole package, under 7 in each folder;
- a docstring of a function or class has at least 5 words: a shorter one repeats the name.

Prints each violation in a line of its own; the exit code is 1 if there is one.
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

MAX_LINES = 400
MAX_LOOSE_MODULES = 5
MAX_PER_100_WORDS = {"whole": 5.0, "folder": 7.0}
MIN_DOCSTRING_WORDS = 5
MIN_SENTENCE_WORDS = 3
PRONOUNS = {
    *("it", "its", "that", "what", "which", "those", "these", "them", "they", "their", "so", "such", "one", "ones"),
    *("other", "others", "whose", "whom", "whoever", "where", "there", "nobody", "none"),
}
CODE = re.compile(r"``[^`]*``|:[a-z]+:`[^`]*`|`[^`]*`")
SECTION_HEAD = re.compile(r"(?m)^\s*(Args|Returns|Raises|Attributes|Examples?|Yields):.*$")
SENTENCE_END = re.compile(r"(?<=[.!?])\s+|\n\s*\n|\n(?=\s+\w+:)")

Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def docstrings(source: str) -> Iterator[tuple[Documented, str]]:
    """Yield each documented node of a module with its docstring."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, Documented) and (text := ast.get_docstring(node)):
            yield node, text


def count_pronouns(source: str) -> tuple[int, int]:
    """Return (pronouns and relative words, all words) of a module's docstrings, without code and section heads."""
    found = total = 0
    for _, text in docstrings(source):
        for sentence in SENTENCE_END.split(SECTION_HEAD.sub("", CODE.sub("X", text))):
            words = re.findall(r"[A-Za-z']+", sentence)
            if len(words) >= MIN_SENTENCE_WORDS:
                total += len(words)
                found += sum(word.lower() in PRONOUNS for word in words)
    return found, total


def check_language(root: Path) -> Iterator[str]:
    """Yield a line for each folder, and for the whole, above the limit of pronouns."""
    counts: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for path in sorted(root.rglob("*.py")):
        found, total = count_pronouns(path.read_text(encoding="utf-8"))
        for group in ("whole", path.relative_to(root).parts[0]):
            counts[group][0] += found
            counts[group][1] += total
    for group, (found, total) in sorted(counts.items()):
        limit = MAX_PER_100_WORDS["whole" if group == "whole" else "folder"]
        if total and 100 * found / total > limit:
            yield f"{root}: {group}: {100 * found / total:.1f} pronouns per 100 docstring words, at most {limit:g}"


def check_lengths(root: Path) -> Iterator[str]:
    """Yield a line for each file that is too long, and one for too many modules at the top of the package."""
    for path in sorted([*root.rglob("*.py"), *root.rglob("*.js")]):
        lines = len(path.read_text(encoding="utf-8").splitlines())
        if lines > MAX_LINES:
            yield f"{path}: {lines} lines, at most {MAX_LINES}"
    loose = [path.name for path in sorted(root.glob("*.py")) if not path.name.startswith("__")]
    if len(loose) > MAX_LOOSE_MODULES:
        yield f"{root}: {len(loose)} loose modules, at most {MAX_LOOSE_MODULES}: {', '.join(loose)}"


def check_docstrings(root: Path) -> Iterator[str]:
    """Yield a line for each docstring too short to say more than the name says."""
    for path in sorted(root.rglob("*.py")):
        for node, text in docstrings(path.read_text(encoding="utf-8")):
            if not isinstance(node, ast.Module) and len(text.split()) < MIN_DOCSTRING_WORDS:
                yield f"{path}:{node.lineno}: docstring of {len(text.split())} words: {text!r}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, nargs="?", default=Path("src/attnrl"))
    root: Path = parser.parse_args().root
    violations = [*check_lengths(root), *check_language(root), *check_docstrings(root)]
    print(*violations, sep="\n", end="\n" if violations else "")
    return int(bool(violations))


if __name__ == "__main__":
    sys.exit(main())
