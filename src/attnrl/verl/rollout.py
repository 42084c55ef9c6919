"""verl rollout that samples with transformers on a CPU (``rollout.name=transformers``), for tests and trials.

Each replica is a Ray actor with the whole model. The actor collects requests and decodes them in batches with the local
engine's sampler. On GPUs use vLLM or SGLang.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Generator
from pathlib import Path
from typing import Any

import ray
import torch
from torch import Tensor
from verl.workers.rollout.base import BaseRollout
from verl.workers.rollout.replica import RolloutReplica, TokenOutput

from attnrl.inference.sampler import build_sampler
from attnrl.local.loading import load_model
from attnrl.types import Completion, Request, SamplingParams

NAME = "transformers"
BATCHING_SECONDS = 0.05  # a batch is complete after this time without a new request


def _server_name(replica: int) -> str:
    return f"{NAME}_server_{replica}"


class Server:
    """The Ray actor of one replica."""

    def __init__(self, model_config: Any, max_batch: int) -> None:
        """Load the model from verl's local path."""
        self.tokenizer = model_config.tokenizer
        self.model = load_model(
            Path(model_config.local_path),
            self.tokenizer,
            device=torch.device("cpu"),
            dtype="float32",
            trust_remote_code=model_config.trust_remote_code,
        ).model
        self.max_batch = max_batch
        self.version: int | None = None
        self.waiting: list[tuple[Request, SamplingParams, asyncio.Future[Completion]]] = []
        self.decoding: asyncio.Task[None] | None = None

    async def generate(
        self, request_id: str, prompt_ids: list[int], sampling_params: dict[str, Any], **_: Any
    ) -> TokenOutput:
        """Sample one completion.

        Raises:
            Exception: raised by the sampler.
        """
        request = Request(
            tuple(prompt_ids),
            sampling_params["max_tokens"],
            sampling_params["seed"],
            sampling_params["response_tokens"],
        )
        values = json.loads(sampling_params["sampling"])
        params = SamplingParams(**{**values, "stop": tuple(values["stop"])})
        future: asyncio.Future[Completion] = asyncio.get_running_loop().create_future()
        self.waiting.append((request, params, future))
        if self.decoding is None or self.decoding.done():
            self.decoding = asyncio.create_task(self._decode())
        done = await future
        return TokenOutput(
            token_ids=list(done.tokens),
            log_probs=list(done.logprobs),
            stop_reason="completed",
            extra_fields={"global_steps": self.version},
        )

    async def _decode(self) -> None:
        while self.waiting:
            received = 0
            while received < len(self.waiting):
                received = len(self.waiting)
                await asyncio.sleep(BATCHING_SECONDS)
            params = self.waiting[0][1]
            batch = [entry for entry in self.waiting if entry[1] == params]
            self.waiting = [entry for entry in self.waiting if entry[1] != params]
            sampler = build_sampler(self.model, self.tokenizer, params, max_batch=self.max_batch)
            try:
                completions = await asyncio.to_thread(sampler.generate, [request for request, *_ in batch])
            except Exception as error:
                for *_, future in batch:
                    future.set_exception(error)
                continue
            for (*_, future), completion in zip(batch, completions, strict=True):
                future.set_result(completion)

    async def load_weights(self, weights: dict[str, Tensor], version: int | None) -> None:
        """Replace the weights; later batches sample from ``weights``."""
        self.model.load_state_dict(weights, strict=False)
        self.version = version

    async def abort_all_requests(self, reject_request: bool = False) -> None:
        """Cancel the waiting requests; a batch in decoding runs to the end."""
        for *_, future in self.waiting:
            future.cancel()
        self.waiting = []

    async def no_op(self) -> None:
        """Do nothing: on a CPU the server shares no device memory with training."""

    wake_up = sleep = resume_generation = no_op


class Replica(RolloutReplica):  # type: ignore[misc]
    """A rollout replica with one :class:`Server`."""

    async def launch_servers(self) -> None:
        """Start the actor and wait until the model is loaded."""
        server = (
            ray.remote(Server)
            .options(name=_server_name(self.replica_rank), num_cpus=0, max_concurrency=self.max_concurrency)
            .remote(_model_config(self.model_config), self.config.max_num_seqs)
        )
        await server.no_op.remote()
        self.servers = [server]
        self._server_handle = server
        self._server_address = _server_name(self.replica_rank)


def _model_config(config: Any) -> Any:
    from verl.utils.config import omega_conf_to_dataclass

    return omega_conf_to_dataclass(config)


class ServerAdapter(BaseRollout):  # type: ignore[misc]
    """The training worker's side of the rollout: sends the weights to the replica."""

    async def resume(self, tags: list[str]) -> None:
        """Do nothing: :meth:`release` frees nothing."""

    async def release(self) -> None:
        """Do nothing: the replica has no device memory."""

    async def update_weights(
        self, weights: Generator[tuple[str, Tensor], None, None], global_steps: int | None = None, **_: Any
    ) -> None:
        """Gather the full weights (a collective of all workers) and send the weights to this worker's replica."""
        gathered = {name: weight.detach().float().cpu().clone() for name, weight in weights}
        server = ray.get_actor(_server_name(torch.distributed.get_rank()))
        await server.load_weights.remote(gathered, global_steps)
