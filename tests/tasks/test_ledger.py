"""Ledgers, against a solver that reads nothing but the prompt."""

import random
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, LlamaConfig, PreTrainedTokenizerBase

from attnrl.grading.answers import extract_boxed
from attnrl.tasks.base import draw_distinct
from attnrl.tasks.ledger import (
    CONNECTIVES,
    RECHECKS,
    SHAPES,
    SLIP_RATE,
    STEP_END,
    SYMBOLS,
    Ledger,
    demonstrate,
    line_of_step,
    make_problem,
    work_out,
)
from attnrl.tasks.registry import find_task
from attnrl.types import Problem

NEVER = (0.0,) * 10
ALWAYS = (1.0,) * 10

problems = st.builds(
    lambda name, seed: find_task(name).draw(random.Random(seed)), st.sampled_from(sorted(SHAPES)), st.integers(0, 2**32)
)


def solve(prompt: str, misread: frozenset[str] = frozenset()) -> tuple[list[str], list[set[int]]]:
    """Work a prompt out by the rules of the module's docstring: each line's result, and the lines it looks up.

    The direction of a symbol in ``misread`` is read the wrong way round.
    """
    results: list[str] = []
    needs: list[set[int]] = []
    place: dict[str, int] = {}
    sign: dict[str, int] = {}
    plan: dict[str, int] = {}
    running, last = 0, -1
    for number, line in enumerate(prompt.removesuffix("?").split("; ")):
        label, rest = line[0], line[1:]
        place[label] = number
        looked_up: set[int] = set()
        if re.fullmatch(r"[#@&$]=\d", rest):
            symbol, adds = rest[0], (int(rest[2]) % 2 == 0) != (rest[0] in misread)
            sign[symbol], plan[symbol] = (1 if adds else -1), number
            results.append("+" if adds else "-")
            needs.append(looked_up)
            continue
        if rest[0] == "=":
            source = rest[1]
            running = int(source) if source.isdigit() else int(results[place[source]])
            looked_up = set() if source.isdigit() else {place[source]}
        else:
            looked_up.add(last)
            amount, by = rest
            if by in plan:
                running += sign[by] * int(amount)
                looked_up.add(plan[by])
            elif amount.isdigit():
                running += int(amount)
            else:
                running += int(results[place[amount]])
                looked_up.add(place[amount])
        running, last = running % 10, number
        results.append(str(running))
        needs.append(looked_up)
    return results, needs


def test_the_example_of_the_docstring() -> None:
    example = "A#=4; B=5; C2#; D3+; E4#; F@=7; G=D; H1#; I4@; JC+?"
    results, _ = solve(example)
    assert results == ["+", "5", "7", "0", "4", "-", "0", "1", "7", "4"]
    ledger = Ledger(
        (
            ("plan", "#", "4"),
            ("start", "5"),
            ("apply", "#", "2"),
            ("add", "3"),
            ("apply", "#", "4"),
            ("plan", "@", "7"),
            ("start", "line 3"),
            ("apply", "#", "1"),
            ("apply", "@", "4"),
            ("ref", "2"),
        )
    )
    assert make_problem(ledger, "x").prompt == example
    lines = work_out(ledger)
    assert [line.result for line in lines] == results
    assert [lines[i].step for i in (0, 1, 2, 3, 9)] == ["A#=4: #+", "B=5: 5", "C2#+: 5=7", "D3+: 7=0", "JC+7: 7=4"]


@given(problems)
def test_the_answer_is_what_the_prompt_says(problem: Problem) -> None:
    assert isinstance(problem.prompt, str)
    results, _ = solve(problem.prompt)
    assert problem.answers == (results[-1],)
    assert problem.id == f"{problem.source}:{problem.prompt}"


@given(problems)
def test_the_dependency_graph_is_what_the_solver_looks_up(problem: Problem) -> None:
    _, needs = solve(problem.prompt)
    assert [set(its_needs) for its_needs in problem.info["needs"]] == needs
    assert all(need < line for line, its_needs in enumerate(problem.info["needs"]) for need in its_needs)
    lines = problem.prompt.removesuffix("?").split("; ")
    assert problem.info["plans"] == tuple(i for i, line in enumerate(lines) if re.fullmatch(r"[A-Z][#@&$]=\d", line))


@given(problems)
def test_plans_are_used_often_or_are_the_one_decoy(problem: Problem) -> None:
    _, needs = solve(problem.prompt)
    uses = [sum(plan in its_needs for its_needs in needs) for plan in problem.info["plans"]]
    unused = [count for count in uses if count == 0]
    assert len(unused) <= 1 < len(uses) or not unused
    fewest = 1 if problem.source == "ledger_single" else 3
    assert all(count >= SHAPES[problem.source].min_uses == fewest for count in uses if count > 0)


@given(problems)
def test_a_slip_shows_in_every_entry_that_looks_it_up(problem: Problem) -> None:
    """Adding 0 or 5 would be the same as subtracting it."""
    applied = [line[2] for line in problem.info["lines"] if line[0] == "apply"]
    assert applied and not set(applied) & {"0", "5"}


@given(problems, st.integers(0, 2**32))
def test_a_demonstration_without_slips_works_the_prompt_out(problem: Problem, seed: int) -> None:
    results, _ = solve(problem.prompt)
    demonstration = demonstrate(problem, random.Random(seed), slip_rate=NEVER)
    assert extract_boxed(demonstration) == problem.answers[0]
    assert worked_lines(demonstration) == dict(enumerate(results))


@given(problems, st.integers(0, 2**32))
def test_a_demonstration_that_always_slips_misreads_every_plan_and_nothing_else(problem: Problem, seed: int) -> None:
    lines = problem.prompt.split("; ")
    misread = frozenset(lines[plan][1] for plan in problem.info["plans"])
    results, _ = solve(problem.prompt, misread)
    demonstration = demonstrate(problem, random.Random(seed), slip_rate=ALWAYS)
    assert worked_lines(demonstration) == dict(enumerate(results))
    assert extract_boxed(demonstration) == results[-1]


@given(problems, st.data())
def test_one_slip_changes_what_depends_on_the_plan_and_nothing_else(problem: Problem, data: st.DataObject) -> None:
    slipped = data.draw(st.sampled_from(problem.info["plans"]))
    ledger = Ledger(problem.info["lines"])
    right = work_out(ledger)
    wrong = work_out(ledger, [line == slipped for line in range(len(ledger.lines))])
    symbol = problem.prompt.split("; ")[slipped][1]
    assert [line.result for line in wrong] == solve(problem.prompt, frozenset(symbol))[0]
    reached = {slipped}
    for number, line in enumerate(right):
        if reached & set(line.needs):
            reached.add(number)
    changed = {number for number in range(len(right)) if right[number].result != wrong[number].result}
    assert slipped in changed <= reached
    assert [line.text for line in right] == [line.text for line in wrong]


def worked_lines(demonstration: str) -> dict[int, str]:
    """Result of each ledger line by the steps that work on it, found as :func:`line_of_step` says."""
    found = {}
    for step in demonstration.split(STEP_END):
        line = line_of_step(step)
        if line is not None:
            found[line] = step.rpartition(": ")[2].rpartition("=")[2].lstrip(SYMBOLS)
    return found


def test_which_line_a_step_works_on() -> None:
    assert line_of_step("so A#=4: #+") == 0
    assert line_of_step("thus Z3+: 1=4\n\n") == 25
    for nothing in ["hmm C: 6", "wait C: 6", "thus \\boxed{6}", "", "so", "so ", "A#=4: #+", "zounds A#=4: #+"]:
        assert line_of_step(nothing) is None


@pytest.mark.parametrize(
    ("task", "fewest", "most"), [("ledger_single", 6, 20), ("ledger", 12, 30), ("ledger_long", 15, 40)]
)
def test_length_and_openings_of_demonstrations(
    task: str, fewest: int, most: int, tokenizer: PreTrainedTokenizerBase
) -> None:
    rng = random.Random(0)
    rechecks = 0
    for _ in range(300):
        problem = find_task(task).draw(rng)
        steps = find_task(task).demonstrate(problem, rng).split(STEP_END)
        assert fewest <= len(steps) <= most
        openings = [step.partition(" ")[0] + " " for step in steps]
        assert set(openings) <= {*CONNECTIVES, *RECHECKS}
        rechecks += sum(opening in RECHECKS for opening in openings)
        # The shipped recipes leave 256 tokens for a response.
        if task == "ledger":
            assert len(tokenizer(STEP_END.join(steps))["input_ids"]) < 256
    assert rechecks > 100


def test_plans_come_at_varied_places_in_long_ledgers() -> None:
    rng = random.Random(0)
    drawn = [find_task("ledger_long").draw(rng) for _ in range(200)]
    assert all(len(problem.info["plans"]) in (3, 4) for problem in drawn)
    assert len({problem.info["plans"] for problem in drawn}) > 50


def test_slips_come_at_the_rates_that_the_first_digits_set() -> None:
    """So some ledgers are always worked out rightly, and few never."""
    rng = random.Random(0)
    read: dict[int, list[bool]] = {}
    for _ in range(600):
        problem = find_task("ledger").draw(rng)
        results, _ = solve(problem.prompt)
        lines = problem.prompt.split("; ")
        worked = worked_lines(find_task("ledger").demonstrate(problem, rng))
        for plan in problem.info["plans"]:
            read.setdefault(int(lines[plan][3]), []).append(worked[plan] != results[plan])
    for digit, slips in read.items():
        assert sum(slips) / len(slips) == pytest.approx(SLIP_RATE[digit], abs=0.12 if 0 < SLIP_RATE[digit] < 1 else 0)
    assert sorted(read) == list(range(10))


def test_the_seed_decides_problem_and_demonstration() -> None:
    for task in map(find_task, SHAPES):

        def draw(seed: int, task=task) -> tuple[Problem, str]:
            rng = random.Random(seed)
            problem = task.draw(rng)
            return problem, task.demonstrate(problem, rng)

        assert draw(1) == draw(1)
        assert draw(1)[0].id != draw(2)[0].id


@settings(max_examples=30)
@given(problems, st.integers(0, 2**32))
def test_text_goes_through_the_tokenizer_and_back(problem: Problem, seed: int) -> None:
    tokenizer = find_task("ledger").build_tokenizer()
    for text in [problem.prompt, demonstrate(problem, random.Random(seed)), problem.prompt + "so A#47: +1\n\n"]:
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids) == text
    assert tokenizer.decode(tokenizer(problem.prompt)["input_ids"][:3]) == problem.prompt[:3]  # one a character


def test_each_special_string_is_one_token(tokenizer: PreTrainedTokenizerBase) -> None:
    for piece in [STEP_END, "\\boxed{", "}", ": ", "; ", *CONNECTIVES, *RECHECKS]:
        assert len(tokenizer(piece)["input_ids"]) == 1
    assert len(tokenizer) < 100
    assert tokenizer.unk_token_id in tokenizer("ü")["input_ids"]  # what it cannot say is not lost silently


def test_the_tokenizer_survives_saving_beside_a_model(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    LlamaConfig(vocab_size=len(tokenizer)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    rng = random.Random(3)
    for task in map(find_task, SHAPES):
        problem = task.draw(rng)
        text = problem.prompt + task.demonstrate(problem, rng)
        assert loaded(text)["input_ids"] == tokenizer(text)["input_ids"]
        assert loaded.decode(loaded(text)["input_ids"]) == text
    assert (loaded.eos_token_id, loaded.pad_token_id) == (tokenizer.eos_token_id, tokenizer.pad_token_id)
    assert loaded.eos_token_id != loaded.pad_token_id
    assert len(loaded) == len(tokenizer)


def test_distinct_problems() -> None:
    task = find_task("ledger_single")
    first = draw_distinct(task, 50, random.Random(0))
    assert len({problem.id for problem in first}) == 50
    # The same seed would draw the same ones again.
    second = draw_distinct(task, 50, random.Random(0), exclude=first[:20])
    ids = [problem.id for problem in second]
    assert len(set(ids)) == 50
    assert not set(ids) & {problem.id for problem in first[:20]}
    assert set(ids) >= {problem.id for problem in first[20:]}
    assert draw_distinct(task, 0, random.Random(0)) == []
