"""Whole runs of a tiny random model: the same run twice, and a run that is stopped and resumed."""

from __future__ import annotations

import json

import pytest
from safetensors.torch import load_file
from tiny_runs import read, run, weights

from attnrl.errors import UserError


def test_a_run_trains(whole, tiny_checkpoint):
    """What the comparisons below compare is not nothing."""
    rows = read(whole)
    assert [row["step"] for row in rows] == [0, 1, 2, 3, 4]
    assert all(row["update_skipped"] == 0.0 for row in rows[1:])
    assert [row["step"] for row in rows if "eval/accuracy" in row] == [0, 2, 4]
    assert [path.name for path in sorted((whole / "checkpoints").iterdir())] == ["step-000002", "step-000004"]
    before = load_file(tiny_checkpoint / "model.safetensors")
    after = load_file(whole / "checkpoints" / "step-000004" / "model.safetensors")
    assert before.keys() == after.keys()
    assert all((before[name] - after[name]).abs().max() > 1e-4 for name in before)


def test_the_same_run_twice_is_the_same(whole, tiny_checkpoint, tmp_path):
    run(tiny_checkpoint, tmp_path)
    assert read(tmp_path) == read(whole)
    assert weights(tmp_path / "checkpoints/step-000004") == weights(whole / "checkpoints/step-000004")


def test_another_seed_is_another_run_on_the_same_evaluation(whole, tiny_checkpoint, tmp_path):
    run(tiny_checkpoint, tmp_path, "seed=1", steps=1)
    assert read(tmp_path)[0] == read(whole)[0]
    assert read(tmp_path)[1] != read(whole)[1]


def test_a_resumed_run_is_the_run_that_was_never_stopped(whole, tiny_checkpoint, tmp_path):
    run(tiny_checkpoint, tmp_path, steps=2)
    assert [row["step"] for row in read(tmp_path)] == [0, 1, 2]
    run(tiny_checkpoint, tmp_path, steps=4)
    assert read(tmp_path) == read(whole)
    for name in ("trees.jsonl", "samples.jsonl"):
        assert read(tmp_path, name) == read(whole, name)
    for name in ("model.safetensors", "optimizer.safetensors", "trainer_state.json"):
        resumed, never_stopped = (root / "checkpoints/step-000004" / name for root in (tmp_path, whole))
        assert resumed.read_bytes() == never_stopped.read_bytes()


def test_steps_after_the_checkpoint_are_done_again(whole, tiny_checkpoint, tmp_path):
    """A run killed between checkpoints has logged more than it saved; each step is there once in the end."""
    run(tiny_checkpoint, tmp_path, steps=2)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 3, "reward": -1.0}) + "\n" + '{"step": 4, "rew')
    run(tiny_checkpoint, tmp_path, steps=4)
    assert read(tmp_path) == read(whole)


def test_a_run_resumes_from_a_checkpoint_by_name(whole, tiny_checkpoint, tmp_path):
    run(tiny_checkpoint, tmp_path, f"resume={whole / 'checkpoints/step-000002'}", steps=4)
    assert read(tmp_path) == read(whole)[3:]
    assert weights(tmp_path / "checkpoints/step-000004") == weights(whole / "checkpoints/step-000004")


def test_a_budget_of_tokens_ends_a_run_with_the_step_that_spends_it(whole, tiny_checkpoint, tmp_path):
    rows = read(whole)
    budget = int(rows[2]["tokens/total"])
    run(tiny_checkpoint, tmp_path, f"tokens={budget - 1}", "eval.every=4")
    ended = read(tmp_path)
    assert [row["step"] for row in ended] == [0, 1, 2]
    assert "eval/accuracy" in ended[-1] and "eval/accuracy" not in ended[1]
    assert (tmp_path / "checkpoints" / "step-000002").is_dir()
    run(tiny_checkpoint, tmp_path, f"tokens={budget + 1}", "eval.every=4")
    assert [row["step"] for row in read(tmp_path)] == [0, 1, 2, 3]


def test_a_finished_run_has_nothing_left_to_do(whole, tiny_checkpoint):
    before = {path: path.read_bytes() for path in sorted(whole.rglob("*")) if path.is_file()}
    run(tiny_checkpoint, whole)
    assert {path: path.read_bytes() for path in sorted(whole.rglob("*")) if path.is_file()} == before


@pytest.mark.parametrize("recipe", ["grpo", "treerl"])
def test_the_other_recipes_resume_as_well(tiny_checkpoint, tmp_path, recipe):
    run(tiny_checkpoint, tmp_path / "whole", steps=2, recipe=recipe)
    run(tiny_checkpoint, tmp_path / "stopped", "eval.every=1", steps=1, recipe=recipe)
    run(tiny_checkpoint, tmp_path / "stopped", steps=2, recipe=recipe)
    whole, stopped = read(tmp_path / "whole"), read(tmp_path / "stopped")
    stopped = [{key: value for key, value in row.items() if key in whole[row["step"]]} for row in stopped]
    assert stopped == whole  # but for the evaluation that the last step of the stopped run made


@pytest.mark.parametrize(("recipe", "pipeline"), [("grpo", "one_step"), ("attnrl", "two_phase")])
def test_a_run_that_carries_problems_over_resumes_as_well(tiny_checkpoint, tmp_path, recipe, pipeline):
    """No continuation is waited for in these generations, so that some problem is always carried over."""
    settings = ["sampling.carry_over=0.5", "prompts=6", f"method.pipeline={pipeline}", "eval.every=0"]
    settings += ["sampling.max_new_tokens=200", "method.trunks=3"]
    run(tiny_checkpoint, tmp_path / "whole", *settings, steps=3, recipe=recipe)
    run(tiny_checkpoint, tmp_path / "stopped", *settings, "checkpoint.every=1", steps=2, recipe=recipe)
    saved = json.loads((tmp_path / "stopped/checkpoints/step-000002/trainer_state.json").read_text())
    assert any(trunk["tokens"] for group in saved["trainer"]["carried"] for trunk in group["trunks"])
    run(tiny_checkpoint, tmp_path / "stopped", *settings, steps=3, recipe=recipe)
    assert read(tmp_path / "stopped") == read(tmp_path / "whole")
    assert read(tmp_path / "stopped", "trees.jsonl") == read(tmp_path / "whole", "trees.jsonl")
    for name in ("model.safetensors", "trainer_state.json"):
        resumed, never_stopped = (tmp_path / root / "checkpoints/step-000003" / name for root in ("stopped", "whole"))
        assert resumed.read_bytes() == never_stopped.read_bytes()


def test_the_timeline_has_a_line_for_each_step(whole):
    rows = read(whole, "timeline.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert all({"generate", "score", "train"} <= {name for name, _, _ in row["spans"]} for row in rows)


def test_settings_that_would_make_it_another_run_are_refused(whole, tiny_checkpoint):
    before = read(whole)
    with pytest.raises(UserError, match=r"^output_dir .*seed 0 -> 3"):
        run(tiny_checkpoint, whole, "seed=3")
    with pytest.raises(UserError, match=r"^output_dir .*method\."):
        run(tiny_checkpoint, whole, recipe="treerl")
    assert read(whole) == before
