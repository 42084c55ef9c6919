"""The benchmarks that ``attnrl eval --benchmark`` knows by name: the paper's protocol, and where their files are."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from attnrl.errors import UserError

DATA_DIR_VARIABLE = "ATTNRL_DATA"
SUFFIXES = (".parquet", ".jsonl", ".json", ".csv")
TEMPERATURE = 0.6
TOP_P = 1.0  # the paper names no other for its evaluation
MAX_NEW_TOKENS = 32_768


@dataclass(frozen=True)
class Known:
    """The paper's protocol for one benchmark.

    Attributes:
        title: as the paper's Table 1 names it.
        samples: responses to each problem (the k of avg@k).
        problems: how many there are.
    """

    title: str
    samples: int
    problems: int


KNOWN = {
    "aime24": Known("AIME24", 32, 30),
    "aime25": Known("AIME25", 32, 30),
    "amc23": Known("AMC23", 32, 40),
    "math500": Known("MATH-500", 4, 500),
    "minerva": Known("Minerva", 4, 272),
    "olympiad": Known("Olympiad", 4, 674),
}
OTHER_SAMPLES = 4  # of a benchmark that is not the paper's: as for its larger ones


@dataclass(frozen=True)
class Benchmark:
    """A named set of problems: ``source`` is its file, or the id of a data set on the Hugging Face hub."""

    name: str
    source: Path | str

    @property
    def samples(self) -> int:
        """Responses to each problem, unless the user says otherwise."""
        return KNOWN[self.name].samples if self.name in KNOWN else OTHER_SAMPLES

    @property
    def title(self) -> str:
        """The name for a table's head."""
        return KNOWN[self.name].title if self.name in KNOWN else self.name


def find_benchmarks(names: Sequence[str], data_dir: Path | None = None) -> list[Benchmark]:
    """The benchmarks that the user names, each entry one or several (separated by commas).

    A name stands for a file in ``data_dir`` (or in ``$ATTNRL_DATA``) that is called so, with an ending such as
    ``_1`` or ``-test`` or without; ``NAME=PATH`` and ``NAME=HUB_ID`` say where it is.

    Raises:
        UserError: there is no such file, or more than one, or a name comes twice.
    """
    entries = [entry.strip() for given in names for entry in given.split(",") if entry.strip()]
    found = [_find(entry, data_dir) for entry in entries]
    if not found:
        raise UserError(f"--benchmark: names none (known: {', '.join(KNOWN)})")
    twice = sorted({benchmark.name for benchmark in found if [b.name for b in found].count(benchmark.name) > 1})
    if twice:
        raise UserError(f"--benchmark: {', '.join(twice)} is named more than once")
    return found


def _find(entry: str, data_dir: Path | None) -> Benchmark:
    name, equals, source = entry.partition("=")
    name = name.strip().lower()
    if equals:
        if not name or not source:
            raise UserError(f"--benchmark {entry!r}: expected NAME=PATH or NAME=HUB_ID")
        path = Path(source).expanduser()
        local = path.exists() or path.suffix in SUFFIXES
        return Benchmark(name, path if local else source)
    if data_dir is not None:
        place, said = data_dir, f"--data-dir {data_dir}"
    elif os.environ.get(DATA_DIR_VARIABLE):
        place = Path(os.environ[DATA_DIR_VARIABLE])
        said = f"${DATA_DIR_VARIABLE} {place}"
    else:
        raise UserError(
            f"benchmark {name!r}: say where its file is with --data-dir DIR, {DATA_DIR_VARIABLE}=DIR, "
            f"{name}=PATH or {name}=HUB_ID (known: {', '.join(KNOWN)})"
        )
    if not place.is_dir():
        raise UserError(f"{said}: no such directory")
    files = sorted(path for path in place.iterdir() if path.suffix in SUFFIXES and path.is_file())
    exact = [path for path in files if path.stem.lower() == name]
    matches = exact or [path for path in files if _is_called(path.stem.lower(), name)]
    if len(matches) == 1:
        return Benchmark(name, matches[0])
    if matches:
        raise UserError(
            f"benchmark {name!r}: {said} holds {', '.join(path.name for path in matches)}: say which ({name}=PATH)"
        )
    raise UserError(
        f"benchmark {name!r}: no file {name}*{{{','.join(SUFFIXES)}}} in {said} "
        f"(there: {', '.join(path.name for path in files) or 'no data file'}; known: {', '.join(KNOWN)}; "
        f"or say {name}=PATH or {name}=HUB_ID)"
    )


def _is_called(stem: str, name: str) -> bool:
    """Whether a file's stem is the name and an ending: ``math500_1``, and not ``math5000``."""
    rest = stem.removeprefix(name)
    return rest != stem and not rest[:1].isalnum()


def deviations(
    name: str, *, problems: int, samples: int, max_new_tokens: int, temperature: float, top_p: float
) -> list[str]:
    """In what an evaluation differs from the paper's protocol; nothing for a benchmark that the paper does not have."""
    if name not in KNOWN:
        return []
    known = KNOWN[name]
    found = []
    if problems != known.problems:
        found.append(f"{problems} problems of {known.title} instead of {known.problems}")
    if samples != known.samples:
        found.append(f"{samples} samples of {known.title} instead of {known.samples}")
    if max_new_tokens != MAX_NEW_TOKENS:
        found.append(f"{max_new_tokens:,} tokens instead of {MAX_NEW_TOKENS:,}")
    if temperature != TEMPERATURE:
        found.append(f"temperature {temperature:g} instead of {TEMPERATURE:g}")
    if top_p != TOP_P:
        found.append(f"top-p {top_p:g} instead of {TOP_P:g}")
    return found
