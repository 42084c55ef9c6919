"""The public functions: parity with eager attention, memory, what they leave behind, and what they refuse."""

import copy

import pytest
import torch
from torch import nn

import attnrl.fci as fci
from attnrl.fci import attention, columns
from attnrl.method import influence as dense
from attnrl.method.measures import REDUCTIONS

IDS = torch.randint(1, 61, (1, 96), generator=torch.Generator().manual_seed(1))
# Steps of 1 to 17 tokens after a prompt of 13; some short enough that a window of 12 sees four steps back.
STARTS = [13, 14, 22, 24, 27, 28, 30, 47, 50, 61, 62, 63, 65, 66, 75, 90]


def test_equals_eager_attention(model, eager, oracle):
    probs = eager(model, IDS)
    for delta in (0, 1, 4):
        expected = oracle(probs, STARTS, delta)
        ours = fci.forward_context_influence(model, IDS, STARTS, delta=delta)
        torch.testing.assert_close(ours, expected.amax((0, 1)), atol=1e-5, rtol=0)
        assert ours.dtype == torch.float32
        assert ours.amax() > 0.01
    assert probs.amax(-1).mean() > 0.5  # parity on flat attention would prove little


@pytest.mark.parametrize("reduction", sorted(REDUCTIONS))
def test_equals_the_methods_dense_definition(models, eager, reduction):
    model = models["qwen2"]
    alpha = dense.step_attention(eager(model, IDS), STARTS)
    expected = REDUCTIONS[reduction](dense.forward_context_influence(alpha, 2))
    ours = fci.forward_context_influence(model, IDS, STARTS, delta=2, reduction=reduction)
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-4)


def test_step_attention_by_head_is_the_methods_and_gives_the_influence(model, eager):
    alpha = fci.step_attention_by_head(model, IDS, STARTS)
    assert alpha.dtype == torch.float32
    torch.testing.assert_close(alpha, dense.step_attention(eager(model, IDS), STARTS), atol=1e-5, rtol=0)
    for delta in (0, 3):
        influence = fci.influence_by_head(model, IDS, STARTS, delta=delta)
        torch.testing.assert_close(dense.forward_context_influence(alpha, delta), influence, atol=1e-5, rtol=0)


@pytest.mark.parametrize("layers, heads", [([2], None), (None, [1, 3]), ([0, 2], [3])])
def test_layers_and_heads_are_slices(models, layers, heads):
    model, chosen = models["qwen2_mixed"], {"layers": layers, "heads": heads}
    whole = fci.influence_by_head(model, IDS, STARTS)
    part = whole[layers or [0, 1, 2]][:, heads or [0, 1, 2, 3]]
    torch.testing.assert_close(fci.influence_by_head(model, IDS, STARTS, **chosen), part)
    for reduction, reduce in REDUCTIONS.items():
        ours = fci.forward_context_influence(model, IDS, STARTS, reduction=reduction, **chosen)
        torch.testing.assert_close(ours, reduce(part), atol=1e-5, rtol=1e-4)
    alpha = fci.step_attention_by_head(model, IDS, STARTS)[layers or [0, 1, 2]][:, heads or [0, 1, 2, 3]]
    torch.testing.assert_close(fci.step_attention_by_head(model, IDS, STARTS, **chosen), alpha)


def test_looks_at_a_model_in_training_without_its_dropout(models):
    model = copy.deepcopy(models["llama"])
    expected = fci.forward_context_influence(model, IDS, STARTS)
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.5
    assert torch.equal(fci.forward_context_influence(model.train(), IDS, STARTS), expected)
    assert model.training


LONG = torch.randint(1, 61, (1, 2048), generator=torch.Generator().manual_seed(6))


@pytest.mark.parametrize("family", ["llama", "mistral_window", "gemma2", "gpt_oss"])
@pytest.mark.parametrize("packed", [False, True])
def test_no_matrix_of_all_tokens_is_ever_held(monkeypatch, build, largest, packs, family, packed):
    # The weights and activations of the tiny model are smaller than the panels; a matrix of booleans for one head
    # would be 4 MiB.
    monkeypatch.setattr(attention, "CPU_PANEL_BYTES", 2**19)
    monkeypatch.setattr(columns, "CPU_TILE", 2**16)
    monkeypatch.setattr(columns, "THREADED", 2**60)  # the watch sees its own thread only
    window = {} if family == "llama" else {"sliding_window": 300}
    model = build(family, num_hidden_layers=2, hidden_size=16, intermediate_size=16, **window)
    if packed and not packs(model):
        pytest.skip("transformers does not tell its packed sequences apart")
    with largest() as seen:
        if packed:
            starts = [list(range(40, 1000, 60)), list(range(40, 1048, 60))]
            spec = fci.CaptureSpec(starts, [1000, 1048], packed=True)
            positions = torch.cat([torch.arange(1000), torch.arange(1048)])[None]
            with torch.no_grad(), fci.capture(model, spec) as captured:
                model(LONG, position_ids=positions, use_cache=False)
            assert captured.influence()[1].shape == (2, 4, 17)
        else:
            assert fci.forward_context_influence(model, LONG, list(range(40, 2048, 60))).amax() > 0
    assert 2**17 < seen.bytes < 2**20


@pytest.mark.parametrize("family", ["llama", "mistral_window"])
def test_step_attention_by_head_holds_no_matrix_of_all_tokens(monkeypatch, build, largest, family):
    monkeypatch.setattr(attention, "CPU_PANEL_BYTES", 2**19)
    model = build(family, num_hidden_layers=2, hidden_size=16, intermediate_size=16)
    with largest() as seen:
        alpha = fci.step_attention_by_head(model, LONG, [40, 100, 500, 1000, 1010, 1990])
    assert (alpha.diagonal(dim1=-2, dim2=-1) > 0).all()
    assert seen.bytes < 2**20


def test_takes_flat_ids_and_short_responses(models):
    model = models["llama"]
    flat = fci.forward_context_influence(model, IDS[0], STARTS)
    assert torch.equal(flat, fci.forward_context_influence(model, IDS, STARTS))
    assert fci.forward_context_influence(model, IDS, [95]).tolist() == [0.0]
    assert fci.forward_context_influence(model, IDS, STARTS[:4]).tolist() == [0.0] * 4


def test_leaves_the_model_as_it_was(models):
    model = models["qwen2_mixed"]
    model.set_attn_implementation("eager")
    model.train()
    model.model.layers[1].eval()  # a part that was frozen in evaluation mode
    modes = [module.training for module in model.modules()]
    try:
        fci.forward_context_influence(model, IDS, STARTS)
        with pytest.raises(IndexError):
            fci.forward_context_influence(model, IDS + 1000, STARTS)
        assert model.config._attn_implementation == "eager"
        assert [module.training for module in model.modules()] == modes
        assert torch.is_grad_enabled()
        assert all(p.requires_grad and p.grad is None for p in model.parameters())
    finally:
        model.set_attn_implementation("sdpa")
        model.eval()


@pytest.mark.parametrize(
    "starts, named",
    [([], "step_starts"), ([20, 10], r"\[20, 10\]"), ([10, 10], r"\[10, 10\]"), ([10, 96], "96"), ([-1, 5], "-1")],
)
def test_refuses_bad_starts(models, starts, named):
    with pytest.raises(fci.StepStartsError, match=named):
        fci.forward_context_influence(models["llama"], IDS, starts)


def test_takes_lists(models):
    flat = fci.forward_context_influence(models["llama"], IDS[0].tolist(), torch.tensor(STARTS))
    assert torch.equal(flat, fci.forward_context_influence(models["llama"], IDS, STARTS))


def test_refuses_bad_arguments(models):
    with pytest.raises(ValueError, match="input_ids"):
        fci.forward_context_influence(models["llama"], IDS.expand(2, -1), STARTS)
    with pytest.raises(ValueError, match="reduction"):
        fci.forward_context_influence(models["llama"], IDS, STARTS, reduction="median")
    with pytest.raises(ValueError, match="delta"):
        fci.forward_context_influence(models["llama"], IDS, STARTS, delta=-1)


@pytest.mark.parametrize("function", [fci.forward_context_influence, fci.influence_by_head, fci.step_attention_by_head])
def test_refuses_layers_and_heads_that_the_model_has_not(models, function):
    with pytest.raises(ValueError, match="4"):
        function(models["llama"], IDS, STARTS, heads=[0, 4])
    for layers in ([0, 3], [3]):
        with pytest.raises(ValueError, match="3"):
            function(models["llama"], IDS, STARTS, layers=layers)


def test_refuses_what_is_no_transformers_model():
    with pytest.raises(fci.FciUnsupportedError, match="Linear"):
        fci.forward_context_influence(nn.Linear(2, 2), IDS, STARTS)
