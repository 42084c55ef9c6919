"""What a person sees of a run."""

from io import StringIO

import pytest
from rich.console import Console

from attnrl.config.load import load_config
from attnrl.config.schema import TrainConfig
from attnrl.runs.display import MIN_SECONDS_BETWEEN_LINES, SPARKS, Display, sparkline

ROW = {
    "step": 1,
    "reward": 0.5,
    "entropy": 0.25,
    "response_length": 120.0,
    "prompt_batch_size": 8,
    "tokens/valid_ratio": 0.5,
    "tokens/total": 12_345,
    "time/step": 2.5,
    "time/generated_tokens_per_second": 9_876.0,
}


def config(steps: int = 3) -> TrainConfig:
    return load_config(TrainConfig, "attnrl", [f"steps={steps}"])


def show(console: Console, *rows: dict[str, float]) -> str:
    display = Display(console)
    display.start(config(), 0, 0)
    with display:
        for row in rows:
            display.phase("generate")
            display.sampled(1_000, 3)
            display.step(row)
    assert isinstance(console.file, StringIO)
    return console.file.getvalue()


def plain() -> Console:
    return Console(file=StringIO(), width=80)


def test_plain_output_is_one_line_a_step_without_control_codes() -> None:
    text = show(plain(), {"step": 0, "eval/accuracy": 0.25}, ROW | {"eval/accuracy": 0.75})
    assert "\x1b" not in text
    first, second = text.splitlines()
    assert first == "step 0/3  held-out accuracy 25.0%"
    for part in ["step 1/3", "reward 0.5", "entropy 0.25", "length 120", "2.50 s/step", "9,876 tokens/s", "75.0%"]:
        assert part in second


def test_plain_output_does_not_flood_a_log(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1_000.0
    monkeypatch.setattr("attnrl.runs.display.time.monotonic", lambda: now)
    display = Display(plain())
    display.start(config(100), 0, 0)
    with display:
        for step in range(1, 31):
            now += 1.0
            display.step(ROW | {"step": step})
    lines = display.console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert len(lines) == 30 / MIN_SECONDS_BETWEEN_LINES
    assert lines[1].startswith("step 6/100")


def test_a_skipped_update_is_said() -> None:
    text = show(plain(), {"step": 1, "update_skipped": 1.0})
    assert "step 1: no problem had signal; update skipped" in " ".join(text.split())


def test_a_terminal_gets_a_panel_with_the_newest_numbers() -> None:
    console = Console(file=StringIO(), force_terminal=True, width=120, height=40, color_system="truecolor")
    text = show(
        console,
        {"step": 0, "eval/accuracy": 0.25},
        ROW,
        ROW | {"step": 2, "reward": 1.0, "eval/accuracy": 0.5, "tokens/total": 23_456},
    )
    last = text[text.rindex("training steps") :]
    for part in ["2/3", "held-out accuracy", "50.0%", "reward", "1.000", "23,456", "2.50 s", sparkline([0.25, 0.5])]:
        assert part in last
    assert "generate" in last and "1,000 tokens" in last


def test_a_terminal_panel_without_any_numbers_yet() -> None:
    console = Console(file=StringIO(), force_terminal=True, width=60)
    with Display(console) as display:
        display.phase("evaluate")
    assert "training steps" in console.file.getvalue()  # type: ignore[attr-defined]


def test_the_panel_is_left_when_the_run_breaks() -> None:
    console = Console(file=StringIO(), force_terminal=True, width=60)
    with pytest.raises(RuntimeError, match="broken"), Display(console) as display:
        raise RuntimeError("broken")
    assert display._live is not None and not display._live.is_started
    assert console.file.getvalue().endswith("\x1b[?25h")  # type: ignore[attr-defined]  # the cursor is back


def test_sparkline() -> None:
    assert sparkline([]) == sparkline([0.5]) == ""
    assert sparkline([0.0, 1.0]) == SPARKS[0] + SPARKS[-1]
    assert sparkline([index / len(SPARKS) for index in range(len(SPARKS))]) == SPARKS
    assert sparkline([0.0] * 50 + [1.0] * 3, width=4) == SPARKS[0] + SPARKS[-1] * 3
    assert len(sparkline([0.3] * 100)) == 40
