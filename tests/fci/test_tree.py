"""Attention along packed trees against the dense definition with an ancestor mask."""

import pytest
import torch
from architectures import ARCHITECTURES, build, config_of
from hypothesis import given
from hypothesis import strategies as st

from attnrl.fci import CaptureSpec, capture, influence_by_head
from attnrl.fci.attention import LayerAttention
from attnrl.fci.tree import TreeLayout
from attnrl.fci.tree_attention import attend_tree

SINKS = torch.tensor([-1.0, 0.5, 2.0, 6.0], dtype=torch.float64)
KINDS = {
    "plain": {},
    "window": {"window": 4},
    "window_of_one": {"window": 1},
    "softcap": {"softcap": 1.5},
    "softcap_window": {"softcap": 1.5, "window": 5},
    "sinks": {"sinks_H": SINKS},
    "sinks_window": {"sinks_H": SINKS, "window": 4},
}
# Two trees; in the first a branch of a branch, several branches at one place, and one at a token that has two.
LENGTHS = [5, 4, 3, 1, 6, 2, 2, 7, 3, 4, 1, 5]
PARENTS = [None, 0, 1, 2, 2, 1, 0, 0, 7, None, 9, 9]


@st.composite
def trees(draw):
    """Lengths and parents of segments in depth-first order."""
    parents, path = [None], [0]
    for segment in range(1, draw(st.integers(1, 12))):
        if draw(st.booleans()) and draw(st.booleans()):
            parents.append(None)
            path = [segment]
        else:
            keep = draw(st.integers(1, len(path)))
            parents.append(path[keep - 1])
            path = [*path[:keep], segment]
    return [draw(st.integers(1, 7)) for _ in parents], parents


def ranges_of(lengths):
    starts = [sum(lengths[:i]) for i in range(len(lengths))]
    return [(start, start + length) for start, length in zip(starts, lengths, strict=True)]


def paths_of(lengths, parents):
    """For each segment the places of all tokens from its root to its end."""
    ranges, paths = ranges_of(lengths), []
    for (start, stop), parent in zip(ranges, parents, strict=True):
        paths.append([*([] if parent is None else paths[parent]), *range(start, stop)])
    return paths


def visible(lengths, parents, window=None):
    """Whether query q sees key k, straight from the definition."""
    seen_TT = torch.zeros(sum(lengths), sum(lengths), dtype=torch.bool)
    for path in paths_of(lengths, parents):
        for depth, query in enumerate(path):
            first = 0 if window is None else max(0, depth - window + 1)
            seen_TT[query, path[first : depth + 1]] = True
    return seen_TT


def operands(tokens, key_heads=2, value_dim=8, dtype=torch.float64):
    generator = torch.Generator().manual_seed(3)
    shapes = (4, 8), (key_heads, 8), (key_heads, value_dim)
    return [
        (torch.randn(1, heads, tokens, dim, generator=generator, dtype=torch.float64) * 1.5).to(dtype)
        for heads, dim in shapes
    ]


def dense(tensors, seen_TT, window=None, softcap=None, sinks_H=None):
    query, key, value = tensors
    key, value = (x.repeat_interleave(4 // x.shape[1], 1) for x in (key, value))
    scores = query @ key.mT * 0.4
    if softcap is not None:
        scores = softcap * (scores / softcap).tanh()
    scores = scores.masked_fill(~seen_TT, -torch.inf)
    if sinks_H is not None:
        scores = torch.cat([scores, sinks_H[:, None, None].expand(1, -1, len(seen_TT), 1)], -1)
    return scores.softmax(-1)[..., : len(seen_TT)] @ value, scores.logsumexp(-1)


@given(trees(), st.one_of(st.none(), st.integers(1, 40)))
def test_tiles_hold_each_pair_of_token_and_ancestor_once(tree, window):
    lengths, parents = tree
    count_TT = torch.zeros(sum(lengths), sum(lengths))
    built = TreeLayout.build(ranges_of(lengths), parents)
    tiles = built.tiles(window)
    for tile in tiles:
        if tile.full:
            seen = torch.ones(tile.stop - tile.start, tile.last - tile.first, dtype=torch.bool)
        else:
            seen = tile.bias_qk(torch.float32, torch.device("cpu")) == 0
        assert seen.any(1).all()  # a row without a key has no softmax
        count_TT[tile.start : tile.stop, tile.first : tile.last] += seen
    assert torch.equal(count_TT, visible(lengths, parents, window).float())
    own = [tile for tile in tiles if tile.own]
    assert tiles[: len(own)] == own
    assert [token for tile in own for token in range(tile.start, tile.stop)] == list(range(sum(lengths)))


@given(trees(), st.one_of(st.none(), st.integers(1, 40)), st.integers(1, 9))
def test_strips_hold_what_their_tile_does(tree, window, rows):
    lengths, parents = tree
    for tile in TreeLayout.build(ranges_of(lengths), parents).tiles(window):
        whole, parts = (torch.zeros(sum(lengths), sum(lengths), dtype=torch.bool) for _ in range(2))
        whole[tile.start : tile.stop, tile.first : tile.last] = tile.bias_qk(torch.float32, torch.device("cpu")) == 0
        for strip in tile.strips(rows):
            assert (strip.own, strip.stop - strip.start <= rows) == (tile.own, True)
            seen = strip.bias_qk(torch.float32, torch.device("cpu")) == 0
            assert seen.any(1).all()
            assert seen.any(0).all()
            parts[strip.start : strip.stop, strip.first : strip.last] = seen
        assert torch.equal(whole, parts)


@pytest.mark.parametrize("in_strips", [False, True])
@pytest.mark.parametrize(("key_heads", "value_dim"), [(2, 8), (4, 8), (1, 6)])
@pytest.mark.parametrize("kind", KINDS)
def test_output_logsumexp_and_gradients(kind, key_heads, value_dim, in_strips, monkeypatch):
    if in_strips:
        monkeypatch.setattr("attnrl.fci.tree.LEAST_STRIP", 2)
        monkeypatch.setattr("attnrl.fci.tree_attention.CPU_PANEL_BYTES", 500)
    settings = dict(KINDS[kind])
    tensors = [x.requires_grad_() for x in operands(sum(LENGTHS), key_heads, value_dim)]
    if "sinks_H" in settings:
        settings["sinks_H"] = settings["sinks_H"].clone().requires_grad_()
    leaves = [*tensors, *([settings["sinks_H"]] if "sinks_H" in settings else [])]
    weight = torch.randn(1, 4, sum(LENGTHS), value_dim, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    seen_TT = visible(LENGTHS, PARENTS, settings.get("window"))
    expected, expected_lse = dense(tensors, seen_TT, **settings)
    expected_grads = torch.autograd.grad((expected * weight).sum(), leaves)
    layer = LayerAttention(*tensors, scaling=0.4, **settings)
    output, lse = attend_tree(layer, TreeLayout.build(ranges_of(LENGTHS), PARENTS))
    torch.testing.assert_close(output, expected)
    torch.testing.assert_close(lse, expected_lse)
    assert not lse.requires_grad
    for grad, its in zip(torch.autograd.grad((output * weight).sum(), leaves), expected_grads, strict=True):
        torch.testing.assert_close(grad, its)


@pytest.mark.parametrize("kind", ["plain", "window", "softcap", "sinks"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.bfloat16, 3e-2)])
def test_in_other_precisions(kind, dtype, tolerance):
    settings = {name: x.to(dtype) if name == "sinks_H" else x for name, x in KINDS[kind].items()}
    tensors = operands(sum(LENGTHS), dtype=dtype)
    leaves = [x.clone().requires_grad_() for x in tensors]
    output, lse = attend_tree(
        LayerAttention(*leaves, scaling=0.4, **settings), TreeLayout.build(ranges_of(LENGTHS), PARENTS)
    )
    assert (output.dtype, lse.dtype) == (dtype, torch.float32)
    exact = [x.double().requires_grad_() for x in tensors]
    seen_TT = visible(LENGTHS, PARENTS, settings.get("window"))
    doubles = {name: x.double() if name == "sinks_H" else x for name, x in settings.items()}
    expected, expected_lse = dense(exact, seen_TT, **doubles)
    torch.testing.assert_close(output.double(), expected, atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(lse.double(), expected_lse, atol=tolerance, rtol=tolerance)
    expected.square().sum().backward()
    output.square().sum().backward()
    for leaf, its in zip(leaves, exact, strict=True):
        scale = float(its.grad.abs().max())
        torch.testing.assert_close(leaf.grad.double() / scale, its.grad / scale, atol=2 * tolerance, rtol=0)


# --- under capture ------------------------------------------------------------------------------------------------

STEPS = [[], [], [], [], [0, 2, 3, 5], [], [], [1, 2, 4, 6], [], [], [], [0, 1, 2, 3]]


@pytest.mark.parametrize("name", ["Llama", "Mistral", "Gemma2", "Gemma3 (text)", "gpt-oss", "Qwen2.5-VL"])
def test_influence_is_that_of_each_path_alone(name):
    """Only the tokens of a sequence itself count, though it attends to those it continues."""
    architecture = next(a for a in ARCHITECTURES if a.name == name)
    config = config_of(architecture)
    if config is None:
        pytest.skip(f"this transformers does not know {architecture.config}")
    model = build(config)
    ids_T = torch.randint(3, 59, (sum(LENGTHS),), generator=torch.Generator().manual_seed(1))
    paths = paths_of(LENGTHS, PARENTS)
    depth_T = torch.empty(sum(LENGTHS), dtype=torch.long)
    for path in paths:
        depth_T[path] = torch.arange(len(path))
    spec = CaptureSpec(STEPS, LENGTHS, delta=1, packed=True, parents=PARENTS)
    with torch.no_grad(), capture(model, spec) as captured:
        model(ids_T[None], position_ids=depth_T[None], use_cache=False)
    for steps, length, path, found in zip(STEPS, LENGTHS, paths, captured.influence(), strict=True):
        if steps:
            starts = [len(path) - length + step for step in steps]
            alone = influence_by_head(model, ids_T[path], starts, delta=1)
            torch.testing.assert_close(found, alone, atol=1e-5, rtol=1e-5)
            assert float(found.max()) > 0.01


@pytest.mark.parametrize(
    ("parents", "options", "named"),
    [
        ([None, 0], {}, "parents"),
        ([None, 0, 0], {"packed": False}, "parents"),
        ([None, 0, 2], {}, "sequence 2"),
        ([None, None, 0], {}, "sequence 2"),
        ([1, None, None], {}, "sequence 0"),
        ([None, 0, 0], {"matrix": True}, "matrix"),
    ],
)
def test_parents_that_make_no_tree_are_refused(parents, options, named):
    with pytest.raises(ValueError, match=named):
        CaptureSpec([[]] * 3, [2, 3, 4], **{"packed": True, "parents": parents, **options})
