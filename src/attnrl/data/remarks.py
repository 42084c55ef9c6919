"""Remarks on the rows of a source: the columns taken, and everything decoded, joined or left out, with counts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from attnrl.data.columns import Columns

MAX_COLUMNS = 8  # columns named in a note


@dataclass(frozen=True)
class Remarks:
    """Counts over the rows of a source.

    Attributes:
        taken: rows by key (``prompt``, ``answer``, ``system message``) and column.
        others: rows or messages by remark.
    """

    taken: Counter[tuple[str, str]] = field(default_factory=Counter)
    others: Counter[str] = field(default_factory=Counter)

    def notes(self, name: str, columns: Columns) -> Iterator[str]:
        """Yield one line on the columns taken, then one line per remark.

        Args:
            name: the source, the beginning of each line.
            columns: the columns of the source.
        """
        keys = dict.fromkeys(key for key, _ in self.taken)
        clauses = [self._clause(key, columns) for key in keys]
        if columns.id is not None:
            clauses.append(f"id from {columns.id}")
        used = {column.partition(".")[0] for _, column in self.taken} | {str(columns.id), "data_source"}
        used |= {*columns.prompt, *columns.answer}  # said as candidates
        rest = [column or "''" for column in columns.names if column not in used]
        others = ", ".join(rest[:MAX_COLUMNS]) + (", ..." if len(rest) > MAX_COLUMNS else "")
        ending = f"; other columns: {others}" if rest else ""
        yield f"{name}: {', '.join(clauses)}{ending}"
        for remark, count in self.others.items():
            yield f"{name}: {remark} ({count:,} {'time' if count == 1 else 'times'})"

    def _clause(self, key: str, columns: Columns) -> str:
        counts = {column: count for (one, column), count in self.taken.items() if one == key}
        candidates = {"prompt": columns.prompt, "answer": columns.answer}.get(key, ())
        unused = [column for column in candidates if column not in (*counts, columns.instruction_input)]
        several = len(counts) > 1
        taken = " or ".join(f"{column} ({count:,} rows)" if several else column for column, count in counts.items())
        preferred = f" (preferred to {', '.join(unused)})" if unused else ""
        return f"{key} from {taken}{preferred}"
