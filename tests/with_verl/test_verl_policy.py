"""How rows are dealt out among verl's workers, and what those that only fill up weigh. The workers are stood in for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from attnrl.config.load import load_config
from attnrl.config.schema import TrainConfig
from attnrl.errors import RunError
from attnrl.method.loss import cut_mini_batches
from attnrl.method.steps import Steps
from attnrl.types import TrainingRow
from attnrl.verl.launch import installed_version

if installed_version() is None:
    pytest.skip("needs verl, in an environment of its own: make test-verl", allow_module_level=True)

from tensordict import TensorDict
from verl.utils import tensordict_utils

from attnrl.verl.policy import VerlPolicy


class Workers:
    """A worker group that keeps what it is given; its model finds of each token what the token's id says."""

    def __init__(self, count: int) -> None:
        self._dispatch_info = {"actor": list(range(count))}
        self.given: list[TensorDict] = []

    def compute_log_prob(self, batch: TensorDict) -> TensorDict:
        self.given.append(batch)
        ids = batch["input_ids"]
        found = {"log_probs": ids * -1.0, "entropy": ids * 2.0}
        if "step_starts" in batch.keys():  # noqa: SIM118
            values = ids.values() * 0.5 * batch["step_starts"].values()
            found["influence"] = torch.nested.nested_tensor_from_jagged(values, ids.offsets())
        return tensordict_utils.get_tensordict(found)

    compute_ref_log_prob = compute_log_prob

    def update_actor(self, batch: TensorDict) -> dict[str, Any]:
        self.given.append(batch)
        return {"metrics": {"grad_norm": [1.0, float("inf")], "actor/pg_loss": [0.5, 0.7], "lr": [1e-3, 1e-3]}}


def policy(workers: int, *changes: str) -> VerlPolicy:
    config = load_config(
        TrainConfig, "attnrl", ["engine=verl", "sampling.score_continuations=true", "loss.kl=0.1", *changes]
    )
    group = Workers(workers)
    return VerlPolicy(group, group, config)


def row(index: int, prompt: int, response: int) -> TrainingRow:
    values = tuple(float(index) for _ in range(response))
    return TrainingRow((index + 1,) * prompt, (index + 1,) * response, values, values, values)


sizes = st.lists(st.tuples(st.integers(1, 9), st.integers(1, 30)), min_size=1, max_size=25)


@given(sizes, st.integers(1, 4))
def test_scores_come_back_in_the_order_of_their_rows(shapes, workers):
    prompts = [[10 + index] * prompt for index, (prompt, _) in enumerate(shapes)]
    responses = [list(range(1, response + 1)) for _, response in shapes]
    steps = [Steps(starts=(0,) if len(r) < 3 else (0, 2), length=len(r), think_end=None) for r in responses]
    wanted = [one if index % 3 else None for index, one in enumerate(steps)]
    scores = policy(workers).score(prompts, responses, wanted)
    for prompt, response, its_steps, score in zip(prompts, responses, wanted, scores, strict=True):
        before = [prompt[-1], *response[:-1]]  # the number of a token is found where it is predicted
        assert score.logprobs == tuple(-1.0 * token for token in before)
        assert score.entropy == tuple(2.0 * token for token in before)
        assert score.influence == (tuple(0.5 * response[start] for start in its_steps.starts) if its_steps else ())


@given(sizes, st.integers(1, 4), st.integers(1, 3))
def test_each_row_is_trained_once_and_what_fills_up_weighs_nothing(shapes, workers, mini_batches):
    rows = [row(index, *shape) for index, shape in enumerate(shapes)]
    trained = policy(workers, f"optimizer.mini_batches={mini_batches}")
    trained.update(rows)
    batch = trained.actor.given[-1]
    per_step = batch["mini_batch_size"] // workers
    dealt = list(zip(*(batch[name].unbind() for name in ("responses", "response_mask", "loss_mask")), strict=True))
    share = len(dealt) // workers
    cut = cut_mini_batches([len(one.response) for one in rows], mini_batches)
    denominator = sum(len(one.response) for one in rows) / len(cut)
    for number, expected in enumerate(cut):
        places = [w * share + number * per_step + place for w in range(workers) for place in range(per_step)]
        real = [dealt[place] for place in places if dealt[place][1].any()]
        assert sorted(int(tokens[0]) - 1 for tokens, _, _ in real) == list(expected)
        assert all(bool(mask.all()) for _, mask, _ in real)
        # What verl divides by: the same for each mini-batch, so that each token of the batch weighs the same.
        total = float(sum(dealt[place][2].sum() for place in places))
        assert total == pytest.approx(denominator, rel=1e-5)
        assert all(not dealt[place][2].any() for place in places if not dealt[place][1].any())


@given(sizes, st.integers(1, 4))
def test_workers_have_the_same_number_of_rows_of_their_own(shapes, workers):
    rows = [row(index, *shape) for index, shape in enumerate(shapes)]
    trained = policy(workers)
    trained.update(rows)
    batch = trained.actor.given[-1]
    assert len(batch) % workers == 0
    assert len(batch) // workers % (batch["mini_batch_size"] // workers) == 0
    for name in ("old_log_probs", "advantages", "ref_log_prob"):
        for values, tokens, mask in zip(
            batch[name].unbind(), batch["responses"].unbind(), batch["response_mask"].unbind(), strict=True
        ):
            assert len(values) == len(tokens)
            if mask.any():
                expected = -float(tokens[0]) if name == "ref_log_prob" else float(tokens[0]) - 1
                assert torch.all(values == expected)


def test_what_verl_reports_has_our_names():
    trained = policy(1)
    reported = trained.update([row(0, 2, 3), row(1, 2, 3)])
    assert reported["loss/policy"] == pytest.approx(0.6)
    assert reported["learning_rate"] == 1e-3
    assert reported["nonfinite/mini_batches"] == 1


def test_nothing_to_score_is_nothing():
    assert policy(2).score([], []) == []


def test_importance_weights_go_along():
    trained = policy(1, "loss.tis=1.5", "sampling.score_continuations=true")
    rows = [TrainingRow((1,), (1, 2), (0.0, 0.0), (-1.0, 1.0), (1.0, 1.0))] * 2
    trained.update(rows)
    weights = trained.actor.given[-1]["rollout_is_weights"].unbind()[0]
    assert weights.tolist() == pytest.approx([1.5, 0.3679], rel=1e-3)


class OtherWorkers(Workers):
    """A worker group with another model: its log-probs are half as large."""

    def compute_ref_log_prob(self, batch: TensorDict) -> TensorDict:
        found = self.compute_log_prob(batch)
        found["log_probs"] = found["log_probs"] * 0.5
        return found


def test_another_reference_is_refused_before_the_first_update_of_a_new_run():
    config = policy(2).config
    actor, reference = Workers(2), OtherWorkers(2)
    with pytest.raises(RunError, match=r"loss\.kl"):
        VerlPolicy(actor, reference, config).update([row(0, 2, 3)])
    assert not [batch for batch in actor.given if "advantages" in batch.keys()]  # noqa: SIM118
    VerlPolicy(actor, reference, config, resumed=True).update([row(0, 2, 3)])
    trained = VerlPolicy(actor, actor, config)
    trained.update([row(0, 2, 3)])
    trained.reference = reference
    trained.update([row(0, 2, 3)])
