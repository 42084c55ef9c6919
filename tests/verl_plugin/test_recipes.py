"""The recipes of the paper's runs: found by name and by path, with the paper's numbers."""

from pathlib import Path
from typing import Any

import pytest

import attnrl.recipes
from attnrl.config.load import load_config, recipe_names, shipped_names
from attnrl.config.schema import TrainConfig
from attnrl.experiments.comparison.config import comparison_names, load_comparison, plan_runs

FOLDER = Path(attnrl.recipes.__file__).parent

SMALL, LARGE = "r1_distill_qwen_1.5b_8xh100", "r1_distill_qwen_7b_3x8xh100"
RECIPES = [f"verl/{method}{model}" for model in (SMALL, LARGE) for method in ("", "grpo_", "treerl_")]

#: Sections 2 and 6 of the paper, of all runs.
OF_ALL = {
    "data.train": "agentica-org/DeepScaleR-Preview-Dataset",
    "data.prompt_suffix": " Let's think step by step and output the final answer within \\boxed{}.",
    "prompts": 64,
    "optimizer.mini_batches": 64 // 32,
    "optimizer.learning_rate": 1e-6,
    "sampling.max_new_tokens": 8192,
    "sampling.temperature": 1.0,
    "sampling.top_p": 1.0,
    "loss.clip_low": 0.2,
    "loss.clip_high": 0.28,
    "loss.kl": 0.001,
    "loss.dual_clip": None,
    "loss.tis": None,
    "eval.temperature": 0.6,
    "method.leaves": 30,
    "verl.gpus_per_node": 8,
}
TREES = {"method.trunks": 6, "method.branching.points": 2, "method.branching.samples": 2, "method.advantage": "tree"}
#: Sections 3 to 5 and Table 3, by what the method's name begins with.
OF_METHOD: dict[str, dict[str, Any]] = {
    "": {
        **TREES,
        "steps": 500,
        "method.pipeline": "one_step",
        "method.branching.criterion": "fci",
        "method.branching.rho": 0.2,
        "method.branching.delta": 4,
        "method.branching.influence": "fci",
        "method.branching.reduction": "max",
        "method.adaptive.filter": True,
        "method.adaptive.expansion": "ceil",
        "method.adaptive.batch_size": True,
        "method.adaptive.smoothing": 0.9,
    },
    "treerl_": {
        **TREES,
        "steps": 800,
        "method.pipeline": "two_phase",
        "method.branching.criterion": "entropy",
        "method.adaptive.filter": False,
        "method.adaptive.expansion": "all",
        "method.adaptive.batch_size": False,
    },
    "grpo_": {
        "steps": 800,
        "method.pipeline": "two_phase",
        "method.advantage": "grpo",
        "method.branching.points": 0,
        "method.adaptive.filter": False,
        "method.adaptive.expansion": "all",
        "method.adaptive.batch_size": False,
    },
}
OF_MODEL: dict[str, dict[str, Any]] = {
    SMALL: {"model": "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B", "verl.nodes": 1},
    LARGE: {"model": "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B", "verl.nodes": 3},
}


def setting(config: Any, path: str) -> Any:
    for key in path.split("."):
        config = getattr(config, key)
    return config


def test_the_recipes_for_verl_are_known_by_the_name_of_their_folder() -> None:
    assert [name for name in recipe_names() if "/" in name] == sorted(RECIPES)
    assert {"attnrl", "grpo", "treerl"} <= set(recipe_names())


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_the_same_by_name_and_by_path(name: str) -> None:
    config = load_config(TrainConfig, name)
    assert config == load_config(TrainConfig, str(FOLDER / f"{name}.yaml"))
    assert config.engine == "verl" and config.output_dir == Path("runs") / name


@pytest.mark.parametrize("name", RECIPES)
def test_the_numbers_are_those_of_the_paper(name: str) -> None:
    config = load_config(TrainConfig, name)
    model = SMALL if name.endswith(SMALL) else LARGE
    expected = OF_ALL | OF_METHOD[name.removeprefix("verl/").removesuffix(model)] | OF_MODEL[model]
    assert {path: setting(config, path) for path in expected} == expected


@pytest.mark.parametrize("model", [SMALL, LARGE])
def test_the_methods_differ_in_nothing_but_method_steps_and_directory(model: str) -> None:
    ours, *others = (
        load_config(TrainConfig, f"verl/{method}{model}").model_dump(exclude={"method", "steps", "output_dir"})
        for method in OF_METHOD
    )
    assert all(other == ours for other in others)


def test_every_text_of_a_recipe_says_how_to_run_it() -> None:
    for name in RECIPES:
        assert f"attnrl train {name}\n" in (FOLDER / f"{name}.yaml").read_text(encoding="utf-8")


def test_comparisons_have_no_folders_and_name_arms_by_the_whole_file_name() -> None:
    assert comparison_names() == shipped_names("attnrl.comparisons")
    assert not any("/" in name for name in comparison_names())
    comparison = load_comparison(f"verl/{SMALL},verl/grpo_{SMALL}", ["tokens=1000", "seeds=[0]"])
    assert list(comparison.arms) == [SMALL, f"grpo_{SMALL}"]
    assert [run.config.method.advantage for run in plan_runs(comparison)] == ["tree", "grpo"]


def test_a_recipe_in_a_file_names_its_arm_without_the_ending(tmp_path: Path) -> None:
    for name in ("mine_0.5b.yaml", "mine_1.5b.yml"):
        (tmp_path / name).write_text("{}")
    comparison = load_comparison(f"{tmp_path}/mine_0.5b.yaml,{tmp_path}/mine_1.5b.yml", ["tokens=1000"])
    assert list(comparison.arms) == ["mine_0.5b", "mine_1.5b"]
