"""The HTML report: data read, forests left out, and protection against text written by a model."""

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import helpers
import pytest
import yaml
from transformers import PreTrainedTokenizerBase

from attnrl.errors import UserError
from attnrl.report.html import inline_json, page_script, select_forests, write_report
from attnrl.report.html_data import (
    MAX_POINTS,
    ForestLog,
    metric_columns,
    read_run_data,
    run_names,
    split_text,
    thinned,
)
from attnrl.runs.directory import METRICS, TREES, RunDirectory

HOSTILE = (
    "</script><script>document.title = 'owned'</script><img src=x onerror=\"document.title='owned'\">\u2028\u2029&lt;"
    "<svg onload=\"document.title='owned'\"></svg><a href=\"javascript:document.title='owned'\">link</a>"
    "<iframe srcdoc=\"<script>parent.document.title='owned'</script>\"></iframe>"
    "[link](javascript:document.title='owned')--><!--<script>\u202e{{script}}${document.title='owned'}"
)
TEXT = "so 1\n\nso 2\n\nso 3\n\nso 4"
METRIC_ROWS = [
    {"step": 0, "eval/accuracy": 0.25, "eval/standard_error": 0.03},
    {"step": 1, "time/step": 2.0, "time/generate": 1.5, "tokens/total": 100, "reward": 0.5, "tokens/valid_ratio": 0.4},
    {
        **{"step": 2, "time/step": 3.0, "time/generate": 2.5, "tokens/total": 250, "reward": 0.75},
        **{"tokens/valid_ratio": 0.6, "eval/accuracy": 0.5, "eval/standard_error": 0.04},
    },
]


def node(at: int, tokens: int, text: str, reward: float, segments: list[list[float]]) -> dict[str, Any]:
    return {
        **{"at": at, "tokens": [5] * tokens, "text": text, "reward": reward},
        **{"finish_reason": "stop", "segments": segments},
    }


def forest(step: int = 1, text: str = TEXT, problem: str = "mine:1") -> dict[str, Any]:
    """A trunk of four steps of three tokens with one branch at its second step, and a trunk that was not expanded."""
    shared = [0, 0, 3, 0.5, 0.25]
    expanded = {
        **{"trained": True, "steps": [0, 3, 6, 9], "influence": [0.0, 0.3, 0.0, 0.0], "entropy": [0.5] * 12},
        "branch_points": [3],
        "nodes": [
            node(0, 12, text, 1.0, [shared, [0, 3, 12, 1.0, 0.5]]),
            node(3, 5, "so 5\n\nso 6", 0.0, [shared, [1, 0, 5, 0.0, -0.5]]),
        ],
    }
    other = {
        **{"trained": False, "steps": [0, 3, 6, 9], "influence": [0.0, 0.1, 0.0, 0.0], "entropy": [0.1] * 12},
        **{"branch_points": [], "nodes": [node(0, 12, text, 0.0, [[0, 0, 12, 0.0, -0.25]])]},
    }
    return {
        **{"step": step, "position": 0, "problem": problem, "prompt": f"A=1? {text}", "answers": ["1"]},
        **{"filtered": False, "root_value": 1 / 3, "trees": [expanded, other]},
    }


def run(
    directory: Path, metrics: list[dict[str, Any]], trees: list[dict[str, Any]] | None = None, **settings: Any
) -> Path:
    written = RunDirectory(directory)
    written.open(yaml.safe_dump({"steps": 2, "method": {"branching": {"delta": 4}}} | settings), None)
    written.append(METRICS, metrics)
    written.append(TREES, trees or [])
    return directory


def page_data(path: Path) -> dict[str, Any]:
    """The JSON blocks of a page by their id, as a browser's parser finds them."""

    class Blocks(HTMLParser):
        def __init__(self) -> None:
            super().__init__()
            self.found: dict[str, str] = {}
            self.at: str | None = None
            self.scripts = 0

        def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
            named = dict(attributes)
            self.at = named.get("id") if tag == "script" else None
            self.scripts += tag == "script" and "type" not in named

        def handle_endtag(self, tag: str) -> None:
            self.at = None

        def handle_data(self, data: str) -> None:
            if self.at is not None:
                self.found[self.at] = self.found.get(self.at, "") + data

    parser = Blocks()
    parser.feed(path.read_text(encoding="utf-8"))
    assert parser.scripts == 1, "only the page's own script is one that runs"
    return {name: json.loads(text) for name, text in parser.found.items()}


def test_a_run_in_numbers(tmp_path: Path) -> None:
    found = read_run_data(run(tmp_path / "run", METRIC_ROWS))
    reward = {"reward": None}  # a run without held-out rewards
    before, after = found["headline"]["before"], found["headline"]["after"]
    assert before == {"step": 0, "tokens": 0, "seconds": 0, "accuracy": 0.25, "error": 0.03, **reward}
    assert after == {"step": 2, "tokens": 250, "seconds": 5, "accuracy": 0.5, "error": 0.04, **reward}
    numbers = {name: found["headline"][name] for name in ("steps", "planned", "tokens", "seconds", "valid_ratio")}
    assert numbers == {"steps": 2, "planned": 2, "tokens": 250, "seconds": 5, "valid_ratio": 0.5}
    assert found["columns"]["step"] == [1, 2] and found["columns"]["reward"] == [0.5, 0.75]
    assert not any(name.startswith("eval/") for name in found["columns"])
    assert found["settings"] == {"steps": 2, "method.branching.delta": 4}


def test_long_curves_are_means_of_consecutive_steps() -> None:
    rows = [{"step": step, "reward": float(step), "rare": 1.0 if step == 3 else None} for step in range(1, 1201)]
    found = metric_columns(rows)
    assert len(found["step"]) == MAX_POINTS
    assert found["step"][:2] == [2, 4] and found["reward"][:2] == [1.5, 3.5]
    assert found["rare"][:3] == [None, 1, None]
    many = thinned([{"step": step} for step in range(1201)])
    assert len(many) <= MAX_POINTS and many[-1] == {"step": 1200}


def test_numbers_that_json_has_not_are_left_out(tmp_path: Path) -> None:
    rows = [{"step": 1, "time/step": 1.0, "grad_norm": float("nan"), "reward": float("inf"), "note": "text"}]
    root = run(tmp_path / "run", rows)
    assert read_run_data(root)["columns"] == {
        **{"step": [1], "time/step": [1], "grad_norm": [None], "reward": [None], "note": [None]}
    }
    write_report([root], tmp_path / "report.html")
    assert page_data(tmp_path / "report.html")["data"]["runs"][0]["columns"]["grad_norm"] == [None]


def test_a_forest_has_each_text_and_each_segment_once(tmp_path: Path) -> None:
    forests = ForestLog(run(tmp_path / "run", [], [forest()]))
    (line,) = forests.lines
    compact = forests.compact(line)
    tree, other = compact["trees"]
    assert (compact["root"], compact["filtered"], compact["answers"]) == (0.33333, False, ["1"])
    assert tree["segments"] == [[0, 0, 3, 0.5, 0.25], [0, 3, 12, 1, 0.5], [1, 0, 5, 0, -0.5]]
    assert [(one["at"], one["tokens"], one["reward"]) for one in tree["nodes"]] == [(0, 12, 1), (3, 5, 0)]
    assert [one["correct"] for one in tree["nodes"]] == [True, False]  # a row without verdicts: by the reward
    assert tree["nodes"][0]["pieces"] == ["so 1\n\n", "so 2\n\n", "so 3\n\n", "so 4"]
    assert tree["points"] == [3] and tree["entropy"] == [0.5] * 4 and len(tree["nodes"][0]["pieces"]) == 4
    assert other["trained"] is False


def test_a_leaf_that_is_not_judged_has_no_reward_and_rewards_do_not_tell_correctness(tmp_path: Path) -> None:
    row = forest()
    row["trees"][0]["nodes"][0] |= {"reward": None, "correct": False, "segments": []}
    row["trees"][0]["nodes"][1] |= {"reward": -2.0, "correct": True}
    log = ForestLog(run(tmp_path / "run", [], [row | {"root_value": None}]))
    compact = log.compact(log.lines[0])
    assert [(one["reward"], one["correct"]) for one in compact["trees"][0]["nodes"]] == [(None, False), (-2, True)]
    assert compact["root"] is None


@pytest.mark.parametrize(("text", "steps"), [("", 0), ("a", 1), ("a\nb", 2), ("a\n\nb\nc\n\n", 2), ("\n\na\n\n\nb", 2)])
def test_text_is_cut_as_tokens_are(text: str, steps: int) -> None:
    assert "".join(split_text(text)) == text and len(split_text(text)) == steps


def test_a_row_of_the_log_as_a_run_writes_it(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    from attnrl.method.steps import Steps
    from attnrl.rl.rollout import BranchPlan, Group, RolloutTree, Trunk
    from attnrl.runs.forest_rows import forest_row

    tokens = tuple(tokenizer("so 1")["input_ids"])
    numbers = tuple(0.1 * place for place in range(len(tokens)))
    trunks = (
        Trunk(tokens, numbers, numbers, numbers, 1.0, "correct", "stop", steps=Steps((0,), 2), influence=(0.0,)),
        Trunk((), (), (), (), 0.0, "no_answer", "length", steps=Steps((), 0), influence=()),
    )
    row = forest_row(RolloutTree(BranchPlan(Group(0, "x:0", ("1",), (5,), trunks), True, {}, 2), ()), tokenizer, 1)
    forests = ForestLog(run(tmp_path / "run", [], [row]))
    first, empty = forests.compact(forests.lines[0])["trees"]
    assert first["nodes"][0]["pieces"] == ["so 1"]
    assert empty["nodes"][0]["pieces"] == [] and empty["entropy"] == []


def test_the_budget_keeps_some_of_every_step_and_the_page_knows(tmp_path: Path) -> None:
    trees = [forest(step, problem=f"mine:{problem}") for step in (1, 11, 21) for problem in range(4)]
    root = run(tmp_path / "run", METRIC_ROWS, trees)
    size = len(inline_json(ForestLog(root).compact(ForestLog(root).lines[0])))
    kept = select_forests(ForestLog(root), int(4.5 * size))
    problems = {step: [json.loads(text)["problem"] for text in texts] for step, texts in kept.items()}
    assert problems == {21: ["mine:0", "mine:1"], 11: ["mine:0"], 1: ["mine:0"]}
    write_report([root], tmp_path / "report.html", max_megabytes=4.5 * size / 1e6)
    found = page_data(tmp_path / "report.html")
    assert [(one["step"], one["kept"], one["of"]) for one in found["data"]["runs"][0]["forests"]] == [
        *((1, 1, 4), (11, 1, 4), (21, 2, 4))
    ]
    assert [one["problem"] for one in found["forests-0-21"]] == ["mine:0", "mine:1"]


def test_runs_of_one_name_are_told_apart(tmp_path: Path) -> None:
    assert run_names([Path("a/x"), Path("b/x"), Path("b/y/")]) == [str(Path("a/x")), str(Path("b/x")), "y"]


def test_json_in_a_page_has_no_character_that_html_looks_at() -> None:
    text = inline_json({HOSTILE: [HOSTILE, "\ud800", "<!--<script>", "\x00"]})
    assert not re.search(r"[<>&\u2028\u2029]", text) and text.isascii()
    assert json.loads(text) == {HOSTILE: [HOSTILE, "\ud800", "<!--<script>", "\x00"]}


def hostile_run(directory: Path) -> Path:
    """A run with an attack in every text field."""
    row = forest(text=f"{HOSTILE}\n\nso\n\nso\n\nso", problem=HOSTILE) | {"answers": [HOSTILE]}
    row["trees"][0]["nodes"][1]["text"] = f"in the branch {HOSTILE}"
    row["trees"][0]["nodes"][1]["finish_reason"] = HOSTILE
    return run(directory, [*METRIC_ROWS, {"step": 3, HOSTILE: 1.0, "time/step": 1.0}], [row], task=HOSTILE)


def test_what_a_model_wrote_stays_in_its_block(tmp_path: Path) -> None:
    output = tmp_path / "report.html"
    write_report([hostile_run(tmp_path / "run")], output)
    text = output.read_text(encoding="utf-8")
    found = page_data(output)
    assert found["forests-0-1"][0]["problem"] == HOSTILE
    assert found["data"]["runs"][0]["settings"]["task"] == HOSTILE
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)
    assert policy is not None
    assert policy[1].startswith("default-src 'none'; script-src 'sha256-") and "unsafe" not in policy[1]
    assert "owned'</script>" not in text and "onerror=" in text  # there, as text


def test_the_script_makes_no_html_and_no_request_of_text() -> None:
    script = page_script()
    for word in (
        "innerHTML",
        "outerHTML",
        "insertAdjacent",
        "document.write",
        "eval(",
        "Function(",
        "fetch(",
        "import(",
    ):
        assert word not in script, word


STATES: dict[str, tuple[list[dict[str, Any]], list[dict[str, Any]]]] = {
    "nothing yet": ([], []),
    "step 0 only": (METRIC_ROWS[:1], []),
    "no evaluation": (METRIC_ROWS[1:2], [forest()]),
    "no trees": (METRIC_ROWS, []),
    "a problem without trunks": (METRIC_ROWS, [forest() | {"trees": []}]),
    "hostile": ([], []),
}


@pytest.mark.parametrize("state", STATES)
def test_runs_in_any_state_give_a_page(tmp_path: Path, state: str) -> None:
    root = run(tmp_path / "run", *STATES[state])
    output = tmp_path / "deep" / "report.html"
    assert write_report([root], output) == output.stat().st_size
    found = page_data(output)["data"]["runs"][0]
    assert found["attention"]["maps"] == []
    assert found["attention"]["note"]


def test_a_run_in_progress_ends_in_half_a_line(tmp_path: Path) -> None:
    root = run(tmp_path / "run", METRIC_ROWS, [forest(1), forest(11)])
    for name in (METRICS, TREES):
        text = (root / name).read_text()
        (root / name).write_text(text + text[: len(text) // 3].partition("\n")[0][:40])
    write_report([root], tmp_path / "report.html")
    found = page_data(tmp_path / "report.html")["data"]["runs"][0]
    assert found["headline"]["steps"] == 2 and [one["of"] for one in found["forests"]] == [1, 1]


def test_a_report_needs_no_settings(tmp_path: Path) -> None:
    root = run(tmp_path / "run", METRIC_ROWS)
    (root / "config.yaml").write_text("- [")
    assert read_run_data(root)["settings"] == {}
    (root / "config.yaml").unlink()
    assert read_run_data(root)["headline"]["steps"] == 2


@pytest.mark.parametrize(
    ("name", "line", "named"),
    [
        (METRICS, "oops\n", r"metrics\.jsonl, line 4\b"),
        (METRICS, "[1]\n", r"metrics\.jsonl, row 4\b"),
        (METRICS, '{"reward": 1}\n', r"metrics\.jsonl, row 4\b"),
        (TREES, "oops\n", r"trees\.jsonl, line 2\b"),
        (TREES, '{"step": 3, oops\n', r"trees\.jsonl, line 2\b"),
        (TREES, '{"step": 3, "trees": 1}\n', r"trees\.jsonl, line 2\b"),
        (TREES, '{"trees": []}\n', r"trees\.jsonl, line 2\b"),
    ],
)
def test_damage_is_named(tmp_path: Path, name: str, line: str, named: str) -> None:
    root = run(tmp_path / "run", METRIC_ROWS, [forest()])
    with (root / name).open("a") as file:
        file.write(line)
    with pytest.raises(UserError, match=named):
        write_report([root], tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    return helpers.command(monkeypatch, "report", *arguments)


def test_the_command_writes_a_page_of_several_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    runs = [str(run(Path(name), METRIC_ROWS, [forest()], seed=seed)) for seed, name in enumerate("ab")]
    assert call(monkeypatch, *runs) == 0
    assert "report.html" in capsys.readouterr().out
    assert [one["name"] for one in page_data(Path("report.html"))["data"]["runs"]] == ["a", "b"]
    assert call(monkeypatch, runs[0], "-o", "b.html", "--max-mb", "0", "--no-attention") == 0
    (only,) = page_data(Path("b.html"))["data"]["runs"]
    assert only["forests"] == [{"step": 1, "kept": 0, "of": 1}]
    assert only["attention"]["maps"] == [] and "--no-attention" in only["attention"]["note"]


def test_the_command_names_what_is_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("mine")
    run(tmp_path / "run", METRIC_ROWS)
    for arguments, named in (
        (["run", "nowhere"], "nowhere"),
        (["empty"], "empty"),
        (["file"], "file"),
        (["run", "-o", "empty"], "empty"),
        (["run", "-o", "file/report.html"], "file/report.html"),
    ):
        assert call(monkeypatch, *arguments) == 2
        error = capsys.readouterr().err
        assert error.startswith("attnrl: ") and named in error and error.count("\n") == 1
    assert not (tmp_path / "report.html").exists()


def checkpointed(tmp_path: Path, tiny_checkpoint: Path, row: dict[str, Any]) -> Path:
    """A run whose newest checkpoint is a tiny model."""
    root = run(tmp_path / "run", METRIC_ROWS, [row])
    directory = root / "checkpoints" / "step-000002"
    shutil.copytree(tiny_checkpoint, directory)
    (directory / "trainer_state.json").write_text(json.dumps({"trainer": {"step": 2}}))
    return root


def test_attention_of_the_newest_checkpoint(tmp_path: Path, tiny_checkpoint: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from attnrl.fci import step_attention_by_head

    row = forest() | {"prompt": "A=1?"}
    root = checkpointed(tmp_path, tiny_checkpoint, row)
    write_report([root], tmp_path / "report.html")
    attention = page_data(tmp_path / "report.html")["data"]["runs"][0]["attention"]
    assert "step-000002" in attention["note"] and "step 1" in attention["note"]
    (only,) = attention["maps"]
    prompt = AutoTokenizer.from_pretrained(tiny_checkpoint)("A=1?", add_special_tokens=False)["input_ids"]
    model = AutoModelForCausalLM.from_pretrained(tiny_checkpoint)
    starts = [len(prompt) + start for start in (0, 3, 6, 9)]
    alpha = step_attention_by_head(model, torch.tensor([*prompt, *[5] * 12]), starts).amax(dim=(0, 1))
    assert [len(line) for line in only["max"]] == [1, 2, 3, 4]
    for line, expected in zip(only["max"], alpha.tolist(), strict=True):
        assert line == pytest.approx(expected[: len(line)], abs=1e-4)
    assert only["labels"] == ["so 1", "so 2", "so 3", "so 4"] and only["steps"] == only["of"] == 4


def test_attention_that_cannot_be_had_is_said_and_the_page_is_written(tmp_path: Path, tiny_checkpoint: Path) -> None:
    row = forest()
    row["trees"][0]["nodes"][0]["tokens"] = [10**6] * 12
    root = checkpointed(tmp_path, tiny_checkpoint, row)
    write_report([root], tmp_path / "report.html")
    attention = page_data(tmp_path / "report.html")["data"]["runs"][0]["attention"]
    assert attention["maps"] == [] and attention["note"].startswith("No attention: ValueError")
