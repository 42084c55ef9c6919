"""A row of trees.jsonl, against a problem made by hand."""

import json

import pytest
from transformers import PreTrainedTokenizerBase

from attnrl.method.steps import Steps, split_steps
from attnrl.rl.rollout import BranchPlan, Group, RolloutTree, Sample, Trunk
from attnrl.runs.forest_rows import forest_row


def sample(tokenizer: PreTrainedTokenizerBase, text: str, reward: float) -> dict:
    tokens = tuple(tokenizer(text)["input_ids"])
    numbers = tuple(0.1 * place for place in range(len(tokens)))
    return {
        "tokens": tokens,
        "logprobs": numbers,
        "sampler_logprobs": numbers,
        "entropy": numbers,
        "reward": reward,
        "verdict": "wrong",
        "finish_reason": "stop",
    }


@pytest.fixture
def rollout_tree(tokenizer: PreTrainedTokenizerBase) -> RolloutTree:
    """Two trunks of four steps; the first is expanded at its second step, where one of two continuations is right."""
    text = "so 1\n\nso 2\n\nso 3\n\nso 4"
    steps = split_steps([tokenizer.decode([token]) for token in tokenizer(text)["input_ids"]])
    assert steps.starts == (0, 3, 6, 9)
    trunks = tuple(
        Trunk(**sample(tokenizer, text, reward), steps=steps, influence=(0.0, 0.3, 0.2, 0.1)) for reward in (1.0, 0.0)
    )
    prompt = tuple(tokenizer("A=1?")["input_ids"])
    group = Group(7, "mine:7", ("1",), prompt, trunks)
    branches = (Sample(**sample(tokenizer, "so 5\n\nso 6", 1.0)), Sample(**sample(tokenizer, "so 7", 0.0)))
    return RolloutTree(BranchPlan(group, True, {0: (3,)}, 2), branches)


def test_a_problem_by_hand(rollout_tree: RolloutTree, tokenizer: PreTrainedTokenizerBase) -> None:
    row = forest_row(rollout_tree, tokenizer, step=4)
    assert {key: row[key] for key in ("step", "position", "problem", "prompt", "filtered")} == {
        "step": 4,
        "position": 7,
        "problem": "mine:7",
        "prompt": "A=1?",
        "filtered": False,
    }
    assert list(row["answers"]) == ["1"]
    assert row["root_value"] == pytest.approx(2 / 4)  # leaves 1, 1, 0 and the unexpanded trunk's 0

    expanded, other = row["trees"]
    assert (expanded["trained"], other["trained"]) == (True, False)
    assert (list(expanded["branch_points"]), list(other["branch_points"])) == ([3], [])
    assert list(expanded["steps"]) == [0, 3, 6, 9]
    assert list(expanded["influence"]) == [0.0, 0.3, 0.2, 0.1]
    assert len(expanded["entropy"]) == len(expanded["nodes"][0]["tokens"]) == 11

    nodes = expanded["nodes"]
    assert [(node["at"], node["text"], node["reward"]) for node in nodes] == [
        (0, "so 1\n\nso 2\n\nso 3\n\nso 4", 1.0),
        (3, "so 5\n\nso 6", 1.0),
        (3, "so 7", 0.0),
    ]
    # The kept step has three leaves worth 2/3 under a root of 1/2, and what follows has one leaf each.
    kept = (2 / 3 - 1 / 2 + 2 / 3 - 1 / 2) / 3**0.5
    for node, (length, value) in enumerate([(8, 1.0), (5, 1.0), (2, 0.0)]):
        start = 3 if node == 0 else 0
        first, second = nodes[node]["segments"]
        assert first == pytest.approx([0, 0, 3, 2 / 3, kept])
        assert second == pytest.approx([node, start, start + length, value, value - 1 / 2 + value - 2 / 3])
    assert other["nodes"][0]["segments"] == [pytest.approx([0, 0, 11, 0.0, -1.0])]


def test_it_is_json(rollout_tree: RolloutTree, tokenizer: PreTrainedTokenizerBase) -> None:
    row = forest_row(rollout_tree, tokenizer, step=1)
    again = json.loads(json.dumps(row))
    assert again["trees"][0]["nodes"][1]["text"] == "so 5\n\nso 6"
    assert again["answers"] == ["1"] and again["trees"][0]["branch_points"] == [3]


def test_a_filtered_problem_says_so(rollout_tree: RolloutTree, tokenizer: PreTrainedTokenizerBase) -> None:
    row = forest_row(RolloutTree(BranchPlan(rollout_tree.plan.group, False, {}, 2), ()), tokenizer, step=1)
    assert row["filtered"] is True
    assert [(tree["trained"], len(tree["nodes"])) for tree in row["trees"]] == [(False, 1), (False, 1)]


def test_a_response_without_tokens_and_fci_is_a_row_too(tokenizer: PreTrainedTokenizerBase) -> None:
    empty = Trunk((), (), (), (), 0.0, "no_answer", "length", steps=Steps(starts=(), length=0), influence=())
    group = Group(0, "x:0", ("1",), (5,), (empty,))
    row = forest_row(RolloutTree(BranchPlan(group, True, {0: ()}, 2), ()), tokenizer, step=1)
    assert row["trees"][0]["nodes"][0]["segments"] == []
