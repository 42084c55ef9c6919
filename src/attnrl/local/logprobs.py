"""Log-probabilities and entropies of tokens, from one forward of a pack.

Shape letters: N tokens whose log-probs are wanted, P different places whose logits predict them, V vocabulary;
B and T are those of :mod:`attnrl.local.packing`.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from attnrl.fci import FciUnsupportedError, evaluating
from attnrl.local.packing import Pack, pack_rows, pack_trees

LOGIT_BYTES = 256 * 2**20  # bound on the fp32 logits that are turned into log-probs at one time


def token_logprobs(
    model: PreTrainedModel,
    pack: Pack,
    prompt_lengths: Sequence[int],
    temperature: float,
    *,
    with_entropy: bool = False,
) -> tuple[list[Tensor], list[Tensor]]:
    """One forward: log-probs of the tokens behind each sequence's prompt, and the entropy each was drawn with.

    Tokens that follow the same token (the first tokens of branches from it) are predicted by the same logits,
    which are made once, and only for places that predict something.

    Args:
        model: to be called in ``pack.attending(model)``, as must the backward pass.
        pack: the sequences.
        prompt_lengths: tokens of each sequence of the pack that are given, not predicted; at least 1.
        temperature: divides the logits.
        with_entropy: without it the second result is empty.

    Returns:
        For each sequence of the pack an fp32 tensor of the length of its response; log-probs in nats with gradient,
        entropies without.
    """
    device = model.device
    counts = [length - prompt for length, prompt in zip(pack.lengths, prompt_lengths, strict=True)]
    places = [pack.places(index) for index in range(len(pack.lengths))]
    ids = pack.input_ids_BT.flatten()
    predicting_N = torch.cat([its[prompt - 1 : -1] for its, prompt in zip(places, prompt_lengths, strict=True)])
    target_N = torch.cat([ids[its[prompt:]] for its, prompt in zip(places, prompt_lengths, strict=True)])
    if not len(target_N):
        empty = [torch.zeros(0, device=device) for _ in counts]
        return empty, empty if with_entropy else []
    place_P, slot_N = torch.unique(predicting_N, return_inverse=True)
    logits_PV = _logits(model, pack, place_P)

    order_N = slot_N.argsort(stable=True)  # so that slices of logits have slices of tokens
    size = max(1, LOGIT_BYTES // (4 * logits_PV.shape[1]))
    cuts = torch.searchsorted(slot_N[order_N], torch.arange(0, len(place_P) + size, size)).tolist()
    logprobs, entropies = [], []
    for part, some_SV in enumerate(torch.split(logits_PV, size)):
        tokens = order_N[cuts[part] : cuts[part + 1]]
        args = (some_SV, (slot_N[tokens] - part * size).to(device), target_N[tokens].to(device), temperature)
        # Kept for the backward pass, the fp32 logits would take the memory that the slices save.
        logprobs.append(
            checkpoint(_logprobs_of, *args, use_reentrant=False) if torch.is_grad_enabled() else _logprobs_of(*args)
        )
        if with_entropy:
            entropies.append(_entropy_of(some_SV, temperature))
    logprob_N = torch.cat(logprobs)[order_N.argsort().to(device)]
    entropy = torch.split(torch.cat(entropies)[slot_N.to(device)], counts) if with_entropy else ()
    return list(torch.split(logprob_N, counts)), list(entropy)


def _logits(model: PreTrainedModel, pack: Pack, place_P: Tensor) -> Tensor:
    """Logits [P, V] of the places, given as indices of the flattened pack; the others are not made if possible."""
    device, width = model.device, pack.input_ids_BT.shape[1]
    inputs: dict[str, Any] = {"input_ids": pack.input_ids_BT.to(device), "use_cache": False}
    skipped = 0
    if pack.is_tree:
        inputs["position_ids"] = pack.position_ids_BT.to(device)
    if "logits_to_keep" in inspect.signature(model.forward).parameters:
        if pack.is_tree:
            logits_PV: Tensor = model(**inputs, logits_to_keep=place_P.to(device)).logits[0]
            return logits_PV
        skipped = int((place_P % width).min())
        inputs["logits_to_keep"] = width - skipped
    logits_BTV = model(**inputs).logits
    return logits_BTV[(place_P // width).to(device), (place_P % width - skipped).to(device)]  # type: ignore[no-any-return]


def _logprobs_of(logits_SV: Tensor, slot_N: Tensor, target_N: Tensor, temperature: float) -> Tensor:
    scaled_SV = logits_SV.float() / temperature
    return scaled_SV[slot_N, target_N] - scaled_SV.logsumexp(-1)[slot_N]


@torch.no_grad()
def _entropy_of(logits_SV: Tensor, temperature: float) -> Tensor:
    logprobs_SV = (logits_SV.float() / temperature).log_softmax(-1)
    return -(logprobs_SV.exp() * logprobs_SV).sum(-1)


class TreesUnsupportedError(RuntimeError):
    """A model that computes something else for trees than for their paths. The message says why."""


@torch.no_grad()
def check_trees(model: PreTrainedModel) -> None:
    """Make sure, by forwards of a few tokens, that packed trees give the log-probs of their paths.

    Raises:
        TreesUnsupportedError: they do not, as with layers that carry a state along the row.
    """
    paths, prompts = [(0, 1, 2, 3, 1), (0, 1, 2, 2, 3, 1), (0, 1, 1, 3)], [1, 1, 1]
    # A small difference may be a small state, so layers that do not only attend are looked for by their kind, too.
    tree, rows = next(pack_trees(paths, 100, [5, 6, 1])), next(pack_rows(paths, 100))
    try:
        with evaluating(model):
            with tree.attending(model, {tree.sequences.index(2): [1]}) as captured:
                packed = dict(zip(tree.sequences, token_logprobs(model, tree, prompts, 1.0)[0], strict=True))
            assert captured is not None
            captured.influence()
            alone = dict(zip(rows.sequences, token_logprobs(model, rows, prompts, 1.0)[0], strict=True))
    except FciUnsupportedError as error:
        raise TreesUnsupportedError(str(error)) from None
    difference = max(float((packed[path] - alone[path]).abs().max()) for path in packed)
    if not difference <= (1e-3 if model.dtype == torch.float32 else 0.25):
        raise TreesUnsupportedError(
            f"{type(model).__name__} gives tokens of a packed tree other log-probs than those of their path (by "
            f"{difference:.2g}): a layer that does not only attend carries something from one branch into the next"
        )
