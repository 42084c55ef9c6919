"""Bad input of every kind ends in one line that names the place and exit code 2, and nothing is written."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from command_line import EVAL, FILE, ROWS, Attnrl, jsonl, stages, train, tree
from transformers import AutoTokenizer, LlamaConfig

DATA = ["task=null", "data.prompt_suffix=''"]
TASK = ["--task", "ledger"]
SHAPE = "model_type: llama, hidden_size: 32, num_hidden_layers: 1, num_attention_heads: 2, intermediate_size: 48"
RECIPE = "model: tiny\noutput_dir: out\ntask: ledger\nsteps: 1\n"
LAUGHS = "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}' if n else 'ha'] * 10)}]\n" for n in range(12))
GRADERS = """
def fails(prompts, completions, **columns):
    return [1 / (len(prompts) - len(completions)) for _ in prompts]
def fails_beside(prompts, completions, **columns): return fails(prompts, completions)
fails_beside.overlaps = True
def rambles(prompts, completions, **columns): raise ValueError("two\\nlines")
def words(prompts, completions, **columns): return ["good"] * len(prompts)
def scalar(prompts, completions, **columns):
    import numpy
    return numpy.float64(1.0)
async def later(prompts, completions, **columns): raise KeyError("missing column")
"""
METRICS = {"step": 0, "eval/accuracy": 0.5, "eval/standard_error": 0.1}
SPANS = [["generate", 0.0, 1.0], ["train", 1.0, 2.0]]

# Files of the folder in which all cases run.
FILES: dict[str, str | bytes] = {
    "file": "mine",
    "rows.jsonl": jsonl(*ROWS),
    "graders.py": GRADERS,
    "script.py": "import sys\nsys.exit(3)\n",
    "unparsable.py": "def f(:\n",
    # Recipes.
    "list.yaml": "- steps\n",
    "broken.yaml": "steps: [1\n",
    "empty.yaml": "",
    "comment.yaml": "# nothing yet\n",
    "text.yaml": "just text\n",
    "latin1.yaml": "model: M\u00fcller\n".encode("latin-1"),
    "binary.yaml": bytes(range(256)),
    "tab.yaml": "steps:\n\t- 1\n",
    "two.yaml": RECIPE + "---\n" + RECIPE,
    "object.yaml": RECIPE + "seed: !!python/object/apply:os.system ['touch hacked']\n",
    "name.yaml": RECIPE + "seed: !!python/name:os.system\n",
    "twice.yaml": RECIPE + "steps: 2\n",
    "laughs.yaml": LAUGHS,
    "cycle.yaml": "method: &m\n  adaptive: *m\n",
    "merges.yaml": "a: &a {x: 1}\nb: &b {<<: [*a, *a]}\n",
    "deep.yaml": "model: " + "[" * 1500 + "]" * 1500 + "\n",
    "date.yaml": RECIPE + "seed: 2020-13-45\n",
    "digits.yaml": RECIPE + f"seed: 0x{'f' * 5000}\n",
    "nul.yaml": 'model: tiny\noutput_dir: "a\\0b"\ntask: ledger\nsteps: 1\n',
    "keys.yaml": RECIPE + "7: lucky\n",
    "line.yaml": RECIPE + '"a\\nb": 1\n',
    "long.yaml": RECIPE + f"seed: {'x' * 150_000}\n",
    "group.yaml": RECIPE + "method: fci\n",
    "arms.yaml": "output_dir: out\ntokens: 100\narms: {recipe: {recipe: grpo, stings: []}}\n",
    "same.yaml": "output_dir: out\ntokens: 100\narms: {A: {recipe: grpo}, a: {recipe: treerl}}\n",
    "blind.yaml": "output_dir: out\ntokens: 100\narms: {A: {recipe: grpo}}\nsettings: [eval.every=0]\n",
    # Data.
    "empty.jsonl": "",
    "blank.jsonl": "\n\n  \n",
    "malformed.jsonl": jsonl(ROWS[0]) + '{"prompt": "A=1?", "answer"\n',
    "cut.jsonl": jsonl(*ROWS)[:-5],
    "unanswered.jsonl": jsonl(ROWS[0], {"prompt": "A=1?"}),
    "numbers.jsonl": "1\n2\n",
    "unasked.jsonl": jsonl(ROWS[0], {"answer": "1"}),
    "null.jsonl": jsonl({"prompt": None, "answer": "1"}),
    "blank_prompt.jsonl": jsonl({"prompt": "  ", "answer": "1"}),
    "number_prompt.jsonl": jsonl({"prompt": 5, "answer": "1"}),
    "no_messages.jsonl": jsonl({"prompt": [], "answer": "1"}),
    "role.jsonl": jsonl({"prompt": [{"role": 1, "content": "A=1?"}], "answer": "1"}),
    "system.jsonl": jsonl({"prompt": [{"role": "system", "content": "A=1?"}], "answer": "1"}),
    "mixed.jsonl": jsonl(ROWS[0], ["A=1?", "1"]),
    "infinite.jsonl": '{"prompt": "A=1?", "answer": Infinity}\n',
    "nan.jsonl": '{"prompt": "A=1?", "answer": NaN}\n',
    "object.jsonl": jsonl({"prompt": "A=1?", "answer": {"value": 1}}),
    "hole.jsonl": jsonl({"prompt": "A=1?", "answer": ["1", " "]}),
    "all_empty.jsonl": jsonl({"prompt": "A=1?", "answer": ""}),
    "surrogate.jsonl": '{"prompt": "A=1?", "answer": "\\ud800"}\n',
    "source.jsonl": '{"prompt": "A=1?", "answer": "1", "data_source": "\\ud800"}\n',
    "digits.jsonl": '{"prompt": "A=1?", "answer": ' + "9" * 5000 + "}\n",
    "deep.jsonl": '{"prompt": "A=1?", "answer": "1", "more": ' + "[" * 100_000 + "]" * 100_000 + "}\n",
    "nested.jsonl": '{"prompt": "A=1?", "answer": "1", "more": ' + "[" * 600 + "]" * 600 + "}\n",
    "latin1.jsonl": jsonl(ROWS[0]).encode() + '{"prompt": "\u00fc", "answer": "1"}\n'.encode("latin-1"),
    "utf16.jsonl": jsonl(*ROWS).encode("utf-16"),
    "object.json": json.dumps({"rows": len(ROWS)}),
    "broken.json": "[\n" + json.dumps(ROWS[0]) + ",\n",
    "empty.json": "[]",
    "text.parquet": "not a table",
    "empty.parquet": "",
    "ragged.csv": "prompt,answer\nA=1?,1\nA=2?\n",
    "twins.csv": "answer,answer\n1,1\n",
    "header.csv": "prompt,answer\n",
    "open.csv": 'prompt,answer\n"A=1?,1\n',
    "columns.csv": "question;answer\nA=1?;1\n",
    "notes.txt": "A=1?",
    # Responses to grade.
    "responses.jsonl": jsonl({"response": "\\boxed{1}", "answer": "1"}),
    "silent.jsonl": jsonl({"answer": "1"}),
    "response_number.jsonl": jsonl({"response": 5, "answer": "1"}),
    "gold_list.jsonl": jsonl({"response": "5", "answer": [["1"]]}),
    "gold_none.jsonl": jsonl({"response": "5", "answer": "5"}, {"response": "5"}),
}
# Run directories, evaluations and comparisons: files by folder.
FOLDERS: dict[str, dict[str, str | bytes]] = {
    "bare": {},
    "run": {
        "config.yaml": RECIPE,
        "metrics.jsonl": jsonl(METRICS),
        "timeline.jsonl": jsonl({"step": 1, "spans": SPANS}),
    },
    "run_not_json": {"metrics.jsonl": "{\n" + jsonl(METRICS)},
    "run_of_lists": {"metrics.jsonl": jsonl([1, 2], METRICS), "timeline.jsonl": jsonl([1, SPANS])},
    "run_of_words": {"metrics.jsonl": jsonl({**METRICS, "eval/accuracy": "high"}, METRICS)},
    "run_of_wordy_time": {"metrics.jsonl": jsonl({**METRICS, "time/step": "long"})},
    "run_unevaluated": {"metrics.jsonl": jsonl({"step": 1})},
    "run_stepless": {"metrics.jsonl": jsonl({"eval/accuracy": 0.5})},
    "run_spanless": {"timeline.jsonl": jsonl({"step": 1})},
    "run_other_phase": {"timeline.jsonl": jsonl({"step": 1, "spans": [["sleep", 0, 1]]})},
    "run_no_spans": {"timeline.jsonl": jsonl({"step": 1, "spans": []})},
    "run_of_pairs": {"timeline.jsonl": jsonl({"step": 1, "spans": [["train", 1]]})},
    "run_trees_not_json": {"metrics.jsonl": jsonl(METRICS), "trees.jsonl": "{}\n"},
    "run_trees_of_others": {"metrics.jsonl": jsonl(METRICS), "trees.jsonl": jsonl({"step": 1, "trees": 3})},
    "run_lost": {"config.yaml": "steps: [1\n"},
    "run_damaged": {"config.yaml": RECIPE, "checkpoints/step-000001/trainer_state.json": "{}"},
    "checkpoint_not_json": {
        "trainer_state.json": "{",
        "manifest.json": json.dumps({"files": {"trainer_state.json": {"size": 2, "sha256": "0"}}}),
    },
    "checkpoint_of_nothing": {"trainer_state.json": "{}"},
    "checkpoint_of_words": {
        "trainer_state.json": json.dumps({"updates": 1, "trainer": {"step": "three"}}),
        "manifest.json": json.dumps({"files": {}}),
    },
    "eval_not_json": {"results.json": "{"},
    "eval_of_others": {"results.json": "{}"},
    "eval_of_lists": {"results.json": json.dumps({key: [] for key in ("settings", "models", "benchmarks", "results")})},
    "eval_samples_only": {"samples.jsonl": jsonl({"mine": 1})},
    "compared": {"results.json": "[]"},
    "compared_words": {"results.json": json.dumps({"comparison": {}, "runs": "none"})},
    "disrupted": {"results.json": "{}"},
}


@pytest.fixture(scope="module")
def bad_things(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> Path:
    """One folder for all cases, since none of them may change it."""
    folder = tmp_path_factory.mktemp("bad-things")
    for name, content in FILES.items():
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    for name, files in FOLDERS.items():
        (folder / name).mkdir()
        for file, content in files.items():
            (folder / name / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / name / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    (folder / "dir.jsonl").mkdir()
    (folder / "dir.yaml").mkdir()
    (folder / "tiny").symlink_to(tiny_checkpoint)
    write_tables(folder)
    write_models(folder, tiny_checkpoint)
    return folder


def write_tables(folder: Path) -> None:
    table = pyarrow.table({"prompt": ["A=1?"], "answer": ["1"]})
    pyarrow.parquet.write_table(table, folder / "whole.parquet")
    whole = (folder / "whole.parquet").read_bytes()
    (folder / "cut.parquet").write_bytes(whole[: len(whole) // 2])
    (folder / "garbled.parquet").write_bytes(whole[:20] + bytes(40) + whole[60:])
    pyarrow.parquet.write_table(table.slice(0, 0), folder / "no_rows.parquet")
    pyarrow.parquet.write_table(table.rename_columns(["text", "label"]), folder / "columns.parquet")
    late = pyarrow.table({"prompt": ["A=1?"], "answer": ["1"], "when": pyarrow.array([2**62], pyarrow.timestamp("us"))})
    pyarrow.parquet.write_table(late, folder / "late.parquet")


def write_models(folder: Path, tiny_checkpoint: Path) -> None:
    (folder / "weightless").mkdir()
    LlamaConfig().save_pretrained(folder / "weightless")
    AutoTokenizer.from_pretrained(tiny_checkpoint).save_pretrained(folder / "weightless")
    (folder / "wordless").mkdir()
    LlamaConfig().save_pretrained(folder / "wordless")
    for name in ("cut", "garbled", "not_json", "of_a_list", "unheard_of", "misspoken", "endless", "misshapen", "many"):
        shutil.copytree(tiny_checkpoint, folder / name)
    weights = (tiny_checkpoint / "model.safetensors").read_bytes()
    (folder / "cut" / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    (folder / "garbled" / "model.safetensors").write_bytes(b"\xff" * 64)
    config = json.loads((tiny_checkpoint / "config.json").read_text())
    (folder / "not_json" / "config.json").write_text("{")
    (folder / "of_a_list" / "config.json").write_text("[]")
    (folder / "unheard_of" / "config.json").write_text(json.dumps({**config, "model_type": "unheard_of"}))
    (folder / "misshapen" / "config.json").write_text(json.dumps({**config, "intermediate_size": 40}))
    (folder / "many" / "config.json").write_text(json.dumps({**config, "hidden_size": "many"}))
    (folder / "misspoken" / "tokenizer.json").write_text("{}")
    settings = json.loads((tiny_checkpoint / "tokenizer_config.json").read_text())
    (folder / "endless" / "tokenizer_config.json").write_text(json.dumps({**settings, "eos_token": None}))
    for name in FOLDERS:
        if name.startswith("checkpoint_"):
            shutil.copytree(tiny_checkpoint, folder / name, dirs_exist_ok=True)


def data(file: str, *changes: str) -> list[str]:
    return train(*DATA, f"data.train={file}", *changes)


def evaluate(*arguments: str) -> list[str]:
    return [*EVAL, *TASK, *arguments]


# Arguments, and what the one line has to name.
BAD_INPUT: dict[str, tuple[list[str], list[str]]] = {
    # --- Recipes ---
    "wrong key": (train("stpes=3"), ["recipe attnrl", "stpes", "steps"]),
    "wrong key deep down": (train("method.branching.rh=0.1"), ["method.branching.rh", "rho"]),
    "value out of range": (train("method.branching.rho=2"), ["method.branching.rho", "2"]),
    "value of another type": (train("steps=many"), ["steps", "'many'"]),
    "override without =": (train("steps"), ["override 'steps'", "key.path=value"]),
    "override through a value": (train("steps.more=1"), ["'steps.more=1'"]),
    "grpo with branches": (train("method.branching.points=2", recipe="grpo"), ["method", "branching.points=0"]),
    "unknown recipe": (train(recipe="atnrl"), ["'atnrl'", "attnrl, attnrl_plus, grpo"]),
    "recipe file that is not there": (train(recipe="mine.yaml"), ["mine.yaml"]),
    "recipe that is a list": (train(recipe="list.yaml"), ["list.yaml", "list"]),
    "recipe that is not YAML": (train(recipe="broken.yaml"), ["broken.yaml"]),
    "recipe of another command": (train(recipe="sft_ledger"), ["recipe sft_ledger", "stages"]),
    "missing model": (train("model=nowhere"), ["model nowhere"]),
    "model directory without config": (train("model=bare"), ["model bare", "config.json"]),
    "model directory without weights": (train("model=weightless"), ["model weightless"]),
    "model directory without tokenizer": (train("model=wordless"), ["model wordless", "tokenizer"]),
    "unknown task": (train("task=leger"), ["'leger'", "ledger_long"]),
    "both task and file": (train("data.train=rows.jsonl"), ["either task or data.train"]),
    "neither task nor file": (train("task=null"), ["either task or data.train"]),
    "missing data file": (train("task=null", "data.train=no.jsonl"), ["no.jsonl"]),
    "empty data file": (train("task=null", "data.train=empty.jsonl"), ["empty.jsonl"]),
    "malformed data file": (train("task=null", "data.train=malformed.jsonl"), ["malformed.jsonl, line 2"]),
    "row without answer": (train("task=null", "data.train=unanswered.jsonl"), ["unanswered.jsonl, line 2", "answer"]),
    "faulty evaluation file": (train(*FILE, "data.eval=empty.jsonl"), ["empty.jsonl"]),
    "of an unknown kind": (train("task=null", "data.train=file"), ["file", ".parquet"]),
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
        ["data.train", "ledger"],
    ),
    "unknown grader": (train("grader=exact"), ["grader", "exact"]),
    "prompts of the task too long": (train("sampling.max_prompt_tokens=5"), ["problem ledger:", "max_prompt_tokens"]),
    "more positions than the model has": (
        train("sampling.max_new_tokens=1000"),
        ["max_prompt_tokens + max_new_tokens = 1128", "512"],
    ),
    "device nonsense": (train("device=banana"), ["device", "'banana'"]),
    "device that is not here": (train("device=cuda:99"), ["device", "cuda:99"]),
    "output_dir that is a file": (train("output_dir=file"), ["output_dir file"]),
    "output_dir below a file": (train("output_dir=file/out"), ["output_dir file/out"]),
    "resume from nowhere": (train("resume=nowhere"), ["resume=nowhere"]),
    "eval without a task or data": (EVAL, ["--benchmark", "--task", "--data"]),
    "eval of an unknown benchmark": (
        [*EVAL, "--benchmark", "aime26", "--data-dir", "."],
        ["'aime26'", "rows.jsonl", "aime24, aime25", "--data-dir ."],
    ),
    "eval of a benchmark from nowhere": ([*EVAL, "--benchmark", "x=no.jsonl"], ["no.jsonl"]),
    "eval of one model twice": (["eval", "tiny", *EVAL[1:], "--task", "ledger"], ["model"]),
    "eval with an unknown grader": ([*EVAL, "--task", "ledger", "--grader", "exact"], ["exact", "module:object"]),
    "eval with both": ([*EVAL, "--task", "ledger", "--data", "rows.jsonl"], ["--task", "--data"]),
    "eval of no model": (["eval", "nowhere", "--task", "ledger"], ["model nowhere"]),
    "eval of an unknown task": ([*EVAL, "--task", "leger"], ["'leger'", "ledger_long"]),
    "eval with a faulty file": (
        [*EVAL, "--data", "malformed.jsonl", "--output", "new/x.jsonl"],
        ["malformed.jsonl, line 2"],
    ),
    "eval with prompts too long": (
        [*EVAL, "--data", "rows.jsonl", "--max-prompt-tokens", "3"],
        ["model tiny", "rows"],
    ),
    "eval in an unknown dtype": ([*EVAL, "--task", "ledger", "--dtype", "int8"], ["--dtype int8"]),
    "eval with an impossible top-p": ([*EVAL, "--task", "ledger", "--top-p", "0"], ["--top-p 0"]),
    "eval to a file below a file": ([*EVAL, "--task", "ledger", "--output", "file/x.jsonl"], ["file/x.jsonl"]),
    "eval to a file": ([*EVAL, "--task", "ledger", "--output", "file"], ["--output file"]),
    "sft of an unknown task": (["sft", "sft_ledger", "output_dir=out", stages("leger")], ["stages.0.task", "leger"]),
    "sft of a task with a wrong key": (["sft", "sft_ledger", stages("x, rate: 1")], ["stages.0.rate"]),
    "sft of an unknown architecture": (
        ["sft", "sft_ledger", "output_dir=out", "architecture.model_type=lama"],
        ["architecture", "lama"],
    ),
    "sft to a file": (["sft", "sft_ledger", "output_dir=file/out", stages("ledger")], ["output_dir file/out"]),
    "compare of unknown recipes": (["compare", "grpo,atnrl", "tokens=1000"], ["arm atnrl", "recipe 'atnrl'"]),
    "compare without a budget": (["compare", "grpo,attnrl"], ["comparison grpo,attnrl", "tokens"]),
    "compare of a file that is none": (["compare", "list.yaml"], ["comparison list.yaml"]),
    "point of an unknown task": (["point", "tiny", "--task", "leger"], ["'leger'", "ledger_long"]),
    "point of no model": (["point", "nowhere", "--task", "ledger"], ["model nowhere"]),
    "plot of no run": (["plot", "bare"], ["bare"]),
    "timeline of nothing": (["timeline", "nowhere"], ["nowhere"]),
    "plot of nothing": (["plot", "nowhere"], ["nowhere"]),
    "recipe that is a directory": (train(recipe="dir.yaml"), ["recipe dir.yaml"]),
    "empty recipe": (train(recipe="empty.yaml"), ["recipe empty.yaml", "NoneType"]),
    "recipe of comments": (train(recipe="comment.yaml"), ["recipe comment.yaml", "NoneType"]),
    "recipe of text": (train(recipe="text.yaml"), ["recipe text.yaml", "str"]),
    "recipe in another encoding": (train(recipe="latin1.yaml"), ["recipe latin1.yaml"]),
    "recipe of bytes": (train(recipe="binary.yaml"), ["recipe binary.yaml"]),
    "recipe with tabs": (train(recipe="tab.yaml"), ["recipe tab.yaml", "line 2"]),
    "two recipes in a file": (train(recipe="two.yaml"), ["recipe two.yaml", "line 5"]),
    "recipe that calls a function": (train(recipe="object.yaml"), ["recipe object.yaml", "python/object", "line 5"]),
    "recipe that names a function": (train(recipe="name.yaml"), ["recipe name.yaml", "python/name", "line 5"]),
    "recipe that gives a key twice": (
        train(recipe="twice.yaml"),
        ["recipe twice.yaml", "steps", "line 5"],
    ),
    "recipe of a billion laughs": (train(recipe="laughs.yaml"), ["recipe laughs.yaml", "10,000"]),
    "recipe inside itself": (train(recipe="cycle.yaml"), ["recipe cycle.yaml"]),
    "recipe of many merges": (train(recipe="merges.yaml"), ["recipe merges.yaml", "line 2"]),
    "recipe nested without end": (train(recipe="deep.yaml"), ["recipe deep.yaml"]),
    "recipe with a day that is none": (train(recipe="date.yaml"), ["recipe date.yaml"]),
    "recipe with a number without end": (train(recipe="digits.yaml"), ["recipe digits.yaml"]),
    "recipe with NUL": (train(recipe="nul.yaml"), ["recipe nul.yaml", "NUL"]),
    "recipe with a number for a key": (train(recipe="keys.yaml"), ["recipe keys.yaml", "7"]),
    "recipe with a key of two lines": (train(recipe="line.yaml"), ["recipe line.yaml", r"'a\nb'"]),
    "recipe with a value of pages": (train(recipe="long.yaml"), ["recipe long.yaml: seed", "xxx..."]),
    "recipe with a value for a group": (["train", "group.yaml"], ["recipe group.yaml", "method", "'fci'"]),
    "recipe that is a data file": (train(recipe="rows.jsonl"), ["'rows.jsonl'"]),
    # --- Overrides ---
    "empty override": (train(""), ["override ''", "key.path=value"]),
    "override without a key": (train("=3"), ["override '=3'", "key.path=value"]),
    "override with a hole in its path": (train("method..trunks=3"), ["'method..trunks=3'", "key.path=value"]),
    "override of an unknown group": (train("methods.trunks=3"), ["methods", "method"]),
    "override of a group by a value": (train("sampling=3"), ["sampling", "got 3"]),
    "override by broken YAML": (train("log.trackers=[wandb"), ["'log.trackers=[wandb'"]),
    "override that calls a function": (
        train("seed=!!python/object/apply:os.system ['touch hacked']"),
        ["override", "seed=!!python"],
    ),
    "override by a tag that does not fit": (train("seed=!!bool maybe"), ["'seed=!!bool maybe'"]),
    "learning rate that is not a number": (train("optimizer.learning_rate=nan"), ["optimizer.learning_rate", "nan"]),
    "learning rate without bound": (train("optimizer.learning_rate=inf"), ["optimizer.learning_rate", "inf"]),
    "growth without bound": (train("method.adaptive.max_growth=inf"), ["method.adaptive.max_growth", "inf"]),
    "temperature without bound": (train("sampling.temperature=1e999"), ["sampling.temperature", "inf"]),
    "half a step": (train("steps=2.5"), ["steps", "2.5"]),
    "no steps": (train("steps=0"), ["steps"]),
    "seed out of range": (train(f"seed={2**64}"), ["seed", "9223372036854775808"]),
    "threads out of range": (train("threads=100000"), ["threads", "1024"]),
    "one beta": (train("optimizer.betas=[0.9]"), ["optimizer.betas.1"]),
    "importance without both log-probs": (
        train("loss.tis=2", "sampling.score_continuations=false"),
        ["loss.tis", "sampling.score_continuations=true"],
    ),
    "no data file named": (train("task=null", "data.train=[]"), ["data.train"]),
    "unknown tracker": (train("log.trackers=[mlflow]"), ["log.trackers.0", "'mlflow'"]),
    "reasoning-gym with a parameter that is none": (
        train("task=reasoning_gym:chain_sum?terms=3"),
        ["reasoning_gym:chain_sum?terms=3", "terms"],
    ),
    "reasoning-gym with a mapping": (
        train("task='reasoning_gym:chain_sum?min_terms={a: 1}'"),
        ["reasoning_gym:chain_sum?min_terms"],
    ),
    # --- Data ---
    "that is a directory": (data("dir.jsonl"), ["dir.jsonl"]),
    "data folder that holds nothing": (data("bare"), ["data set bare"]),
    "blank data file": (data("blank.jsonl"), ["blank.jsonl"]),
    "cut short": (data("cut.jsonl"), ["cut.jsonl, line 6"]),
    "rows that are numbers": (data("numbers.jsonl"), ["numbers.jsonl, line 1", "int"]),
    "row without a prompt": (data("unasked.jsonl"), ["unasked.jsonl, line 2", "prompt, problem, question"]),
    "prompt that is null": (data("null.jsonl"), ["null.jsonl, line 1"]),
    "prompt of spaces": (data("blank_prompt.jsonl"), ["blank_prompt.jsonl, line 1", "prompt"]),
    "prompt that is a number": (data("number_prompt.jsonl"), ["number_prompt.jsonl, line 1", "prompt"]),
    "chat without messages": (data("no_messages.jsonl"), ["no_messages.jsonl, line 1"]),
    "role that is a number": (data("role.jsonl"), ["role.jsonl, line 1", "role"]),
    "chat without a user": (data("system.jsonl"), ["system.jsonl, line 1"]),
    "rows of several kinds": (data("mixed.jsonl"), ["mixed.jsonl, line 2", "list"]),
    "answer without bound": (data("infinite.jsonl"), ["infinite.jsonl, line 1", "answer"]),
    "answers that are not a number": (data("nan.jsonl"), ["nan.jsonl", "every row"]),
    "answer that is an object": (data("object.jsonl"), ["object.jsonl, line 1", "answer"]),
    "list of answers with a hole": (data("hole.jsonl"), ["hole.jsonl, line 1"]),
    "no answer in any row": (data("all_empty.jsonl"), ["all_empty.jsonl"]),
    "answer of half a character": (data("surrogate.jsonl"), ["surrogate.jsonl, line 1", "answer"]),
    "source of half a character": (data("source.jsonl"), ["source.jsonl, line 1", "data_source"]),
    "answer of thousands of digits": (data("digits.jsonl"), ["digits.jsonl, line 1"]),
    "row nested without end": (data("deep.jsonl"), ["deep.jsonl, line 1"]),
    "row nested deep": (data("nested.jsonl"), ["nested.jsonl, line 1"]),
    "in another encoding": (data("latin1.jsonl"), ["latin1.jsonl"]),
    "in UTF-16": (data("utf16.jsonl"), ["utf16.jsonl"]),
    "json that is no list": (data("object.json"), ["object.json"]),
    "json cut short": (data("broken.json"), ["broken.json, line 3"]),
    "json of no rows": (data("empty.json"), ["empty.json"]),
    "parquet that is text": (data("text.parquet"), ["text.parquet"]),
    "parquet of no bytes": (data("empty.parquet"), ["empty.parquet"]),
    "parquet cut short": (data("cut.parquet"), ["cut.parquet"]),
    "parquet with a hole": (data("garbled.parquet"), ["garbled.parquet"]),
    "parquet of no rows": (data("no_rows.parquet"), ["no_rows.parquet"]),
    "parquet with other columns": (data("columns.parquet"), ["columns.parquet, row 0", "text, label"]),
    "parquet of a time without a calendar": (data("late.parquet"), ["late.parquet"]),
    "csv with a short row": (data("ragged.csv"), ["ragged.csv, line 3", "1 field", "2 column"]),
    "csv with one name twice": (data("twins.csv"), ["twins.csv, line 1"]),
    "csv of a header": (data("header.csv"), ["header.csv"]),
    "csv with an open quote": (data("open.csv"), ["open.csv, line 2"]),
    "csv with other separators": (data("columns.csv"), ["columns.csv, line 1", "question;answer"]),
    "second file that is missing": (data("[rows.jsonl, no.jsonl]"), ["no.jsonl"]),
    "data that is a text file": (data("notes.txt"), ["notes.txt", ".parquet, .jsonl"]),
    "data of impossible name": (data("'a b:c[d'"), ["a b:c[d"]),
    # --- Models and checkpoints ---
    "weights cut short": (train("model=cut"), ["model cut"]),
    "weights that are none": (train("model=garbled"), ["model garbled"]),
    "config that is not JSON": (train("model=not_json"), ["model not_json"]),
    "config that is a list": (train("model=of_a_list"), ["model of_a_list"]),
    "architecture unheard of": (train("model=unheard_of"), ["model unheard_of", "unheard_of"]),
    "tokenizer that is broken": (train("model=misspoken"), ["model misspoken", "tokenizer"]),
    "tokenizer without an end": (train("model=endless"), ["model endless"]),
    "model that is a file": (train("model=file"), ["model file"]),
    "resume from a directory that is no checkpoint": (train("resume=bare"), ["resume=bare"]),
    "resume from a model": (train("resume=tiny"), ["resume=tiny", "trainer_state.json"]),
    "resume from a state that is not JSON": (
        train("resume=checkpoint_not_json"),
        ["resume=checkpoint_not_json", "trainer_state.json"],
    ),
    "resume from a state of nothing": (
        train("resume=checkpoint_of_nothing"),
        ["resume=checkpoint_of_nothing", "manifest.json"],
    ),
    "resume from a state of words": (
        train("resume=checkpoint_of_words"),
        ["checkpoint_of_words/trainer_state.json"],
    ),
    "run of which every checkpoint is damaged": (
        train("output_dir=run_damaged"),
        ["run_damaged/checkpoints/step-000001"],
    ),
    "config with text for a number": (train("model=many"), ["model many"]),
    "verl without verl": (
        train("engine=verl", "sampling.score_continuations=true"),
        ["engine=verl", "attnrl[verl]"],
    ),
    "verl with the log-probs of vLLM": (train("engine=verl"), ["sampling.score_continuations", "vllm"]),
    "verl with FCI of spread sequences": (
        train("engine=verl", "verl.sequence_parallel=2"),
        ["verl.sequence_parallel=2", "FCI"],
    ),
    "export of nothing": (["export", "nowhere", "out"], ["nowhere"]),
    "weights of another shape": (train("model=misshapen"), ["model misshapen"]),
    "run whose settings are lost": (train("output_dir=run_lost"), ["run_lost/config.yaml"]),
    # --- Graders ---
    "grader without a function": (train("grader='graders:'"), ["grader", "graders:", "module:object"]),
    "grader that is not there": (train("grader=graders:nothing"), ["grader", "graders", "nothing"]),
    "grader of a module that is not there": (train("grader=nowhere:f"), ["grader", "nowhere"]),
    "grader that is not Python": (train("grader=unparsable:f"), ["grader", "unparsable", "SyntaxError", "line 1"]),
    "grader that is a script": (train("grader=script:f"), ["grader", "script", "SystemExit"]),
    "grade with a grader that fails": (
        ["grade", "responses.jsonl", "-o", "new/graded.jsonl", "--grader", "graders:fails"],
        ["grader: graders:fails", "ZeroDivisionError: division by zero", "graders.py, line 3"],
    ),
    "grade with a grader of many words": (
        ["grade", "responses.jsonl", "-o", "graded.jsonl", "--grader", "graders:rambles"],
        ["grader: graders:rambles", "ValueError: two lines", "graders.py, line 6"],
    ),
    "grade with a grader that fails later": (
        ["grade", "responses.jsonl", "-o", "graded.jsonl", "--grader", "graders:later"],
        ["grader: graders:later", "KeyError: 'missing column'"],
    ),
    "grade with a grader of words": (
        ["grade", "responses.jsonl", "-o", "graded.jsonl", "--grader", "graders:words"],
        ["grader", "graders:words", "str"],
    ),
    "grade with a grader of one number": (
        ["grade", "responses.jsonl", "-o", "graded.jsonl", "--grader", "graders:scalar"],
        ["grader", "graders:scalar"],
    ),
    "eval with a grader that fails": (
        evaluate("--grader", "graders:fails", "--samples", "1", "--problems", "1"),
        ["grader: graders:fails", "ZeroDivisionError"],
    ),
    # --- grade ---
    "grade of nothing": (["grade", "no.jsonl", "-o", "graded.jsonl"], ["no.jsonl"]),
    "grade of an empty file": (["grade", "empty.jsonl", "-o", "graded.jsonl"], ["empty.jsonl"]),
    "grade without an output": (["grade", "responses.jsonl"], ["--output", "attnrl grade --help"]),
    "grade of malformed rows": (["grade", "malformed.jsonl", "-o", "g.jsonl"], ["malformed.jsonl, line 2"]),
    "grade of other rows": (["grade", "numbers.jsonl", "-o", "g.jsonl"], ["numbers.jsonl, line 1"]),
    "grade of no response": (["grade", "silent.jsonl", "-o", "g.jsonl"], ["silent.jsonl, line 1"]),
    "grade of a number": (
        ["grade", "response_number.jsonl", "-o", "g.jsonl"],
        ["response_number.jsonl, line 1", "int"],
    ),
    "grade without an answer": (
        ["grade", "gold_none.jsonl", "-o", "g.jsonl"],
        ["gold_none.jsonl, line 2"],
    ),
    "grade by lists of lists": (["grade", "gold_list.jsonl", "-o", "g.jsonl"], ["gold_list.jsonl, line 1", "answer"]),
    "grade of a table": (["grade", "whole.parquet", "-o", "g.jsonl"], ["whole.parquet"]),
    "grade of a row nested without end": (
        ["grade", "deep.jsonl", "-o", "g.jsonl"],
        ["deep.jsonl, line 1"],
    ),
    "grade onto itself": (["grade", "responses.jsonl", "-o", "responses.jsonl"], ["--output responses.jsonl"]),
    "grade below a file": (["grade", "responses.jsonl", "-o", "file/g.jsonl"], ["--output file/g.jsonl"]),
    "grade into a directory": (["grade", "responses.jsonl", "-o", "bare"], ["--output bare"]),
    "grade with no worker": (["grade", "responses.jsonl", "-o", "g.jsonl", "--workers", "0"], ["--workers"]),
    "grade without time": (["grade", "responses.jsonl", "-o", "g.jsonl", "--deadline", "0"], ["deadline 0"]),
    "grade with a deadline that is not a number": (
        ["grade", "responses.jsonl", "-o", "g.jsonl", "--deadline", "nan"],
        ["deadline nan"],
    ),
    "grade with a deadline without end": (
        ["grade", "responses.jsonl", "-o", "g.jsonl", "--deadline", "inf"],
        ["deadline inf"],
    ),
    # --- eval ---
    "eval at a temperature below zero": (evaluate("--temperature", "-1"), ["--temperature", "attnrl eval --help"]),
    "eval at a temperature that is not a number": (evaluate("--temperature", "nan"), ["--temperature"]),
    "eval at an endless temperature": (evaluate("--temperature", "inf"), ["--temperature inf"]),
    "eval of no samples": (evaluate("--samples", "0"), ["--samples"]),
    "eval of half a problem": (evaluate("--problems", "0.5"), ["--problems"]),
    "eval with an unknown flag": (evaluate("--tempreature", "1"), ["--tempreature", "--temperature"]),
    "eval with a flag without its value": (evaluate("--seed"), ["--seed"]),
    "eval with a seed of words": (evaluate("--seed", "lucky"), ["--seed"]),
    "eval on nothing that is there": (evaluate("--device", "tpu"), ["device", "tpu"]),
    "eval of no benchmark": ([*EVAL, "--benchmark", ","], ["--benchmark", "aime24"]),
    "eval of a benchmark twice": (
        [*EVAL, "--benchmark", "x=rows.jsonl,x=rows.jsonl"],
        ["--benchmark", "x"],
    ),
    "eval of a benchmark without a file": ([*EVAL, "--benchmark", "x="], ["--benchmark 'x='", "NAME=PATH"]),
    "eval of benchmarks in a file": (
        [*EVAL, "--benchmark", "aime24", "--data-dir", "file"],
        ["--data-dir file"],
    ),
    "eval with weights cut short": (
        ["eval", "cut", *EVAL[2:], *TASK, "--output", "new/it"],
        ["model cut", "model.safetensors"],
    ),
    "eval of a model without weights": (["eval", "weightless", *EVAL[2:], *TASK], ["model weightless"]),
    "eval into results that are not JSON": (
        evaluate("--output", "eval_not_json"),
        ["eval_not_json/results.json"],
    ),
    "eval into other results": (
        evaluate("--output", "eval_of_others"),
        ["eval_of_others/results.json"],
    ),
    "eval into results of lists": (
        evaluate("--output", "eval_of_lists"),
        ["eval_of_lists/results.json"],
    ),
    "eval into samples of something else": (
        evaluate("--output", "eval_samples_only"),
        ["eval_samples_only", "samples"],
    ),
    # --- compare ---
    "compare with a wrong key in an arm": (["compare", "arms.yaml"], ["comparison arms.yaml", "stings"]),
    "compare of two names that are one": (["compare", "same.yaml"], ["comparison same.yaml", "arms"]),
    "compare without evaluation": (["compare", "blind.yaml"], ["arm A", "eval.every=0"]),
    "compare of one seed twice": (["compare", "grpo", "tokens=9", "seeds=[1, 1]"], ["seeds", "[1, 1]"]),
    "compare of no seed": (["compare", "grpo", "tokens=9", "seeds=[]"], ["seeds"]),
    "compare to a target out of range": (["compare", "grpo", "tokens=9", "target=80"], ["target", "80"]),
    "compare of nothing": (["compare", ""], ["comparison"]),
    "compare without a run": (
        ["compare", "grpo", "tokens=9", "output_dir=bare", "--no-train"],
        ["seed"],
    ),
    "compare below a file": (["compare", "grpo", "tokens=9", "output_dir=file/out"], ["output_dir file/out"]),
    "compare after other results": (
        ["compare", "grpo", "tokens=9", "output_dir=compared"],
        ["compared/results.json"],
    ),
    "compare after results of words": (
        ["compare", "grpo", "tokens=9", "output_dir=compared_words"],
        ["compared_words/results.json"],
    ),
    # --- disrupt and point ---
    "disrupt of neither": (["disrupt", "tiny"], ["--task", "--data"]),
    "disrupt hiding from nowhere": (["disrupt", "tiny", *TASK, "--hide-from", "start"], ["--hide-from start"]),
    "disrupt of no share": (["disrupt", "tiny", *TASK, "--rho", "0"], ["--rho 0"]),
    "disrupt of all and more": (["disrupt", "tiny", *TASK, "--rho", "1.5"], ["--rho"]),
    "disrupt of no model": (["disrupt", "nowhere", *TASK], ["model nowhere"]),
    "disrupt where results are": (["disrupt", "tiny", *TASK, "--output", "disrupted"], ["--output disrupted"]),
    "disrupt below a file": (["disrupt", "tiny", *TASK, "--output", "file/out"], ["--output file/out"]),
    "disrupt of more tokens than positions": (
        ["disrupt", "tiny", *TASK, "--problems", "1", "--max-new-tokens", "5000"],
        ["--max-new-tokens 5000"],
    ),
    "disrupt of a faulty file": (["disrupt", "tiny", "--data", "malformed.jsonl"], ["malformed.jsonl, line 2"]),
    "point without a task": (["point", "tiny"], ["--task", "attnrl point --help"]),
    "point of a task without a graph": (
        ["point", "tiny", "--task", "reasoning_gym:chain_sum", "--problems", "1"],
        ["reasoning_gym:chain_sum"],
    ),
    "point below a file": (["point", "tiny", *TASK, "--problems", "1", "-o", "file/out"], ["--output file/out"]),
    "point to no line": (["point", "tiny", *TASK, "--pivotal", "0"], ["--pivotal"]),
    "point of more tokens than positions": (
        ["point", "tiny", *TASK, "--problems", "1", "--max-new-tokens", "5000"],
        ["--max-new-tokens 5000", "512"],
    ),
    # --- sft ---
    "sft of a recipe to train": (["sft", "attnrl"], ["recipe attnrl"]),
    "sft without stages": (["sft", "sft_ledger", "stages=[]"], ["stages"]),
    "sft with one learning rate": (
        ["sft", "sft_ledger", "stages=[{task: ledger, steps: 1, learning_rate: 1e-3}]"],
        ["stages.0.learning_rate"],
    ),
    "sft of a model of no size": (
        ["sft", "sft_ledger", "output_dir=out", f"architecture={{{SHAPE.replace('32', '-1')}}}", stages("ledger")],
        ["architecture"],
    ),
    "sft of a model with odd heads": (
        ["sft", "sft_ledger", "output_dir=out", f"architecture={{{SHAPE.replace('32', '33')}}}", stages("ledger")],
        ["architecture"],
    ),
    "sft from no model": (["sft", "sft_ledger", "output_dir=out", "start=nowhere"], ["model nowhere"]),
    "sft from a model of another vocabulary": (
        ["sft", "sft_ledger", "output_dir=out", "start=tiny", stages("reasoning_gym:chain_sum")],
        ["start", "tiny"],
    ),
    "sft that saves below a file": (
        ["sft", "sft_ledger", "output_dir=.", stages("ledger").replace("save: it", "save: file/it")],
        ["stages.0.save", "file/it"],
    ),
    # --- plot, timeline and report ---
    "plot of a file": (["plot", "file"], ["file"]),
    "plot of broken metrics": (["plot", "run_not_json"], ["run_not_json/metrics.jsonl, line 1"]),
    "plot of metrics that are lists": (["plot", "run_of_lists"], ["run_of_lists/metrics.jsonl, row 1"]),
    "plot of an accuracy of words": (["plot", "run_of_words"], ["run_of_words/metrics.jsonl, row 1", "eval/accuracy"]),
    "plot of a time of words": (["plot", "run_of_wordy_time"], ["run_of_wordy_time/metrics.jsonl, row 1", "time/step"]),
    "plot of a run without evaluation": (["plot", "run_unevaluated"], ["run_unevaluated"]),
    "plot into an unknown format": (["plot", "run", "-o", "curves.xyz"], ["curves.xyz"]),
    "plot below a file": (["plot", "run", "-o", "file/curves.png"], ["file/curves.png"]),
    "plot into a directory": (["plot", "run", "-o", "bare"], ["bare"]),
    "timeline of a step that was not": (["timeline", "run", "--step", "7"], ["run", "7"]),
    "timeline of step 0": (["timeline", "run", "--step", "0"], ["--step"]),
    "timeline of two runs": (["timeline", "run", "bare"], ["bare", "attnrl timeline --help"]),
    "timeline of no steps": (["timeline", "bare"], ["bare"]),
    "timeline of lists": (["timeline", "run_of_lists"], ["run_of_lists/timeline.jsonl, row 1"]),
    "timeline without spans": (["timeline", "run_spanless"], ["run_spanless/timeline.jsonl, row 1"]),
    "timeline of empty spans": (["timeline", "run_no_spans"], ["run_no_spans/timeline.jsonl, row 1"]),
    "timeline of unknown phases": (["timeline", "run_other_phase"], ["run_other_phase/timeline.jsonl, row 1"]),
    "timeline of pairs": (["timeline", "run_of_pairs"], ["run_of_pairs/timeline.jsonl, row 1"]),
    "timeline below a file": (["timeline", "run", "-o", "file/step.png"], ["file/step.png"]),
    "report of nothing": (["report", "nowhere"], ["nowhere"]),
    "report of no run": (["report", "bare"], ["bare"]),
    "report of broken metrics": (["report", "run_not_json"], ["run_not_json/metrics.jsonl, line 1"]),
    "report of metrics without steps": (["report", "run_stepless"], ["run_stepless/metrics.jsonl, row 1"]),
    "report of broken forests": (["report", "run_trees_not_json"], ["run_trees_not_json/trees.jsonl, line 1"]),
    "report of other forests": (["report", "run_trees_of_others"], ["run_trees_of_others/trees.jsonl, line 1"]),
    "report below a file": (["report", "run", "-o", "file/report.html"], ["file/report.html"]),
    "report into a directory": (["report", "run", "-o", "bare"], ["bare"]),
    "report without bound": (["report", "run", "--max-mb", "inf"], ["--max-mb"]),
    "report of less than nothing": (["report", "run", "--max-mb", "-1"], ["--max-mb"]),
    # --- The command itself ---
    "command that is none": (["trian", "attnrl"], ["'trian'", "train"]),
    "flag before the command": (["--verbose", "train"], ["--verbose", "attnrl --help"]),
    "flag that is misspelt": (["train", "attnrl", "--dryrun"], ["--dryrun", "--dry-run", "attnrl train --help"]),
    "flag with a value it does not take": (["train", "attnrl", "--dry-run=yes"], ["--dry-run"]),
    "train of nothing": (["train"], ["recipe", "attnrl train --help"]),
}


@pytest.mark.parametrize("name", BAD_INPUT)
def test_bad_input_ends_in_one_line_that_names_it(
    name: str, bad_things: Path, attnrl: Attnrl, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(bad_things)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    for module in ("graders", "script", "unparsable"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    arguments, named = BAD_INPUT[name]
    before = tree(bad_things)
    outcome = attnrl(*arguments)
    after = tree(bad_things)
    for written in sorted(after.keys() - before.keys(), reverse=True):  # not to fail the cases that follow
        Path(written).rmdir() if Path(written).is_dir() else Path(written).unlink()
    assert outcome.code == 2
    assert outcome.err.startswith("attnrl: ") and outcome.err.count("\n") == 1 and outcome.err.endswith("\n")
    assert [part for part in named if part not in outcome.err] == []
    assert len(outcome.err) < 2_000
    assert "Traceback" not in outcome.err + outcome.out
    assert after == before


@pytest.mark.parametrize(("function", "every"), [("fails", 1), ("fails", 0), ("fails_beside", 0)])
def test_a_grader_that_fails_ends_training_in_one_line_that_names_it(
    function: str, every: int, bad_things: Path, tmp_path: Path, attnrl: Attnrl, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In an evaluation, after a generation, or in the thread that grades beside it."""
    monkeypatch.chdir(bad_things)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    outcome = attnrl(*train(f"grader='graders:{function}'", f"eval.every={every}", f"output_dir={tmp_path / 'run'}"))
    assert (outcome.code, outcome.err.count("\n")) == (2, 1)
    said = ("attnrl: ", f"graders:{function}", "ZeroDivisionError: division by zero", "graders.py, line 3")
    assert [part for part in said if part not in outcome.err] == []
    assert "Traceback" not in outcome.out


@pytest.mark.parametrize(
    "name",
    ["recipe that calls a function", "flag that is misspelt", "eval with a grader that fails"],
)
def test_in_a_process_of_its_own_it_is_one_line_too(name: str, bad_things: Path) -> None:
    """Nothing that transformers or torch say on import or loading comes before it."""
    arguments, named = BAD_INPUT[name]
    before = tree(bad_things)
    finished = subprocess.run(
        [sys.executable, "-B", "-m", "attnrl", *arguments],
        capture_output=True,
        text=True,
        cwd=bad_things,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert finished.returncode == 2
    assert finished.stderr.startswith("attnrl: ") and finished.stderr.count("\n") == 1
    assert [part for part in named if part not in finished.stderr.replace("python -m attnrl", "attnrl")] == []
    assert tree(bad_things) == before
