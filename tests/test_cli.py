"""The command line as a person meets it: what it prints, what it writes, and how it refuses."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

from attnrl import cli
from attnrl.config import TrainConfig, load_config
from attnrl.tasks.datasets import load_problems

ROWS = [{"prompt": f"A={digit}; B+1; C+2?", "answer": str((digit + 3) % 10)} for digit in range(6)]
# A run that takes a second at most.
SMALL = [
    "output_dir=out",
    "model=tiny",
    "steps=2",
    "prompts=2",
    "method.trunks=3",
    "sampling.max_new_tokens=96",
    "eval.problems=3",
    "eval.samples=2",
    "eval.every=1",
    "log.samples=2",
    "log.trees_every=1",
    "checkpoint.every=1",
    "threads=1",
]
FILE = ["task=null", "data.train=rows.jsonl", "data.prompt_suffix=''"]
EVAL = ["eval", "tiny", "--samples", "2", "--max-new-tokens", "16", "--max-prompt-tokens", "64", "--problems", "3"]


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str


Attnrl = Callable[..., Outcome]


@pytest.fixture
def folder(tmp_path: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder the commands run in: a model, problems, and things that are not quite either."""
    (tmp_path / "tiny").symlink_to(tiny_checkpoint)
    files = {
        "rows.jsonl": "".join(json.dumps(row) + "\n" for row in ROWS),
        "empty.jsonl": "",
        "malformed.jsonl": json.dumps(ROWS[0]) + '\n{"prompt": "A=1?", "answer"\n',
        "unanswered.jsonl": json.dumps(ROWS[0]) + "\n" + json.dumps({"prompt": "A=1?"}) + "\n",
        "long.jsonl": json.dumps(ROWS[0]) + "\n" + json.dumps({"prompt": "A=1; " * 200, "answer": "1"}) + "\n",
        "chat.jsonl": json.dumps({"prompt": [{"role": "user", "content": "A=1?"}], "answer": "1"}) + "\n",
        "list.yaml": "- steps\n",
        "broken.yaml": "steps: [1\n",
        "file": "mine",
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "bare").mkdir()
    (tmp_path / "weightless").mkdir()
    LlamaConfig().save_pretrained(tmp_path / "weightless")
    AutoTokenizer.from_pretrained(tiny_checkpoint).save_pretrained(tmp_path / "weightless")
    (tmp_path / "wordless").mkdir()
    LlamaConfig().save_pretrained(tmp_path / "wordless")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def attnrl(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Iterator[Attnrl]:
    """Run a command in this process."""

    def call(*arguments: str) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["attnrl", *arguments])
        capfd.readouterr()
        code = 0
        try:
            cli.main()
        except SystemExit as stop:
            assert isinstance(stop.code, int)
            code = stop.code
        return Outcome(code, *capfd.readouterr())

    threads = torch.get_num_threads()
    yield call
    torch.set_num_threads(threads)


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, and every folder."""
    return {str(path): path.read_bytes() if path.is_file() else b"" for path in sorted(folder.rglob("*"))}


def a_subprocess(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", "from attnrl.cli import main; main()", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )


def train(*changes: str, recipe: str = "attnrl") -> list[str]:
    return ["train", recipe, *SMALL, *changes]


def stages(task: str) -> str:
    return f"stages=[{{task: {task}, steps: 1, learning_rate: [1e-3, 1e-3], save: it}}]"


# Arguments, and what the one line has to name.
BAD_INPUT: dict[str, tuple[list[str], list[str]]] = {
    "wrong key": (train("stpes=3"), ["recipe attnrl", "unknown key stpes", "steps"]),
    "wrong key deep down": (train("method.branching.rh=0.1"), ["unknown key method.branching.rh", "rho"]),
    "value out of range": (train("method.branching.rho=2"), ["method.branching.rho", "2"]),
    "value of another type": (train("steps=many"), ["steps", "'many'"]),
    "override without =": (train("steps"), ["override 'steps'", "key.path=value"]),
    "override through a value": (train("steps.more=1"), ["'steps.more=1'", "steps is a value"]),
    "grpo with branches": (train("method.branching.points=2", recipe="grpo"), ["method", "branching.points=0"]),
    "unknown recipe": (train(recipe="atnrl"), ["'atnrl'", "attnrl, attnrl_plus, grpo"]),
    "recipe file that is not there": (train(recipe="mine.yaml"), ["mine.yaml", "no such file"]),
    "recipe that is a list": (train(recipe="list.yaml"), ["list.yaml", "list"]),
    "recipe that is not YAML": (train(recipe="broken.yaml"), ["broken.yaml", "not valid YAML"]),
    "recipe of another command": (train(recipe="sft_ledger"), ["recipe sft_ledger", "unknown key stages"]),
    "missing model": (train("model=nowhere"), ["model nowhere", "no such directory"]),
    "model directory without config": (train("model=bare"), ["model bare", "config.json"]),
    "model directory without weights": (train("model=weightless"), ["model weightless", "cannot be loaded"]),
    "model directory without tokenizer": (train("model=wordless"), ["model wordless", "tokenizer"]),
    "unknown task": (train("task=leger"), ["task 'leger'", "ledger_long"]),
    "both task and file": (train("data.train=rows.jsonl"), ["either task or data.train"]),
    "neither task nor file": (train("task=null"), ["either task or data.train"]),
    "missing data file": (train("task=null", "data.train=no.jsonl"), ["data file no.jsonl", "no such file"]),
    "empty data file": (train("task=null", "data.train=empty.jsonl"), ["data file empty.jsonl", "no rows"]),
    "malformed data file": (train("task=null", "data.train=malformed.jsonl"), ["malformed.jsonl, line 2", "not JSON"]),
    "row without answer": (train("task=null", "data.train=unanswered.jsonl"), ["unanswered.jsonl, line 2", "answer"]),
    "faulty evaluation file": (train(*FILE, "data.eval=empty.jsonl"), ["data file empty.jsonl", "no rows"]),
    "data file of an unknown kind": (train("task=null", "data.train=file"), ["data file file", ".parquet"]),
    "prompts too long": (train(*FILE, "sampling.max_prompt_tokens=3"), ["data rows.jsonl", "max_prompt_tokens", "3"]),
    "trained and evaluated on the same": (
        train(*FILE, "data.eval=rows.jsonl"),
        ["data rows.jsonl", "data.overlap=warn"],
    ),
    "unknown data set of reasoning-gym": (
        train("task=reasoning_gym:chain_sun"),
        ["reasoning_gym:chain_sun", "chain_sum"],
    ),
    "oracle without a true graph": (
        train(*FILE, "method.branching.criterion=oracle"),
        ["task rows", "dependency graph", "ledger"],
    ),
    "unknown grader": (train("grader=exact"), ["grader exact", "module:function"]),
    "prompts of the task too long": (train("sampling.max_prompt_tokens=5"), ["problem ledger:", "max_prompt_tokens"]),
    "chat without a template": (train("task=null", "data.train=chat.jsonl"), ["problem chat:", "chat template"]),
    "more positions than the model has": (
        train("sampling.max_new_tokens=1000"),
        ["max_prompt_tokens + max_new_tokens = 1128", "512"],
    ),
    "device nonsense": (train("device=banana"), ["device", "'banana'"]),
    "device that is not here": (train("device=cuda:99"), ["device", "cuda:99"]),
    "output_dir that is a file": (train("output_dir=file"), ["output_dir file", "no directory"]),
    "output_dir below a file": (train("output_dir=file/out"), ["output_dir file/out", "no directory"]),
    "resume from nowhere": (train("resume=nowhere"), ["resume=nowhere", "not a checkpoint"]),
    "eval without a task or data": (EVAL, ["--benchmark", "--task", "--data"]),
    "eval of an unknown benchmark": (
        [*EVAL, "--benchmark", "aime26", "--data-dir", "."],
        ["'aime26'", "rows.jsonl", "aime24, aime25", "--data-dir ."],
    ),
    "eval of a benchmark from nowhere": ([*EVAL, "--benchmark", "x=no.jsonl"], ["no.jsonl", "no such file"]),
    "eval of one model twice": (["eval", "tiny", *EVAL[1:], "--task", "ledger"], ["the same model", "more than once"]),
    "eval with an unknown grader": ([*EVAL, "--task", "ledger", "--grader", "exact"], ["exact", "module:function"]),
    "eval with both": ([*EVAL, "--task", "ledger", "--data", "rows.jsonl"], ["--task", "--data"]),
    "eval of no model": (["eval", "nowhere", "--task", "ledger"], ["model nowhere", "no such directory"]),
    "eval of an unknown task": ([*EVAL, "--task", "leger"], ["task 'leger'", "ledger_long"]),
    "eval with a faulty file": (
        [*EVAL, "--data", "malformed.jsonl", "--output", "new/x.jsonl"],
        ["malformed.jsonl, line 2"],
    ),
    "eval with prompts too long": (
        [*EVAL, "--data", "rows.jsonl", "--max-prompt-tokens", "3"],
        ["model tiny", "every prompt of rows is too long"],
    ),
    "eval in an unknown dtype": ([*EVAL, "--task", "ledger", "--dtype", "int8"], ["--dtype int8"]),
    "eval with an impossible top-p": ([*EVAL, "--task", "ledger", "--top-p", "0"], ["--top-p 0"]),
    "eval to a file below a file": ([*EVAL, "--task", "ledger", "--output", "file/x.jsonl"], ["file/x.jsonl"]),
    "eval to a file": ([*EVAL, "--task", "ledger", "--output", "file"], ["--output file", "no directory"]),
    "sft of an unknown task": (["sft", "sft_ledger", "output_dir=out", stages("leger")], ["stages.0.task", "leger"]),
    "sft of a task with a wrong key": (["sft", "sft_ledger", stages("x, rate: 1")], ["unknown key stages.0.rate"]),
    "sft of an unknown architecture": (
        ["sft", "sft_ledger", "output_dir=out", "architecture.model_type=lama"],
        ["architecture", "lama"],
    ),
    "sft to a file": (["sft", "sft_ledger", "output_dir=file/out", stages("ledger")], ["output_dir file/out"]),
    "compare of unknown recipes": (["compare", "grpo,atnrl", "tokens=1000"], ["arm atnrl", "recipe 'atnrl'"]),
    "compare without a budget": (["compare", "grpo,attnrl"], ["comparison grpo,attnrl", "tokens is required"]),
    "compare of a file that is none": (["compare", "list.yaml"], ["comparison list.yaml", "expected a mapping"]),
    "point of an unknown task": (["point", "tiny", "--task", "leger"], ["task 'leger'", "ledger_long"]),
    "point of no model": (["point", "nowhere", "--task", "ledger"], ["model nowhere", "no such directory"]),
    "plot of no run": (["plot", "bare"], ["bare", "no evaluations"]),
    "timeline of nothing": (["timeline", "nowhere"], ["nowhere", "no such run directory"]),
    "plot of nothing": (["plot", "nowhere"], ["nowhere", "no evaluations"]),
}


@pytest.mark.parametrize("name", BAD_INPUT)
def test_bad_input_ends_in_one_line_that_names_it(name: str, folder: Path, attnrl: Attnrl) -> None:
    arguments, named = BAD_INPUT[name]
    before = tree(folder)
    outcome = attnrl(*arguments)
    assert outcome.code == 2
    assert outcome.err.startswith("attnrl: ") and outcome.err.count("\n") == 1 and outcome.err.endswith("\n")
    assert [part for part in named if part not in outcome.err] == []
    assert "Traceback" not in outcome.err + outcome.out
    assert tree(folder) == before


def test_a_tracker_that_is_not_installed(folder: Path, attnrl: Attnrl, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pytest.importorskip("accelerate.tracking"), "get_available_trackers", list)
    before = tree(folder)
    outcome = attnrl(*train("log.trackers=[wandb]"))
    assert (outcome.code, outcome.err) == (2, "attnrl: log.trackers: wandb is not installed\n")
    assert tree(folder) == before


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["train", "attnrl", "--dryrun"], "--dryrun"),
        (["train"], "recipe"),
        (["evaluate"], "evaluate"),
        (["eval", "tiny", "--problems", "0"], "--problems"),
        (["eval", "tiny", "--samples", "many"], "--samples"),
        (["plot"], "runs"),
        (["timeline"], "run"),
    ],
)
def test_wrong_flags_and_missing_arguments(arguments: list[str], named: str, folder: Path, attnrl: Attnrl) -> None:
    outcome = attnrl(*arguments)
    assert outcome.code == 2
    assert named in outcome.err and "--help" in outcome.err and "Traceback" not in outcome.err


@pytest.mark.parametrize("device", ["", "cpu"])
def test_in_a_process_of_its_own_bad_input_is_one_line_too(device: str, folder: Path) -> None:
    """Nothing that transformers or torch say on import or loading comes before it."""
    change = f"device={device}" if device else "stpes=3"
    finished = a_subprocess(*train(change, "sampling.max_new_tokens=1000"))
    assert finished.returncode == 2
    assert finished.stderr.startswith("attnrl: ") and finished.stderr.count("\n") == 1
    assert finished.stdout == ""
    assert ("1128" if device else "stpes") in finished.stderr


def test_ctrl_c_outside_of_training(attnrl: Attnrl, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "app", interrupted)
    assert attnrl() == Outcome(130, "", "attnrl: interrupted\n")


@pytest.mark.parametrize(
    ("command", "taught"),
    [
        ([], ["train", "compare", "eval", "disrupt", "point", "sft", "plot", "timeline", "report"]),
        (["compare"], ["attnrl compare grpo,treerl,attnrl", "--no-train", "ledger_long", "results.md"]),
        (["point"], ["attnrl point ledger --task ledger", "--pivotal"]),
        (["grade"], ["[default: one per core"]),
        (["train"], ["attnrl train attnrl", "data.train=", "steps=20", "--dry-run", "grpo", "resume", "output_dir"]),
        (["eval"], ["attnrl eval ledger --task ledger", "--data", "--benchmark", "aime24,", "--samples", "--output"]),
        (["sft"], ["attnrl sft sft_ledger", "output_dir", "--dry-run"]),
        (["plot"], ["attnrl plot runs/attnrl-0", "--output", ".svg"]),
        (["timeline"], ["attnrl timeline runs/attnrl", "--step", "--output"]),
    ],
)
def test_help_teaches(command: list[str], taught: list[str], attnrl: Attnrl) -> None:
    outcome = attnrl(*command, "--help")
    assert (outcome.code, outcome.err) == (0, "")
    assert [part for part in taught if part not in outcome.out] == []


def test_dry_run_shows_the_run_and_writes_nothing(folder: Path, attnrl: Attnrl) -> None:
    before = tree(folder)
    outcome = attnrl(*train("optimizer.learning_rate=2e-4", "--dry-run"))
    assert (outcome.code, outcome.err) == (0, "")
    assert tree(folder) == before
    # The first part is the resolved recipe, every default spelled out: it can be saved and used.
    resolved, _, sizes = outcome.out.partition("\n\n")
    (folder / "resolved.yaml").write_text(resolved)
    assert load_config(TrainConfig, "resolved.yaml") == load_config(
        TrainConfig, "attnrl", [*SMALL, "optimizer.learning_rate=2e-4"]
    )
    parameters = sum(p.numel() for p in AutoModelForCausalLM.from_pretrained("tiny").parameters())
    for part in ["tiny (llama", f"{parameters:,} parameters", "float32, cpu", "without end to train on, 3 held out"]:
        assert part in sizes
    # Two problems, three trunks of 1 + 2 * 2 leaves, 96 tokens each.
    assert "2 problems x 3 initial responses, up to 30 responses to train on, at most 2,880 tokens" in sizes
    assert "a new run" in sizes


def test_dry_run_counts_the_problems_of_a_file(folder: Path, attnrl: Attnrl) -> None:
    more = json.dumps({"prompt": "A=1; " * 200, "answer": "1"}) + "\n" + json.dumps({**ROWS[0]}) + "\n"
    (folder / "more.jsonl").write_text((folder / "rows.jsonl").read_text() + more)
    files = [*FILE, "data.train=more.jsonl", "data.eval=rows.jsonl", "data.overlap=warn"]
    outcome = attnrl(*train(*files, "eval.problems=100"), "--dry-run")
    assert outcome.code == 0
    assert "6 to train on, 6 held out" in outcome.out
    assert "data more.jsonl: left out 1 prompt of more than 128 tokens" in outcome.out
    assert "data more.jsonl: left out 1 duplicate" in outcome.out
    assert "data more.jsonl: trains on 6 problems that it is evaluated on" in outcome.out


def test_dry_run_of_sft(folder: Path, attnrl: Attnrl) -> None:
    before = tree(folder)
    outcome = attnrl("sft", "sft_ledger", "seed=5", "--dry-run")
    assert outcome.code == 0 and "seed: 5" in outcome.out and "task: ledger_single" in outcome.out
    assert tree(folder) == before


def read_jsonl(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_run_writes_what_is_promised_and_goes_on_where_it_stopped(folder: Path, attnrl: Attnrl) -> None:
    outcome = attnrl(*train())
    assert outcome.code == 0, outcome.err
    for part in ["Held-out accuracy before:", "Held-out accuracy after:", "2 training steps", "Run directory: out"]:
        assert part in outcome.out

    out = folder / "out"
    names = {path.name for path in out.iterdir()}
    assert names == {"config.yaml", "metrics.jsonl", "timeline.jsonl", "trees.jsonl", "samples.jsonl", "checkpoints"}
    assert load_config(TrainConfig, str(out / "config.yaml")) == load_config(TrainConfig, "attnrl", SMALL)

    metrics = read_jsonl(out / "metrics.jsonl")
    assert [row["step"] for row in metrics] == [0, 1, 2]
    assert all({"eval/accuracy", "eval/pass_at_k", "eval/standard_error"} <= set(row) for row in metrics)
    promised = {"reward", "entropy", "response_length", "prompt_batch_size", "tokens/generated", "tokens/total"}
    promised |= {"tokens/valid", "tokens/valid_ratio", "filtered_ratio", "all_correct_then_valid_ratio", "time/step"}
    promised |= {
        f"{which}/{what}_ratio" for which in ("initial", "mc", "all") for what in ("solve_all", "solve_none", "valid")
    }
    promised |= {f"time/{phase}" for phase in ("plan", "generate", "grade", "score", "train")}
    assert all(promised <= set(row) for row in metrics[1:])
    assert all(isinstance(value, (int, float)) for row in metrics for value in row.values())
    assert metrics[2]["tokens/total"] == metrics[1]["tokens/generated"] + metrics[2]["tokens/generated"]

    samples = read_jsonl(out / "samples.jsonl")
    assert [row["step"] for row in samples] == [0, 0, 1, 1, 2, 2]
    assert set(samples[0]) >= {"problem", "prompt", "response", "answers", "reward", "finish_reason"}
    assert samples[0]["problem"] != samples[1]["problem"]
    assert [row["problem"] for row in samples[:2]] == [row["problem"] for row in samples[2:4]]

    trees = read_jsonl(out / "trees.jsonl")
    assert [row["step"] for row in trees] == [1] * 2 + [2] * int(metrics[2]["prompt_batch_size"])
    tokenizer = AutoTokenizer.from_pretrained("tiny")
    for problem in trees:
        assert len(problem["trees"]) == 3
        for its_tree in problem["trees"]:
            trunk = its_tree["nodes"][0]
            assert tokenizer.decode(trunk["tokens"]) == trunk["text"]
            assert len(its_tree["entropy"]) == len(trunk["tokens"]) <= 96
            assert len(its_tree["fci"]) == len(its_tree["steps"])
            ats = [node["at"] for node in its_tree["nodes"][1:]]
            assert ats == [at for at in its_tree["branch_points"] for _ in range(2)]
            for node in its_tree["nodes"]:
                own = sum(end - start for _, start, end, _, _ in node["segments"])
                assert own == node["at"] + len(node["tokens"])

    checkpoints = out / "checkpoints"
    assert sorted(path.name for path in checkpoints.iterdir()) == ["step-000001", "step-000002"]
    model = AutoModelForCausalLM.from_pretrained(checkpoints / "step-000002")
    assert AutoTokenizer.from_pretrained(checkpoints / "step-000002").vocab_size <= model.config.vocab_size
    assert not [path for path in out.rglob("*") if path.suffix in {".pt", ".pkl", ".bin", ".pth"}]

    # The same command with one more step continues.
    outcome = attnrl(*train("steps=3"), "--dry-run")
    assert f"resumes     {Path('out/checkpoints/step-000002')}" in outcome.out
    assert attnrl(*train("steps=3")).code == 0
    continued = read_jsonl(out / "metrics.jsonl")
    assert [row["step"] for row in continued] == [0, 1, 2, 3]
    assert continued[:3] == metrics
    assert sorted(path.name for path in checkpoints.iterdir()) == ["step-000002", "step-000003"]

    # What is there is not overwritten when the user says that nothing should be resumed.
    before = tree(out)
    outcome = attnrl(*train("resume=never"))
    assert (outcome.code, outcome.err.count("\n")) == (2, 1) and "output_dir out" in outcome.err
    assert tree(out) == before

    # And it can be drawn.
    assert attnrl("plot", "out", "-o", "pictures/out.png").code == 0
    assert "Wrote step 1 to" in attnrl("timeline", "out", "--step", "1", "-o", "pictures/step.png").out
    assert (folder / "pictures" / "out.png").read_bytes().startswith(b"\x89PNG")
    before = tree(folder)
    outcome = attnrl("plot", "out", "-o", "out.xyz")
    assert (outcome.code, outcome.err.count("\n")) == (2, 1) and "out.xyz" in outcome.err
    assert tree(folder) == before


@pytest.mark.parametrize("recipe", ["grpo", "treerl"])
def test_the_other_recipes_train_on_a_file_of_problems(recipe: str, folder: Path, attnrl: Attnrl) -> None:
    outcome = attnrl(*train(*FILE, "steps=1", "data.eval=rows.jsonl", "data.overlap=warn", recipe=recipe))
    assert outcome.code == 0, outcome.err
    rows = read_jsonl(folder / "out" / "metrics.jsonl")
    assert [row["step"] for row in rows] == [0, 1]
    assert ("reward/mc" in rows[1]) == (recipe == "treerl")
    problems = {row["problem"] for row in read_jsonl(folder / "out" / "trees.jsonl")}
    assert len(problems) == 2 and problems <= {problem.id for problem in load_problems(folder / "rows.jsonl")}
    assert "data rows.jsonl: trains on 6 problems that it is evaluated on" in outcome.out  # also at the start of a run


def test_a_run_without_evaluation_or_extras(folder: Path, attnrl: Attnrl) -> None:
    outcome = attnrl(*train("steps=1", "eval.every=0", "log.trees_every=0", "checkpoint.every=0"))
    assert outcome.code == 0, outcome.err
    assert "Held-out" not in outcome.out
    assert not any("eval/accuracy" in row for row in read_jsonl(folder / "out" / "metrics.jsonl"))
    assert read_jsonl(folder / "out" / "trees.jsonl") == read_jsonl(folder / "out" / "samples.jsonl") == []
    assert [path.name for path in (folder / "out" / "checkpoints").iterdir()] == ["step-000001"]  # the last one


def test_eval_prints_tables_and_writes_every_response(folder: Path, attnrl: Attnrl) -> None:
    data = ["--data", "rows.jsonl", "--prompt-suffix", "", "--grader", "rules"]
    outcome = attnrl(*EVAL, *data, "--output", "new/evaluation")
    assert outcome.code == 0, outcome.err
    for part in ["tiny", "rows", "avg@2", "pass@2", "truncated", "95 % confidence", "Written to new/evaluation"]:
        assert part in outcome.out
    assert "paper" not in outcome.out
    rows = read_jsonl(folder / "new" / "evaluation" / "samples.jsonl")
    ids = [problem.id for problem in load_problems("rows.jsonl", prompt_suffix="")[:3]]
    assert [(row["problem"], row["sample"]) for row in rows] == [(name, k) for name in ids for k in range(2)]
    assert [row["prompt"] for row in rows[::2]] == [row["prompt"] for row in ROWS[:3]]
    assert all(row["tokens"] <= 16 and row["finish_reason"] in {"stop", "length"} for row in rows)
    results = json.loads((folder / "new" / "evaluation" / "results.json").read_text())
    assert results["complete"] and results["results"][0]["problems"] == 3

    def responses(*more: str) -> list[str]:
        output = f"again{'-'.join(more)}"
        assert attnrl(*EVAL, *data, "--output", output, *more).code == 0
        return [row["response"] for row in read_jsonl(folder / output / "samples.jsonl")]

    assert responses() == [row["response"] for row in rows]
    assert responses("--seed", "1") != responses()
    greedy = responses("--temperature", "0")
    assert greedy[::2] == greedy[1::2]

    outcome = attnrl(*EVAL, *data, "--output", "again", "--seed", "1")
    assert (outcome.code, outcome.err.count("\n")) == (2, 1) and "seed 0 -> 1" in outcome.err


def test_eval_of_two_models_on_the_papers_benchmarks(folder: Path, attnrl: Attnrl) -> None:
    (folder / "second").symlink_to(folder / "tiny")
    (folder / "aime24_1.jsonl").write_text((folder / "rows.jsonl").read_text())
    (folder / "math500.jsonl").write_text((folder / "long.jsonl").read_text())
    command = ["eval", "tiny", "second", "--benchmark", "aime24,math500", "--data-dir", ".", "--problems", "2"]
    outcome = attnrl(*command, "--samples", "1", "--prompt-suffix", "", "--grader", "rules")
    assert outcome.code == 0, outcome.err
    assert "aime24: 6 problems; the paper's has 30." in outcome.out
    assert "math500: prompts too long for the model, which count as not solved: 1." in outcome.out
    assert "has 512 positions" in outcome.out  # of the paper's 32,768 tokens
    for part in ["AIME24", "MATH-500", "average", "second", "1 skipped", "1.5B + AttnRL (paper)", "39.7", "64.8"]:
        assert part in outcome.out  # 64.8: the mean of the two columns shown
    assert "This run is not comparable to it: 2 problems of AIME24 instead of 30" in outcome.out


def test_eval_of_a_task_takes_its_held_out_problems(folder: Path, attnrl: Attnrl) -> None:
    from attnrl.run import held_out_problems

    assert attnrl(*EVAL, "--task", "ledger_single", "--output", "x").code == 0
    asked = {row["problem"] for row in read_jsonl(folder / "x" / "samples.jsonl")}
    assert asked == {problem.id for problem in held_out_problems("ledger_single", 3)}


def test_sft_makes_a_model_that_eval_reads(folder: Path, attnrl: Attnrl) -> None:
    small = "architecture={model_type: llama, hidden_size: 32, num_hidden_layers: 1, num_attention_heads: 2, "
    small += "intermediate_size: 48, max_position_embeddings: 256}"
    outcome = attnrl("sft", "sft_ledger", "output_dir=base", "batch_size=2", small, stages("ledger_single"))
    assert outcome.code == 0, outcome.err
    assert f"Wrote {Path('base/it')}" in outcome.out
    outcome = attnrl("eval", "base/it", *EVAL[2:], "--task", "ledger_single")
    assert outcome.code == 0, outcome.err
