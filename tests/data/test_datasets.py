"""Problems from files: ids, duplicates, overlap, and what is said of them."""

import json
import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from attnrl.config.base import PROMPT_SUFFIX
from attnrl.data.datasets import (
    ProblemSet,
    find_conflicts,
    fit_problem_set,
    leave_out_duplicates,
    leave_out_overlap,
    load_problem_set,
    load_problems,
    note_conflicts,
    note_unusable,
    problem_ids,
    require_columns,
)
from attnrl.errors import UserError
from attnrl.grading.golds import UnusableGold
from attnrl.grading.rules import RulesGrader
from attnrl.prompts.renderer import PromptRenderer
from attnrl.types import Problem

TRL = {"prompt": "1+1?", "answer": "2"}

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write rows to a jsonl file."""

    def to(*rows: Any, name: str = "x.jsonl") -> Path:
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return path

    return to


def test_a_row_becomes_a_problem(write: Write) -> None:
    chat = [{"role": "user", "content": "1+1?"}]
    path = write({"prompt": chat, "answer": "2", "data_source": "sums\n1", "level": 3}, TRL)
    first, second = load_problems(path)
    assert first.prompt == ({"role": "user", "content": "1+1?"},)
    assert (first.source, first.info) == ("sums 1", {"answer": "2", "data_source": "sums\n1", "level": 3})
    assert (second.source, second.answers, second.prompt) == ("x", ("2",), "1+1?")


def test_several_sources_are_one_set(write: Write) -> None:
    paths = [str(write(TRL)), str(write(TRL, name="y.jsonl")), str(write({**TRL, "data_source": "x"}, name="z.jsonl"))]
    data = load_problem_set(paths)
    assert data.name == f"data {paths[0]} and 2 more"
    assert [problem.source for problem in data.problems] == ["x", "y", "x"]
    assert len({problem.id for problem in data.problems}) == 3
    assert [problem.place for problem in data.problems] == [f"data file {path}, line 1" for path in paths]


def test_a_faulty_row_is_named(write: Write) -> None:
    for row, said in [([1], "expected an object"), ({"prompt": "?"}, "no true answer")]:
        path = write(TRL, TRL, row)
        with pytest.raises(UserError) as caught:
            load_problems(path)
        assert str(caught.value).startswith(f"data file {path}, line 3: {said}")


def test_a_row_whose_answer_is_empty_is_left_out_with_a_count(write: Write) -> None:
    rows = [TRL, {**TRL, "answer": ""}, {"prompt": "p", "reward_model": {"ground_truth": " "}}, TRL]
    data = load_problem_set(write(*rows))
    assert len(data.problems) == 2
    columns, note = data.notes
    assert columns.endswith("prompt from prompt, answer from answer (3 rows) or reward_model.ground_truth (1 rows)")
    assert note.endswith("x.jsonl: left out 2 rows without a true answer (x.jsonl line 2, x.jsonl line 3)")
    with pytest.raises(UserError, match=r"x\.jsonl"):
        load_problem_set(write(*rows[1:3]))


def test_a_null_answer_is_left_out_like_an_empty_one(write: Write) -> None:
    rows = [TRL, {**TRL, "answer": None}, {**TRL, "answer": float("nan")}, {**TRL, "answer": ""}]
    data = load_problem_set(write(*rows))
    assert len(data.problems) == 1
    assert "left out 3 rows without a true answer (x.jsonl line 2, x.jsonl line 3, x.jsonl line 4)" in data.notes[-1]


def test_the_columns_of_each_source_are_said(write: Write) -> None:
    paths = [
        str(write({"Problem": "1+1?", "Answer": "2", "Level": 1})),
        str(
            write(
                {"messages": [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}]},
                name="y.jsonl",
            )
        ),
    ]
    data = load_problem_set(paths)
    assert [(problem.prompt, problem.answers) for problem in data.problems] == [
        ("1+1?", ("2",)),
        (({"role": "user", "content": "2+2?"},), ("4",)),
    ]
    assert data.notes == (
        f"data {paths[0]}: prompt from Problem, answer from Answer; other columns: Level",
        f"data {paths[1]}: prompt from messages, answer from the last message of messages",
    )


def test_a_named_column_must_be_in_a_source(write: Write) -> None:
    columns = {"prompt": "ask", "answer": "gold"}
    asked, ordinary = write({"ask": "1+1?", "gold": "2"}), write(TRL, name="y.jsonl")
    assert [problem.prompt for problem in load_problems(asked, columns=columns)] == ["1+1?"]
    both = load_problem_set([str(asked), str(ordinary)], columns=columns)
    assert len(both.problems) == 2 and both.missing == {}
    alone = load_problem_set(ordinary, columns=columns)
    assert alone.missing.keys() == {"prompt", "answer"}
    require_columns([both, alone])
    with pytest.raises(UserError, match=r"y\.jsonl: prompt=ask .*no such column \(columns: prompt, answer\)"):
        require_columns([alone])
    with pytest.raises(UserError, match=r"prompt=promt .*did you mean prompt\?"):
        load_problems(ordinary, columns={"prompt": "promt"})
    with pytest.raises(UserError, match=r"x\.jsonl, line 1: no prompt: prompt=asks .*did you mean ask"):
        load_problems(asked, columns={"prompt": "asks", "answer": "gold"})


def test_a_row_may_be_a_list_of_messages(write: Write) -> None:
    (problem,) = load_problems(write([{"role": "user", "content": "1+1?"}, {"role": "assistant", "content": "2"}]))
    assert problem.answers == ("2",)


# Ids


def test_a_column_of_ids_must_not_repeat_an_id(write: Write) -> None:
    rows = [{**TRL, "id": "p1"}, {**TRL, "id": 2}, {**TRL, "answer": None, "id": "p1"}]
    assert [problem.id for problem in load_problems(write(*rows[:2]), columns={"id": "id"})] == ["p1", "2"]
    path = write(*rows)
    with pytest.raises(UserError) as caught:
        load_problems(path, columns={"id": "id"})
    assert str(caught.value).startswith(f"data file {path}, line 3: ") and f"data file {path}, line 1" in str(
        caught.value
    )


problems = st.builds(
    lambda source, prompt, answers, chat: Problem(
        id="",
        prompt=({"role": "user", "content": prompt},) if chat else prompt,
        answers=tuple(answers),
        source=source,
    ),
    st.sampled_from(["a", "b", "a:b", "a-2"]),
    st.sampled_from(["x", "y", "x\ny", "[]"]) | st.text(max_size=3),
    st.lists(st.sampled_from(["1", "2", "1, 2"]), min_size=1, max_size=2),
    st.booleans(),
)


@given(st.lists(problems, max_size=12))
def test_no_two_problems_share_an_id(drawn: list[Problem]) -> None:
    assert len(set(problem_ids(drawn))) == len(drawn)


@given(st.lists(problems, max_size=6, unique_by=lambda p: (p.source, str(p.prompt), p.answers)), problems, st.data())
def test_an_id_is_the_same_wherever_the_row_is(drawn: list[Problem], new: Problem, data: st.DataObject) -> None:
    named = dict(zip(map(str, drawn), problem_ids(drawn), strict=True))
    place = data.draw(st.integers(0, len(drawn)))
    more = [*drawn[:place], new, *drawn[place:]]
    found = problem_ids(more)
    assert all(found[i] == named[str(more[i])] for i in range(len(more)) if more.count(more[i]) == 1 and i != place)


def test_rows_without_an_index_or_with_the_same_are_still_different_problems(write: Write) -> None:
    """An unindexed row must never merge with another (a fault of the authors' release)."""
    indexed = {**TRL, "extra_info": {"index": 0}}
    ids = [problem.id for problem in load_problems(write(TRL, TRL, indexed, {**indexed, "answer": "3"}))]
    assert len(set(ids)) == 4
    assert ids[1:3] == [f"{ids[0]}-2", f"{ids[0]}-3"]


def test_ids_depend_neither_on_the_suffix_nor_on_the_file_kind(write: Write, tmp_path: Path) -> None:
    rows = [TRL, {**TRL, "answer": ["3", "4"]}]
    path = write(*rows)
    (tmp_path / "x.json").write_text(json.dumps(rows))
    ids = [problem.id for problem in load_problems(path)]
    assert ids == [problem.id for problem in load_problems(path)]
    assert ids == [problem.id for problem in load_problems(tmp_path / "x.json")]
    assert ids == ["x:9d9abca3be3590ed", "x:b01f0ace2506e2dc"]  # checkpoints hold them: they must not change


# What is left out


def make(*rows: tuple[str, str]) -> ProblemSet:
    drawn = tuple(
        Problem(id=f"p{n}", prompt=prompt, answers=tuple(answer.split("|")), place=f"data file a/t, row {n}")
        for n, (prompt, answer) in enumerate(rows)
    )
    return ProblemSet("data t", drawn)


def ids(data: ProblemSet) -> str:
    return " ".join(problem.id for problem in data.problems)


def test_duplicates_and_conflicts() -> None:
    data = make(
        ("Find $x$.", "1"), ("find x", "1.0"), ("Find x", "2"), ("Find y", "1|2"), ("Find y.", "2"), ("Find z", "1")
    )
    kept = leave_out_duplicates(data)
    assert ids(kept) == "p0 p2 p3 p4 p5"
    assert len(kept.notes) == 1 and "data t: left out 1 duplicate" in kept.notes[0]
    assert [[problem.id for problem in group] for group in find_conflicts(kept.problems)] == [["p0", "p2"]]
    noted = note_conflicts(kept)
    (note,) = noted.notes[1:]
    assert note.startswith("data t: 1 problem ") and "(t row 0 and t row 2)" in note
    assert noted.problems == kept.problems
    assert note_conflicts(leave_out_duplicates(make(("a", "1"), ("b", "1")))).notes == ()


def test_another_system_prompt_is_another_problem() -> None:
    def chat(system: str) -> Problem:
        messages = ({"role": "system", "content": system}, {"role": "user", "content": "Find x"})
        return Problem(id=system, prompt=messages, answers=("1",))

    data = ProblemSet("t", (chat("A"), chat("B"), chat("A")))
    assert ids(leave_out_duplicates(data)) == "A B"
    begun = tuple(
        replace(problem, prompt=(*problem.prompt, {"role": "assistant", "content": problem.id}))
        for problem in data.problems
    )
    assert ids(leave_out_duplicates(ProblemSet("t", begun))) == "A B"


def test_overlap_is_dropped_or_told() -> None:
    data = make(("Find $x$.", "1"), ("Find y", "1"), ("Find $z$.", "1"))
    evaluation = [Problem(id=f"e{n}", prompt=prompt, answers=("1",)) for n, prompt in enumerate(["find z", "find x"])]
    dropped = leave_out_overlap(data, evaluation, overlap="drop")
    assert ids(dropped) == "p1"
    (note,) = dropped.notes
    assert note.startswith("data t: left out 2 ") and "(t row 0 is e1, t row 2 is e0)" in note
    told = leave_out_overlap(data, evaluation, overlap="warn")
    assert told.problems == data.problems
    (note,) = told.notes
    assert note.startswith("data t: trains on 2 ") and "(t row 0 is e1, t row 2 is e0)" in note
    assert leave_out_overlap(data, [replace(evaluation[0], prompt="Find w")], overlap="drop") == data
    with pytest.raises(UserError, match=r"data t.*data\.overlap=warn"):
        leave_out_overlap(make(("Find z", "1")), evaluation, overlap="drop")


def test_prompts_that_are_too_long_are_dropped_with_a_count(tokenizer: PreTrainedTokenizerBase) -> None:
    data = make(("A=1?", "1"), ("A=1; " * 20, "1"), ("A=2?", "2"))
    fitted = fit_problem_set(data, PromptRenderer(tokenizer), max_prompt_tokens=4)
    assert ids(fitted) == "p0 p2"
    assert fitted.notes == ("data t: left out 1 prompt of more than 4 tokens (t row 1)",)
    with pytest.raises(UserError, match=r"data t.*max_prompt_tokens = 3"):
        fit_problem_set(data, PromptRenderer(tokenizer), max_prompt_tokens=3)


def test_true_answers_that_cannot_be_parsed_are_named_by_row() -> None:
    data = make(("A=1?", "1"), ("A=2?", "\\frac"))
    assert note_unusable(data, []) == data
    noted = note_unusable(data, [UnusableGold(1, "p1", ("\\frac",), "cannot be parsed")])
    (note,) = noted.notes
    assert note.startswith("data t: 1 ") and "(t row 1: '\\\\frac' cannot be parsed)" in note


def shared_data() -> Path:
    """The folder ``shared/data`` of $ATTNRL_SHARED, or of a folder ``shared`` above the checkout."""
    repository = Path(__file__).resolve().parents[2]
    places = [Path(os.environ["ATTNRL_SHARED"])] if "ATTNRL_SHARED" in os.environ else []
    places += [above / "shared" for above in repository.parents]
    for place in places:
        if (place / "data").is_dir():
            return place / "data"
    pytest.skip("no shared/data above the checkout, and ATTNRL_SHARED does not point to one")


SIX = {"aime24_1": 30, "aime25_1": 30, "amc23_1": 40, "math500_1": 500, "minerva_1": 272, "olympiad_1": 674}


@pytest.mark.parametrize(
    ("name", "count"),
    [*SIX.items(), ("dapo_math_train", 24_898 - 2)],  # rows 22739 and 22741 have an empty answer
)
def test_the_sets_of_the_paper(name: str, count: int) -> None:
    problems = load_problems(shared_data() / f"{name}.parquet")
    assert len(problems) == len({problem.id for problem in problems}) == count
    assert all(problem.prompt[-1]["content"].count(PROMPT_SUFFIX.strip()) == 1 for problem in problems)
    # Every true answer, boxed, is graded as correct, and so is each other accepted one.
    pairs = [(problem, answer) for problem in problems for answer in problem.answers]
    grades = RulesGrader().grade([problem for problem, _ in pairs], [f"so \\boxed{{{answer}}}" for _, answer in pairs])
    assert [answer for (_, answer), grade in zip(pairs, grades, strict=True) if grade.reward != 1] == []


def test_the_training_set_of_the_paper_repeats_itself_and_the_benchmarks() -> None:
    data = load_problem_set(shared_data() / "dapo_math_train.parquet")
    evaluation = load_problems([str(shared_data() / f"{name}.parquet") for name in SIX])
    assert len(evaluation) == sum(SIX.values())
    data = note_conflicts(leave_out_duplicates(data))
    data = leave_out_overlap(data, evaluation, overlap="drop")
    columns, unanswered, duplicates, conflicts, overlap = (note.partition(".parquet: ")[2] for note in data.notes)
    assert columns.startswith("prompt from prompt, answer from reward_model.ground_truth")
    assert unanswered.startswith("left out 2 rows without a true answer (dapo_math_train.parquet row 22739")
    assert re.fullmatch(r"left out 2,6\d\d duplicates of other problems", duplicates)  # 1,502 of them to the letter
    assert conflicts.startswith("19 problems ")
    assert overlap.startswith("left out 18 ")


def test_rows_without_answers_stay_if_no_answer_is_needed(write: Any) -> None:
    asked = [{"prompt": "1+1?"}, {"prompt": "1+1?"}, {"prompt": "2+2?", "answer": None}]
    with pytest.raises(UserError, match="true answer"):
        load_problem_set(write(*asked))
    for answers in ("optional", "any"):
        data = load_problem_set(write(*asked), answers=answers)
        assert [problem.answers for problem in data.problems] == [(), (), ()]
        assert len({problem.id for problem in data.problems}) == 3
        assert note_conflicts(data).notes == data.notes
        assert len(leave_out_duplicates(data).problems) == 2
    mixed = load_problem_set(write(*asked, {"prompt": "3+3?", "answer": "6"}), answers="any")
    assert [problem.answers for problem in mixed.problems] == [("6",)]
    assert len(mixed.notes) > 0
    kept = load_problem_set(write(*asked, {"prompt": "3+3?", "answer": "6"}), answers="optional")
    assert len(kept.problems) == 4
