"""verl agent loop for continuations: samples from any token prefix, with a token budget and a seed per request.

verl's own agent loops start from chat messages. This agent loop starts from token ids: a prompt, or a prompt followed
by the trunk tokens before a branch point.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any
from uuid import uuid4

from verl.experimental.agent_loop.agent_loop import AgentLoopBase, AgentLoopMetrics, AgentLoopOutput, register

from attnrl.verl.settings import NAME

SEEDED = ("vllm", "transformers")  # rollout engines with a seed per request


def engine_parameters(engine: str, request: Mapping[str, Any]) -> dict[str, Any]:
    """Return the sampling parameters of a request under the names of the rollout engine.

    Only vLLM and the transformers rollout search stop strings while sampling; the sampler cuts the responses of the
    remaining engines (:class:`attnrl.verl.sampler.VerlSampler`).
    """
    params = json.loads(request["sampling"])
    parameters = {
        "temperature": params["temperature"],
        "top_p": params["top_p"],
        "top_k": params["top_k"] or -1,  # the engines' value for no limit
        "min_p": params["min_p"],
        "max_new_tokens" if engine == "sglang" else "max_tokens": request["max_new_tokens"],
    }
    if engine in SEEDED:
        parameters["seed"] = request["seed"]
    if engine == "transformers":
        parameters |= {"sampling": request["sampling"], "response_tokens": request["response_tokens"]}
    elif engine == "vllm" and params["stop"]:
        parameters |= {"stop": params["stop"], "include_stop_str_in_output": True, "skip_special_tokens": False}
    return parameters


@register(NAME)
class ContinuationLoop(AgentLoopBase):  # type: ignore[misc]
    """Samples one continuation per request."""

    def __init__(self, trainer_config: Any, server_manager: Any, **_: Any) -> None:
        """Skip verl's initialisation, which builds a chat tokenizer for every request."""
        self.rollout_config = trainer_config.config.actor_rollout_ref.rollout
        self.server_manager = server_manager

    async def run(self, sampling_params: dict[str, Any], **request: Any) -> AgentLoopOutput:
        """Sample one continuation.

        Args:
            sampling_params: verl's sampling parameters; the request's parameters take precedence.
            request: ``prompt_ids``, ``max_new_tokens``, ``seed``, ``response_tokens`` and ``sampling``
                (:class:`attnrl.types.SamplingParams` as JSON).
        """
        parameters = {**sampling_params, **engine_parameters(self.rollout_config.name, request)}
        output = await self.server_manager.generate(
            request_id=uuid4().hex, prompt_ids=list(request["prompt_ids"]), sampling_params=parameters
        )
        return AgentLoopOutput(
            prompt_ids=list(request["prompt_ids"]),
            response_ids=output.token_ids,
            response_mask=[1] * len(output.token_ids),
            response_logprobs=output.log_probs,
            reward_score=0.0,  # the training loop grades the whole response: trunk prefix and continuation
            num_turns=2,
            metrics=AgentLoopMetrics(),
            extra_fields={**output.extra_fields, "stop_reason": output.stop_reason},
        )
