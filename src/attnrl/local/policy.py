"""The policy: a transformers causal language model that is scored and updated in this process.

Shape letters: N response tokens of the sequences of a pack, one after another.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from attnrl.config.schema import BranchingConfig, LossConfig, OptimizerConfig
from attnrl.errors import RunError
from attnrl.local.logprobs import token_logprobs
from attnrl.local.packing import Pack, pack_rows, pack_trees
from attnrl.method.loss import cut_mini_batches, kl_k3, policy_loss, truncated_importance
from attnrl.method.steps import Steps
from attnrl.types import Score, TrainingRow

MASTER = "master"  # the name of a fp32 copy in a checkpoint
MOMENTS = ("step", "exp_avg", "exp_avg_sq")  # what AdamW keeps of a weight
T = TypeVar("T")


def disable_dropout(model: nn.Module) -> None:
    """Let training compute what sampling does: with dropout the ratio of new to old probability is noise."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in vars(module).items():
            if isinstance(value, float) and "drop" in name:  # dropout, attention_dropout, attn_pdrop, layerdrop
                setattr(module, name, 0.0)


class LocalPolicy:
    """A causal language model with its AdamW optimizer and, when the KL is weighed, its frozen reference.

    ``score`` and ``update`` are those of :class:`attnrl.types.Policy`. Where memory runs out in one of them, it
    starts over with packs of half as many tokens, and stays with those.

    Attributes:
        updates: optimizer steps taken.
        micro_batch_tokens: tokens of a pack: as configured, or what memory allows.
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
    ) -> None:
        """Take ownership of ``model``; ``reference`` is the frozen starting model of the KL, None leaves it out."""
        self.model = model
        self.loss = loss
        self.settings = optimizer
        self.branching = branching
        self.temperature = temperature
        self.updates = 0
        self.micro_batch_tokens = optimizer.micro_batch_tokens
        self.reference = reference
        disable_dropout(model)
        if optimizer.gradient_checkpointing:
            # transformers 5.23 gave it the other name.
            enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
            enable()
        # At 16 bits a weight is too coarse for most updates to change it: they go to fp32 copies of such weights.
        self.masters = {
            name: weight if weight.dtype.itemsize >= 4 else weight.detach().float().requires_grad_()
            for name, weight in model.named_parameters()
        }
        self.optimizer = torch.optim.AdamW(
            self.masters.values(),
            lr=optimizer.learning_rate,
            betas=optimizer.betas,
            weight_decay=optimizer.weight_decay,
        )

    def allocate_moments(self) -> None:
        """Make AdamW's moments now, as it would at its first step: if memory does not suffice, no step is lost.

        Raises:
            RunError: it does not.
        """
        with self._enough_memory():
            for master in self.masters.values():
                if not self.optimizer.state[master]:
                    moments = [torch.zeros_like(master, memory_format=torch.preserve_format) for _ in range(2)]
                    self.optimizer.state[master] = dict(zip(MOMENTS, (torch.tensor(0.0), *moments), strict=True))

    @contextmanager
    def _enough_memory(self) -> Iterator[None]:
        """Say what to do where memory runs out for what no smaller pack helps against.

        Raises:
            RunError: it has run out in the block.
        """
        try:
            yield
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            gib = sum(2 * master.nbytes for master in self.masters.values()) / 2**30
            raise RunError(
                f"out of memory in the optimizer, whose moments take {gib:.1f} GiB on {self.device}: free some of it "
                "(loss.kl=0 does without a reference model, a smaller vllm.gpu_memory_utilization leaves more), or "
                "take a smaller model or a larger device"
            ) from error

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        device: torch.device = self.model.device
        return device

    @torch.no_grad()
    def score(
        self,
        prompts: Sequence[Sequence[int]],
        responses: Sequence[Sequence[int]],
        steps: Sequence[Steps | None] | None = None,
    ) -> list[Score]:
        """Log-probs, entropy and (with ``steps``) FCI of each response, all from one forward.

        Raises:
            FciUnsupportedError: with ``steps``, if FCI cannot be taken from the model's attention.
            RunError: memory does not suffice for a single one.
        """
        longest = max((len(p) + len(r) for p, r in zip(prompts, responses, strict=True)), default=0)
        return self._in_memory(longest, partial(self._score, prompts, responses, steps))

    def _score(
        self,
        prompts: Sequence[Sequence[int]],
        responses: Sequence[Sequence[int]],
        steps: Sequence[Steps | None] | None,
    ) -> list[Score]:
        self.model.eval()
        lookups = self.branching.influence == "lookups"
        wanted = steps or [None] * len(prompts)
        sequences = [(*prompt, *response) for prompt, response in zip(prompts, responses, strict=True)]
        # Influence on a step is counted over the tokens of one response, which no other may then share.
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
            with pack.attending(self.model, starts, self.branching.delta, lookups=lookups) as captured:
                logprobs, entropies = token_logprobs(self.model, pack, its_prompts, self.temperature, with_entropy=True)
            influences = (
                captured.of_steps(self.branching.influence, self.branching.reduction) if captured and starts else []
            )
            for place, index in enumerate(pack.sequences):
                scores[index] = Score(
                    logprobs=tuple(logprobs[place].tolist()),
                    entropy=tuple(entropies[place].tolist()),
                    fci=tuple(influences[pack.last[place]].tolist()) if place in starts else (),
                )
        return [scores[index] for index in range(len(sequences))]

    def _packs(self, sequences: Sequence[Sequence[int]], shareable: Sequence[int] | None = None) -> Iterator[Pack]:
        if self.settings.packing == "tree":
            return pack_trees(sequences, self.micro_batch_tokens, shareable)
        return pack_rows(sequences, self.micro_batch_tokens)

    def _in_memory(self, longest: int, work: Callable[[], T]) -> T:
        """The result of ``work``, begun again with smaller packs as often as memory runs out in it.

        Raises:
            RunError: it does with a single sequence of ``longest`` tokens.
        """
        while True:
            try:
                return work()
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                if self.micro_batch_tokens <= longest:
                    raise RunError(
                        f"out of memory with a single response of {longest:,} tokens (prompt included): set "
                        "optimizer.gradient_checkpointing=true or a smaller sampling.max_new_tokens"
                    ) from error
            # Only here are the tensors gone that the traceback held.
            self.micro_batch_tokens = max(longest, self.micro_batch_tokens // 2)
            self.optimizer.zero_grad(set_to_none=True)
            self.model.zero_grad(set_to_none=True)
            gc.collect()
            if self.device.type == "cuda":
                torch.cuda.empty_cache()

    def update(self, rows: Sequence[TrainingRow]) -> dict[str, float]:
        """One optimizer step for each mini-batch of equal token counts; returns means over the batch.

        Every token weighs the same, whichever mini- or micro-batch it falls into: the denominator is the whole
        batch's token count, times the share of it that one optimizer step stands for.

        A mini-batch whose loss or gradient is not finite is skipped: weights and moments stay as they are, and it
        counts in ``nonfinite/mini_batches``. The means are of the others.

        Raises:
            RunError: memory does not suffice for a single row, or for the optimizer.
        """
        self.allocate_moments()
        self.model.train()
        lengths = [len(row.response) for row in rows]
        mini_batches = cut_mini_batches(lengths, self.settings.mini_batches)
        denominator = sum(lengths) / len(mini_batches)
        sums: dict[str, float] = {}
        taken = 0
        for mini_batch in mini_batches:
            its_rows = [rows[i] for i in mini_batch]
            longest = max(len(row.prompt) + len(row.response) for row in its_rows)
            values = self._in_memory(longest, partial(self._accumulate, its_rows, denominator))
            with self._enough_memory():
                norm = float(torch.nn.utils.clip_grad_norm_(self.masters.values(), self.settings.max_grad_norm))
            if math.isfinite(norm) and all(map(math.isfinite, values.values())):
                for name, value in {**values, "grad_norm": norm}.items():
                    sums[name] = sums.get(name, 0.0) + value
                self._set_learning_rate()
                with self._enough_memory():
                    self.optimizer.step()
                    self._round_masters()
                self.updates += 1
                taken += 1
            self.optimizer.zero_grad(set_to_none=True)
        means = {name: value / taken for name, value in sums.items()}
        return {
            **means,
            "nonfinite/mini_batches": float(len(mini_batches) - taken),
            "packing/micro_batch_tokens": float(self.micro_batch_tokens),
            "learning_rate": self.optimizer.param_groups[0]["lr"],
        }

    def _set_learning_rate(self) -> None:
        warmup = min(1.0, (self.updates + 1) / self.settings.warmup_steps) if self.settings.warmup_steps else 1.0
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.learning_rate * warmup

    def _accumulate(self, rows: Sequence[TrainingRow], denominator: float) -> dict[str, float]:
        """Add the gradients of one mini-batch; returns its sums over tokens, divided by ``denominator``.

        A token on the paths of several rows is in the loss once for each of them, with the old log-prob and the
        advantage that each has for it: the sums are those of training path by path.
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
            self._collect_gradients()
            for name, value in values.items():
                sums[name] = sums.get(name, 0.0) + float(value.detach())
        return {**sums, "packing/computed_ratio": computed / sum(map(len, sequences))}

    def _collect_gradients(self) -> None:
        """Add what the backward pass has left at 16-bit weights to the gradients of their fp32 copies."""
        for name, weight in self.model.named_parameters():
            master = self.masters[name]
            if master is not weight and weight.grad is not None:
                master.grad = weight.grad.float() if master.grad is None else master.grad.add_(weight.grad)
                weight.grad = None

    @torch.no_grad()
    def _round_masters(self) -> None:
        """Give 16-bit weights the updated values of their fp32 copies."""
        for name, weight in self.model.named_parameters():
            if self.masters[name] is not weight:
                weight.copy_(self.masters[name])

    def _loss(
        self, logprob_N: Tensor, pack: Pack, rows: Sequence[TrainingRow], denominator: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of eq. 1 over the response tokens of a pack, and what to report of it."""

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
            values["loss/kl"] = kl_k3(logprob_N, reference_N).sum() / denominator
            loss = loss + self.loss.kl * values["loss/kl"]
        return loss, values


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether memory has run out, on a GPU or on the CPU (where torch has no exception of its own for it)."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def optimizer_tensors(policy: LocalPolicy) -> dict[str, Tensor]:
    """AdamW's state by parameter name, for a safetensors file.

    The moments (``lm_head.weight/exp_avg``) once there was an update, and of 16-bit weights the fp32 copies
    (``lm_head.weight/master``).
    """
    weights = dict(policy.model.named_parameters())
    tensors: dict[str, Tensor] = {}
    if policy.updates:
        for name, master in policy.masters.items():
            tensors |= {f"{name}/{moment}": policy.optimizer.state[master][moment] for moment in MOMENTS}
    copies = {f"{name}/{MASTER}": m.detach() for name, m in policy.masters.items() if m is not weights[name]}
    return tensors | copies


@torch.no_grad()
def load_optimizer_tensors(policy: LocalPolicy, tensors: Mapping[str, Tensor], *, exported: bool = False) -> None:
    """The inverse of :func:`optimizer_tensors`, for a policy whose number of ``updates`` is back already.

    Args:
        policy: to load into.
        tensors: as they were saved.
        exported: whether they are another engine's, which has no moments of weights that never had a gradient, and no
            copies of what it trained in 16 bits itself.

    Raises:
        ValueError: they are not the policy's; the first that is missing, odd or of another shape is named.
        RunError: memory does not suffice for them.
    """
    _check_optimizer_tensors(policy, tensors, exported)
    policy.allocate_moments()
    for name, master in policy.masters.items():
        moments = policy.optimizer.state[master]
        for key, target in {MASTER: master, **moments}.items():
            if f"{name}/{key}" in tensors:
                target.copy_(tensors[f"{name}/{key}"])


def _check_optimizer_tensors(policy: LocalPolicy, tensors: Mapping[str, Tensor], exported: bool) -> None:
    weights = dict(policy.model.named_parameters())
    known = {f"{name}/{key}": name for name in weights for key in (*MOMENTS, MASTER)}
    for key, tensor in tensors.items():
        if key not in known:
            raise ValueError(f"{key} is nothing of the model's")
        master = policy.masters[known[key]]
        shape, dtype = (torch.Size(), torch.float32) if key.endswith("/step") else (master.shape, master.dtype)
        if (tensor.shape, tensor.dtype) != (shape, dtype):
            raise ValueError(f"{key} is {list(tensor.shape)} of {tensor.dtype}, not {list(shape)} of {dtype}")
        never_negative = key.endswith(("/step", "/exp_avg_sq"))
        if not tensor.isfinite().all() or (never_negative and (tensor < 0).any()):
            raise ValueError(f"{key} has numbers that AdamW does not come to")
    for name, weight in weights.items():
        moments = [moment for moment in MOMENTS if f"{name}/{moment}" in tensors]
        if moments and not policy.updates:
            raise ValueError(f"{name}/{moments[0]} is there, and there was no update")
        if policy.updates and len(moments) < len(MOMENTS) and (moments or not exported):
            raise ValueError(f"{name}/{min(set(MOMENTS) - set(moments))} is missing")
        if weight is not policy.masters[name] and f"{name}/{MASTER}" not in tensors and not exported:
            raise ValueError(f"{name}/{MASTER} is missing")
    steps = max((float(tensor) for key, tensor in tensors.items() if key.endswith("/step")), default=0.0)
    if steps != policy.updates:
        raise ValueError(f"it is of optimizer step {steps:g}, and the loop's state of {policy.updates}")
