"""What is done to the model inside a vLLM engine; vLLM calls it with its worker."""

from __future__ import annotations

from typing import Any

from torch import Tensor


def set_temperature(worker: Any, temperature: float) -> None:
    """Have the engine's model give ``logits / temperature`` (fp32) instead of its logits; 0 and 1 leave them alone.

    vLLM reports log-probs either before the temperature (``raw_logprobs``) or after temperature and top-p
    (``processed_logprobs``). Logits that have the temperature already make the raw ones what a
    :class:`attnrl.types.Completion` holds. Sampling then is at temperature 1.
    """
    model = worker.model_runner.get_model()
    vars(model).pop("compute_logits", None)  # back to the class's own
    if temperature in (0.0, 1.0):
        return
    compute = model.compute_logits

    def tempered(*args: Any, **kwargs: Any) -> Tensor | None:
        logits: Tensor | None = compute(*args, **kwargs)
        return None if logits is None else logits.float() / temperature

    model.compute_logits = tempered
