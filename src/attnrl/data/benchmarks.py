"""The benchmarks of ``attnrl eval --benchmark`` by name: the paper's protocol, and the search for the data files."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from attnrl.data.files import READERS, file_kind, stem
from attnrl.errors import UserError
from attnrl.types import SamplingParams
from attnrl.utils.near import did_you_mean

DATA_DIR_VARIABLE = "ATTNRL_DATA"
TEMPERATURE = 0.6
TOP_P = 1.0  # the paper gives no top-p for evaluation
MAX_NEW_TOKENS = 32_768


@dataclass(frozen=True)
class BenchmarkProtocol:
    """The paper's protocol for one benchmark.

    Attributes:
        title: name in Table 1 of the paper.
        samples: responses per problem (the k of avg@k).
        problems: number of problems.
    """

    title: str
    samples: int
    problems: int


KNOWN = {
    "aime24": BenchmarkProtocol("AIME24", 32, 30),
    "aime25": BenchmarkProtocol("AIME25", 32, 30),
    "amc23": BenchmarkProtocol("AMC23", 32, 40),
    "math500": BenchmarkProtocol("MATH-500", 4, 500),
    "minerva": BenchmarkProtocol("Minerva", 4, 272),
    "olympiad": BenchmarkProtocol("Olympiad", 4, 674),
}
OTHER_SAMPLES = 4  # for benchmarks absent from the paper: as for the larger benchmarks of the paper


@dataclass(frozen=True)
class Benchmark:
    """A named set of problems.

    Attributes:
        name: name of the benchmark, in lower case.
        source: path of the data file, or id of a data set on the Hugging Face Hub.
    """

    name: str
    source: Path | str

    @property
    def samples(self) -> int:
        """Return the default number of responses per problem."""
        return KNOWN[self.name].samples if self.name in KNOWN else OTHER_SAMPLES

    @property
    def title(self) -> str:
        """Return the name for the header of a table."""
        return KNOWN[self.name].title if self.name in KNOWN else self.name


def find_benchmarks(names: Sequence[str], data_dir: Path | None = None) -> list[Benchmark]:
    """Return the benchmarks with the given names.

    Args:
        names: each entry is one name, or several names separated by commas. A name selects the data file of the same
            name in ``data_dir``; the file name may have an ending, e.g. ``_1`` or ``-test``. ``NAME=PATH`` and
            ``NAME=HUB_ID`` give the source explicitly.
        data_dir: directory of the data files; None: ``$ATTNRL_DATA``.

    Raises:
        UserError: no file or several files match a name, or a name is repeated.
    """
    entries = [entry.strip() for given in names for entry in given.split(",") if entry.strip()]
    found = [_find(entry, data_dir) for entry in entries]
    if not found:
        raise UserError(f"--benchmark: expected at least one name (known: {', '.join(KNOWN)})")
    twice = sorted({benchmark.name for benchmark in found if [b.name for b in found].count(benchmark.name) > 1})
    if twice:
        raise UserError(f"--benchmark: {', '.join(twice)} repeated")
    return found


def _find(entry: str, data_dir: Path | None) -> Benchmark:
    name, equals, source = entry.partition("=")
    name = name.strip().lower()
    if equals:
        if not name or not source:
            raise UserError(f"--benchmark {entry!r}: expected NAME=PATH or NAME=HUB_ID")
        path = Path(source).expanduser()
        local = path.exists() or file_kind(path) is not None
        return Benchmark(name, path if local else source)
    if data_dir is not None:
        place, said = data_dir, f"--data-dir {data_dir}"
    elif os.environ.get(DATA_DIR_VARIABLE):
        place = Path(os.environ[DATA_DIR_VARIABLE])
        said = f"${DATA_DIR_VARIABLE} {place}"
    else:
        raise UserError(
            f"benchmark {name!r}: give the data file with --data-dir DIR, {DATA_DIR_VARIABLE}=DIR, "
            f"{name}=PATH or {name}=HUB_ID (known: {', '.join(KNOWN)}){did_you_mean(name, KNOWN)}"
        )
    if not place.is_dir():
        raise UserError(f"{said}: no such directory")
    files = sorted(path for path in place.iterdir() if file_kind(path) and path.is_file())
    exact = [path for path in files if stem(path).lower() == name]
    matches = exact or [path for path in files if _is_called(stem(path).lower(), name)]
    if len(matches) == 1:
        return Benchmark(name, matches[0])
    if matches:
        raise UserError(
            f"benchmark {name!r}: several files in {said} match: {', '.join(path.name for path in matches)}; "
            f"choose one with {name}=PATH"
        )
    suggestion = "" if name in KNOWN else did_you_mean(name, [*KNOWN, *map(stem, files)])
    raise UserError(
        f"benchmark {name!r}: no file {name}*{{{','.join(READERS)}}} in {said}{suggestion} "
        f"(data files: {', '.join(path.name for path in files) or 'none'}; known benchmarks: {', '.join(KNOWN)}; "
        f"or give {name}=PATH or {name}=HUB_ID)"
    )


def _is_called(stem: str, name: str) -> bool:
    """Return True if a file's stem is the name with an ending: ``math500_1``, but not ``math5000``."""
    rest = stem.removeprefix(name)
    return rest != stem and not rest[:1].isalnum()


def deviations(name: str, *, problems: int, samples: int, max_new_tokens: int, sampling: SamplingParams) -> list[str]:
    """Return the differences from the paper's protocol; empty for a benchmark absent from the paper."""
    if name not in KNOWN:
        return []
    known = KNOWN[name]
    found = []
    if problems != known.problems:
        found.append(f"{problems} problem{_s(problems)} of {known.title} instead of {known.problems}")
    if samples != known.samples:
        found.append(f"{samples} sample{_s(samples)} of {known.title} instead of {known.samples}")
    if max_new_tokens != MAX_NEW_TOKENS:
        found.append(f"{max_new_tokens:,} token{_s(max_new_tokens)} instead of {MAX_NEW_TOKENS:,}")
    if sampling.temperature != TEMPERATURE:
        found.append(f"temperature {sampling.temperature:g} instead of {TEMPERATURE:g}")
    if sampling.top_p != TOP_P:
        found.append(f"top-p {sampling.top_p:g} instead of {TOP_P:g}")
    if sampling.top_k:
        found.append(f"top-k {sampling.top_k}")
    if sampling.min_p:
        found.append(f"min-p {sampling.min_p:g}")
    if sampling.stop:
        found.append(f"stop strings {', '.join(map(repr, sampling.stop))}")
    return found


def _s(count: int) -> str:
    """Return the plural s after ``count``."""
    return "" if count == 1 else "s"
