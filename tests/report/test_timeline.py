"""The timeline of one training step."""

from itertools import combinations
from pathlib import Path

import pytest

from attnrl.errors import UserError
from attnrl.report.timeline import draw_timeline
from attnrl.rl.clock import Span
from attnrl.runs.directory import TIMELINE, RunDirectory
from attnrl.runs.recording import timeline_row

matplotlib = pytest.importorskip("matplotlib")

SPANS: list[Span] = [
    ("plan", 0.0, 0.003),
    ("generate", 0.003, 4.0),
    ("grade (overlapped)", 1.0, 1.6),
    ("grade (overlapped)", 2.0, 2.01),
    ("grade", 4.0, 4.1),
    ("score", 4.1, 5.0),
    ("train", 5.0, 7.5),
    ("sync", 7.5, 7.500004),
]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    written = RunDirectory(tmp_path / "run")
    written.open("", None)
    shorter: list[Span] = [("generate", 0.0, 1.0)]
    written.append(TIMELINE, [timeline_row(1, shorter), timeline_row(2, SPANS)])
    return written.root


def drawn(run: Path, monkeypatch: pytest.MonkeyPatch, step: int | None = None):
    from matplotlib import pyplot

    kept = []
    monkeypatch.setattr(pyplot, "close", kept.append)
    draw_timeline(run, run / "timeline.png", step)
    return kept[0]


def test_the_last_step_unless_told_otherwise(run: Path) -> None:
    assert draw_timeline(run, run / "a.png") == 2
    assert draw_timeline(run, run / "b.png", 1) == 1
    assert (run / "a.png").read_bytes() != (run / "b.png").read_bytes()


def test_each_span_is_a_bar_in_its_lane(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    panel = drawn(run, monkeypatch).axes[0]
    lanes = [label.get_text() for label in panel.get_yticklabels()]
    bars = [(lanes[round(bar.get_y() + bar.get_height() / 2)], bar.get_x(), bar.get_width()) for bar in panel.patches]
    expected = {"plan": "policy", "generate": "sampler", "sync": "sampler", "score": "policy", "train": "policy"}
    assert bars == [
        (expected.get(name, "grader"), pytest.approx(start), pytest.approx(end - start, abs=1e-4))
        for name, start, end in SPANS
    ]
    assert panel.get_title("left") == "run, step 2: 7.50 s"


def test_labels_are_inside_their_bars_and_the_legend_has_all_phases(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figure = drawn(run, monkeypatch)
    panel = figure.axes[0]
    assert {text.get_text() for text in panel.texts} == {"generate 4.00 s", "score 0.90 s", "train 2.50 s"}
    figure.draw_without_rendering()  # at its own resolution again
    boxes = [text.get_window_extent() for text in panel.texts]
    bars = [bar.get_window_extent() for bar in panel.patches]
    assert all(any(bar.x0 <= box.x0 and box.x1 <= bar.x1 for bar in bars) for box in boxes)
    (legend,) = figure.legends
    texts = [text.get_text() for text in legend.get_texts()]
    assert texts == [
        *("generate 4.00 s", "sync 0.00 s", "grade (overlapped) 0.61 s", "grade 0.10 s"),
        *("plan 0.00 s", "score 0.90 s", "train 2.50 s"),
    ]
    edges = [text.get_window_extent() for text in legend.get_texts()]
    assert not any(one.overlaps(other) for one, other in combinations(edges, 2))
    assert legend.get_window_extent().x0 >= 0
    assert legend.get_window_extent().x1 <= figure.bbox.x1


@pytest.mark.parametrize(("name", "magic"), [("a/b/timeline.png", b"\x89PNG"), ("timeline.svg", b"<?xml")])
def test_the_picture_is_of_the_kind_asked_for(run: Path, tmp_path: Path, name: str, magic: bytes) -> None:
    draw_timeline(run, tmp_path / name)
    assert (tmp_path / name).read_bytes().startswith(magic)


def test_what_cannot_be_drawn_is_named(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere"):
        draw_timeline(tmp_path / "nowhere", tmp_path / "timeline.png")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"empty.*timeline\.jsonl"):
        draw_timeline(tmp_path / "empty", tmp_path / "timeline.png")
    with pytest.raises(UserError, match=r"run.*\b7\b.*timeline\.jsonl"):
        draw_timeline(run, tmp_path / "timeline.png", 7)
    with pytest.raises(UserError, match=r"timeline\.xyz"):
        draw_timeline(run, tmp_path / "timeline.xyz")
    assert not list(tmp_path.glob("timeline.*"))
