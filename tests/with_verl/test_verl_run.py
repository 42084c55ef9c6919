"""Whole runs of the verl engine: Ray, FSDP2 over gloo, agent loops, a rollout on the CPU."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny_runs
import torch
from rich.console import Console
from safetensors.torch import load_file

from attnrl.config.load import load_config
from attnrl.config.schema import TrainConfig
from attnrl.local.model_names import find_model
from attnrl.runs.display import Display
from attnrl.runs.prepare import prepare
from attnrl.runs.session import train
from attnrl.tasks.base import draw_distinct
from attnrl.tasks.registry import find_task
from attnrl.verl.launch import installed_version
from attnrl.verl.settings import environment_of

if installed_version() is None:
    pytest.skip("needs verl, in an environment of its own: make test-verl", allow_module_level=True)

BUDGET = 11_000  # tokens: four steps or so; the run ends with the step that reaches them
METHOD = ["method.trunks=2", "method.branching.points=1", "method.branching.samples=2"]
SMALL = [
    *("prompts=4", *METHOD, "loss.kl=0.01", "sampling.score_continuations=true", "device=cpu"),
    *("eval.problems=5", "eval.samples=1", "eval.every=3", "log.trees_every=1", "checkpoint.every=3"),
    *("steps=12", f"tokens={BUDGET}"),
]


def run(command: list[str], directory: Path) -> str:
    """What a command prints; it has to succeed, and to set verl's and Ray's environment itself."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("VERL_", "RAY_"))}
    done = subprocess.run(command, cwd=directory, env=plain, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, f"{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done.stdout + done.stderr


def verl_run(output: Path) -> str:
    """Two workers, by the command line."""
    command = [sys.executable, "-m", "attnrl", "train", "attnrl", "engine=verl", "verl.rollout=transformers"]
    return run([*command, "verl.gpus_per_node=2", f"output_dir={output}", *SMALL], output.parent)


def read(output: Path) -> list[dict[str, Any]]:
    """``metrics.jsonl`` without what the clock and the machine say.

    Nor what the rollout engines make of log-probs: which requests meet in a batch, and so how it rounds, is chance.
    """
    chance = ("verl/perf", "verl/mfu", "mismatch/")
    return [
        {name: value for name, value in row.items() if not name.startswith(chance)} for row in tiny_runs.read(output)
    ]


def last(output: Path) -> Path:
    """The checkpoint of the last step."""
    return output / "checkpoints" / f"global_step_{read(output)[-1]['step']}"


def state(output: Path) -> dict[str, Any]:
    """The loop's state after the last step, without the log-probs of the rollout engines."""
    text = (last(output) / "attnrl_state.json").read_text()
    return json.loads(text, object_hook=lambda fields: {k: v for k, v in fields.items() if k != "sampler_logprobs"})


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run at a stretch."""
    output = tmp_path_factory.mktemp("whole") / "run"
    verl_run(output)
    return output


def test_two_workers_train(whole):
    rows = read(whole)
    steps = rows[-1]["step"]
    assert [row["step"] for row in rows] == list(range(steps + 1))
    assert sum(row.get("grad_norm", 0) > 0 for row in rows) >= 3
    assert [row["step"] for row in rows if "eval/accuracy" in row] == sorted({0, *range(0, steps, 3), steps})


def test_a_budget_of_tokens_ends_a_run(whole):
    *_, before, end = read(whole)
    assert before["tokens/total"] < BUDGET <= end["tokens/total"]
    assert last(whole).exists()


def test_a_run_killed_in_the_middle_and_resumed_is_the_run_that_was_not(whole, tmp_path):
    """Killed after the checkpoint of step 3: what it has written of later steps is there."""
    output = tmp_path / "run"
    shutil.copytree(whole, output)
    shutil.rmtree(last(output))
    (output / "checkpoints/latest_checkpointed_iteration.txt").write_text("3")
    printed = verl_run(output)
    assert "Resuming from" in printed
    assert "Held-out accuracy after" in printed
    assert read(output) == read(whole)
    assert state(output) == state(whole)
    assert state(whole)["pending"]


def test_the_run_directory_is_that_of_any_engine(whole):
    rows = [json.loads(line) for line in (whole / "trees.jsonl").read_text().splitlines()]
    assert {row["step"] for row in rows} == {row["step"] for row in read(whole)[1:]}
    run([sys.executable, "-m", "attnrl", "report", str(whole)], whole.parent)
    assert (whole.parent / "report.html").stat().st_size > 100_000


def test_a_local_run_goes_on_from_it(whole, tmp_path):
    attnrl, steps = [sys.executable, "-m", "attnrl"], read(whole)[-1]["step"]
    run([*attnrl, "export", str(whole), "exported"], tmp_path)
    directories = find_model("ledger").directory, tmp_path / "exported"
    before, after = (load_file(directory / "model.safetensors") for directory in directories)
    assert all(not torch.equal(before[name], after[name]) for name in before)
    run([*attnrl, "eval", "exported", "--task", "ledger", "--problems", "5", "--samples", "1"], tmp_path)
    more = ["resume=exported", "output_dir=local", *SMALL, f"steps={steps + 1}", "tokens=null"]
    run([*attnrl, "train", "attnrl", *more], tmp_path)
    (row,) = tiny_runs.read(tmp_path / "local")
    assert row["step"] == steps + 1
    assert row["prompt_batch_size"] == len(state(whole)["pending"])  # it has trained on what verl sampled


def test_nothing_of_it_is_left_running(whole):
    assert "ray::" not in run(["ps", "-eo", "args"], whole)


@pytest.fixture(scope="module")
def problems(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows for those who start from verl's configuration."""
    file = tmp_path_factory.mktemp("data") / "ledger.jsonl"
    drawn = draw_distinct(find_task("ledger"), 40, random.Random(0))
    file.write_text("".join(json.dumps({"prompt": p.prompt, "answer": p.answers[0]}) + "\n" for p in drawn))
    return file


def main_ppo(output: Path, problems: Path) -> subprocess.CompletedProcess[str]:
    """``verl.trainer.main_ppo`` with the plug-in, on one worker and a CPU."""
    actor, rollout = "actor_rollout_ref.actor", "actor_rollout_ref.rollout"
    fp32 = "{param_dtype:fp32,reduce_dtype:fp32}"
    settings = [
        *("trainer.v1.trainer_mode=attnrl", f"actor_rollout_ref.model.path={find_model('ledger').directory}"),
        *(f"data.train_files={problems}", f"data.val_files={problems}", "data.train_batch_size=4"),
        *("data.max_prompt_length=128", "data.max_response_length=256", "trainer.total_training_steps=3"),
        *(f"{rollout}.name=transformers", f"{rollout}.tensor_model_parallel_size=1", f"{rollout}.agent.num_workers=1"),
        *(f"{rollout}.val_kwargs.temperature=1.0", f"{actor}.strategy=fsdp2", f"{actor}.use_dynamic_bsz=true"),
        *(f"{actor}.clip_ratio_high=0.28", f"{actor}.clip_ratio_c=1e9", f"{actor}.use_torch_compile=false"),
        *(f"{actor}.optim.lr=3e-4", f"{actor}.optim.weight_decay=0", f"+{actor}.fsdp_config.mixed_precision={fp32}"),
        *(f"{actor}.fsdp_config.use_torch_compile=false", "algorithm.adv_estimator=grpo"),
        *("+actor_rollout_ref.model.override_config.attn_implementation=sdpa", "trainer.device=cpu"),
        *("trainer.n_gpus_per_node=1", "trainer.nnodes=1", f"trainer.default_local_dir={output}"),
        *("trainer.logger=[console]", "trainer.save_freq=-1", "trainer.test_freq=3", "reward.num_workers=1"),
        *("ray_kwargs.ray_init.num_cpus=20", "+ray_kwargs.ray_init.num_gpus=1"),
        "+ray_kwargs.ray_init.include_dashboard=false",
        "transfer_queue.backend.SimpleStorage.num_data_storage_units=1",
        *("+attnrl.data.overlap=warn", "+attnrl.data.prompt_suffix=''", "+attnrl.eval.problems=5", "+attnrl.seed=3"),
        *(f"+attnrl.{setting}" for setting in METHOD),
    ]  # fmt: skip
    return subprocess.run(
        [sys.executable, "-m", "verl.trainer.main_ppo", *settings],
        cwd=output.parent,
        env={**os.environ, **environment_of(cpu=True)},
        capture_output=True,
        text=True,
        timeout=600,
    )


def test_verl_s_own_command_runs_the_same_training_as_the_local_engine(problems, tmp_path):
    done = main_ppo(tmp_path / "verl", problems)
    assert done.returncode == 0, f"{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    local = load_config(
        TrainConfig,
        "attnrl",
        [
            *("task=null", f"data.train={problems}", f"data.eval={problems}", "data.prompt_suffix=''"),
            *("data.overlap=warn", "seed=3", "steps=3", "prompts=4", *METHOD, f"output_dir={tmp_path / 'local'}"),
            *("eval.every=3", "eval.problems=5", "eval.samples=1", "checkpoint.every=0"),
        ],
    )
    train(prepare(local), Display(Console(quiet=True)))
    ours, theirs = read(tmp_path / "local"), read(tmp_path / "verl")
    assert len(theirs) == 4
    names = ["reward", "tokens/total", "trained_responses", "eval/accuracy", "branch/position", "grad_norm"]
    compared = {}
    for row, other in zip(ours, theirs, strict=True):
        for name in names:
            if name in row:
                compared[name, row["step"]] = (row[name], other[name])
    first = {name: pair for (name, step), pair in compared.items() if step <= 1}
    assert {"reward", "tokens/total", "eval/accuracy", "grad_norm"} <= first.keys()
    for name, (local_value, verl_value) in first.items():
        assert verl_value == pytest.approx(local_value, rel=1e-3, abs=1e-5), name
