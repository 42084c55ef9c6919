"""Tasks of reasoning-gym: the same problems from the same numbers, and their own scorers."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

import attnrl.tasks.reasoning_gym
from attnrl.data.stream import ProceduralProblems
from attnrl.errors import UserError
from attnrl.tasks.base import draw_distinct
from attnrl.tasks.reasoning_gym import (
    EVALUATED_AS_PYTHON,
    INSTRUCTION,
    NOT_REPRODUCIBLE,
    PARSED_BY_SYMPY,
    ReasoningGymGrader,
    ReasoningGymTask,
    find_reasoning_gym_task,
    is_small_expression,
    runs_no_code,
)
from attnrl.tasks.registry import find_task
from attnrl.types import Problem


def task(name: str) -> ReasoningGymTask:
    return find_reasoning_gym_task(f"reasoning_gym:{name}")


def first(name: str) -> tuple[ReasoningGymTask, Problem]:
    found = task(name)
    return found, found.draw(random.Random(0))


def test_a_problem() -> None:
    found, problem = first("chain_sum?min_terms=2&max_terms=2&min_digits=1&max_digits=1")
    assert problem.prompt.startswith("State the final answer to the following arithmetic problem: ")
    assert problem.prompt.endswith(INSTRUCTION)
    assert problem.source == "reasoning_gym:chain_sum"
    assert json.loads(json.dumps(problem.info)) == problem.info
    entry = found.entry(problem.info["seed"])
    assert entry["question"] + INSTRUCTION == problem.prompt
    assert problem.answers == (entry["answer"],)
    assert entry["metadata"]["num_terms"] == 2
    assert problem.id.startswith("chain_sum:")


def test_parameters_are_yaml() -> None:
    found = task("basic_arithmetic?operators=['+']&allow_parentheses=false")
    assert dict(found.parameters) == {"operators": ("+",), "allow_parentheses": False}


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("chain_sun", "chain_sum"),
        ("", "''"),
        ("chain_sum?terms=2", "terms"),
        ("chain_sum?min_terms=-1", "min_terms"),
        ("chain_sum?min_terms", "KEY=VALUE"),
        ("chain_sum?min_terms=2&min_terms=3", "KEY=VALUE"),
        ("chain_sum?min_terms=[", "min_terms"),
        ("chain_sum?seed=3", "seed"),
        ("chain_sum?size=3", "size"),
        ("ransom_note", "ransom_note"),
    ],
)
def test_a_faulty_name(name: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        find_task(f"reasoning_gym:{name}")
    assert said in str(caught.value) and f"reasoning_gym:{name}" in str(caught.value)


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(UserError, match=r"pip install attnrl\[reasoning-gym\]"):
        task("chain_sum")


def test_problems_are_reproducible_and_the_held_out_ones_never_come() -> None:
    few = find_task("reasoning_gym:chain_sum?min_terms=2&max_terms=2&min_digits=1&max_digits=1")
    held_out = draw_distinct(few, 50, random.Random(7))
    assert held_out == draw_distinct(few, 50, random.Random(7))
    ids = frozenset(problem.id for problem in held_out)
    assert len(ids) == 50
    one, same, other = (ProceduralProblems(few, seed, ids) for seed in (0, 0, 1))
    problems = [one.at(place) for place in range(100)]
    assert problems == [same.at(place) for place in range(100)]
    assert problems != [other.at(place) for place in range(100)]
    assert not {problem.prompt for problem in problems} & {problem.prompt for problem in held_out}


SAMPLE = ["chain_sum", "gsm_symbolic", "word_ladder", "letter_jumble", "knights_knaves", "list_functions", "countdown"]


def test_problems_are_the_same_in_every_process() -> None:
    code = (
        "import random, sys; from attnrl.tasks.registry import find_task\n"
        f"for name in {SAMPLE}: print(find_task('reasoning_gym:' + name).draw(random.Random(0)).id)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONHASHSEED": "12", "OMP_NUM_THREADS": "1"},
    )
    assert run.stdout.split() == [first(name)[1].id for name in SAMPLE]


@pytest.mark.parametrize("name", [*SAMPLE, "binary_matrix", "simple_integration"])
def test_its_own_answer_is_correct(name: str) -> None:
    found, problem = first(name)
    (grade,) = ReasoningGymGrader(found).grade(
        [problem], [f"<think>\\boxed{{0}}</think> \\boxed{{{problem.answers[0]}}}"]
    )
    assert (grade.reward, grade.verdict) == (1.0, "correct")


def test_grades() -> None:
    found, problem = first("chain_sum")
    right = problem.answers[0]
    responses = [
        f"so \\boxed{{\\text{{{right}}}}}",
        f"so \\boxed{{ {right} }}",
        "so \\boxed{x}",
        f"it is {right}",
        "\\boxed{}",
        f"\\boxed{{{right}",
    ]
    grades = ReasoningGymGrader(found).grade([problem] * len(responses), responses)
    assert [grade.verdict for grade in grades] == ["correct", "correct", "wrong", "no_answer", "no_answer", "no_answer"]
    assert [grade.answer for grade in grades] == [right, right, "x", None, None, None]
    assert ReasoningGymGrader(found).grade([], []) == []
    flexible = ReasoningGymGrader(found, flexible=True).grade(
        [problem] * 2, [f"it is {right}.", f"\\boxed{{x}} {right}"]
    )
    assert [grade.verdict for grade in flexible] == ["correct", "wrong"]


def test_part_of_a_score_is_a_reward_and_not_correct() -> None:
    found, problem = first("countdown")
    (grade,) = ReasoningGymGrader(found).grade([problem], ["\\boxed{1 + 1}"])
    assert (grade.reward, grade.verdict, grade.answer) == (0.05, "wrong", "1 + 1")


def test_a_scorer_that_stumbles_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    found, problem = first("chain_sum")

    def score(self: ReasoningGymTask, answer: str, seed: int) -> float:
        raise KeyError(answer)

    monkeypatch.setattr(ReasoningGymTask, "score", score)
    (grade,) = ReasoningGymGrader(found).grade([problem], ["\\boxed{1}"])
    assert (grade.reward, grade.verdict) == (0.0, "error")


def test_a_scorer_that_takes_too_long_is_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    found, problem = first("chain_sum")

    def score(self: ReasoningGymTask, answer: str, seed: int) -> float:
        while True:
            with suppress(Exception):  # as scorers do
                time.sleep(0.001)

    monkeypatch.setattr(ReasoningGymTask, "score", score)
    monkeypatch.setattr(attnrl.tasks.reasoning_gym, "DEADLINE", 0.05)
    former = signal.getsignal(signal.SIGALRM)
    grades = ReasoningGymGrader(found).grade([problem] * 2, ["\\boxed{1}"] * 2)
    assert [(grade.reward, grade.verdict, grade.answer) for grade in grades] == [(0.0, "timeout", "1")] * 2
    assert signal.getsignal(signal.SIGALRM) == former and signal.getitimer(signal.ITIMER_REAL)[0] == 0


CODE = [
    "__import__('pathlib').Path('ran').touch()",
    "open('ran', 'w')",
    "[open('ran', 'w')]",
    "[x for x in open('ran', 'w')]",
    "(lambda: open('ran', 'w'))()",
    'f\'{open("ran", "w")}\'',
    "exec(\"open('ran', 'w')\")",
    "Symbol('x').func.__class__",
]
HUGE = ["9**9**9**9", "((((9**99)**99)**99)**99)", "factorial(10**9)", "(10**9)!", "9" * 200, "2**(10**9)", "[0]*10**9"]


@pytest.mark.parametrize("name", sorted(EVALUATED_AS_PYTHON | PARSED_BY_SYMPY))
def test_answers_are_never_run_as_code(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some scorers would."""
    monkeypatch.chdir(tmp_path)
    found, problem = first(name)
    started = time.perf_counter()
    answers = CODE + HUGE
    grades = ReasoningGymGrader(found).grade([problem] * len(answers), [f"\\boxed{{{answer}}}" for answer in answers])
    assert all(grade.reward <= 0.1 for grade in grades)
    assert time.perf_counter() - started < 5
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "expression",
    ["(25 * 4) - 3/7", "x**3/3 + C", "-2*x**-2", "3*sin(x)*exp(-x) + log(x)", "sqrt(x + 1)", "E**(2*x)", "1.5*x**10"],
)
def test_expressions_that_people_write_are_let_through(expression: str) -> None:
    assert is_small_expression(expression)


def test_lists_and_plain_text_are_let_through() -> None:
    assert all(
        runs_no_code(answer) for answer in ["[[0, 1], [1, -1]]", "['a', 'b']", "0 1\n1 0", "ABC", "", "\x00", "("]
    )


def test_the_lists_name_data_sets_that_exist() -> None:
    from reasoning_gym.factory import DATASETS

    assert set(DATASETS) >= NOT_REPRODUCIBLE | EVALUATED_AS_PYTHON | PARSED_BY_SYMPY
