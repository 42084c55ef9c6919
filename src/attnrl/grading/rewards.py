"""Rewards of finished responses: the verdict of the grader, and the reward that the loop learns from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Self

from attnrl.config.reward import RewardConfig
from attnrl.errors import GraderError, UserError
from attnrl.grading.answers import extract_boxed, without_unfinished_thought
from attnrl.grading.base import ClosableGrader
from attnrl.grading.calls import FunctionCaller
from attnrl.grading.custom import FunctionGrader, ObjectGrader, grade_of_value
from attnrl.grading.functions import CallContext, Fault, RewardFunction, Value, distinct_names, finite_value
from attnrl.grading.golds import UnusableGold
from attnrl.grading.not_judged import frequent_reasons
from attnrl.method.steps import THINK_END
from attnrl.types import Grade, Grader, Problem, Response
from attnrl.utils.plugins import import_object

MAX_KNOWN = 1_000  # distinct reasons counted in a session
SETTING = "reward.functions"
OVERLONG = "overlong_penalty"  # name of the penalty among the rewards of a grade


class RewardManager:
    """Computes the grades of finished responses; a context manager that closes the grader on exit.

    The grader gives the verdict, and the reward without ``reward.functions``; with reward functions, the reward is the
    weighted sum of the functions that do not return None. Without a grader, a reward of at least
    ``reward.correct_from`` is correct. Truncation and the overlong penalty change the reward, never the verdict.

    A fault of a reward function or of the grader never raises: the response has no reward (None), and the reasons are
    counted for :meth:`require_few_faults`. One function that fails leaves the whole response without a reward, because
    the sum of the remaining functions is another reward; and so does the grader, because filters read the verdict.
    """

    def __init__(
        self,
        grader: Grader | None,
        settings: RewardConfig | None = None,
        *,
        max_new_tokens: int = 0,
        max_steps: int = 0,
        think_end: str = THINK_END,
    ) -> None:
        """Import the reward functions.

        Args:
            grader: gives the verdicts; None: the reward decides.
            settings: the settings ``reward``; None: the defaults.
            max_new_tokens: longest response, in tokens, for the overlong penalty.
            max_steps: training steps of the run, for reward functions (TRL's ``trainer_state.max_steps``).
            think_end: mark of the end of a thought.

        Raises:
            UserError: a reward function cannot be imported or has another signature.
        """
        self.grader = grader
        self.settings = settings or RewardConfig()
        self.max_new_tokens = max_new_tokens
        self.max_steps = max_steps
        self.think_end = think_end
        names = self.settings.functions
        self.functions = [RewardFunction(one, import_object(one, SETTING), SETTING) for one in names]
        self.names = distinct_names(self.functions)
        self.weights = self.settings.weights or (1.0,) * len(self.functions)
        self._caller = FunctionCaller(self.settings.timeout, self.settings.concurrency)
        self._has_graded = False
        self._graded = 0
        self._faults: Counter[str] = Counter()
        self._metrics: dict[str, list[float]] = {}

    @property
    def overlaps(self) -> bool:
        """True if :meth:`grade` may be called from a second thread, concurrently with sampling."""
        grader_overlaps = self.grader is None or self.grader.overlaps
        return grader_overlaps and all(function.overlaps for function in self.functions)

    @property
    def compares_answers(self) -> bool:
        """True if the grader needs the true answers of the problems."""
        return isinstance(self.grader, ClosableGrader) and self.grader.compares_answers

    def grade(self, responses: Sequence[Response], *, step: int) -> list[Grade]:
        """Return one grade per response, in order.

        Args:
            responses: finished responses.
            step: number of training steps done (TRL's ``trainer_state.global_step``).

        Raises:
            UserError: the first call, if no worker process of the grader can be started.
        """
        values = self._caller.call(self._called, responses, CallContext(step, self.max_steps, self._log_metric))
        judged = self._judged(responses, values)
        grades = [
            self._grade(response, grade, [of_function[row] for of_function in values[: len(self.functions)]])
            for row, (response, grade) in enumerate(zip(responses, judged, strict=True))
        ]
        self._has_graded = self._has_graded or bool(grades)
        self._graded += len(grades)
        for grade in grades:
            if grade.fault is not None:
                self._count(grade.fault)
        return grades

    def _count(self, fault: str) -> None:
        """Count a fault; new faults share one name once many are known (messages with an id would fill the memory)."""
        known = fault in self._faults or len(self._faults) < MAX_KNOWN
        self._faults[fault if known else "other reasons"] += 1

    def require_few_faults(self, limit: float) -> None:
        """Check that at most the share ``limit`` of all responses graded so far had a fault.

        Raises:
            GraderError: with the number of responses with a fault and the most frequent reasons.
        """
        faults = self._faults.total()
        if faults > limit * self._graded:
            above = f" ({faults / self._graded:.1%}, more than reward.max_not_judged={limit:g})" if limit else ""
            raise GraderError(
                f"{faults:,} of {self._graded:,} responses were not judged{above}: {frequent_reasons(self._faults)}"
            )

    @property
    def _called(self) -> list[RewardFunction]:
        """Return the functions to call: the reward functions, and at the end a function that is the grader."""
        return [*self.functions, *([self.grader.function] if isinstance(self.grader, FunctionGrader) else [])]

    def _judged(self, responses: Sequence[Response], values: Sequence[Sequence[Value]]) -> list[Grade | None]:
        """Return the grade of the grader for each response; None without a grader."""
        texts = [self._text(response) for response in responses]
        if self.grader is None:
            return [None] * len(responses)
        if isinstance(self.grader, FunctionGrader):
            name = self.grader.function.name
            return [
                grade_of_value(value, extract_boxed(text), self.settings.correct_from, name)
                for value, text in zip(values[-1], texts, strict=True)
            ]
        try:
            return list(self.grader.grade([one.problem for one in responses], texts))
        except UserError as error:  # the workers cannot start: a fault of the machine
            if not self._has_graded:
                raise
            return [Grade(None, "not_judged", fault=f"grader: {error}")] * len(responses)

    def _text(self, response: Response) -> str:
        """Return the text that the grader reads: a grader that compares answers reads no unfinished thought."""
        if self.settings.while_thinking or not self.compares_answers:
            return response.text
        return without_unfinished_thought(response.text, thinking=response.thinking, think_end=self.think_end)

    def _grade(self, response: Response, judged: Grade | None, values: Sequence[Value]) -> Grade:
        """Return the grade of one response from the grade of the grader and the values of the reward functions."""
        if self.functions:
            reward, fault = self._weighted_sum(values)
            judged = judged or self._by_reward(reward, response)
            faults = [one for one in (fault, judged.fault) if one is not None]
            rewards = {
                name: None if isinstance(value, Fault) else value
                for name, value in zip(self.names, values, strict=True)
            }
            reward = None if faults else reward
            judged = replace(judged, reward=reward, rewards=rewards, fault="; ".join(faults) or None)
        assert judged is not None  # without reward functions there is a grader
        return self._shaped(judged, response)

    def _weighted_sum(self, values: Sequence[Value]) -> tuple[float | None, str | None]:
        """Return the weighted sum of the values that are not None, and the reason if a function has failed."""
        faults = [
            f"{name}: {value.reason}"
            for name, value in zip(self.names, values, strict=True)
            if isinstance(value, Fault)
        ]
        if faults:
            return None, "; ".join(faults)
        parts = [weight * value for weight, value in zip(self.weights, values, strict=True) if isinstance(value, float)]
        total = finite_value(sum(parts)) if parts else None
        if isinstance(total, Fault):
            return None, f"weighted sum: {total.reason.removeprefix('returned ')}"
        return total, None

    def _by_reward(self, reward: float | None, response: Response) -> Grade:
        """Return the grade of a response without a grader: a reward of at least ``reward.correct_from`` is correct."""
        answer = extract_boxed(response.text)
        if reward is None:
            return Grade(None, "not_judged", answer)
        return Grade(reward, "correct" if reward >= self.settings.correct_from else "wrong", answer)

    def _shaped(self, grade: Grade, response: Response) -> Grade:
        """Return the grade with the rules on length applied to the reward: truncation, then the overlong penalty."""
        if grade.reward is None:
            return grade
        reward, rewards = grade.reward, dict(grade.rewards)
        if self.settings.truncated == "zero" and response.finish_reason == "length":
            reward = 0.0
        if self.settings.overlong_buffer:
            length = len(response.tokens)
            penalty = soft_overlong_penalty(length, self.max_new_tokens, self.settings.overlong_buffer)
            penalty *= self.settings.overlong_penalty
            rewards[OVERLONG] = penalty
            reward += penalty
        return replace(grade, reward=reward, rewards=rewards)

    def probe(self, problems: Sequence[Problem]) -> None:
        """Call the user's functions on a dummy response to the first problem, before the first token is sampled.

        The dummy response is the boxed true answer, or empty without a true answer. Only functions and graders of the
        user are called.

        Args:
            problems: training problems; a column that only some of the problems have is known.

        Raises:
            UserError: a function requires a column that no problem has, raises an exception, exceeds the time limit,
                or returns anything but finite numbers and None; names function, exception, file and line.
        """
        if not problems:
            return
        for function in self._called:
            if missing := function.missing_columns(problems):
                raise UserError(f"{function.label} {missing}")
        answers = problems[0].answers
        text = f"\\boxed{{{answers[0]}}}" if answers else ""
        dummy = Response(problems[0], text, tokens=(0,))
        called = self._caller.call(self._called, [dummy], CallContext(0, self.max_steps))
        for function, values in zip(self._called, called, strict=True):
            if isinstance(values[0], Fault):
                raise UserError(f"{function.label}, called on the response {text[:60]!r}: {values[0].reason}")
        if isinstance(self.grader, ObjectGrader) and (fault := self.grader.grade([dummy.problem], [text])[0].fault):
            raise UserError(f"grader, called on the response {text[:60]!r}: {fault}")

    def take_metrics(self) -> dict[str, float]:
        """Return the metrics logged by reward functions since the last call (TRL's ``log_metric``), each a mean.

        The names begin with ``reward/logged/``, so that no metric of a step is replaced.
        """
        metrics, self._metrics = self._metrics, {}
        # sum, because fmean raises on inf and on huge values; a mean that is not finite is left out of the records
        return {f"reward/logged/{name}": sum(values) / len(values) for name, values in metrics.items()}

    def _log_metric(self, name: str, value: float) -> None:
        number = float(value)
        self._metrics.setdefault(str(name), []).append(number)

    def unusable_golds(self, problems: Sequence[Problem]) -> list[UnusableGold]:
        """Return the problems without a true answer usable by the grader."""
        return self.grader.unusable_golds(problems) if isinstance(self.grader, ClosableGrader) else []

    def close(self) -> None:
        """End the processes of the grader and the event loop of async functions."""
        self._caller.close()
        if isinstance(self.grader, ClosableGrader):
            self.grader.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def soft_overlong_penalty(length: int, longest: int, buffer: int) -> float:
    """Return the soft overlong penalty of a response (DAPO eq. 13), from 0 to -1.

    0 for ``length`` <= ``longest`` - ``buffer``, linear in between, -1 from ``longest`` on; all in tokens.
    """
    excess = max(0, length - (longest - buffer))
    return -min(excess, buffer) / buffer
