"""Console output of ``attnrl eval``: progress while sampling, and tables of models side by side."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from statistics import fmean
from types import TracebackType
from typing import Any

import torch
from rich.console import Console
from rich.measure import Measurement
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from attnrl.evals.summary import Summary
from attnrl.utils.console import print_line
from attnrl.utils.statistics import percentile_interval

SECONDS_BETWEEN_LINES = 30.0  # progress lines of a console that is not a terminal

#: Table 1 of the paper (avg@k in percent): model, values by benchmark, and the average as printed in the paper.
TABLE_1_COLUMNS = ("aime24", "aime25", "amc23", "math500", "minerva", "olympiad")
TABLE_1: tuple[tuple[str, tuple[float, ...], float], ...] = (
    ("R1-Distill-Qwen-1.5B", (28.3, 23.0, 71.8, 84.8, 35.6, 54.9), 49.7),
    ("1.5B + GRPO", (36.9, 27.2, 77.7, 88.4, 39.5, 60.4), 55.0),
    ("1.5B + TreeRL", (36.7, 27.1, 78.9, 88.5, 38.7, 60.9), 55.1),
    ("1.5B + AttnRL", (39.7, 28.5, 83.2, 90.0, 40.3, 61.4), 57.2),
    ("R1-Distill-Qwen-7B", (54.0, 40.0, 89.8, 94.1, 48.1, 70.0), 66.0),
    ("7B + GRPO", (54.9, 39.6, 90.8, 94.3, 48.6, 69.7), 66.3),
    ("7B + TreeRL", (55.4, 40.0, 92.2, 94.3, 49.0, 70.7), 66.9),
    ("7B + AttnRL", (59.3, 42.5, 92.5, 95.4, 49.3, 73.3), 68.7),
)


class Report:
    """Tables of the summaries of models on benchmarks."""

    def __init__(self, benchmarks: Sequence[tuple[str, str]]) -> None:
        """Create an empty report with ``benchmarks`` (pairs of name and title) as columns."""
        self.models: list[str] = []
        self.benchmarks = list(benchmarks)
        self.summaries: dict[tuple[str, str], Summary] = {}

    def add(self, model: str, summaries: Mapping[str, Summary]) -> None:
        """Add a row: the summaries of one model, by benchmark."""
        self.models.append(model)
        self.summaries |= {(model, benchmark): summary for benchmark, summary in summaries.items()}

    def averages(self) -> list[dict[str, Any]]:
        """Return the unweighted mean over benchmarks with a 95 % confidence interval, one row per model."""
        rows = []
        for model in self.models:
            summaries = [self.summaries[model, name] for name, _ in self.benchmarks]
            low, high = self._average_interval(summaries)
            accuracy = fmean(summary.accuracy for summary in summaries)
            rows.append(
                {
                    "model": model,
                    "benchmarks": [name for name, _ in self.benchmarks],
                    "accuracy": accuracy,
                    "confidence_interval": [low, high],
                }
            )
        return rows

    @staticmethod
    def _average_interval(summaries: Sequence[Summary]) -> tuple[float, float]:
        # The problems of different benchmarks are independent, so their bootstrap means may be averaged.
        return percentile_interval(torch.stack([summary.means for summary in summaries]).mean(0))

    def print(self, console: Console, deviations: Sequence[str] = ()) -> None:
        """Print both tables, and ``deviations`` of this evaluation from the paper's protocol."""
        print_line(console, "\navg@k in %, 95 % confidence interval over problems")
        _print_table(console, self.accuracy_table())
        if self._in_table_1():
            print_line(
                console, "(paper): Table 1 of the AttnRL paper, all problems, k = 32 or 4, 32,768 tokens, T = 0.6."
            )
            if deviations:
                print_line(console, f"This run is not comparable to Table 1: {'; '.join(deviations)}.")
        print_line(console, "\npass@k in % (unbiased), lengths, verdicts")
        _print_table(console, self.details_table())

    def _in_table_1(self) -> bool:
        return all(name in TABLE_1_COLUMNS for name, _ in self.benchmarks)

    def accuracy_table(self) -> Table:
        """Return the table of avg@k with confidence intervals: one row per model, one column per benchmark."""
        several = len(self.benchmarks) > 1
        names = [name for name, _ in self.benchmarks]
        table = Table()
        table.add_column("model", overflow="fold")
        for name, title in self.benchmarks:
            table.add_column(f"{title}\navg@{self._samples(name)}", justify="right")
        if several:
            table.add_column("average", justify="right")
        for model, average in zip(self.models, self.averages(), strict=True):
            summaries = [self.summaries[model, name] for name in names]
            cells = [_with_interval(summary.accuracy, *summary.interval) for summary in summaries]
            if several:
                cells.append(_with_interval(average["accuracy"], *average["confidence_interval"]))
            table.add_row(Text(model), *cells)
        if self._in_table_1():
            self._add_paper_rows(table, names, several)
        return table

    @staticmethod
    def _add_paper_rows(table: Table, names: Sequence[str], several: bool) -> None:
        table.add_section()
        for name, values, average in TABLE_1:
            shown = [values[TABLE_1_COLUMNS.index(column)] for column in names]
            if several:  # the average printed in the paper covers all six columns
                shown.append(average if len(names) == len(TABLE_1_COLUMNS) else fmean(shown))
            table.add_row(Text(f"{name} (paper)"), *[f"{value:.1f}" for value in shown], style="dim")

    def details_table(self) -> Table:
        """Return the table of pass@k, rewards, lengths and verdicts: one row per model and benchmark.

        The column of rewards is left out if every reward is 1 for correct and 0 otherwise.
        """
        ks = sorted({k for summary in self.summaries.values() for k in summary.pass_at_k if k > 1})
        table = Table()
        table.add_column("model", overflow="fold")
        table.add_column("benchmark")
        # The built-in graders give reward 1 for correct and 0 otherwise: the mean reward is the accuracy.
        with_reward = any(summary.rewards_tell_more for summary in self.summaries.values())
        with_not_judged = any(summary.not_judged for summary in self.summaries.values())
        heads = [
            "problems",
            *[f"pass@{k}" for k in ks],
            *(["mean\nreward"] if with_reward else []),
            *("mean\nlength", "truncated", "no\nanswer", "grading\nfailed"),
            *(["not\njudged"] if with_not_judged else []),
        ]
        for head in heads:
            table.add_column(head, justify="right")
        for model in self.models:
            for name, title in self.benchmarks:
                summary = self.summaries[model, name]
                skipped = f"\n{summary.skipped} skipped" if summary.skipped else ""
                failed = sum(summary.verdicts[verdict] for verdict in ("timeout", "error"))
                reward = "" if summary.reward is None else f"{summary.reward:.3f}"
                table.add_row(
                    Text(model),
                    title,
                    f"{summary.problems}{skipped}",
                    *[f"{summary.pass_at_k[k]:.1%}" if k in summary.pass_at_k else "" for k in ks],
                    *([reward] if with_reward else []),
                    f"{summary.response_length:,.0f}",
                    f"{summary.truncated_ratio:.1%}",
                    f"{summary.verdicts['no_answer']:.1%}",
                    f"{failed:.1%}",
                    *([f"{summary.not_judged:,}"] if with_not_judged else []),
                )
        return table

    def _samples(self, benchmark: str) -> int:
        return self.summaries[self.models[0], benchmark].samples


def _with_interval(value: float, low: float, high: float) -> str:
    return f"{100 * value:.1f}\n{100 * low:.1f}–{100 * high:.1f}"


def _print_table(console: Console, table: Table) -> None:
    if not console.is_terminal:
        # A file has no width: widen the console so that the table is not folded at 80 columns.
        widest = Measurement.get(console, console.options.update(width=1_000), table).maximum
        console = Console(file=console.file, width=max(console.width, widest))
    console.print(table)


class EvalProgress:
    """Finished samples, rates and remaining time: a progress bar in a terminal, otherwise a line every 30 seconds."""

    def __init__(self, console: Console, total: int, done: int) -> None:
        """Create the progress of ``total`` samples; ``done`` samples were finished by earlier commands."""
        self._console = console
        self._total, self._done, self._before = total, done, done
        self._tokens = 0
        self._running = (0, 0)  # tokens and samples of the chunk that is being sampled
        self._started = self._last_line = time.monotonic()
        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[status]}"),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("", total=total, completed=done, status="")

    def __enter__(self) -> EvalProgress:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def begin(self, name: str) -> None:
        """Show ``name`` (model and suite) as the description."""
        self._name = name
        self._bar.update(self._task, description=name)

    def sampled(self, tokens: int, samples: int) -> None:
        """Report ``tokens`` sampled tokens and ``samples`` finished samples of the current chunk."""
        self._running = (tokens, samples)
        self._show(line=False)

    def finished(self, samples: int, tokens: int) -> None:
        """Report a graded and written chunk of ``samples`` samples with ``tokens`` tokens."""
        self._done += samples
        self._tokens += tokens
        self._running = (0, 0)
        self._show(line=self._done == self._total)

    def _show(self, *, line: bool) -> None:
        self._bar.update(self._task, completed=self._done + self._running[1], status=self.status())
        now = time.monotonic()
        if not self._console.is_terminal and (line or now - self._last_line >= SECONDS_BETWEEN_LINES):
            self._last_line = now
            text = f"{self._name}: {self._done + self._running[1]:,}/{self._total:,} samples  {self.status()}"
            print_line(self._console, text)

    def status(self) -> str:
        """Return the rates since the start of this command, and the remaining time at the current rate."""
        seconds = max(1e-3, time.monotonic() - self._started)
        tokens = self._tokens + self._running[0]
        samples = self._done + self._running[1] - self._before
        rates = f"{samples / seconds:.2f} samples/s  {tokens / seconds:,.0f} tokens/s"
        if not samples:
            return rates
        left = int((self._total - self._before - samples) * seconds / samples)
        return f"{rates}  left {left // 3600}:{left // 60 % 60:02}:{left % 60:02}"
