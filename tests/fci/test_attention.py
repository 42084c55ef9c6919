"""Attention with its logsumexp against the dense definition, and the arguments given to flash attention."""

from functools import wraps
from itertools import pairwise

import pytest
import torch
import torch.nn.attention.varlen
from reference import dense_attention
from torch.nn import functional as F

from attnrl.fci import CaptureSpec, FciUnsupportedError, attention
from attnrl.fci.attention import LayerAttention, attend, panels
from attnrl.fci.layout import StepLayout

TOKENS = 37
LAYOUTS = {
    "single": CaptureSpec([[0]], [37]),
    "right": CaptureSpec([[0], [0]], [37, 11]),
    "left": CaptureSpec([[0], [0]], [21, 37], left_padding=[13, 0]),
    "packed": CaptureSpec([[0]] * 4, [15, 1, 9, 12], packed=True),
}
SINKS = torch.tensor([-1.0, 0.5, 2.0, 6.0], dtype=torch.float64)
KINDS = {
    "plain": {},
    "window": {"window": 6},
    "window_of_one": {"window": 1},
    "window_of_all_but_one": {"window": 36},
    "window_beyond_the_sequence": {"window": 40},
    "softcap": {"softcap": 1.5},
    "softcap_window": {"softcap": 1.5, "window": 6},
    "sinks": {"sinks_H": SINKS},
    "sinks_window": {"sinks_H": SINKS, "window": 6},
}


def operands(spec, key_heads=2, value_dim=8, dtype=torch.float64):
    generator = torch.Generator().manual_seed(3)
    shapes = (4, 8), (key_heads, 8), (key_heads, value_dim)
    return [
        torch.randn(spec.rows, heads, TOKENS, dim, generator=generator, dtype=torch.float64).to(dtype)
        * (2.5 if dim == 8 else 1)
        for heads, dim in shapes
    ]


def layout_of(spec):
    return StepLayout.build(spec.spans, spec.rows, TOKENS, spec.delta)


def inside(spec):
    """Which tokens belong to a sequence, [B, 1, T]: padding may attend to anything finite."""
    inside = torch.zeros(spec.rows, 1, TOKENS, dtype=torch.bool)
    for span in spec.spans:
        inside[span.row, :, span.start : span.stop] = True
    return inside


def dense(spec, tensors, scaling=0.4, **kind):
    places = [(span.row, span.start, span.stop) for span in spec.spans]
    return dense_attention(*tensors, places, scaling, **kind)


def assert_attends(spec, kind, atol=1e-12, **shape):
    """Output, logsumexp and all gradients of attend() are those of the dense definition."""
    tensors = [tensor.requires_grad_() for tensor in operands(spec, **shape)]
    twins = [tensor.detach().clone().requires_grad_() for tensor in tensors]
    if "sinks_H" in kind:
        tensors.append(SINKS.clone().requires_grad_())
        twins.append(SINKS.clone().requires_grad_())
    mask = inside(spec)
    kind_of = lambda given: {**kind, "sinks_H": given[3]} if "sinks_H" in kind else kind  # noqa: E731
    output, lse = attend(LayerAttention(*tensors[:3], 0.4, **kind_of(tensors)), layout_of(spec))
    expected, expected_lse, _ = dense(spec, twins[:3], **kind_of(twins))
    torch.testing.assert_close(output * mask[..., None], expected * mask[..., None], atol=atol, rtol=0)
    torch.testing.assert_close(lse * mask, expected_lse.detach() * mask, atol=atol, rtol=0)
    assert output.isfinite().all() and lse.isfinite().all() and not lse.requires_grad
    weights = torch.linspace(-1, 1, output.numel(), dtype=torch.float64).view_as(output) * mask[..., None]
    (output * weights).sum().backward()
    (expected * weights).sum().backward()
    for ours, twin in zip(tensors, twins, strict=True):
        torch.testing.assert_close(ours.grad, twin.grad, atol=10 * atol, rtol=0)
    with torch.no_grad():  # where sinks take another way
        silent, silent_lse = attend(LayerAttention(*tensors[:3], 0.4, **kind_of(tensors)), layout_of(spec))
    torch.testing.assert_close(silent * mask[..., None], output.detach() * mask[..., None], atol=atol, rtol=0)
    torch.testing.assert_close(silent_lse * mask, lse * mask, atol=atol, rtol=0)


@pytest.mark.parametrize("panel_pairs", [None, 60])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", KINDS)
def test_equals_the_dense_definition(monkeypatch, kind, layout, panel_pairs):
    if panel_pairs is not None:  # a row or a few at a time
        monkeypatch.setattr(attention, "CPU_PANEL_BYTES", panel_pairs * 4 * 8)
    assert_attends(LAYOUTS[layout], KINDS[kind])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", ["plain", "window", "sinks"])
@pytest.mark.parametrize("shape", [{"value_dim": 5}, {"value_dim": 12}, {"key_heads": 1}, {"key_heads": 4}], ids=str)
def test_other_values_and_key_heads(kind, layout, shape):
    assert_attends(LAYOUTS[layout], KINDS[kind], **shape)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("padding", [0, 5])
def test_plain_attention_is_sdpa_to_the_bit(dtype, padding):
    spec = CaptureSpec([[0], [0]], [TOKENS, TOKENS - padding])
    tensors = [tensor.requires_grad_() for tensor in operands(spec, dtype=dtype)]
    twins = [tensor.detach().clone().requires_grad_() for tensor in tensors]
    output, lse = attend(LayerAttention(*tensors, 8**-0.5), layout_of(spec))
    expected = F.scaled_dot_product_attention(*twins, is_causal=True, enable_gqa=True)
    assert torch.equal(output, expected)
    assert output.dtype == dtype and lse.dtype == torch.float32
    for result in (output, expected):
        (result * torch.linspace(-1, 1, result.numel()).view_as(result)).sum().backward()
    for ours, twin in zip(tensors, twins, strict=True):
        assert torch.equal(ours.grad, twin.grad)


@pytest.mark.parametrize("kind", ["window", "softcap", "sinks"])
def test_bf16_rows_are_normalised_in_fp32(kind):
    spec = LAYOUTS["packed"]
    tensors = operands(spec, dtype=torch.bfloat16)
    with torch.no_grad():
        output, lse = attend(LayerAttention(*tensors, 0.4, **KINDS[kind]), layout_of(spec))
    expected, expected_lse, _ = dense(spec, [tensor.double() for tensor in tensors], **KINDS[kind])
    assert output.dtype == torch.bfloat16 and lse.dtype == torch.float32
    torch.testing.assert_close(output.double(), expected, atol=0.02, rtol=0.02)
    # The exponential of torch's flash operator in bf16 is exact to 2**-14 with AVX2 (6e-5 measured at any length)
    # and to fp32 without; a logsumexp in bf16 would be off by 4e-3 and more.
    torch.testing.assert_close(lse.double(), expected_lse, atol=2e-4, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("panel_bytes", [0, 60 * 4 * 8, 10**9])
def test_panels_are_the_rows_of_the_matrix(kind, panel_bytes):
    spec = LAYOUTS["left"]
    tensors = operands(spec)
    *_, probs = dense(spec, tensors, **KINDS[kind])
    for span in spec.spans:
        matrix = torch.zeros_like(probs[span.row])
        rows = []
        for panel in panels(LayerAttention(*tensors, 0.4, **KINDS[kind]), span, panel_bytes):
            matrix[:, panel.start : panel.stop, panel.left : panel.stop] += panel.probs_Hqk
            rows += range(panel.start, panel.stop)
            assert panel.left >= span.start
        assert rows == list(range(span.start, span.stop))
        matrix[:, : span.start] = probs[span.row, :, : span.start]  # padding, which has no panel
        matrix[:, span.stop :] = probs[span.row, :, span.stop :]
        torch.testing.assert_close(matrix, probs[span.row], atol=1e-12, rtol=0)


@pytest.mark.parametrize("kind", ["plain", "window", "softcap", "sinks_window"])
def test_panels_never_hold_more_than_their_budget(largest, kind):
    # 2048 tokens: the dense matrix of 4 heads would be 64 MiB. Windows far shorter than the sequence have panels
    # of more rows, and as little memory.
    query, value = torch.randn(1, 4, 2048, 8), torch.randn(1, 2, 2048, 8)
    window = 300 if "window" in kind else None
    sinks = SINKS.float() if "sinks" in kind else None
    layer = LayerAttention(query, value, value, 0.3, window, 2.0 if kind == "softcap" else None, sinks)
    budget, counts = 2**19, []
    with largest() as seen:
        for panel in panels(layer, CaptureSpec([[]], [2048]).spans[0], budget):
            counts.append(panel.stop - panel.start)
    assert budget / 2 < seen.bytes <= budget * 1.01  # sinks add a column
    assert counts[0] == (16 if window is None else 85)  # 4 heads x 85 rows x 385 keys


def flash_of_plain_torch(
    query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, return_aux, scale, window_size, enable_gqa
):
    """varlen_attn by its documentation: sequences end to end, [total, heads, D].

    The logsumexp is [heads, total], as its kernel has it; its documentation has the two the other way round.

    ``window_size`` is how many tokens left and right of the query's own it sees, -1 for all.
    """
    assert cu_seq_q.dtype == cu_seq_k.dtype == torch.int32
    edges = cu_seq_q.tolist()
    assert edges == cu_seq_k.tolist() and edges[0] == 0 and edges[-1] == len(query) == len(key)
    assert max_q == max_k == max(stop - start for start, stop in pairwise(edges))
    assert return_aux.lse and enable_gqa == (query.shape[1] != key.shape[1])
    left, right = window_size
    outputs, lses = [], []
    for start, stop in pairwise(edges):
        q, k, v = (x[start:stop].transpose(0, 1) for x in (query, key, value))
        k, v = (x.repeat_interleave(len(q) // len(x), dim=0) for x in (k, v))
        offset = torch.arange(stop - start) - torch.arange(stop - start)[:, None]
        hidden = torch.zeros_like(offset, dtype=torch.bool)
        if left >= 0:
            hidden |= offset < -left
        if right >= 0:
            hidden |= offset > right
        scores = (q @ k.mT * scale).masked_fill(hidden, -torch.inf)
        outputs.append((scores.softmax(-1) @ v).transpose(0, 1))
        lses.append(scores.logsumexp(-1))
    return torch.cat(outputs), torch.cat(lses, 1)


@pytest.mark.parametrize("key_heads", [2, 4])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", ["plain", "window", "window_of_one", "window_beyond_the_sequence", "sinks_window"])
def test_variable_length_flash_attention_is_called_by_its_documentation(monkeypatch, kind, layout, key_heads):
    calls = []

    @wraps(flash_of_plain_torch)
    def counted(*args, **kwargs):
        calls.append(kwargs["window_size"])
        return flash_of_plain_torch(*args, **kwargs)

    monkeypatch.setattr(torch.nn.attention.varlen, "varlen_attn", counted)
    monkeypatch.setattr(attention, "_varlen_takes", lambda query: True)
    monkeypatch.setattr(attention, "_cpu_flash", lambda layer, layout: attention._varlen_flash(layer, layout, None))
    assert_attends(LAYOUTS[layout], KINDS[kind], key_heads=key_heads)
    # Sinks with gradients go by panels, where the logsumexp need carry none.
    width = -1 if KINDS[kind].get("window", 40) >= 37 else KINDS[kind]["window"] - 1
    width = -1 if layout == "packed" and KINDS[kind].get("window", 40) >= 15 else width
    assert calls == [(width, 0)] * (1 if "sinks" in kind else 2)


def test_variable_length_flash_attention_takes_our_arguments():
    # Without a GPU torch can tell at least the shapes of what it would give.
    query = torch.empty(2, 4, 20, 16, device="meta", dtype=torch.bfloat16)
    key = torch.empty(2, 2, 20, 16, device="meta", dtype=torch.bfloat16)
    layout = StepLayout.build(CaptureSpec([[0], [3]], [20, 11]).spans, 2, 20, 4, "meta")
    for window in (None, 5):
        output, lse = attention._varlen_flash(LayerAttention(query, key, key, 0.2), layout, window)
        assert (output.shape, lse.shape, lse.dtype) == ((2, 4, 20, 16), (2, 4, 20), torch.float32)


def test_a_logsumexp_of_another_shape_is_refused(monkeypatch):
    @wraps(flash_of_plain_torch)
    def transposed(*args, **kwargs):
        output, lse = flash_of_plain_torch(*args, **kwargs)
        return output, lse.T

    monkeypatch.setattr(torch.nn.attention.varlen, "varlen_attn", transposed)
    query, key, value = operands(LAYOUTS["single"])
    layout = StepLayout.build(LAYOUTS["single"].spans, 1, TOKENS, 4)
    with pytest.raises(FciUnsupportedError, match="varlen_attn"):
        attention._varlen_flash(LayerAttention(query, key, value, 0.2), layout, None)
