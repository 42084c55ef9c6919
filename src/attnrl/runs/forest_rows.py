"""Forests as rows of ``trees.jsonl``."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedTokenizerBase

from attnrl.rl.rollout import RolloutTree
from attnrl.tokenization import decode


def forest_row(rollout_tree: RolloutTree, tokenizer: PreTrainedTokenizerBase, step: int) -> dict[str, Any]:
    """One problem's forest: all tokens, steps, FCI, branch points, rewards, values and advantages.

    ``trees[i].nodes[0]`` is the trunk, the others continuations in the order of ``branch_points``; each has
    its own tokens, and ``at``, the trunk tokens it keeps. ``segments`` are ``[node, start, end, value,
    advantage]`` of the path to the node's leaf, with ``start`` and ``end`` in the node's own tokens.
    Advantages are those of eq. 3, whatever advantage the run trains with.
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
                "finish_reason": sample.finish_reason,
                "segments": segments[index, number],
            }
            for number, (node, sample) in enumerate(zip(tree.nodes, rollout_tree.node_samples(index), strict=True))
        ]
        trees.append(
            {
                "trained": tree.trained,
                "steps": trunk.steps.starts,
                "fci": trunk.fci,
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
        "filtered": not rollout_tree.plan.kept,
        "root_value": forest.root_value,
        "trees": trees,
    }
