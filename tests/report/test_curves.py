"""The picture of learning curves."""

from pathlib import Path
from typing import Any

import pytest

from attnrl.errors import UserError
from attnrl.report.curves import _curve, draw_curves
from attnrl.runs.directory import METRICS, RunDirectory

matplotlib = pytest.importorskip("matplotlib")


def run(directory: Path, rows: list[dict[str, Any]]) -> Path:
    written = RunDirectory(directory)
    written.open("", None)
    written.append(METRICS, rows)
    return directory


ROWS = [
    {"step": 0, "eval/accuracy": 0.25},
    {"step": 1, "time/step": 2.0, "tokens/total": 100},
    {"step": 2, "time/step": 3.0, "tokens/total": 250, "eval/accuracy": 0.5},
]


def test_accuracy_over_tokens_and_over_seconds_of_training(tmp_path: Path) -> None:
    curve = _curve(run(tmp_path, ROWS))
    assert (curve.tokens, curve.seconds, curve.values["accuracy"]) == ([0.0, 250], [0.0, 5.0], [0.25, 0.5])
    assert not curve.reward_tells_more  # a run without held-out rewards


def test_the_held_out_reward_has_panels_if_it_differs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib import pyplot

    kept = []
    monkeypatch.setattr(pyplot, "close", kept.append)
    rewarded = [row | {"eval/reward": -3.0} if "eval/accuracy" in row else row for row in ROWS]
    equal = [row | {"eval/reward": row["eval/accuracy"]} if "eval/accuracy" in row else row for row in ROWS]
    draw_curves([run(tmp_path / "a", rewarded), run(tmp_path / "b", ROWS)], tmp_path / "both.png")
    draw_curves([run(tmp_path / "c", equal)], tmp_path / "one.png")
    assert [len(figure.axes) for figure in kept] == [4, 2]
    assert list(kept[0].axes[2].lines[0].get_ydata()) == [-3.0, -3.0]


def test_seeds_of_one_recipe_share_a_colour_and_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib import pyplot

    kept = []
    monkeypatch.setattr(pyplot, "close", kept.append)
    runs = [run(tmp_path / name, ROWS) for name in ("attnrl-0", "attnrl-1", "grpo-0", "my-run")]
    draw_curves(runs, tmp_path / "curves.png")
    panel = kept[0].axes[0]
    one, other, grpo, mine = (line.get_color() for line in panel.lines)
    assert one == other and len({one, grpo, mine}) == 3
    assert [text.get_text() for text in panel.get_legend().get_texts()] == ["attnrl", "grpo", "my-run"]


@pytest.mark.parametrize(("name", "magic"), [("a/b/curves.png", b"\x89PNG"), ("curves.svg", b"<?xml")])
def test_the_picture_is_of_the_kind_asked_for(tmp_path: Path, name: str, magic: bytes) -> None:
    draw_curves([run(tmp_path / "run", ROWS)], tmp_path / name)
    assert (tmp_path / name).read_bytes().startswith(magic)


def test_what_cannot_be_drawn_is_named(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole", ROWS)
    for directory in (run(tmp_path / "short", ROWS[1:2]), tmp_path / "nothing"):
        with pytest.raises(UserError, match=directory.name):
            draw_curves([whole, directory], tmp_path / "curves.png")
    with pytest.raises(UserError, match=r"curves\.xyz"):
        draw_curves([whole], tmp_path / "curves.xyz")
    with pytest.raises(UserError, match=r"curves\.png"):
        draw_curves([whole], whole / METRICS / "curves.png")
    assert not list(tmp_path.glob("curves.*"))
