"""Names of benchmarks, their files, and the paper's protocol."""

import json
import os
from pathlib import Path

import pytest
from command_line import Attnrl
from prompt_styles import save_model

from attnrl.config.base import PROMPT_SUFFIX
from attnrl.data.benchmarks import KNOWN, Benchmark, deviations, find_benchmarks
from attnrl.errors import UserError
from attnrl.evals.suites import load_suites
from attnrl.prompts.renderer import PromptRenderer
from attnrl.prompts.settings import PromptSettings
from attnrl.tasks.ledger import build_tokenizer
from attnrl.types import SamplingParams


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("ATTNRL_DATA", raising=False)
    for name in ("aime24_1.parquet", "math500-test.jsonl", "math5000.jsonl", "amc23.json", "amc23_2.json", "x.csv"):
        (tmp_path / name).touch()
    for name in ("two_a.json", "two_b.json", "notes.txt", "aime24.md"):
        (tmp_path / name).touch()
    return tmp_path


def test_a_name_stands_for_a_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = find_benchmarks(["AIME24,math500", " amc23 ,x,"], folder)
    assert [benchmark.name for benchmark in found] == ["aime24", "math500", "amc23", "x"]
    files = ["aime24_1.parquet", "math500-test.jsonl", "amc23.json", "x.csv"]
    assert [benchmark.source for benchmark in found] == [folder / name for name in files]
    assert [benchmark.samples for benchmark in found] == [32, 4, 32, 4]
    assert [benchmark.title for benchmark in found] == ["AIME24", "MATH-500", "AMC23", "x"]
    monkeypatch.setenv("ATTNRL_DATA", str(folder))
    assert find_benchmarks(["aime24"])[0].source == folder / "aime24_1.parquet"


def test_a_name_with_its_source(folder: Path) -> None:
    found = find_benchmarks([f"mine={folder / 'x.csv'},aime24=HuggingFaceH4/aime_2024", "other=missing.jsonl"])
    assert found == [
        Benchmark("mine", folder / "x.csv"),
        Benchmark("aime24", "HuggingFaceH4/aime_2024"),
        Benchmark("other", Path("missing.jsonl")),
    ]


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ("aime26", ["'aime26'", "aime26*", "aime24_1.parquet", "olympiad", "aime26=PATH", "--data-dir"]),
        ("math50", ["'math50'"]),
        ("two", ["two_a.json, two_b.json", "two=PATH"]),
        ("x,aime24,x", ["--benchmark", "x"]),
        ("x=", ["NAME=PATH"]),
        ("=x", ["NAME=PATH"]),
        (",", ["--benchmark", "aime24"]),
    ],
)
def test_names_that_will_not_do(names: str, said: list[str], folder: Path) -> None:
    with pytest.raises(UserError) as refused:
        find_benchmarks([names], folder)
    assert [part for part in said if part not in str(refused.value)] == []
    assert "\n" not in str(refused.value)


def test_where_it_looked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ATTNRL_DATA", raising=False)
    with pytest.raises(UserError, match=r"aime24.*--data-dir DIR.*ATTNRL_DATA=DIR.*aime24=PATH.*minerva"):
        find_benchmarks(["aime24"])
    with pytest.raises(UserError, match=r"aime24\*.*--data-dir .*minerva"):
        find_benchmarks(["aime24"], tmp_path)
    with pytest.raises(UserError, match=r"--data-dir .*none"):
        find_benchmarks(["aime24"], tmp_path / "none")
    monkeypatch.setenv("ATTNRL_DATA", str(tmp_path / "none"))
    with pytest.raises(UserError, match=r"\$ATTNRL_DATA .*none"):
        find_benchmarks(["aime24"])


def test_deviations_from_the_papers_protocol() -> None:
    paper = {"problems": 30, "samples": 32, "max_new_tokens": 32_768, "sampling": SamplingParams(0.6)}
    assert deviations("aime24", **paper) == []  # type: ignore[arg-type]
    found = deviations("aime24", problems=5, samples=2, max_new_tokens=256, sampling=SamplingParams(1.0, 0.9))
    assert found == [
        "5 problems of AIME24 instead of 30",
        "2 samples of AIME24 instead of 32",
        "256 tokens instead of 32,768",
        "temperature 1 instead of 0.6",
        "top-p 0.9 instead of 1",
    ]
    assert deviations("mine", problems=5, samples=2, max_new_tokens=256, sampling=SamplingParams(1.0, 0.9)) == []


def shared_data() -> Path:
    repository = Path(__file__).resolve().parents[2]
    places = [Path(os.environ["ATTNRL_SHARED"])] if "ATTNRL_SHARED" in os.environ else []
    places += [above / "shared" for above in repository.parents]
    for place in places:
        if (place / "data").is_dir():
            return place / "data"
    pytest.skip("no shared/data above the checkout, and ATTNRL_SHARED does not point to one")


def test_the_six_of_the_paper() -> None:
    suites = load_suites(benchmarks=[",".join(KNOWN)], data_dir=shared_data())
    assert [len(suite.problems) for suite in suites] == [30, 30, 40, 500, 272, 674]
    assert [suite.samples for suite in suites] == [32, 32, 32, 4, 4, 4]
    assert {suite.max_new_tokens for suite in suites} == {32_768}
    renderer = PromptRenderer(build_tokenizer(), PromptSettings(suffix=PROMPT_SUFFIX))
    for suite in suites:
        assert len({problem.id for problem in suite.problems}) == len(suite.problems)
        for problem in suite.problems:
            content = renderer.asked(problem).prompt[-1]["content"]  # type: ignore[index]
            assert content.endswith(PROMPT_SUFFIX) and content.count("think step by step") == 1  # type: ignore[union-attr]
    (first,) = load_suites(benchmarks=["math500"], data_dir=shared_data(), problems=7, samples=2, max_new_tokens=9)
    assert (len(first.problems), first.samples, first.max_new_tokens) == (7, 2, 9)
    assert first.problems == suites[3].problems[:7]


def test_base_models_and_chat_models_are_evaluated_on_the_six(attnrl: Attnrl, tmp_path: Path) -> None:
    models = [str(save_model(tmp_path / style, style, max_position_embeddings=4096)) for style in ("base_bos", "r1")]
    short = ["--problems", "1", "--samples", "1", "--max-new-tokens", "4", "--grader", "rules"]
    output = tmp_path / "out"
    names = ",".join(KNOWN)
    outcome = attnrl(
        "eval", *models, "--benchmark", names, "--data-dir", str(shared_data()), *short, "--output", str(output)
    )
    assert outcome.code == 0, outcome.err
    assert outcome.out.count("first prompt (") == 2
    rows = [json.loads(line) for line in (output / "samples.jsonl").read_text().splitlines()]
    assert len(rows) == 12 and all(row["prompt"].count(PROMPT_SUFFIX) == 1 for row in rows)
    assert {row["prompt"].startswith("<s>") for row in rows if row["model"] == models[0]} == {True}
    assert {row["prompt"].endswith("<|Assistant|><think>\n") for row in rows if row["model"] == models[1]} == {True}
