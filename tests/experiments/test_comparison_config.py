"""Configuration of comparisons, and statistics of their runs."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attnrl.errors import UserError
from attnrl.experiments.comparison.config import comparison_names, load_comparison, plan_runs, slug
from attnrl.experiments.comparison.report import (
    TITLES,
    ablation_table,
    draw_comparison,
    efficiency_table,
    running_mean,
)
from attnrl.experiments.comparison.results import (
    DYNAMICS,
    RunResult,
    compact_json,
    interpolate,
    mean_over_seeds,
    paired_difference,
    read_run_result,
    recorded_runs,
    results_document,
    summarize_arms,
)

TWO = ["tokens=1000", "seeds=[3,4]"]


def result(arm: str, seed: int, accuracy: tuple[float, ...], tokens: tuple[float, ...] = (0, 500, 1000)) -> RunResult:
    seconds = tuple(token / 10 for token in tokens)
    dynamics = {name: (1.0,) for name in DYNAMICS}
    return RunResult(arm, seed, tokens, seconds, accuracy, accuracy, 10, 20, 0.5, dynamics)


# --- configuration --------------------------------------------------------------------------------------------------


def test_every_arm_gets_every_seed_and_the_same_budget_seed_by_seed() -> None:
    runs = plan_runs(load_comparison("grpo,attnrl", TWO))
    assert [(run.arm, run.seed) for run in runs] == [("grpo", 3), ("attnrl", 3), ("grpo", 4), ("attnrl", 4)]
    assert {run.config.tokens for run in runs} == {1000}
    assert [run.config.seed for run in runs] == [3, 3, 4, 4]
    assert runs[1].directory == Path("results/grpo-attnrl/runs/attnrl/seed-3")
    # Steps never end a run before its budget does.
    assert all(not run.config.is_over(999, 999) and run.config.is_over(1, 1000) for run in runs)


def test_a_file_names_arms_and_what_they_change(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(
        "output_dir: out\ntokens: 500\nsettings: [prompts=5]\narms:\n"
        "  Z first: {recipe: treerl}\n  A second: {recipe: attnrl, settings: [prompts=7]}\n"
    )
    runs = plan_runs(load_comparison(str(file), ["seeds=[0]"]))
    assert [(run.arm, run.config.prompts) for run in runs] == [("Z first", 5), ("A second", 7)]


@pytest.mark.parametrize("name", comparison_names())
def test_shipped_comparisons_are_valid(name: str) -> None:
    assert plan_runs(load_comparison(name))


@pytest.mark.parametrize(
    ("what", "overrides", "named"),
    [
        ("nope", [], "nope"),
        ("grpo,nope", TWO, "arm nope"),
        ("nope.yaml", [], "nope.yaml"),
        ("grpo,attnrl", [], "tokens"),
        ("grpo,attnrl", [*TWO, "seed=1"], r"\bseed\b"),
        ("grpo,attnrl", ["tokens=1000", "seeds=[1,1]"], "seeds"),
        ("grpo,attnrl", ["tokens=1000", "seeds=[]"], "seeds"),
        ("grpo,attnrl", ["tokens=1000", "target=80"], "target"),
        ("grpo,attnrl", ["tokens=1000", "settings=[stpes=1]"], "arm grpo.*stpes"),
        ("grpo,attnrl", ["tokens=1000", "settings=[eval.every=0]"], "eval.every"),
        ("grpo,attnrl", ["tokens=1000", "arms={}"], "arms"),
        ("grpo,attnrl", ["tokens=1000", "arms={A-b: {recipe: grpo}, a b: {recipe: grpo}}"], "arms"),
        ("grpo,attnrl", ["tokens=1000", "arms={a: {recipe: grpo, steps: 3}}"], "arms.a.steps"),
    ],
)
def test_wrong_comparisons_are_refused_by_name(what: str, overrides: list[str], named: str) -> None:
    with pytest.raises(UserError, match=named.replace("[", r"\[")):
        plan_runs(load_comparison(what, overrides))


def test_names_of_directories() -> None:
    assert slug("TreeRL + ATB, 2.0 (old)") == "treerl-atb-2.0-old"


# --- results ----------------------------------------------------------------------------------------------------------


def test_a_run_by_hand() -> None:
    run = result("a", 0, (0.2, 0.6, 0.8))
    assert run.accuracy_at(750) == pytest.approx(0.7)
    assert run.seconds_at(750) == pytest.approx(75)
    assert run.area(1000) == pytest.approx((0.4 + 0.7) / 2)
    assert run.area(500) == pytest.approx(0.4)
    assert run.tokens_to(0.7) == pytest.approx(750)
    assert run.tokens_to(0.1) == 0
    assert run.tokens_to(0.9) is None


def test_the_first_time_counts_although_the_curve_falls_again() -> None:
    assert result("a", 0, (0.2, 0.6, 0.1)).tokens_to(0.4) == pytest.approx(250)


@given(
    st.lists(st.floats(0, 1), min_size=2, max_size=6),
    st.floats(0.01, 0.99),
    st.floats(1, 5000),
)
def test_a_run_in_general(accuracy: list[float], target: float, budget: float) -> None:
    run = result("a", 0, tuple(accuracy), tuple(1000.0 * place for place in range(len(accuracy))))
    assert min(accuracy) - 1e-9 <= run.area(budget) <= max(accuracy) + 1e-9
    reached = run.tokens_to(target)
    if reached is None:
        assert max(accuracy) < target
    else:
        assert run.accuracy_at(reached) >= target - 1e-9


def test_interpolation_ends_where_the_points_do() -> None:
    assert [interpolate([1, 2], [10, 20], x) for x in (0, 1, 1.5, 2, 3)] == [10, 10, 15, 20, 20]


def test_arms_are_compared_seed_by_seed() -> None:
    first = [result("first", seed, (0.2, 0.4, low)) for seed, low in enumerate((0.5, 0.6, 0.7))]
    other = [result("other", seed, (0.2, 0.6, high)) for seed, high in enumerate((0.71, 0.79, 0.9))]
    arms = summarize_arms([*first, *other], 1000, 0.6)
    assert [arm.arm for arm in arms] == ["first", "other"]
    assert arms[1].accuracy.mean == pytest.approx(0.8)
    assert arms[1].accuracy.standard_error == pytest.approx(math.sqrt((0.09**2 + 0.01**2 + 0.1**2) / 2 / 3))
    difference = arms[1].accuracy_difference
    assert difference.mean == pytest.approx(0.2)
    # t of 0.21, 0.19, 0.2 is 0.2 / (0.01 / sqrt 3); its 95 % quantile with two degrees of freedom is 4.303.
    assert difference.high - 0.2 == pytest.approx(4.3027 * 0.01 / math.sqrt(3), rel=1e-3)
    assert difference.p == pytest.approx(0.00083, rel=0.01)
    # The second and third run of the first arm reach 0.6, at 1000 and at 2/3 of the way from 500.
    assert (arms[0].reached, arms[1].reached) == (2, 3)
    assert arms[0].tokens_to_target.mean == pytest.approx((1000 + 1000 + 500 + 500 * 2 / 3) / 3)
    assert arms[1].speedup == pytest.approx(arms[0].tokens_to_target.mean / 500)


def test_seeds_that_not_all_arms_have_are_left_out() -> None:
    runs = [result("a", 0, (0.1, 0.2, 0.3)), result("a", 1, (0.9, 0.9, 0.9)), result("b", 0, (0.1, 0.2, 0.4))]
    arms = summarize_arms(runs, 1000, 0.5)
    assert [arm.seeds for arm in arms] == [1, 1]
    assert arms[0].accuracy.mean == pytest.approx(0.3)
    assert math.isnan(arms[1].accuracy_difference.p)
    with pytest.raises(UserError, match="seed"):
        summarize_arms(runs[1:], 1000, 0.5)


def test_no_spread_is_no_division_by_zero() -> None:
    assert paired_difference([0.5, 0.5], [0.5, 0.5]).p == 1.0
    assert mean_over_seeds([0.5]).standard_error == 0.0


def test_tables_say_what_is_a_bound() -> None:
    never = [result("slow", seed, (0.1, 0.2, 0.3)) for seed in (0, 1)]
    once = [result("some", 0, (0.1, 0.9, 0.9)), result("some", 1, (0.1, 0.2, 0.3))]
    always = [result("fast", seed, (0.1, 0.9, 0.9)) for seed in (0, 1)]
    arms = summarize_arms([*once, *never, *always], 1000, 0.5)
    rows = {line.split("|")[1].strip(): line for line in ablation_table(arms, 1000, 0.5)[2:]}
    assert "not reached" in rows["slow"]
    assert "(1 of 2 never)" in rows["some"]
    assert rows["fast"].split("|")[-2].strip() == f"> {arms[2].speedup:.2f}x"
    assert all(line.count("|") == 8 for line in efficiency_table(arms, 1000, 0.5))


def test_watched_curves_are_smoothed() -> None:
    assert running_mean([1, 2, 3, 4, 9], 3) == [1.5, 2, 3, pytest.approx(16 / 3), 6.5]
    smoothed = running_mean([math.nan, math.nan, math.nan, 2.0], 3)
    assert math.isnan(smoothed[0]) and smoothed[2:] == [2.0, 2.0]


def test_every_curve_has_a_title() -> None:
    assert tuple(TITLES) == DYNAMICS


def test_files_of_results_are_json() -> None:
    assert json.dumps(compact_json({"a": (math.nan, 0.123456789, 3)})) == '{"a": [null, 0.123457, 3]}'


def test_a_run_directory_is_read(tmp_path: Path) -> None:
    (run,) = plan_runs(load_comparison("attnrl", ["tokens=100", "seeds=[0]", f"output_dir={tmp_path}"]))
    rows = [
        {"step": 0, "eval/accuracy": 0.1},
        {"step": 1, "tokens/total": 60, "tokens/valid": 30, "tokens/valid_ratio": 0.5, "time/step": 2.0},
        {"step": 2, "tokens/total": 120, "tokens/valid": 0, "tokens/valid_ratio": 0, "time/step": 3.0},
    ]
    rows[1] |= {"update_skipped": 0.0, "reward": 0.5}
    rows[2] |= {"update_skipped": 1.0, "eval/accuracy": 0.4}
    run.directory.mkdir(parents=True)
    (run.directory / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    read = read_run_result(run)
    assert (read.tokens, read.seconds, read.accuracy) == ((0.0, 120), (0.0, 5.0), (0.1, 0.4))
    assert (read.steps, read.updates) == (2, 2)
    assert read.dynamics["reward"][0] == 0.5 and math.isnan(read.dynamics["reward"][1])
    assert all(map(math.isnan, read.reward)) and not read.reward_tells_more  # a run without held-out rewards


def test_the_held_out_reward_is_a_number_of_its_own(tmp_path: Path) -> None:
    """A column of the table if it differs from the accuracy; a results.json without rewards is still read."""
    comparison = load_comparison("attnrl,grpo", ["tokens=1000", "seeds=[0,1]", f"output_dir={tmp_path}"])
    same = [result(arm, seed, (0.2, 0.6, 0.8)) for seed in (0, 1) for arm in ("attnrl", "grpo")]
    rewarded = [replace(run, reward=(-2.0, -1.0, 3.0 + run.seed)) for run in same]
    plain, arms = (summarize_arms(runs, 1000, 0.5) for runs in (same, rewarded))
    assert "reward" not in ablation_table(plain, 1000, 0.5)[0]
    assert "reward" in ablation_table(arms, 1000, 0.5)[0] and "3.500 ± 0.500" in ablation_table(arms, 1000, 0.5)[2]
    assert (arms[0].reward.mean, arms[0].accuracy.mean) == (3.5, 0.8)
    draw_comparison(rewarded, 1000, 0.5, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size

    document = json.loads(json.dumps(results_document(comparison, rewarded, arms, {})))
    file = tmp_path / "results.json"
    file.write_text(json.dumps(document))
    assert [run.reward for run in recorded_runs(file, comparison).values()] == [run.reward for run in rewarded]
    for run in document["runs"]:
        del run["reward"], run["dynamics"]["accuracy"]
    file.write_text(json.dumps(document))
    old = list(recorded_runs(file, comparison).values())
    assert all(math.isnan(reward) for run in old for reward in run.reward)
    assert "unknown" not in "".join(ablation_table(summarize_arms(old, 1000, 0.5), 1000, 0.5))
