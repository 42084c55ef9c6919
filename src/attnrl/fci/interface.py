"""Capture in transformers: the attention and mask functions registered under the name :data:`ATTENTION`.

transformers selects the attention function of a model by name. The function :data:`ATTENTION` computes standard causal
attention, keeps the logsumexp of each row, and sums the layer's FCI from the layer's own queries and keys.
:func:`capture` sets this name within a block and restores the previous name afterwards, so no model file is
patched and nothing changes outside the block::

    with torch.no_grad(), capture(model, CaptureSpec(step_starts=[[5, 9, 14], [3]], lengths=[20, 11])) as captured:
        logits = model(input_ids, use_cache=False).logits
    influence_LHS = captured.influence()[0]

A mask function is registered under the same name. transformers describes each mask by a predicate on query and key;
:func:`capture_mask` builds no mask, but compares the predicate with the sequences of the capture's spec, so a batch in
another layout raises an error instead of giving a wrong FCI.

Shape letters: see CONTRIBUTING.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock, get_ident
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface

from attnrl.fci.attention import LayerAttention, attend
from attnrl.fci.captured import Capture
from attnrl.fci.layout import Span
from attnrl.fci.spec import CaptureSpec, FciUnsupportedError
from attnrl.fci.tree_attention import attend_tree

#: Name of the attention and mask functions in transformers' registries.
ATTENTION = "attnrl_capture"

# Arguments with which some architectures request other scores or a selection of keys.
_REFUSED = {
    "position_bias": "a position bias",
    "indices": "sparse attention",
    "block_indices": "sparse attention",
    "sinks": "attention sinks of an unknown kind",
}

_UNPACKED = (
    "does not separate the packed sequences of the capture: packing needs position ids that restart, no attention "
    "mask, use_cache=False and, for models whose masks ignore position ids, cu_seq_lens_q"
)


@dataclass(frozen=True)
class _OpenCapture:
    """A capture in progress: the opening thread, and whether the model does not support sdpa."""

    captured: Capture
    thread: int
    own_softmax: bool


_open: dict[int, _OpenCapture] = {}  # by id of the model's config: the mask function receives the config
_opening = Lock()


@contextmanager
def capture(model: nn.Module, spec: CaptureSpec) -> Iterator[Capture]:
    """Capture the FCI of each layer in the forward pass within a block; see the module's example.

    The attention mask is optional for rows padded on the right, because causal attention never attends to the right.
    A second forward pass replaces the results of the first. Gradients work; with gradient checkpointing the backward
    pass must run within the block as well. FCI carries no gradient. For a multimodal model the text decoder is
    captured. Captures of one model may be nested; the innermost capture is filled.

    Args:
        model: a transformers decoder.
        spec: the sequences, steps and options of the capture.

    Raises:
        FciUnsupportedError: ``model`` is not a transformers decoder, is of an unsupported kind, or is under capture in
            another thread. The forward pass raises the same error for masks that are not causal over the sequences
            of ``spec``, and for layers with an unsupported softmax.
        ValueError: ``spec`` has a layer index out of range, or (in the forward pass) a head index out of range or
            sequences that do not fit the batch.
    """
    decoder = decoder_of(model)
    configs = _configs(decoder)
    _refuse_by_name(type(model).__name__, decoder, configs)
    captured = Capture(spec, _layer_kinds(decoder))
    own_softmax = getattr(decoder, "_supports_sdpa", True) is False
    opened = _OpenCapture(captured, get_ident(), own_softmax)

    def innermost() -> bool:
        return any(_open.get(id(config)) is opened for config in configs)

    hooks = (
        decoder.register_forward_pre_hook(lambda *_: captured.begin() if innermost() else None),
        decoder.register_forward_hook(lambda *_: captured.end() if innermost() else None),
    )
    with _opening:
        former = [(config, config._attn_implementation, _open.get(id(config))) for config in configs]
        if any(outer is not None and outer.thread != opened.thread for _, _, outer in former):
            raise FciUnsupportedError(f"{type(model).__name__} is under capture in another thread")
        for config in configs:
            config._attn_implementation = ATTENTION
            _open[id(config)] = opened
    try:
        yield captured
    finally:
        for hook in hooks:
            hook.remove()
        # Setting a config also sets the sub-configs, which come later in the list and are restored last.
        for config, implementation, outer in former:
            config._attn_implementation = implementation
            if outer is None:
                _open.pop(id(config), None)
            else:
                _open[id(config)] = outer


class CaptureMask:
    """The stand-in for an attention mask that :func:`capture_mask` returns.

    Not a dataclass: FSDP copies dataclasses, with every object inside, when calling a layer.

    Attributes:
        captured: the capture of the forward pass.
        window: width of the sliding window, None for no window.
        own_softmax: True if the model does not support sdpa; each layer must then declare the difference by arguments.
        packed_by_mask: True if the model's mask separates packed sequences. Otherwise each layer must pass
            ``cu_seq_lens_q``, the bounds that variable-length flash attention needs.
    """

    def __init__(self, captured: Capture, window: int | None, own_softmax: bool, packed_by_mask: bool = True) -> None:
        self.captured = captured
        self.window = window
        self.own_softmax = own_softmax
        self.packed_by_mask = packed_by_mask

    def __getitem__(self, index: Any) -> CaptureMask:
        """Return the mask itself for a slice of queries; the attention function checks that no query is missing."""
        if isinstance(index, tuple) and all(isinstance(part, slice) for part in index):
            return self
        raise MaskReadError

    def __getattr__(self, name: str) -> Any:
        """Raise MaskReadError for attributes of a tensor, absent here."""
        raise MaskReadError

    @classmethod
    def __torch_function__(cls, *_: Any, **__: Any) -> Any:
        """Raise MaskReadError when a torch function receives the mask."""
        raise MaskReadError


class MaskReadError(FciUnsupportedError, AttributeError):
    """A model that reads the mask instead of passing the mask on; an AttributeError so that ``hasattr`` works."""

    def __init__(self) -> None:
        super().__init__(
            "the model reads the attention mask: the model does not call attention through transformers' "
            "AttentionInterface, or selects keys by a rule of its own"
        )


def capture_mask(
    batch_size: int,
    kv_length: int,
    q_length: int | None = None,
    mask_function: Callable[..., Tensor] | None = None,
    attention_mask: Tensor | None = None,
    local_size: int | None = None,
    use_vmap: bool = False,
    config: Any = None,
    device: torch.device | str = "cpu",
    **_: Any,
) -> CaptureMask:
    """Check the mask that transformers describes, at both ends of each key's interval; build no mask.

    The signature is the signature of transformers' mask interface.

    Raises:
        FciUnsupportedError: the mask is not causal (and windowed) over the sequences of the open capture.
    """
    if id(config) not in _open or mask_function is None:
        raise FciUnsupportedError(f"{type(config).__name__}: no capture of this model is open")
    opened = _open[id(config)]
    if opened.thread != get_ident():
        raise FciUnsupportedError(f"{type(config).__name__}: the model is under capture in another thread")
    captured = opened.captured
    if q_length != kv_length:
        raise FciUnsupportedError(
            f"{q_length} queries for {kv_length} keys: capture needs the whole sequence in one forward with "
            "use_cache=False"
        )
    if local_size is not None and local_size < 1:  # Qwen2-MoE asks for the mask of a window that no layer uses
        return CaptureMask(captured, local_size, opened.own_softmax)
    layout = captured.layout(batch_size, kv_length, torch.device(device))
    padding_BT = None if attention_mask is None else attention_mask.to(device=device, dtype=torch.bool)

    def sees(rows: Tensor, queries: Tensor, keys: Tensor) -> Tensor:
        head = torch.zeros_like(rows)
        predicate = torch.vmap(mask_function) if use_vmap else mask_function
        seen = predicate(rows, head, queries, keys)
        return seen if padding_BT is None else seen & padding_BT[rows, keys]

    tokens, device = layout.end_BT.shape[1], layout.end_BT.device
    matches = _mask_matches(layout.unbroken, tokens, device, local_size, sees)
    # A mask that ignores position ids sees a packed row as one sequence.
    one_sequence = [Span(0, 0, tokens, ())]
    # In trees no mask is used: the tree defines visibility, and the check only requires that position ids are depths.
    if not matches and not (captured.spec.packed and _mask_matches(one_sequence, tokens, device, local_size, sees)):
        raise FciUnsupportedError(
            f"{type(config).__name__}: the attention mask is not causal"
            f"{'' if local_size is None else f' with a sliding window of {local_size}'} within the sequences of the "
            "capture. Chunked and bidirectional attention cannot be captured, and padding on the left needs an "
            "attention mask and left_padding"
        )
    return CaptureMask(captured, local_size, opened.own_softmax, packed_by_mask=matches or layout.tree is not None)


def _mask_matches(
    spans: Sequence[Span],
    tokens: int,
    device: torch.device,
    window: int | None,
    sees: Callable[[Tensor, Tensor, Tensor], Tensor],
) -> bool:
    """Return True if each key of each span is visible to exactly the key's interval of queries.

    Only the ends of the intervals are tested.

    Args:
        spans: the sequences, or the runs of trees.
        tokens: tokens of a row.
        device: device of the tensors passed to ``sees``.
        window: width of the sliding window, None for no window.
        sees: function of (rows, queries, keys) that returns True where the query sees the key.
    """
    if not spans:
        return True
    lengths = torch.tensor([span.stop - span.start for span in spans], device=device)
    rows, starts = (
        torch.tensor(values, device=device).repeat_interleave(lengths)
        for values in ([span.row for span in spans], [span.start for span in spans])
    )
    keys = torch.cat([torch.arange(span.start, span.stop, device=device) for span in spans])
    stops = torch.tensor([span.stop for span in spans], device=device).repeat_interleave(lengths)
    ends = stops if window is None else stops.minimum(keys + window)
    seen = sees(rows, keys, keys) & sees(rows, ends - 1, keys)
    # Clamped indices stay inside the row; the second factor discards the result there.
    before = sees(rows, (keys - 1).clamp_min(0), keys) & (keys > starts)
    after = sees(rows, ends.clamp_max(tokens - 1), keys) & (ends < stops)
    outside = (sees(rows, keys, (starts - 1).clamp_min(0)) | sees(rows, keys, torch.zeros_like(keys))) & (starts > 0)
    return bool((seen & ~before & ~after & ~outside).all())


def captured_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: CaptureMask | Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Compute attention for transformers, and add the layer to the open capture.

    Args:
        module: the attention layer.
        query: query_BHTD.
        key: key_BGTD, G key/value heads for H query heads.
        value: value_BGTE.
        attention_mask: the result of :func:`capture_mask`.
        scaling: factor of the scores, 1 / sqrt(D) by default.
        dropout: must be 0.
        kwargs: further arguments of transformers; used are ``softcap``, the bound of soft-capped scores, ``s_aux``, the
            attention sinks [H], and ``cu_seq_lens_q``, the bounds of packed sequences.

    Returns:
        The output [B, T, H, E], and None for the attention weights.

    Raises:
        FciUnsupportedError: the attention of the layer cannot be captured correctly.
    """
    name = type(module).__name__
    for argument, meaning in _REFUSED.items():
        if kwargs.get(argument) is not None:
            raise FciUnsupportedError(f"{name} uses {meaning} ({argument}), which cannot be captured")
    if dropout:
        raise FciUnsupportedError(f"{name} has attention dropout ({dropout}); capture in evaluation mode")
    if not isinstance(attention_mask, CaptureMask):
        given = "no mask" if attention_mask is None else f"a mask of type {type(attention_mask).__name__}"
        raise FciUnsupportedError(f"{name} received {given}; capture needs the mask of transformers' mask interface")
    if attention_mask.own_softmax and not {"softcap", "s_aux"} & kwargs.keys():
        raise FciUnsupportedError(f"{name}: the model does not support sdpa and passes neither softcap nor s_aux")
    window = attention_mask.window
    if window is not None and window < 1:
        raise FciUnsupportedError(f"{name} has a sliding window of {window}, which hides every key")
    index = getattr(module, "layer_idx", None)
    if not isinstance(index, int):
        raise FciUnsupportedError(f"{name} has no layer_idx")
    if key.shape[2] != query.shape[2]:
        raise FciUnsupportedError(f"{name}: {query.shape[2]} queries for {key.shape[2]} keys cannot be captured")
    device = query.device.type
    if torch.is_autocast_enabled(device):  # as sdpa would
        query, key, value = (tensor.to(torch.get_autocast_dtype(device)) for tensor in (query, key, value))
    captured = attention_mask.captured
    layer = LayerAttention(
        query,
        key,
        value,
        scaling=query.shape[3] ** -0.5 if scaling is None else scaling,
        window=window,
        softcap=kwargs.get("softcap"),
        sinks_H=kwargs.get("s_aux"),
    )
    layout = captured.layout(query.shape[0], query.shape[2], query.device)
    bounds = kwargs.get("cu_seq_lens_q")
    if bounds is None and not attention_mask.packed_by_mask:
        raise FciUnsupportedError(f"{name} {_UNPACKED}")
    if bounds is not None and not torch.equal(bounds.to(layout.bounds), layout.bounds):
        raise FciUnsupportedError(f"{name}: cu_seq_lens_q {bounds.tolist()} are not the sequences of the capture")
    with torch.autocast(device, enabled=False):  # autocast would cast the fp32 products to bf16
        if layout.tree is not None:
            output_BHTE, lse_BHT = attend_tree(layer, layout.tree)
        else:
            output_BHTE, lse_BHT = attend(layer, layout)
        captured.add(index, layer, lse_BHT, layout)
    return output_BHTE.transpose(1, 2).contiguous(), None


# torch.compile would retrace every panel and tile for each length.
_untraced: Any = torch.compiler.disable
AttentionInterface.register(ATTENTION, _untraced(captured_attention))
# Without a mask function of the same name transformers passes no mask, and padded, packed or sliding-window models
# would silently attend to every earlier token.
AttentionMaskInterface.register(ATTENTION, _untraced(capture_mask))


def decoder_of(model: Any) -> Any:
    """Return the text decoder under the heads of ``model``; a decoder computes no logits (T x V).

    Raises:
        FciUnsupportedError: ``model`` is not a transformers model.
    """
    if not hasattr(model, "get_decoder"):
        raise FciUnsupportedError(f"{type(model).__name__} is not a transformers model: no get_decoder")
    decoder = model.get_decoder()
    return decoder if hasattr(decoder, "config") else model.base_model  # some models return their head here


def _refuse_by_name(name: str, decoder: nn.Module, configs: list[Any]) -> None:
    if any(getattr(config, "is_encoder_decoder", False) for config in configs):
        raise FciUnsupportedError(f"{name} is an encoder-decoder model")
    # Within one chunk the mask of chunked attention equals a causal mask.
    if any("chunked_attention" in (getattr(config, "layer_types", None) or ()) for config in configs):
        raise FciUnsupportedError(f"{name} has chunked attention, which cannot be captured")


def _layer_kinds(decoder: Any) -> list[str]:
    config = decoder.config
    kinds = getattr(config, "layer_types", None) or getattr(config, "layers_block_type", None)
    return list(kinds or [type(layer).__name__ for layer in getattr(decoder, "layers", ())])


def _configs(decoder: nn.Module) -> list[Any]:
    """Return the distinct configs of the decoder and of the models inside, the outer before the inner."""
    found: dict[int, Any] = {}
    queue: list[Any] = [getattr(module, "config", None) for module in decoder.modules()]
    while queue:
        config = queue.pop(0)
        if hasattr(config, "_attn_implementation") and id(config) not in found:
            found[id(config)] = config
            queue += [getattr(config, key, None) for key in config.sub_configs]
    return list(found.values())
