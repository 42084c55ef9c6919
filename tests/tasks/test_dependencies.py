import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attnrl.errors import UserError
from attnrl.tasks.dependencies import require_dependencies, step_dependents
from attnrl.tasks.ledger import STEP_END, Ledger, demonstrate, make_problem
from attnrl.tasks.registry import find_task
from attnrl.types import Problem

LEDGER = Ledger(
    (
        ("plan", "#", "4"),
        ("start", "5"),
        ("apply", "#", "2"),
        ("apply", "#", "3"),
        ("ref", "1"),
        ("apply", "#", "1"),
    )
)


def test_dependents_are_the_lines_that_look_a_step_up() -> None:
    problem = make_problem(LEDGER, "ledger")
    steps = ["so A#=4: #+", "then B=5: 5", "hmm B: 5", "now C2#+: 5=7", "now A#=4: #+", "nonsense", "thus \\boxed{7}"]
    # The plan is looked up by C, D and F; B by the entry behind it and by E; C by D. Said again, a line is nothing new.
    assert step_dependents(problem, steps) == (3.0, 2.0, 0.0, 1.0, 0.0, 0.0, 0.0)


@given(st.sampled_from(["ledger", "ledger_long"]), st.integers(0, 200))
def test_every_lookup_of_the_graph_is_counted_once(task: str, seed: int) -> None:
    problem = find_task(task).draw(random.Random(seed))
    steps = demonstrate(problem, random.Random(seed)).split(STEP_END)
    dependents = step_dependents(problem, steps)
    assert len(dependents) == len(steps)
    assert sum(dependents) == sum(len(set(needs)) for needs in problem.info["needs"])


def test_a_task_whose_graph_is_not_known_is_named() -> None:
    with pytest.raises(UserError, match=r"gsm8k.*ledger"):
        require_dependencies(Problem("1", "1+1?", ("2",), source="gsm8k"))
