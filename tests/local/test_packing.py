"""Packed trees: the layout, and that scoring and training on it are those of each path by itself."""

import copy
import random

import architectures
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, Gemma3TextConfig, LlamaConfig, MistralConfig, Qwen2Config

from attnrl.config.method import BranchingConfig
from attnrl.config.schema import LossConfig, OptimizerConfig
from attnrl.fci import forward_context_influence
from attnrl.local.logprobs import TreesUnsupportedError, check_trees
from attnrl.local.packing import pack_rows, pack_trees
from attnrl.local.policy import LocalPolicy
from attnrl.method.steps import Steps
from attnrl.types import TrainingRow

# --- the layout ---------------------------------------------------------------------------------------------------

# Few different ids, so that beginnings are shared, repeated and contained in each other.
some_sequences = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=9).map(tuple), min_size=1, max_size=14)


def tokens_of(pack, index):
    return tuple(pack.input_ids_BT.flatten()[pack.places(index)].tolist())


def prefixes(sequences):
    """The distinct beginnings: as many as a trie has nodes."""
    return {sequence[: i + 1] for sequence in sequences for i in range(len(sequence))}


@given(some_sequences, st.integers(1, 40))
def test_packs_hold_each_sequence_once_within_the_budget(sequences, budget):
    for pack_all in (pack_trees, pack_rows):
        packs = list(pack_all(sequences, budget))
        assert sorted(index for pack in packs for index in pack.sequences) == list(range(len(sequences)))
        for pack in packs:
            assert [tokens_of(pack, i) for i in range(len(pack.sequences))] == [sequences[i] for i in pack.sequences]
            assert pack.lengths == tuple(len(sequences[i]) for i in pack.sequences)
            assert len(pack.sequences) == 1 or pack.tokens <= budget
            for i, length in enumerate(pack.lengths):
                assert pack.position_ids_BT.flatten()[pack.places(i)].tolist() == list(range(length))


@given(some_sequences)
def test_a_tree_holds_each_common_token_once(sequences):
    (pack,) = pack_trees(sequences, 10_000)
    assert pack.tokens == len(prefixes(sequences))
    assert sum(length for length, _ in pack.segments) == pack.tokens


@given(some_sequences, st.data())
def test_no_token_is_shared_behind_the_limit(sequences, data):
    limits = [data.draw(st.integers(0, len(sequence))) for sequence in sequences]
    (pack,) = pack_trees(sequences, 10_000, limits)
    for a in range(len(sequences)):
        behind = set(pack.places(a)[limits[pack.sequences[a]] :].tolist())
        for b in range(len(sequences)):
            if a != b:
                assert not behind & set(pack.places(b).tolist())
    assert [tokens_of(pack, i) for i in range(len(pack.sequences))] == [sequences[i] for i in pack.sequences]


def test_a_thousand_nested_branches():
    (pack,) = pack_trees([(5,) * (length + 1) for length in range(1500)], 10_000)
    assert pack.tokens == 1500
    assert pack.places(1499).tolist() == list(range(1500))


def test_nothing_to_pack():
    assert list(pack_trees([], 10)) == list(pack_rows([], 10)) == []


# --- the numbers --------------------------------------------------------------------------------------------------

SHAPE = dict(
    vocab_size=61,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    max_position_embeddings=256,
    initializer_range=0.2,
    pad_token_id=0,
    bos_token_id=None,
    eos_token_id=1,
)
CONFIGS = {
    "qwen2": Qwen2Config(**SHAPE),
    "llama": LlamaConfig(**SHAPE, tie_word_embeddings=True),
    "gemma3": Gemma3TextConfig(
        **SHAPE, sliding_window=6, layer_types=["sliding_attention", "full_attention"], query_pre_attn_scalar=8
    ),
    "mistral": MistralConfig(**SHAPE, sliding_window=9),
}


@pytest.fixture(scope="module", params=list(CONFIGS))
def model(request):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(CONFIGS[request.param], attn_implementation="sdpa").eval()


def tokens(rng, count):
    return tuple(rng.randrange(2, 61) for _ in range(count))


def random_forests(rng):
    """Rows of a few problems: trunks, branches of trunks and of branches; by chance some are one token long."""
    rows = []
    for _ in range(rng.randint(1, 3)):
        prompt = tokens(rng, rng.randint(1, 8))
        paths = []
        for _ in range(rng.randint(1, 3)):
            grown = [tokens(rng, rng.randint(1, 16))]
            for _ in range(rng.randint(0, 5)):
                parent = rng.choice(grown)
                grown.append(parent[: rng.randint(1, len(parent))] + tokens(rng, rng.randint(0, 9)))
            paths += grown
        for response in paths:
            old = tuple(rng.gauss(-4, 0.7) for _ in response)
            sampler = tuple(value + rng.gauss(0, 0.3) for value in old)
            advantages = tuple(rng.choice([-1.5, -0.5, 0.7, 1.2]) for _ in response)
            rows.append(TrainingRow(prompt, response, old, sampler, advantages))
    return rows


def build_policy(model, reference=None, *, loss=None, packing="tree", **optimizer):
    return LocalPolicy(
        copy.deepcopy(model),
        reference,
        loss=loss or LossConfig(),
        optimizer=OptimizerConfig(**optimizer),
        branching=BranchingConfig(delta=1),
        temperature=0.8,
        packing=packing,
    )


def gradient_by_path(model, reference, rows, loss):
    """Loss, KL and gradient, one path after another with eager attention, straight from eq. 1."""
    plain, its_reference = (copy.deepcopy(m) for m in (model, reference))
    for its in (plain, its_reference):
        its.set_attn_implementation("eager")
    total = sum(len(row.response) for row in rows)
    policy_sum = kl_sum = 0.0
    for row in rows:
        ids = torch.tensor([[*row.prompt, *row.response]])
        places, target = slice(len(row.prompt) - 1, -1), torch.tensor(row.response)[:, None]
        new_N = (plain(ids).logits[0, places].float() / 0.8).log_softmax(-1).gather(1, target)[:, 0]
        with torch.no_grad():
            reference_N = (its_reference(ids).logits[0, places].float() / 0.8).log_softmax(-1).gather(1, target)[:, 0]
        old_N, sampler_N, advantage_N = map(torch.tensor, (row.old_logprobs, row.sampler_logprobs, row.advantages))
        ratio_N = (new_N - old_N).exp()
        loss_N = -torch.minimum(ratio_N * advantage_N, ratio_N.clamp(0.8, 1.28) * advantage_N)
        if loss.tis is not None:
            loss_N = loss_N * (old_N - sampler_N).exp().clamp(max=loss.tis)
        kl_N = (reference_N - new_N).exp() - (reference_N - new_N) - 1
        ((loss_N.sum() + loss.kl * kl_N.sum()) / total).backward()
        policy_sum += float(loss_N.detach().sum()) / total
        kl_sum += float(kl_N.detach().sum()) / total
    return policy_sum, kl_sum, flat_gradient(plain)


def flat_gradient(model):
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])


@given(st.integers(0, 10_000), st.sampled_from([30, 90, 10_000]), st.sampled_from([None, 1.2]), st.booleans())
@settings(max_examples=12, deadline=None)
def test_training_on_trees_is_training_path_by_path(model, seed, budget, tis, checkpointing):
    rng = random.Random(seed)
    rows = random_forests(rng)
    torch.manual_seed(1)
    reference = AutoModelForCausalLM.from_config(model.config, attn_implementation="sdpa").eval()
    loss = LossConfig(kl=0.05, tis=tis)
    policy_loss, kl, expected = gradient_by_path(model, reference, rows, loss)
    policy = build_policy(model, reference, loss=loss, micro_batch_tokens=budget, gradient_checkpointing=checkpointing)
    policy.starts_at_reference = False  # another model, so that the KL is not 0
    values = policy._accumulate(rows, sum(len(row.response) for row in rows))
    found = flat_gradient(policy.model)
    assert float((found - expected).norm() / expected.norm()) < 1e-5
    assert values["loss/policy"] == pytest.approx(policy_loss, rel=1e-5, abs=1e-6)
    assert values["loss/kl"] == pytest.approx(kl, rel=1e-5, abs=1e-6)
    sequences = {(*row.prompt, *row.response) for row in rows}
    if budget == 10_000:
        paths = sum(len(row.prompt) + len(row.response) for row in rows)
        assert values["packing/computed_ratio"] == len(prefixes(sequences)) / paths


@given(st.integers(0, 10_000), st.sampled_from([30, 10_000]))
@settings(max_examples=12, deadline=None)
def test_scores_on_trees_are_those_of_each_path(model, seed, budget):
    rng = random.Random(seed)
    rows = random_forests(rng)
    prompts, responses = [row.prompt for row in rows], [row.response for row in rows]
    # Some want FCI, as initial responses do; others do not, as continuations.
    steps = [
        Steps(tuple(sorted({0, *rng.sample(range(len(r)), min(5, len(r)))})), len(r)) if rng.random() < 0.5 else None
        for r in responses
    ]
    trees = build_policy(model, micro_batch_tokens=budget, packing="tree").score(prompts, responses, steps)
    alone = build_policy(model, micro_batch_tokens=1, packing="none").score(prompts, responses, steps)
    for prompt, response, its_steps, found, expected in zip(prompts, responses, steps, trees, alone, strict=True):
        for name in ("logprobs", "entropy", "influence"):
            values, its = (torch.tensor(getattr(score, name)) for score in (found, expected))
            torch.testing.assert_close(values, its, atol=2e-5, rtol=1e-5)
        if its_steps is None:
            assert found.influence == ()
        else:
            starts = [len(prompt) + start for start in its_steps.starts]
            influence = forward_context_influence(model, torch.tensor([*prompt, *response]), starts, delta=1)
            torch.testing.assert_close(torch.tensor(found.influence), influence, atol=1e-5, rtol=1e-5)


def test_an_update_is_the_same_with_and_without_packing(model):
    rows = random_forests(random.Random(5))
    both = [build_policy(model, learning_rate=1e-4, packing=packing, max_grad_norm=0.1) for packing in ("tree", "none")]
    tree, paths = (policy.update(rows) for policy in both)
    saved = "packing/computed_ratio"
    assert tree[saved] < 0.8 < 1 <= paths[saved]
    assert {**tree, saved: 0} == pytest.approx({**paths, saved: 0}, rel=1e-4, abs=1e-6)
    assert tree["grad_norm"] > 0


# --- what trees work for ------------------------------------------------------------------------------------------

ARCHITECTURES = {architecture.name: architecture for architecture in architectures.ARCHITECTURES}


@pytest.mark.parametrize("name", [name for name, a in ARCHITECTURES.items() if a.packing != "refused"])
def test_attention_of_any_kind_goes_along_trees(name):
    config = architectures.config_of(ARCHITECTURES[name])
    if config is None:
        pytest.skip(f"this transformers does not know {ARCHITECTURES[name].config}")
    model = architectures.build(config)
    check_trees(model)
    # Beyond its windows: 15 paths over a prompt, two thirds of whose tokens are shared.
    rng = random.Random(0)
    prompt = tokens(rng, 9)
    responses = []
    for _ in range(3):
        trunk = tokens(rng, 40)
        responses += [trunk, *(trunk[:at] + tokens(rng, rng.randint(5, 30)) for at in (3, 3, 11, 25))]
    prompts = [prompt] * len(responses)
    tree, alone = (build_policy(model, packing=packing).score(prompts, responses) for packing in ("tree", "none"))
    for found, expected in zip(tree, alone, strict=True):
        assert found.logprobs == pytest.approx(expected.logprobs, abs=1e-4)
    # And where nothing is shared: nothing of one sequence shows in the other.
    apart = [[tokens(rng, 7), tokens(rng, 5)], [tokens(rng, 20), tokens(rng, 30)]]
    tree, alone = (build_policy(model, packing=packing).score(*apart) for packing in ("tree", "none"))
    for found, expected in zip(tree, alone, strict=True):
        assert found.logprobs == pytest.approx(expected.logprobs, abs=1e-4)


@pytest.mark.parametrize("name", [name for name, a in ARCHITECTURES.items() if a.packing == "refused"])
def test_a_state_that_runs_along_the_row_is_refused(name):
    config = architectures.config_of(ARCHITECTURES[name])
    if config is None:
        pytest.skip(f"this transformers does not know {ARCHITECTURES[name].config}")
    with pytest.raises(TreesUnsupportedError, match="packed sequences"):
        check_trees(architectures.build(config))
    config.initializer_range = 0.002  # so that what is carried over is too little to be seen in the numbers
    with pytest.raises(TreesUnsupportedError, match="packed sequences"):
        check_trees(architectures.build(config, torch.bfloat16))


@pytest.mark.parametrize("name", ["Llama 4", "BLOOM", "Doge"])
def test_attention_that_cannot_be_had_is_refused_with_its_reason(name):
    refused = next(r for r in architectures.REFUSED if r.name == name)
    config = architectures.config_of(refused)
    if config is None:
        pytest.skip(f"this transformers does not know {refused.config}")
    with pytest.raises(TreesUnsupportedError, match=refused.reason):
        check_trees(architectures.build(config))
