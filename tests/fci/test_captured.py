"""What a capture gives out: choices of layers and heads, the step-to-step attention, skipped layers, and errors."""

import pytest
import torch
import transformers

from attnrl.fci import Capture, CaptureSpec, FciUnsupportedError, capture, check_attention, columns
from attnrl.method import influence as dense

LENGTHS = [60, 33, 9]
STARTS = [[5, 9, 17, 18, 30, 41, 52], [2, 12, 20], []]
IDS = torch.randint(1, 61, (3, 60), generator=torch.Generator().manual_seed(4))


def run(model, ids=IDS, starts=STARTS, lengths=LENGTHS, **options):
    with torch.no_grad(), capture(model, CaptureSpec(starts, lengths, delta=2, **options)) as captured:
        model(ids, use_cache=False)
    return captured


@pytest.fixture(params=["llama", "llama_mqa", "gemma2", "gpt_oss"])
def family(request, models):
    return models[request.param]


@pytest.mark.parametrize("layers, heads", [([1], None), ([0, 2], None), (None, [3, 0]), (None, [2]), ([0, 2], [1, 2])])
def test_chosen_layers_and_heads_are_slices_of_the_whole(family, layers, heads):
    whole = run(family, matrix=True)
    part = run(family, layers=layers, heads=heads, matrix=True)
    # Layers come in ascending order, heads in the order asked for.
    chosen = sorted(layers or range(3)), heads or list(range(4))
    for ours, all_of_it in zip(part.influence(), whole.influence(), strict=True):
        torch.testing.assert_close(ours, all_of_it[chosen[0]][:, chosen[1]])
    for ours, all_of_it in zip(part.step_matrices(), whole.step_matrices(), strict=True):
        torch.testing.assert_close(ours, all_of_it[chosen[0]][:, chosen[1]])
    assert part.skipped == {}


def test_the_matrix_is_the_dense_step_attention_of_each_row(model, eager):
    captured = run(model, matrix=True)
    rows = zip(captured.step_matrices(), captured.influence(), STARTS, LENGTHS, strict=True)
    for row, (alpha, influence, starts, length) in enumerate(rows):
        expected = dense.step_attention(eager(model, IDS[row : row + 1, :length]), starts)
        torch.testing.assert_close(alpha, expected, atol=1e-5, rtol=0)
        torch.testing.assert_close(dense.forward_context_influence(alpha, 2), influence, atol=1e-5, rtol=0)


def test_the_matrix_of_packed_sequences(family, packs):
    model = family
    if not packs(model):
        pytest.skip("transformers does not tell its packed sequences apart")
    alone = run(model, matrix=True).step_matrices()
    packed = torch.cat([IDS[row, :length] for row, length in enumerate(LENGTHS)])[None]
    positions = torch.cat([torch.arange(length) for length in LENGTHS])[None]
    spec = CaptureSpec(STARTS, LENGTHS, packed=True, matrix=True)
    with torch.no_grad(), capture(model, spec) as captured:
        model(packed, position_ids=positions, use_cache=False)
    for ours, row in zip(captured.step_matrices(), alone, strict=True):
        torch.testing.assert_close(ours, row, atol=1e-5, rtol=0)


def test_tiles_and_threads_do_not_matter(family, monkeypatch):
    whole = run(family).influence()
    for name, value in {"TILE_KEYS": 8, "CPU_TILE": 256, "THREADED": 0}.items():
        monkeypatch.setattr(columns, name, value)
    for ours, expected in zip(run(family).influence(), whole, strict=True):
        torch.testing.assert_close(ours, expected, atol=1e-6, rtol=1e-5)


def test_without_matrix_there_is_no_step_attention(models):
    with pytest.raises(ValueError, match="matrix"):
        run(models["llama"]).step_matrices()


def test_a_second_forward_replaces_the_first(models):
    model, other = models["llama"], IDS.flip(1)
    with torch.no_grad(), capture(model, CaptureSpec(STARTS, LENGTHS, 2)) as captured:
        model(IDS, use_cache=False)
        model(other, use_cache=False)
    assert torch.equal(captured.influence()[0], run(model, other).influence()[0])


def hybrid():
    """One convolution, then two layers of attention."""
    torch.manual_seed(0)
    config = transformers.Lfm2Config(
        vocab_size=61, hidden_size=32, intermediate_size=32, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, layer_types=["conv", "full_attention", "full_attention"],
    )  # fmt: skip
    return transformers.Lfm2ForCausalLM(config).eval()


def linear_hybrid():
    torch.manual_seed(0)
    config = transformers.Qwen3NextConfig(
        vocab_size=61, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, layer_types=["linear_attention", "full_attention"], num_experts=0,
        linear_num_value_heads=2, linear_num_key_heads=2, linear_key_head_dim=8, linear_value_head_dim=8,
    )  # fmt: skip
    return transformers.Qwen3NextForCausalLM(config).eval()


@pytest.mark.parametrize("build, kind", [(hybrid, "conv"), (linear_hybrid, "linear_attention")])
def test_layers_without_softmax_attention_are_skipped_and_named(build, kind):
    model = build()
    captured = run(model)
    assert captured.skipped == check_attention(model) == {0: kind}
    assert len(captured.influence()[0]) == len(captured.layer_kinds) - 1
    assert run(model, layers=[1]).skipped == {}
    torch.testing.assert_close(run(model, layers=[0, 1]).influence()[0], captured.influence()[0][:1])
    with pytest.raises(FciUnsupportedError, match=kind):
        run(model, layers=[0]).influence()


def test_a_model_without_any_softmax_attention_is_refused():
    config = transformers.MambaConfig(vocab_size=61, hidden_size=32, state_size=4, num_hidden_layers=2)
    model = transformers.MambaForCausalLM(config).eval()
    with pytest.raises(FciUnsupportedError, match="AttentionInterface"):
        check_attention(model)
    captured = run(model)
    assert list(captured.skipped) == [0, 1]
    with pytest.raises(FciUnsupportedError, match="AttentionInterface"):
        captured.influence()


def test_no_forward_no_influence(models):
    with capture(models["llama"], CaptureSpec(STARTS, LENGTHS)) as captured:
        pass
    with pytest.raises(FciUnsupportedError, match="forward"):
        captured.influence()


def test_layers_of_different_heads_must_be_chosen_from():
    kinds = ["full_attention"] * 4
    captured = Capture(CaptureSpec([[0, 1]], [2]), kinds, influence_HS={3: torch.zeros(2, 2), 1: torch.ones(4, 2)})
    with pytest.raises(FciUnsupportedError, match=r"\{1: 4, 3: 2\}"):
        captured.influence()


def test_a_head_that_a_layer_has_not(models):
    with pytest.raises(ValueError, match=r"heads: .*4.*layer 0"):
        run(models["llama"], heads=[1, 4])


@pytest.mark.parametrize("layers", [[3], [0, 3]])
def test_a_layer_that_the_model_has_not(models, layers):
    with pytest.raises(ValueError, match=r"layers: .*3"):
        run(models["llama"], layers=layers).influence()


@pytest.mark.parametrize(
    "ids, options, named",
    [
        (IDS[:1, :30], {"starts": [[4]], "lengths": [60]}, r"1.*30.*\[60\]"),
        (IDS[:2], {"starts": [[4]], "lengths": [60]}, "2.*60"),
        (IDS[:1], {"starts": [[4]], "lengths": [59], "left_padding": [2]}, r"1.*60.*\[59\]"),
        (IDS[:1], {"starts": [[4], []], "lengths": [40, 19], "packed": True}, r"\[40, 19\]"),
        (IDS[:2], {"starts": [[4], []], "lengths": [40, 20], "packed": True}, "2.*60"),
    ],
)
def test_a_forward_of_another_shape_is_refused(models, ids, options, named):
    with pytest.raises(ValueError, match=named):
        run(models["llama"], ids, **options)


def test_a_second_forward_of_another_shape_is_refused_too(models):
    model = models["llama"]
    with torch.no_grad(), capture(model, CaptureSpec(STARTS, LENGTHS)):
        model(IDS, use_cache=False)
        with pytest.raises(ValueError, match=r"2.*60"):
            model(IDS[:2], use_cache=False)
