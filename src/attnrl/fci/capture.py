"""Capture forward context influence during an ordinary forward of any transformers decoder.

transformers lets a model's attention function be chosen by name. :data:`ATTENTION` names one that calls the
stock sdpa function, and, while a :func:`capture` is open, also adds up the layer's influence from the very
queries and keys that sdpa was given. No model file is patched, and outside a capture the function is sdpa, to
the bit and with its gradients, so a policy can keep it set for training too::

    enable(model)
    with capture(CaptureSpec(step_starts=[[5, 9, 14], [3]], lengths=[20, 11])) as captured:
        logits = model(input_ids, use_cache=False).logits
    influence_LHS = captured.influence()[0]

Rows are padded on the right. Their attention mask may be given or left out: a causal layer shows no padding
to the tokens before it, and without a mask sdpa takes its faster path.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from attnrl.fci.columns import StepLayout, column_sums, step_means, visible_keys

#: The name under which transformers knows our attention function.
ATTENTION = "attnrl_sdpa"

# Arguments by which some architectures ask for another softmax, or for another choice of keys, than sdpa's.
_REFUSED = {
    "softcap": "soft-capping",
    "s_aux": "attention sinks",
    "sinks": "attention sinks",
    "position_bias": "a position bias",
    "indices": "sparse attention",
    "block_indices": "sparse attention",
}


class StepStartsError(ValueError):
    """Step starts that do not describe contiguous, non-empty steps of the sequence."""


class FciUnsupportedError(RuntimeError):
    """A model, or a layer of it, whose attention cannot be captured correctly. The message says why."""


@dataclass(frozen=True)
class CaptureSpec:
    """The steps whose influence is wanted, for each row of a right-padded batch.

    Attributes:
        step_starts: for each row the ascending offsets of the first token of each step, counted from the
            start of the row; the last step ends with the row, tokens before the first belong to no step. May
            be empty.
        lengths: tokens of each row without its padding.
        delta: Delta of eq. 5: step j counts for step k if ``j >= k + delta``.
        memory_bytes: bound on the attention rows held at one time; None for the default of the device.

    Raises:
        StepStartsError: unsorted or repeated starts, or a start outside its row.
        ValueError: negative delta, or not as many rows of starts as lengths.
    """

    step_starts: Sequence[Sequence[int]]
    lengths: Sequence[int]
    delta: int = 4
    memory_bytes: int | None = None

    def __post_init__(self) -> None:
        """Check the steps of each row."""
        if self.delta < 0:
            raise ValueError(f"delta must be at least 0, got {self.delta}")
        if len(self.step_starts) != len(self.lengths):
            raise ValueError(f"{len(self.step_starts)} rows of step starts for {len(self.lengths)} lengths")
        for row, (starts, length) in enumerate(zip(self.step_starts, self.lengths, strict=True)):
            if any(left >= right for left, right in pairwise(starts)):
                raise StepStartsError(f"row {row}: step starts must ascend, got {list(starts)}")
            if starts and not 0 <= starts[0] <= starts[-1] < length:
                outside = starts[0] if starts[0] < 0 else starts[-1]
                raise StepStartsError(f"row {row}: step start {outside} is outside the sequence of {length} tokens")


@dataclass
class Capture:
    """What one forward has captured so far; filled by :func:`captured_sdpa`, layer by layer.

    Attributes:
        spec: what was asked for.
        layers: influence [B, H, S] of each layer, by layer index; rows with fewer than S steps end in zeros.
    """

    spec: CaptureSpec
    layers: dict[int, Tensor] = field(default_factory=dict)
    _modules: dict[int, nn.Module] = field(default_factory=dict, repr=False)
    _layouts: dict[tuple[torch.device, int], StepLayout] = field(default_factory=dict, repr=False)
    _checked: list[tuple[Tensor, int | None]] = field(default_factory=list, repr=False)

    def influence(self) -> list[Tensor]:
        """Influence of each step at each layer and head: for each row a tensor [L, H, S of the row].

        Layers are in ascending order of their index. Values are fp32, on the device of the first layer.

        Raises:
            FciUnsupportedError: no layer has called :func:`captured_sdpa`, or layers differ in their heads.
        """
        if not self.layers:
            raise FciUnsupportedError(
                "no attention layer was captured: the model does not call its attention through "
                f"transformers' AttentionInterface, or its attention implementation is not {ATTENTION!r} "
                "(see enable), or no forward ran"
            )
        ordered = [self.layers[index] for index in sorted(self.layers)]
        if len({layer_BHS.shape[1] for layer_BHS in ordered}) > 1:
            heads = {index: self.layers[index].shape[1] for index in sorted(self.layers)}
            raise FciUnsupportedError(f"layers differ in their number of heads: {heads}")
        influence_LBHS = torch.stack([layer_BHS.to(ordered[0].device) for layer_BHS in ordered])
        return [influence_LBHS[:, row, :, : len(s)] for row, s in enumerate(self.spec.step_starts)]

    def add(
        self,
        module: nn.Module,
        query_BHTD: Tensor,
        key_BGTD: Tensor,
        mask: Tensor | None,
        scaling: float | None,
        window: int | None,
    ) -> None:
        """Add the influence of one layer, from what its attention function was given."""
        index = getattr(module, "layer_idx", None)
        name = type(module).__name__
        if not isinstance(index, int):
            raise FciUnsupportedError(f"{name} has no layer_idx, so its influence has no place")
        if self._modules.setdefault(index, module) is not module:
            raise FciUnsupportedError(f"two attention modules ({name}) share layer index {index}")
        batch, tokens = query_BHTD.shape[0], query_BHTD.shape[2]
        if key_BGTD.shape[2] != tokens:
            raise FciUnsupportedError(
                f"{name}: {tokens} queries for {key_BGTD.shape[2]} keys; capture needs the whole sequence in "
                "one forward with use_cache=False"
            )
        if batch != len(self.spec.lengths) or tokens < max(self.spec.lengths, default=0):
            raise ValueError(
                f"the forward has {batch} rows of {tokens} tokens, the capture was opened for rows of "
                f"{list(self.spec.lengths)} tokens"
            )
        if mask is None:
            window = None  # sdpa knows a window only through its mask; without one it is plain causal
        else:
            self._check_mask(mask, window, name)
        spec, place = self.spec, (query_BHTD.device, tokens)
        if place not in self._layouts:
            self._layouts[place] = StepLayout.build(
                spec.step_starts, spec.lengths, tokens, spec.delta, query_BHTD.device
            )
        layout = self._layouts[place]
        columns_BHT = column_sums(
            query_BHTD, key_BGTD, layout, scaling=scaling, window=window, memory_bytes=spec.memory_bytes
        )
        self.layers[index] = step_means(columns_BHT, layout)

    def _check_mask(self, mask: Tensor, window: int | None, name: str) -> None:
        """Refuse a mask that shows a row's own tokens anything but the causal (and windowed) keys.

        The columns are summed over an interval of queries for each key, so packed, left-padded, chunked or
        bidirectional masks would give wrong numbers. Layers share masks: each is looked at once.
        """
        if any(mask is seen and window == its_window for seen, its_window in self._checked):
            return
        explained = mask.dtype == torch.bool and mask.dim() == 4 and mask.shape[1] == 1
        keys = torch.arange(mask.shape[-1], device=mask.device)
        for row, length in enumerate(self.spec.lengths):
            for start in range(0, length if explained else 0, 1024):
                block = slice(start, min(start + 1024, length))
                shown = mask[row if mask.shape[0] > 1 else 0, 0, block]
                explained = explained and torch.equal(shown, visible_keys(keys[block], keys, window))
        if not explained:
            raise FciUnsupportedError(
                f"{name}: its attention mask is not causal with sliding window {window} over right-padded "
                "rows; packed, left-padded, chunked and bidirectional attention cannot be captured"
            )
        self._checked.append((mask, window))


_active: ContextVar[Capture | None] = ContextVar("attnrl_fci_capture", default=None)


@contextmanager
def capture(spec: CaptureSpec) -> Iterator[Capture]:
    """Capture the influence of each layer in the forward that runs inside; see the module's example.

    The model must have been given to :func:`enable`. One forward a capture: a second one of the same model
    replaces the first. Works in grad mode and under gradient checkpointing; the influence itself carries no
    gradient. Captures nest (the inner one is filled) and do not cross threads.
    """
    captured = Capture(spec)
    token = _active.set(captured)
    try:
        yield captured
    finally:
        _active.reset(token)


def captured_sdpa(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """sdpa attention as transformers calls it, which adds the layer to the open capture, if there is one.

    Args:
        module: the attention layer.
        query: query_BHTD.
        key: key_BGTD, G key heads for H query heads.
        value: value_BGTD.
        attention_mask: booleans [B, 1, T, T], or None for plain causal.
        kwargs: what else transformers passes to attention functions (``scaling``, ``sliding_window``, ...).

    Raises:
        FciUnsupportedError: the layer asks for a softmax that sdpa does not compute, or (in a capture) for
            attention that is not causal, windowed at most.
    """
    name = type(module).__name__
    for argument, meaning in _REFUSED.items():
        if kwargs.get(argument) is not None:
            raise FciUnsupportedError(f"{name} uses {meaning} ({argument}), which {ATTENTION!r} has not")
    output: tuple[Tensor, Tensor | None] = ALL_ATTENTION_FUNCTIONS["sdpa"](
        module, query, key, value, attention_mask, **kwargs
    )
    captured = _active.get()
    if captured is not None:
        is_causal = kwargs.get("is_causal")
        if is_causal is None:
            is_causal = getattr(module, "is_causal", True)
        if attention_mask is None and not is_causal:
            raise FciUnsupportedError(f"{name} is not causal")
        # Autocast would take the fp32 products back to bf16.
        with torch.no_grad(), torch.autocast(query.device.type, enabled=False):
            captured.add(module, query, key, attention_mask, kwargs.get("scaling"), kwargs.get("sliding_window"))
    return output


AttentionInterface.register(ATTENTION, captured_sdpa)
# Without a mask function of the same name transformers would pass no mask at all, and padded or
# sliding-window models would silently attend to everything before the query.
AttentionMaskInterface.register(ATTENTION, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])


def enable(model: nn.Module) -> None:
    """Set :data:`ATTENTION` as the attention implementation of ``model``; it computes what sdpa does.

    Raises:
        FciUnsupportedError: ``model`` is not a transformers model, does not support sdpa (which would
            silently leave out its soft-capping or sinks), or does not take its attention from the interface.
    """
    name = type(model).__name__
    if not hasattr(model, "set_attn_implementation"):
        raise FciUnsupportedError(f"{name} is not a transformers model: it has no set_attn_implementation")
    # A name of our own passes transformers' own check, so it has to be made here.
    without = {type(m).__name__ for m in model.modules() if getattr(m, "_supports_sdpa", True) is False}
    if without:
        raise FciUnsupportedError(f"{name}: {', '.join(sorted(without))} does not support sdpa attention")
    set_implementation: Any = model.set_attn_implementation
    set_implementation(ATTENTION)
    if not any(config._attn_implementation == ATTENTION for config in _configs(model)):
        raise FciUnsupportedError(f"{name} does not take its attention from transformers' AttentionInterface")


@contextmanager
def enabled(model: nn.Module) -> Iterator[None]:
    """:func:`enable` for the length of a block; the former attention implementation returns at its end."""
    former = [(config, config._attn_implementation) for config in _configs(model)]
    try:
        enable(model)
        yield
    finally:
        # Setting one config also sets its sub-configs, which come after it in the list and so keep their own.
        for config, implementation in former:
            config._attn_implementation = implementation


def _configs(model: nn.Module) -> list[Any]:
    """The configs of ``model`` and of the models inside it, each once, the outer before the inner."""
    found: dict[int, Any] = {}
    queue: list[Any] = [getattr(module, "config", None) for module in model.modules()]
    while queue:
        config = queue.pop(0)
        if hasattr(config, "_attn_implementation") and id(config) not in found:
            found[id(config)] = config
            queue += [getattr(config, key, None) for key in config.sub_configs]
    return list(found.values())
