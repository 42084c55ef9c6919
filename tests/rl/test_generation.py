"""One generation among fakes: what is carried over, what is asked for the rest of it, and that nothing is lost."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict

import pytest
from helpers import Loop, fake_entropy, fake_fci, fake_loop
from hypothesis import given
from hypothesis import strategies as st

from attnrl.prompts.renderer import PromptRenderer
from attnrl.rl.clock import PhaseClock
from attnrl.rl.rollout import PartialGroup, Trunk
from attnrl.tokenization import decode
from attnrl.types import Request

BUDGET = 30  # of helpers.tiny_config


def by_budget(request: Request) -> tuple[int, int]:
    """New responses are later than what has begun already; their seeds decide which of them."""
    return request.max_new_tokens, request.seed


def by_seed(request: Request) -> int:
    """Any order, continuations among them."""
    return request.seed


def late_loop(tokenizer, *overrides: str, lateness=by_budget, **settings) -> Loop:
    """A loop whose requests do not finish in order."""
    loop = fake_loop(tokenizer, "attnrl", *overrides, **settings)
    loop.sampler.lateness = lateness
    return loop


# --- carried over -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pipeline", ["one_step", "two_phase"])
@given(
    carry_over=st.sampled_from([0.0, 0.1, 0.34, 0.5, 0.67, 0.99]),
    prompts=st.integers(1, 6),
    trunks=st.integers(1, 4),
    seed=st.integers(0, 10**6),
    adapts=st.booleans(),
    lateness=st.sampled_from([by_budget, by_seed, None]),
)
def test_no_response_is_lost_and_each_problem_is_trained_on_once(
    tokenizer, pipeline, carry_over, prompts, trunks, seed, adapts, lateness
):
    settings = [f"sampling.carry_over={carry_over}", f"prompts={prompts}", f"method.trunks={trunks}", f"seed={seed}"]
    settings += [f"method.pipeline={pipeline}", f"method.adaptive.batch_size={adapts}"]
    loop = late_loop(tokenizer, *settings, lateness=lateness)
    problems = []
    for _ in range(5):
        result = loop.trainer.step()
        state = loop.trainer.state
        assert result.problems, "at least one group of each batch is whole"
        assert all(group.unfinished for group in state.carried)
        assert result.metrics["carried_over"] == sum(len(group.unfinished) for group in state.carried)
        # A response is carried once: what is carried now was new in the last generation for initial responses.
        carried = {group.position for group in state.carried}
        assert not carried & {group.position for group in state.pending}
        problems += result.problems
    trained = [problem.plan.group.position for problem in problems]
    waiting = [group.position for group in (*state.pending, *state.carried)]
    assert Counter(trained + waiting) == Counter(range(state.position))
    # Every token that the sampler gave out is in one response, in order; graded is each response once.
    groups = [*(problem.plan.group for problem in problems), *state.pending, *state.carried]
    samples = [trunk for group in groups for trunk in group.trunks]
    samples += [branch for problem in problems for branch in problem.branches]
    assert sum(len(sample.tokens) for sample in samples) == state.sampled_tokens
    assert all(len(sample.sampler_logprobs) == len(sample.logprobs) == len(sample.tokens) for sample in samples)
    assert all(len(group.trunks) == trunks for group in groups)
    finished = [
        (str(group.position), decode(tokenizer, trunk.tokens))
        for group in groups
        for trunk in group.trunks
        if isinstance(trunk, Trunk)
    ]
    for problem in problems:
        group = problem.plan.group
        for (trunk, at), branch in zip(problem.plan.branches, problem.branches, strict=True):
            finished.append((str(group.position), decode(tokenizer, group.trunks[trunk].tokens[:at] + branch.tokens)))
    assert Counter(loop.grader.asked) == Counter(finished)


@pytest.mark.parametrize("pipeline", ["one_step", "two_phase"])
def test_carried_responses_go_on_where_they_stopped_and_end_in_the_next_generation(tokenizer, pipeline):
    loop = late_loop(
        tokenizer,
        "sampling.carry_over=0.5",
        "prompts=4",
        "method.adaptive.batch_size=false",
        f"method.pipeline={pipeline}",
    )
    seen = 0
    for _ in range(6):
        before = loop.trainer.state
        calls = len(loop.sampler.calls)
        result = loop.trainer.step()
        if not before.carried:
            continue
        # One generation a step, or the first of two.
        requests = loop.sampler.calls[calls]
        branches = sum(len(problem.branches) for problem in result.problems) if pipeline == "one_step" else 0
        unfinished = [(group, tokens) for group in before.carried for tokens in group.unfinished]
        for request, (group, tokens) in zip(requests[branches:], unfinished, strict=False):
            assert request.prompt == group.prompt + tokens.tokens
            assert request.max_new_tokens == BUDGET - len(tokens.tokens)
        new = loop.trainer.state.position - before.position
        assert new == 4 - len(before.carried), "each generation has as many problems as one without carrying"
        assert len(requests) == branches + len(unfinished) + new * loop.config.method.trunks
        after = loop.trainer.state.pending if pipeline == "one_step" else [p.plan.group for p in result.problems]
        whole = {group.position: group for group in after}
        assert {group.position for group in before.carried} <= whole.keys(), "no second carry"
        for group in before.carried:
            for was, now in zip(group.trunks, whole[group.position].trunks, strict=True):
                assert now == was if isinstance(was, Trunk) else now.tokens[: len(was.tokens)] == was.tokens
        seen += len(unfinished)
    assert seen > 5


def test_a_carried_response_keeps_the_numbers_of_the_policies_that_sampled_it(tokenizer):
    """The fake policy's log-prob is the number of its updates; FCI and steps are those of the whole response."""
    loop = late_loop(tokenizer, "sampling.carry_over=0.67")
    longest = 0
    for _ in range(5):
        carried, version = loop.trainer.state.carried, loop.policy.version
        loop.trainer.step()
        whole = {group.position: group for group in loop.trainer.state.pending}
        for group in carried:
            for was, now in zip(group.trunks, whole[group.position].trunks, strict=True):
                if isinstance(was, Trunk):
                    continue
                old = len(was.tokens)
                assert was.logprobs == (version - 1,) * old
                assert now.logprobs == was.logprobs + (version,) * (len(now.tokens) - old)
                assert now.entropy[:old] == was.entropy
                assert now.entropy[old:] == fake_entropy(now.tokens)[old:]
                assert now.influence[1:] == fake_fci(now.steps)[1:]
                assert now.steps.length == len(now.tokens)
                longest = max(longest, old)
    assert longest > 5


def test_only_as_many_problems_as_allowed_are_left_unfinished(tokenizer):
    loop = late_loop(tokenizer, "sampling.carry_over=0.3", "prompts=7", "method.adaptive.batch_size=false")
    carried = []
    for _ in range(6):
        loop.trainer.step()
        carried.append(len(loop.trainer.state.carried))
    assert set(carried) == {2}  # the whole part of 2.1; the sampler has many left when it is asked


def test_without_carry_over_every_generation_is_waited_for(tokenizer):
    in_order, late = fake_loop(tokenizer), late_loop(tokenizer)
    for _ in range(3):
        assert in_order.trainer.step().problems == late.trainer.step().problems
        assert in_order.trainer.state == late.trainer.state
        assert late.trainer.state.carried == ()
    assert in_order.sampler.calls == late.sampler.calls


def test_a_run_that_goes_on_from_a_state_with_carried_problems_is_the_run_that_never_stopped(tokenizer):
    settings = ["sampling.carry_over=0.5", "prompts=4"]
    whole, first = late_loop(tokenizer, *settings), late_loop(tokenizer, *settings)
    for _ in range(4):
        whole.trainer.step()
    for _ in range(2):
        first.trainer.step()
    assert first.trainer.state.carried
    second = late_loop(tokenizer, *settings, state=first.trainer.state, version=first.policy.version)
    for _ in range(2):
        second.trainer.step()
    assert first.sampler.calls + second.sampler.calls == whole.sampler.calls
    assert first.policy.updates + second.policy.updates == whole.policy.updates
    assert second.trainer.state == whole.trainer.state


def test_a_response_that_has_not_begun_is_not_scored(tokenizer):
    loop = late_loop(tokenizer, "sampling.carry_over=0.9", "prompts=8")
    scored: list[int] = []
    score = loop.policy.score

    def remember(prompts, responses, steps=None):
        scored.extend(map(len, responses))
        return score(prompts, responses, steps)

    loop.policy.score = remember
    empty = 0
    for _ in range(8):
        loop.trainer.step()
        empty += sum(not tokens.tokens for group in loop.trainer.state.carried for tokens in group.unfinished)
    assert empty > 0
    assert min(scored) > 0


# --- grading and scoring ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", ["attnrl", "treerl", "grpo"])
def test_a_generation_is_scored_in_one_call(tokenizer, recipe):
    loop = fake_loop(tokenizer, recipe, "sampling.score_continuations=true")
    calls: list[list[bool]] = []
    score = loop.policy.score

    def remember(prompts, responses, steps=None):
        calls.append([its is not None for its in steps or [None] * len(prompts)])
        return score(prompts, responses, steps)

    loop.policy.score = remember
    result = loop.trainer.step()
    assert len(calls) == len(loop.sampler.calls) == 2
    branches = sum(len(problem.branches) for problem in result.problems)
    initial = len(calls[1]) - branches
    assert calls[1] == [False] * branches + [recipe == "attnrl"] * initial


def test_continuations_need_not_be_scored(tokenizer):
    """Then the sampler's log-probs stand for the policy's, and mismatch and entropy are of the rest."""
    loop = fake_loop(tokenizer, "attnrl", "sampling.score_continuations=false")
    loop.trainer.step()
    result = loop.trainer.step()
    branches = [branch for problem in result.problems for branch in problem.branches]
    assert branches
    assert all(branch.logprobs == branch.sampler_logprobs and branch.entropy == () for branch in branches)
    trunks = [trunk for problem in result.problems for trunk in problem.plan.group.trunks]
    assert all(trunk.logprobs != trunk.sampler_logprobs and trunk.entropy for trunk in trunks)
    assert result.metrics["mismatch/mean"] == pytest.approx(99.0)
    rows = [row for update in loop.policy.updates for row in update]
    assert any(row.old_logprobs[-1] == -99.0 for row in rows)


def test_grades_are_the_same_whether_grading_overlaps_or_not(tokenizer, monkeypatch):
    beside, afterwards = fake_loop(tokenizer), fake_loop(tokenizer)
    afterwards.grader = afterwards.trainer.rewards.grader = type("Afterwards", (), {})()
    afterwards.grader.overlaps, afterwards.grader.grade = False, beside.grader.__class__().grade
    for _ in range(3):
        one, other = beside.trainer.step(), afterwards.trainer.step()
        assert one.problems == other.problems
        assert one.metrics["time/grade_overlapped"] >= other.metrics["time/grade_overlapped"] == 0.0


def test_a_failing_grader_ends_the_generation_before_its_last_response(tokenizer):
    loop = fake_loop(tokenizer)
    finished = 0

    def generate(requests, *, on_completion=None, should_stop=None):
        nonlocal finished
        completions = [loop.sampler._complete(request) for request in requests]
        on_completion(0, completions[0])
        while True:  # for ever: only the grader's failure ends it
            finished += 1
            assert not should_stop({1})

    class GraderError(Exception):
        """The failure of the grader."""

    def grade(problems, responses):
        raise GraderError

    loop.sampler.generate = generate
    loop.grader.grade = grade
    with pytest.raises(GraderError):
        loop.trainer.step()
    assert finished


def test_the_texts_of_responses_are_decoded_once(tokenizer, monkeypatch):
    texts: list[str] = []
    finished_response = PromptRenderer.finished_response

    def remember(*arguments):
        texts.append((response := finished_response(*arguments)).text)
        return response

    monkeypatch.setattr(PromptRenderer, "finished_response", remember)
    loop = fake_loop(tokenizer)
    loop.trainer.step()
    assert texts == [response for _, response in loop.grader.asked]


# --- the records ------------------------------------------------------------------------------------------------------


def test_new_groups_are_nothing_but_their_prompt(tokenizer):
    loop = late_loop(tokenizer, "sampling.carry_over=0.99", "prompts=5")
    loop.trainer.step()
    for group in loop.trainer.state.carried:
        assert isinstance(group, PartialGroup)
        assert group.prompt == PromptRenderer(tokenizer).encode(loop.trainer.source.at(group.position), 128)
        json.dumps(asdict(group))  # plain all the way down


def test_the_timeline_holds_every_phase_of_the_step(tokenizer):
    loop = fake_loop(tokenizer)
    loop.trainer.clock = PhaseClock()
    loop.trainer.step()
    result = loop.trainer.step()
    names = [name for name, _, _ in result.timeline if name != "grade (overlapped)"]
    assert names == ["plan", "generate", "grade", "score", "train", "sync"]
    assert all(0 <= start <= end <= result.metrics["time/step"] for _, start, end in result.timeline)
    for name in {*names, "grade (overlapped)"}:
        seconds = sum(end - start for other, start, end in result.timeline if other == name)
        metric = "time/grade_overlapped" if name == "grade (overlapped)" else f"time/{name}"
        assert seconds == pytest.approx(result.metrics[metric])
    generate = next(span for span in result.timeline if span[0] == "generate")
    for name, start, end in result.timeline:
        if name == "grade (overlapped)":
            assert generate[1] <= start <= end <= generate[2]
