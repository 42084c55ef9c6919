"""Capture in transformers: the attention and mask functions that any decoder calls by name.

transformers lets the attention function of a model be chosen by name. :data:`ATTENTION` names one that
computes the same attention as any other, keeps the normaliser of each row, and adds up the layer's influence
from the very queries and keys that the layer attends with. :func:`capture` gives a model this name for the
length of a block and then its own back, so no model file is patched and nothing changes outside::

    with torch.no_grad(), capture(model, CaptureSpec(step_starts=[[5, 9, 14], [3]], lengths=[20, 11])) as captured:
        logits = model(input_ids, use_cache=False).logits
    influence_LHS = captured.influence()[0]

Beside the attention function stands a mask function of the same name. transformers describes each mask by a
predicate on query and key; ours builds no mask, but holds the predicate against the sequences that the capture
was opened for, so a batch that is laid out otherwise is refused, not miscounted.
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

#: The name under which transformers knows our attention function.
ATTENTION = "attnrl_capture"

# Arguments by which some architectures ask for scores or for a choice of keys of their own.
_REFUSED = {
    "position_bias": "a position bias",
    "indices": "sparse attention",
    "block_indices": "sparse attention",
    "sinks": "attention sinks of an unknown kind",
}

_UNPACKED = (
    "does not keep the packed sequences of the capture apart: they need position ids that restart, no attention mask, "
    "use_cache=False and, for models whose masks do not heed positions, cu_seq_lens_q"
)


@dataclass(frozen=True)
class _OpenCapture:
    """A capture that is open: the thread that opened it, and whether its model cannot use sdpa."""

    captured: Capture
    thread: int
    own_softmax: bool


_open: dict[int, _OpenCapture] = {}  # by the identity of the model's config, which is what reaches the mask function
_opening = Lock()


@contextmanager
def capture(model: nn.Module, spec: CaptureSpec) -> Iterator[Capture]:
    """Capture the influence of each layer in the forward that runs inside; see the module's example.

    Rows may come with or without an attention mask: a causal layer shows the padding behind a sequence to
    nobody. One forward a capture: a second one replaces the first. Works with gradients too (under gradient
    checkpointing the backward pass must then run inside as well); the influence itself carries none. Of a
    multimodal model the text decoder is captured. Captures of a model nest, the inner one is filled.

    Raises:
        FciUnsupportedError: ``model`` is not a transformers decoder, or of a kind known not to be captured
            correctly, or under capture in another thread. What only the forward can tell is raised there: masks
            that are not causal over the sequences of ``spec``, a layer with a softmax of its own.
        ValueError: ``spec`` names a layer that the model has not, or (in the forward) a head, or other sequences.
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
        # Setting one config also sets its sub-configs, which come after it in the list and so keep their own.
        for config, implementation, outer in former:
            config._attn_implementation = implementation
            if outer is None:
                _open.pop(id(config), None)
            else:
                _open[id(config)] = outer


class CaptureMask:
    """What our mask function makes of a mask.

    No dataclass: FSDP copies those, and all inside them, on their way into a layer.

    Attributes:
        captured: the capture that the forward belongs to.
        window: width of the sliding window, None for none.
        own_softmax: the model cannot use sdpa, so each layer has to say by its arguments what it does instead.
        packed_by_mask: the mask keeps packed sequences apart. Otherwise each layer has to say that they are
            packed, by ``cu_seq_lens_q``, as variable-length flash attention is told.
    """

    def __init__(self, captured: Capture, window: int | None, own_softmax: bool, packed_by_mask: bool = True) -> None:
        """See the class."""
        self.captured = captured
        self.window = window
        self.own_softmax = own_softmax
        self.packed_by_mask = packed_by_mask

    def __getitem__(self, index: Any) -> CaptureMask:
        """Itself, where a model cuts a mask to its queries; that none is cut away shows in the attention."""
        if isinstance(index, tuple) and all(isinstance(part, slice) for part in index):
            return self
        raise MaskReadError

    def __getattr__(self, name: str) -> Any:
        """Called for what a tensor has and this has not."""
        raise MaskReadError

    @classmethod
    def __torch_function__(cls, *_: Any, **__: Any) -> Any:
        """Called where a tensor is combined with this."""
        raise MaskReadError


class MaskReadError(FciUnsupportedError, AttributeError):
    """A model that looks into the mask instead of passing it on; an AttributeError so that ``hasattr`` works."""

    def __init__(self) -> None:
        """It is always the same."""
        super().__init__(
            "the model reads the attention mask itself: it does not call its attention through transformers' "
            "AttentionInterface, or it chooses keys by a rule of its own"
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
    """The mask as transformers asks for it: checked at the ends of each key's interval, never built.

    Raises:
        FciUnsupportedError: it is not causal, or windowed, over the sequences of the open capture.
    """
    if id(config) not in _open or mask_function is None:
        raise FciUnsupportedError(f"{type(config).__name__}: the mask is not one of the decoder under capture")
    opened = _open[id(config)]
    if opened.thread != get_ident():
        raise FciUnsupportedError(f"{type(config).__name__}: the model is under capture in another thread")
    captured = opened.captured
    if q_length != kv_length:
        raise FciUnsupportedError(
            f"{q_length} queries for {kv_length} keys: capture needs the whole sequence in one forward with "
            "use_cache=False"
        )
    layout = captured.layout(batch_size, kv_length, torch.device(device))
    padding_BT = None if attention_mask is None else attention_mask.to(device=device, dtype=torch.bool)

    def sees(rows: Tensor, queries: Tensor, keys: Tensor) -> Tensor:
        head = torch.zeros_like(rows)
        predicate = torch.vmap(mask_function) if use_vmap else mask_function
        seen = predicate(rows, head, queries, keys)
        return seen if padding_BT is None else seen & padding_BT[rows, keys]

    tokens, device = layout.end_BT.shape[1], layout.end_BT.device
    explained = _explains(layout.unbroken, tokens, device, local_size, sees)
    # What a mask that does not heed positions takes a packed row for.
    one_sequence = [Span(0, 0, tokens, ())]
    # In a tree no mask is used: what each token may see is known from the tree, and positions only have to be depths.
    if not explained and not (captured.spec.packed and _explains(one_sequence, tokens, device, local_size, sees)):
        raise FciUnsupportedError(
            f"{type(config).__name__}: its attention mask is not causal"
            f"{'' if local_size is None else f' with a sliding window of {local_size}'} within the sequences of the "
            "capture. Chunked and bidirectional attention cannot be captured, and padding on the left needs an "
            "attention mask and left_padding"
        )
    return CaptureMask(captured, local_size, opened.own_softmax, packed_by_mask=explained or layout.tree is not None)


def _explains(
    spans: Sequence[Span],
    tokens: int,
    device: torch.device,
    window: int | None,
    sees: Callable[[Tensor, Tensor, Tensor], Tensor],
) -> bool:
    """Whether a mask over rows of ``tokens`` shows each key of each sequence to exactly its interval of queries.

    It is tried at the ends of the intervals.
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
    # Each clamp leaves a place inside the row to look at; what is seen there does not matter.
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
    """Attention as transformers calls it, which adds the layer to the open capture.

    Args:
        module: the attention layer.
        query: query_BHTD.
        key: key_BGTD, G key heads for H query heads.
        value: value_BGTE.
        attention_mask: what :func:`capture_mask` made of the mask.
        scaling: factor on the scores, 1 / sqrt(D) by default.
        dropout: must be 0.
        kwargs: what else transformers passes to attention functions; ``softcap``, the bound of soft-capped scores,
            and ``s_aux``, the attention sinks [H], are heeded.

    Returns:
        The output [B, T, H, V], and None for the attention weights.

    Raises:
        FciUnsupportedError: the layer attends in a way that would not be captured correctly.
    """
    name = type(module).__name__
    for argument, meaning in _REFUSED.items():
        if kwargs.get(argument) is not None:
            raise FciUnsupportedError(f"{name} uses {meaning} ({argument}), which cannot be captured")
    if dropout:
        raise FciUnsupportedError(f"{name} drops attention ({dropout}); capture in evaluation mode")
    if not isinstance(attention_mask, CaptureMask):
        given = "no mask" if attention_mask is None else "a ready-made mask"
        raise FciUnsupportedError(f"{name} was given {given}; capture needs one from transformers' mask interface")
    if attention_mask.own_softmax and not {"softcap", "s_aux"} & kwargs.keys():
        raise FciUnsupportedError(f"{name}: its model does not support sdpa, and does not say what is different")
    index = getattr(module, "layer_idx", None)
    if not isinstance(index, int):
        raise FciUnsupportedError(f"{name} has no layer_idx, so its influence has no place")
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
        window=attention_mask.window,
        softcap=kwargs.get("softcap"),
        sinks_H=kwargs.get("s_aux"),
    )
    layout = captured.layout(query.shape[0], query.shape[2], query.device)
    bounds = kwargs.get("cu_seq_lens_q")
    if bounds is None and not attention_mask.packed_by_mask:
        raise FciUnsupportedError(f"{name} {_UNPACKED}")
    if bounds is not None and not torch.equal(bounds.to(layout.bounds), layout.bounds):
        raise FciUnsupportedError(f"{name}: cu_seq_lens_q {bounds.tolist()} are not the sequences of the capture")
    with torch.autocast(device, enabled=False):  # it would take the fp32 products back to bf16
        if layout.tree is not None:
            output_BHTE, lse_BHT = attend_tree(layer, layout.tree)
        else:
            output_BHTE, lse_BHT = attend(layer, layout)
        captured.add(index, layer, lse_BHT, layout)
    return output_BHTE.transpose(1, 2).contiguous(), None


# torch.compile would trace every panel and tile anew for each length.
_untraced: Any = torch.compiler.disable
AttentionInterface.register(ATTENTION, _untraced(captured_attention))
# Without a mask function of the same name transformers would pass no mask at all, and padded, packed or
# sliding-window models would silently attend to everything before the query.
AttentionMaskInterface.register(ATTENTION, _untraced(capture_mask))


def decoder_of(model: Any) -> Any:
    """The text decoder under the heads of ``model``; it makes no logits, T x vocabulary of them."""
    if not hasattr(model, "get_decoder"):
        raise FciUnsupportedError(f"{type(model).__name__} is not a transformers model: it has no get_decoder")
    decoder = model.get_decoder()
    return decoder if hasattr(decoder, "config") else model.base_model  # some find their head by that name


def _refuse_by_name(name: str, decoder: nn.Module, configs: list[Any]) -> None:
    if any(getattr(config, "is_encoder_decoder", False) for config in configs):
        raise FciUnsupportedError(f"{name} is an encoder-decoder model")
    # A chunk is a block of the mask; within one chunk it looks like any causal mask.
    if any("chunked_attention" in (getattr(config, "layer_types", None) or ()) for config in configs):
        raise FciUnsupportedError(f"{name} has chunked attention, which cannot be captured")


def _layer_kinds(decoder: Any) -> list[str]:
    config = decoder.config
    kinds = getattr(config, "layer_types", None) or getattr(config, "layers_block_type", None)
    return list(kinds or [type(layer).__name__ for layer in getattr(decoder, "layers", ())])


def _configs(decoder: nn.Module) -> list[Any]:
    """The configs of the decoder and of the models inside it, each once, the outer before the inner."""
    found: dict[int, Any] = {}
    queue: list[Any] = [getattr(module, "config", None) for module in decoder.modules()]
    while queue:
        config = queue.pop(0)
        if hasattr(config, "_attn_implementation") and id(config) not in found:
            found[id(config)] = config
            queue += [getattr(config, key, None) for key in config.sub_configs]
    return list(found.values())
