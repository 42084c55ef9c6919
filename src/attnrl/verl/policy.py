"""The policy on verl's workers: weights sharded over all GPUs (FSDP2), rows of a batch distributed over the workers.

Rows are nested tensors without padding. If the number of rows is not divisible by the number of workers, filler rows
with zero weight are added; filler rows enter neither the loss nor the KL nor a token mean.
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
from attnrl.errors import RunError
from attnrl.local.logprobs import LOGPROB_ROUNDING
from attnrl.method.loss import cut_mini_batches, truncated_importance
from attnrl.method.steps import Steps
from attnrl.types import Score, TrainingRow
from attnrl.verl.engine import INFLUENCE, MEASURE, STEP_STARTS

FILLER = TrainingRow(prompt=(0,), response=(0,), old_logprobs=(0.0,), sampler_logprobs=(0.0,), advantages=(0.0,))

#: Names of verl's update metrics in ``metrics.jsonl``.
METRICS = {
    "actor/pg_loss": "loss/policy",
    "actor/pg_clipfrac": "loss/clip_fraction",
    "actor/ppo_kl": "loss/old_kl_k1",
    "kl_loss": "loss/kl",
    "grad_norm": "grad_norm",
    "lr": "learning_rate",
}


class VerlPolicy:
    """Implements :class:`attnrl.types.Policy` on verl's worker groups."""

    def __init__(self, actor: Any, reference: Any, config: TrainConfig, *, resumed: bool = False) -> None:
        """Use the worker groups of the actor and of the reference (frozen initial model; None without a KL term).

        Args:
            actor: worker group of the actor.
            reference: worker group of the reference, or None.
            config: the recipe.
            resumed: True if the actor's weights come from a checkpoint; else they are the reference's.
        """
        self.actor = actor
        self.reference = reference
        self.config = config
        self.starts_at_reference = reference is not None and not resumed
        if "actor" not in actor._dispatch_info:
            actor._dispatch_info["actor"] = actor._query_dispatch_info("actor")
        self.workers = max(actor._dispatch_info["actor"]) + 1

    def score(
        self,
        prompts: Sequence[Sequence[int]],
        responses: Sequence[Sequence[int]],
        steps: Sequence[Steps | None] | None = None,
    ) -> list[Score]:
        """Return log-probs, entropy and, with ``steps``, the influence of each step, from one forward per response.

        Raises:
            RuntimeError: raised by a worker.
        """
        if not prompts:
            return []
        wanted = steps or [None] * len(prompts)
        lengths = [len(prompt) + len(response) for prompt, response in zip(prompts, responses, strict=True)]
        (order,) = self._distribute([lengths])
        rows = [FILLER if index is None else _row(prompts[index], responses[index]) for index in order]
        batch = _batch(rows)
        if steps is not None:
            starts = []
            for index, row in zip(order, rows, strict=True):
                is_start_T = torch.zeros(len(row.prompt) + len(row.response), dtype=torch.int8)
                row_steps = None if index is None else wanted[index]
                if row_steps is not None:
                    is_start_T[[len(row.prompt) + start for start in row_steps.starts]] = 1
                starts.append(is_start_T)
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
                prompt, row_steps = len(prompts[index]), wanted[index]
                starts_S = [prompt + start for start in row_steps.starts] if row_steps is not None else []
                scores[index] = Score(
                    logprobs=tuple(logprob_T[prompt - 1 : -1].tolist()),
                    entropy=tuple(entropy_T[prompt - 1 : -1].tolist()),
                    influence=tuple(influence_T[starts_S].tolist()),
                )
        return [scores[index] for index in range(len(prompts))]

    def update(self, rows: Sequence[TrainingRow]) -> dict[str, float]:
        """Take one optimizer step per mini-batch (of equal token counts) with verl's clipped loss and KL.

        As in :class:`attnrl.local.policy.LocalPolicy`, every token of the training batch has the same weight. verl
        skips mini-batches with a NaN or inf gradient; ``nonfinite/mini_batches`` counts the skipped mini-batches.

        Raises:
            RuntimeError: raised by a worker.
            RunError: before the first update of a new run, the KL to the reference is not 0 up to rounding.
        """
        lengths = [len(row.response) for row in rows]
        mini_batches = cut_mini_batches(lengths, self.config.optimizer.mini_batches)
        denominator = sum(lengths) / len(mini_batches)
        weights = [denominator / sum(lengths[i] for i in mini_batch) for mini_batch in mini_batches for _ in mini_batch]
        whole = [len(row.prompt) + len(row.response) for row in rows]
        shares = self._distribute([[whole[i] for i in mini_batch] for mini_batch in mini_batches])
        firsts = [mini_batch.start for mini_batch in mini_batches]
        # verl splits the rows of each worker, in order, into mini-batches of equal numbers of rows.
        per_worker = len(shares[0]) // self.workers
        order: list[int | None] = []
        for worker in range(self.workers):
            for first, share in zip(firsts, shares, strict=True):
                of_worker = share[worker * per_worker : (worker + 1) * per_worker]
                order += [None if index is None else first + index for index in of_worker]
        ordered_rows = [FILLER if index is None else rows[index] for index in order]

        batch = _batch(ordered_rows)
        mask = [
            torch.full((len(row.response),), int(i is not None)) for i, row in zip(order, ordered_rows, strict=True)
        ]
        batch["response_mask"] = _nested(mask)
        # verl uses this mask only as the denominator of the loss.
        batch["loss_mask"] = _nested(
            [ones * (0.0 if i is None else weights[i]) for i, ones in zip(order, mask, strict=True)]
        )
        batch["old_log_probs"] = _nested([torch.tensor(row.old_logprobs) for row in ordered_rows])
        batch["advantages"] = _nested([torch.tensor(row.advantages, dtype=torch.float32) for row in ordered_rows])
        if self.config.loss.tis is not None:
            importance = [
                truncated_importance(
                    torch.tensor(row.old_logprobs), torch.tensor(row.sampler_logprobs), self.config.loss.tis
                )
                for row in ordered_rows
            ]
            batch["rollout_is_weights"] = _nested(importance)
        if self.reference is not None:
            reference = self._response_logprobs(self.reference.compute_ref_log_prob, batch, ordered_rows)
            if self.starts_at_reference:
                actor = self._response_logprobs(self.actor.compute_log_prob, _batch(ordered_rows), ordered_rows)
                _require_same_model(self.config, actor, reference)
                self.starts_at_reference = False
            batch["ref_log_prob"] = _nested(reference)
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

    def _response_logprobs(self, method: Any, batch: TensorDict, rows: Sequence[TrainingRow]) -> list[Tensor]:
        """Return the log-probs of the response tokens of each row."""
        logprobs = self._forward(method, batch, calculate_entropy=False)["log_probs"].unbind()
        return [logprob_T[len(row.prompt) - 1 : -1] for row, logprob_T in zip(rows, logprobs, strict=True)]

    def _forward(self, method: Any, batch: TensorDict, *, calculate_entropy: bool) -> TensorDict:
        tensordict_utils.assign_non_tensor(
            batch,
            calculate_entropy=calculate_entropy,
            compute_loss=False,
            temperature=self.config.sampling.temperature,
        )
        output: TensorDict = method(batch)
        return output

    def _distribute(self, groups: Sequence[Sequence[int]]) -> list[list[int | None]]:
        """Distribute the rows of each group over the workers, with balanced work.

        Args:
            groups: for each group, the length of each row in tokens.

        Returns:
            For each group the row indices ordered by worker, None for filler rows. Every group has the same number of
            rows, and every worker the same number of rows of each group.
        """
        rows = max(map(len, groups))
        rows += -rows % self.workers
        shares = []
        for lengths in groups:
            filled = [*lengths, *(len(FILLER.prompt) + len(FILLER.response),) * (rows - len(lengths))]
            parts = [list(range(rows))]
            if self.workers > 1:
                work = calculate_workload(torch.tensor(filled))
                parts = get_seqlen_balanced_partitions(work, k_partitions=self.workers, equal_size=True)
            shares.append([index if index < len(lengths) else None for part in parts for index in part])
        return shares


def _require_same_model(config: TrainConfig, actor: Sequence[Tensor], reference: Sequence[Tensor]) -> None:
    """Check that actor and reference give the same log-probs before the first update, up to rounding.

    Equal bit for bit on one CPU; kernels and micro-batches of a GPU may sum in another order.

    Raises:
        RunError: a log-prob differs by more than rounding.
    """
    largest = max(float((left - right).abs().max()) for left, right in zip(actor, reference, strict=True))
    if not largest <= LOGPROB_ROUNDING[getattr(torch, config.dtype)]:
        raise RunError(
            f"loss.kl: before the first update the log-probs of actor and reference differ by up to {largest:.3g} "
            "nats, and the KL must be 0: the two are not the same model"
        )


def _metrics(reported: Mapping[str, Any]) -> dict[str, float]:
    norms = reported["grad_norm"] if isinstance(reported["grad_norm"], list) else [reported["grad_norm"]]
    means = {name: float(value) for name, value in reduce_metrics(dict(reported)).items()}
    renamed = {METRICS.get(name, f"verl/{name}"): value for name, value in means.items() if name != "kl_coef"}
    return {**renamed, "nonfinite/mini_batches": float(sum(not math.isfinite(norm) for norm in norms))}


def _row(prompt: Sequence[int], response: Sequence[int]) -> TrainingRow:
    return TrainingRow(tuple(prompt), tuple(response), (), (), ())


def _batch(rows: Sequence[TrainingRow]) -> TensorDict:
    """Return the tokens of the rows as the TensorDict that verl's workers expect."""
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
