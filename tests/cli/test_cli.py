"""The command line as a person meets it: what it prints, what it writes, and how it refuses."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import EVAL, FILE, ROWS, SMALL, Attnrl, Outcome, jsonl, stages, train, tree
from transformers import AutoModelForCausalLM, AutoTokenizer

from attnrl import __version__
from attnrl.cli import app as cli
from attnrl.config.load import load_config
from attnrl.config.schema import TrainConfig
from attnrl.data.datasets import load_problems


@pytest.fixture
def folder(tmp_path: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder the commands run in: a model and problems."""
    (tmp_path / "tiny").symlink_to(tiny_checkpoint)
    (tmp_path / "rows.jsonl").write_text(jsonl(*ROWS))
    (tmp_path / "long.jsonl").write_text(jsonl(ROWS[0], {"prompt": "A=1; " * 200, "answer": "1"}))
    (tmp_path / "malformed.jsonl").write_text(jsonl(ROWS[0]) + '{"prompt": "A=1?", "answer"\n')
    monkeypatch.chdir(tmp_path)
    return tmp_path


def a_subprocess(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", "from attnrl.cli.app import main; main()", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )


def test_a_tracker_that_is_not_installed(folder: Path, attnrl: Attnrl, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pytest.importorskip("accelerate.tracking"), "get_available_trackers", list)
    before = tree(folder)
    outcome = attnrl(*train("log.trackers=[wandb]"))
    assert (outcome.code, outcome.err.count("\n")) == (2, 1)
    assert "log.trackers" in outcome.err and "wandb" in outcome.err
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


@pytest.mark.parametrize("arguments", [["--help"], ["eval", "--help"], ["--version"], ["train", "attnrl", "stpes=3"]])
def test_commands_start_without_torch(arguments: list[str]) -> None:
    code = """import sys
from attnrl.cli.app import main
try:
    main()
finally:
    heavy = {"torch", "transformers", "pyarrow", "matplotlib"} & set(sys.modules)
    assert not heavy, heavy
"""
    finished = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, env=os.environ, check=False
    )
    assert finished.returncode == (2 if "stpes=3" in arguments else 0), finished.stderr


def test_the_version_is_the_package_s(attnrl: Attnrl) -> None:
    assert attnrl("--version") == Outcome(0, f"{__version__}\n", "")


def test_ctrl_c_outside_of_training(attnrl: Attnrl, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(**_: object) -> None:
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
    for part in ["tiny (llama", f"{parameters:,} parameters", "float32, cpu", "3 held out"]:
        assert part in sizes
    # Two problems, three trunks of 1 + 2 * 2 leaves, 96 tokens each.
    assert re.search(r"2 problems x 3 .*\b30 .*\b2,880 tokens", sizes)


def test_dry_run_counts_the_problems_of_a_file(folder: Path, attnrl: Attnrl) -> None:
    more = json.dumps({"prompt": "A=1; " * 200, "answer": "1"}) + "\n" + json.dumps({**ROWS[0]}) + "\n"
    (folder / "more.jsonl").write_text((folder / "rows.jsonl").read_text() + more)
    files = [*FILE, "data.train=more.jsonl", "data.eval=rows.jsonl", "data.overlap=warn"]
    outcome = attnrl(*train(*files, "eval.problems=100"), "--dry-run")
    assert outcome.code == 0
    assert "6 to train on, 6 held out" in outcome.out
    assert re.search(r"data more.jsonl: .*\b1 prompt\b.*\b128 tokens", outcome.out)
    assert re.search(r"data more.jsonl: .*\b1 duplicate", outcome.out)
    assert re.search(r"data more.jsonl: .*\b6 evaluation problems\b", outcome.out)


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
    names = {path.name for path in out.iterdir() if path.name != ".lock"}
    records = ("metrics", "timeline", "trees", "samples")
    assert names == {"config.yaml", "model.json", "checkpoints", *(f"{name}.jsonl" for name in records)}
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
            assert len(its_tree["influence"]) == len(its_tree["steps"])
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
    assert str(Path("out/checkpoints/step-000002")) in outcome.out
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
    assert re.search(r"data rows.jsonl: .*\b6 evaluation problems\b", outcome.out)  # also at the start of a run


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
    ids = [problem.id for problem in load_problems("rows.jsonl")[:3]]
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
    assert re.search(r"aime24: 6 problems.*\b30\b", outcome.out)
    assert re.search(r"math500: .*\b1\b", outcome.out)
    assert re.search(r"\b512\b", outcome.out)  # positions, fewer than the paper's 32,768 tokens
    for part in ["AIME24", "MATH-500", "average", "second", "1 skipped", "1.5B + AttnRL (paper)", "39.7", "64.8"]:
        assert part in outcome.out  # 64.8: the mean of the two columns shown
    assert re.search(r"2 problems of AIME24\b.*\b30\b", outcome.out)


def test_eval_of_a_task_takes_its_held_out_problems(folder: Path, attnrl: Attnrl) -> None:
    from attnrl.data.run_data import held_out_problems

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
