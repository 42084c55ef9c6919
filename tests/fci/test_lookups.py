"""Lookups of a capture are those of the dense definition: heads, windows, caps, sinks, padding, packing, panels."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from attnrl.fci import CaptureSpec, capture, lookups
from attnrl.method import influence as dense

LENGTHS = [60, 33, 9]
STARTS = [[5, 9, 17, 18, 30, 41, 52], [2, 12, 20], []]
IDS = torch.randint(1, 61, (3, 60), generator=torch.Generator().manual_seed(4))


@pytest.fixture(params=["llama", "llama_mqa", "gemma2", "gpt_oss"])
def family(request, models):
    return models[request.param]


def run(model, delta=1, **options):
    spec = CaptureSpec(STARTS, LENGTHS, delta=delta, lookups=True, **options)
    with torch.no_grad(), capture(model, spec) as captured:
        model(IDS, use_cache=False)
    return captured


@pytest.mark.parametrize("panel_bytes", [None, 2000])
def test_lookups_are_the_dense_ones(family, eager, monkeypatch, panel_bytes):
    if panel_bytes:
        monkeypatch.setattr(lookups, "CPU_PANEL_BYTES", panel_bytes)
    for delta in (0, 1, 3):
        for row, (ours, starts, length) in enumerate(zip(run(family, delta).lookups(), STARTS, LENGTHS, strict=True)):
            if not starts:
                assert ours.shape[-1] == 0
                continue
            expected = dense.lookups(eager(family, IDS[row : row + 1, :length]), starts, delta)
            assert torch.equal(ours, expected)


def test_some_are_found(models):
    found = torch.cat(run(models["llama"]).lookups(), -1)
    assert found.sum() > 0 and not torch.equal(found, found[:, :1].expand_as(found))


def test_they_stand_beside_influence_and_matrix(models):
    plain, both = run(models["llama"]), run(models["llama"], matrix=True)
    for ours, theirs in zip(plain.lookups(), both.lookups(), strict=True):
        assert torch.equal(ours, theirs)
    for ours, theirs in zip(plain.influence(), both.influence(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


def test_they_must_be_asked_for(models):
    with torch.no_grad(), capture(models["llama"], CaptureSpec(STARTS, LENGTHS)) as captured:
        models["llama"](IDS, use_cache=False)
    with pytest.raises(ValueError, match="lookups"):
        captured.lookups()


def test_a_lookup_by_hand():
    # Two tokens a step; token 5 gives step 0 two thirds, token 4 nothing; token 3 gives it exactly one half.
    attention = torch.zeros(6, 6)
    attention[5, 0] = attention[5, 1] = 1 / 3
    attention[5, 5] = 1 / 3
    attention[3, 0] = attention[3, 3] = 0.5
    attention[4, 4] = attention[2, 2] = attention[1, 1] = attention[0, 0] = 1.0
    assert dense.lookups(attention, [0, 2, 4], delta=1).tolist() == [1.0, 0.0, 0.0]
    assert dense.lookups(attention, [0, 2, 4], delta=0).tolist() == [2.0, 1.0, 1.0]
    assert dense.lookups(attention, [0, 2, 4], delta=3).tolist() == [0.0, 0.0, 0.0]
    # Averaged over the tokens of a step, as eq. 4 has it, nobody gives step 0 over half.
    assert dense.step_attention(attention, [0, 2, 4])[2, 0] < 0.2


@given(st.integers(1, 12), st.integers(0, 4), st.integers(0, 10_000))
def test_no_token_looks_up_two_steps(steps, delta, seed):
    """More than half is given to one step at most: a later step of n tokens has n lookups at most."""
    generator = torch.Generator().manual_seed(seed)
    attention = (
        torch.randn(2 * steps, 2 * steps, generator=generator)
        .mul(4)
        .masked_fill(torch.ones(2 * steps, 2 * steps).triu(1).bool(), -torch.inf)
        .softmax(-1)
    )
    counts = dense.lookups(attention, range(0, 2 * steps, 2), delta)
    assert counts.sum() <= 2 * max(0, steps - delta)
    assert torch.equal(counts, counts.round())


def test_impossible_requests_are_named():
    with pytest.raises(ValueError, match="delta"):
        dense.lookups(torch.eye(3), [0, 1], delta=-1)
    with pytest.raises(ValueError, match="starts"):
        dense.lookups(torch.eye(3), [1, 1])
