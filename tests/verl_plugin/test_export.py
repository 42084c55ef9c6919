"""``attnrl export`` without verl: checkpoints that FSDP2's workers really wrote, put together, compared and resumed."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import helpers
import pytest
import tiny_runs
import torch
from command_line import Attnrl, tree
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase, dynamic_module_utils

from attnrl.config.load import load_config
from attnrl.config.schema import TrainConfig
from attnrl.local.checkpoint import OPTIMIZER_FILE, STATE_FILE, Checkpoint, find_checkpoint, load_checkpoint
from attnrl.local.loading import build_policy
from attnrl.runs.prepare import prepare
from attnrl.types import TrainingRow
from attnrl.verl import export as exporting

MOMENTS = {"step", "exp_avg", "exp_avg_sq"}
ROW = TrainingRow((3, 4, 5), (6, 7, 8), (-3.0, -2.5, -4.0), (-3.0, -2.5, -4.0), (1.0, -0.5, 0.3))

# By name: a model to start from, how many workers (or copies and workers), AdamW steps, precision.
CASES: dict[str, tuple[str, list[int], int, str]] = {
    "one": ("run", [1], 0, "float32"),
    "two": ("run", [2], 0, "float32"),
    "copies": ("run", [2, 2], 0, "float32"),
    "uneven": ("small", [3], 2, "float32"),
    "half": ("run", [2], 1, "bfloat16"),
}


ACTOR = "checkpoints/global_step_2/actor"


@pytest.fixture(scope="module")
def checkpoints(
    whole: Path, tokenizer: PreTrainedTokenizerBase, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """Checkpoints of verl's, by name; not to be written to.

    Those that start from ``run`` hold what the local engine's checkpoint of step 2 does, in pieces.
    """
    root = tmp_path_factory.mktemp("verl-run")
    # Nothing tied; with three workers, the last has no part of the keys' and values' weights.
    shape = dict(hidden_size=8, num_attention_heads=4, num_key_value_heads=1, intermediate_size=10)
    small = helpers.tiny_model(vocab_size=len(tokenizer), tie_word_embeddings=False, seed=3, **shape)
    small.save_pretrained(root / "small")
    tokenizer.save_pretrained(root / "small")
    local = whole / "checkpoints" / "step-000002"
    starts = {"run": local, "small": root / "small"}
    found = {name: root / name / "global_step_2" for name in CASES}
    cases = [
        {"start": str(starts[start]), "mesh": mesh, "steps": steps, "dtype": dtype, "output": str(found[name])}
        for name, (start, mesh, steps, dtype) in CASES.items()
    ]
    script = Path(__file__).with_name("write_checkpoints.py")
    subprocess.run(
        [sys.executable, str(script), json.dumps(cases)], check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    state = json.loads((local / STATE_FILE).read_text())["trainer"]
    for directory in found.values():
        (directory / exporting.STATE_FILE).write_text(json.dumps(state))
    return found


@pytest.fixture
def exported(
    checkpoints: dict[str, Path], tmp_path: Path, attnrl: Attnrl
) -> Callable[[str], tuple[Path, dict[str, torch.Tensor]]]:
    """Exports the checkpoint of a name; gives the directory, and what is true of it."""

    def export(name: str) -> tuple[Path, dict[str, torch.Tensor]]:
        outcome = attnrl("export", str(checkpoints[name]), str(tmp_path / name))
        assert (outcome.code, outcome.err) == (0, "")
        return tmp_path / name, load_file(checkpoints[name] / "truth.safetensors")

    return export


@pytest.fixture
def damaged(checkpoints: dict[str, Path], tmp_path: Path) -> Path:
    """A run of two workers, whose checkpoint may be written to."""
    run = tmp_path / "run"
    shutil.copytree(checkpoints["two"], run / "checkpoints" / "global_step_2")
    (run / "checkpoints" / exporting.NEWEST).write_text("2")
    return run


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(a[name].dtype == b[name].dtype and torch.equal(a[name], b[name]) for name in a)


# --- what comes out ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_what_was_in_pieces_is_whole_again_bit_by_bit(exported, name):
    output, truth = exported(name)
    dtype = getattr(torch, CASES[name][3])
    weights = load_file(output / "model.safetensors")
    assert same(weights, {key: tensor for key, tensor in truth.items() if "/" not in key})
    assert {tensor.dtype for tensor in weights.values()} == {dtype}
    optimizer = load_file(output / OPTIMIZER_FILE)
    moments = {key: tensor.float() for key, tensor in truth.items() if "/" in key}
    assert {key.rpartition("/")[2] for key in moments} == MOMENTS
    masters = {f"{key}/master": tensor for key, tensor in weights.items() if dtype == torch.float32}
    assert same(optimizer, moments | masters)
    assert find_checkpoint(str(output), output).checkpoint == Checkpoint(output, 2)  # sealed, and nothing pickled
    model = AutoModelForCausalLM.from_pretrained(output)
    assert model.dtype == dtype
    assert all(torch.equal(weight, weights[key]) for key, weight in model.named_parameters())


def test_some_worker_had_no_part_of_some_weight(checkpoints):
    """What "uneven" is there for."""
    shapes = {key: tensor.shape for key, tensor in load_file(checkpoints["uneven"] / "truth.safetensors").items()}
    assert any(shape and shape[0] < 3 for shape in shapes.values())
    assert any(shape and shape[0] > 3 and shape[0] % 3 for shape in shapes.values())
    assert "lm_head.weight" in shapes


@pytest.mark.parametrize("name", ["one", "two", "copies"])
def test_it_is_the_checkpoint_that_the_local_engine_would_have_written(exported, whole, name):
    output, _ = exported(name)
    local = whole / "checkpoints" / "step-000002"
    assert tiny_runs.weights(output) == tiny_runs.weights(local)
    moments = load_file(output / OPTIMIZER_FILE)
    assert same(
        {key: moments[key] for key in moments if not key.endswith("/master")}, load_file(local / OPTIMIZER_FILE)
    )
    ours, theirs = (json.loads((directory / STATE_FILE).read_text()) for directory in (output, local))
    assert ours["trainer"] == theirs["trainer"] and ours["trainer"]["pending"]
    assert ours["updates"] == theirs["updates"] > 0
    for file in ("config.json", "generation_config.json", "tokenizer.json"):
        assert json.loads((output / file).read_text()) == json.loads((local / file).read_text())


def test_a_run_that_goes_on_locally_is_the_run_that_was_never_elsewhere(exported, whole, tiny_checkpoint, tmp_path):
    output, _ = exported("two")
    tiny_runs.run(tiny_checkpoint, tmp_path / "new", f"resume={output}", steps=4)
    assert tiny_runs.read(tmp_path / "new") == tiny_runs.read(whole)[3:]
    ended, never_left = (root / "checkpoints" / "step-000004" for root in (tmp_path / "new", whole))
    assert tiny_runs.weights(ended) == tiny_runs.weights(never_left)


@pytest.mark.parametrize("name", ["two", "half"])
def test_a_16_bit_run_goes_on_from_the_very_weights(exported, tiny_checkpoint, tmp_path, name):
    output, truth = exported(name)
    settings = tiny_runs.settings(tiny_checkpoint, tmp_path / "new")
    changes = [*settings, f"resume={output}", "dtype=bfloat16", "loss.kl=0", "optimizer.micro_batch_tokens=777"]
    prepared = prepare(load_config(TrainConfig, "attnrl", changes))
    policy = build_policy(prepared.config, prepared.model, None)
    assert prepared.checkpoint is not None
    state = load_checkpoint(prepared.checkpoint, policy)
    assert (state.step, policy.micro_batch_tokens) == (2, 777)
    assert policy.optimizer.updates == truth["model.norm.weight/step"]
    assert same({key: master.detach() for key, master in policy.optimizer.masters.items()},
                {key: tensor.float() for key, tensor in truth.items() if "/" not in key})  # fmt: skip
    assert policy.update([ROW])["nonfinite/mini_batches"] == 0
    assert policy.optimizer.updates == truth["model.norm.weight/step"] + 1


def test_the_newest_checkpoint_of_a_run_is_taken(damaged, attnrl, tmp_path):
    shutil.copytree(damaged / "checkpoints" / "global_step_2", damaged / "checkpoints" / "global_step_10")
    for directory, step in ((damaged, 2), (damaged / "checkpoints", 2), (damaged / "checkpoints/global_step_10", 10)):
        output = tmp_path / "to" / directory.name
        outcome = attnrl("export", str(directory), str(output))
        assert outcome.code == 0
        source = damaged / "checkpoints" / f"global_step_{step}"
        assert f"Wrote {source} to {output}: training step 2, optimizer step " in outcome.out
        assert f"attnrl train RECIPE resume={output} output_dir=NEW" in outcome.out
        assert "Reading model_world_size_2_rank_1.pt (" in outcome.out


@pytest.mark.parametrize("missing", [exporting.STATE_FILE, "actor/optim_world_size_2_rank_0.pt"])
def test_of_another_run_there_is_the_model_only(damaged, attnrl, tmp_path, whole, missing):
    for file in (damaged / "checkpoints/global_step_2").glob(missing.replace("rank_0", "rank_*")):
        file.unlink()
    output = tmp_path / "out"
    outcome = attnrl("export", str(damaged), str(output))
    assert (outcome.code, outcome.err) == (0, "")
    assert missing in outcome.out and f"model={output}\n" in outcome.out
    assert tiny_runs.weights(output) == tiny_runs.weights(whole / "checkpoints/step-000002")
    assert not any((output / name).exists() for name in (STATE_FILE, OPTIMIZER_FILE))
    resumed = attnrl("train", "attnrl", f"resume={output}")
    assert resumed.code == 2 and f"resume={output}: " in resumed.err and STATE_FILE in resumed.err
    evaluation = ["--task", "ledger", "--problems", "2", "--samples", "1", "--max-new-tokens", "8"]
    assert attnrl("eval", str(output), *evaluation).code == 0


def test_a_weight_that_never_had_a_gradient_has_no_moments(damaged, attnrl, tmp_path, tiny_checkpoint):
    content("optim", lambda its: its["state"].pop(3))(damaged / ACTOR)
    output = tmp_path / "out"
    assert attnrl("export", str(damaged), str(output)).code == 0
    optimizer = load_file(output / OPTIMIZER_FILE)
    names = {key.rpartition("/")[0] for key in optimizer}
    assert [name for name in names if f"{name}/exp_avg" not in optimizer] == ["model.layers.0.self_attn.v_proj.weight"]
    tiny_runs.run(tiny_checkpoint, tmp_path / "new", f"resume={output}", steps=3)
    assert tiny_runs.read(tmp_path / "new")[-1]["step"] == 3


def test_what_ends_a_response_is_kept_and_what_verl_attended_with_is_not(damaged, attnrl, tmp_path):
    document(damaged / ACTOR / "huggingface/generation_config.json", eos_token_id=[1, 5])
    document(damaged / ACTOR / CONFIG, attn_implementation="flash_attention_2")
    assert attnrl("export", str(damaged), str(tmp_path / "out")).code == 0
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert model.generation_config.eos_token_id == [1, 5]
    assert model.config._attn_implementation == "sdpa"


# --- files from elsewhere ---------------------------------------------------------------------------------------------


def repack(file: Path, change: Callable[[bytes], bytes]) -> None:
    """Change the pickle within a file of torch.save's."""
    with zipfile.ZipFile(file) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in entries.items():
            archive.writestr(name, change(content) if name.endswith("/data.pkl") else content)


def replacing(*pairs: tuple[bytes, bytes]) -> Callable[[bytes], bytes]:
    def change(content: bytes) -> bytes:
        for old, new in pairs:
            assert old in content
            content = content.replace(old, new)
        return content

    return change


def text(value: str) -> bytes:
    """A string as it is in a pickle."""
    return b"X" + len(value).to_bytes(4, "little") + value.encode()


def test_neither_a_gpu_nor_the_release_of_torch_that_wrote_it_is_needed(damaged, attnrl, tmp_path, whole):
    for file in (damaged / ACTOR).glob("*_rank_*.pt"):
        repack(
            file,
            replacing(
                (text("cpu"), text("cuda:1")),
                (
                    b"ctorch.distributed._mesh_layout\n_MeshLayout\n",
                    b"ctorch.distributed.layouts\nMeshOfAnotherRelease\n",
                ),
            ),
        )
    outcome = attnrl("export", str(damaged), str(tmp_path / "out"))
    assert (outcome.code, outcome.err) == (0, "")
    assert tiny_runs.weights(tmp_path / "out") == tiny_runs.weights(whole / "checkpoints/step-000002")


class Trap:
    """Unpickling it makes a file."""

    def __init__(self, sprung: Path) -> None:
        self.sprung = sprung

    def __reduce__(self) -> tuple[Callable[[str, int], int], tuple[str, int]]:
        return os.open, (str(self.sprung), os.O_CREAT)


@pytest.mark.parametrize("file", ["model_world_size_2_rank_1.pt", "optim_world_size_2_rank_0.pt"])
@pytest.mark.parametrize("name", ["posix.open", "another.library.function"])
def test_nothing_in_a_file_runs(damaged, attnrl, tmp_path, file, name):
    path, sprung = damaged / ACTOR / file, tmp_path / "sprung"
    torch.save({"weight": Trap(sprung)}, path)
    module, _, function = name.rpartition(".")
    repack(path, replacing((b"cposix\nopen\n", f"c{module}\n{function}\n".encode())))
    with torch.serialization.safe_globals([(os.open, "another.library.function")]):  # as that may have done
        before = torch.serialization.get_safe_globals()
        outcome = attnrl("export", str(damaged), str(tmp_path / "out"))
        assert set(torch.serialization.get_safe_globals()) == set(before)
        assert outcome.code == 2 and outcome.err.count("\n") == 1
        assert f"checkpoint file {path}: " in outcome.err and name in outcome.err
        assert not sprung.exists() and not (tmp_path / "out").exists()
        if name == "another.library.function":
            torch.load(path, weights_only=True)
            assert sprung.exists()  # it was a trap


MARKED = """
from transformers import LlamaConfig, LlamaForCausalLM
open({sprung!r}, "w")
class MarkedConfig(LlamaConfig):
    model_type = "marked_exported"
class MarkedForCausalLM(LlamaForCausalLM):
    config_class = MarkedConfig
"""


def test_code_of_a_model_runs_only_when_it_is_trusted(damaged, attnrl, tmp_path, monkeypatch):
    # Where transformers keeps the code that it has been given; not in the home of who runs the tests.
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    huggingface, sprung, output = damaged / ACTOR / "huggingface", tmp_path / "sprung", tmp_path / "out"
    (huggingface / "marked.py").write_text(MARKED.format(sprung=str(sprung)))
    classes = {"AutoConfig": "marked.MarkedConfig", "AutoModelForCausalLM": "marked.MarkedForCausalLM"}
    document(huggingface / "config.json", model_type="marked_exported", auto_map=classes)
    outcome = attnrl("export", str(damaged), str(output))
    assert outcome.code == 2 and outcome.err.count("\n") == 1
    assert f"model {huggingface}: " in outcome.err and "--trust-remote-code" in outcome.err
    assert not sprung.exists() and not output.exists()
    assert attnrl("export", str(damaged), str(output), "--trust-remote-code").code == 0
    assert sprung.exists() and (output / "marked.py").is_file()
    assert type(AutoModelForCausalLM.from_pretrained(output, trust_remote_code=True)).__name__ == "MarkedForCausalLM"


# --- what is refused --------------------------------------------------------------------------------------------------

Damage = Callable[[Path], object]


def document(file: Path, **changes: object) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def absent(file: Path) -> None:
    file.unlink()


def cut_short(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1000])


def one_bit(file: Path) -> None:
    """In what is said of the last weight: no weight is so small that a bit of it does not count."""
    changed = bytearray(file.read_bytes())
    changed[len(changed) // 2] ^= 1
    file.write_bytes(changed)


def at(name: str, damage: Damage) -> Damage:
    return lambda actor: damage(actor / name)


def setting(name: str, **changes: object) -> Damage:
    return lambda actor: document(actor / name, **changes)


def text_of(name: str, written: str) -> Damage:
    return lambda actor: (actor / name).write_text(written)


def without(pattern: str) -> Damage:
    return lambda actor: [file.unlink() for file in actor.glob(pattern)]


def content(kind: str, change: Callable[[dict[Any, Any]], object], ranks: tuple[int, ...] = (0, 1)) -> Damage:
    """Change what is in files of torch.save's, here where nothing of it is a stranger's."""

    def damage(actor: Path) -> None:
        import torch.distributed.tensor

        for rank in ranks:
            file = actor / f"{kind}_world_size_2_rank_{rank}.pt"
            loaded = torch.load(file, weights_only=False)
            change(loaded)
            torch.save(loaded, file)

    return damage


def strided(actor: Path) -> None:
    change = replacing((b"placement_types\nShard\n", b"placement_types\n_StridedShard\n"))
    repack(actor / "model_world_size_2_rank_0.pt", change)


def alone(actor: Path) -> None:
    (actor / "model_world_size_2_rank_0.pt").rename(actor / "model_world_size_1_rank_0.pt")
    document(actor / "fsdp_config.json", world_size=1)


def same_twice(actor: Path) -> None:
    shutil.copy(actor / "model_world_size_2_rank_0.pt", actor / "model_world_size_2_rank_1.pt")


def other_numbers(its: dict[Any, Any]) -> None:
    states = its["state"]
    states[1], states[2] = states[2], states[1]


def untie(its: dict[Any, Any]) -> None:
    its["lm_head.weight"]._local_tensor = its["lm_head.weight"]._local_tensor * 2


MODEL, OPTIM = "model_world_size_2_rank_", "optim_world_size_2_rank_"
CONFIG, STATE = "huggingface/config.json", "../attnrl_state.json"
K_PROJ, GATE = "model.layers.0.self_attn.k_proj.weight", "model.layers.0.mlp.gate_proj.weight"
# Damage to the checkpoint's "actor" directory, the file that the message names, and what else the message names.
REFUSED: dict[str, tuple[Any, ...]] = {
    "a rank's weights are missing": (at(f"{MODEL}1.pt", absent), f"{MODEL}1.pt"),
    "a rank's moments are missing": (at(f"{OPTIM}1.pt", absent), f"{OPTIM}1.pt"),
    "weights cut short": (at(f"{MODEL}1.pt", cut_short), f"{MODEL}1.pt"),
    "moments cut short": (at(f"{OPTIM}0.pt", cut_short), f"{OPTIM}0.pt"),
    "one bit of the weights": (at(f"{MODEL}0.pt", one_bit), f"{MODEL}0.pt"),
    "one bit of the moments": (at(f"{OPTIM}1.pt", one_bit), f"{OPTIM}1.pt"),
    "no mapping": (at(f"{MODEL}0.pt", lambda file: torch.save([1], file)), f"{MODEL}0.pt"),
    "nothing": (at(f"{MODEL}0.pt", lambda file: torch.save({}, file)), f"{MODEL}0.pt", "model.embed_tokens.weight"),
    "one weight less": (content("model", lambda its: its.pop(K_PROJ), (1,)), f"{MODEL}1.pt", K_PROJ),
    "one weight more": (content("model", lambda its: its.update(odd=torch.ones(1))), f"{MODEL}0.pt", " odd "),
    "a weight without a name": (content("model", lambda its: its.update({7: torch.ones(1)})), f"{MODEL}0.pt", " 7 "),
    "a number for a weight": (
        content("model", lambda its: its.update({K_PROJ: 1}), (0,)),
        f"{MODEL}0.pt",
        K_PROJ,
        "int",
    ),
    "a weight without values": (
        content("model", lambda its: its.update({K_PROJ: torch.ones(16, 32, device="meta")})),
        f"{MODEL}0.pt",
        K_PROJ,
        "meta",
    ),
    "an adapter's weights": (
        content("model", lambda its: its.update({"q_proj.lora_A": torch.ones(1)})),
        f"{MODEL}0.pt",
        "LoRA",
        "q_proj.lora_A",
    ),
    "ranks that differ": (content("model", lambda its: its.update(odd=torch.rand(9))), f"{MODEL}0.pt", "odd"),
    "the same piece twice": (same_twice, f"{MODEL}0.pt", "model.embed_tokens.weight", "[31, 32]"),
    "pieces cut along more than one axis": (strided, f"{MODEL}0.pt", "model.embed_tokens.weight", "_StridedShard"),
    "more workers than files": (setting("fsdp_config.json", world_size=3), "model_world_size_3_rank_0.pt"),
    "fewer workers than pieces": (alone, "model_world_size_1_rank_0.pt", "model.embed_tokens.weight", "[31, 32]"),
    "no workers": (setting("fsdp_config.json", world_size=0), "fsdp_config.json", "world_size is 0"),
    "not of FSDP": (at("fsdp_config.json", absent), "fsdp_config.json", "FSDP2"),
    "no json": (text_of("fsdp_config.json", "{"), "fsdp_config.json"),
    "FSDP1": (setting("fsdp_config.json", FSDP_version=1), "fsdp_config.json", "FSDP1"),
    "LoRA": (text_of("lora_train_meta.json", "{}"), "", "LoRA", "lora_train_meta.json"),
    "no weights": (without("model_*"), "", "model_world_size_2_rank_0.pt"),
    "no config": (at(CONFIG, absent), "huggingface"),
    "no tokenizer": (without("huggingface/token*"), "huggingface", "tokenizer"),
    "an attention from a hub": (setting(CONFIG, attn_implementation="a/b"), "huggingface", "config.json"),
    "another shape": (setting(CONFIG, intermediate_size=40), f"{MODEL}0.pt", GATE, "[48, 32]", "[40, 32]"),
    "more layers": (setting(CONFIG, num_hidden_layers=3), f"{MODEL}0.pt", "model.layers.2.self_attn.q_proj.weight"),
    "tied weights that differ": (
        content("model", untie),
        f"{MODEL}0.pt",
        "lm_head.weight",
        "model.embed_tokens.weight",
    ),
    "no state": (text_of("../attnrl_state.json", "{"), STATE),
    "a part of a state": (text_of("../attnrl_state.json", '{"step": 2}'), STATE, "position"),
    "no parameters": (content("optim", lambda its: its.pop("param_groups")), f"{OPTIM}0.pt", "param_groups"),
    "two groups": (content("optim", lambda its: its["param_groups"].append({})), f"{OPTIM}0.pt"),
    "fewer parameters": (
        content("optim", lambda its: its["param_groups"][0]["params"].pop()),
        f"{OPTIM}0.pt",
        "19",
        "20",
    ),
    "moments of another parameter": (
        content("optim", other_numbers),
        f"{OPTIM}0.pt",
        "exp_avg of model.layers.0.self_attn.q_proj.weight",
        "[16, 32]",
        "[32, 32]",
    ),
    "another optimizer": (
        content("optim", lambda its: its["state"][0].update(momentum=1)),
        f"{OPTIM}0.pt",
        "model.embed_tokens.weight",
        "momentum",
    ),
    "moments that a rank has not": (
        content("optim", lambda its: its["state"].pop(3), (1,)),
        f"{OPTIM}1.pt",
        "state/3/exp_avg",
    ),
    "infinitely many steps": (
        content("optim", lambda its: its["state"][0]["step"].fill_(float("inf"))),
        f"{OPTIM}0.pt",
        "infinity",
    ),
}


@pytest.mark.parametrize("fault", REFUSED)
def test_what_cannot_be_exported_is_refused_in_a_line_that_names_it(damaged, attnrl, tmp_path, fault):
    damage, file, *named = REFUSED[fault]
    damage(damaged / ACTOR)
    before = tree(tmp_path)
    outcome = attnrl("export", str(damaged), str(tmp_path / "new" / "out"))
    path = os.path.normpath(damaged / ACTOR / file)
    assert outcome.code == 2
    assert outcome.err.startswith("attnrl: ") and outcome.err.count("\n") == 1
    assert f" {path}:" in outcome.err and all(part in outcome.err for part in named), outcome.err
    assert tree(tmp_path) == before


@pytest.mark.parametrize("says", ["7", "../global_step_2", ""])
def test_a_run_whose_newest_checkpoint_is_not_there(damaged, attnrl, tmp_path, says):
    (damaged / "checkpoints" / exporting.NEWEST).write_text(says)
    outcome = attnrl("export", str(damaged), str(tmp_path / "out"))
    assert outcome.code == 2 and f"checkpoint {damaged / 'checkpoints'}: " in outcome.err
    assert exporting.NEWEST in outcome.err and repr(says) in outcome.err


def test_what_is_no_run_and_what_is_there_already(damaged, attnrl, tmp_path):
    (tmp_path / "empty").mkdir()
    for directory in (tmp_path / "empty", damaged / ACTOR):
        outcome = attnrl("export", str(directory), str(tmp_path / "out"))
        assert (outcome.code, outcome.err.count("\n")) == (2, 1)
        assert f"checkpoint {directory}: " in outcome.err and exporting.NEWEST in outcome.err
    (tmp_path / "out").mkdir()
    outcome = attnrl("export", str(damaged), str(tmp_path / "out"))
    assert (outcome.code, outcome.err.count("\n")) == (2, 1) and f"output {tmp_path / 'out'}: " in outcome.err
    assert list((tmp_path / "out").iterdir()) == []


def test_a_full_disk_leaves_nothing(damaged, attnrl, tmp_path, monkeypatch):
    def full(path: Path, tensors: object) -> None:
        path.write_bytes(b"a part")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(exporting, "write_float32", full)
    before = tree(tmp_path)
    outcome = attnrl("export", str(damaged), str(tmp_path / "out"))
    assert outcome.code == 1 and outcome.err.count("\n") == 1
    assert f"output {tmp_path / 'out'}: " in outcome.err and "No space left on device" in outcome.err
    assert tree(tmp_path) == before


def test_an_output_that_somebody_makes_meanwhile_is_left_alone(damaged, attnrl, tmp_path, monkeypatch):
    def meanwhile(path: Path, tensors: object) -> None:
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "theirs").touch()

    monkeypatch.setattr(exporting, "write_float32", meanwhile)
    outcome = attnrl("export", str(damaged), str(tmp_path / "out"))
    assert outcome.code == 1 and "cannot be written" in outcome.err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["theirs"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "run"]
