"""The loop's state as JSON: what the checkpoints of every engine hold beside the weights.

A checkpoint may have passed through other hands: what is read is checked to be what the loop could have written, so
that a fault in it is named where it is, and not met somewhere in a later step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any, TypeVar, get_args

from attnrl.method.adaptive import BatchSizeController, RunningMean
from attnrl.method.steps import Steps
from attnrl.rl.rollout import Group, PartialGroup, SampledTokens, Trunk
from attnrl.rl.trainer import TrainerState
from attnrl.types import FinishReason, Verdict

LARGEST = 2**53  # of a whole number: up to there a float has it exactly
T = TypeVar("T")
Fields = Mapping[str, Any]


def state_to_json(state: TrainerState) -> dict[str, Any]:
    """All of the state, in numbers, texts, lists and mappings."""
    return asdict(state)


def state_from_json(fields: Fields) -> TrainerState:
    """The inverse of :func:`state_to_json`.

    Raises:
        TypeError, ValueError: it is not what that wrote; the message says where.
    """
    state = TrainerState(
        step=count(fields, "step"),
        position=count(fields, "position"),
        pending=_each(fields, "pending", _group),
        carried=_each(fields, "carried", _unfinished_group),
        solved_influence=_record(fields, "solved_influence", _running_mean),
        batch_size=_record(fields, "batch_size", _batch_size),
        sampled_tokens=count(fields, "sampled_tokens"),
        nonfinite_steps=count(fields, "nonfinite_steps"),
    )
    groups: tuple[Group | PartialGroup, ...] = (*state.pending, *state.carried)
    drawn = max((group.position + 1 for group in groups), default=0)
    if drawn > state.position:
        raise ValueError(f"position: is {state.position}, and there is a problem of position {drawn - 1}")
    return state


def count(fields: Fields, name: str, at_least: int = 0) -> int:
    """The whole number ``name``.

    Raises:
        TypeError, ValueError: it is missing, or none, or out of range.
    """
    value: int = _typed(fields, name, int, "a whole number")
    if not at_least <= value <= LARGEST:
        raise ValueError(f"{name}: is out of range")
    return value


def _group(fields: Fields) -> Group:
    return Group(
        position=count(fields, "position"),
        problem_id=_typed(fields, "problem_id", str, "a text"),
        answers=_several(fields, "answers", {str}, "texts"),
        prompt=_prompt(fields),
        trunks=_some(fields, _trunk),
    )


def _unfinished_group(fields: Fields) -> PartialGroup:
    # Only what has ended has been cut into steps.
    trunks = _some(fields, lambda trunk: _trunk(trunk) if "steps" in trunk else SampledTokens(**_tokens(trunk)))
    return PartialGroup(count(fields, "position"), _prompt(fields), trunks)


def _trunk(fields: Fields) -> Trunk:
    sampled = _tokens(fields)
    trunk = Trunk(
        **sampled,
        reward=_number(fields, "reward"),
        verdict=_one_of(fields, "verdict", get_args(Verdict)),
        finish_reason=_one_of(fields, "finish_reason", get_args(FinishReason)),
        steps=_record(fields, "steps", _steps),
        influence=_numbers(fields, "influence"),
        advantage_weights=_numbers({"advantage_weights": [], **fields}, "advantage_weights"),
    )
    tokens = len(trunk.tokens)
    if trunk.steps.length != tokens:
        raise ValueError(f"steps.length: {trunk.steps.length} for {tokens} tokens")
    _of_length(trunk.influence, "influence", {0, len(trunk.steps)})  # 0: was not measured
    _of_length(trunk.advantage_weights, "advantage_weights", {0, tokens})
    if not 0 <= trunk.reward <= 1:
        raise ValueError("reward: is not between 0 and 1")
    return trunk


def _tokens(fields: Fields) -> dict[str, Any]:
    """What :class:`SampledTokens` has."""
    tokens = _token_ids(fields, "tokens")
    values = {name: _numbers(fields, name) for name in ("logprobs", "sampler_logprobs", "entropy")}
    for name, its in values.items():
        _of_length(its, name, {len(tokens)})
    return {"tokens": tokens, **values}


def _steps(fields: Fields) -> Steps:
    think_end = None if fields.get("think_end") is None else count(fields, "think_end")
    return Steps(_several(fields, "starts", {int}, "whole numbers"), count(fields, "length"), think_end)


def _running_mean(fields: Fields) -> RunningMean:
    return RunningMean(count(fields, "count"), _number(fields, "mean"))


def _batch_size(fields: Fields) -> BatchSizeController:
    return BatchSizeController(
        batch=_number(fields, "batch"),
        target=_number(fields, "target"),
        maximum=count(fields, "maximum"),
        minimum=count(fields, "minimum"),
        smoothing=_number(fields, "smoothing"),
        max_ratio=_number(fields, "max_ratio"),
    )


# --- values -----------------------------------------------------------------------------------------------------------


def _typed(fields: Fields, name: str, kind: type, words: str) -> Any:
    if name not in fields:
        raise ValueError(f"{name}: is missing")
    value = fields[name]
    if type(value) is not kind:  # a bool is an int, and none of ours
        raise TypeError(f"{name}: {words} expected")
    return value


def _number(fields: Fields, name: str) -> float:
    """A finite number."""
    (value,) = _numbers({name: [fields.get(name)]}, name)
    if not math.isfinite(value):
        raise ValueError(f"{name}: is out of range")
    return value


def _one_of(fields: Fields, name: str, choices: Sequence[str]) -> Any:
    value = _typed(fields, name, str, "a text")
    if value not in choices:
        raise ValueError(f"{name}: one of {', '.join(choices)} expected")
    return value


def _several(fields: Fields, name: str, kinds: set[type], words: str) -> tuple[Any, ...]:
    values = _typed(fields, name, list, f"a list of {words}")
    if not set(map(type, values)) <= kinds:
        raise TypeError(f"{name}: {words} expected")
    return tuple(values)


def _numbers(fields: Fields, name: str) -> tuple[float, ...]:
    """Numbers of the types that they have: what is written again must be the same text.

    Some may be infinite or none at all: their problem is left out when its turn comes.
    """
    values = _several(fields, name, {int, float}, "numbers")
    if any(type(value) is int and abs(value) > LARGEST for value in values):
        raise ValueError(f"{name}: is out of range")
    return values


def _token_ids(fields: Fields, name: str) -> tuple[int, ...]:
    ids = _several(fields, name, {int}, "whole numbers")
    if ids and not 0 <= min(ids) <= max(ids) < 2**31:
        raise ValueError(f"{name}: token ids expected")
    return ids


def _prompt(fields: Fields) -> tuple[int, ...]:
    prompt = _token_ids(fields, "prompt")
    if not prompt:
        raise ValueError("prompt: has no tokens")
    return prompt


def _of_length(values: Sequence[float], name: str, lengths: set[int]) -> None:
    if len(values) not in lengths:
        raise ValueError(f"{name}: has {len(values)} numbers, not {max(lengths)}")


def _record(fields: Fields, name: str, build: Callable[[Fields], T]) -> T:
    value = _typed(fields, name, dict, "a mapping")
    with _inside(name):
        return build(value)


def _some(fields: Fields, build: Callable[[Fields], T]) -> tuple[T, ...]:
    """The responses to a problem, of which there is one at least."""
    trunks = _each(fields, "trunks", build)
    if not trunks:
        raise ValueError("trunks: there are none")
    return trunks


def _each(fields: Fields, name: str, build: Callable[[Fields], T]) -> tuple[T, ...]:
    found = []
    for number, value in enumerate(_several(fields, name, {dict}, "mappings")):
        with _inside(f"{name}[{number}]"):
            found.append(build(value))
    return tuple(found)


@contextmanager
def _inside(name: str) -> Iterator[None]:
    try:
        yield
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}.{error}") from None
