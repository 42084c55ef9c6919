"""Progress of a training run: a live panel in a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from attnrl.config.schema import TrainConfig
from attnrl.utils.console import print_line

SPARKS = "▁▂▃▄▅▆▇█"
MIN_SECONDS_BETWEEN_LINES = 5.0  # in plain output
HISTORIES = ("eval/accuracy", "eval/reward", "reward", "accuracy")  # metrics shown with a sparkline


class Display:
    """Shows the progress of a run; call :meth:`start` first. Every method is cheap enough for the training loop.

    Reward and accuracy are two numbers. With the built-in graders both are the same number, shown once.
    """

    _config: TrainConfig

    def __init__(self, console: Console | None = None) -> None:
        """Draw on ``console``, by default standard output."""
        self.console = console or Console()
        self._live: Live | None = None
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self.console,
        )
        self._task = self._bar.add_task("training steps", total=None)
        self._phase = ""
        self._phase_started = time.monotonic()
        self._sampled = 0
        self._latest: dict[str, float] = {}
        self._history: dict[str, list[float]] = {name: [] for name in HISTORIES}
        self._last_line = 0.0

    def start(self, config: TrainConfig, steps: int, tokens: int) -> None:
        """Set the length of the run, and the steps and tokens done before this session."""
        self._config = config
        if config.tokens is not None:
            self._bar.update(self._task, description="tokens sampled")
        self._advance(steps, tokens)

    def _advance(self, steps: int, tokens: float) -> None:
        """Move the progress bar: sampled tokens if the run has a token budget, else steps."""
        budget = self._config.tokens
        if budget is None or steps >= self._config.steps:
            total, done = self._config.steps, float(steps)
        else:
            total, done = budget, min(tokens, budget)
        self._bar.update(self._task, total=total, completed=done)

    def __enter__(self) -> Display:
        if self.console.is_terminal:
            self._live = Live(get_renderable=self._render, console=self.console, refresh_per_second=4)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def phase(self, name: str) -> None:
        """Show the phase that begins now."""
        self._phase, self._phase_started, self._sampled = name, time.monotonic(), 0

    def sampled(self, tokens: int, requests: int) -> None:
        """Show the sampled tokens of the current generation; ``requests`` counts the finished requests."""
        self._sampled = tokens

    def say(self, line: str) -> None:
        """Print one line verbatim, without rich markup."""
        print_line(self.console, line)

    def step(self, metrics: Mapping[str, float]) -> None:
        """Show the metrics of a finished step."""
        self._latest |= metrics
        step = int(metrics["step"])
        self._advance(step, self._latest.get("tokens/total", 0.0))
        for name, history in self._history.items():
            if name in metrics:
                history.append(metrics[name])
        if metrics.get("update_skipped"):
            self.say(f"step {step}: {_reason_of_skipped_update(metrics)}; update skipped")
        if not self.console.is_terminal:
            self._print_line(step, metrics)

    def _print_line(self, step: int, metrics: Mapping[str, float]) -> None:
        now = time.monotonic()
        evaluated = "eval/accuracy" in metrics
        if not evaluated and now - self._last_line < MIN_SECONDS_BETWEEN_LINES:
            return
        self._last_line = now
        parts = [f"step {step}/{self._config.steps}"]
        if self._config.tokens is not None:
            parts = [f"step {step}", f"{self._latest.get('tokens/total', 0.0):,.0f}/{self._config.tokens:,} tokens"]
        if "reward" in metrics:
            parts.append(f"reward {metrics['reward']:.3g}")
        if tells_more(metrics):
            parts.append(f"accuracy {metrics['accuracy']:.1%}")
        for name, label in (("entropy", "entropy"), ("response_length", "length")):
            if name in metrics:
                parts.append(f"{label} {metrics[name]:.3g}")
        if "time/step" in metrics:
            parts.append(f"{metrics['time/step']:.2f} s/step")
            parts.append(f"{metrics['time/generated_tokens_per_second']:,.0f} tokens/s")
        if evaluated:
            parts.append(f"held-out accuracy {metrics['eval/accuracy']:.1%}")
            if tells_more(metrics, "eval/"):
                parts.append(f"held-out reward {metrics['eval/reward']:.3g}")
        print_line(self.console, "  ".join(parts))

    def _render(self) -> Group:
        return Group(self._bar, self._status(), self._numbers())

    def _status(self) -> Text:
        seconds = time.monotonic() - self._phase_started
        text = f"  {self._phase} {seconds:4.1f} s"
        if self._sampled:
            text += f"  {self._sampled:,} tokens  {self._sampled / max(seconds, 1e-3):,.0f} tokens/s"
        return Text(text, style="dim")

    def _numbers(self) -> Table:
        table = Table.grid(padding=(0, 2))
        row = self._latest
        shown = [
            ("held-out accuracy", "eval/accuracy", "{:.1%}"),
            *([("held-out reward", "eval/reward", "{:.3f}")] if tells_more(row, "eval/") else []),
            ("reward", "reward", "{:.3f}"),
            *([("accuracy", "accuracy", "{:.1%}")] if tells_more(row) else []),
            ("entropy", "entropy", "{:.3f}"),
            ("response length", "response_length", "{:.0f} tokens"),
            ("problems per step", "prompt_batch_size", "{:.0f}"),
            ("valid tokens", "tokens/valid_ratio", "{:.0%}"),
            ("tokens sampled", "tokens/total", "{:,.0f}"),
            ("step time", "time/step", "{:.2f} s"),
        ]
        for label, name, form in shown:
            if name in row:
                history = self._history.get(name, [])
                table.add_row(f"  {label}", form.format(row[name]), Text(sparkline(history), style="green"))
        return table


def tells_more(metrics: Mapping[str, float], prefix: str = "") -> bool:
    """Return True if mean reward and accuracy are known and differ; ``prefix`` is ``eval/`` for held-out problems."""
    reward, accuracy = metrics.get(f"{prefix}reward"), metrics.get(f"{prefix}accuracy")
    return reward is not None and accuracy is not None and reward != accuracy


def _reason_of_skipped_update(metrics: Mapping[str, float]) -> str:
    if metrics.get("nonfinite/mini_batches"):
        return "NaN or inf"
    if metrics.get("not_judged/ratio") == 1:
        return "no response was judged"
    if metrics.get("masked_responses"):
        return "every response with signal was cut off (reward.truncated=mask)"
    return "no problem had signal"


def sparkline(values: list[float], width: int = 40) -> str:
    """Return block characters for the last ``width`` values; an empty string for fewer than two values.

    The scale is [0, 1], wider if a value lies outside.
    """
    if len(values) < 2:
        return ""
    low, high = min(0.0, *values), max(1.0, *values)
    return "".join(
        SPARKS[min(len(SPARKS) - 1, int((value - low) / (high - low) * len(SPARKS)))] for value in values[-width:]
    )
