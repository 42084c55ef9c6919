"""The policy: a transformers causal language model, scored and updated in this process.

Shape letters: see CONTRIBUTING.md.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from attnrl.config.method import BranchingConfig
from attnrl.config.schema import LossConfig, OptimizerConfig
from attnrl.errors import RunError
from attnrl.local.logprobs import LOGPROB_ROUNDING, token_logprobs
from attnrl.local.optimizer import MasterOptimizer, is_out_of_memory
from attnrl.local.packing import Pack, Packing, pack_rows, pack_trees
from attnrl.method.loss import cut_mini_batches, kl_k3, policy_loss, truncated_importance
from attnrl.method.steps import Steps
from attnrl.types import Score, TrainingRow

T = TypeVar("T")


def disable_dropout(model: nn.Module) -> None:
    """Set dropout and router jitter to 0, so that training computes the probabilities that sampling computed."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in vars(module).items():
            # dropout, attention_dropout, attn_pdrop, layerdrop, router_jitter_noise
            if isinstance(value, float) and ("drop" in name or "jitter" in name):
                setattr(module, name, 0.0)


class LocalPolicy:
    """A causal language model, its optimizer and, for the KL penalty, a frozen reference model.

    Implements :class:`attnrl.types.Policy`. When ``score`` or ``update`` runs out of memory, the call is retried with
    packs of half as many tokens, and later calls keep the smaller packs.

    Attributes:
        micro_batch_tokens: tokens of a pack: ``optimizer.micro_batch_tokens``, or fewer after running out of memory.
        starts_at_reference: True if the weights before the first update are the reference model's.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        reference: PreTrainedModel | None,
        *,
        loss: LossConfig,
        optimizer: OptimizerConfig,
        branching: BranchingConfig,
        temperature: float,
        packing: Packing = "tree",
    ) -> None:
        """Take ownership of ``model``; ``reference`` is the frozen initial model, None without a KL penalty.

        ``packing`` is the resolved ``optimizer.packing``: see :func:`attnrl.local.loading.choose_packing`.
        """
        self.model = model
        self.loss = loss
        self.settings = optimizer
        self.branching = branching
        self.temperature = temperature
        self.packing = packing
        self.micro_batch_tokens = optimizer.micro_batch_tokens
        self.reference = reference
        self.starts_at_reference = reference is not None
        disable_dropout(model)
        if optimizer.gradient_checkpointing:
            # The name of the method up to transformers 5.22 is gradient_checkpointing_enable.
            enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
            enable()
        self.optimizer = MasterOptimizer(model, optimizer)

    @property
    def device(self) -> torch.device:
        """Device of the model's weights."""
        device: torch.device = self.model.device
        return device

    @torch.no_grad()
    def score(
        self,
        prompts: Sequence[Sequence[int]],
        responses: Sequence[Sequence[int]],
        steps: Sequence[Steps | None] | None = None,
    ) -> list[Score]:
        """Return log-probs, entropies and (with ``steps``) the influence of steps of each response, in one forward.

        Raises:
            FciUnsupportedError: with ``steps``, if FCI cannot be computed from the model's attention.
            RunError: out of memory with a single response.
        """
        longest = max((len(p) + len(r) for p, r in zip(prompts, responses, strict=True)), default=0)
        return self._with_memory_retries(longest, partial(self._score, prompts, responses, steps))

    def _score(
        self,
        prompts: Sequence[Sequence[int]],
        responses: Sequence[Sequence[int]],
        steps: Sequence[Steps | None] | None,
    ) -> list[Score]:
        self.model.eval()
        measure = self.branching.measure
        wanted = steps or [None] * len(prompts)
        sequences = [(*prompt, *response) for prompt, response in zip(prompts, responses, strict=True)]
        # The influence of a step sums over the tokens of one response, so those tokens must not be shared.
        shareable = [
            len(sequence) if its_steps is None else len(prompt)
            for sequence, prompt, its_steps in zip(sequences, prompts, wanted, strict=True)
        ]
        scores: dict[int, Score] = {}
        for pack in self._packs(sequences, shareable):
            its_prompts = [len(prompts[index]) for index in pack.sequences]
            starts = {
                place: [prompt + start for start in its_steps.starts]
                for place, prompt in enumerate(its_prompts)
                if (its_steps := wanted[pack.sequences[place]]) and its_steps.starts
            }
            with pack.attending(self.model, starts, self.branching.delta, lookups=measure.uses_lookups) as captured:
                logprobs, entropies = token_logprobs(self.model, pack, its_prompts, self.temperature, with_entropy=True)
            influences = captured.of_steps(measure) if captured and starts else []
            for place, index in enumerate(pack.sequences):
                scores[index] = Score(
                    logprobs=tuple(logprobs[place].tolist()),
                    entropy=tuple(entropies[place].tolist()),
                    influence=tuple(influences[pack.last[place]].tolist()) if place in starts else (),
                )
        return [scores[index] for index in range(len(sequences))]

    def _packs(self, sequences: Sequence[Sequence[int]], shareable: Sequence[int] | None = None) -> Iterator[Pack]:
        if self.packing == "tree":
            return pack_trees(sequences, self.micro_batch_tokens, shareable)
        return pack_rows(sequences, self.micro_batch_tokens)

    def _with_memory_retries(self, longest: int, compute: Callable[[], T]) -> T:
        """Call ``compute`` and return the result; when out of memory, halve ``micro_batch_tokens`` and retry.

        Raises:
            RunError: out of memory with packs of ``longest`` tokens, a single sequence.
        """
        while True:
            try:
                return compute()
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                if self.micro_batch_tokens <= longest:
                    raise RunError(
                        f"out of memory with a single response of {longest:,} tokens (prompt included): set "
                        "optimizer.gradient_checkpointing=true or a smaller sampling.max_new_tokens"
                    ) from error
            # Outside the except block, because the traceback holds the tensors of the failed attempt.
            self.micro_batch_tokens = max(longest, self.micro_batch_tokens // 2)
            self.optimizer.zero_grad()
            gc.collect()
            if self.device.type == "cuda":
                torch.cuda.empty_cache()

    def update(self, rows: Sequence[TrainingRow]) -> dict[str, float]:
        """Take one optimizer step per mini-batch of equal token counts; return means over the batch.

        Every token has the same weight in every mini-batch and micro-batch: the denominator of the loss is the token
        count of the whole batch, divided by the number of optimizer steps.

        A mini-batch with a loss or gradient that is not finite is skipped: weights and moments stay unchanged, and
        ``nonfinite/mini_batches`` counts the skipped mini-batches. The means are over the other mini-batches.

        Raises:
            RunError: out of memory with a single row, or in the optimizer.
        """
        self.optimizer.allocate_moments()
        self.model.train()
        lengths = [len(row.response) for row in rows]
        mini_batches = cut_mini_batches(lengths, self.settings.mini_batches)
        denominator = sum(lengths) / len(mini_batches)
        sums: dict[str, float] = {}
        taken = 0
        for mini_batch in mini_batches:
            its_rows = [rows[i] for i in mini_batch]
            longest = max(len(row.prompt) + len(row.response) for row in its_rows)
            values = self._with_memory_retries(longest, partial(self._accumulate, its_rows, denominator))
            norm = self.optimizer.clip_gradients()
            if math.isfinite(norm) and all(map(math.isfinite, values.values())):
                for name, value in {**values, "grad_norm": norm}.items():
                    sums[name] = sums.get(name, 0.0) + value
                self.optimizer.step()
                taken += 1
            self.optimizer.zero_grad()
        means = {name: value / taken for name, value in sums.items()}
        return {
            **means,
            "nonfinite/mini_batches": float(len(mini_batches) - taken),
            "packing/micro_batch_tokens": float(self.micro_batch_tokens),
            "learning_rate": self.optimizer.learning_rate,
        }

    def _accumulate(self, rows: Sequence[TrainingRow], denominator: float) -> dict[str, float]:
        """Add the gradients of a mini-batch; return sums over the mini-batch's tokens, divided by ``denominator``.

        A token on the paths of several rows enters the loss once for each row, with the row's own old log-prob and
        advantage: the sums equal the sums of training each path on its own.
        """
        sums: dict[str, float] = {}
        sequences = [(*row.prompt, *row.response) for row in rows]
        computed = 0
        for pack in self._packs(sequences):
            its_rows = [rows[index] for index in pack.sequences]
            its_prompts = [len(row.prompt) for row in its_rows]
            computed += pack.tokens
            with pack.attending(self.model):
                logprob_N = torch.cat(token_logprobs(self.model, pack, its_prompts, self.temperature)[0])
                loss, values = self._loss(logprob_N, pack, its_rows, denominator)
                torch.autograd.backward(loss)
            self.optimizer.collect_gradients()
            for name, value in values.items():
                sums[name] = sums.get(name, 0.0) + float(value.detach())
        return {**sums, "packing/computed_ratio": computed / sum(map(len, sequences))}

    def _loss(
        self, logprob_N: Tensor, pack: Pack, rows: Sequence[TrainingRow], denominator: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of eq. 1 over the response tokens of a pack, and the loss metrics."""

        def per_token(values: Sequence[Sequence[float]]) -> Tensor:
            return torch.tensor([value for its in values for value in its], device=logprob_N.device)

        old_N = per_token([row.old_logprobs for row in rows])
        values: dict[str, Tensor] = {}
        importance_N = None
        if self.loss.tis is not None:
            importance_N = truncated_importance(old_N, per_token([row.sampler_logprobs for row in rows]), self.loss.tis)
            values["loss/tis_weight"] = importance_N.sum() / denominator
        policy = policy_loss(
            logprob_N,
            old_N,
            per_token([row.advantages for row in rows]),
            importance=importance_N,
            denominator=denominator,
            clip_low=self.loss.clip_low,
            clip_high=self.loss.clip_high,
            dual_clip=self.loss.dual_clip,
        )
        loss = policy.loss
        values |= {
            "loss/policy": policy.loss,
            "loss/clip_fraction": policy.clip_fraction,
            "loss/ratio": policy.ratio,
            "loss/old_kl": policy.old_kl,
        }
        if self.reference is not None:
            with torch.no_grad(), pack.attending(self.reference):
                prompts = [len(row.prompt) for row in rows]
                reference_N = torch.cat(token_logprobs(self.reference, pack, prompts, self.temperature)[0])
            if self.starts_at_reference and not self.optimizer.updates and not _same(logprob_N, reference_N):
                _require_same_model(self.model, self.reference, logprob_N, reference_N)
            values["loss/kl"] = kl_k3(logprob_N, reference_N).sum() / denominator
            loss = loss + self.loss.kl * values["loss/kl"]
        return loss, values


def _same(left: Tensor, right: Tensor) -> bool:
    """Return True if two tensors are equal bit for bit, NaN included."""
    return bool(((left == right) | (left.isnan() & right.isnan())).all())


@torch.no_grad()
def _require_same_model(
    model: PreTrainedModel, reference: PreTrainedModel, logprob_N: Tensor, reference_N: Tensor
) -> None:
    """Check why log-probs differ from the reference before the first update, where the KL is exactly 0.

    On a GPU, the kernels of a forward with gradients may sum in another order than the kernels of a forward without
    gradients. Equal weights and a difference of the size of rounding are therefore the same model.

    Args:
        model: the policy's model, before any update.
        reference: the reference model.
        logprob_N: log-probs of the policy.
        reference_N: log-probs of the reference, for the same pack.

    Raises:
        RunError: policy and reference are not the same model.
    """
    largest = float((logprob_N - reference_N).abs().max())
    pairs = zip(model.parameters(), reference.parameters(), strict=True)
    if largest <= LOGPROB_ROUNDING[model.dtype] and all(torch.equal(weight, other) for weight, other in pairs):
        return
    raise RunError(
        f"loss.kl: before the first update the log-probs of policy and reference differ by up to {largest:.3g} nats, "
        "and the KL must be 0: the two are not the same model, or training changes the model's forward"
    )
