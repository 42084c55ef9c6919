"""Recipes and overrides: accepted values, and the messages for wrong values."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from attnrl.config.load import apply_overrides, dump_config, load_config, recipe_names, validate_config
from attnrl.config.method import MethodConfig
from attnrl.config.schema import DataConfig, LossConfig, TrainConfig
from attnrl.config.sft import SftConfig
from attnrl.errors import UserError

# What a recipe for a user's own model leaves open.
MINE = ["model=some/model", "data.train=train.jsonl"]


def load(*overrides: str) -> TrainConfig:
    return load_config(TrainConfig, "attnrl", overrides)


def complaint(*overrides: str, kind: type = TrainConfig, recipe: str = "attnrl") -> str:
    """The one line that a faulty recipe ends in."""
    with pytest.raises(UserError) as caught:
        load_config(kind, recipe, overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("name", recipe_names())
def test_every_shipped_recipe_loads(name: str) -> None:
    if name.startswith("sft_"):
        assert load_config(SftConfig, name).stages
    else:
        config = load_config(TrainConfig, name, MINE if name == "math" else ())
        assert config.output_dir == Path("runs") / name


def test_the_recipes_differ_where_the_methods_do() -> None:
    attnrl, treerl, grpo = (load_config(TrainConfig, name).method for name in ("attnrl", "treerl", "grpo"))
    assert (attnrl.pipeline, attnrl.branching.criterion, attnrl.adaptive.filter) == ("one_step", "fci", True)
    assert (treerl.pipeline, treerl.branching.criterion, treerl.adaptive.filter) == ("two_phase", "entropy", False)
    assert (grpo.pipeline, grpo.advantage, grpo.branching.points) == ("two_phase", "grpo", 0)
    assert treerl.adaptive.expansion == grpo.adaptive.expansion == "all"
    assert not treerl.adaptive.batch_size and not grpo.adaptive.batch_size


def test_a_fully_expanded_problem_has_as_many_leaves_as_the_paper_says() -> None:
    assert load().method.leaves == 30
    assert MethodConfig(trunks=3, branching={"points": 4, "samples": 5}).leaves == 63
    assert load_config(TrainConfig, "grpo").method.leaves == load_config(TrainConfig, "grpo").method.trunks


def test_defaults_are_those_of_the_paper() -> None:
    method, loss = MethodConfig(), LossConfig()
    assert (method.trunks, method.branching.points, method.branching.samples) == (6, 2, 2)
    assert (method.branching.rho, method.branching.delta, method.adaptive.smoothing) == (0.2, 4, 0.9)
    assert (loss.clip_low, loss.clip_high, loss.kl, loss.dual_clip) == (0.2, 0.28, 0.001, None)


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("seed=7", "seed", 7),
        ("seed=1e3", "seed", 1000),
        ("optimizer.learning_rate=3e-4", "optimizer.learning_rate", 3e-4),
        ("optimizer.learning_rate=1E-6", "optimizer.learning_rate", 1e-6),
        ("method.branching.criterion=random", "method.branching.criterion", "random"),
        ("method.adaptive.filter=false", "method.adaptive.filter", False),
        ("loss.dual_clip=3", "loss.dual_clip", 3.0),
        ("loss.dual_clip=null", "loss.dual_clip", None),
        ("optimizer.betas=[0.9, 0.95]", "optimizer.betas", (0.9, 0.95)),
        ("log.trackers=[tensorboard, wandb]", "log.trackers", ("tensorboard", "wandb")),
        ("log.trackers=[]", "log.trackers", ()),
        ("output_dir=runs/a=b", "output_dir", Path("runs/a=b")),
        ("model=/models/With Space", "model", "/models/With Space"),
        ("data.prompt_suffix=' Answer: '", "data.prompt_suffix", " Answer: "),
        ("data.prompt_suffix= Answer: # 1 ", "data.prompt_suffix", " Answer: # 1 "),
        ("data.prompt_suffix=", "data.prompt_suffix", ""),
        ("sampling.stop=###", "sampling.stop", ("###",)),
        ("log.run_name=first # 2", "log.run_name", "first # 2"),
    ],
)
def test_overrides(override: str, path: str, value: Any) -> None:
    found: Any = load(override)
    for key in path.split("."):
        found = getattr(found, key)
    assert found == value
    assert type(found) is type(value) or isinstance(value, Path)


def test_an_override_leaves_its_neighbours_alone_and_the_last_one_wins() -> None:
    before, after = load(), load("method.branching.rho=0.5", "method.branching.rho=0.1")
    assert after.method.branching.rho == 0.1
    assert after.model_dump(exclude={"method": {"branching": {"rho"}}}) == before.model_dump(
        exclude={"method": {"branching": {"rho"}}}
    )


def test_overrides_do_not_change_what_they_are_applied_to() -> None:
    settings = {"method": {"branching": {"points": 2}}}
    assert apply_overrides(settings, ["method.branching.points=3"])["method"]["branching"]["points"] == 3
    assert settings == {"method": {"branching": {"points": 2}}}


def test_an_override_may_name_a_group_that_the_recipe_leaves_out() -> None:
    assert apply_overrides({}, ["data.train=x.jsonl"]) == {"data": {"train": "x.jsonl"}}


@pytest.mark.parametrize(
    ("override", "named", "known"),
    [
        ("stepz=3", "stepz", {"steps", "model", "method"}),
        ("method.branch=3", "method.branch", {"branching", "adaptive", "trunks"}),
        ("method.branching.point=3", "method.branching.point", {"points", "rho", "criterion"}),
        ("log.tracker=[wandb]", "log.tracker", {"trackers", "trees_every"}),
        ("data.test=x.jsonl", "data.test", {"train", "eval", "prompt_suffix"}),
        ("new.group.key=1", "new", {"steps"}),
    ],
)
def test_an_unknown_key_is_named_with_the_known_ones_beside_it(override: str, named: str, known: set[str]) -> None:
    message = complaint(override)
    assert f"unknown key {named} " in message
    listed = message.split("known here: ")[1].rstrip(")").split(", ")
    assert known <= set(listed)
    assert ("seed" in listed) == ("." not in named)  # the keys beside it, not those at the top


@pytest.mark.parametrize(
    ("override", "meant"),
    [
        ("stpes=3", {"steps"}),
        ("method.branching.critrion=fci", {"method.branching.criterion"}),
        ("critrion=fci", {"method.branching.criterion"}),
        ("criterion=fci", {"method.branching.criterion"}),
        ("method.rho=0.1", {"method.branching.rho"}),
        ("branching.rho=0.1", {"method.branching"}),
        ("temperature=1", {"sampling.temperature", "eval.temperature"}),
        ("nonsense=1", set()),
    ],
)
def test_a_near_miss_suggests_the_known_setting(override: str, meant: set[str]) -> None:
    beginning, asked, rest = complaint(override).partition("did you mean ")
    assert set(rest.partition("?")[0].split(" or ")) - {""} == meant
    assert bool(asked) == bool(meant) and override.partition("=")[0].split(".")[0] in beginning


def test_thousands_of_faults_end_in_a_short_message() -> None:
    settings = {f"steps{number}": 1 for number in range(5_000)}
    with pytest.raises(UserError) as caught:
        validate_config(TrainConfig, settings, source="here")
    assert len(str(caught.value)) < 20_000 and "steps0" in str(caught.value)


def test_an_unknown_key_of_a_list_entry_is_named_with_the_known_ones_of_an_entry() -> None:
    stage = "[{task: ledger, steps: 1, learning_rate: [1e-3, 1e-4], rate: 3}]"
    message = complaint(f"stages={stage}", kind=SftConfig, recipe="sft_ledger")
    assert "stages.0.rate" in message and "learning_rate, save, steps, task" in message


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("steps=0", "steps"),
        ("steps=2.5", "steps"),
        ("steps=many", "steps"),
        ("steps=null", "steps"),
        ("seed=nan", "seed"),
        ("prompts=-1", "prompts"),
        ("dtype=float16", "dtype"),
        ("sampling.temperature=0", "sampling.temperature"),
        ("sampling.top_p=1.5", "sampling.top_p"),
        ("vllm.gpu_memory_utilization=0", "vllm.gpu_memory_utilization"),
        ("vllm.kv_cache_gib=0", "vllm.kv_cache_gib"),
        ("vllm.block_size=-16", "vllm.block_size"),
        ("optimizer.learning_rate=-1e-6", "optimizer.learning_rate"),
        ("optimizer.learning_rate=nan", "optimizer.learning_rate"),
        ("optimizer.learning_rate=fast", "optimizer.learning_rate"),
        ("optimizer.betas=[1.5, 0.9]", "optimizer.betas.0"),
        ("optimizer.mini_batches=0", "optimizer.mini_batches"),
        ("method.branching.rho=0", "method.branching.rho"),
        ("method.branching.criterion=fcl", "method.branching.criterion"),
        ("method.adaptive.smoothing=1", "method.adaptive.smoothing"),
        ("method.adaptive.filter=maybe", "method.adaptive.filter"),
        ("loss.clip_low=1", "loss.clip_low"),
        ("loss.kl=-0.1", "loss.kl"),
        ("loss.dual_clip=0.5", "loss.dual_clip"),
        ("log.trackers=[mlflow]", "log.trackers.0"),
        ("output_dir=[a]", "output_dir"),
        ("eval=3", "eval"),
        ("method=null", "method"),
    ],
)
def test_a_bad_value_is_named_with_its_key(override: str, named: str) -> None:
    message = complaint(override)
    assert message.startswith(f"recipe attnrl: {named}")
    value = yaml.safe_load(override.partition("=")[2])
    shown = value[0] if named.endswith(".0") else value
    if not isinstance(shown, list):
        assert str(shown).lstrip("-").rstrip("6") in message


def test_all_faults_are_told_at_once() -> None:
    message = complaint("steps=0", "nonsense=1", "loss.kl=-1")
    assert all(part in message for part in ("steps", "unknown key nonsense", "loss.kl"))


def test_a_key_that_is_missing_is_named() -> None:
    assert "optimizer.betas.1" in complaint("optimizer.betas=[0.9]")
    with pytest.raises(UserError, match=r"here: model .*; output_dir "):
        validate_config(TrainConfig, {"task": "ledger", "steps": 1}, source="here")


@pytest.mark.parametrize("override", ["seed", "=3", "a..b=3", ".seed=3", "seed.=3", ""])
def test_an_override_of_another_form_is_quoted(override: str) -> None:
    assert f"override {override!r}" in complaint(override)


def test_an_override_through_a_value_is_quoted() -> None:
    assert "'steps.deep=3': steps " in complaint("steps.deep=3")
    assert "'stages.0.steps=3': stages " in complaint("stages.0.steps=3", kind=SftConfig, recipe="sft_ledger")


def test_an_override_whose_value_is_not_yaml_is_quoted() -> None:
    assert "'log.trackers=[wandb'" in complaint("log.trackers=[wandb")


def test_importance_sampling_needs_the_policys_logprobs():
    message = complaint("loss.tis=2.0")
    assert "loss.tis" in message and "sampling.score_continuations=true" in message
    assert load("loss.tis=2.0", "sampling.score_continuations=true").loss.tis == 2.0


@pytest.mark.parametrize("sources", [("data.train=x.jsonl",), ("task=null",)])
def test_problems_come_from_a_task_or_from_a_file_and_not_from_both_or_neither(sources: tuple[str, ...]) -> None:
    message = complaint(*sources)
    assert "task" in message and "data.train" in message


def test_a_file_instead_of_the_task() -> None:
    config = load("task=null", "data.train=x.jsonl")
    assert (config.task, config.data.train) == (None, "x.jsonl")


def test_data_may_be_several_files_or_a_path() -> None:
    assert load("task=null", "data.train=[a.jsonl, 'b/c:main[train]']").data.train == ("a.jsonl", "b/c:main[train]")
    assert DataConfig(train=Path("x.csv"), eval=[Path("y.csv")]).model_dump()["eval"] == ("y.csv",)  # type: ignore
    assert "data.train" in complaint("task=null", "data.train=[]")


@pytest.mark.parametrize("advantage", ["grpo", "grpo_no_std"])
def test_advantages_of_whole_responses_refuse_branches(advantage: str) -> None:
    message = complaint(f"method.advantage={advantage}")
    assert "method" in message and "branching.points=0" in message
    assert load(f"method.advantage={advantage}", "method.branching.points=0").method.advantage == advantage


def test_sft_needs_a_stage() -> None:
    assert "stages" in complaint("stages=[]", kind=SftConfig, recipe="sft_ledger")


def test_a_recipe_that_is_not_there(tmp_path: Path) -> None:
    message = complaint(recipe="atnrl")
    assert "'atnrl'" in message and all(name in message for name in recipe_names())
    missing = str(tmp_path / "mine.yaml")
    assert complaint(recipe=missing).startswith(f"recipe {missing}: ")


@pytest.mark.parametrize(
    ("text", "said"),
    [("steps: [1\n", "not valid YAML"), ("", "NoneType"), ("- a\n- b\n", "list"), ("just text\n", "str")],
)
def test_a_recipe_file_that_is_no_mapping(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    message = complaint(recipe=str(path))
    assert message.startswith(f"recipe {path}: ") and said in message


def test_a_recipe_file_of_bytes_that_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes(b"steps: \xff\xfe\n")
    assert complaint(recipe=str(path)).startswith(f"recipe {path}: ")


def test_a_recipe_file_may_write_3e_4(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("model: m\ntask: ledger\noutput_dir: out\nsteps: 1\noptimizer: {learning_rate: 3e-4}\n")
    assert load_config(TrainConfig, str(path)).optimizer.learning_rate == 3e-4


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("log.trackers=[tensorboard]", "loss.dual_clip=3", "optimizer.betas=[0.8, 0.9]"),
        ("task=null", "data.train=träin.jsonl", "data.prompt_suffix=' in \\boxed{}.'"),
    ],
)
def test_a_dumped_config_loads_as_the_same_config(tmp_path: Path, overrides: tuple[str, ...]) -> None:
    config = load(*overrides)
    path = tmp_path / "config.yaml"
    path.write_text(dump_config(config), encoding="utf-8")
    assert load_config(TrainConfig, str(path)) == config
    # Every default is spelled out.
    assert set(yaml.safe_load(path.read_text(encoding="utf-8"))) == set(TrainConfig.model_fields)


def test_a_dumped_sft_config_loads_as_the_same_config(tmp_path: Path) -> None:
    config = load_config(SftConfig, "sft_ledger", ["seed=3"])
    path = tmp_path / "config.yaml"
    path.write_text(dump_config(config), encoding="utf-8")
    assert load_config(SftConfig, str(path)) == config


def test_a_config_does_not_change() -> None:
    with pytest.raises(ValidationError):
        load().steps = 3  # type: ignore[misc]
