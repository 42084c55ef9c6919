"""The tiled column sums against the dense definition, over random layouts and tiles."""

import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import dense_attention

from attnrl.fci import CaptureSpec, columns
from attnrl.fci.columns import column_sums
from attnrl.fci.layout import StepLayout


@pytest.fixture
def two_threads():
    former = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(former)


def in_a_new_thread(function):
    results = []
    thread = threading.Thread(target=lambda: results.append(function()))
    thread.start()
    thread.join()
    return results[0]


def case(spec, heads=(4, 2), right=0, window=None, softcap=None, seed=0, dtype=torch.float64):
    """Random queries and keys for a spec: the arguments of the pass, and the dense probabilities."""
    tokens = max(span.stop for span in spec.spans) + right
    generator = torch.Generator().manual_seed(seed)
    query = (3 * torch.randn(spec.rows, heads[0], tokens, 8, generator=generator, dtype=torch.float64)).to(dtype)
    key = torch.randn(spec.rows, heads[1], tokens, 8, generator=generator, dtype=torch.float64).to(dtype)
    places = [(span.row, span.start, span.stop) for span in spec.spans]
    exact = query.double(), key.double()
    _, lse, probs = dense_attention(*exact, exact[1], places, 0.5, window, softcap)
    layout = StepLayout.build(spec.spans, spec.rows, tokens, spec.delta)
    arguments = [query, key, lse, layout.weight_BT, layout.lo_BT, layout.hi_BT(window)]
    return arguments, {"scaling": 0.5, "softcap": softcap}, probs, layout


def assert_influence(columns_BHT, layout, spec, probs, oracle, **tolerance):
    per_step = layout.step_means(columns_BHT).split([len(starts) for starts in spec.step_starts], -1)
    for ours, span, starts in zip(per_step, spec.spans, spec.step_starts, strict=True):
        tokens = slice(span.start, span.stop)
        torch.testing.assert_close(ours, oracle(probs[span.row, :, tokens, tokens], starts, spec.delta), **tolerance)
    assert (columns_BHT >= 0).all()


@st.composite
def specs(draw):
    lengths = draw(st.lists(st.integers(1, 60), min_size=1, max_size=3))
    starts = [sorted(draw(st.sets(st.integers(0, length - 1), max_size=12))) for length in lengths]
    packed = draw(st.booleans())
    left = [] if packed else [draw(st.integers(0, 9)) for _ in lengths]
    return CaptureSpec(starts, lengths, draw(st.integers(0, 6)), packed, left)


@settings(max_examples=150)
@given(
    spec=specs(),
    heads=st.sampled_from([(4, 1), (4, 2), (3, 3), (6, 2)]),
    right=st.integers(0, 5),
    window=st.none() | st.integers(1, 65),
    softcap=st.none() | st.just(2.0),
    tile_keys=st.sampled_from([1, 7, 32, 256]),
    tile=st.sampled_from([1, 700, 3000, 2**20]),
    threaded=st.booleans(),
    seed=st.integers(0, 999),
)
def test_any_layout_equals_the_dense_definition(
    oracle, spec, heads, right, window, softcap, tile_keys, tile, threaded, seed
):
    right = 0 if spec.packed else right
    arguments, options, probs, layout = case(spec, heads, right, window, softcap, seed)
    former = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(columns, "TILE_KEYS", tile_keys)
        patch.setattr(columns, "CPU_TILE", tile)  # 1: sixteen queries at a time, the smallest piece
        patch.setattr(columns, "THREADED", 0 if threaded else 2**40)
        torch.set_num_threads(2 if threaded else former)
        try:
            ours = column_sums(*arguments, **options)
        finally:
            torch.set_num_threads(former)
    # The weights are fp32, which is what limits the agreement.
    assert_influence(ours, layout, spec, probs, oracle, atol=1e-6, rtol=1e-6)


LONG = CaptureSpec([list(range(20, 300, 7)), [3, 40, 41, 90]], [300, 140], delta=2)


@pytest.mark.parametrize(
    "dtype, tolerance", [(torch.float64, 1e-7), (torch.float32, 1e-5), (torch.bfloat16, 1e-5), (torch.float16, 1e-5)]
)
def test_fp64_stays_fp64_and_less_is_computed_in_fp32(oracle, dtype, tolerance):
    arguments, options, probs, layout = case(LONG, dtype=dtype)
    ours = column_sums(*arguments, **options)
    assert ours.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert_influence(ours.double(), layout, LONG, probs, oracle, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("window", [None, 30])
def test_what_lies_outside_the_intervals_does_no_harm(window):
    # Queries before the first that counts may score any key of theirs beyond all bounds, and padding holds anything.
    arguments, options, *_ = case(LONG, right=9, window=window, dtype=torch.float32)
    expected = column_sums(*arguments, **options)
    query, key, lse, weight, lo, hi = (argument.clone() for argument in arguments)
    first = lo.where(lo < hi, lo.shape[1]).amin(1).tolist()
    for row, length in enumerate(LONG.lengths):
        query[row, :, length:] = torch.nan
        key[row, :, length:] = torch.inf
        lse[row, :, length:] = -torch.inf
        query[row, :, : first[row]] *= 1e30
        lse[row, :, : first[row]] = -torch.inf
        key[row, :, : LONG.step_starts[row][0]] = torch.nan  # the prompt's keys have no sum
    assert torch.equal(column_sums(query, key, lse, weight, lo, hi, **options), expected)


def test_scores_above_the_diagonal_may_overflow():
    # Each key scores 16 more than the one before, so far above the diagonal the scores exceed their row's
    # logsumexp by more than an exponential can hold, and each query sees itself alone.
    layout = StepLayout.build(CaptureSpec([list(range(0, 64, 4))], [64]).spans, 1, 64, 0)
    query, key = torch.ones(1, 1, 64, 8), torch.arange(64.0)[:, None].expand(1, 1, 64, 8) * 2
    _, lse, _ = dense_attention(query, key, key, [(0, 0, 64)], 1.0)
    ours = column_sums(query, key, lse, layout.weight_BT, layout.lo_BT, layout.hi_BT(None), scaling=1.0)
    torch.testing.assert_close(ours, layout.weight_BT[:, None], atol=0, rtol=2e-4)


@pytest.mark.parametrize("delta", [0, 1, 3])
def test_uniform_attention_by_hand(delta):
    # Zero queries attend to each of the q + 1 keys alike, and each step is one token.
    layout = StepLayout.build(CaptureSpec([[0, 1, 2, 3]], [4]).spans, 1, 4, delta)
    zero, lse = torch.zeros(1, 1, 4, 8), torch.arange(1.0, 5.0).log()[None, None]
    ours = column_sums(zero, zero, lse, layout.weight_BT, layout.lo_BT, layout.hi_BT(None), scaling=1.0)
    expected = [sum(1 / (j + 1) for j in range(4) if j >= k + delta) for k in range(4)]
    torch.testing.assert_close(layout.step_means(ours)[0], torch.tensor(expected))


def test_threads_change_nothing_and_leave_their_number(monkeypatch, two_threads):
    arguments, options, *_ = case(LONG, dtype=torch.float32)
    monkeypatch.setattr(columns, "TILE_KEYS", 32)
    alone = column_sums(*arguments, **options)
    workers = set()
    tile_sums = columns._tile_sums

    def watched(*args):
        workers.add((threading.get_ident(), torch.get_num_threads(), torch.is_grad_enabled()))
        return tile_sums(*args)

    monkeypatch.setattr(columns, "_tile_sums", watched)
    monkeypatch.setattr(columns, "THREADED", 0)
    assert torch.equal(column_sums(*arguments, **options), alone)
    assert threading.get_ident() not in {ident for ident, *_ in workers}
    assert {rest for _, *rest in workers for rest in [tuple(rest)]} == {(1, False)}
    assert torch.get_num_threads() == 2 == in_a_new_thread(torch.get_num_threads)


def test_an_exception_in_a_thread_is_raised_and_leaves_their_number(monkeypatch, two_threads):
    arguments, options, *_ = case(LONG, dtype=torch.float32)
    monkeypatch.setattr(columns, "TILE_KEYS", 32)
    monkeypatch.setattr(columns, "THREADED", 0)

    def fail(*args):
        raise MemoryError("no room for a tile")

    monkeypatch.setattr(columns, "_tile_sums", fail)
    with pytest.raises(MemoryError):
        column_sums(*arguments, **options)
    assert torch.get_num_threads() == 2 == in_a_new_thread(torch.get_num_threads)


@pytest.mark.parametrize("softcap, window", [(None, None), (2.0, None), (None, 600)])
def test_never_holds_more_than_a_tile(monkeypatch, largest, softcap, window):
    # 2048 tokens: one dense matrix of 4 heads would be 16 million scores.
    monkeypatch.setattr(columns, "THREADED", 2**40)  # the watch sees its own thread only
    spec = CaptureSpec([list(range(300, 2048, 16))], [2048])
    layout = StepLayout.build(spec.spans, 1, 2048, 4)
    query, key, lse = torch.randn(1, 4, 2048, 8), torch.randn(1, 2, 2048, 8), torch.full((1, 4, 2048), 9.0)
    inputs = layout.weight_BT, layout.lo_BT, layout.hi_BT(window)
    with largest() as seen:
        column_sums(query, key, lse, *inputs, scaling=0.3, softcap=softcap)
    assert 4 * columns.CPU_TILE // 2 < seen.bytes <= 4 * columns.CPU_TILE
