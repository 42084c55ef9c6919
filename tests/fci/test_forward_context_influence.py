"""The public function: parity with eager attention, what it leaves behind, and what it refuses."""

import pytest
import torch
import transformers
from torch import nn

import attnrl.fci as fci
from attnrl.method import influence as dense

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


@pytest.mark.parametrize("reduction", sorted(dense.REDUCTIONS))
def test_equals_the_methods_dense_definition(models, eager, reduction):
    model = models["qwen2"]
    alpha = dense.step_attention(eager(model, IDS), STARTS)
    expected = dense.REDUCTIONS[reduction](dense.forward_context_influence(alpha, 2))
    ours = fci.forward_context_influence(model, IDS, STARTS, delta=2, reduction=reduction)
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-4)


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
    "starts, problem",
    [
        ([], "empty"),
        ([20, 10], "ascend"),
        ([10, 10], "ascend"),
        ([10, 96], "96 is outside the sequence of 96 tokens"),
        ([-1, 5], "-1 is outside"),
    ],
)
def test_refuses_bad_starts(models, starts, problem):
    with pytest.raises(fci.StepStartsError, match=problem):
        fci.forward_context_influence(models["llama"], IDS, starts)


def test_refuses_bad_arguments(models):
    with pytest.raises(ValueError, match=r"\[T\] or \[1, T\]"):
        fci.forward_context_influence(models["llama"], IDS.expand(2, -1), STARTS)
    with pytest.raises(ValueError, match="zscore_max"):
        fci.forward_context_influence(models["llama"], IDS, STARTS, reduction="median")
    with pytest.raises(ValueError, match="delta"):
        fci.forward_context_influence(models["llama"], IDS, STARTS, delta=-1)


def test_refuses_models_off_the_interface(models):
    with pytest.raises(fci.FciUnsupportedError, match="not a transformers model"):
        fci.forward_context_influence(nn.Linear(2, 2), IDS, STARTS)

    class OwnAttention(nn.Module):  # as remote code may be: the name is taken, and then not looked at
        config = transformers.LlamaConfig(attn_implementation="eager")

        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(61, 4)

        def set_attn_implementation(self, name):
            self.config._attn_implementation = name

        def forward(self, input_ids, use_cache=False):
            return self.embed(input_ids)

    with pytest.raises(fci.FciUnsupportedError, match="no attention layer was captured"):
        fci.forward_context_influence(OwnAttention(), IDS, STARTS)
    assert OwnAttention.config._attn_implementation == "eager"


def test_refuses_a_model_whose_softmax_is_not_that_of_sdpa():
    config = transformers.Gemma2Config(
        vocab_size=61, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16,
    )  # fmt: skip
    model = transformers.Gemma2ForCausalLM(config)
    with pytest.raises(fci.FciUnsupportedError, match="sdpa"):
        fci.forward_context_influence(model, IDS, STARTS)
    assert model.config._attn_implementation != fci.ATTENTION
