"""The sampler of the loop: verl's agent loops, which ask the rollout engines of the cluster.

Requests and completions travel by TransferQueue, as verl's own do, so that completions are heard of one by one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from typing import Any
from uuid import uuid4

import transfer_queue
from verl.utils import tensordict_utils

from attnrl.types import Completion, Request
from attnrl.verl.settings import NAME

PARTITION = "train"  # the only one that verl's agent loops write to, beside that of its own validation
POLL_SECONDS = 0.1


class VerlSampler:
    """``generate`` and ``sync`` of :class:`attnrl.types.Sampler`.

    The engines of all samplers of a run are the same, and share GPUs with training: they wake up with the policy's
    weights when there is something to sample, and sleep otherwise.
    """

    def __init__(self, trainer: Any, eos_token_ids: Collection[int], temperature: float, top_p: float) -> None:
        """Use the engines of a :class:`verl.trainer.ppo.v1.PPOTrainer`."""
        self.trainer = trainer
        self.eos_token_ids = frozenset(eos_token_ids)
        self.temperature = temperature
        self.top_p = top_p

    def generate(
        self,
        requests: Sequence[Request],
        *,
        on_completion: Callable[[int, Completion], None] | None = None,
        should_stop: Callable[[Collection[int]], bool] | None = None,
    ) -> list[Completion]:
        """See :meth:`attnrl.types.Sampler.generate`; it always waits for all; ``should_stop`` only hears of life.

        Raises:
            RuntimeError: a request has failed; why is in verl's log.
        """
        if not requests:
            return []
        manager = self.trainer.checkpoint_manager
        names = [uuid4().hex for _ in requests]
        try:
            manager.update_weights(self.trainer.global_steps)
            return self._generate(names, requests, on_completion, should_stop)
        except BaseException:
            # What is left of it would go on beside the next try, and the engines sleep only when nothing runs.
            manager.abort_replicas()
            manager.resume_generation_replicas()
            raise
        finally:
            manager.sleep_replicas()
            ours = set(names)
            tags = transfer_queue.kv_list(PARTITION).get(PARTITION, {})
            written = [key for key in tags if key.partition("_")[0] in ours]
            if written:
                transfer_queue.kv_clear(keys=written, partition_id=PARTITION)

    def sync(self) -> None:
        """Nothing to do: the engines get the weights when they wake up."""

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
                "temperature": [self.temperature] * len(requests),
                "top_p": [self.top_p] * len(requests),
                "agent_name": [NAME] * len(requests),
                "__rollout_n__": [1] * len(requests),
            }
        )
        step = self.trainer.global_steps
        tensordict_utils.assign_non_tensor_data(batch, "global_steps", step)
        tags = [{"is_prompt": True, "status": "pending", "global_steps": step} for _ in requests]
        transfer_queue.kv_batch_put(keys=list(names), partition_id=PARTITION, tags=tags)
        self.trainer.agent_loop_manager.generate_sequences(batch)
        return self._collect(names, on_completion, should_stop)

    def _collect(
        self,
        names: Sequence[str],
        on_completion: Callable[[int, Completion], None] | None,
        should_stop: Callable[[Collection[int]], bool] | None,
    ) -> list[Completion]:
        unfinished = {name: index for index, name in enumerate(names)}
        completions: dict[int, Completion] = {}
        while unfinished:
            tags = transfer_queue.kv_list(PARTITION)[PARTITION]
            failed = [name for name in unfinished if tags[name]["status"] == "failure"]
            if failed:
                raise RuntimeError(f"{len(failed)} of {len(names)} requests have failed: see the log of verl's workers")
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
                    completions[index] = self._completion(tokens.tolist(), logprobs.tolist())
                    if on_completion is not None:
                        on_completion(index, completions[index])
                if should_stop is not None:
                    should_stop(unfinished.values())
            else:
                time.sleep(POLL_SECONDS)
        return [completions[index] for index in range(len(names))]

    def _completion(self, tokens: Sequence[int], logprobs: Sequence[float]) -> Completion:
        ended = bool(tokens) and tokens[-1] in self.eos_token_ids
        return Completion(tuple(tokens), tuple(logprobs), "stop" if ended else "length")
