"""Scores and updates of models with states beside keys and values, against plain forwards of each row alone."""

from __future__ import annotations

import copy
import random

import pytest
import torch
from state_models import MODELS, ROUTED, build
from transformers import PreTrainedModel

from attnrl.config.method import BranchingConfig
from attnrl.config.schema import LossConfig, OptimizerConfig
from attnrl.errors import UserError
from attnrl.fci import influence_by_head
from attnrl.local.loading import choose_packing
from attnrl.local.policy import LocalPolicy
from attnrl.method.measures import REDUCTIONS
from attnrl.method.steps import Steps
from attnrl.types import TrainingRow

SOFTMAX = [name for name in sorted(MODELS) if name != "Mamba"]


def policy_of(model: PreTrainedModel, packing: str = "none", **branching: object) -> LocalPolicy:
    return LocalPolicy(
        copy.deepcopy(model),
        None,
        loss=LossConfig(kl=0.0),
        optimizer=OptimizerConfig(learning_rate=1e-3, mini_batches=1),
        branching=BranchingConfig(**branching),
        temperature=1.0,
        packing=packing,
    )


def texts(seed: int = 0) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
    """Prompts and responses of very different lengths, so that rows are padded; lengths beyond a chunk of 64."""
    rng = random.Random(seed)
    lengths = [(1, 3), (5, 30), (20, 75), (9, 12)]
    drawn = [[tuple(rng.choices(range(6, 48), k=n)) for n in pair] for pair in lengths]
    return [prompt for prompt, _ in drawn], [response for _, response in drawn]


def alone(model: PreTrainedModel, prompt: tuple[int, ...], response: tuple[int, ...]) -> torch.Tensor:
    logits = model(torch.tensor([prompt + response]), use_cache=False).logits[0, len(prompt) - 1 : -1]
    return logits.log_softmax(-1).gather(1, torch.tensor(response)[:, None])[:, 0]


@pytest.mark.parametrize("name", sorted({**MODELS, **ROUTED}))
def test_scores_and_gradients_of_padded_rows_are_those_of_each_row_alone(name: str) -> None:
    model, (prompts, responses) = build(name), texts()
    asking = build(name, output_router_logits=True) if name in ROUTED else model
    packing, _ = choose_packing("auto", asking)
    policy = policy_of(asking, packing)
    scores = policy.score(prompts, responses)
    for prompt, response, score in zip(prompts, responses, scores, strict=True):
        with torch.no_grad():
            torch.testing.assert_close(torch.tensor(score.logprobs), alone(model, prompt, response), atol=1e-4, rtol=0)

    rows = [
        TrainingRow(p, r, s.logprobs, s.logprobs, tuple(0.5 - i for _ in r))
        for i, (p, r, s) in enumerate(zip(prompts, responses, scores, strict=True))
    ]
    total = sum(map(len, responses))
    policy._accumulate(rows, total)
    found = torch.cat(
        [master.grad.flatten() for master in policy.optimizer.masters.values() if master.grad is not None]
    )
    plain = copy.deepcopy(model).train()
    for row in rows:
        new = alone(plain, row.prompt, row.response)
        loss = -((new - torch.tensor(row.old_logprobs)).exp() * torch.tensor(row.advantages)).sum() / total
        loss.backward()
    expected = torch.cat([p.grad.flatten() for p in plain.parameters() if p.grad is not None])
    assert float((found - expected).norm() / expected.norm()) < 1e-3


@pytest.mark.parametrize("name", SOFTMAX)
def test_influence_of_padded_rows_is_that_of_the_softmax_layers(name: str) -> None:
    model, (prompts, responses) = build(name), texts(1)
    steps = [Steps(tuple(range(0, len(response), 5)), len(response)) for response in responses]
    scores = policy_of(model, delta=1).score(prompts, responses, steps)
    for prompt, response, its_steps, score in zip(prompts, responses, steps, scores, strict=True):
        starts = [len(prompt) + start for start in its_steps.starts]
        by_head_LHS = influence_by_head(model, torch.tensor(prompt + response), starts, delta=1)
        assert by_head_LHS.shape[0] < model.config.num_hidden_layers
        expected = REDUCTIONS[BranchingConfig().reduction](by_head_LHS)
        torch.testing.assert_close(torch.tensor(score.influence), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", sorted(MODELS))
def test_packing_is_none_and_said_so(name: str) -> None:
    model = build(name)
    packing, note = choose_packing("auto", model)
    assert packing == "none" and note is not None and "optimizer.packing" in note
    assert choose_packing("none", model) == ("none", None)
    for setting, recorded in (("tree", None), ("auto", "tree")):
        with pytest.raises(UserError, match="packing=none"):
            choose_packing(setting, model, recorded)  # type: ignore[arg-type]
    routed = build("Mixtral")
    assert choose_packing("auto", routed) == ("tree", None)
    packing, note = choose_packing("auto", routed, "none")
    assert packing == "none" and note is not None
