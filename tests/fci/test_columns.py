"""The blocked column sums against the dense definition, over random layouts."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from attnrl.fci.columns import StepLayout, column_sums, step_means


def dense_probs(query_BHTD: Tensor, key_BGTD: Tensor, scaling: float, window: int | None) -> Tensor:
    heads, tokens = query_BHTD.shape[1], query_BHTD.shape[2]
    key_BHTD = key_BGTD.repeat_interleave(heads // key_BGTD.shape[1], dim=1)
    scores = query_BHTD @ key_BHTD.mT * scaling
    mask = torch.ones(tokens, tokens, dtype=torch.bool).tril()
    if window is not None:
        mask &= ~torch.ones(tokens, tokens, dtype=torch.bool).tril(-window)
    return scores.masked_fill(~mask, -torch.inf).softmax(-1)


def influence(query, key, starts, lengths, delta, **settings) -> Tensor:
    layout = StepLayout.build(starts, lengths, query.shape[2], delta)
    return step_means(column_sums(query, key, layout, **settings), layout)


@st.composite
def batches(draw):
    tokens = draw(st.integers(1, 40))
    lengths = draw(st.lists(st.integers(1, tokens), min_size=1, max_size=3))
    starts = [sorted(draw(st.sets(st.integers(0, length - 1), max_size=length))) for length in lengths]
    return tokens, lengths, starts


@settings(max_examples=150, deadline=None)
@given(
    batch=batches(),
    groups=st.sampled_from([(4, 1), (4, 2), (3, 3), (6, 2)]),
    delta=st.integers(0, 6),
    window=st.none() | st.integers(1, 45),
    rows=st.integers(1, 50),
    seed=st.integers(0, 999),
)
def test_any_layout_equals_the_dense_definition(oracle, batch, groups, delta, window, rows, seed):
    (tokens, lengths, starts), (heads, key_heads) = batch, groups
    generator = torch.Generator().manual_seed(seed)
    query = 3 * torch.randn(len(lengths), heads, tokens, 8, generator=generator)
    key = torch.randn(len(lengths), key_heads, tokens, 8, generator=generator)
    memory = 2 * 4 * len(lengths) * heads * tokens * rows  # so many rows at a time
    ours = influence(query, key, starts, lengths, delta, scaling=0.5, window=window, memory_bytes=memory)
    for row, length in enumerate(lengths):
        one = slice(row, row + 1)
        probs = dense_probs(query[one, :, :length], key[one, :, :length], 0.5, window)
        expected = oracle(probs[0], starts[row], delta)
        torch.testing.assert_close(ours[row, :, : len(starts[row])], expected, atol=1e-5, rtol=1e-4)
        assert (ours[row, :, len(starts[row]) :] == 0).all()


def test_fp64_stays_fp64(oracle):
    torch.manual_seed(0)
    query, key = 3 * torch.randn(1, 4, 60, 8).double(), torch.randn(1, 2, 60, 8).double()
    starts = [7, 11, 12, 20, 33, 41, 50, 58]
    ours = influence(query, key, [starts], [60], 2, scaling=0.5)
    expected = oracle(dense_probs(query, key, 0.5, None), starts, 2)
    assert ours.dtype == torch.float64
    torch.testing.assert_close(ours, expected, atol=1e-8, rtol=1e-6)


def test_bf16_is_computed_in_fp32(oracle):
    torch.manual_seed(0)
    query, key = torch.randn(1, 4, 60, 8).bfloat16() * 3, torch.randn(1, 2, 60, 8).bfloat16()
    starts = [7, 11, 12, 20, 33, 41, 50, 58]
    ours = influence(query, key, [starts], [60], 2, scaling=0.5)
    expected = oracle(dense_probs(query.float(), key.float(), 0.5, None), starts, 2)
    torch.testing.assert_close(ours, expected, atol=1e-6, rtol=1e-5)


def test_default_scaling_is_that_of_attention():
    query, key = torch.randn(1, 2, 30, 16), torch.randn(1, 2, 30, 16)
    starts = [[0, 5, 9, 20]]
    given = influence(query, key, starts, [30], 1, scaling=0.25)
    torch.testing.assert_close(influence(query, key, starts, [30], 1), given)


@pytest.mark.parametrize("delta", [0, 1, 3])
def test_uniform_attention_by_hand(delta):
    # Zero queries attend to each of the q + 1 keys alike, and each step is one token.
    zero = torch.zeros(1, 1, 4, 8)
    ours = influence(zero, zero, [[0, 1, 2, 3]], [4], delta)[0, 0]
    expected = [sum(1 / (j + 1) for j in range(4) if j >= k + delta) for k in range(4)]
    torch.testing.assert_close(ours, torch.tensor(expected))


def test_never_holds_more_than_its_budget():
    # 2048 tokens: one dense matrix of 4 heads would be 64 MiB; the biggest tensor may take half of 1 MiB.
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            if isinstance(out, Tensor):
                largest = max(largest, out.nbytes)
            return out

    query, key = torch.randn(1, 4, 2048, 8), torch.randn(1, 2, 2048, 8)
    layout = StepLayout.build([list(range(1500, 2048, 16))], [2048], 2048, 4)
    with Watch():
        column_sums(query, key, layout, memory_bytes=2**20)
    assert largest <= 2**19
