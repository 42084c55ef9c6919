"""A recipe in verl's words and back; what neither can do together is refused by name. Needs no verl."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from attnrl.config.load import load_config
from attnrl.config.schema import TrainConfig
from attnrl.errors import UserError
from attnrl.verl.settings import VERL_NAMES, environment_of, from_verl, to_verl


@pytest.fixture(autouse=True)
def vendor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VERL_ENGINE_VENDOR", "attnrl")


def recipe(*changes: str, name: str = "attnrl") -> TrainConfig:
    return load_config(
        TrainConfig, name, ["engine=verl", "verl.gpus_per_node=2", "sampling.score_continuations=true", *changes]
    )


def nested(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings by dotted name as verl's configuration holds them, with what of it is at its default."""
    found: dict[str, Any] = {
        "algorithm": {"use_kl_in_reward": False},
        "actor_rollout_ref": {"actor": {"ppo_epochs": 1}, "model": {"lora_rank": 0}},
    }
    for path, value in settings.items():
        inner = found
        *groups, last = path.split(".")
        for group in groups:
            inner = inner.setdefault(group, {})
        inner[last] = value
    return found


@pytest.mark.parametrize("name", ["attnrl", "attnrl_plus", "grpo", "treerl"])
@pytest.mark.parametrize("cpu", [True, False], ids=["cpu", "gpu"])
def test_a_recipe_comes_back_as_it_was(name, cpu, tmp_path):
    config = recipe(f"output_dir={tmp_path}", "seed=5", "loss.kl=0.002", "loss.dual_clip=3.0", name=name)
    assert from_verl(nested(to_verl(config, cpu=cpu))) == config


@pytest.mark.parametrize(
    ("ours", "verl", "value"),
    [
        ("prompts=7", "data.train_batch_size", 7),
        ("sampling.max_new_tokens=99", "data.max_response_length", 99),
        ("optimizer.learning_rate=2e-6", "actor_rollout_ref.actor.optim.lr", 2e-6),
        ("loss.clip_high=0.3", "actor_rollout_ref.actor.clip_ratio_high", 0.3),
        ("loss.kl=0.004", "actor_rollout_ref.actor.kl_loss_coef", 0.004),
        ("loss.kl=0.004", "actor_rollout_ref.actor.use_kl_loss", True),
        ("loss.kl=0", "actor_rollout_ref.actor.use_kl_loss", False),
        ("loss.dual_clip=2.5", "actor_rollout_ref.actor.clip_ratio_c", 2.5),
        ("verl.tensor_parallel=2", "actor_rollout_ref.rollout.tensor_model_parallel_size", 2),
        ("checkpoint.every=9", "trainer.save_freq", 9),
    ],
)
def test_settings_have_verl_s_names(ours, verl, value):
    assert to_verl(recipe(ours), cpu=False)[verl] == value


def test_who_starts_from_verl_s_configuration_adds_what_verl_has_no_words_for():
    settings = nested(
        {
            **to_verl(recipe("loss.kl=0.01"), cpu=False),
            "data.train_files": "train.parquet",
            "data.val_files": "test.parquet",
            "data.train_batch_size": 12,
            "trainer.test_freq": -1,
            "trainer.save_freq": -1,
            "actor_rollout_ref.actor.optim.lr_warmup_steps": -1,
            "trainer.default_local_dir": "/checkpoints",
            "attnrl": {"recipe": "treerl", "method": {"trunks": 3}},
        }
    )
    config = from_verl(settings)
    assert config.data.train == "train.parquet"
    assert config.data.eval == "test.parquet"
    assert (config.task, config.engine, config.output_dir) == (None, "verl", Path("/checkpoints"))
    assert (config.method.trunks, config.method.branching.criterion, config.method.pipeline) == (
        3,
        "entropy",
        "two_phase",
    )
    assert (config.prompts, config.loss.kl, config.loss.dual_clip) == (12, 0.01, None)
    assert (config.eval.every, config.checkpoint.every, config.optimizer.warmup_steps) == (0, 0, 0)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("actor_rollout_ref.actor.use_dynamic_bsz", False),
        ("actor_rollout_ref.actor.loss_agg_mode", "seq-mean-token-sum"),
        ("actor_rollout_ref.actor.ppo_epochs", 2),
        ("actor_rollout_ref.actor.strategy", "megatron"),
        ("actor_rollout_ref.rollout.calculate_log_probs", False),
        ("actor_rollout_ref.model.lora_rank", 8),
        ("algorithm.use_kl_in_reward", True),
    ],
)
def test_what_the_trainer_cannot_do_is_refused_by_verl_s_name(name, value):
    with pytest.raises(UserError, match=rf"^{re.escape(name)}={value}\b"):
        from_verl(nested({**to_verl(recipe(), cpu=False), name: value}))


def test_without_our_engine_it_is_refused(monkeypatch):
    monkeypatch.delenv("VERL_ENGINE_VENDOR")
    with pytest.raises(UserError, match=r"VERL_ENGINE_VENDOR .*attnrl"):
        from_verl(nested(to_verl(recipe(), cpu=False)))


def test_unknown_keys_of_ours_are_named():
    with pytest.raises(UserError, match=r"^attnrl: .*method\.trunk\b"):
        from_verl(nested({**to_verl(recipe(), cpu=False), "attnrl": {"task": "ledger", "method": {"trunk": 3}}}))


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        ("data.train_batch_size=4", r"^verl\.set: data\.train_batch_size .*\bprompts\b"),
        ("++actor_rollout_ref.actor.optim.lr=1", r"^verl\.set: .*\.lr .*optimizer\.learning_rate"),
        ("trainer.balance_batch", r"^verl\.set: .*trainer\.balance_batch"),
    ],
)
def test_what_a_recipe_has_a_word_for_is_not_set_in_verl_s(setting, named):
    with pytest.raises(UserError, match=named):
        to_verl(recipe(f"verl.set=['{setting}']"), cpu=False)


def test_what_is_set_in_verl_s_words_is_left_to_them():
    plain, changed = (
        to_verl(recipe(), cpu=False),
        to_verl(recipe("verl.set=['trainer.resume_mode=disable']"), cpu=False),
    )
    assert plain.keys() - changed.keys() == {"trainer.resume_mode"}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("verl.sequence_parallel=2", r"verl\.sequence_parallel=2 .*FCI"),
        ("sampling.carry_over=0.2", r"sampling\.carry_over\b"),
    ],
)
def test_what_the_engine_cannot_do_is_refused_at_the_start(change, named):
    with pytest.raises(UserError, match=named):
        recipe(change)


def test_sequences_may_be_spread_where_nobody_looks_at_fci():
    settings = to_verl(recipe("verl.sequence_parallel=2", name="grpo"), cpu=False)
    assert settings["actor_rollout_ref.actor.ulysses_sequence_parallel_size"] == 2


def test_no_word_of_the_table_stands_for_two():
    assert len(set(VERL_NAMES.values())) == len(VERL_NAMES)


def test_every_process_finds_the_plug_in():
    for cpu in (True, False):
        settings = to_verl(recipe(), cpu=cpu)
        assert settings["ray_kwargs.ray_init.runtime_env.env_vars"] == environment_of(cpu)
        assert environment_of(cpu)["VERL_USE_EXTERNAL_MODULES"] == "attnrl.verl.plugin"


@pytest.mark.parametrize(("rollout", "expected"), [("vllm", 1010), ("sglang", 1011)])
def test_rollout_engines_make_room_for_the_longest_response(rollout, expected):
    config = recipe("sampling.max_prompt_tokens=10", "sampling.max_new_tokens=1000", f"verl.rollout={rollout}")
    assert to_verl(config, cpu=False)["actor_rollout_ref.rollout.max_model_len"] == expected


def test_fp32_is_not_asked_of_flash_attention():
    attention = "actor_rollout_ref.model.override_config.attn_implementation"
    assert to_verl(recipe("dtype=float32"), cpu=False)[attention] == "sdpa"
    assert attention not in to_verl(recipe("dtype=bfloat16"), cpu=False)


def test_a_run_of_one_machine_starts_a_cluster_of_its_own(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert to_verl(recipe(), cpu=False)["ray_kwargs.ray_init.address"] == "local"
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    assert "ray_kwargs.ray_init.address" not in to_verl(recipe(), cpu=False)


def test_log_probs_of_rollout_engines_are_not_taken_for_the_policy_s(tmp_path):
    with pytest.raises(UserError, match=r"sampling\.score_continuations=false.*vllm"):
        recipe("sampling.score_continuations=false")
    settings = nested({**to_verl(recipe("loss.kl=0.01"), cpu=False), "attnrl": {"task": "ledger"}})
    assert from_verl(settings).sampling.score_continuations  # though the recipe that it starts from says otherwise


def test_truncation_needs_logprobs_before_truncation(tmp_path):
    """vLLM in verl has log-probs before the temperature and truncation, or after both."""
    mode = "actor_rollout_ref.rollout.logprobs_mode"
    plain = to_verl(recipe(f"output_dir={tmp_path}"), cpu=False)
    assert mode not in plain
    for change in ("sampling.top_p=0.9", "sampling.top_k=20", "sampling.min_p=0.1"):
        config = recipe(f"output_dir={tmp_path}", change)
        settings = to_verl(config, cpu=False)
        assert settings[mode] == "raw_logprobs"
        assert from_verl(nested(settings)) == config
        with pytest.raises(UserError, match=mode):
            from_verl(nested({**settings, mode: "processed_logprobs"}))
        warm = recipe(f"output_dir={tmp_path}", change, "sampling.temperature=0.8")
        with pytest.raises(UserError, match=r"sampling\.temperature"):
            to_verl(warm, cpu=False)


def test_top_k_is_off_by_verls_value(tmp_path):
    settings = nested(to_verl(recipe(f"output_dir={tmp_path}"), cpu=False))
    settings["attnrl"] = {"task": "ledger"}
    settings["actor_rollout_ref"]["rollout"] |= {"top_k": -1, "val_kwargs": {"top_k": 7}}
    config = from_verl(settings)
    assert (config.sampling.top_k, config.eval.top_k) == (0, 7)


def test_trackers_write_below_the_run_directory_under_the_name_of_the_run(tmp_path):
    plain = to_verl(recipe(f"output_dir={tmp_path}/mine"), cpu=False)
    assert plain["trainer.experiment_name"] == "mine"
    named = to_verl(recipe(f"output_dir={tmp_path}/mine", "log.trackers=[wandb]", "log.run_name=other"), cpu=False)
    assert named["trainer.experiment_name"] == "other"
    folders = named["ray_kwargs.ray_init.runtime_env.env_vars"]
    assert Path(folders["WANDB_DIR"]) == tmp_path / "mine" / "trackers"
    assert all(Path(folders[name]).is_relative_to(tmp_path / "mine") for name in ("TENSORBOARD_DIR", "TRACKIO_DIR"))
