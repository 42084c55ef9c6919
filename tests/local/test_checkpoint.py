"""Checkpoints: what is saved comes back, exactly; what is damaged or missing is named."""

from __future__ import annotations

import errno
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import helpers
import pytest
import torch
from helpers import fake_loop
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from attnrl.config.method import BranchingConfig
from attnrl.config.schema import LossConfig, OptimizerConfig
from attnrl.errors import UserError
from attnrl.local.checkpoint import (
    OPTIMIZER_FILE,
    STATE_FILE,
    Checkpoint,
    RetentionPolicy,
    find_checkpoint,
    list_checkpoints,
    load_checkpoint,
    save_checkpoint,
)
from attnrl.local.policy import LocalPolicy
from attnrl.method.adaptive import RunningMean
from attnrl.method.steps import Steps
from attnrl.rl.rollout import SampledTokens, Trunk
from attnrl.rl.state import TrainerState, state_from_json, state_to_json
from attnrl.types import TrainingRow
from attnrl.utils.files import MANIFEST, write_manifest

ROWS = [
    TrainingRow((3, 4, 5), (6, 7, 8, 9), (-3.0, -2.5, -4.0, -1.0), (-3.0, -2.5, -4.0, -1.1), (1.0, 1.0, -0.5, 0.3)),
    TrainingRow((9, 2), (11, 12, 13), (-2.0, -5.0, -3.5), (-2.0, -5.0, -3.4), (-1.0, -1.0, 0.5)),
]


def build_policy(model: PreTrainedModel) -> LocalPolicy:
    return LocalPolicy(
        model,
        None,
        loss=LossConfig(kl=0.0),
        optimizer=OptimizerConfig(learning_rate=1e-2, mini_batches=1, warmup_steps=5),
        branching=BranchingConfig(),
        temperature=1.0,
    )


@pytest.fixture
def policy(tokenizer) -> LocalPolicy:
    """A policy that has been updated twice."""
    policy = build_policy(helpers.tiny_model(vocab_size=len(tokenizer)))
    policy.update(ROWS)
    policy.update(ROWS)
    return policy


@pytest.fixture
def state(tokenizer) -> TrainerState:
    """The state after two steps, with numbers that no short decimal spells."""
    loop = fake_loop(tokenizer)
    loop.trainer.step()
    loop.trainer.step()
    state = loop.trainer.state
    group = state.pending[0]
    odd = replace(
        group.trunks[0],
        logprobs=tuple(-1 / (3 + i) for i in range(len(group.trunks[0].tokens))),
        steps=Steps((0, 1), len(group.trunks[0].tokens), think_end=1),
        influence=(0.0, 0.1 + 0.2),
    )
    group = replace(group, answers=("1/2", "0.5"), trunks=(odd, *group.trunks[1:]))
    return replace(state, pending=(group, *state.pending[1:]), solved_influence=RunningMean(3, 1 / 7))


@pytest.fixture
def carrying(tokenizer) -> TrainerState:
    """A state in which problems are carried over: some of their responses have ended, others have not."""
    loop = fake_loop(tokenizer, "attnrl", "sampling.carry_over=0.34", "prompts=6")
    loop.sampler.lateness = lambda request: (request.max_new_tokens, request.seed)
    loop.trainer.step()
    return loop.trainer.state


def save(root: Path, policy: LocalPolicy, state: TrainerState, tokenizer, *, step: int = 2, keep_last: int = 9) -> Path:
    return save_checkpoint(root, replace(state, step=step), policy, tokenizer, keep=RetentionPolicy(keep_last))


def found(resume: str, root: Path) -> Checkpoint:
    checkpoint = find_checkpoint(resume, root).checkpoint
    assert checkpoint is not None
    return checkpoint


def load(directory: Path) -> tuple[LocalPolicy, TrainerState]:
    policy = build_policy(AutoModelForCausalLM.from_pretrained(directory))
    return policy, load_checkpoint(found(str(directory), directory.parent), policy)


def test_a_16_bit_policy_goes_on_from_its_fp32_copies(tmp_path, state, tokenizer):
    helpers.tiny_model(vocab_size=len(tokenizer)).save_pretrained(tmp_path / "start")
    policy = build_policy(AutoModelForCausalLM.from_pretrained(tmp_path / "start", dtype=torch.bfloat16))
    policy.update(ROWS)
    directory = save(tmp_path, policy, state, tokenizer)
    loaded = build_policy(AutoModelForCausalLM.from_pretrained(directory, dtype=torch.bfloat16))
    load_checkpoint(found(str(directory), tmp_path), loaded)
    for its in (policy, loaded):
        its.update(ROWS)
    for name, master in policy.optimizer.masters.items():
        assert master.dtype == torch.float32
        assert torch.equal(master, loaded.optimizer.masters[name])
        assert not torch.equal(master, master.bfloat16().float())


def test_the_state_of_the_loop_comes_back_exactly(tmp_path, policy, state, tokenizer):
    assert state.pending
    assert state.pending[0].trunks[0].influence
    _, loaded = load(save(tmp_path, policy, state, tokenizer))
    assert loaded == state
    assert hash(loaded.pending) == hash(state.pending)  # tuples all the way down, no lists


def test_rewards_of_any_size_and_none_come_back_and_a_checkpoint_without_functions_is_read(state):
    group = state.pending[0]
    trunks = (
        replace(group.trunks[0], reward=None, verdict="not_judged", rewards={"mine": None, "other": -2.5}),
        replace(group.trunks[1], reward=-7.25, rewards={"mine": 3.0, "other": -2.5}),
        *group.trunks[2:],
    )
    state = replace(state, pending=(replace(group, trunks=trunks), *state.pending[1:]))
    fields = json.loads(json.dumps(state_to_json(state)))
    assert state_from_json(fields) == state
    for one in fields["pending"]:
        for trunk in one["trunks"]:
            del trunk["rewards"]  # written before reward functions
    old = state_from_json(fields)
    assert old.pending[0].trunks[1] == replace(trunks[1], rewards={})


def test_problems_carried_over_come_back_exactly(tmp_path, policy, carrying, tokenizer):
    trunks = [trunk for group in carrying.carried for trunk in group.trunks]
    assert {type(trunk) for trunk in trunks} == {Trunk, SampledTokens}
    _, loaded = load(save_checkpoint(tmp_path, carrying, policy, tokenizer, keep=RetentionPolicy(1)))
    assert loaded == carrying
    assert hash(loaded.carried) == hash(carrying.carried)
    assert [type(trunk) for group in loaded.carried for trunk in group.trunks] == list(map(type, trunks))


def test_weights_and_moments_come_back_exactly(tmp_path, policy, state, tokenizer):
    loaded, _ = load(save(tmp_path, policy, state, tokenizer))
    for (name, a), (_, b) in zip(policy.model.named_parameters(), loaded.model.named_parameters(), strict=True):
        assert torch.equal(a, b), name
    saved, found = policy.optimizer.tensors(), loaded.optimizer.tensors()
    assert saved.keys() == found.keys()
    assert len(saved) == 3 * len(list(policy.model.parameters()))  # two moments and a step count each
    assert all(torch.equal(saved[name], found[name]) for name in saved)


def test_the_next_update_is_the_one_of_the_policy_that_never_stopped(tmp_path, policy, state, tokenizer):
    """Weights, moments, their step count and the place in the warm-up all show here."""
    loaded, _ = load(save(tmp_path, policy, state, tokenizer))
    assert loaded.update(ROWS) == policy.update(ROWS)
    for a, b in zip(policy.model.parameters(), loaded.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_policy_that_was_never_updated_can_be_saved(tmp_path, state, tokenizer):
    policy = build_policy(helpers.tiny_model(vocab_size=len(tokenizer)))
    loaded, _ = load(save(tmp_path, policy, state, tokenizer))
    assert loaded.optimizer.tensors() == {}
    assert loaded.optimizer.updates == 0


def test_a_checkpoint_is_a_hugging_face_model_directory(tmp_path, policy, state, tokenizer):
    directory = save(tmp_path, policy, state, tokenizer)
    model = AutoModelForCausalLM.from_pretrained(directory)
    ids = AutoTokenizer.from_pretrained(directory)("A=5; B+3?", return_tensors="pt")["input_ids"]
    assert torch.equal(ids, tokenizer("A=5; B+3?", return_tensors="pt")["input_ids"])
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, policy.model.eval()(ids).logits, atol=1e-6, rtol=0)


def test_nothing_in_a_checkpoint_is_pickled(tmp_path, policy, state, tokenizer):
    files = [path for path in save(tmp_path, policy, state, tokenizer).rglob("*") if path.is_file()]
    assert {path.suffix for path in files} <= {".json", ".safetensors", ".txt", ".jinja"}
    for path in files:
        head = path.read_bytes()[:2]
        assert head[:1] != b"\x80", f"{path.name} looks like a pickle"
        assert head != b"PK", f"{path.name} is an archive, as torch.save writes them"


# --- which checkpoint -------------------------------------------------------------------------------------------------


def test_only_the_newest_are_kept(tmp_path, policy, state, tokenizer):
    for step in (2, 4, 10, 12):
        save(tmp_path, policy, state, tokenizer, step=step, keep_last=2)
    assert [checkpoint.step for checkpoint in list_checkpoints(tmp_path)] == [10, 12]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000010", "step-000012"]


def test_auto_is_the_newest_and_never_is_none(tmp_path, policy, state, tokenizer):
    assert find_checkpoint("auto", tmp_path).checkpoint is None
    assert find_checkpoint("auto", tmp_path / "not there").checkpoint is None
    for step in (9, 10):
        save(tmp_path, policy, state, tokenizer, step=step)
    newest = found("auto", tmp_path)
    assert (newest.step, newest.directory) == (10, tmp_path / "step-000010")
    assert find_checkpoint("never", tmp_path).checkpoint is None


def test_what_was_not_finished_is_no_checkpoint(tmp_path, policy, state, tokenizer):
    """A kill during a save leaves the aside directory; it is never taken for a checkpoint, and is written over."""
    whole = save(tmp_path, policy, state, tokenizer, step=2)
    aside = tmp_path / ".step-000004.partial"
    whole.rename(aside)
    (tmp_path / "step-notes").mkdir()
    assert list_checkpoints(tmp_path) == []
    assert find_checkpoint("auto", tmp_path).checkpoint is None
    (aside / "left-over").touch()
    directory = save(tmp_path, policy, state, tokenizer, step=4)
    assert not aside.exists()
    assert not (directory / "left-over").exists()


def test_saving_a_step_again_replaces_it(tmp_path, policy, state, tokenizer):
    save(tmp_path, policy, state, tokenizer, step=2)
    policy.update(ROWS)
    loaded, _ = load(save(tmp_path, policy, state, tokenizer, step=2))
    assert loaded.optimizer.updates == 3


def test_a_run_resumed_from_an_earlier_checkpoint_leaves_the_later_ones_behind(tmp_path, policy, state, tokenizer):
    """resume=.../step-000002: later checkpoints belong to a course that the run has left, as its metrics do.

    They must not push the new one out, and resume=auto must not go back to them.
    """
    for step in (2, 4, 6):
        save(tmp_path, policy, state, tokenizer, step=step, keep_last=3)
    directory = save(tmp_path, policy, state, tokenizer, step=3, keep_last=2)
    assert directory.is_dir()
    assert found("auto", tmp_path).step == 3


def test_the_best_are_kept_beside_the_newest(tmp_path, policy, state, tokenizer):
    accuracies = {2: 0.5, 4: 0.9, 6: None, 8: 0.9, 10: 0.7, 12: 0.6, 14: None}
    for step, accuracy in accuracies.items():
        keep = RetentionPolicy(last=2, best=2)
        save_checkpoint(tmp_path, replace(state, step=step), policy, tokenizer, keep=keep, accuracy=accuracy)
    assert [checkpoint.step for checkpoint in list_checkpoints(tmp_path)] == [4, 8, 12, 14]
    save_checkpoint(
        tmp_path, replace(state, step=16), policy, tokenizer, keep=RetentionPolicy(last=1, best=1), accuracy=0.1
    )
    assert [checkpoint.step for checkpoint in list_checkpoints(tmp_path)] == [8, 16]  # of equal ones the newer


# --- what a kill or a full disk leaves --------------------------------------------------------------------------------


@pytest.mark.parametrize("moment", ["save_file", "write_manifest", "os.rename", "_remove_others"])
def test_a_save_that_is_cut_off_leaves_a_checkpoint_to_resume_from(
    tmp_path, policy, state, tokenizer, monkeypatch, moment
):
    """A kill at any point of a save: here an exception stands for it, and nothing behind that point is done."""
    save(tmp_path, policy, state, tokenizer, step=2, keep_last=1)

    def killed(*arguments: object, **settings: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(f"attnrl.local.checkpoint.{moment}", killed)
        with pytest.raises(KeyboardInterrupt):
            save(tmp_path, policy, state, tokenizer, step=4, keep_last=1)
    assert found("auto", tmp_path).step == (4 if moment == "_remove_others" else 2)
    save(tmp_path, policy, state, tokenizer, step=4, keep_last=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000004"]


def test_a_full_disk_gets_its_room_back(tmp_path, policy, state, tokenizer, monkeypatch):
    save(tmp_path, policy, state, tokenizer, step=2)

    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("attnrl.local.checkpoint.save_file", full)
    with pytest.raises(OSError, match="No space left"):
        save(tmp_path, policy, state, tokenizer, step=4)
    assert [path.name for path in tmp_path.iterdir()] == ["step-000002"]


# --- damage -----------------------------------------------------------------------------------------------------------


def test_resuming_from_what_is_no_checkpoint_is_an_error_that_names_it(tmp_path, tiny_checkpoint):
    for directory in (tmp_path / "missing", tmp_path, tiny_checkpoint):
        with pytest.raises(UserError, match=str(directory)):
            find_checkpoint(str(directory), tmp_path)


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def no_object(path: Path) -> None:
    path.write_text("[1, 2]")


def without_pending(path: Path) -> None:
    document = json.loads(path.read_text())
    del document["trainer"]["pending"]
    path.write_text(json.dumps(document))


def impossible_steps(path: Path) -> None:
    document = json.loads(path.read_text())
    document["trainer"]["pending"][0]["trunks"][0]["steps"]["starts"] = [4, 2]
    path.write_text(json.dumps(document))


def absent(path: Path) -> None:
    path.unlink()


def one_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGED = [
    (STATE_FILE, cut_short, "has .* bytes"),
    (STATE_FILE, one_bit, "SHA-256"),
    (STATE_FILE, without_pending, "has .* bytes"),
    (OPTIMIZER_FILE, one_bit, "SHA-256"),
    (OPTIMIZER_FILE, absent, "is missing"),
    ("model.safetensors", one_bit, "SHA-256"),
    ("model.safetensors", cut_short, "has .* bytes"),
    ("config.json", absent, "is missing"),
    ("tokenizer.json", no_object, "has .* bytes"),
    (MANIFEST, absent, "is missing"),
    (MANIFEST, cut_short, "is not readable"),
    (MANIFEST, no_object, "is not readable"),
]


@pytest.mark.parametrize(("file", "damage", "message"), DAMAGED)
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_taken(
    tmp_path, policy, state, tokenizer, file, damage, message
):
    save(tmp_path, policy, state, tokenizer, step=2)
    newest = save(tmp_path, policy, state, tokenizer, step=4)
    damage(newest / file)
    result = find_checkpoint("auto", tmp_path)
    assert result.checkpoint is not None and result.checkpoint.step == 2
    (line,) = result.skipped
    assert re.search(f"{newest}: skipped, .*{file} .*{message}", line) and "\n" not in line
    with pytest.raises(UserError, match=f"resume={newest}"):
        find_checkpoint(str(newest), tmp_path)


def test_a_run_of_which_every_checkpoint_is_damaged_is_not_begun_anew(tmp_path, policy, state, tokenizer):
    for step in (2, 4):
        one_bit(save(tmp_path, policy, state, tokenizer, step=step) / OPTIMIZER_FILE)
    with pytest.raises(UserError, match=r"step-000004.*step-000002"):
        find_checkpoint("auto", tmp_path)


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        (STATE_FILE, cut_short),
        (STATE_FILE, no_object),
        (STATE_FILE, without_pending),
        (STATE_FILE, impossible_steps),
        (OPTIMIZER_FILE, cut_short),
        (OPTIMIZER_FILE, no_object),
        (OPTIMIZER_FILE, absent),
    ],
)
def test_a_damaged_file_is_named(tmp_path, policy, state, tokenizer, file, damage):
    directory = save(tmp_path, policy, state, tokenizer)
    checkpoint = found("auto", tmp_path)
    damage(directory / file)
    with pytest.raises(UserError, match=str(directory / file)) as error:
        load_checkpoint(checkpoint, policy)
    assert "\n" not in str(error.value)


# --- malformed, though the manifest fits ------------------------------------------------------------------------------


def field(*path: str | int, to: object) -> Callable[[Path], None]:
    """Puts a value at a place of the state; ``...`` takes away what is there."""

    def change(directory: Path) -> None:
        document: Any = json.loads((directory / STATE_FILE).read_text())
        *outer, last = path
        its = document
        for key in outer:
            its = its[key]
        if to is ...:
            del its[last]
        else:
            its[last] = to(its[last]) if callable(to) else to
        (directory / STATE_FILE).write_text(json.dumps(document))

    return change


def tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    """Changes the optimizer's tensors by name."""

    def rewrite(directory: Path) -> None:
        found = load_file(directory / OPTIMIZER_FILE)
        change(found)
        save_file(found, directory / OPTIMIZER_FILE)

    return rewrite


def manifest_of_step_3(directory: Path) -> None:
    path = directory / MANIFEST
    path.write_text(json.dumps({**json.loads(path.read_text()), "step": 3}))


def shorter(values: list[object]) -> list[object]:
    return values[:-1]


NORM = "model.norm.weight"
TRUNK = ("trainer", "pending", 0, "trunks", 0)
# What is malformed, and the tensor or the field that the message must name.
MALFORMED: dict[str, tuple[Callable[[Path], None], str]] = {
    "moment of another shape": (
        tensors(lambda its: its.update({f"{NORM}/exp_avg": torch.zeros(3)})),
        f"{NORM}/exp_avg is [3] of torch.float32, not [32]",
    ),
    "moment of another type": (
        tensors(lambda its: its.update({f"{NORM}/exp_avg": its[f"{NORM}/exp_avg"].half()})),
        f"{NORM}/exp_avg is [32] of torch.float16",
    ),
    "moment missing": (tensors(lambda its: its.pop(f"{NORM}/exp_avg_sq")), f"{NORM}/exp_avg_sq"),
    "moments of a weight missing": (
        tensors(lambda its: [its.pop(key) for key in list(its) if key.startswith(NORM)]),
        f"{NORM}/exp_avg",
    ),
    "moment of nothing": (tensors(lambda its: its.update(other=torch.zeros(1))), "other"),
    "moment that is no number": (tensors(lambda its: its[f"{NORM}/exp_avg"].fill_(float("nan"))), f"{NORM}/exp_avg"),
    "negative second moment": (tensors(lambda its: its[f"{NORM}/exp_avg_sq"].neg_()), f"{NORM}/exp_avg_sq"),
    "no moments at all": (tensors(dict.clear), "/exp_avg"),
    "moments before the first update": (field("updates", to=0), "/step"),
    "other number of updates": (field("updates", to=3), "optimizer step 2"),
    "updates in words": (field("updates", to="two"), "updates"),
    "updates negative": (field("updates", to=-1), "updates"),
    "packs of no tokens": (field("micro_batch_tokens", to=0), "micro_batch_tokens"),
    "data a list": (field("data", to=[["data.train", "0"]]), "data"),
    "fingerprint a number": (field("data", to={"data.train": 5}), "data"),
    "trainer a list": (field("trainer", to=[]), "trainer"),
    "step negative": (field("trainer", "step", to=-3), "step"),
    "step of another directory": (field("trainer", "step", to=3), "step 2"),
    "step of another manifest": (manifest_of_step_3, "manifest.json of step 3"),
    "position a text": (field("trainer", "position", to="7"), "position"),
    "position a yes": (field("trainer", "position", to=True), "position"),
    "position missing": (field("trainer", "position", to=...), "position"),
    "position without end": (field("trainer", "position", to=10**400), "position"),
    "problems that were not drawn": (field("trainer", "position", to=0), "position"),
    "pending a mapping": (field("trainer", "pending", to={}), "pending"),
    "a problem a list": (field("trainer", "pending", 1, to=[]), "pending"),
    "answer a number": (field("trainer", "pending", 0, "answers", to=[5]), "answers"),
    "no prompt": (field("trainer", "pending", 0, "prompt", to=[]), "prompt"),
    "no responses": (field("trainer", "pending", 0, "trunks", to=[]), "trunks"),
    "logprobs short": (field(*TRUNK, "logprobs", to=shorter), "logprobs"),
    "logprobs in words": (field(*TRUNK, "logprobs", 0, to="low"), "logprobs"),
    "entropy short": (field(*TRUNK, "entropy", to=shorter), "entropy"),
    "influence short": (field(*TRUNK, "influence", to=shorter), "influence"),
    "weights short": (field(*TRUNK, "advantage_weights", to=[1.0]), "advantage_weights"),
    "token a fraction": (field(*TRUNK, "tokens", 0, to=1.5), "tokens"),
    "token negative": (field(*TRUNK, "tokens", 0, to=-1), "tokens"),
    "token unknown": (field(*TRUNK, "tokens", 0, to=10**6), "1000000"),
    "steps of other tokens": (field(*TRUNK, "steps", "length", to=99), "steps"),
    "steps out of order": (field(*TRUNK, "steps", "starts", to=[1, 0]), "steps"),
    "reward of NaN": (field(*TRUNK, "reward", to=float("nan")), "reward"),
    "reward of a function of inf": (field(*TRUNK, "rewards", to={"mine": float("inf")}), "rewards.mine"),
    "reward as text": (field(*TRUNK, "reward", to="1"), "reward"),
    "verdict of ours": (field(*TRUNK, "verdict", to="fine"), "verdict"),
    "mean that is no number": (field("trainer", "solved_influence", "mean", to=float("nan")), "solved_influence"),
    "batch beyond its bounds": (field("trainer", "batch_size", "batch", to=1e6), "batch_size"),
    "batch without a target": (field("trainer", "batch_size", "target", to=...), "batch_size"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_checkpoint_is_named_where_it_is_malformed(tmp_path, policy, state, tokenizer, name):
    directory = save(tmp_path, policy, state, tokenizer)
    change, named = MALFORMED[name]
    change(directory)
    manifest = json.loads((directory / MANIFEST).read_text())
    notes = {key: value for key, value in manifest.items() if key not in {"files", "digest"}}
    (directory / MANIFEST).unlink()
    write_manifest(directory, notes)
    with pytest.raises(UserError) as error:
        load(directory)
    assert named in str(error.value)
    assert re.match(f"checkpoint file {directory}/(trainer_state.json|optimizer.safetensors): ", str(error.value))
    assert "\n" not in str(error.value) and len(str(error.value)) < 1000


def test_a_16_bit_policy_does_not_go_on_without_its_fp32_copies(tmp_path, state, tokenizer):
    policy = build_policy(helpers.tiny_model(vocab_size=len(tokenizer)).bfloat16())
    directory = save(tmp_path, policy, state, tokenizer)
    save_file({}, directory / OPTIMIZER_FILE)
    with pytest.raises(UserError, match=r"optimizer.safetensors.*/master"):
        load_checkpoint(Checkpoint(directory, 2), policy)


def test_a_state_without_its_numbers_is_a_state(tmp_path, policy, state, tokenizer):
    """Numbers that are none are the loop's to leave out, not the checkpoint's to refuse."""
    group = state.pending[0]
    odd = replace(group.trunks[0], logprobs=(float("-inf"),) * len(group.trunks[0].tokens))
    state = replace(state, pending=(replace(group, trunks=(odd, *group.trunks[1:])), *state.pending[1:]))
    assert load(save(tmp_path, policy, state, tokenizer))[1] == state
