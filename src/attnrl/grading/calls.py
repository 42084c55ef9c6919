"""Calls of reward functions under a time limit: plain functions one after another, async functions concurrently.

A fault of a function never raises: the responses without a value get a :class:`Fault`. After an exception in a call for
several responses, the function is called again response by response, for at most the time limit of one call altogether
(plain functions), and only the responses that raise again are not judged.
"""

from __future__ import annotations

import asyncio
import inspect
import signal
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass
from typing import Any

from attnrl.grading.functions import CallContext, Fault, RewardFunction, Value
from attnrl.types import Response
from attnrl.utils.deadline import DeadlineError, deadline

GRACE = 5.0  # seconds beyond the time limits, before an event loop counts as blocked


@dataclass(frozen=True)
class _Returned:
    """The result of a call that raised nothing."""

    result: Any


class FunctionCaller:
    """Calls reward functions; owns the event loop of async functions, in a thread of its own.

    One event loop serves all calls, so that clients of an async function stay connected between calls.

    Args:
        timeout: time limit of one call, in seconds; None: no limit.
        concurrency: async calls that run at the same time.
    """

    def __init__(self, timeout: float | None, concurrency: int) -> None:
        self.timeout = timeout
        self.concurrency = concurrency
        self._loop: asyncio.AbstractEventLoop | None = None
        self._slots = asyncio.Semaphore(concurrency)

    def call(
        self, functions: Sequence[RewardFunction], responses: Sequence[Response], context: CallContext
    ) -> list[list[Value]]:
        """Return the values of each function, one per response. Async functions run beside the plain functions."""
        if not responses:
            return [[] for _ in functions]
        problems = [one.problem for one in responses]
        values: dict[int, list[Value]] = {
            index: [Fault(missing)] * len(responses)
            for index, function in enumerate(functions)
            if (missing := function.missing_columns(problems)) is not None
        }
        running = {
            index: self._submit(self._async_values(function, responses, context))
            for index, function in enumerate(functions)
            if function.is_async and index not in values
        }
        try:
            for index, function in enumerate(functions):
                if index not in values and index not in running:
                    values[index] = self._plain_values(function, responses, context)
            values |= {index: self._wait(future, len(responses)) for index, future in running.items()}
        finally:
            for future in running.values():
                future.cancel()  # no effect on a finished call
        return [values[index] for index in range(len(functions))]

    def close(self) -> None:
        """End the event loop. A later call starts a new event loop."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._loop = None

    def _plain_values(
        self, function: RewardFunction, responses: Sequence[Response], context: CallContext
    ) -> list[Value]:
        if function.per_response:
            calls = (self._plain_call(function, function.response_arguments(one), self.timeout) for one in responses)
            return [_response_value(function, outcome) for outcome in calls]
        whole = self._plain_call(function, function.arguments(responses, context), self.timeout)
        if isinstance(whole, _Returned) or not whole.raised or len(responses) == 1:
            return _values(function, whole, len(responses))
        end = None if self.timeout is None else time.monotonic() + self.timeout
        values: list[Value] = []
        for one in responses:
            left = None if end is None else end - time.monotonic()
            if left is not None and left <= 0:
                values.append(self._late())
            else:
                values += _values(function, self._plain_call(function, function.arguments([one], context), left), 1)
        return values

    def _plain_call(
        self, function: RewardFunction, arguments: Mapping[str, Any], timeout: float | None
    ) -> _Returned | Fault:
        """Call a plain function within ``timeout`` seconds.

        In the main thread a timer interrupts the function. In another thread the function runs in a thread of its own,
        and after the time limit the call is given up: the thread goes on until the function returns.
        """
        try:
            if timeout is None:
                result = function.function(**arguments)
            elif threading.current_thread() is threading.main_thread() and hasattr(signal, "setitimer"):
                with deadline(timeout):
                    result = function.function(**arguments)
            else:
                result = _call_in_thread(function.function, arguments, timeout)
            if inspect.iscoroutine(result):  # a plain function around an async function
                outcome: _Returned | Fault = self._submit(self._async_call(function, lambda: result)).result()
                return outcome
            return _Returned(result)
        except DeadlineError:
            return self._late()
        except (Exception, SystemExit) as error:
            return function.fault(error)

    async def _async_values(
        self, function: RewardFunction, responses: Sequence[Response], context: CallContext
    ) -> list[Value]:
        def start(arguments: Mapping[str, Any]) -> Coroutine[Any, Any, _Returned | Fault]:
            return self._async_call(function, lambda: function.function(**arguments))

        if function.per_response:
            calls = await asyncio.gather(*(start(function.response_arguments(one)) for one in responses))
            return [_response_value(function, outcome) for outcome in calls]
        whole = await start(function.arguments(responses, context))
        if isinstance(whole, _Returned) or not whole.raised or len(responses) == 1:
            return _values(function, whole, len(responses))
        calls = await asyncio.gather(*(start(function.arguments([one], context)) for one in responses))
        return [value for outcome in calls for value in _values(function, outcome, 1)]

    async def _async_call(self, function: RewardFunction, start: Callable[[], Awaitable[Any]]) -> _Returned | Fault:
        """Await the coroutine that ``start`` returns, within the time limit, among at most ``concurrency`` calls."""
        async with self._slots:
            scope = asyncio.timeout(self.timeout)
            try:
                async with scope:
                    return _Returned(await start())
            except (Exception, SystemExit) as error:
                return self._late() if scope.expired() else function.fault(error)

    def _submit(self, coroutine: Coroutine[Any, Any, Any]) -> Future[Any]:
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            self._slots = asyncio.Semaphore(self.concurrency)
            threading.Thread(target=_serve, args=(self._loop,), name="reward functions", daemon=True).start()
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def _wait(self, future: Future[list[Value]], count: int) -> list[Value]:
        """Return the values of an async function; if the function blocks the event loop, give up the event loop."""
        rounds = 1 + -(-count // self.concurrency)
        try:
            return future.result(None if self.timeout is None else rounds * self.timeout + GRACE)
        except TimeoutError:
            self.close()
            return [Fault(f"{self._late().reason}, and the function blocks the event loop")] * count
        except CancelledError:
            return [Fault("the async call was cancelled")] * count

    def _late(self) -> Fault:
        return Fault(f"no result within {self.timeout:g} s (reward.timeout)")


def _values(function: RewardFunction, outcome: _Returned | Fault, count: int) -> list[Value]:
    return function.values(outcome.result, count) if isinstance(outcome, _Returned) else [outcome] * count


def _response_value(function: RewardFunction, outcome: _Returned | Fault) -> Value:
    return function.response_value(outcome.result) if isinstance(outcome, _Returned) else outcome


def _call_in_thread(function: Callable[..., Any], arguments: Mapping[str, Any], timeout: float) -> Any:
    """Call a function in a daemon thread and return the result.

    Raises:
        DeadlineError: no result within ``timeout`` seconds.
        BaseException: the exception of the function.
    """
    future: Future[Any] = Future()

    def work() -> None:
        try:
            future.set_result(function(**arguments))
        except BaseException as error:
            future.set_exception(error)

    thread = threading.Thread(target=work, name="reward function", daemon=True)
    thread.start()
    thread.join(timeout)
    if thread.is_alive():
        raise DeadlineError
    return future.result()


def _serve(loop: asyncio.AbstractEventLoop) -> None:
    """Run the event loop until stopped, then cancel the calls that are left."""
    asyncio.set_event_loop(loop)
    try:
        loop.run_forever()
    finally:
        tasks = asyncio.all_tasks(loop)
        for task in tasks:
            task.cancel()
        loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()
