"""Capture in a batched forward: same numbers as alone, nothing changed outside, and what it refuses."""

import copy

import pytest
import torch

from attnrl.fci import CaptureSpec, FciUnsupportedError, StepStartsError, capture, enable, enabled
from attnrl.fci.capture import captured_sdpa

LENGTHS = [96, 40, 61, 17, 5]
STARTS = [
    [13, 14, 22, 30, 47, 50, 61, 62, 75, 90],
    [3, 9, 12, 20, 21, 39],
    [60],
    [],
    [0, 1, 2, 3, 4],
]
IDS = torch.randint(1, 61, (5, 96), generator=torch.Generator().manual_seed(2))
MASK = (torch.arange(96) < torch.tensor(LENGTHS)[:, None]).long()
IDS = IDS * MASK


@pytest.fixture
def enabled_model(model):
    with enabled(model):
        yield model


def run(model, ids, spec, **kwargs):
    with torch.no_grad(), capture(spec) as captured:
        model(ids, use_cache=False, **kwargs)
    return captured.influence()


@pytest.mark.parametrize("masked", [True, False])
def test_padded_rows_equal_rows_alone(enabled_model, eager, oracle, masked):
    spec = CaptureSpec(STARTS, LENGTHS, delta=2)
    kwargs = {"attention_mask": MASK} if masked else {}
    batched = run(enabled_model, IDS, spec, **kwargs)
    for row, (starts, length) in enumerate(zip(STARTS, LENGTHS, strict=True)):
        expected = oracle(eager(enabled_model, IDS[row : row + 1, :length]), starts, 2)
        assert batched[row].shape == (3, 4, len(starts))
        torch.testing.assert_close(batched[row], expected, atol=1e-5, rtol=0)


def test_block_size_does_not_matter(enabled_model):
    whole = run(enabled_model, IDS, CaptureSpec(STARTS, LENGTHS, 2, memory_bytes=2**30), attention_mask=MASK)
    for memory in (0, 5 * 4 * 96 * 8 * 7):  # one and seven rows at a time
        blocked = run(enabled_model, IDS, CaptureSpec(STARTS, LENGTHS, 2, memory), attention_mask=MASK)
        for one, other in zip(whole, blocked, strict=True):
            torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)


def test_capture_off_is_sdpa_with_its_gradients(model):
    def logits_and_gradients():
        twin = copy.deepcopy(model).train()
        if enabling:
            enable(twin)
        logits = twin(IDS, attention_mask=MASK, use_cache=False).logits
        logits.logsumexp(-1).mean().backward()
        return logits.detach(), [p.grad for p in twin.parameters()]

    enabling = False
    stock_logits, stock_gradients = logits_and_gradients()
    enabling = True
    logits, gradients = logits_and_gradients()
    assert torch.equal(logits, stock_logits)
    for one, other in zip(gradients, stock_gradients, strict=True):
        assert (one is None and other is None) or torch.equal(one, other)


def test_generates_as_sdpa(model):
    prompts = {"input_ids": IDS[:2].flip(1), "attention_mask": MASK[:2].flip(1)}  # padded on the left
    settings = {"do_sample": False, "max_new_tokens": 5, "pad_token_id": 0}
    stock = model.generate(**prompts, **settings)
    with enabled(model):
        assert torch.equal(model.generate(**prompts, **settings), stock)


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable. is deprecated")  # its new name is newer
@pytest.mark.parametrize("checkpointing", [False, True])
def test_capture_on_changes_nothing_in_a_training_forward(models, checkpointing):
    spec = CaptureSpec(STARTS, LENGTHS, delta=2)

    def step(capturing):
        twin = copy.deepcopy(models["qwen2"]).train()
        enable(twin)
        if checkpointing:
            twin.gradient_checkpointing_enable({"use_reentrant": False})
        if not capturing:
            logits = twin(IDS, use_cache=False).logits
            captured = None
            logits.logsumexp(-1).mean().backward()
        else:
            with capture(spec) as captured:
                logits = twin(IDS, use_cache=False).logits
                logits.logsumexp(-1).mean().backward()
        return logits.detach(), [p.grad for p in twin.parameters()], captured

    logits, gradients, captured = step(capturing=True)
    stock_logits, stock_gradients, _ = step(capturing=False)
    assert torch.equal(logits, stock_logits)
    assert all(torch.equal(a, b) for a, b in zip(gradients, stock_gradients, strict=True))
    influence = captured.influence()
    assert not any(row.requires_grad for row in influence)
    with enabled(models["qwen2"]):
        for one, other in zip(influence, run(models["qwen2"], IDS, spec), strict=True):
            torch.testing.assert_close(one, other)


def test_autocast_does_not_reach_the_sums(models):
    model, spec = models["llama"], CaptureSpec(STARTS, LENGTHS, delta=2)
    seen = []
    with enabled(model), torch.autocast("cpu", torch.bfloat16):
        seen = run(model, IDS, spec)
    assert all(row.dtype == torch.float32 for row in seen)
    half = copy.deepcopy(model).bfloat16()
    with enabled(half):
        assert all(row.dtype == torch.float32 for row in run(half, IDS, spec))


def test_captures_nest_and_end(models):
    model, spec = models["qwen3"], CaptureSpec([STARTS[0]], [96])
    with enabled(model), torch.no_grad(), capture(spec) as outer:
        with pytest.raises(RuntimeError, match="stop"), capture(spec) as inner:
            model(IDS[:1], use_cache=False)
            raise RuntimeError("stop")
        assert sorted(inner.layers) == [0, 1, 2]
        assert not outer.layers
        model(IDS[:1], use_cache=False)
    model(IDS[:1], use_cache=False)  # after the captures: nothing to fill
    assert torch.equal(outer.influence()[0], inner.influence()[0])


def test_refuses_other_masks(models):
    model = models["llama"]
    spec = CaptureSpec([[4, 8]], [96])
    left = MASK[1:2].flip(1)
    packed = torch.cat([torch.arange(40), torch.arange(56)])[None]
    with enabled(model):
        for kwargs in ({"attention_mask": left}, {"position_ids": packed}):
            with pytest.raises(FciUnsupportedError, match="packed, left-padded"):
                run(model, IDS[:1], spec, **kwargs)
        bias = torch.zeros(1, 1, 96, 96)
        with pytest.raises(FciUnsupportedError, match="mask"):
            run(model, IDS[:1], spec, attention_mask=bias)


def test_refuses_a_forward_of_another_shape(models):
    model = models["llama"]
    with enabled(model):
        with pytest.raises(ValueError, match="1 rows of 30 tokens"):
            run(model, IDS[:1, :30], CaptureSpec([[4]], [96]))
        with pytest.raises(ValueError, match="2 rows"):
            run(model, IDS[:2], CaptureSpec([[4]], [96]))
        cache = model(IDS[:1, :50]).past_key_values
        with pytest.raises(FciUnsupportedError, match="use_cache=False"):
            run(model, IDS[:1, 50:], CaptureSpec([[4]], [46]), past_key_values=cache)


def test_a_window_without_a_mask_is_causal_as_in_sdpa(models):
    layer = models["llama"].model.layers[0].self_attn
    q, k = torch.randn(1, 4, 30, 16), torch.randn(1, 2, 30, 16)
    spec = CaptureSpec([[0, 5, 9, 20]], [30], delta=1)
    seen = []
    for window in (3, None):
        with capture(spec) as captured:
            captured_sdpa(layer, q, k, k, None, scaling=0.5, sliding_window=window)
        seen.append(captured.influence()[0])
    assert torch.equal(*seen)


@pytest.mark.parametrize("argument", ["softcap", "s_aux", "position_bias"])
def test_refuses_what_sdpa_does_not_compute(models, argument):
    layer = models["llama"].model.layers[0].self_attn
    q = torch.randn(1, 4, 6, 16)
    with pytest.raises(FciUnsupportedError, match=argument):
        captured_sdpa(layer, q, q, q, None, **{argument: torch.ones(4)})


def test_not_enabled_is_named(models):
    with pytest.raises(FciUnsupportedError, match="'attnrl_sdpa'"):
        run(models["llama"], IDS, CaptureSpec(STARTS, LENGTHS))


def test_spec_is_checked():
    with pytest.raises(StepStartsError, match="row 1: step start 7 is outside"):
        CaptureSpec([[0], [2, 7]], [4, 7])
    with pytest.raises(ValueError, match="1 rows of step starts for 2 lengths"):
        CaptureSpec([[0]], [4, 7])
