"""The sampler on verl: agent loops send requests to the rollout engines of the cluster.

Requests and completions pass through verl's TransferQueue, which reports each completion separately.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict
from typing import Any
from uuid import uuid4

import transfer_queue
from verl.utils import tensordict_utils

from attnrl.inference.stop_strings import StopStrings
from attnrl.types import Completion, Request, SamplingParams
from attnrl.verl.settings import NAME

PARTITION = "train"  # verl's agent loops write to this partition only (validation uses another)
POLL_SECONDS = 0.1


class VerlSampler:
    """Implements :class:`attnrl.types.Sampler` on verl's rollout engines.

    All samplers of a run share the rollout engines, and the engines share the GPUs with training: the engines wake up
    with the policy's current weights for each generation and sleep afterwards.
    """

    def __init__(
        self,
        trainer: Any,
        params: SamplingParams,
        eos_token_ids: Collection[int],
        decode: Callable[[Sequence[int]], str],
    ) -> None:
        """Use the rollout engines of ``trainer``, a :class:`verl.trainer.ppo.v1.PPOTrainer`.

        ``decode`` returns the text of token ids, special tokens included.
        """
        self.trainer = trainer
        self.params = params
        self.eos_token_ids = frozenset(eos_token_ids)
        self.stop_strings = StopStrings(params.stop, decode)

    def generate(
        self,
        requests: Sequence[Request],
        *,
        on_completion: Callable[[int, Completion], None] | None = None,
        should_stop: Callable[[Collection[int]], bool] | None = None,
    ) -> list[Completion]:
        """Sample as :meth:`attnrl.types.Sampler.generate`, always waiting for every request.

        ``should_stop`` is called as a heartbeat for the watchdog; the result is ignored.

        Raises:
            RuntimeError: a request failed; verl's log has the cause.
        """
        if not requests:
            return []
        manager = self.trainer.checkpoint_manager
        names = [uuid4().hex for _ in requests]
        try:
            manager.update_weights(self.trainer.global_steps)
            return self._generate(names, requests, on_completion, should_stop)
        except BaseException:
            # Unfinished requests would run on beside the retry, and engines with running requests do not sleep.
            manager.abort_replicas()
            manager.resume_generation_replicas()
            raise
        finally:
            manager.sleep_replicas()
            own_names = set(names)
            tags = transfer_queue.kv_list(PARTITION).get(PARTITION, {})
            written = [key for key in tags if key.partition("_")[0] in own_names]
            if written:
                transfer_queue.kv_clear(keys=written, partition_id=PARTITION)

    def sync(self) -> None:
        """Do nothing: the engines receive the weights when they wake up for a generation."""

    def _generate(
        self,
        names: Sequence[str],
        requests: Sequence[Request],
        on_completion: Callable[[int, Completion], None] | None,
        should_stop: Callable[[Collection[int]], bool] | None,
    ) -> list[Completion]:
        batch = tensordict_utils.get_tensordict(
            {
                "uid": list(names),
                "index": list(range(len(requests))),
                "prompt_ids": [list(request.prompt) for request in requests],
                "max_new_tokens": [request.max_new_tokens for request in requests],
                "seed": [request.seed for request in requests],
                "response_tokens": [request.response_tokens for request in requests],
                "sampling": [json.dumps(asdict(self.params))] * len(requests),
                "agent_name": [NAME] * len(requests),
                "__rollout_n__": [1] * len(requests),
            }
        )
        step = self.trainer.global_steps
        tensordict_utils.assign_non_tensor_data(batch, "global_steps", step)
        tags = [{"is_prompt": True, "status": "pending", "global_steps": step} for _ in requests]
        transfer_queue.kv_batch_put(keys=list(names), partition_id=PARTITION, tags=tags)
        self.trainer.agent_loop_manager.generate_sequences(batch)
        return self._collect(names, requests, on_completion, should_stop)

    def _collect(
        self,
        names: Sequence[str],
        requests: Sequence[Request],
        on_completion: Callable[[int, Completion], None] | None,
        should_stop: Callable[[Collection[int]], bool] | None,
    ) -> list[Completion]:
        unfinished = {name: index for index, name in enumerate(names)}
        completions: dict[int, Completion] = {}
        while unfinished:
            tags = transfer_queue.kv_list(PARTITION)[PARTITION]
            failed = [name for name in unfinished if tags[name]["status"] == "failure"]
            if failed:
                raise RuntimeError(f"{len(failed)} of {len(names)} requests failed: see the log of verl's workers")
            finished = [name for name in unfinished if tags[name]["status"] == "finished"]
            if finished:
                data = transfer_queue.kv_batch_get(
                    keys=[f"{name}_0_0" for name in finished],
                    partition_id=PARTITION,
                    select_fields=["responses", "rollout_log_probs"],
                )
                rows = zip(finished, data["responses"].unbind(), data["rollout_log_probs"].unbind(), strict=True)
                for name, tokens, logprobs in rows:
                    index = unfinished.pop(name)
                    completions[index] = self._completion(requests[index], tokens.tolist(), logprobs.tolist())
                    if on_completion is not None:
                        on_completion(index, completions[index])
                if should_stop is not None:
                    should_stop(unfinished.values())
            else:
                time.sleep(POLL_SECONDS)
        return [completions[index] for index in range(len(names))]

    def _completion(self, request: Request, tokens: Sequence[int], logprobs: Sequence[float]) -> Completion:
        """Return the completion, cut after the token that completes a stop string: not every engine stops there."""
        end = self.stop_strings.end(self.stop_strings.kept(request.prompt, request.response_tokens), (), tokens)
        tokens, logprobs = tokens[:end], logprobs[:end]
        by_eos = bool(tokens) and tokens[-1] in self.eos_token_ids
        stopped = by_eos or end is not None
        return Completion(tuple(tokens), tuple(logprobs), "stop" if stopped else "length", stopped and not by_eos)
