"""What a model may be called: a shipped name, a directory, ``~``, a run, an adapter, a model of the Hub."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from command_line import EVAL, Attnrl, Outcome, train
from fake_hub import COMMIT, OLDER, cache, serve
from helpers import tiny_model
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

NAME = "maker/tiny-math"
DEAD = "http://127.0.0.1:9"  # nothing listens on the port "discard"
EVALUATE = [*EVAL[2:], "--task", "ledger"]


@pytest.fixture(autouse=True)
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and no network."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    set_endpoint(monkeypatch, DEAD)
    return tmp_path / "hub"


def set_endpoint(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", address)
    template = f"{address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


def refused(outcome: Outcome, *named: str) -> None:
    assert outcome.code == 2, outcome
    assert len(outcome.err.splitlines()) == 1, outcome.err
    for text in named:
        assert text in outcome.err


def model_line(outcome: Outcome) -> str:
    assert outcome.code == 0, outcome.err
    return next(line for line in outcome.out.splitlines() if line.startswith("model  "))


def dry_run(attnrl: Attnrl, model: object, *changes: str) -> Outcome:
    return attnrl(*train(f"model={model}", *changes, "--dry-run"))


def test_a_tilde_is_the_home_directory(
    attnrl: Attnrl, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    shutil.copytree(tiny_checkpoint, tmp_path / "home" / "mine")
    assert str(tmp_path / "home" / "mine") in model_line(dry_run(attnrl, "~/mine", "output_dir=~/out"))
    assert attnrl("eval", "~/mine", *EVALUATE, "--output=~/evals").code == 0
    assert json.loads((tmp_path / "home" / "evals" / "results.json").read_text())["models"]["~/mine"][
        "directory"
    ] == str(tmp_path / "home" / "mine")
    assert attnrl(*train("model=~/mine", "output_dir=~/out", "steps=1", "eval.every=0")).code == 0
    checkpoint = tmp_path / "home" / "out" / "checkpoints" / "step-000001"
    assert checkpoint.is_dir()
    resumed = dry_run(attnrl, "~/mine", "output_dir=~/new", f"resume=~/out/checkpoints/{checkpoint.name}")
    assert f"resumes     {checkpoint}" in resumed.out
    rows = tmp_path / "home" / "rows.jsonl"
    rows.write_text("".join(json.dumps({"prompt": f"A={n}?", "answer": str(n)}) + "\n" for n in range(4)))
    for data in ("data.train=~/rows.jsonl", "data.train=[~/rows.jsonl]"):
        assert dry_run(attnrl, "~/mine", "output_dir=o", "task=null", data).code == 0
    assert not (tmp_path / "~").exists()


@pytest.mark.parametrize("part", ["", "checkpoints"])
def test_a_run_directory_is_its_newest_undamaged_checkpoint(
    attnrl: Attnrl, whole: Path, tmp_path: Path, part: str
) -> None:
    shutil.copytree(whole, "done")
    outcome = dry_run(attnrl, f"done/{part}")
    assert model_line(outcome).split()[1] == "done/checkpoints/step-000004"
    assert "step 4" in outcome.out
    with (tmp_path / "done/checkpoints/step-000004/model.safetensors").open("r+b") as file:
        file.write(b"\0\0")
    outcome = dry_run(attnrl, f"done/{part}")
    assert model_line(outcome).split()[1] == "done/checkpoints/step-000002"
    assert "step-000004: skipped, damaged" in outcome.out
    outcome = attnrl("eval", f"done/{part}", *EVALUATE)
    assert outcome.code == 0
    assert "step 2" in outcome.out


def test_a_run_keeps_the_checkpoint_that_it_began_with(attnrl: Attnrl, whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, "base")
    shutil.move("base/checkpoints/step-000004", "later")
    assert attnrl(*train("model=base", "loss.kl=0.01", "steps=1")).code == 0
    record = json.loads(Path("out/model.json").read_text())
    assert record["directory"] == str(tmp_path / "base/checkpoints/step-000002")
    shutil.move("later", "base/checkpoints/step-000004")
    again = dry_run(attnrl, "base", "loss.kl=0.01")
    assert model_line(again).split()[1] == str(tmp_path / "base/checkpoints/step-000002")
    shutil.rmtree("base/checkpoints/step-000002")  # as another run's retention policy does
    refused(dry_run(attnrl, "base", "loss.kl=0.01"), "model base", "step-000002", "step-000004", record["weights"])


def test_other_weights_are_noted_where_they_are_no_reference(
    attnrl: Attnrl, tiny_checkpoint: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    shutil.copytree(tiny_checkpoint, "mine")
    assert attnrl(*train("model=mine", "loss.kl=0", "steps=1")).code == 0
    before = json.loads(Path("out/model.json").read_text())
    assert (before["model"], before["commit"]) == ("mine", None)
    tiny_model(vocab_size=len(tokenizer), seed=1).save_pretrained("mine")
    outcome = dry_run(attnrl, "mine", "loss.kl=0")
    assert outcome.code == 0
    assert before["weights"] in outcome.out
    # A new run, in place of a run without a checkpoint, begins with the weights of today.
    shutil.rmtree("out/checkpoints")
    assert before["weights"] not in dry_run(attnrl, "mine", "loss.kl=0").out
    assert attnrl(*train("model=mine", "loss.kl=0", "steps=1")).code == 0
    assert json.loads(Path("out/model.json").read_text())["weights"] != before["weights"]


def test_directories_without_a_model_say_what_they_hold(attnrl: Attnrl, tiny_checkpoint: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_checkpoint, "trainer/checkpoint-500")
    Path("begun").mkdir()
    Path("begun/config.yaml").write_text("steps: 1\n")
    Path("verl/checkpoints/global_step_7/actor").mkdir(parents=True)
    Path("models--maker--tiny/snapshots").mkdir(parents=True)
    for model, *named in (
        ("trainer", "checkpoint-500"),
        ("begun", "checkpoint"),
        ("verl", "attnrl export verl"),
        ("verl/checkpoints/global_step_7", "attnrl export"),
        ("models--maker--tiny", "maker/tiny"),
        ("trainer/checkpoint-500/config.json", "file"),
    ):
        refused(dry_run(attnrl, model), f"model {model}", *named)
        refused(attnrl("eval", model, *EVALUATE), f"model {model}", *named)


def test_an_adapter_names_its_base_and_the_way_out(attnrl: Attnrl, hub: Path) -> None:
    Path("lora").mkdir()
    Path("lora/adapter_config.json").write_text(json.dumps({"base_model_name_or_path": NAME, "peft_type": "LORA"}))
    Path("lora/adapter_model.safetensors").write_bytes(b"")
    for broken in ("[]", "{", '{"base_model_name_or_path": 3}'):
        Path("odd").mkdir(exist_ok=True)
        Path("odd/adapter_config.json").write_text(broken)
        refused(dry_run(attnrl, "odd"), "model odd", "adapter_config.json")
        refused(attnrl("export", "odd", "merged"), "model odd", "adapter_config.json")
    for call in (train("model=lora", "--dry-run"), ["eval", "lora", *EVALUATE], ["point", "lora", "--task", "ledger"]):
        refused(attnrl(*call), "model lora", NAME, "attnrl export lora")
    cache(hub, "maker/lora", Path("lora"))
    refused(dry_run(attnrl, "maker/lora@main"), "maker/lora", NAME, "merge")


def test_misspelt_names_suggest_near_names(
    attnrl: Attnrl, tiny_checkpoint: Path, tmp_path: Path, hub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HERE", str(tmp_path))
    shutil.copytree(tiny_checkpoint, "models/tiny-base")
    cache(hub, NAME, tiny_checkpoint)
    for model, near in (
        ("ledgre", "ledger"),
        ("./modles/tiny-base", "models/tiny-base"),
        ("./models/tiny-bsae", "models/tiny-base"),
        ("models/tiny-bas", "models/tiny-base"),
        (f"{tmp_path}/models/tinybase", f"{tmp_path}/models/tiny-base"),
        ("maker/tiny-maths", NAME),
        (f"file://{tmp_path}/models/tiny-base", f"near: {tmp_path}/models/tiny-base"),
        ("$HERE/models/tiny-base", f"near: {tmp_path}/models/tiny-base"),
    ):
        started = time.monotonic()
        refused(dry_run(attnrl, model), f"model {model}: no such directory", near)
        refused(attnrl("eval", model, *EVALUATE), f"model {model}: no such directory", near)
        assert time.monotonic() - started < 6
    refused(dry_run(attnrl, "''"), "model")
    for address in ("https://huggingface.co/maker/tiny/tree/main", "hf://maker/tiny", "huggingface.co/maker/tiny"):
        refused(dry_run(attnrl, address), f"model {address}", "near: maker/tiny")
    refused(dry_run(attnrl, "maker/tiny.git"), "model maker/tiny.git")


def test_a_two_part_path_is_not_taken_for_a_model_of_the_hub(
    attnrl: Attnrl, tiny_checkpoint: Path, hub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("runs/mine-0").mkdir(parents=True)
    with serve({"runs/mine": tiny_checkpoint}) as (address, asked):
        set_endpoint(monkeypatch, address)
        refused(dry_run(attnrl, "runs/mine"), "no such directory", "runs/mine-0", "runs/mine@main")
        assert asked == []
        assert COMMIT in model_line(dry_run(attnrl, "runs/mine@main"))


def test_a_cached_model_works_without_network(
    attnrl: Attnrl, tiny_checkpoint: Path, hub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache(hub, NAME, tiny_checkpoint)
    cache(hub, NAME, tiny_checkpoint, OLDER, "v1")
    assert COMMIT in model_line(dry_run(attnrl, NAME))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for model, commit in ((NAME, COMMIT), (f"{NAME}@v1", OLDER), (f"{NAME}@{OLDER}", OLDER)):
        assert commit in model_line(dry_run(attnrl, model))
    assert attnrl("eval", f"{NAME}@v1", *EVALUATE, "--output", "evals").code == 0
    assert OLDER in json.loads(Path("evals/results.json").read_text())["models"][f"{NAME}@v1"]["directory"]
    refused(dry_run(attnrl, f"{NAME}@v2"), f"model {NAME}@v2", "--revision v2", "HF_HUB_OFFLINE")
    refused(dry_run(attnrl, "maker/other"), "model maker/other", "hf download maker/other", "HF_HUB_OFFLINE")


def test_an_incomplete_snapshot_is_no_model(
    attnrl: Attnrl, tiny_checkpoint: Path, hub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    snapshot = cache(hub, NAME, tiny_checkpoint)
    (snapshot / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "model-1.safetensors"}}))
    refused(dry_run(attnrl, NAME), f"model {NAME}", "hf download")
    (snapshot / "model.safetensors.index.json").unlink()
    (snapshot / "model.safetensors").unlink()
    outcome = dry_run(attnrl, NAME)
    refused(outcome, f"model {NAME}", "hf download")
    assert f"near: {NAME}" not in outcome.err
    (snapshot / "model.safetensors").symlink_to("../nowhere")
    refused(dry_run(attnrl, NAME), f"model {NAME}", "model.safetensors", "../nowhere")


@pytest.mark.parametrize("value", ["0.5", "", "soon"])
def test_a_time_limit_that_is_no_whole_number_is_refused(
    value: str, attnrl: Attnrl, hub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_ETAG_TIMEOUT", value)
    refused(dry_run(attnrl, NAME), "HF_HUB_ETAG_TIMEOUT")


def test_export_of_a_missing_directory(attnrl: Attnrl, hub: Path) -> None:
    refused(attnrl("export", "nowhere", "out"), "checkpoint nowhere: no such directory")


def test_without_network_one_line_at_once(tmp_path: Path) -> None:
    """In a process of its own, because huggingface_hub reads the variables at import."""
    for variable, value in (("HF_ENDPOINT", DEAD), ("HF_HUB_OFFLINE", "1")):
        environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), variable: value, "HF_TOKEN": f"hf_{'x' * 30}"}
        code = (
            "import time; from attnrl.local import hub; started = time.monotonic()\n"
            "try: hub.find_snapshot('maker/tiny-math', None)\n"
            "except hub.HubError as error: print(time.monotonic() - started, error)"
        )
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
        seconds, _, message = done.stdout.partition(" ")
        assert float(seconds) < 3, done
        assert f"hf download {NAME}" in message
        assert (value if variable == "HF_ENDPOINT" else variable) in message
        assert "xxx" not in done.stdout + done.stderr


def test_a_server_that_never_answers_costs_seconds(attnrl: Attnrl, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        set_endpoint(monkeypatch, f"http://127.0.0.1:{silent.getsockname()[1]}")
        started = time.monotonic()
        refused(dry_run(attnrl, NAME), f"model {NAME}", f"hf download {NAME}")
        assert time.monotonic() - started < 6


def test_a_download_takes_safetensors_json_and_tokenizer_only(
    attnrl: Attnrl, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(tiny_checkpoint, "repository")
    wanted = {path.name for path in Path("repository").iterdir()}
    for extra in ("pytorch_model.bin", "modeling.py", "training_args.pt", "README.md", "onnx/model.json", "image.png"):
        Path("repository", extra).parent.mkdir(exist_ok=True)
        Path("repository", extra).write_bytes(b"x")
    Path("pickles").mkdir()
    shutil.copy(tiny_checkpoint / "config.json", "pickles")
    Path("pickles/pytorch_model.bin").write_bytes(b"x")
    served = {NAME: Path("repository"), "maker/pickled": Path("pickles"), "maker/gated": Path("repository")}
    with serve({name: folder.absolute() for name, folder in served.items()}) as (address, asked):
        set_endpoint(monkeypatch, address)
        assert COMMIT in model_line(dry_run(attnrl, NAME))
        (snapshot,) = tmp_path.glob("hub/*/snapshots/*")
        assert {path.name for path in snapshot.iterdir()} == wanted
        refused(dry_run(attnrl, "maker/pickled"), "maker/pickled", "pytorch_model.bin", "safetensors")
        refused(dry_run(attnrl, "maker/gated"), "maker/gated", "HF_TOKEN")
        refused(dry_run(attnrl, "maker/missing"), "maker/missing", "no such directory", "HF_TOKEN")
        refused(dry_run(attnrl, f"{NAME}@v9"), f"{NAME}@v9", "v9")
        assert not any("pytorch_model" in path for path in asked)


def test_a_run_resumes_from_the_commit_that_it_began_with(
    attnrl: Attnrl, tiny_checkpoint: Path, hub: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    cache(hub, NAME, tiny_checkpoint, OLDER)
    assert attnrl(*train(f"model={NAME}", "loss.kl=0.01", "steps=1")).code == 0
    record = json.loads(Path("out/model.json").read_text())
    assert (record["model"], record["commit"]) == (NAME, OLDER)
    assert yaml.safe_load(Path("out/config.yaml").read_text())["model"] == NAME
    tiny_model(vocab_size=len(tokenizer), seed=1).save_pretrained("newer")
    tokenizer.save_pretrained("newer")
    cache(hub, NAME, Path("newer"))  # refs/main moves on
    assert OLDER in model_line(dry_run(attnrl, NAME, "loss.kl=0.01"))
    assert COMMIT in model_line(dry_run(attnrl, NAME, "loss.kl=0.01", "output_dir=fresh"))
    # A new run that continues from the checkpoint keeps the reference too.
    continued = dry_run(attnrl, NAME, "loss.kl=0.01", "output_dir=other", "resume=out/checkpoints/step-000001")
    assert OLDER in model_line(continued)


def test_sft_starts_from_a_run(attnrl: Attnrl, whole: Path) -> None:
    stage = "stages=[{task: ledger, steps: 1, learning_rate: [1e-3, 1e-3]}]"
    outcome = attnrl("sft", "sft_ledger", "output_dir=out", f"start={whole}", stage, "batch_size=1")
    assert outcome.code == 0, outcome.err
    assert "step-000004" in "".join(outcome.out.split())


def test_resume_from_a_run_directory_names_the_newest_checkpoint(attnrl: Attnrl, whole: Path) -> None:
    for directory in (whole, whole / "checkpoints"):
        outcome = dry_run(attnrl, "ledger", "output_dir=new", f"resume={directory}")
        refused(outcome, f"resume={directory}", str(whole / "checkpoints" / "step-000004"))


def test_export_merges_an_adapter_with_its_base(attnrl: Attnrl, tiny_checkpoint: Path, hub: Path) -> None:
    peft = pytest.importorskip("peft")
    cache(hub, NAME, tiny_checkpoint)
    base = AutoModelForCausalLM.from_pretrained(tiny_checkpoint)
    before = base.state_dict()["model.layers.0.self_attn.q_proj.weight"].clone()
    torch.manual_seed(0)
    adapted = peft.get_peft_model(base, peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    adapted.peft_config["default"].base_model_name_or_path = NAME
    adapted.save_pretrained("lora")
    change = adapted.base_model.model.model.layers[0].self_attn.q_proj.get_delta_weight("default")
    assert attnrl("export", "lora", "merged").code == 0
    refused(attnrl("export", "lora", "merged"), "output merged")
    assert "merged" in model_line(dry_run(attnrl, "merged"))
    after = load_file("merged/model.safetensors")["model.layers.0.self_attn.q_proj.weight"]
    torch.testing.assert_close(after, before + change.detach())
    tensors = load_file("lora/adapter_model.safetensors")
    save_file({name: tensors[name] for name in sorted(tensors)[2:]}, "lora/adapter_model.safetensors")
    refused(attnrl("export", "lora", "other"), "model lora", NAME, "layers.0.self_attn.q_proj")
    further = {name.replace("layers.1", "layers.2"): tensor.clone() for name, tensor in tensors.items()}
    save_file({**tensors, **further}, "lora/adapter_model.safetensors")
    refused(attnrl("export", "lora", "other"), "model lora", NAME, "layers.2.self_attn.q_proj")
    settings = json.loads(Path("lora/adapter_config.json").read_text())
    Path("lora/adapter_config.json").write_text(json.dumps({**settings, "megatron_config": {"a": 1}}))
    refused(attnrl("export", "lora", "other"), "model lora", "megatron_config")


def test_export_of_an_adapter_needs_peft(
    attnrl: Attnrl, hub: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    settings = {"base_model_name_or_path": str(tiny_checkpoint), "peft_type": "LORA"}
    Path("lora").mkdir()
    Path("lora/adapter_config.json").write_text(json.dumps(settings))
    refused(attnrl("export", "lora", "merged"), "model lora", "adapter_model.safetensors")
    Path("lora/adapter_model.safetensors").write_bytes(b"")
    refused(attnrl("export", "lora", "merged"), "model lora", "pip install peft")
    Path("lora/adapter_config.json").write_text(json.dumps({**settings, "peft_type": "PROMPT_TUNING"}))
    refused(attnrl("export", "lora", "merged"), "model lora", "PROMPT_TUNING")
    assert not Path("merged").exists()
