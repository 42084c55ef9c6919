"""Functions that vLLM runs in the engine's worker."""

from __future__ import annotations

from typing import Any

from torch import Tensor


def set_temperature(worker: Any, temperature: float) -> None:
    """Make the engine's model return ``logits / temperature`` in fp32; temperatures 0 and 1 leave the logits unchanged.

    vLLM reports log-probs either before temperature scaling (``raw_logprobs``) or after temperature scaling and top-p
    (``processed_logprobs``). A :class:`attnrl.types.Completion` needs log-probs after temperature scaling and before
    top-p: the raw log-probs of scaled logits. vLLM then samples at temperature 1.
    """
    model = worker.model_runner.get_model()
    vars(model).pop("compute_logits", None)  # restore the method of the class
    if temperature in (0.0, 1.0):
        return
    compute = model.compute_logits

    def scaled(*args: Any, **kwargs: Any) -> Tensor | None:
        logits: Tensor | None = compute(*args, **kwargs)
        return None if logits is None else logits.float() / temperature

    model.compute_logits = scaled
