"""Graders of the user: reward functions and objects, from Python and through the command line."""

import asyncio
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from attnrl.cli.app import app
from attnrl.errors import UserError
from attnrl.grading.registry import build_grader
from attnrl.types import Problem

CUSTOM = """
import asyncio
seen = {}
def plain(prompts, completions, answer, **columns):
    seen.update(prompts=prompts, completions=completions, answer=answer, columns=columns)
    return [1.0, 0.25, None][: len(prompts)]
async def later(completions, solution):
    await asyncio.sleep(0)
    return [float(text == right) for text, right in zip(completions, solution)]
class Object:
    def __call__(self, prompts, completions, level):
        return [value / 10 for value in level]
made = Object()
def short(prompts, completions, **columns): return [1.0]
def none(prompts, completions, **columns): return None
def words(prompts, completions, **columns): return ["good"] * len(prompts)
def any_number(prompts, completions, answer): return [float(text) for text in answer]
def inf(prompts, completions, **columns): return [float("inf")] * len(prompts)
def picky(prompts, completions, **columns): return [float(text) for text in completions]
def leaves(prompts, completions, **columns): raise SystemExit(3)
def nan(prompts, completions, **columns): return [float("nan")] * len(prompts)
def wants(prompts, completions, level): return [1.0] * len(prompts)
def one(text): return 1.0
def raises(prompts, completions, **columns): raise KeyError("mine")
number = 3
from attnrl.types import Grade
class Length:
    overlaps = True
    closed = 0
    def grade(self, problems, responses):
        return [Grade(float(len(text) == len(problem.answers[0])), "wrong", text)
                for problem, text in zip(problems, responses)]
    def close(self):
        Length.closed += 1
length = Length()
class NeedsArgument:
    def __init__(self, size): pass
    def grade(self, problems, responses): return []
class NoGrades:
    def grade(self, problems, responses): return [1.0] * len(responses)
class TooFew:
    def grade(self, problems, responses): return []
class Infinite:
    def grade(self, problems, responses): return [Grade(float("inf"), "correct")] * len(responses)
class AnyNumber:
    def grade(self, problems, responses): return [Grade(float(problem.answers[0]), "wrong") for problem in problems]
class Picky:
    def grade(self, problems, responses): return [Grade(float(text), "wrong") for text in responses]
class NotAMethod:
    grade = 3
class Raises:
    def grade(self, problems, responses): raise KeyError("its own")
"""


@pytest.fixture
def custom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "my_rewards.py").write_text(CUSTOM)
    (tmp_path / "broken_rewards.py").write_text("1 / 0")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "my_rewards", raising=False)
    yield
    sys.modules.pop("my_rewards", None)


@pytest.mark.usefixtures("custom")
def test_a_reward_function_gets_the_arguments_of_trl() -> None:
    chat = ({"role": "user", "content": "2+3?"},)
    problems = [
        Problem("0", "1+1?", ("2", "two"), info={"level": 3}),
        Problem("1", chat, ("5",)),
        Problem("2", "?", ("7",)),
    ]
    with build_grader("my_rewards:plain") as mine:
        assert not mine.overlaps
        grades = mine.grade(problems, ["it is 2", "\\boxed{5}", "?"])
    assert [(grade.reward, grade.verdict, grade.answer) for grade in grades] == [
        (1.0, "correct", None),
        (0.25, "wrong", "5"),
        (None, "not_judged", None),
    ]
    seen = sys.modules["my_rewards"].seen
    assert seen["prompts"] == ["1+1?", [dict(chat[0])], "?"]
    assert seen["completions"] == ["it is 2", [{"role": "assistant", "content": "\\boxed{5}"}], "?"]
    assert seen["answer"] == ["2", "5", "7"]
    columns = seen["columns"]
    assert columns["answers"] == [["2", "two"], ["5"], ["7"]]
    assert columns["level"] == [3, None, None]
    assert columns["completion_ids"] == [[], [], []]
    assert columns["trainer_state"].global_step == 0
    assert columns.keys() == {"answers", "level", "completion_ids", "trainer_state", "log_metric", "log_extra"}
    assert str(Path.cwd()) not in sys.path


@pytest.mark.usefixtures("custom")
def test_async_functions_and_callable_objects() -> None:
    problems = [Problem(str(n), "?", (str(n),), info={"level": n}) for n in range(3)]
    with build_grader("my_rewards:later") as later, build_grader("my_rewards:made") as made:
        assert [grade.reward for grade in later.grade(problems, ["0", "1", "1"])] == [1.0, 1.0, 0.0]
        assert [grade.reward for grade in made.grade(problems, ["", "", ""])] == [0.0, 0.1, 0.2]

        async def notebook() -> list[float]:
            return [grade.reward for grade in later.grade(problems, ["0", "0", "2"])]

        assert asyncio.run(notebook()) == [1.0, 0.0, 1.0]
        assert later.grade([], []) == []


@pytest.mark.usefixtures("custom")
@pytest.mark.parametrize("name", ["my_rewards:Length", "my_rewards:length"])
def test_an_object_or_class_with_grade(name: str) -> None:
    problems = [Problem("0", "?", ("55",))] * 2
    with build_grader(name) as mine:
        assert mine.overlaps
        grades = mine.grade(problems, ["66", "6"])
        assert [(grade.reward, grade.verdict, grade.answer) for grade in grades] == [
            (1.0, "wrong", "66"),
            (0.0, "wrong", "6"),
        ]
        assert mine.grade([], []) == []
    assert sys.modules["my_rewards"].Length.closed == 1


@pytest.mark.usefixtures("custom")
@pytest.mark.parametrize(
    "name",
    [
        "no_such_module:f",
        "broken_rewards:f",
        "my_rewards:missing",
        "my_rewards:number",
        "my_rewards:",
        "my rewards:plain",
        "my_rewards:one",
        "my_rewards:NeedsArgument",
        "my_rewards:NotAMethod",
    ],
)
def test_a_custom_grader_that_cannot_be_built(name: str) -> None:
    module, _, attribute = name.partition(":")
    with pytest.raises(UserError) as caught:
        build_grader(name)
    assert str(caught.value).startswith("grader: ")
    assert module in str(caught.value) and (attribute in str(caught.value) or module != "my_rewards")


@pytest.mark.usefixtures("custom")
@pytest.mark.parametrize(
    ("name", "named"),
    [
        ("short", ["1", "2"]),  # the numbers of rewards and of responses
        ("none", ["NoneType"]),
        ("words", ["str", "good"]),
        ("nan", ["nan"]),
        ("inf", ["inf"]),
        ("wants", ["level"]),
        ("raises", ["KeyError", "my_rewards.py, line {def raises}", "mine"]),
        ("leaves", ["SystemExit"]),
        ("NoGrades", ["float"]),
        ("TooFew", ["0", "2"]),
        ("Infinite", ["inf"]),
        ("Raises", ["KeyError", 'my_rewards.py, line {raise KeyError("its own")}']),
    ],
)
def test_a_fault_of_a_custom_grader_leaves_the_responses_without_a_judgment(name: str, named: list[str]) -> None:
    with build_grader(f"my_rewards:{name}") as bad:
        grades = bad.grade([Problem("0", "?", ("1",)), Problem("1", "?", ("1",))], ["1", "2"])
    assert [(grade.reward, grade.verdict) for grade in grades] == [(None, "not_judged")] * 2
    for text in named:
        code = re.search("{(.*)}", text)
        if code:
            line = next(n for n, source in enumerate(CUSTOM.splitlines(), start=1) if code[1] in source)
            text = text.replace(code[0], str(line))
        assert all(text in str(grade.fault) for grade in grades)


@pytest.mark.usefixtures("custom")
def test_any_finite_reward_is_kept_and_one_and_more_are_correct() -> None:
    with build_grader("my_rewards:any_number") as mine, build_grader("my_rewards:AnyNumber") as grader:
        problems = [Problem("0", "?", (text,)) for text in ("-3.5", "0", "0.99", "1", "7")]
        grades = mine.grade(problems, [""] * 5)
        assert [grade.reward for grade in grades] == [-3.5, 0.0, 0.99, 1.0, 7.0]
        assert [grade.verdict for grade in grades] == ["wrong", "wrong", "wrong", "correct", "correct"]
        assert grader.grade(problems[:1], [""])[0].reward == -3.5


@pytest.mark.usefixtures("custom")
@pytest.mark.parametrize("name", ["picky", "Picky"])
def test_only_the_responses_that_raise_are_not_judged(name: str) -> None:
    with build_grader(f"my_rewards:{name}") as mine:
        grades = mine.grade([Problem(str(n), "?", ("1",)) for n in range(3)], ["1", "bad", "0"])
    assert [grade.reward for grade in grades] == [1.0, None, 0.0]


@pytest.mark.usefixtures("custom")
@pytest.mark.parametrize(("name", "rewards"), [("later", [1.0, 0.0]), ("Length", [1.0, 0.0])])
def test_a_custom_grader_through_the_command_line(tmp_path: Path, name: str, rewards: list[float]) -> None:
    rows = [{"response": text, "answer": "55"} for text in ("55", "6")]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = CliRunner().invoke(app, ["grade", "in.jsonl", "--output", "out.jsonl", "--grader", f"my_rewards:{name}"])
    assert result.exit_code == 0, result.output
    written = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [row["reward"] for row in written] == rewards
