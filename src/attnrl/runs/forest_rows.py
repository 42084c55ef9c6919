"""Convert rollout trees to rows of ``trees.jsonl``."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedTokenizerBase

from attnrl.rl.rollout import RolloutTree
from attnrl.tokenization import decode


def forest_row(rollout_tree: RolloutTree, tokenizer: PreTrainedTokenizerBase, step: int) -> dict[str, Any]:
    """Return the row of one problem: tokens, steps, FCI, branch points, rewards, values and advantages of all trees.

    ``trees[i].nodes[0]`` is the trunk; the other nodes are continuations in the order of ``branch_points``. A node has
    its sampled ``tokens``, and ``at``, the number of trunk tokens before the branch point. ``reward`` is None for a
    leaf that is not judged, and ``correct`` tells the verdict ``correct``. ``segments`` lists ``[node, start, end,
    value, advantage]`` along the path to the node's leaf, where ``start`` and ``end`` index the tokens of the node;
    empty for a leaf that is not judged. ``root_value`` is None if no leaf is judged. Advantages follow eq. 3,
    independent of the advantage used for training.
    """
    group, forest = rollout_tree.plan.group, rollout_tree.forest
    segments = {
        (path.tree, path.node): [[s.owner, s.start, s.end, s.value, s.advantage] for s in path.segments]
        for path in forest.paths()
    }
    trees = []
    for index, (trunk, tree) in enumerate(zip(group.trunks, forest.trees, strict=True)):
        nodes = [
            {
                "at": node.at,
                "tokens": sample.tokens,
                "text": decode(tokenizer, sample.tokens),
                "reward": node.reward,
                "correct": sample.is_correct,
                "verdict": sample.verdict,
                "finish_reason": sample.finish_reason,
                "segments": segments.get((index, number), []),
            }
            for number, (node, sample) in enumerate(zip(tree.nodes, rollout_tree.node_samples(index), strict=True))
        ]
        trees.append(
            {
                "trained": tree.trained,
                "steps": trunk.steps.starts,
                "influence": trunk.influence,
                "entropy": trunk.entropy,
                "branch_points": rollout_tree.plan.points.get(index, ()),
                "nodes": nodes,
            }
        )
    return {
        "step": step,
        "position": group.position,
        "problem": group.problem_id,
        "prompt": decode(tokenizer, group.prompt),
        "answers": group.answers,
        "filtered": rollout_tree.plan.is_filtered,
        "root_value": forest.root_value if forest.leaf_rewards else None,
        "trees": trees,
    }
