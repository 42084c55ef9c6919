"""Baseline of ``benchmarks/step.py``: a straightforward sampler and policy with transformers.

``PlainSampler`` is ``model.generate`` on left-padded batches. ``PlainPolicy`` runs every root-to-leaf path through
the model as a separate right-padded row, and takes FCI from the attention matrices that eager attention returns.
The usual optimizations are included:

- requests are sorted by what is left of their budget, so that a batch holds prompts and continuations of about equal
  length, and the batch that runs longest goes first;
- rows of the policy are sorted by length before they are cut into micro-batches;
- responses whose FCI is wanted go through the model once: the eager forward gives log-probs and entropy, too; all
  others keep sdpa;
- the log-probs of sampled tokens come from the logits that ``generate`` has anyway, not from another forward.

The numbers equal the numbers of the local engine (``step.py`` checks them), without code of the local engine: only the
pure functions of :mod:`attnrl.method` are shared.

Shape letters: see CONTRIBUTING.md; ``N`` counts the new tokens of a row.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate, pairwise

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from transformers import GenerationConfig, PreTrainedModel

from attnrl.config.method import BranchingConfig
from attnrl.config.schema import LossConfig, OptimizerConfig
from attnrl.method.influence import forward_context_influence, step_attention
from attnrl.method.loss import kl_k3, policy_loss, truncated_importance
from attnrl.method.measures import REDUCTIONS
from attnrl.method.steps import Steps
from attnrl.types import Completion, Request, SamplingParams, Score, TrainingRow


class PlainSampler:
    """:class:`attnrl.types.Sampler` by ``model.generate``, without stop strings."""

    def __init__(
        self,
        model: PreTrainedModel,
        params: SamplingParams = SamplingParams(),
        *,
        eos_token_ids: Collection[int],
        pad_token_id: int,
        max_batch: int = 256,
    ) -> None:
        self.model = model
        self.eos_token_ids = frozenset(eos_token_ids)
        self.pad_token_id = pad_token_id
        self.params = params
        self.max_batch = max_batch

    def generate(
        self,
        requests: Sequence[Request],
        *,
        on_completion: Callable[[int, Completion], None] | None = None,
        should_stop: Callable[[Collection[int]], bool] | None = None,
    ) -> list[Completion]:
        """Return one completion per request; requests finish, and ``should_stop`` is asked, a whole batch at a time."""
        order = sorted(range(len(requests)), key=lambda r: -requests[r].max_new_tokens)
        completions = [Completion((), (), "unfinished")] * len(requests)
        unfinished = set(order)
        for start in range(0, len(order), self.max_batch):
            batch = order[start : start + self.max_batch]
            for r, completion in zip(batch, self._generate([requests[r] for r in batch]), strict=True):
                completions[r] = completion
                unfinished.remove(r)
                if on_completion is not None:
                    on_completion(r, completion)
            if unfinished and should_stop is not None and should_stop(unfinished):
                break
        return completions

    def sync(self) -> None:
        """Nothing to do: it is the model that is trained."""

    def _generate(self, requests: Sequence[Request]) -> list[Completion]:
        """One batch, as long as its largest budget and its longest row; a request's seed only seeds the batch."""
        width = max(len(request.prompt) for request in requests)
        ids_BT = torch.full((len(requests), width), self.pad_token_id)
        valid_BT = torch.zeros_like(ids_BT)
        for row, request in enumerate(requests):
            ids_BT[row, width - len(request.prompt) :] = torch.tensor(request.prompt)
            valid_BT[row, width - len(request.prompt) :] = 1
        params = self.params
        # top_k=0 is given too: the default of 50 is another distribution.
        draws = dict(do_sample=True, temperature=params.temperature, top_k=params.top_k, top_p=params.top_p)
        draws["min_p"] = params.min_p or None
        config = GenerationConfig(
            max_new_tokens=max(request.max_new_tokens for request in requests),
            eos_token_id=sorted(self.eos_token_ids) or None,
            pad_token_id=self.pad_token_id,
            use_cache=True,
            return_dict_in_generate=True,
            output_logits=True,
            **(draws if params.temperature > 0 else {"do_sample": False}),
        )
        torch.manual_seed(requests[0].seed)
        self.model.eval()
        output = self.model.generate(
            ids_BT.to(self.model.device),
            attention_mask=valid_BT.to(self.model.device),
            generation_config=config,
        )
        tokens_BJ = output.sequences[:, width:]
        logits_BJV = torch.stack(output.logits, dim=1).float() / (params.temperature or 1.0)
        logprobs_BJ = logits_BJV.log_softmax(-1).gather(2, tokens_BJ[:, :, None]).squeeze(2)
        rows = zip(requests, tokens_BJ.tolist(), logprobs_BJ.tolist(), strict=True)
        return [self._cut(request, tokens, logprobs) for request, tokens, logprobs in rows]

    def _cut(self, request: Request, tokens: list[int], logprobs: list[float]) -> Completion:
        """End a row at its own budget, or at the end-of-sequence token before that."""
        tokens = tokens[: request.max_new_tokens]
        end = next((at + 1 for at, token in enumerate(tokens) if token in self.eos_token_ids), None)
        return Completion(tuple(tokens[:end]), tuple(logprobs[: end or len(tokens)]), "stop" if end else "length")


class PlainPolicy:
    """:class:`attnrl.types.Policy`, path by path; takes what ``LocalPolicy`` takes."""

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
        self.model = model
        self.reference = reference
        self.loss = loss
        self.settings = optimizer
        self.branching = branching
        self.temperature = temperature
        self.updates = 0
        if optimizer.gradient_checkpointing:
            model.gradient_checkpointing_enable()
        self.optimizer = torch.optim.AdamW(
            model.parameters(),
            lr=optimizer.learning_rate,
            betas=optimizer.betas,
            weight_decay=optimizer.weight_decay,
        )

    @torch.no_grad()
    def score(
        self,
        prompts: Sequence[Sequence[int]],
        responses: Sequence[Sequence[int]],
        steps: Sequence[Steps | None] | None = None,
    ) -> list[Score]:
        """Log-probs, entropy and, where steps are given, FCI."""
        self.model.eval()
        wanted = list(steps) if steps is not None else [None] * len(prompts)
        scores: dict[int, Score] = {}
        with_fci = [row for row in range(len(prompts)) if wanted[row]]
        for batch in self._micro_batches(with_fci, prompts, responses):
            with eager_attention(self.model):
                scores |= self._score(batch, prompts, responses, wanted)
        without = [row for row in range(len(prompts)) if not wanted[row]]
        for batch in self._micro_batches(without, prompts, responses):
            scores |= self._score(batch, prompts, responses)
        return [scores[row] for row in range(len(prompts))]

    def _score(
        self,
        batch: Sequence[int],
        prompts: Sequence[Sequence[int]],
        responses: Sequence[Sequence[int]],
        steps: Sequence[Steps | None] | None = None,
    ) -> dict[int, Score]:
        """Scores of one micro-batch by row; with ``steps``, the attention matrices are asked for."""
        ids_BT, valid_BT = self._padded([[*prompts[row], *responses[row]] for row in batch])
        output = self.model(
            input_ids=ids_BT, attention_mask=valid_BT, use_cache=False, output_attentions=steps is not None
        )
        logprobs_BTV = (output.logits[:, :-1].float() / self.temperature).log_softmax(-1)
        entropy_BT = -(logprobs_BTV.exp() * logprobs_BTV).sum(-1)
        logprobs_BT = logprobs_BTV.gather(2, ids_BT[:, 1:, None]).squeeze(2)
        scores = {}
        for place, row in enumerate(batch):
            first, length = len(prompts[row]), len(prompts[row]) + len(responses[row])
            its_steps = steps[row] if steps is not None else None
            fci: Sequence[float] = ()
            if its_steps:
                attention = [layer_BHTT[place, :, :length, :length] for layer_BHTT in output.attentions]
                fci = self._influence(attention, [first + start for start in its_steps.starts])
            scores[row] = Score(
                logprobs=tuple(logprobs_BT[place, first - 1 : length - 1].tolist()),
                entropy=tuple(entropy_BT[place, first - 1 : length - 1].tolist()),
                influence=tuple(fci),
            )
        return scores

    def _influence(self, attention: Sequence[Tensor], starts: Sequence[int]) -> list[float]:
        """Equations 4 to 6 on the attention matrices [H, T, T] of each layer."""
        layers = [
            forward_context_influence(step_attention(layer_HTT, starts), self.branching.delta)
            for layer_HTT in attention
        ]
        reduced_S: Tensor = REDUCTIONS[self.branching.reduction](torch.stack(layers))
        return reduced_S.tolist()

    def update(self, rows: Sequence[TrainingRow]) -> dict[str, float]:
        """One optimizer step for each mini-batch of about equal token counts."""
        self.model.train()
        lengths = [len(row.response) for row in rows]
        mini_batches = equal_runs(lengths, self.settings.mini_batches)
        denominator = sum(lengths) / len(mini_batches)
        loss = norms = 0.0
        for mini_batch in mini_batches:
            warmup = min(1.0, (self.updates + 1) / max(1, self.settings.warmup_steps))
            for group in self.optimizer.param_groups:
                group["lr"] = self.settings.learning_rate * warmup
            prompts, responses = [row.prompt for row in rows], [row.response for row in rows]
            for batch in self._micro_batches(mini_batch, prompts, responses):
                loss += self._backward([rows[row] for row in batch], denominator)
            norms += float(clip_grad_norm_(self.model.parameters(), self.settings.max_grad_norm))
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.updates += 1
        return {"loss/policy": loss / len(mini_batches), "grad_norm": norms / len(mini_batches)}

    def _backward(self, rows: Sequence[TrainingRow], denominator: float) -> float:
        """Add the gradients of one micro-batch; returns its share of the policy loss."""
        ids_BT, valid_BT = self._padded([[*row.prompt, *row.response] for row in rows])
        logprobs_BT = self._logprobs(self.model, ids_BT, valid_BT)
        mask_BT = self._values([[1.0] * len(row.response) for row in rows], rows) > 0
        old_BT = self._values([row.old_logprobs for row in rows], rows)
        importance_BT = None
        if self.loss.tis is not None:
            sampler_BT = self._values([row.sampler_logprobs for row in rows], rows)
            importance_BT = truncated_importance(old_BT, sampler_BT, self.loss.tis)
        policy = policy_loss(
            logprobs_BT,
            old_BT,
            self._values([row.advantages for row in rows], rows),
            mask_BT,
            importance=importance_BT,
            denominator=denominator,
            clip_low=self.loss.clip_low,
            clip_high=self.loss.clip_high,
            dual_clip=self.loss.dual_clip,
        )
        loss = policy.loss
        if self.reference is not None:
            with torch.no_grad():
                reference_BT = self._logprobs(self.reference, ids_BT, valid_BT)
            loss = loss + self.loss.kl * kl_k3(logprobs_BT, reference_BT, mask_BT).sum() / denominator
        loss.backward()
        return float(policy.loss.detach())

    def _logprobs(self, model: PreTrainedModel, ids_BT: Tensor, valid_BT: Tensor) -> Tensor:
        """Log-probs [B, T-1] of every token but the first."""
        logits_BTV = model(input_ids=ids_BT, attention_mask=valid_BT, use_cache=False).logits[:, :-1]
        logprobs_BTV = (logits_BTV.float() / self.temperature).log_softmax(-1)
        return logprobs_BTV.gather(2, ids_BT[:, 1:, None]).squeeze(2)

    def _micro_batches(
        self, rows: Sequence[int], prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]]
    ) -> Iterator[list[int]]:
        """Cut rows, the longest first, so that no batch has more padded tokens than the recipe says."""
        length = {row: len(prompts[row]) + len(responses[row]) for row in rows}
        batch: list[int] = []
        for row in sorted(rows, key=lambda row: -length[row]):
            if batch and (len(batch) + 1) * length[batch[0]] > self.settings.micro_batch_tokens:
                yield batch
                batch = []
            batch.append(row)
        if batch:
            yield batch

    def _padded(self, sequences: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Token ids and attention mask [B, T], padded on the right."""
        width = max(map(len, sequences))
        ids = [[*tokens, *[0] * (width - len(tokens))] for tokens in sequences]
        valid = [[1] * len(tokens) + [0] * (width - len(tokens)) for tokens in sequences]
        return torch.tensor(ids, device=self.model.device), torch.tensor(valid, device=self.model.device)

    def _values(self, values: Sequence[Sequence[float]], rows: Sequence[TrainingRow]) -> Tensor:
        """Values of response tokens as [B, T-1], beside the log-probs of the same tokens; 0 elsewhere."""
        width = max(len(row.prompt) + len(row.response) for row in rows)
        padded_BT = torch.zeros(len(rows), width)
        for place, (row, its_values) in enumerate(zip(rows, values, strict=True)):
            padded_BT[place, len(row.prompt) : len(row.prompt) + len(row.response)] = torch.tensor(its_values)
        return padded_BT[:, 1:].to(self.model.device)


@contextmanager
def eager_attention(model: PreTrainedModel) -> Iterator[None]:
    """The attention that returns its matrices, for the time being."""
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def equal_runs(lengths: Sequence[int], count: int) -> list[range]:
    """Cut rows, in order, into at most ``count`` runs: each ends where its share of all tokens is first reached."""
    total, edges = sum(lengths), [0]
    for row, done in enumerate(accumulate(lengths), 1):
        if done * count >= total * len(edges):
            edges.append(row)
    return [range(start, end) for start, end in pairwise(edges)]
