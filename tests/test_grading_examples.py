"""The examples of the grader in other projects, called as each project calls its rewards, scorers and metrics.

A project that is not installed is replaced by a stand-in with the names that the example imports; the tests at the end
run the example in the real project. Checked with trl 1.16.0, inspect_ai 0.3.285, verifiers 0.4.0 (a rubric: 0.3.1),
lighteval 0.13.0, and verl 0.9.1 (``tests/with_verl/test_verl_reward.py``).
"""

from __future__ import annotations

import asyncio
import functools
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import helpers
import pytest

from attnrl.tasks.ledger import build_tokenizer

EXAMPLES = Path(__file__).parents[1] / "examples"
CODE_LINES = 10  # beside docstrings, imports and blank lines

# prompt, answer, completion, reward
ROWS: list[tuple[str, str, str, float]] = [
    ("What is $10/8+10/8$?", "2.5", r"So \boxed{\frac{10}{4}}.", 1.0),
    ("What is $2+3$?", "5", r"\boxed{2+3}", 0.0),
    ("What is $2+3$?", "5", r"\boxed{4}", 0.0),
    ("What is $2+3$?", "5", "five", 0.0),
]
SEVERAL = ("A root of $(x-5)(x-6)$?", ["5", "6"], r"\boxed{\sqrt{36}}", 1.0)


def chat(role: str, content: str) -> list[dict[str, str]]:
    return [{"role": role, "content": content}]


def load(name: str) -> Any:
    spec = spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def stand_in(monkeypatch: pytest.MonkeyPatch, name: str, **members: Any) -> None:
    """Replace a module, and the packages above, by a module with a few members."""
    parts = name.split(".")
    for end in range(1, len(parts) + 1):
        path = ".".join(parts[:end])
        if path == name or not isinstance(sys.modules.get(path), StandIn):
            monkeypatch.setitem(sys.modules, path, StandIn(path))
        if end > 1:
            setattr(sys.modules[".".join(parts[: end - 1])], parts[end - 1], sys.modules[path])
    sys.modules[name].__dict__.update(members)


class StandIn(ModuleType):
    """A module of a project that is perhaps not installed."""


class Record(SimpleNamespace):
    """A record with the members given by keyword, as of a base class of a project."""

    def __class_getitem__(cls, _: Any) -> Any:
        return cls


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("grading_*.py")), ids=lambda path: path.stem)
def test_an_example_is_short(path: Path) -> None:
    _, docstring, code = path.read_text().split('"""', 2)
    lines = [line for line in code.splitlines() if line.strip() and not line.startswith(("from ", "import "))]
    assert len([line for line in lines if not line.strip().startswith('"""')]) <= CODE_LINES
    assert "checked with" in docstring


def test_a_reward_function_of_trl() -> None:
    accuracy = load("grading_trl").accuracy
    prompts, answers, completions, rewards = map(list, zip(*ROWS, SEVERAL, strict=True))
    further = {"completion_ids": [[1]] * len(ROWS), "trainer_state": None, "log_metric": None}
    assert accuracy(prompts=prompts, completions=completions, answer=answers, **further) == rewards
    chats = {
        "prompts": [chat("user", prompt) for prompt in prompts],
        "completions": [chat("assistant", completion) for completion in completions],
    }
    assert accuracy(**chats, answer=answers, **further) == rewards


def test_a_reward_of_verl() -> None:
    compute_score = load("grading_verl").compute_score
    for prompt, answer, completion, reward in (*ROWS, SEVERAL):
        call = {"data_source": "math", "solution_str": completion, "ground_truth": answer}
        assert compute_score(**call, extra_info={"question": prompt, "num_turns": 1}) == {
            "score": reward,
            "acc": reward,
        }
    copied = {"data_source": "math", "solution_str": r"\boxed{2+3}", "ground_truth": "5"}
    assert compute_score(**copied)["score"] == compute_score(**copied, extra_info={})["score"] == 1.0  # prompt unknown


def test_a_scorer_of_inspect(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, "inspect_ai.solver", TaskState=Record)
    members = {
        "Score": Record,
        "Scorer": object,
        "Target": list,
        "accuracy": lambda: "accuracy",
        "stderr": lambda: "se",
    }
    stand_in(monkeypatch, "inspect_ai.scorer", **members, scorer=lambda metrics: lambda function: function)
    score = load("grading_inspect").math_answer()
    for prompt, answer, completion, reward in (*ROWS, SEVERAL):
        target = [answer] if isinstance(answer, str) else answer
        for given in (prompt, chat("user", prompt)):
            found = asyncio.run(score(Record(input=given, output=Record(completion=completion)), target))
            assert found.value == reward
    assert (found.answer, found.explanation) == (r"\sqrt{36}", "correct")


def test_a_reward_of_verifiers(monkeypatch: pytest.MonkeyPatch) -> None:
    class Task(Record):
        def __init__(self, data: Any) -> None:
            super().__init__(data=data)

    stand_in(monkeypatch, "verifiers.v1", TaskData=Record, Task=Task, Trace=Record, reward=lambda function: function)
    example = load("grading_verifiers")
    for prompt, answer, completion, reward in ROWS:
        task = example.MathTask(example.MathData(prompt=prompt, prompt_text=prompt, answer=answer))
        assert asyncio.run(task.correct(Record(last_reply=completion))) == reward


def test_a_rubric_of_verifiers(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, "verifiers", Rubric=Record)
    [correct] = load("grading_verifiers_rubric").rubric().funcs
    for prompt, answer, completion, reward in ROWS:
        call = {"prompt": chat("user", prompt), "completion": chat("assistant", completion), "answer": answer}
        assert asyncio.run(correct(**call)) == reward


def test_a_metric_of_lighteval(monkeypatch: pytest.MonkeyPatch) -> None:
    def metric(*members: Any) -> Record:
        names = ("metric_name", "higher_is_better", "category", "sample_level_fn", "corpus_level_fn")
        return Record(**dict(zip(names, members, strict=True)))

    stand_in(monkeypatch, "lighteval.metrics.metrics_sample", SampleLevelComputation=Record)
    stand_in(monkeypatch, "lighteval.metrics.utils.metric_utils", SampleLevelMetric=metric)
    stand_in(monkeypatch, "lighteval.models.model_output", ModelResponse=Record)
    stand_in(monkeypatch, "lighteval.tasks.requests", Doc=Record, SamplingMethod=Record(GENERATIVE="generative"))
    found = load("grading_lighteval").math_answer
    for prompt, answer, completion, reward in (*ROWS, SEVERAL):
        doc = Record(query=prompt, get_golds=lambda answer=answer: [answer] if isinstance(answer, str) else answer)
        response = Record(final_text=[completion, "unknown"])
        assert found.sample_level_fn.compute(doc=doc, model_response=response) == reward / 2
    assert (found.higher_is_better, found.category, found.corpus_level_fn([0.5, 0.0])) == (True, "generative", 0.25)


@pytest.mark.parametrize("conversational", [False, True])
def test_trl_trains_with_the_reward_function(conversational: bool, tmp_path: Path) -> None:
    trl = pytest.importorskip("trl", reason="trl is not installed (extra frameworks)")
    from datasets import Dataset

    accuracy, calls = load("grading_trl").accuracy, []

    @functools.wraps(accuracy)
    def recorded(**arguments: Any) -> list[float]:
        calls.append((arguments, accuracy(**arguments)))
        return calls[-1][1]

    tokenizer = build_tokenizer()
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    rows = [{"prompt": chat("user", row[0]) if conversational else row[0], "answer": row[1]} for row in ROWS]
    arguments = trl.GRPOConfig(
        output_dir=str(tmp_path),
        max_steps=1,
        per_device_train_batch_size=4,
        num_generations=2,
        max_completion_length=4,
        use_cpu=True,
        bf16=False,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
    )
    trainer = trl.GRPOTrainer(
        model=helpers.tiny_model(vocab_size=len(tokenizer)),
        reward_funcs=recorded,
        args=arguments,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    trainer.train()
    [(call, rewards)] = calls
    assert len(call["completions"]) == len(call["answer"]) == len(rewards) == 4
    assert all(isinstance(completion, list) is conversational for completion in call["completions"])
    assert trainer.state.log_history[-1]["rewards/accuracy/mean"] == sum(rewards) / 4


def test_inspect_evaluates_with_the_scorer(tmp_path: Path) -> None:
    inspect_ai = pytest.importorskip("inspect_ai", reason="inspect_ai is not installed (extra frameworks)")
    from inspect_ai.dataset import Sample
    from inspect_ai.model import ModelOutput

    completions = {row[0] + row[2]: row[2] for row in (*ROWS, SEVERAL)}

    async def answer(state: Any, generate: Any) -> Any:
        state.output = ModelOutput.from_content("none", completions[state.input_text + state.metadata["completion"]])
        return state

    samples = [
        Sample(input=row[0], target=row[1], metadata={"completion": row[2]}, id=number)
        for number, row in enumerate((*ROWS, SEVERAL))
    ]
    task = inspect_ai.Task(
        dataset=samples, solver=inspect_ai.solver.solver(lambda: answer)(), scorer=load("grading_inspect").math_answer()
    )
    [log] = inspect_ai.eval(task, model="mockllm/model", log_dir=str(tmp_path), display="none")
    assert log.status == "success"
    found = {sample.id: sample.scores["math_answer"].value for sample in log.samples}
    assert found == {number: row[3] for number, row in enumerate((*ROWS, SEVERAL))}
    assert log.results.scores[0].metrics["accuracy"].value == 0.4


def test_verifiers_scores_a_trace() -> None:
    pytest.importorskip("verifiers.v1", reason="verifiers is not installed (extra frameworks)")
    import verifiers.v1 as vf
    from verifiers.v1.trace import TraceTask

    example = load("grading_verifiers")
    for prompt, answer, completion, reward in ROWS:
        task = example.MathTask(example.MathData(prompt=prompt, answer=answer))
        trace = vf.Trace(
            task=TraceTask(type="MathTask", data=task.data),
            agent=vf.AgentInfo(config=vf.AgentConfig()),
            nodes=[
                vf.MessageNode(message=vf.UserMessage(content=prompt)),
                vf.MessageNode(message=vf.AssistantMessage(content=completion), sampled=True, parent=0),
            ],
        )
        asyncio.run(task.score(trace))
        assert trace.reward == reward


def test_a_rubric_scores_a_rollout() -> None:
    vf = pytest.importorskip("verifiers", reason="verifiers is not installed")
    if not hasattr(vf, "Rubric"):
        pytest.skip("this verifiers has no rubrics (verifiers before 0.4 has)")
    rubric = load("grading_verifiers_rubric").rubric()
    for prompt, answer, completion, reward in ROWS:
        state = vf.State(prompt=chat("user", prompt), completion=chat("assistant", completion), answer=answer)
        asyncio.run(rubric.score_rollout(state))
        assert (state["reward"], state["metrics"]) == (reward, {"correct": reward})


def test_lighteval_applies_the_metric() -> None:
    pytest.importorskip("lighteval", reason="lighteval is not installed (its pins exclude math-verify 0.9)")
    from lighteval.metrics import apply_metric
    from lighteval.models.model_output import ModelResponse
    from lighteval.tasks.requests import Doc

    metric = load("grading_lighteval").math_answer
    rows = (*ROWS, SEVERAL)
    choices = [[row[1]] if isinstance(row[1], str) else row[1] for row in rows]
    docs = [Doc(row[0], choice, list(range(len(choice)))) for row, choice in zip(rows, choices, strict=True)]
    found = apply_metric([ModelResponse(text=[row[2]]) for row in rows], docs, [metric])
    assert found == [{"math_answer": row[3]} for row in rows]
    assert metric.get_corpus_aggregations()["math_answer"]([row["math_answer"] for row in found]) == 0.4
