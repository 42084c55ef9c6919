"""The order in which a run sees its problems."""

import random
from dataclasses import dataclass

from attnrl.config import DataConfig
from attnrl.run import held_out_problems, load_task
from attnrl.tasks.problem import Problem
from attnrl.tasks.procedural import TASKS
from attnrl.tasks.stream import ProceduralProblems, ShuffledProblems


def few(count: int) -> list[Problem]:
    return [Problem(id=str(number), prompt="?", answers=("1",)) for number in range(count)]


def test_each_epoch_sees_every_problem_once_in_an_order_of_its_own() -> None:
    source = ShuffledProblems(few(20), seed=0)
    epochs = [[source.at(20 * epoch + place).id for place in range(20)] for epoch in range(3)]
    assert all(sorted(epoch, key=int) == [str(number) for number in range(20)] for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_a_position_always_holds_the_same_problem_whatever_was_asked_before() -> None:
    """So that a resumed run goes on where it stopped."""
    forwards = [ShuffledProblems(few(7), seed=3).at(place).id for place in range(50)]
    again = ShuffledProblems(few(7), seed=3)
    assert [again.at(place).id for place in reversed(range(50))] == forwards[::-1]
    assert [ShuffledProblems(few(7), seed=4).at(place).id for place in range(50)] != forwards


def test_one_problem_is_enough() -> None:
    assert {ShuffledProblems(few(1), seed=0).at(place).id for place in range(5)} == {"0"}


def test_procedural_problems_are_decided_by_seed_and_position() -> None:
    task = TASKS["ledger"]
    one, same, other = (ProceduralProblems(task, seed, frozenset()) for seed in (1, 1, 2))
    assert [one.at(place) for place in range(20)] == [same.at(place) for place in range(20)]
    assert not {one.at(place).id for place in range(20)} & {other.at(place).id for place in range(20)}
    assert len({one.at(place).id for place in range(200)}) == 200


@dataclass(frozen=True)
class Dice:
    """A task of six problems only, so that training would soon meet those held out."""

    name: str = "dice"

    def draw(self, rng: random.Random) -> Problem:
        return few(6)[rng.randrange(6)]


def test_held_out_problems_never_appear_in_training() -> None:
    source = ProceduralProblems(Dice(), seed=0, held_out=frozenset({"2", "5"}))  # type: ignore[arg-type]
    assert {source.at(place).id for place in range(200)} == {"0", "1", "3", "4"}


def test_a_run_keeps_its_evaluation_problems_out_of_training() -> None:
    source, size, held_out = load_task("ledger_single", DataConfig(), 0, 50)
    assert size is None and len({problem.id for problem in held_out}) == 50
    assert isinstance(source, ProceduralProblems)
    assert source.held_out == {problem.id for problem in held_out}
    # They are the same for every seed, and a smaller evaluation uses the first of them.
    assert load_task("ledger_single", DataConfig(), 7, 50)[2] == held_out
    assert held_out_problems("ledger_single", 10) == held_out[:10]
