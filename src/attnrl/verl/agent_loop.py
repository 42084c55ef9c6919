"""The agent loop of the sampler: from any token on, with a budget of its own.

verl's own loops begin at a problem's messages. Ours takes the token ids that are to be continued: a prompt, or a prompt
with the part of a trunk that a branch keeps.
"""

from __future__ import annotations

from typing import Any
from uuid import uuid4

from verl.experimental.agent_loop.agent_loop import AgentLoopBase, AgentLoopMetrics, AgentLoopOutput, register

from attnrl.verl.settings import NAME

SEEDED = ("vllm", "transformers")  # rollouts in which each request has a seed of its own


@register(NAME)
class ContinuationLoop(AgentLoopBase):  # type: ignore[misc]
    """See the module."""

    def __init__(self, trainer_config: Any, server_manager: Any, **_: Any) -> None:
        """Keep what it needs; verl's own loops also build a tokenizer of chats, for each request."""
        self.rollout_config = trainer_config.config.actor_rollout_ref.rollout
        self.server_manager = server_manager

    async def run(self, sampling_params: dict[str, Any], **request: Any) -> AgentLoopOutput:
        """Sample one continuation.

        Args:
            sampling_params: verl's own; ours replace what they name.
            request: ``prompt_ids``, ``max_new_tokens``, ``seed``, ``temperature``, ``top_p``.
        """
        parameters = {
            **sampling_params,
            "temperature": request["temperature"],
            "top_p": request["top_p"],
        }
        name = self.rollout_config.name
        parameters["max_new_tokens" if name == "sglang" else "max_tokens"] = request["max_new_tokens"]
        if name in SEEDED:
            parameters["seed"] = request["seed"]
        output = await self.server_manager.generate(
            request_id=uuid4().hex, prompt_ids=list(request["prompt_ids"]), sampling_params=parameters
        )
        return AgentLoopOutput(
            prompt_ids=list(request["prompt_ids"]),
            response_ids=output.token_ids,
            response_mask=[1] * len(output.token_ids),
            response_logprobs=output.log_probs,
            reward_score=0.0,  # graded by the loop, which knows the whole response of a branch
            num_turns=2,
            metrics=AgentLoopMetrics(),
            extra_fields={**output.extra_fields, "stop_reason": output.stop_reason},
        )
