"""Protocols between the training loop and an engine (sampler, grader, policy), and the records of the protocols.

The loop (:mod:`attnrl.rl.trainer`) uses the protocols; an engine (``attnrl.local``, ``attnrl.verl``) implements the
protocols. Token ids are plain ints and log-probabilities are in nats, so a record can be written to JSON directly.
"""

from __future__ import annotations

import math
import re
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
        prompt: raw text, or chat messages (``role``, ``content``) for the tokenizer's chat template.
        answers: the accepted answers, compared with the content of the response's ``\\boxed{}``.
        source: origin of the problem (a task name or a row's ``data_source``).
        info: further data of the task, for analysis (for ledgers: the true dependency graph).
        place: file and row of the problem, for messages; empty for a task.
        wrapped: the prompt was text and is wrapped as one user message; reward functions get texts, as in TRL.
    """

    id: str
    prompt: str | Chat
    answers: tuple[str, ...]
    source: str = ""
    info: Mapping[str, Any] = field(default_factory=dict)
    place: str = field(default="", compare=False)
    wrapped: bool = field(default=False, compare=False)

    @property
    def where(self) -> str:
        """Return the file and row of the problem, or ``problem ID`` for a problem without a file."""
        return self.place or f"problem {self.id}"


#: ``stop``: an end-of-sequence token or a stop string was sampled; ``length``: the budget ran out; ``unfinished``: the
#: call ended first.
FinishReason = Literal["stop", "length", "unfinished"]
#: Result of grading. ``no_answer``: the response has no answer; ``timeout`` and ``error``: the comparison took too long
#: or failed because of the answer; ``bad_gold``: the problem has no valid true answer; ``not_judged``: the grader gave
#: no verdict, because of a fault outside of the response.
Verdict = Literal["correct", "wrong", "no_answer", "timeout", "error", "bad_gold", "not_judged"]

#: Text of backslashes and letters where line breaks and tabs are meant.
WRITTEN_ESCAPES = re.compile(r"(?:\\[nrt])+")


@dataclass(frozen=True)
class SamplingParams:
    """The distribution of sampled tokens, and the texts that end a response.

    The filters run in vLLM's order: temperature, min-p, top-k, then top-p on the mass that is left.

    Attributes:
        temperature: divides the logits, at least 0; 0 is greedy decoding.
        top_p: nucleus sampling: smallest set of most probable tokens with at least this mass, in (0, 1]; 1: off.
        top_k: number of most probable tokens kept, at least 0; 0: off.
        min_p: smallest probability kept, as a share of the most probable token's probability, in [0, 1]; 0: off.
        stop: stop strings. A response ends with the token that completes a stop string in the response's text, special
            tokens included. The whole token stays in the response, also text of the token after the stop string.

    Raises:
        ValueError: a value is out of range, or a stop string is empty; the message names the setting.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, ok, wanted in (
            ("temperature", 0.0 <= self.temperature < math.inf, "a number >= 0"),
            ("top_p", 0.0 < self.top_p <= 1.0, "a number in (0, 1]"),
            ("top_k", self.top_k >= 0, "a number >= 0"),
            ("min_p", 0.0 <= self.min_p <= 1.0, "a number in [0, 1]"),
            ("stop", all(self.stop) and not any("\ufffd" in text for text in self.stop), "texts, no empty text"),
        ):
            if not ok:
                raise ValueError(f"{name} {getattr(self, name)!r}: expected {wanted}")
        for text in self.stop:
            if WRITTEN_ESCAPES.fullmatch(text):
                raise ValueError(f"stop {text}: a backslash and a letter, no line break: write $'{text}' in the shell")

    @property
    def truncates(self) -> bool:
        """Return True if min-p, top-k or top-p removes tokens."""
        return bool(self.min_p or self.top_k or self.top_p < 1.0)


@dataclass(frozen=True)
class Request:
    """One continuation to sample.

    Attributes:
        prompt: token ids to continue (for a branch: the prompt and the kept part of the trunk).
        max_new_tokens: remaining token budget of this request, at least 1.
        seed: seed of the request's random draws, independent of the rest of the batch.
        response_tokens: number of last tokens of ``prompt`` that belong to the response: kept or sampled before. A stop
            string may begin in these tokens, never in the tokens before.
    """

    prompt: tuple[int, ...]
    max_new_tokens: int
    seed: int
    response_tokens: int = 0


@dataclass(frozen=True)
class Completion:
    """The sampled continuation of one :class:`Request`.

    Attributes:
        tokens: sampled token ids, with the end-of-sequence token or the token that completes a stop string when
            ``finish_reason`` is ``stop``.
        logprobs: log-probability of each token at the sampling temperature, before min-p, top-k and top-p, computed by
            the sampler; same length as ``tokens``.
        finish_reason: the reason for the end of the sample.
        by_stop_string: True if a stop string ended the response, so that the last token is text.
    """

    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish_reason: FinishReason
    by_stop_string: bool = False

    @property
    def ends_with_eos(self) -> bool:
        """Return True if the last token is an end-of-sequence token."""
        return self.finish_reason == "stop" and not self.by_stop_string


@dataclass(frozen=True)
class Response:
    """A finished response to be graded and rewarded.

    Attributes:
        problem: the problem.
        text: text of the response, special tokens included.
        tokens: token ids of the response.
        finish_reason: ``stop`` or ``length`` (the response was cut off).
        thinking: True if the rendered prompt ends inside of a ``<think>`` that the response has to close.
        plain_text: text of the response without special tokens; None: no special tokens in ``text``.
    """

    problem: Problem
    text: str
    tokens: tuple[int, ...] = ()
    finish_reason: FinishReason = "stop"
    thinking: bool = False
    plain_text: str | None = None

    @property
    def completion(self) -> str:
        """Return the text without special tokens, as TRL and verl pass the text to reward functions."""
        return self.text if self.plain_text is None else self.plain_text


@dataclass(frozen=True)
class Score:
    """Log-probs, entropy and influence of one response, from one forward of the policy.

    Attributes:
        logprobs: log-probability of each response token, length T.
        entropy: entropy in nats of the sampling distribution of each response token, length T.
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
        old_logprobs: log-probabilities under the policy that sampled each token, computed by the policy.
        sampler_logprobs: log-probabilities computed by the sampler.
        advantages: one advantage per token.
    """

    prompt: tuple[int, ...]
    response: tuple[int, ...]
    old_logprobs: tuple[float, ...]
    sampler_logprobs: tuple[float, ...]
    advantages: tuple[float, ...]


class Sampler(Protocol):
    """Samples completions from the current policy."""

    def generate(
        self,
        requests: Sequence[Request],
        *,
        on_completion: Callable[[int, Completion], None] | None = None,
        should_stop: Callable[[Collection[int]], bool] | None = None,
    ) -> list[Completion]:
        """Return one completion per request, in order. An empty batch returns an empty list.

        Args:
            requests: the requests.
            on_completion: called in this thread with the index and the completion of each finished request, while
                the remaining requests run.
            should_stop: called from time to time with the indices of the unfinished requests; True ends the call, and
                unfinished requests return their tokens so far with the finish reason ``unfinished``.
        """
        ...

    def sync(self) -> None:
        """Sample from the policy's current weights from now on."""
        ...


@dataclass(frozen=True)
class Grade:
    """The grade of one response: the reward to learn from, and the verdict. Reward and verdict are independent.

    Attributes:
        reward: any finite number; None: not judged, the response takes no part in values, baselines, filters and the
            update.
        verdict: the grader's verdict; ``correct`` decides :attr:`is_correct`.
        answer: the answer extracted from the response; None without an answer.
        rewards: the reward of each reward function by name, None where a function does not apply or failed, and the
            ``overlong_penalty`` (0 or negative) if set; empty without reward functions and penalty.
        fault: the reason why the response, or a part of the reward, is not judged; None without a fault.
    """

    reward: float | None
    verdict: Verdict
    answer: str | None = None
    rewards: Mapping[str, float | None] = field(default_factory=dict)
    fault: str | None = None

    @property
    def is_correct(self) -> bool:
        """Return True for the verdict ``correct``."""
        return self.verdict == "correct"


class Grader(Protocol):
    """Gives verdicts on the text of finished responses.

    A grade depends on the problem and the response only, not on the rest of the call.
    """

    @property
    def overlaps(self) -> bool:
        """Return True if ``grade`` may be called from a second thread, concurrently with sampling.

        Calls of ``grade`` never overlap. With False, ``grade`` is called once in the main thread, after sampling.
        """
        ...

    def grade(self, problems: Sequence[Problem], responses: Sequence[str]) -> list[Grade]:
        """Grade each response to its problem, in order."""
        ...


class Policy(Protocol):
    """The model that is trained: scores responses and takes optimizer steps."""

    def score(
        self,
        prompts: Sequence[Sequence[int]],
        responses: Sequence[Sequence[int]],
        steps: Sequence[Steps | None] | None = None,
    ) -> list[Score]:
        """Score responses under the current weights, with the influence of each response whose ``steps`` are given."""
        ...

    def update(self, rows: Sequence[TrainingRow]) -> Mapping[str, float]:
        """Take the optimizer steps of one training step and return its training metrics."""
        ...
