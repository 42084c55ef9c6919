"""Log-probabilities and entropies of tokens, from one forward of a pack.

Shape letters: see CONTRIBUTING.md.
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
from attnrl.utils.model_outputs import logits_only

#: Largest difference in nats between log-probs of the same tokens from two forwards that sum in another order.
LOGPROB_ROUNDING = {torch.float64: 1e-3, torch.float32: 1e-3, torch.float16: 0.25, torch.bfloat16: 0.25}

LOGIT_BYTES = 256 * 2**20  # largest fp32 logits converted to log-probs at one time


def token_logprobs(
    model: PreTrainedModel,
    pack: Pack,
    prompt_lengths: Sequence[int],
    temperature: float,
    *,
    with_entropy: bool = False,
) -> tuple[list[Tensor], list[Tensor]]:
    """Return the log-prob of each response token and the entropy of the token's distribution, from one forward.

    Tokens that follow the same token (the first tokens of branches) are predicted by the same logits. Logits are
    computed once per position, and only for positions that predict a token.

    Args:
        model: the model; call this function and the backward pass inside ``pack.attending(model)``.
        pack: the sequences.
        prompt_lengths: prompt tokens of each sequence of the pack (not predicted); at least 1.
        temperature: divides the logits.
        with_entropy: False leaves the second list empty.

    Returns:
        Log-probs and entropies in nats: for each sequence of the pack an fp32 tensor of the response's length.
        Log-probs have a gradient, entropies have none.
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
    place_W, slot_N = torch.unique(predicting_N, return_inverse=True)
    with logits_only(model):
        logits_WV = _logits(model, pack, place_W)

    order_N = slot_N.argsort(stable=True)  # a slice of logits then predicts a slice of tokens
    size = max(1, LOGIT_BYTES // (4 * logits_WV.shape[1]))
    cuts = torch.searchsorted(slot_N[order_N], torch.arange(0, len(place_W) + size, size)).tolist()
    logprobs, entropies = [], []
    for part, logits_wV in enumerate(torch.split(logits_WV, size)):
        tokens = order_N[cuts[part] : cuts[part + 1]]
        args = (logits_wV, (slot_N[tokens] - part * size).to(device), target_N[tokens].to(device), temperature)
        # Checkpointed: keeping fp32 logits for the backward pass would use the memory that slicing saves.
        logprobs.append(
            checkpoint(_logprobs_of, *args, use_reentrant=False) if torch.is_grad_enabled() else _logprobs_of(*args)
        )
        if with_entropy:
            entropies.append(_entropy_of(logits_wV, temperature))
    logprob_N = torch.cat(logprobs)[order_N.argsort().to(device)]
    entropy = torch.split(torch.cat(entropies)[slot_N.to(device)], counts) if with_entropy else ()
    return list(torch.split(logprob_N, counts)), list(entropy)


def _logits(model: PreTrainedModel, pack: Pack, place_W: Tensor) -> Tensor:
    """Return the logits [W, V] at ``place_W``, indices of the flattened pack.

    If the model has ``logits_to_keep``, the other positions' logits are not computed.
    """
    device, width = model.device, pack.input_ids_BT.shape[1]
    inputs: dict[str, Any] = {"input_ids": pack.input_ids_BT.to(device), "use_cache": False}
    skipped = 0
    if pack.is_tree:
        inputs["position_ids"] = pack.position_ids_BT.to(device)
    if "logits_to_keep" in inspect.signature(model.forward).parameters:
        if pack.is_tree:
            logits_WV: Tensor = model(**inputs, logits_to_keep=place_W.to(device)).logits[0]
            return logits_WV
        skipped = int((place_W % width).min())
        inputs["logits_to_keep"] = width - skipped
    logits_BTV = model(**inputs).logits
    return logits_BTV[(place_W // width).to(device), (place_W % width - skipped).to(device)]  # type: ignore[no-any-return]


def _logprobs_of(logits_wV: Tensor, slot_N: Tensor, target_N: Tensor, temperature: float) -> Tensor:
    scaled_wV = logits_wV.float() / temperature
    return scaled_wV[slot_N, target_N] - scaled_wV.logsumexp(-1)[slot_N]


@torch.no_grad()
def _entropy_of(logits_wV: Tensor, temperature: float) -> Tensor:
    logprobs_wV = (logits_wV.float() / temperature).log_softmax(-1)
    return -(logprobs_wV.exp() * logprobs_wV).sum(-1)


class TreesUnsupportedError(RuntimeError):
    """The model computes other log-probs for packed trees than for single paths; the message gives the reason."""


@torch.no_grad()
def check_trees(model: PreTrainedModel) -> None:
    """Check, with forwards of a few tokens, that a packed tree gives the log-probs of the tree's paths.

    Raises:
        TreesUnsupportedError: the log-probs differ, as with layers that carry a state along the row.
    """
    paths, prompts = [(0, 1, 2, 3, 1), (0, 1, 2, 2, 3, 1), (0, 1, 1, 3)], [1, 1, 1]
    # A layer with a small state may change log-probs very little, so the capture also checks the layers' kinds.
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
    if not difference <= LOGPROB_ROUNDING[model.dtype]:
        raise TreesUnsupportedError(
            f"{type(model).__name__} gives tokens of a packed tree other log-probs than tokens of a single path (by "
            f"{difference:.2g}): a layer that does not only attend carries a state from one branch into the next"
        )
