"""The loop among fakes: what is asked of sampler, grader and policy, and in which order."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from statistics import fmean, stdev

import helpers
import pytest
from helpers import Loop, fake_loop

import attnrl.rl.trainer
from attnrl.method.adaptive import RunningMean
from attnrl.prompts.renderer import PromptRenderer
from attnrl.rl.rollout import RolloutTree
from attnrl.rl.trainer import StepResult
from attnrl.tokenization import decode

TRUNKS, BUDGET = 6, 30  # of the recipes and of helpers.tiny_config


def steps(loop: Loop, count: int) -> list[StepResult]:
    return [loop.trainer.step() for _ in range(count)]


def initial_contexts(loop: Loop, positions: range) -> list[tuple[tuple[int, ...], int]]:
    """Prompt and budget of the initial requests of these problems."""
    tokenizer, source = loop.trainer.renderer.tokenizer, loop.trainer.source
    prompts = [PromptRenderer(tokenizer).encode(source.at(position), 128) for position in positions]
    return [(prompt, BUDGET) for prompt in prompts for _ in range(loop.config.method.trunks)]


def branch_contexts(problems: tuple[RolloutTree, ...]) -> list[tuple[tuple[int, ...], int]]:
    """Prompt and budget of the continuations of these problems: what is kept of the trunk goes from the budget."""
    contexts = []
    for problem in problems:
        group = problem.plan.group
        for index, points in problem.plan.points.items():
            for at in points:
                context = (group.prompt + group.trunks[index].tokens[:at], BUDGET - at)
                contexts += [context] * problem.plan.samples
    return contexts


def contexts_of(requests) -> list[tuple[tuple[int, ...], int]]:
    return [(request.prompt, request.max_new_tokens) for request in requests]


# --- generation -----------------------------------------------------------------------------------------------------


def test_one_step_pipeline_generates_once_a_step_for_this_batch_and_the_next(tokenizer):
    loop = fake_loop(tokenizer, "attnrl", "method.adaptive.batch_size=false")
    results = steps(loop, 3)
    first, *mixed = loop.sampler.calls
    assert contexts_of(first) == initial_contexts(loop, range(0, 3))
    assert len(mixed) == 3
    for number, (call, result) in enumerate(zip(mixed, results, strict=True), start=1):
        branches = branch_contexts(result.problems)
        assert len(branches) > 0
        assert contexts_of(call) == branches + initial_contexts(loop, range(3 * number, 3 * number + 3))
    assert [group.problem_id for group in loop.trainer.state.pending] == ["p9", "p10", "p11"]


def test_two_phase_pipeline_generates_twice_and_leaves_nothing_pending(tokenizer):
    loop = fake_loop(tokenizer, "treerl")
    for number, result in enumerate(steps(loop, 2)):
        initial, branches = loop.sampler.calls[2 * number : 2 * number + 2]
        assert contexts_of(initial) == initial_contexts(loop, range(3 * number, 3 * number + 3))
        assert contexts_of(branches) == branch_contexts(result.problems) != []
        assert loop.trainer.state.pending == ()
    assert len(loop.sampler.calls) == 4


def test_the_batch_trained_on_is_the_one_sampled_a_step_before(tokenizer):
    loop = fake_loop(tokenizer)
    loop.trainer.step()
    pending = loop.trainer.state.pending
    result = loop.trainer.step()
    assert tuple(problem.plan.group for problem in result.problems) == pending


def test_branches_keep_a_true_part_of_their_trunk(tokenizer):
    loop = fake_loop(tokenizer)
    for result in steps(loop, 3):
        for problem in result.problems:
            for index, points in problem.plan.points.items():
                trunk = problem.plan.group.trunks[index]
                assert len(points) == 2
                assert set(points) <= set(trunk.steps.starts[1:])


def test_no_two_requests_share_a_seed(tokenizer):
    """Two continuations of the same tokens would otherwise be one."""
    loop = fake_loop(tokenizer)
    steps(loop, 3)
    seeds = Counter(request.seed for call in loop.sampler.calls for request in call)
    assert max(seeds.values()) == 1


def test_completions_go_to_the_request_that_asked(tokenizer):
    loop = fake_loop(tokenizer)
    result = loop.trainer.step()
    mixed = loop.sampler.calls[1]
    completions = [loop.sampler._complete(request).tokens for request in mixed]
    branches = [branch.tokens for problem in result.problems for branch in problem.branches]
    trunks = [trunk.tokens for group in loop.trainer.state.pending for trunk in group.trunks]
    assert branches + trunks == completions


def test_a_whole_response_is_graded_against_the_answer_of_its_problem(tokenizer):
    loop = fake_loop(tokenizer)
    result = loop.trainer.step()
    asked = loop.grader.asked[3 * TRUNKS :]  # after the first initial responses
    expected = []
    for problem in result.problems:
        group = problem.plan.group
        for (trunk, at), branch in zip(problem.plan.branches, problem.branches, strict=True):
            response = decode(tokenizer, group.trunks[trunk].tokens[:at] + branch.tokens)
            expected.append((group.answers[0], response))
            assert branch.reward == helpers.hash_reward(group.answers[0], response)
    assert asked[: len(expected)] == expected
    assert {answer for answer, _ in asked[len(expected) :]} == {"3", "4", "5"}


def test_the_end_of_sequence_token_is_no_step(tokenizer):
    loop = fake_loop(tokenizer)
    loop.trainer.step()
    for group in loop.trainer.state.pending:
        for trunk in group.trunks:
            text = decode(tokenizer, trunk.tokens).removesuffix("<eos>")
            assert len(trunk.steps) == len([part for part in text.split("\n\n") if part])


# --- old log-probs ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("recipe", "lag"), [("attnrl", 1), ("treerl", 0)])
def test_old_logprobs_are_those_of_the_policy_that_sampled_the_token(tokenizer, recipe, lag):
    """The fake policy's log-prob is the number of its updates. One-step off-policy trunks are one update old."""
    loop = fake_loop(tokenizer, recipe, "sampling.score_continuations=true")
    for now in range(4):
        result = loop.trainer.step()
        assert loop.policy.version == now + 1, "every batch of this test has signal"
        trunk_version = max(0, now - lag)
        kept_tokens = {row: at for problem in result.problems for row, at in rows_of(problem).items()}
        for row in loop.policy.updates[-1]:
            kept = kept_tokens[row.prompt, row.response]
            assert row.old_logprobs == (trunk_version,) * kept + (now,) * (len(row.response) - kept)


def rows_of(problem: RolloutTree) -> dict[tuple[tuple[int, ...], tuple[int, ...]], int]:
    """For each response of a problem the number of its tokens that come from the trunk."""
    group = problem.plan.group
    kept = {(group.prompt, trunk.tokens): len(trunk.tokens) for trunk in group.trunks}
    for (trunk, at), branch in zip(problem.plan.branches, problem.branches, strict=True):
        kept[group.prompt, group.trunks[trunk].tokens[:at] + branch.tokens] = at
    return kept


# --- what is trained on -----------------------------------------------------------------------------------------------


def test_rows_are_the_expanded_trees_of_the_problems_with_signal(tokenizer):
    loop = fake_loop(tokenizer)
    for result in steps(loop, 3):
        expected = []
        for problem in result.problems:
            rewards = [s.reward for s in [*problem.plan.group.trunks, *problem.branches]]
            if len(set(rewards)) > 1:
                group = problem.plan.group
                assert len(problem.plan.points) == math.ceil(math.exp(-group.accuracy) * TRUNKS)
                expected += [group.prompt + group.trunks[trunk].tokens for trunk in problem.plan.points]
                for (trunk, at), branch in zip(problem.plan.branches, problem.branches, strict=True):
                    expected.append(group.prompt + group.trunks[trunk].tokens[:at] + branch.tokens)
        updates = loop.policy.updates[result.metrics["step"] - 1]
        assert sorted(row.prompt + row.response for row in updates) == sorted(expected)
        assert result.metrics["trained_responses"] == len(expected)


def test_trunks_that_are_not_expanded_count_in_the_root_value(tokenizer):
    """The last segment of a branch has one leaf, so its advantage gives V(root) away."""
    loop = fake_loop(tokenizer)
    result = loop.trainer.step()
    partly = [p for p in result.problems if 0 < len(p.plan.points) < TRUNKS and p.forest.has_signal]
    assert partly
    for problem in partly:
        group = problem.plan.group
        root = fmean(s.reward for s in [*group.trunks, *problem.branches])
        for trunk, points in problem.plan.points.items():
            at = min(points)
            # The tree's first segment is the parent of the branches at its earliest point.
            below = [group.trunks[trunk], *(s for _, s in problem._branches_of(trunk))]
            parent = fmean(s.reward for s in below)
            for branch_at, branch in problem._branches_of(trunk):
                if branch_at == at:
                    row = next(
                        row
                        for row in loop.policy.updates[-1]
                        if row.prompt == group.prompt
                        and row.response == group.trunks[trunk].tokens[:at] + branch.tokens
                    )
                    assert row.advantages[-1] == pytest.approx(2 * branch.reward - root - parent)


def test_rows_of_a_problem_stay_together_and_problems_are_shuffled(tokenizer):
    """Mini-batches are cut from the rows in order: their order must not be that of the problems every time."""
    loop = fake_loop(tokenizer, "attnrl", "prompts=6")
    orders = []
    for result, rows in zip(steps(loop, 3), loop.policy.updates, strict=True):
        prompts = [row.prompt for row in rows]
        order = list(dict.fromkeys(prompts))
        assert sum(a != b for a, b in pairwise(prompts)) == len(order) - 1
        drawn = [problem.plan.group.prompt for problem in result.problems]
        assert set(order) <= set(drawn)
        orders.append(order == [prompt for prompt in drawn if prompt in order])
    assert not all(orders)


def solves_even_problems(answer: str, response: str) -> float:
    return float(int(answer) % 2 == 0)


def test_filtered_problems_are_neither_branched_nor_trained_on(tokenizer):
    """All-correct problems whose FCI is below an enormous running mean are dropped."""

    def rule(answer: str, response: str) -> float:
        return 1.0 if answer in {"0", "2"} else helpers.hash_reward(answer, response)

    loop = fake_loop(tokenizer, rule=rule)
    loop.trainer.state = replace(loop.trainer.state, solved_influence=RunningMean(10, 1e6))
    result = loop.trainer.step()
    assert [problem.plan.kept for problem in result.problems] == [False, True, False]
    prompts = {answer: PromptRenderer(tokenizer).encode(loop.trainer.source.at(answer), 128) for answer in (0, 1, 2)}
    assert contexts_of(loop.sampler.calls[1])[: len(branch_contexts(result.problems))] == branch_contexts(
        result.problems[1:2]
    )
    assert {row.prompt for row in loop.policy.updates[0]} == {prompts[1]}
    assert result.metrics["filtered_ratio"] == pytest.approx(2 / 3)
    assert loop.trainer.state.solved_influence.count == 12


def test_without_filter_all_correct_problems_are_branched(tokenizer):
    loop = fake_loop(tokenizer, "attnrl", "method.adaptive.filter=false", rule=lambda answer, response: 1.0)
    loop.trainer.state = replace(loop.trainer.state, solved_influence=RunningMean(10, 1e6))
    result = loop.trainer.step()
    assert all(problem.plan.kept and problem.branches for problem in result.problems)
    assert loop.trainer.state.solved_influence == RunningMean(10, 1e6)


def test_an_all_correct_problem_can_still_get_signal_from_its_branches(tokenizer):
    """Initial responses are right, continuations wrong: the problem is trained on."""
    graded: list[str] = []

    def rule(answer: str, response: str) -> float:
        graded.append(response)
        return float(len(graded) <= 3 * TRUNKS)

    loop = fake_loop(tokenizer, rule=rule)
    loop.trainer.state = replace(loop.trainer.state, solved_influence=RunningMean(1, -1.0))
    result = loop.trainer.step()
    assert result.metrics["all_correct_then_valid_ratio"] == 1.0
    assert {row.prompt for row in loop.policy.updates[0]} == {problem.plan.group.prompt for problem in result.problems}


def test_problems_without_signal_are_discarded(tokenizer):
    def rule(answer: str, response: str) -> float:
        return 0.0 if answer == "1" else helpers.hash_reward(answer, response)

    loop = fake_loop(tokenizer, rule=rule)
    result = loop.trainer.step()
    prompts = [problem.plan.group.prompt for problem in result.problems]
    assert {row.prompt for row in loop.policy.updates[0]} == {prompts[0], prompts[2]}
    assert result.problems[1].branches, "discarded only after it was sampled in full"


@pytest.mark.parametrize("recipe", ["attnrl", "treerl", "grpo"])
def test_a_batch_without_signal_skips_the_update_and_training_goes_on(tokenizer, recipe):
    loop = fake_loop(tokenizer, recipe, rule=lambda answer, response: 0.0)
    barren = steps(loop, 2)
    assert [result.metrics["update_skipped"] for result in barren] == [1.0, 1.0]
    assert [result.metrics["trained_responses"] for result in barren] == [0, 0]
    assert all("loss/policy" not in result.metrics for result in barren)
    assert loop.policy.updates == []
    loop.grader.rule = helpers.hash_reward
    fruitful = steps(loop, 3)[-1]
    assert fruitful.metrics["update_skipped"] == 0.0
    assert fruitful.metrics["loss/policy"] == 0.5
    assert loop.policy.updates
    assert loop.trainer.state.step == 5


# --- prompt batch size ------------------------------------------------------------------------------------------------


def test_the_batch_size_follows_the_number_of_rows_trained_on(tokenizer):
    loop = fake_loop(tokenizer, "attnrl", "prompts=8")
    for _ in range(4):
        before = loop.trainer.state.batch_size
        updates = len(loop.policy.updates)
        loop.trainer.step()
        rows = len(loop.policy.updates[-1]) if len(loop.policy.updates) > updates else 0
        ratio = min(before.target / rows, 2.0) if rows else 2.0
        assert before.target == 8 * 6 * 5
        assert loop.trainer.state.batch_size.batch == pytest.approx(before.batch * (0.9 + 0.1 * ratio))
    assert loop.trainer.state.batch_size.batch > 8.0  # expansion leaves some of the full trees out


def test_a_larger_batch_size_draws_more_problems(tokenizer):
    loop = fake_loop(tokenizer, "attnrl", "prompts=8", rule=lambda answer, response: 0.0)
    results = steps(loop, 3)
    # 8, then drawn after 8 * 1.1 = 8.8 and 9.68; the batch of a step is drawn in the step before.
    assert [result.metrics["prompt_batch_size"] for result in results] == [8, 8, 9]
    assert len(loop.trainer.state.pending) == 10
    positions = [problem.plan.group.position for result in results for problem in result.problems]
    assert positions == list(range(25))


def test_the_batch_size_stays_within_its_bounds(tokenizer):
    loop = fake_loop(
        tokenizer, "attnrl", "prompts=2", "method.adaptive.max_growth=2", rule=lambda answer, response: 0.0
    )
    steps(loop, 12)
    assert len(loop.trainer.state.pending) == 4


def test_without_adaptive_batch_size_it_stays(tokenizer):
    loop = fake_loop(tokenizer, "attnrl", "method.adaptive.batch_size=false", rule=lambda answer, response: 0.0)
    before = loop.trainer.state.batch_size
    assert [result.metrics["prompt_batch_size"] for result in steps(loop, 4)] == [3, 3, 3, 3]
    assert loop.trainer.state.batch_size == before


# --- recipes of the one loop ------------------------------------------------------------------------------------------


def test_grpo_is_whole_responses_with_their_standing_in_the_group(tokenizer):
    loop = fake_loop(tokenizer, "grpo", "method.trunks=8")
    result = loop.trainer.step()
    assert all(len(call) in {0, 3 * 8} for call in loop.sampler.calls)
    rows = {(row.prompt, row.response): row for row in loop.policy.updates[0]}
    assert len(rows) == 8 * sum(problem.forest.has_signal for problem in result.problems) > 0
    for problem in result.problems:
        rewards = [trunk.reward for trunk in problem.plan.group.trunks]
        if len(set(rewards)) == 1:
            continue
        for trunk in problem.plan.group.trunks:
            advantage = (trunk.reward - fmean(rewards)) / stdev(rewards)
            row = rows[problem.plan.group.prompt, trunk.tokens]
            assert row.advantages == pytest.approx([advantage] * len(trunk.tokens), rel=1e-4)
    assert "reward/mc" not in result.metrics
    assert "branch/position" not in result.metrics


def test_treerl_branches_every_trunk_at_its_tokens_of_highest_entropy(tokenizer):
    loop = fake_loop(tokenizer, "treerl", rule=solves_even_problems)
    result = loop.trainer.step()
    for problem in result.problems:  # all-correct and all-wrong ones alike
        assert list(problem.plan.points) == list(range(TRUNKS))
        for index, points in problem.plan.points.items():
            entropy = problem.plan.group.trunks[index].entropy
            highest = sorted(range(1, len(entropy)), key=lambda token: -entropy[token])[:2]
            assert sorted(points) == sorted(highest)


def test_attnrl_branches_at_the_earliest_steps_of_high_fci(tokenizer):
    """With rho 0.5 at least the two highest of four to nine steps are candidates, the first step never."""
    loop = fake_loop(tokenizer, "attnrl", "method.branching.rho=0.5")
    result = loop.trainer.step()
    for problem in result.problems:
        for index, points in problem.plan.points.items():
            steps_, fci = problem.plan.group.trunks[index].steps, problem.plan.group.trunks[index].influence
            assert fci == (0.0, *helpers.fake_fci(steps_)[1:])
            count = math.ceil(0.5 * len(steps_))
            candidates = sorted(sorted(range(1, len(steps_)), key=lambda step: -fci[step])[:count])
            assert points == tuple(steps_.starts[step] for step in candidates[:2])


def test_the_oracle_branches_where_the_problem_says(tokenizer, monkeypatch):
    asked = []

    def dependents(problem, texts):
        asked.append((problem.id, "".join(texts)))
        return tuple(float(step == 2) for step in range(len(texts)))

    monkeypatch.setattr(attnrl.rl.trainer, "step_dependents", dependents)
    loop = fake_loop(tokenizer, "attnrl", "method.branching.criterion=oracle", "method.branching.points=1")
    plans = [problem.plan for problem in loop.trainer.step().problems]
    for plan in plans:
        for index, points in plan.points.items():
            assert points == (plan.group.trunks[index].steps.starts[2],)
            text = tokenizer.decode(plan.group.trunks[index].tokens)
            assert (plan.group.problem_id, text) in asked


@pytest.mark.parametrize(
    ("recipe", "overrides", "asked"),
    [
        ("attnrl", (), True),
        ("treerl", (), False),
        ("grpo", (), False),
        ("treerl", ("method.branching.criterion=fci",), True),
        ("attnrl", ("method.branching.criterion=random",), True),  # the filter looks at FCI too
        ("attnrl", ("method.branching.criterion=random", "method.adaptive.filter=false"), False),
        ("grpo", ("method.credit.rest_weight=0.5",), True),
    ],
)
def test_fci_is_measured_where_something_looks_at_it(tokenizer, recipe, overrides, asked):
    loop = fake_loop(tokenizer, recipe, *overrides)
    loop.trainer.step()
    assert any(loop.policy.fci_asked) == asked


@pytest.mark.parametrize(
    ("recipe", "overrides"),
    [
        ("treerl", ("method.pipeline=one_step",)),  # Table 3
        ("treerl", ("method.branching.criterion=fci",)),  # Table 2: + ATB
        ("attnrl", ("method.adaptive.filter=false",)),
        ("attnrl", ("method.adaptive.expansion=all",)),
        ("attnrl", ("method.adaptive.expansion=round",)),
        ("attnrl", ("method.branching.criterion=random",)),
        ("attnrl", ("method.pipeline=two_phase",)),
        ("attnrl", ("method.credit.rest_weight=0.3",)),
        ("attnrl_plus", ()),
        ("grpo", ("method.advantage=grpo_no_std", "method.pipeline=one_step")),
    ],
)
def test_ablations_are_settings(tokenizer, recipe, overrides):
    loop = fake_loop(tokenizer, recipe, *overrides)
    results = steps(loop, 2)
    assert len(loop.policy.updates) == 2
    one_step = loop.config.method.pipeline == "one_step"
    assert len(loop.sampler.calls) == (3 if one_step else 4)
    assert all(result.metrics["trained_responses"] > 0 for result in results)


@pytest.mark.parametrize("recipe", ["attnrl", "grpo"])
def test_credit_weighs_the_advantages_of_every_sample_by_its_own_steps(tokenizer, recipe):
    plain = fake_loop(tokenizer, recipe, "sampling.score_continuations=true")
    weighed = fake_loop(tokenizer, recipe, "method.credit.rest_weight=0.5", "method.credit.top_share=0.3")
    before, after = plain.trainer.step(), weighed.trainer.step()
    assert before.metrics["tokens/generated"] == after.metrics["tokens/generated"]
    changed = 0
    for one, other in zip(plain.policy.updates[0], weighed.policy.updates[0], strict=True):
        assert one.response == other.response and one.old_logprobs == other.old_logprobs
        ratios = [b / a for a, b in zip(one.advantages, other.advantages, strict=True) if a]
        if ratios:
            assert {round(ratio / max(ratios), 9) for ratio in ratios} <= {0.5, 1.0}
            changed += len({round(ratio, 9) for ratio in ratios}) > 1
    assert changed
    for problem in after.problems:
        for sample in [*problem.plan.group.trunks, *problem.branches]:
            assert len(sample.advantage_weights) == len(sample.tokens)


# --- determinism and resuming -----------------------------------------------------------------------------------------


def test_the_seed_decides_every_request_and_every_row(tokenizer):
    runs = [fake_loop(tokenizer, "attnrl", f"seed={seed}") for seed in (3, 3, 4)]
    for loop in runs:
        steps(loop, 3)
    same, again, _ = runs
    assert same.sampler.calls == again.sampler.calls
    assert same.policy.updates == again.policy.updates
    seeds = [{request.seed for call in loop.sampler.calls for request in call} for loop in runs]
    assert not seeds[0] & seeds[2]


@pytest.mark.parametrize("recipe", ["attnrl", "treerl", "grpo"])
def test_a_run_that_goes_on_from_a_state_is_the_run_that_never_stopped(tokenizer, recipe):
    whole = fake_loop(tokenizer, recipe)
    steps(whole, 4)
    first = fake_loop(tokenizer, recipe)
    steps(first, 2)
    second = fake_loop(tokenizer, recipe, state=first.trainer.state, version=first.policy.version)
    steps(second, 2)
    assert first.sampler.calls + second.sampler.calls == whole.sampler.calls
    assert first.policy.updates + second.policy.updates == whole.policy.updates
    assert second.trainer.state == whole.trainer.state


def test_the_sampler_sees_new_weights_after_every_step(tokenizer):
    loop = fake_loop(tokenizer)
    steps(loop, 3)
    assert loop.sampler.syncs == 3
