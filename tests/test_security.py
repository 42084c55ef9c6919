"""What files, settings and models from strangers cannot do: run anything, write elsewhere, or be told a secret."""

from __future__ import annotations

import io
import json
import os
import pickle
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from helpers import command
from rich.console import Console
from transformers import AutoModelForCausalLM, PreTrainedModel, dynamic_module_utils

from attnrl.config.load import load_config, validate_config
from attnrl.config.schema import TrainConfig
from attnrl.config.sft import SftConfig
from attnrl.data.datasets import load_problem_set
from attnrl.errors import UserError
from attnrl.evals.runner import EvaluationRun
from attnrl.evals.settings import EvalSettings
from attnrl.evals.suites import Suite, load_suites
from attnrl.experiments.comparison.config import Comparison, plan_runs, slug
from attnrl.local import checkpoint, model_files
from attnrl.local.loading import load_model, load_tokenizer
from attnrl.local.model_files import check_model_files, is_pickled, refuse_pickles
from attnrl.report.html import write_report
from attnrl.runs.display import Display
from attnrl.runs.prepare import prepare
from attnrl.runs.session import train
from attnrl.types import Problem, SamplingParams

CPU = torch.device("cpu")
SUMS = Suite("sums", "Sums", "nowhere", tuple(Problem(f"s:{n}", f"A={n}; B+1?", (str(n + 1),)) for n in range(2)), 1, 8)
SETTINGS = EvalSettings(
    sampling=SamplingParams(), seed=0, dtype="float32", task=None, grader="rules", flexible_answers=False,
    prompt_suffix="", max_prompt_tokens=None,
)  # fmt: skip
WEIGHTS = ("pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "model.pt", "consolidated.00.pth", "weights.ckpt")
BESIDE = (*WEIGHTS, "optimizer.pt", "training_args.bin", "scheduler.pt", "rng_state.pth", "vocab.pkl", "state.joblib")


class Trap:
    """Unpickling it makes a file."""

    def __init__(self, sprung: Path) -> None:
        self.sprung = sprung

    def __reduce__(self) -> tuple[Callable[[str, int], int], tuple[str, int]]:
        return os.open, (str(self.sprung), os.O_CREAT)


@pytest.fixture
def sprung(tmp_path: Path) -> Iterator[Path]:
    """A file that is there once somebody else's code has run; no test may end with it unless it says so."""
    path = tmp_path / "sprung"
    yield path
    assert not path.exists(), "something ran"


@pytest.fixture
def model(tmp_path: Path, tiny_checkpoint: Path) -> Path:
    """A model's directory that may be written to."""
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "model"))


def set_trap(path: Path, sprung: Path, *, by_torch: bool = False) -> None:
    if by_torch:
        torch.save({"weight": Trap(sprung)}, path)
    else:
        path.write_bytes(pickle.dumps(Trap(sprung)))


def config(model: Path, output: Path, *changes: str) -> TrainConfig:
    small = [
        f"model={model}", f"output_dir={output}", "steps=1", "prompts=2", "threads=1", "device=cpu", "loss.kl=0",
        "sampling.max_new_tokens=24", "eval.every=1", "eval.problems=2", "eval.samples=1", "checkpoint.every=1",
        "log.trees_every=1", "method.adaptive.filter=false",
    ]  # fmt: skip
    return load_config(TrainConfig, "attnrl", [*small, *changes])


def load(model: Path, *, trust_remote_code: bool = False) -> PreTrainedModel:
    tokenizer = load_tokenizer(model, trust_remote_code=trust_remote_code)
    return load_model(model, tokenizer, device=CPU, dtype="float32", trust_remote_code=trust_remote_code).model


def run(config: TrainConfig) -> None:
    train(prepare(config), Display(Console(file=io.StringIO())))


def evaluate(model: Path, output: Path | None = None, *, trust_remote_code: bool = False) -> None:
    console = Console(file=io.StringIO())
    EvaluationRun(
        [str(model)],
        [SUMS],
        SETTINGS,
        console=console,
        device="cpu",
        output=output,
        trust_remote_code=trust_remote_code,
    ).run()


def files_below(folder: Path) -> set[Path]:
    return {path.relative_to(folder) for path in folder.rglob("*")}


# --- pickles --------------------------------------------------------------------------------------------------------


def test_the_trap_works(tmp_path: Path) -> None:
    for by_torch in (False, True):
        sprung = tmp_path / f"sprung-{by_torch}"
        set_trap(tmp_path / "trap", sprung, by_torch=by_torch)
        assert is_pickled(tmp_path / "trap") and not sprung.exists()
        if by_torch:
            torch.load(tmp_path / "trap", weights_only=False)
        else:
            pickle.loads((tmp_path / "trap").read_bytes())
        assert sprung.exists()


@pytest.mark.parametrize("by_torch", [False, True])
@pytest.mark.parametrize("name", WEIGHTS)
def test_pickled_weights_are_refused_and_never_unpickled(
    model: Path, sprung: Path, tmp_path: Path, name: str, by_torch: bool
) -> None:
    (model / "model.safetensors").unlink()
    set_trap(model / name, sprung, by_torch=by_torch)
    for attempt in (
        lambda: load(model),
        lambda: prepare(config(model, tmp_path / "run")),
        lambda: evaluate(model),
    ):
        with pytest.raises(UserError) as told:
            attempt()
        message = str(told.value)
        assert message.startswith(f"model {model}: ") and name in message
        assert "\n" not in message
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", BESIDE)
def test_a_pickle_beside_safetensors_is_never_opened(model: Path, sprung: Path, tmp_path: Path, name: str) -> None:
    """Hugging Face directories are full of them."""
    set_trap(model / name, sprung)
    weights = load(model).state_dict()
    assert weights.keys() == AutoModelForCausalLM.from_pretrained(model).state_dict().keys()
    evaluate(model)
    prepare(config(model, tmp_path / "run"))


def test_an_index_of_shards_names_safetensors_of_the_directory_only(model: Path, sprung: Path) -> None:
    weights = load(model).state_dict()
    (model / "model.safetensors").rename(model / "a.safetensors")
    index = model / "model.safetensors.index.json"

    def shards(name: object) -> None:
        index.write_text(json.dumps({"metadata": {}, "weight_map": dict.fromkeys(weights, name)}))

    shards("a.safetensors")
    loaded = load(model).state_dict()
    assert all(torch.equal(loaded[name], weight) for name, weight in weights.items())
    set_trap(model / "a.bin", sprung, by_torch=True)
    for name in ("a.bin", "../a.safetensors", str(model / "a.safetensors"), "..\\a.safetensors", 3):
        shards(name)
        with pytest.raises(UserError, match=r"\bmodel\.safetensors\.index\.json\b"):
            load(model)


@pytest.mark.parametrize("name", ["adapter_model.bin", "weights.pt", "../model.safetensors"])
def test_a_config_cannot_choose_other_weights(model: Path, sprung: Path, name: str) -> None:
    set_trap(model / Path(name).name.replace("model.safetensors", "x.bin"), sprung, by_torch=True)
    settings = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(settings | {"transformers_weights": name}))
    with pytest.raises(UserError, match=r"\bconfig\.json\b"):
        evaluate(model)


def test_an_adapter_is_refused(model: Path, sprung: Path) -> None:
    """With peft installed transformers would load it; without, it would be left out silently."""
    (model / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "somewhere/else"}))
    set_trap(model / "adapter_model.bin", sprung)
    with pytest.raises(UserError, match=r"\badapter_config\.json\b"):
        evaluate(model)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> Path:
    """The directory of a run of one step; not to be written to."""
    output = tmp_path_factory.mktemp("finished") / "run"
    run(config(tiny_checkpoint, output))
    return output


def test_the_files_of_a_checkpoint_go_by_the_names_that_are_looked_for(finished: Path) -> None:
    assert model_files.OWN_FILES == (checkpoint.STATE_FILE, checkpoint.OPTIMIZER_FILE)
    (saved,) = checkpoint.list_checkpoints(finished / "checkpoints")
    refuse_pickles(saved.directory)
    check_model_files(saved.directory)


@pytest.mark.parametrize("name", [*BESIDE, "notes", "original/consolidated.00.pth"])
def test_a_pickle_in_a_checkpoint_of_ours_is_refused(
    finished: Path, tiny_checkpoint: Path, sprung: Path, tmp_path: Path, name: str
) -> None:
    output = Path(shutil.copytree(finished, tmp_path / "run"))
    (saved,) = checkpoint.list_checkpoints(output / "checkpoints")
    (saved.directory / name).parent.mkdir(exist_ok=True)
    set_trap(saved.directory / name, sprung)
    before = files_below(output)
    resumed = config(tiny_checkpoint, output, "steps=2")
    for attempt in (
        lambda: refuse_pickles(saved.directory),
        lambda: evaluate(saved.directory),
        lambda: run(resumed),
        lambda: run(config(tiny_checkpoint, tmp_path / "other", f"resume={saved.directory}", "steps=2")),
    ):
        with pytest.raises(UserError) as told:
            attempt()
        assert re.search(rf"{re.escape(name)}\b.*pickle", str(told.value)) and "\n" not in str(told.value)
    assert files_below(output) == before
    write_report([output], tmp_path / "report.html")
    assert f"{name} " in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_a_checkpoint_of_hugging_face_s_trainer_is_a_model_like_any_other(model: Path, sprung: Path) -> None:
    """It has a trainer_state.json as well, and pickles."""
    (model / "trainer_state.json").write_text('{"global_step": 5, "log_history": []}')
    for name in ("optimizer.pt", "training_args.bin", "rng_state.pth"):
        set_trap(model / name, sprung)
    evaluate(model)


def test_data_sets_unpickle_nothing(tmp_path: Path, sprung: Path) -> None:
    pytest.importorskip("datasets", reason="needs the extra hub")
    folder = tmp_path / "data"
    folder.mkdir()
    set_trap(folder / "train.pkl", sprung)
    (folder / "data.py").write_text(f"open({str(sprung)!r}, 'w')")
    for source in (folder, folder / "train.pkl"):
        with pytest.raises(UserError) as told:
            load_problem_set(source)
        assert "\n" not in str(told.value)


# --- code that a model brings ---------------------------------------------------------------------------------------

MODELING = """
from pathlib import Path
from transformers import LlamaConfig, LlamaForCausalLM
Path({sprung!r}).touch()
class MarkedConfig(LlamaConfig):
    model_type = {kind!r}
class MarkedForCausalLM(LlamaForCausalLM):
    config_class = MarkedConfig
"""
TOKENIZATION = """
from pathlib import Path
from transformers import PreTrainedTokenizerFast
Path({sprung!r}).touch()
class MarkedTokenizer(PreTrainedTokenizerFast):
    pass
"""


@pytest.fixture
def brings(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Have the model bring code of its own, as a model of the given kind; returns the file that shows it has run."""
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))

    def bring(kind: str) -> Path:
        ran = tmp_path / "ran"
        (model / "marked.py").write_text(MODELING.format(sprung=str(ran), kind=kind))
        settings = json.loads((model / "config.json").read_text())
        classes = {"AutoConfig": "marked.MarkedConfig", "AutoModelForCausalLM": "marked.MarkedForCausalLM"}
        (model / "config.json").write_text(json.dumps(settings | {"model_type": kind, "auto_map": classes}))
        return ran

    yield bring
    sys.path[:] = [path for path in sys.path if path != str(tmp_path / "modules")]


def test_code_of_a_model_runs_only_when_it_is_trusted(
    model: Path,
    brings: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    ran = brings("marked_evaluated")
    asked = ["--task", "ledger", "--problems", "2", "--samples", "1", "--max-new-tokens", "24", "--device", "cpu"]
    for name in ("eval", "disrupt"):
        assert command(monkeypatch, name, str(model), *asked) == 2
        told = capsys.readouterr().err
        assert told.startswith(f"attnrl: model {model}: ") and told.count("\n") == 1
        assert "trust_remote_code=true (--trust-remote-code)" in told
    with pytest.raises(UserError, match=r"trust_remote_code=true \(--trust-remote-code\)"):
        prepare(config(model, tmp_path / "run"))
    assert not ran.exists()
    assert command(monkeypatch, "eval", str(model), *asked, "--trust-remote-code") == 0
    assert ran.exists()
    ran.unlink()
    # A model this random has responses with too few steps, which is said after it has sampled.
    command(monkeypatch, "disrupt", str(model), *asked, "--trust-remote-code")
    assert "trust_remote_code" not in capsys.readouterr().err


def test_a_trusted_model_is_trained_and_its_run_goes_on(
    model: Path, brings: Callable[[str], Path], tmp_path: Path
) -> None:
    ran = brings("marked_trained")
    trusted = ["trust_remote_code=true", "loss.kl=0.01"]
    run(config(model, tmp_path / "run", *trusted))
    assert ran.exists()
    run(config(model, tmp_path / "run", *trusted, "steps=2"))
    saved = checkpoint.list_checkpoints(tmp_path / "run" / "checkpoints")[-1]
    assert saved.step == 2 and (saved.directory / "marked.py").is_file()
    with pytest.raises(UserError, match="trust_remote_code=true"):
        evaluate(saved.directory)
    evaluate(saved.directory, trust_remote_code=True)


def test_a_trusted_model_is_the_one_that_its_code_makes(model: Path, brings: Callable[[str], Path]) -> None:
    plain = load(model)
    brings("marked_loaded")
    own = load(model, trust_remote_code=True)
    assert type(own).__name__ == "MarkedForCausalLM"
    ids = torch.tensor([[3, 4, 5]])
    assert torch.equal(own(ids).logits, plain(ids).logits)


def test_code_beside_a_model_that_transformers_knows_does_not_run(model: Path, brings: Callable[[str], Path]) -> None:
    ran = brings("llama")
    (model / "custom_generate").mkdir()
    (model / "custom_generate" / "generate.py").write_text(f"open({str(ran)!r}, 'w')")
    assert type(load(model)).__name__ == "LlamaForCausalLM"
    evaluate(model)
    assert not ran.exists()


def test_code_of_a_tokenizer_runs_only_when_it_is_trusted(model: Path, brings: Callable[[str], Path]) -> None:
    ran = brings("llama")
    (model / "marked.py").unlink()
    (model / "words.py").write_text(TOKENIZATION.format(sprung=str(ran)))
    settings = json.loads((model / "tokenizer_config.json").read_text())
    settings |= {"tokenizer_class": "MarkedTokenizer", "auto_map": {"AutoTokenizer": [None, "words.MarkedTokenizer"]}}
    (model / "tokenizer_config.json").write_text(json.dumps(settings))
    try:
        load_tokenizer(model)  # one that transformers has, if it finds one
    except UserError as told:
        assert "trust_remote_code=true" in str(told)
    assert not ran.exists()
    assert type(load_tokenizer(model, trust_remote_code=True)).__name__ == "MarkedTokenizer"
    assert ran.exists()


@pytest.mark.parametrize("place", ["attn_implementation", "_attn_implementation", "text_config"])
def test_an_attention_whose_code_is_on_a_hub_is_refused(model: Path, place: str) -> None:
    settings = json.loads((model / "config.json").read_text())
    value = {"attn_implementation": {"": "someone/kernel"}} if place == "text_config" else "someone/kernel"
    (model / "config.json").write_text(json.dumps(settings | {place: value}))
    with pytest.raises(UserError, match=r"attn_implementation: 'someone/kernel'"):
        check_model_files(model)
    check_model_files(model, trust_remote_code=True)


def test_trust_is_off_unless_it_is_asked_for(tmp_path: Path) -> None:
    assert config(tmp_path, tmp_path).trust_remote_code is False
    assert config(tmp_path, tmp_path, "trust_remote_code=true").trust_remote_code is True


def test_an_evaluation_of_other_code_is_another_evaluation(
    model: Path, brings: Callable[[str], Path], tmp_path: Path
) -> None:
    brings("marked_twice")
    evaluate(model, tmp_path / "out", trust_remote_code=True)
    evaluate(model, tmp_path / "out", trust_remote_code=True)
    with (model / "marked.py").open("a") as file:
        file.write("# changed\n")
    with pytest.raises(UserError, match=r"^--output: .*fingerprint"):
        evaluate(model, tmp_path / "out", trust_remote_code=True)


# --- names that become files ----------------------------------------------------------------------------------------

ESCAPES = ["../../escaped", "/tmp/escaped-attnrl", "..", "a/../../../escaped", "..\\..\\escaped", "C:escaped"]


@pytest.mark.parametrize("name", [*ESCAPES, ".", "", "a\0b"])
def test_settings_that_name_directories_stay_in_the_output(name: str) -> None:
    settings = yaml.safe_load(config(Path("m"), Path("out")).model_dump_json())
    with pytest.raises(UserError, match=r"log\.project: "):
        validate_config(TrainConfig, settings | {"log": {"project": name}}, "here")
    stage = {"task": "ledger", "steps": 1, "learning_rate": [1e-3, 1e-3], "save": name}
    with pytest.raises(UserError, match=r"stages.*save: "):
        validate_config(SftConfig, {"output_dir": "out", "stages": [stage]}, "here")


def test_a_nul_is_in_no_setting() -> None:
    with pytest.raises(UserError, match=r"here: output_dir: .*NUL"):
        validate_config(TrainConfig, {"output_dir": "a\0b"}, "here")


@pytest.mark.parametrize("name", [*ESCAPES, ".", "...", "a\0b", "x/..", "\u2028../x"])
def test_the_run_of_an_arm_stays_below_the_comparison(name: str) -> None:
    if not slug(name):
        with pytest.raises(UserError, match=r"here: .*arms"):
            validate_config(Comparison, {"output_dir": "out", "arms": {name: {"recipe": "grpo"}}, "tokens": 1}, "here")
        return
    comparison = Comparison.model_validate({"output_dir": "out", "arms": {name: {"recipe": "grpo"}}, "tokens": 1})
    for planned in plan_runs(comparison):
        assert planned.directory.parent.parent == Path("out/runs")
        assert planned.directory.parent.name not in {"", ".", ".."} and "\0" not in str(planned.directory)


@pytest.mark.parametrize("name", [*ESCAPES, "a\0b", "<script>", "a\u2028b"])
def test_names_in_data_name_no_file(model: Path, tmp_path: Path, name: str) -> None:
    """Of problems, sources and benchmarks: an evaluation, a training run, a report."""
    outer = tmp_path / "outer"
    (outer / "in").mkdir(parents=True)
    rows = [{"prompt": f"A={n}; B+1?", "answer": str(n + 1), "data_source": name, "id": name} for n in range(4)]
    data = outer / "in" / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    before = files_below(tmp_path)
    (suite,) = load_suites(benchmarks=[f"{name}={data}"], samples=1, max_new_tokens=8)
    assert suite.problems[0].id.startswith(" ".join(name.split()))
    named = replace(suite, problems=(*suite.problems, Problem(name, "A=5?", (name,))))
    EvaluationRun(
        [str(model)], [named], SETTINGS, console=Console(file=io.StringIO()), device="cpu", output=outer / "in" / "eval"
    ).run()
    assert files_below(outer / "in" / "eval") == {Path("results.json"), Path("samples.jsonl")}
    run(config(model, outer / "in" / "run", "task=null", f"data.train={data}", "data.prompt_suffix=''"))
    write_report([outer / "in" / "run"], outer / "in" / "report.html", attention=False)
    made = files_below(tmp_path) - before
    allowed = ("outer/in/eval", "outer/in/run", "outer/in/report.html")
    assert made and all(str(path).startswith(allowed) for path in made)
    assert not Path("/tmp/escaped-attnrl").exists()


# --- secrets --------------------------------------------------------------------------------------------------------

SECRETS = {
    "HF_TOKEN": "hf_Abcdefghijklmnopqrstuvwxyz0123456789",
    "WANDB_API_KEY": "0123456789abcdef0123456789abcdef01234567",
    "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI-K7MDENG-bPxRfiCYEXAMPLE",
    "OPENAI_API_KEY": "sk-very-secret-key",
}


def test_secrets_of_the_environment_are_nowhere(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    trackers = ["log.trackers=[tensorboard]"] if shutil.which("tensorboard") else []
    run(config(model, tmp_path / "run", *trackers))
    evaluate(model, tmp_path / "eval")
    write_report([tmp_path / "run"], tmp_path / "run" / "report.html")
    out, err = capfd.readouterr()
    written = [path for folder in ("run", "eval") for path in (tmp_path / folder).rglob("*") if path.is_file()]
    assert len(written) > 10
    for text in (out.encode(), err.encode(), *(path.read_bytes() for path in written)):
        assert not any(value.encode() in text for value in SECRETS.values())


URL = "https://someone:{secret}@host.example/set.parquet"


@pytest.mark.parametrize("secret", ["s3cret", "s3cret@with", "s3cret%2F"])
@pytest.mark.parametrize("key", ["data.train", "data.eval", "model", "output_dir", "resume", "log.project", "grader"])
def test_a_setting_with_credentials_is_refused_and_not_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], key: str, secret: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for value in (URL.format(secret=secret), f"[a, '{URL.format(secret=secret)}']", f"hf_{secret[:6]}{'x' * 30}"):
        assert command(monkeypatch, "train", "attnrl", f"{key}={value}", "--dry-run") == 2
        out, err = capfd.readouterr()
        assert f"{key}: " in err and err.count("\n") == 1
        assert "s3cret" not in out + err and "someone" not in out + err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "arguments",
    [
        ["eval", "ledger", "--data", URL],
        ["eval", URL, "--task", "ledger"],
        ["eval", "ledger", "--benchmark", f"mine={URL}"],
        ["eval", "ledger", "--benchmark", "aime24", "--data-dir", URL],
        ["train", URL],
        ["train", "attnrl", URL],
        ["train", "attnrl", f"nothing={URL}"],
        ["compare", "grpo,treerl", f"settings=['data.train={URL}']"],
        ["report", URL],
        ["grade", URL, "-o", "graded.jsonl"],
    ],
)
def test_an_error_masks_credentials(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert command(monkeypatch, *(argument.format(secret="s3cret") for argument in arguments)) == 2
    out, err = capfd.readouterr()
    assert err.startswith("attnrl: ") and err.count("\n") == 1
    assert "s3cret" not in out + err


def test_what_holds_no_credentials_stays_as_it_is() -> None:
    for text in ("openai/gsm8k:main@abc[train]", "a:/b/c@d", "https://host/x@y", "hf_short", "me@host", "~/x@2/y"):
        assert str(UserError(text)) == text
    settings = load_config(TrainConfig, "math", ["model=m", "output_dir=o", "data.train='me/set:main@1a2b[train]'"])
    assert settings.data.train == "me/set:main@1a2b[train]"


# --- listening ------------------------------------------------------------------------------------------------------


def test_nothing_of_a_run_listens(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    psutil = pytest.importorskip("psutil", reason="comes with the extra trackers")
    from attnrl.grading.math import MathGrader

    heard: list[object] = []
    workers = 0

    def grade(self: MathGrader, *arguments: object) -> object:
        nonlocal workers
        answers = graded(self, *arguments)
        processes = [me, *me.children(recursive=True)]
        workers = max(workers, len(processes) - 1)
        heard.extend(
            connection
            for process in processes
            for connection in process.net_connections(kind="inet")
            if connection not in before
        )
        return answers

    me, graded = psutil.Process(), MathGrader.grade
    before = me.net_connections(kind="inet")
    monkeypatch.setattr(MathGrader, "grade", grade)
    rows = [{"prompt": f"A={n}; B+1?", "answer": str(n + 1)} for n in range(4)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    changes = ["task=null", f"data.train={tmp_path / 'rows.jsonl'}", "data.prompt_suffix=''", "flexible_answers=true"]
    run(config(model, tmp_path / "run", *changes))
    assert workers and not heard
    # The measurement sees who listens.
    import socket

    with socket.create_server(("127.0.0.1", 0)):
        assert len(me.net_connections(kind="inet")) == len(before) + 1
