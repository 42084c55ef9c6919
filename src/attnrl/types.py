"""What the training loop asks of an engine: four small protocols and the plain records they exchange.

The loop (:mod:`attnrl.rl.trainer`) is written against these; an engine (``attnrl.local``) implements
them. Token ids are plain ints and log-probabilities are in nats, so that a record can be
written to JSON as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from attnrl.method.steps import Steps

Chat = tuple[Mapping[str, str], ...]


@dataclass(frozen=True)
class Problem:
    """One problem to reason about.

    Attributes:
        id: unique within its data set; never shared between problems.
        prompt: text given to the model as it is, or chat messages (``role``, ``content``) to be rendered with
            the tokenizer's chat template.
        answers: the accepted answers, compared with what the response puts in ``\\boxed{}``.
        source: where the problem comes from (a task name or a row's ``data_source``).
        info: whatever else the task knows, kept for study (for ledgers: the true dependency graph).
    """

    id: str
    prompt: str | Chat
    answers: tuple[str, ...]
    source: str = ""
    info: Mapping[str, Any] = field(default_factory=dict)


#: ``stop``: an end-of-sequence token was sampled; ``length``: the budget ran out; ``unfinished``: the call ended first.
FinishReason = Literal["stop", "length", "unfinished"]
#: What grading came to. ``no_answer``: the response gives none; ``timeout`` and ``error``: comparing it took too long
#: or failed; ``bad_gold``: there is no true answer to compare with.
Verdict = Literal["correct", "wrong", "no_answer", "timeout", "error", "bad_gold"]


@dataclass(frozen=True)
class Request:
    """One continuation to sample.

    Attributes:
        prompt: token ids to continue (for a branch: the prompt and the kept part of the trunk).
        max_new_tokens: this request's own remaining budget, at least 1.
        seed: decides every random draw of this request, whatever else is in the batch.
    """

    prompt: tuple[int, ...]
    max_new_tokens: int
    seed: int


@dataclass(frozen=True)
class Completion:
    """What a sampler returns for one :class:`Request`.

    Attributes:
        tokens: sampled token ids, the end-of-sequence token included when ``finish_reason`` is ``stop``.
        logprobs: log-probability of each token under the distribution at the sampling temperature, before top-p and
            top-k, by the sampler's own arithmetic; same length as ``tokens``.
        finish_reason: why it ended.
    """

    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish_reason: FinishReason


@dataclass(frozen=True)
class Score:
    """What one forward of the policy tells about one response.

    Attributes:
        logprobs: log-probability of each response token, length T.
        entropy: entropy in nats of the distribution each response token was drawn from, length T.
        influence: raw influence (FCI or lookups) of each step, before masking, length S; empty if not requested.
    """

    logprobs: tuple[float, ...]
    entropy: tuple[float, ...]
    influence: tuple[float, ...]


@dataclass(frozen=True)
class TrainingRow:
    """One root-to-leaf path to train on; all per-token tuples have the response's length.

    Attributes:
        prompt: prompt token ids (not trained).
        response: response token ids.
        old_logprobs: log-probabilities under the policy that sampled each token, as the policy computes them.
        sampler_logprobs: the same as the sampler computed them.
        advantages: one advantage per token.
    """

    prompt: tuple[int, ...]
    response: tuple[int, ...]
    old_logprobs: tuple[float, ...]
    sampler_logprobs: tuple[float, ...]
    advantages: tuple[float, ...]


class Sampler(Protocol):
    """Draws completions from the current policy."""

    def generate(
        self,
        requests: Sequence[Request],
        *,
        on_completion: Callable[[int, Completion], None] | None = None,
        should_stop: Callable[[Collection[int]], bool] | None = None,
    ) -> list[Completion]:
        """Return one completion per request, in order. An empty batch returns an empty list.

        Args:
            requests: what to sample.
            on_finished: called in this thread with the index and the completion of each request that finishes,
                while others still run.
            enough: asked now and then with the indices of the unfinished requests; True ends the call, and they
                come back as far as they are, as ``unfinished``.
        """
        ...

    def sync(self) -> None:
        """Sample from the policy's current weights from now on."""
        ...


@dataclass(frozen=True)
class Grade:
    """What a grader makes of one response.

    Attributes:
        reward: in [0, 1]; 1 is correct.
        verdict: why.
        answer: what was taken for the response's answer; None where it gives none.
    """

    reward: float
    verdict: Verdict
    answer: str | None = None


class Grader(Protocol):
    """Scores finished responses.

    A grade depends on the problem and the response alone. Which responses come together in one call is not defined.
    """

    @property
    def overlaps(self) -> bool:
        """Whether ``grade`` may be called from a thread beside the main one, so that it overlaps with sampling.

        Calls never overlap each other. False has it called from the main thread, once all responses are there.
        """
        ...

    def grade(self, problems: Sequence[Problem], responses: Sequence[str]) -> list[Grade]:
        """Grade each response to its problem, in order."""
        ...


class Policy(Protocol):
    """The model being trained."""

    def score(
        self,
        prompts: Sequence[Sequence[int]],
        responses: Sequence[Sequence[int]],
        steps: Sequence[Steps | None] | None = None,
    ) -> list[Score]:
        """Score responses under the current weights, with the FCI of those whose ``steps`` are given."""
        ...

    def update(self, rows: Sequence[TrainingRow]) -> Mapping[str, float]:
        """Take the optimizer steps of one training step and return its training metrics."""
        ...
