"""The policy of the loop, as verl's workers hold it: sharded over all GPUs, one copy of a batch's row on one of them.

Rows go to the workers as nested tensors, end to end and without padding. Where their number does not divide among the
workers, rows without weight are added: no loss, no KL, no part in a token mean.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor
from verl.utils import tensordict_utils
from verl.utils.metric import reduce_metrics
from verl.utils.seqlen_balancing import calculate_workload, get_seqlen_balanced_partitions

from attnrl.config.schema import TrainConfig
from attnrl.method.loss import cut_mini_batches, truncated_importance
from attnrl.method.steps import Steps
from attnrl.types import Score, TrainingRow
from attnrl.verl.engine import INFLUENCE, MEASURE, STEP_STARTS

FILLER = TrainingRow(prompt=(0,), response=(0,), old_logprobs=(0.0,), sampler_logprobs=(0.0,), advantages=(0.0,))

#: Our names of what verl reports of an update.
METRICS = {
    "actor/pg_loss": "loss/policy",
    "actor/pg_clipfrac": "loss/clip_fraction",
    "actor/ppo_kl": "loss/old_kl_k1",
    "kl_loss": "loss/kl",
    "grad_norm": "grad_norm",
    "lr": "learning_rate",
}


class VerlPolicy:
    """``score`` and ``update`` of :class:`attnrl.types.Policy`, by verl's worker groups."""

    def __init__(self, actor: Any, reference: Any, config: TrainConfig) -> None:
        """Use the worker group of the actor, and that of the frozen starting model (None where no KL is weighed)."""
        self.actor = actor
        self.reference = reference
        self.config = config
        if "actor" not in actor._dispatch_info:
            actor._dispatch_info["actor"] = actor._query_dispatch_info("actor")
        self.workers = max(actor._dispatch_info["actor"]) + 1

    def score(
        self,
        prompts: Sequence[Sequence[int]],
        responses: Sequence[Sequence[int]],
        steps: Sequence[Steps | None] | None = None,
    ) -> list[Score]:
        """Log-probs, entropy and (with ``steps``) the influence of steps, all from one forward of each response.

        Raises:
            RuntimeError: as a worker raised it.
        """
        if not prompts:
            return []
        wanted = steps or [None] * len(prompts)
        lengths = [len(prompt) + len(response) for prompt, response in zip(prompts, responses, strict=True)]
        (order,) = self._shares([lengths])
        rows = [FILLER if index is None else _row(prompts[index], responses[index]) for index in order]
        batch = _batch(rows)
        if steps is not None:
            starts = []
            for index, row in zip(order, rows, strict=True):
                of_row = torch.zeros(len(row.prompt) + len(row.response), dtype=torch.int8)
                its_steps = None if index is None else wanted[index]
                if its_steps is not None:
                    of_row[[len(row.prompt) + start for start in its_steps.starts]] = 1
                starts.append(of_row)
            batch[STEP_STARTS] = _nested(starts)
            branching = self.config.method.branching
            measure = {"delta": branching.delta, "influence": branching.influence, "reduction": branching.reduction}
            tensordict_utils.assign_non_tensor_data(batch, MEASURE, measure)
        output = self._forward(self.actor.compute_log_prob, batch, calculate_entropy=True)

        scores: dict[int, Score] = {}
        logprobs, entropies = output["log_probs"].unbind(), output["entropy"].unbind()
        influences = output[INFLUENCE].unbind() if steps is not None else logprobs
        for index, logprob_T, entropy_T, influence_T in zip(order, logprobs, entropies, influences, strict=True):
            if index is not None:
                prompt, its_steps = len(prompts[index]), wanted[index]
                starts_S = [prompt + start for start in its_steps.starts] if its_steps is not None else []
                scores[index] = Score(
                    logprobs=tuple(logprob_T[prompt - 1 : -1].tolist()),
                    entropy=tuple(entropy_T[prompt - 1 : -1].tolist()),
                    fci=tuple(influence_T[starts_S].tolist()),
                )
        return [scores[index] for index in range(len(prompts))]

    def update(self, rows: Sequence[TrainingRow]) -> dict[str, float]:
        """One optimizer step for each mini-batch of equal token counts, on verl's own clipped loss and KL.

        The denominator is that of :class:`attnrl.local.policy.LocalPolicy`: each token of the training batch weighs
        the same. verl skips a mini-batch whose gradient is not finite; it counts in ``nonfinite/mini_batches``.

        Raises:
            RuntimeError: as a worker raised it.
        """
        lengths = [len(row.response) for row in rows]
        mini_batches = cut_mini_batches(lengths, self.config.optimizer.mini_batches)
        denominator = sum(lengths) / len(mini_batches)
        weights = [denominator / sum(lengths[i] for i in mini_batch) for mini_batch in mini_batches for _ in mini_batch]
        whole = [len(row.prompt) + len(row.response) for row in rows]
        shares = self._shares([[whole[i] for i in mini_batch] for mini_batch in mini_batches])
        firsts = [mini_batch.start for mini_batch in mini_batches]
        # verl cuts each worker's rows into mini-batches of as many rows, in order.
        per_worker = len(shares[0]) // self.workers
        order: list[int | None] = []
        for worker in range(self.workers):
            for first, share in zip(firsts, shares, strict=True):
                its = share[worker * per_worker : (worker + 1) * per_worker]
                order += [None if index is None else first + index for index in its]
        laid_out = [FILLER if index is None else rows[index] for index in order]

        batch = _batch(laid_out)
        mask = [torch.full((len(row.response),), int(i is not None)) for i, row in zip(order, laid_out, strict=True)]
        batch["response_mask"] = _nested(mask)
        # verl divides by the sum of this mask, and uses it for nothing else.
        batch["loss_mask"] = _nested(
            [ones * (0.0 if i is None else weights[i]) for i, ones in zip(order, mask, strict=True)]
        )
        batch["old_log_probs"] = _nested([torch.tensor(row.old_logprobs) for row in laid_out])
        batch["advantages"] = _nested([torch.tensor(row.advantages, dtype=torch.float32) for row in laid_out])
        if self.config.loss.tis is not None:
            importance = [
                truncated_importance(
                    torch.tensor(row.old_logprobs), torch.tensor(row.sampler_logprobs), self.config.loss.tis
                )
                for row in laid_out
            ]
            batch["rollout_is_weights"] = _nested(importance)
        if self.reference is not None:
            output = self._forward(self.reference.compute_ref_log_prob, batch, calculate_entropy=False)
            batch["ref_log_prob"] = _nested(
                [
                    logprob_T[len(row.prompt) - 1 : -1]
                    for row, logprob_T in zip(laid_out, output["log_probs"].unbind(), strict=True)
                ]
            )
        tensordict_utils.assign_non_tensor(
            batch,
            calculate_entropy=False,
            distillation_use_topk=False,
            distillation_only=False,
            global_batch_size=per_worker * self.workers,
            mini_batch_size=per_worker * self.workers,
            epochs=1,
            seed=0,
            dataloader_kwargs={"shuffle": False},
            temperature=self.config.sampling.temperature,
        )
        reported = self.actor.update_actor(batch)["metrics"]
        return _metrics(reported)

    def _forward(self, method: Any, batch: TensorDict, *, calculate_entropy: bool) -> TensorDict:
        tensordict_utils.assign_non_tensor(
            batch,
            calculate_entropy=calculate_entropy,
            compute_loss=False,
            temperature=self.config.sampling.temperature,
        )
        output: TensorDict = method(batch)
        return output

    def _shares(self, groups: Sequence[Sequence[int]]) -> list[list[int | None]]:
        """Deal out rows among the workers: for each group its indices, the first worker's first, None for a filler.

        Args:
            groups: for each group the length of each row.

        Returns:
            Groups of the same number of rows, in which each worker has the same number, and about the same work.
        """
        rows = max(map(len, groups))
        rows += -rows % self.workers
        dealt = []
        for lengths in groups:
            filled = [*lengths, *(len(FILLER.prompt) + len(FILLER.response),) * (rows - len(lengths))]
            parts = [list(range(rows))]
            if self.workers > 1:
                work = calculate_workload(torch.tensor(filled))
                parts = get_seqlen_balanced_partitions(work, k_partitions=self.workers, equal_size=True)
            dealt.append([index if index < len(lengths) else None for part in parts for index in part])
        return dealt


def _metrics(reported: Mapping[str, Any]) -> dict[str, float]:
    norms = reported["grad_norm"] if isinstance(reported["grad_norm"], list) else [reported["grad_norm"]]
    means = {name: float(value) for name, value in reduce_metrics(dict(reported)).items()}
    renamed = {METRICS.get(name, f"verl/{name}"): value for name, value in means.items() if name != "kl_coef"}
    return {**renamed, "nonfinite/mini_batches": float(sum(not math.isfinite(norm) for norm in norms))}


def _row(prompt: Sequence[int], response: Sequence[int]) -> TrainingRow:
    return TrainingRow(tuple(prompt), tuple(response), (), (), ())


def _batch(rows: Sequence[TrainingRow]) -> TensorDict:
    """The tokens of rows, as verl's workers take them."""
    prompts = [torch.tensor(row.prompt) for row in rows]
    responses = [torch.tensor(row.response) for row in rows]
    sequences = [torch.cat(pair) for pair in zip(prompts, responses, strict=True)]
    return tensordict_utils.get_tensordict(
        {
            "input_ids": _nested(sequences),
            "position_ids": _nested([torch.arange(len(sequence)) for sequence in sequences]),
            "prompts": _nested(prompts),
            "responses": _nested(responses),
            "loss_mask": _nested([torch.ones(len(response)) for response in responses]),
        }
    )


def _nested(tensors: Sequence[Tensor]) -> Tensor:
    return torch.nested.as_nested_tensor(list(tensors), layout=torch.jagged)
