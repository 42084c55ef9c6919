"""Intervals of queries against the predicate that they stand for, and what a spec refuses."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from attnrl.fci import CaptureSpec, StepStartsError
from attnrl.fci.layout import Span, StepLayout


@st.composite
def specs(draw):
    lengths = draw(st.lists(st.integers(1, 14), min_size=1, max_size=3))
    starts = [sorted(draw(st.sets(st.integers(0, length - 1)))) for length in lengths]
    packed = draw(st.booleans())
    left = (
        [] if packed else draw(st.just([]) | st.lists(st.integers(0, 4), min_size=len(lengths), max_size=len(lengths)))
    )
    return CaptureSpec(starts, lengths, draw(st.integers(0, 5)), packed, left)


@given(spec=specs(), right=st.integers(0, 3), window=st.none() | st.integers(1, 16))
def test_intervals_are_the_predicate_of_eq_5(spec, right, window):
    tokens = max(span.stop for span in spec.spans) + (0 if spec.packed else right)
    layout = StepLayout.build(spec.spans, spec.rows, tokens, spec.delta)
    # Of each token its sequence and its step within it, counted anew from the spec alone.
    owner = {}
    for sequence, (starts, length) in enumerate(zip(spec.step_starts, spec.lengths, strict=True)):
        row = 0 if spec.packed else sequence
        first = sum(spec.lengths[:sequence]) if spec.packed else (spec.left_padding or [0] * 9)[sequence]
        for token in range(length):
            owner[row, first + token] = sequence, sum(start <= token for start in starts) - 1
    sizes = {place: sum(other == place for other in owner.values()) for place in owner.values()}
    lo, hi = layout.lo_BT, layout.hi_BT(window)
    assert layout.steps == sum(map(len, spec.step_starts))
    for row in range(spec.rows):
        for t in range(tokens):
            sequence, step = owner.get((row, t), (None, -1))
            if step < 0:
                assert layout.weight_BT[row, t] == 0 and layout.step_BT[row, t] == layout.steps
            else:
                assert layout.weight_BT[row, t] == pytest.approx(1 / sizes[sequence, step])
                assert layout.step_BT[row, t] == sum(map(len, spec.step_starts[:sequence])) + step
            counted = [
                q
                for q in range(t, tokens)
                if step >= 0
                and (at := owner.get((row, q), (None, 0)))[0] == sequence
                and at[1] >= step + spec.delta
                and (window is None or q - t < window)
            ]
            assert list(range(lo[row, t], hi[row, t])) == counted


def test_a_packed_layout_by_hand():
    layout = StepLayout.build((Span(0, 0, 5, (1, 2)), Span(0, 5, 8, (5, 6, 7))), 1, 8, delta=1)
    assert layout.lo_BT.tolist() == [[8, 2, 8, 8, 8, 6, 7, 8]]
    assert layout.end_BT.tolist() == [[5, 5, 5, 5, 5, 8, 8, 8]]
    assert layout.hi_BT(2).tolist() == [[2, 3, 4, 5, 5, 7, 8, 8]]
    assert layout.step_BT.tolist() == [[5, 0, 1, 1, 1, 2, 3, 4]]
    torch.testing.assert_close(layout.weight_BT, torch.tensor([[0, 1, 1 / 3, 1 / 3, 1 / 3, 1, 1, 1]]))
    assert layout.bounds.tolist() == [0, 5, 8] and layout.longest == 5


def test_padding_lies_between_the_bounds_of_sequences():
    # Rows of 6 end to end: one behind two tokens of padding, one in front of two, one behind one.
    spans = (Span(0, 2, 6, ()), Span(1, 0, 4, ()), Span(2, 1, 6, ()))
    layout = StepLayout.build(spans, 3, 6, delta=1)
    assert layout.bounds.tolist() == [0, 2, 6, 10, 12, 13, 18] and layout.longest == 5
    assert layout.bounds.dtype == torch.int32


def test_step_means_over_rows():
    layout = StepLayout.build((Span(0, 1, 4, (2,)), Span(1, 0, 3, (0, 2))), 2, 4, delta=1)
    columns = torch.tensor([[[9.0, 9.0, 1.0, 3.0]], [[4.0, 6.0, 7.0, 9.0]]])
    assert layout.step_means(columns).tolist() == [[2.0, 5.0, 7.0]]


@pytest.mark.parametrize(
    "starts, named",
    [
        ([3, 2], r"sequence 1: .*\[3, 2\]"),
        ([2, 2], r"sequence 1: .*\[2, 2\]"),
        ([2, 7], "sequence 1: .* 7"),
        ([-1], "sequence 1: .* -1"),
    ],
)
def test_step_starts_are_checked(starts, named):
    with pytest.raises(StepStartsError, match=named):
        CaptureSpec([[0], starts], [4, 7])


@pytest.mark.parametrize(
    "options, named",
    [
        ({"lengths": [4]}, "lengths"),
        ({"lengths": [4, 0], "step_starts": [[0], []]}, "sequence 1"),
        ({"layers": [2, 0]}, "layers"),
        ({"delta": 1.5}, "delta"),
        ({"delta": -1}, "delta.*-1"),
        ({"layers": []}, r"layers.*\[\]"),
        ({"heads": [1, 1]}, r"heads.*\[1, 1\]"),
        ({"heads": [-1]}, r"heads.*\[-1\]"),
        ({"left_padding": [1]}, "left_padding"),
        ({"left_padding": [1, 0], "packed": True}, "left_padding"),
        ({"left_padding": [0, -1]}, "left_padding.*-1"),
    ],
)
def test_specs_are_checked(options, named):
    with pytest.raises(ValueError, match=named):
        CaptureSpec(**{"step_starts": [[0], [1]], "lengths": [4, 7], **options})
