"""The loop's state as JSON: what the checkpoints of every engine hold beside the weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from attnrl.method.adaptive import BatchSizeController, RunningMean
from attnrl.method.steps import Steps
from attnrl.rollout import Group, SampledTokens, Trunk, UnfinishedGroup
from attnrl.trainer import TrainerState

PER_TOKEN = ("tokens", "logprobs", "sampler_logprobs", "entropy")


def state_to_json(state: TrainerState) -> dict[str, Any]:
    """All of the state, in numbers, texts, lists and mappings."""
    return asdict(state)


def state_from_json(fields: Mapping[str, Any]) -> TrainerState:
    """The inverse of :func:`state_to_json`.

    Raises:
        KeyError, TypeError, ValueError: it is not what that wrote.
    """
    return TrainerState(
        step=fields["step"],
        position=fields["position"],
        pending=tuple(_group(group) for group in fields["pending"]),
        carried=tuple(_unfinished_group(group) for group in fields["carried"]),
        solved_fci=RunningMean(**fields["solved_fci"]),
        batch_size=BatchSizeController(**fields["batch_size"]),
        sampled_tokens=fields["sampled_tokens"],
        nonfinite_steps=fields["nonfinite_steps"],
    )


def _group(fields: Mapping[str, Any]) -> Group:
    trunks = tuple(_trunk(trunk) for trunk in fields["trunks"])
    return Group(**{**fields, **_tuples(fields, ("answers", "prompt")), "trunks": trunks})


def _unfinished_group(fields: Mapping[str, Any]) -> UnfinishedGroup:
    # Only what has ended has been cut into steps.
    trunks = tuple(_trunk(trunk) if "steps" in trunk else _sampled_tokens(trunk) for trunk in fields["trunks"])
    return UnfinishedGroup(**{**fields, **_tuples(fields, ("prompt",)), "trunks": trunks})


def _trunk(fields: Mapping[str, Any]) -> Trunk:
    steps = fields["steps"]
    sequences = _tuples({"weights": (), **fields}, (*PER_TOKEN, "fci", "weights"))
    return Trunk(**{**fields, **sequences, "steps": Steps(**{**steps, "starts": tuple(steps["starts"])})})


def _sampled_tokens(fields: Mapping[str, Any]) -> SampledTokens:
    return SampledTokens(**{**fields, **_tuples(fields, PER_TOKEN)})


def _tuples(fields: Mapping[str, Any], names: Sequence[str]) -> dict[str, tuple[Any, ...]]:
    return {name: tuple(fields[name]) for name in names}
