"""Plans depend on correctness, and on judged responses only."""

from __future__ import annotations

import math
import zlib
from dataclasses import replace

import helpers
from helpers import fake_loop

from attnrl.rl.rollout import RolloutTree


def plans(problems: tuple[RolloutTree, ...]) -> list[tuple[bool, dict[int, tuple[int, ...]]]]:
    return [(problem.plan.kept, dict(problem.plan.points)) for problem in problems]


def test_plans_do_not_change_with_rewards_that_keep_correctness(tokenizer):
    """Eq. 8, eq. 9 and the choice of trunks: correct is 1 or 5.5, not correct is 0, partial or negative."""

    def other(answer: str, response: str) -> float:
        if helpers.hash_reward(answer, response):
            return 5.5
        return (-2.0, 0.9)[zlib.crc32(response.encode()) // 2 % 2]

    one, two = fake_loop(tokenizer), fake_loop(tokenizer, rule=other)
    for _ in range(2):
        first, second = one.trainer.step(), two.trainer.step()
        assert plans(first.problems) == plans(second.problems)
        assert any(points for _, points in plans(first.problems))
        assert first.metrics["accuracy"] == second.metrics["accuracy"]
        assert first.metrics["reward"] != second.metrics["reward"]
    assert one.trainer.state.solved_influence == two.trainer.state.solved_influence


def test_plans_and_rows_leave_out_responses_that_are_not_judged(tokenizer):
    def rule(answer: str, response: str) -> float | None:
        if answer == "1":
            return None
        return None if zlib.crc32(response.encode()) % 5 == 0 else helpers.hash_reward(answer, response)

    loop = fake_loop(tokenizer, rule=rule)
    result = loop.trainer.step()
    dropped = result.problems[1]
    assert (dropped.plan.kept, dropped.plan.is_filtered, dropped.branches) == (False, False, ())
    assert result.metrics["not_judged/groups"] == 1
    trained = 0
    for problem in (result.problems[0], result.problems[2]):
        group = problem.plan.group
        assert set(problem.plan.points) <= set(group.judged)
        assert len(problem.plan.points) == math.ceil(math.exp(-group.accuracy) * len(group.judged))
        judged = [branch for branch in problem.branches if branch.is_judged]
        trained += (len(problem.plan.points) + len(judged)) * problem.forest.has_signal
    assert len(loop.policy.updates[0]) == result.metrics["trained_responses"] == trained > 0
    assert all(math.isfinite(a) for row in loop.policy.updates[0] for a in row.advantages)


def test_masked_rows_are_not_trained_on_but_move_the_baseline(tokenizer):
    plain, masked = (
        fake_loop(tokenizer, "grpo", "sampling.max_new_tokens=12", f"reward.truncated={way}")
        for way in ("as_is", "mask")
    )
    one, two = plain.trainer.step(), masked.trainer.step()
    kept = [row for row in plain.policy.updates[0] if row.response[-1] == tokenizer.eos_token_id]
    assert 0 < len(kept) < len(plain.policy.updates[0])
    assert masked.policy.updates == [kept]
    assert two.metrics["masked_responses"] == len(plain.policy.updates[0]) - len(kept)
    assert one.metrics["reward"] == two.metrics["reward"]
    assert replace(plain.trainer.state, batch_size=masked.trainer.state.batch_size) == masked.trainer.state
