"""FlexAttention on packed trees: its block masks, the padding of rows, and how many graphs are compiled."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_tree import KINDS, LENGTHS, PARENTS, dense, operands, ranges_of, trees, visible
from torch._dynamo.exc import FailOnRecompileLimitHit
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn.attention.flex_attention import create_block_mask

from attnrl.fci.attention import LayerAttention
from attnrl.fci.tree import TreeLayout
from attnrl.fci.tree_attention import attend_blocks, attend_tree
from attnrl.fci.tree_blocks import MULTIPLE, TokenVisibility, attend_padded, compiled_flex, flex

CPU = torch.device("cpu")


def visibility_of(lengths, parents, window):
    return TokenVisibility(*TreeLayout.build(ranges_of(lengths), parents).blocks(window, CPU).visibility)


@given(trees(), st.one_of(st.none(), st.integers(1, 40)))
@settings(max_examples=25)
def test_a_token_sees_its_ancestors_and_the_padding_sees_itself(tree, window):
    lengths, parents = tree
    tokens = sum(lengths)
    visibility = visibility_of(lengths, parents, window)
    place_T = torch.arange(len(visibility.end_T))
    expected_TT = torch.eye(len(place_T), dtype=torch.bool)
    expected_TT[:tokens, :tokens] = visible(lengths, parents, window)
    assert (len(place_T), tokens > len(place_T) - MULTIPLE) == (MULTIPLE * -(-tokens // MULTIPLE), True)
    assert torch.equal(visibility.mask_mod()(place_T, place_T, place_T[:, None], place_T), expected_TT)


@given(trees(), st.one_of(st.none(), st.integers(1, 900)), st.sampled_from([1, 40, 150, 300]), st.booleans())
@settings(max_examples=12, deadline=None)
def test_block_masks_are_those_of_create_block_mask(tree, window, scale, in_strips):
    lengths, parents = tree
    visibility = visibility_of([min(length * scale, 500) for length in lengths], parents, window)
    T = len(visibility.end_T)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("attnrl.fci.tree_blocks.PAIRS", 128 * 3 * T if in_strips else 1)
        found = visibility.block_mask()
    expected = create_block_mask(visibility.mask_mod(), None, None, T, T, device="cpu")
    assert found.seq_lengths == expected.seq_lengths
    assert found.BLOCK_SIZE == expected.BLOCK_SIZE
    for name in ("kv", "q", "full_kv", "full_q"):
        for what in ("num_blocks", "indices"):
            mine, its = getattr(found, f"{name}_{what}"), getattr(expected, f"{name}_{what}")
            assert (mine.dtype, mine.shape) == (its.dtype, its.shape)
            assert torch.equal(mine, its)


def test_windows_that_hide_nothing_share_one_block_mask():
    tree = TreeLayout.build(ranges_of(LENGTHS), PARENTS)
    assert tree.blocks(None, CPU) is tree.blocks(sum(LENGTHS), CPU) is tree.blocks(tree.longest, CPU)
    assert tree.blocks(None, CPU) is not tree.blocks(3, CPU)


@pytest.mark.parametrize("lengths", [LENGTHS, [25 * length for length in LENGTHS]], ids=["short", "long"])
@pytest.mark.parametrize("kind", KINDS)
def test_flex_attention_gives_the_same(kind, lengths):
    """Uncompiled on a CPU, where FlexAttention has no backward: the arguments are what is checked."""
    options = dict(KINDS[kind])
    if "window" in options:
        options["window"] *= lengths[0] // LENGTHS[0]
    tensors = operands(sum(lengths))
    layer, tree = LayerAttention(*tensors, scaling=0.4, **options), TreeLayout.build(ranges_of(lengths), PARENTS)
    with torch.no_grad():
        for found, expected in zip(attend_blocks(layer, tree, flex), attend_tree(layer, tree), strict=True):
            torch.testing.assert_close(found, expected.to(found.dtype), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("key_heads", [1, 2, 4])
def test_padding_changes_no_gradient(key_heads):
    """With the definition of attention in FlexAttention's place, which has a backward on a CPU."""

    def by_definition(query, key, value, visibility, lists, scaling, softcap):
        assert query.shape[2] % MULTIPLE == 0
        assert len(lists) == 8
        place_T = torch.arange(query.shape[2])
        seen_TT = TokenVisibility(*visibility).mask_mod()(place_T, place_T, place_T[:, None], place_T)
        return dense((query, key, value), seen_TT, softcap=softcap)

    blocks = TreeLayout.build(ranges_of(LENGTHS), PARENTS).blocks(4, CPU)
    tensors = [x.requires_grad_() for x in operands(sum(LENGTHS), key_heads)]
    found = attend_padded(*tensors, blocks, 0.4, 1.5, by_definition)
    expected = dense(tensors, visible(LENGTHS, PARENTS, 4), softcap=1.5)
    for mine, its in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, its)
        mine_grads = torch.autograd.grad(mine.square().sum(), tensors[: 2 + (mine.dim() == 4)], retain_graph=True)
        its_grads = torch.autograd.grad(its.square().sum(), tensors[: 2 + (its.dim() == 4)], retain_graph=True)
        for grad, its_grad in zip(mine_grads, its_grads, strict=True):
            torch.testing.assert_close(grad, its_grad)


def layer_of(tokens, window, softcap, transposed):
    """A layer's attention over a trunk and two continuations, in one of two layouts of memory."""
    third = tokens // 3
    tensors = [torch.randn(1, tokens, heads, 8) for heads in (4, 2, 2)]
    tensors = [x.transpose(1, 2) if transposed else x.transpose(1, 2).contiguous() for x in tensors]
    tree = TreeLayout.build([(0, third), (third, 2 * third), (2 * third, tokens)], [None, 0, 0])
    return LayerAttention(*tensors, scaling=0.4, window=window, softcap=softcap), tree


def test_one_graph_serves_all_lengths_and_windows():
    """Compiled without code for a device: the graphs are those that every device has."""
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("eager")
    attend = compiled_flex(counter)
    for expected_graphs, softcap in enumerate((None, 5.0, 6.0), start=1):
        for tokens, window, transposed in [(256, 9, 1), (90, None, 0), (300, 9, 0), (512, 400, 1), (1000, 200, 1)]:
            layer, tree = layer_of(tokens, window, softcap, bool(transposed))
            with torch.no_grad():
                for found, expected in zip(attend_blocks(layer, tree, attend), attend_tree(layer, tree), strict=True):
                    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
            assert counter.frame_count == expected_graphs


@pytest.mark.parametrize("how", ["stance", "limit"])
def test_what_is_not_compiled_is_an_error(how, monkeypatch):
    torch._dynamo.reset()
    attend = compiled_flex(CompileCounterWithBackend("eager"))
    layer, tree = layer_of(90, None, None, True)
    with torch.no_grad():
        if how == "stance":
            with torch.compiler.set_stance("force_eager"), pytest.raises(RuntimeError):
                attend_blocks(layer, tree, attend)
        else:
            monkeypatch.setattr("attnrl.fci.tree_blocks.GRAPHS", 1)
            attend_blocks(layer, tree, attend)
            layer, tree = layer_of(90, None, 7.0, True)
            with pytest.raises(FailOnRecompileLimitHit):
                attend_blocks(layer, tree, attend)
