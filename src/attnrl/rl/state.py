"""State of the loop between training steps, and the JSON of the state in the checkpoints of every engine.

A checkpoint may come from another machine: pydantic validates the JSON, and the values are checked against the range of
the training loop. An invalid value is therefore reported with the path in the file, before a later step uses the value.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

from pydantic import ConfigDict, TypeAdapter, ValidationError, with_config

from attnrl.config.schema import TrainConfig
from attnrl.data.stream import ProblemSource
from attnrl.method.adaptive import BatchSizeController, RunningMean
from attnrl.prompts.renderer import PromptRenderer
from attnrl.rl.rollout import Group, PartialGroup, SampledTokens, Trunk

LARGEST_INTEGER = 2**53  # beyond, a float does not hold every integer
LARGEST_TOKEN_ID = 2**31 - 1


class NextBatch(NamedTuple):
    """Problems of the next generation of initial responses: carried over, and the positions of new problems."""

    carried: tuple[PartialGroup, ...] = ()
    positions: Sequence[int] = ()


@with_config(ConfigDict(strict=True, extra="forbid"))
@dataclass(frozen=True)
class TrainerState:
    """The state of the training loop between two training steps, without the policy's weights.

    Random choices are drawn from the run's seed and the step number, so the state holds no random generator.

    Attributes:
        step: training steps done.
        position: problems drawn so far.
        pending: initial responses of the next batch.
        carried: problems with initial responses left unfinished by the last generation (``sampling.carry_over``).
        solved_influence: running mean influence of all-correct problems (eq. 8).
        batch_size: the prompt batch size controller (eq. 10).
        sampled_tokens: tokens generated so far.
        nonfinite_steps: consecutive steps with a NaN or inf, up to the last step.
    """

    step: int
    position: int
    pending: tuple[Group, ...]
    carried: tuple[PartialGroup, ...]
    solved_influence: RunningMean
    batch_size: BatchSizeController
    sampled_tokens: int
    nonfinite_steps: int

    def take_next_batch(self) -> tuple[NextBatch, TrainerState]:
        """Return the problems of the next generation, and the state without these problems."""
        end = self.position + max(0, self.batch_size.size - len(self.carried))
        return NextBatch(self.carried, range(self.position, end)), replace(self, position=end, carried=())


def initial_state(config: TrainConfig) -> TrainerState:
    """Return the state before the first training step."""
    growth = config.method.adaptive.max_growth
    controller = BatchSizeController(
        # Floats, as they are read from JSON: a resumed run writes the same text as a run that was never stopped.
        batch=float(config.prompts),
        target=float(config.prompts * config.method.leaves),
        minimum=max(1, round(config.prompts / growth)),
        maximum=round(config.prompts * growth),
        smoothing=config.method.adaptive.smoothing,
    )
    return TrainerState(0, 0, (), (), RunningMean(), controller, 0, 0)


def drop_stale_samples(
    state: TrainerState, source: ProblemSource, renderer: PromptRenderer, max_prompt_tokens: int
) -> TrainerState:
    """Return the state without stale samples: samples of another problem than ``source`` has at the same position.

    After a change of data files or held-out problems, stale samples would be graded by the answers of another problem.
    """

    def prompt(position: int) -> tuple[int, ...]:
        return renderer.encode(source.at(position), max_prompt_tokens)

    def is_current(group: Group) -> bool:
        problem = source.at(group.position)
        same = (problem.id, problem.answers) == (group.problem_id, group.answers)
        return same and prompt(group.position) == group.prompt

    return replace(
        state,
        pending=tuple(group for group in state.pending if is_current(group)),
        carried=tuple(group for group in state.carried if prompt(group.position) == group.prompt),
    )


def state_to_json(state: TrainerState) -> dict[str, Any]:
    """Return the state as numbers, strings, lists and mappings."""
    return asdict(state)


def state_from_json(fields: Mapping[str, Any]) -> TrainerState:
    """Return the state from the JSON object of :func:`state_to_json`.

    Raises:
        ValueError: missing, unknown or invalid fields; the message has the path of the first invalid field.
    """
    try:
        state = TypeAdapter(TrainerState).validate_json(json.dumps(fields))
    except ValidationError as error:
        raise ValueError(_first_fault(error)) from None
    for path, fault in _faults(state):
        raise ValueError(f"{path}: {fault}")
    return state


def count(fields: Mapping[str, Any], name: str, at_least: int = 0) -> int:
    """Return the whole number ``name`` of a JSON object.

    Raises:
        ValueError: the number is missing, not a whole number, or out of range.
    """
    value = fields.get(name)
    if type(value) is not int or not at_least <= value <= LARGEST_INTEGER:  # a bool is an int in Python
        raise ValueError(f"{name}: a whole number of at least {at_least} expected")
    return int(value)


def _first_fault(error: ValidationError) -> str:
    """Return path and message of the first invalid field; a response of two possible types is read as a trunk."""
    faults = error.errors()
    fault = next((fault for fault in faults if Trunk.__name__ in fault["loc"]), faults[0])
    parts = [part for part in fault["loc"] if part not in (Trunk.__name__, SampledTokens.__name__)]
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in parts).lstrip(".")
    return f"{path}: {fault['msg']}"


def _faults(state: TrainerState) -> Iterator[tuple[str, str]]:
    """Yield path and message of every value with the right type, but outside the range of the training loop."""
    for name in ("step", "position", "sampled_tokens", "nonfinite_steps"):
        if not 0 <= getattr(state, name) <= LARGEST_INTEGER:
            yield name, "out of range"
    for name, value in (
        ("solved_influence.mean", state.solved_influence.mean),
        ("batch_size.target", state.batch_size.target),
    ):
        if not math.isfinite(value):
            yield name, "not finite"
    in_flight: dict[str, Sequence[Group | PartialGroup]] = {"pending": state.pending, "carried": state.carried}
    for kind, groups in in_flight.items():
        for index, group in enumerate(groups):
            path = f"{kind}[{index}]"
            if not 0 <= group.position < state.position:
                yield f"{path}.position", f"{group.position}, of {state.position} problems drawn"
            if not group.prompt or not _are_token_ids(group.prompt):
                yield f"{path}.prompt", "token ids expected"
            if not group.trunks:
                yield f"{path}.trunks", "no response"
            for number, trunk in enumerate(group.trunks):
                for field, fault in _faults_of(trunk):
                    yield f"{path}.trunks[{number}].{field}", fault


def _faults_of(response: SampledTokens) -> Iterator[tuple[str, str]]:
    """Yield name and message of every invalid field of a response."""
    tokens = len(response.tokens)
    if not _are_token_ids(response.tokens):
        yield "tokens", "token ids expected"
    lengths = {"logprobs": {tokens}, "sampler_logprobs": {tokens}, "entropy": {tokens}}
    if isinstance(response, Trunk):
        if response.reward is not None and not math.isfinite(response.reward):
            yield "reward", "not finite"
        for name, reward in response.rewards.items():
            if reward is not None and not math.isfinite(reward):
                yield f"rewards.{name}", "not finite"
        if response.steps.length != tokens:
            yield "steps.length", f"{response.steps.length} for {tokens} tokens"
        # Empty: not measured.
        lengths |= {"influence": {0, len(response.steps)}, "advantage_weights": {0, tokens}}
    for field, allowed in lengths.items():
        if len(getattr(response, field)) not in allowed:
            yield field, f"{len(getattr(response, field))} numbers, not {max(allowed)}"


def _are_token_ids(tokens: Sequence[int]) -> bool:
    return not tokens or 0 <= min(tokens) <= max(tokens) <= LARGEST_TOKEN_ID
