"""The order in which a run sees its problems."""

import random
from dataclasses import dataclass

import pytest

from attnrl.data.stream import ProceduralProblems, ShuffledProblems
from attnrl.errors import UserError
from attnrl.tasks.base import draw_distinct
from attnrl.tasks.registry import find_task
from attnrl.types import Problem


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
    task = find_task("ledger")
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
    source = ProceduralProblems(Dice(), seed=0, held_out=frozenset({"2", "5"}))
    assert {source.at(place).id for place in range(200)} == {"0", "1", "3", "4"}


def test_a_task_with_too_few_problems_says_so() -> None:
    with pytest.raises(UserError, match="dice"):
        draw_distinct(Dice(), 7, random.Random(0))
    with pytest.raises(UserError, match="dice"):
        ProceduralProblems(Dice(), seed=0, held_out=frozenset("012345")).at(0)


def test_recent_problems_are_drawn_once() -> None:
    drawn = []

    class Counted(Dice):
        def draw(self, rng: random.Random) -> Problem:
            drawn.append(1)
            return super().draw(rng)

    source = ProceduralProblems(Counted(), seed=0, held_out=frozenset())
    first = [source.at(place) for place in range(10)]
    assert [source.at(place) for place in range(10)] == first
    assert len(drawn) == 10
