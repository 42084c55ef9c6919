"""The policy: a transformers causal language model that is scored and updated in this process.

Shape letters: B rows of a micro-batch, T padded tokens, R padded response tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from attnrl.config import BranchingConfig, LossConfig, OptimizerConfig
from attnrl.fci import CaptureSpec, capture
from attnrl.method.influence import REDUCTIONS
from attnrl.method.loss import kl_k3, policy_loss
from attnrl.method.steps import Steps
from attnrl.protocols import Score, TrainingRow

LOGIT_BYTES = 256 * 2**20  # bound on the fp32 logits that are turned into log-probs at one time


@dataclass(frozen=True)
class MicroBatch:
    """Rows of prompt and response, padded on the right.

    Attributes:
        rows: which rows of the whole batch these are.
        input_ids_BT: token ids; padding holds an arbitrary id. Attention is causal, so no token of a row sees
            the padding behind it, and no mask is needed.
        positions_BR: index of the token before each response token (whose logits predict it).
        mask_BR: True for the response tokens.
    """

    rows: tuple[int, ...]
    input_ids_BT: Tensor
    positions_BR: Tensor
    mask_BR: Tensor

    @property
    def targets_BR(self) -> Tensor:
        """The response tokens."""
        return self.input_ids_BT.gather(1, (self.positions_BR + 1).clamp(max=self.input_ids_BT.shape[1] - 1))


def cut_micro_batches(lengths: Sequence[int], budget: int) -> Iterator[tuple[int, ...]]:
    """Group row indices, longest first, so that rows times longest row stays within ``budget`` tokens.

    A row longer than the budget is a micro-batch of its own.
    """
    batch: list[int] = []
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        if batch and (len(batch) + 1) * lengths[batch[0]] > budget:
            yield tuple(batch)
            batch = []
        batch.append(row)
    if batch:
        yield tuple(batch)


def cut_mini_batches(lengths: Sequence[int], count: int) -> list[range]:
    """Cut rows, in order, into at most ``count`` runs of about equal token counts; none is empty."""
    total = sum(lengths)
    runs: list[range] = []
    start = done = 0
    for row, length in enumerate(lengths):
        done += length
        if done * count >= total * (len(runs) + 1) or row == len(lengths) - 1:
            runs.append(range(start, row + 1))
            start = row + 1
    return runs


def pad_rows(
    rows: Sequence[int],
    prompts: Sequence[Sequence[int]],
    responses: Sequence[Sequence[int]],
    device: torch.device,
) -> MicroBatch:
    """Lay out the given rows as one :class:`MicroBatch`."""
    width = max(len(prompts[row]) + len(responses[row]) for row in rows)
    longest = max(len(responses[row]) for row in rows)
    input_ids_BT = torch.zeros(len(rows), width, dtype=torch.long)
    mask_BR = torch.zeros(len(rows), longest, dtype=torch.bool)
    first_B = torch.tensor([len(prompts[row]) - 1 for row in rows])
    for place, row in enumerate(rows):
        tokens = [*prompts[row], *responses[row]]
        input_ids_BT[place, : len(tokens)] = torch.tensor(tokens)
        mask_BR[place, : len(responses[row])] = True
    positions_BR = (first_B[:, None] + torch.arange(longest)).clamp(max=width - 1)
    return MicroBatch(tuple(rows), input_ids_BT.to(device), positions_BR.to(device), mask_BR.to(device))


def pad_values(values: Sequence[Sequence[float]], like: Tensor) -> Tensor:
    """Per-token values of several rows as fp32 ``[B, R]``, zeros behind each row."""
    padded = torch.zeros(like.shape, dtype=torch.float32)
    for place, row in enumerate(values):
        padded[place, : len(row)] = torch.tensor(row, dtype=torch.float32)
    return padded.to(like.device)


def token_logprobs(
    model: PreTrainedModel, batch: MicroBatch, temperature: float, *, with_entropy: bool = False
) -> tuple[Tensor, Tensor | None]:
    """One forward: log-probs of the response tokens and, if asked for, the entropy of each draw, ``[B, R]``.

    In fp32 and nats, of the distribution at ``temperature``; values at padded positions mean nothing.
    Logits are kept for response positions only, and turned into log-probs a few rows at a time.
    """
    first = int(batch.positions_BR.min())
    width = batch.input_ids_BT.shape[1]
    logits_BTV = model(input_ids=batch.input_ids_BT, use_cache=False, logits_to_keep=width - first).logits
    positions_BR = batch.positions_BR - first
    per_row = 4 * positions_BR.shape[1] * logits_BTV.shape[-1]
    rows = max(1, LOGIT_BYTES // per_row)
    logprobs, entropies = [], []
    for start in range(0, len(batch.rows), rows):
        some = slice(start, start + rows)
        args = (logits_BTV[some], positions_BR[some], batch.targets_BR[some], temperature)
        # Kept for the backward pass, the fp32 log-softmax would take the memory that the slices save.
        logprobs.append(
            checkpoint(_logprobs_of, *args, use_reentrant=False) if torch.is_grad_enabled() else _logprobs_of(*args)
        )
        if with_entropy:
            entropies.append(_entropy_of(logits_BTV[some], positions_BR[some], temperature))
    return torch.cat(logprobs), torch.cat(entropies) if with_entropy else None


def _rows_at(logits_BTV: Tensor, positions_BR: Tensor, temperature: float) -> Tensor:
    index_BRV = positions_BR[:, :, None].expand(-1, -1, logits_BTV.shape[-1])
    return logits_BTV.gather(1, index_BRV).float() / temperature


def _logprobs_of(logits_BTV: Tensor, positions_BR: Tensor, targets_BR: Tensor, temperature: float) -> Tensor:
    logits_BRV = _rows_at(logits_BTV, positions_BR, temperature)
    return logits_BRV.gather(2, targets_BR[:, :, None]).squeeze(2) - logits_BRV.logsumexp(-1)


def _entropy_of(logits_BTV: Tensor, positions_BR: Tensor, temperature: float) -> Tensor:
    logprobs_BRV = _rows_at(logits_BTV, positions_BR, temperature).log_softmax(-1)
    return -(logprobs_BRV.exp() * logprobs_BRV).sum(-1)


class LocalPolicy:
    """A causal language model with its AdamW optimizer and, when the KL is weighed, its frozen reference.

    ``score`` and ``update`` are those of :class:`attnrl.protocols.Policy`.
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
        self.reference = reference
        if optimizer.gradient_checkpointing:
            model.gradient_checkpointing_enable()
        self.optimizer = torch.optim.AdamW(
            model.parameters(),
            lr=optimizer.learning_rate,
            betas=optimizer.betas,
            weight_decay=optimizer.weight_decay,
        )

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
        """
        self.model.eval()
        scores: list[Score | None] = [None] * len(prompts)
        lengths = [len(prompt) + len(response) for prompt, response in zip(prompts, responses, strict=True)]
        for rows in cut_micro_batches(lengths, self.settings.micro_batch_tokens):
            batch = pad_rows(rows, prompts, responses, self.device)
            wanted = [steps[row] if steps else None for row in rows]
            starts = [
                [len(prompts[row]) + s for s in its.starts] if its else []
                for row, its in zip(rows, wanted, strict=True)
            ]
            spec = CaptureSpec(starts, [lengths[row] for row in rows], self.branching.delta)
            with capture(self.model, spec) if steps else nullcontext() as captured:
                logprobs_BR, entropy_BR = token_logprobs(self.model, batch, self.temperature, with_entropy=True)
            assert entropy_BR is not None
            reduce = REDUCTIONS[self.branching.reduction]
            influences = captured.influence() if captured is not None else []
            for place, row in enumerate(rows):
                length = len(responses[row])
                scores[row] = Score(
                    logprobs=tuple(logprobs_BR[place, :length].tolist()),
                    entropy=tuple(entropy_BR[place, :length].tolist()),
                    fci=tuple(reduce(influences[place]).tolist()) if starts[place] else (),
                )
        return [score for score in scores if score is not None]

    def update(self, rows: Sequence[TrainingRow]) -> dict[str, float]:
        """One optimizer step for each mini-batch of equal token counts; returns means over the batch.

        Every token weighs the same, whichever mini- or micro-batch it falls into: the denominator is the whole
        batch's token count, times the share of it that one optimizer step stands for.
        """
        self.model.train()
        lengths = [len(row.response) for row in rows]
        mini_batches = cut_mini_batches(lengths, self.settings.mini_batches)
        denominator = sum(lengths) / len(mini_batches)
        sums: dict[str, float] = {}
        for mini_batch in mini_batches:
            self._set_learning_rate()
            for name, value in self._accumulate([rows[i] for i in mini_batch], denominator).items():
                sums[name] = sums.get(name, 0.0) + value
            norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.max_grad_norm)
            sums["grad_norm"] = sums.get("grad_norm", 0.0) + float(norm)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            self.updates += 1
        means = {name: value / len(mini_batches) for name, value in sums.items()}
        return {**means, "learning_rate": self.optimizer.param_groups[0]["lr"]}

    def _set_learning_rate(self) -> None:
        warmup = min(1.0, (self.updates + 1) / self.settings.warmup_steps) if self.settings.warmup_steps else 1.0
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.learning_rate * warmup

    def _accumulate(self, rows: Sequence[TrainingRow], denominator: float) -> dict[str, float]:
        """Add the gradients of one mini-batch; returns its sums over tokens, divided by ``denominator``."""
        sums: dict[str, float] = {}
        prompts, responses = [row.prompt for row in rows], [row.response for row in rows]
        lengths = [len(prompt) + len(response) for prompt, response in zip(prompts, responses, strict=True)]
        for micro_batch in cut_micro_batches(lengths, self.settings.micro_batch_tokens):
            batch = pad_rows(micro_batch, prompts, responses, self.device)
            logprobs_BR, _ = token_logprobs(self.model, batch, self.temperature)
            policy = policy_loss(
                logprobs_BR,
                pad_values([rows[i].old_logprobs for i in micro_batch], logprobs_BR),
                pad_values([rows[i].advantages for i in micro_batch], logprobs_BR),
                batch.mask_BR,
                denominator=denominator,
                clip_low=self.loss.clip_low,
                clip_high=self.loss.clip_high,
                dual_clip=self.loss.dual_clip,
            )
            loss = policy.loss
            values = {
                "loss/policy": policy.loss,
                "loss/clip_fraction": policy.clip_fraction,
                "loss/ratio": policy.ratio,
                "loss/old_kl": policy.old_kl,
            }
            if self.reference is not None:
                with torch.no_grad():
                    reference_BR, _ = token_logprobs(self.reference, batch, self.temperature)
                values["loss/kl"] = kl_k3(logprobs_BR, reference_BR, batch.mask_BR).sum() / denominator
                loss = loss + self.loss.kl * values["loss/kl"]
            torch.autograd.backward(loss)
            for name, value in values.items():
                sums[name] = sums.get(name, 0.0) + float(value.detach())
        return sums


def optimizer_tensors(policy: LocalPolicy) -> dict[str, Tensor]:
    """AdamW's moments by parameter name and moment (``lm_head.weight/exp_avg``), for a safetensors file."""
    return {
        f"{name}/{moment}": tensor
        for name, parameter in policy.model.named_parameters()
        for moment, tensor in policy.optimizer.state.get(parameter, {}).items()
    }


def load_optimizer_tensors(policy: LocalPolicy, tensors: dict[str, Tensor]) -> None:
    """The inverse of :func:`optimizer_tensors`."""
    for name, parameter in policy.model.named_parameters():
        moments = {key.rpartition("/")[2]: tensor for key, tensor in tensors.items() if key.rpartition("/")[0] == name}
        if moments:
            policy.optimizer.state[parameter] = {
                moment: tensor.to(parameter.device if tensor.ndim else "cpu") for moment, tensor in moments.items()
            }
