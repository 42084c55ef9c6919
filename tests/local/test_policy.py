"""The local policy against plain code: one row at a time, no padding, eager attention."""

from __future__ import annotations

import copy
import random
from collections.abc import Sequence
from dataclasses import replace

import helpers
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, OPTConfig, PreTrainedModel

from attnrl.config.method import BranchingConfig
from attnrl.config.schema import LossConfig, OptimizerConfig
from attnrl.errors import RunError
from attnrl.fci import forward_context_influence
from attnrl.local.optimizer import MasterOptimizer
from attnrl.local.policy import LocalPolicy, disable_dropout
from attnrl.method.influence import lookups
from attnrl.method.steps import Steps
from attnrl.types import TrainingRow

VOCABULARY = 61
SHAPE = dict(
    vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
    max_position_embeddings=64,
)  # fmt: skip
SCORE_BUDGETS = [1, 40, 10_000]  # tokens of a micro-batch: each row alone; a few together; all together
UPDATE_BUDGETS = [1, 25, 10_000]  # the same, for the shorter rows of an update


def random_tokens(rng: random.Random, count: int) -> tuple[int, ...]:
    return tuple(rng.randrange(VOCABULARY) for _ in range(count))


def build_policy(
    model: PreTrainedModel,
    reference: PreTrainedModel | None = None,
    *,
    temperature: float = 1.0,
    loss: LossConfig | None = None,
    branching: BranchingConfig | None = None,
    packing: str = "tree",
    **optimizer: object,
) -> LocalPolicy:
    policy = LocalPolicy(
        copy.deepcopy(model),
        reference,
        loss=loss or LossConfig(),
        optimizer=OptimizerConfig(**optimizer),
        branching=branching or BranchingConfig(),
        temperature=temperature,
        packing=packing,
    )
    policy.starts_at_reference = False  # the references of most tests are other models
    return policy


def eager_copy(model: PreTrainedModel) -> PreTrainedModel:
    plain = copy.deepcopy(model)
    plain.set_attn_implementation("eager")
    return plain


def plain_distributions(
    model: PreTrainedModel, prompt: Sequence[int], response: Sequence[int], temperature: float
) -> Tensor:
    """Log-probs ``[N, V]`` of the distributions that the response tokens are drawn from."""
    logits_NV = model(torch.tensor([[*prompt, *response]])).logits[0, len(prompt) - 1 : -1]
    return (logits_NV / temperature).log_softmax(-1)


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return helpers.tiny_model(vocab_size=VOCABULARY)


# --- score --------------------------------------------------------------------------------------------------------

# (prompt, response) lengths: a one-token response, a one-token prompt, short prompt with long response and so on.
LENGTHS = [(7, 12), (3, 1), (1, 30), (25, 4), (10, 10), (2, 29)]


@pytest.fixture(scope="module")
def texts() -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
    rng = random.Random(0)
    return (
        [random_tokens(rng, prompt) for prompt, _ in LENGTHS],
        [random_tokens(rng, response) for _, response in LENGTHS],
    )


@pytest.mark.parametrize("budget", SCORE_BUDGETS)
@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.5])
def test_score_is_that_of_each_row_alone(model, texts, budget, temperature):
    scores = build_policy(model, temperature=temperature, micro_batch_tokens=budget).score(*texts)
    plain = eager_copy(model)
    for prompt, response, score in zip(*texts, scores, strict=True):
        with torch.no_grad():
            logprobs_NV = plain_distributions(plain, prompt, response, temperature)
        entropy_N = torch.distributions.Categorical(logits=logprobs_NV).entropy()
        torch.testing.assert_close(
            torch.tensor(score.logprobs), logprobs_NV[range(len(response)), response], atol=1e-5, rtol=0
        )
        torch.testing.assert_close(torch.tensor(score.entropy), entropy_N, atol=1e-5, rtol=0)
        assert score.influence == ()


@pytest.mark.parametrize("budget", SCORE_BUDGETS)
@pytest.mark.parametrize(("delta", "reduction"), [(4, "max"), (1, "zscore_max")])
def test_fci_of_a_batch_is_that_of_each_response_alone(model, texts, budget, delta, reduction):
    prompts, responses = texts
    # Steps of one to three tokens, so that long responses have far more than delta of them.
    rng = random.Random(1)
    steps = []
    for response in responses:
        starts = [start for start in range(len(response)) if start == 0 or rng.random() < 0.6]
        steps.append(Steps(tuple(starts), len(response)))
    assert max(len(its_steps) for its_steps in steps) > 8

    branching = BranchingConfig(delta=delta, reduction=reduction)
    policy = build_policy(model, branching=branching, micro_batch_tokens=budget)
    for prompt, response, its_steps, score in zip(
        prompts, responses, steps, policy.score(prompts, responses, steps), strict=True
    ):
        alone = forward_context_influence(
            model,
            torch.tensor([*prompt, *response]),
            [len(prompt) + start for start in its_steps.starts],
            delta=delta,
            reduction=reduction,
        )
        torch.testing.assert_close(torch.tensor(score.influence), alone, atol=1e-5, rtol=1e-5)
    assert any(any(score.influence) for score in policy.score(prompts, responses, steps))


@pytest.mark.parametrize("budget", SCORE_BUDGETS)
def test_lookups_of_a_batch_are_those_of_each_response_alone(model, texts, budget):
    prompts, responses = texts
    steps = [Steps(tuple(range(0, len(response), 3)), len(response)) for response in responses]
    policy = build_policy(model, branching=BranchingConfig(delta=1, influence="lookups"), micro_batch_tokens=budget)
    plain = eager_copy(model)
    found = 0.0
    for prompt, response, its_steps, score in zip(
        prompts, responses, steps, policy.score(prompts, responses, steps), strict=True
    ):
        with torch.no_grad():
            probs = plain(torch.tensor([[*prompt, *response]]), output_attentions=True).attentions
        starts = [len(prompt) + start for start in its_steps.starts]
        alone = lookups(torch.cat(probs), starts, 1).sum((0, 1)) if starts else torch.zeros(0)
        assert score.influence == tuple(alone.tolist())
        found += sum(score.influence)
    assert found


def test_asking_for_fci_changes_no_logprob(model, texts):
    policy = build_policy(model)
    steps = [Steps((0,), len(response)) for response in texts[1]]
    with_fci, without = policy.score(*texts, steps), policy.score(*texts)
    assert [(s.logprobs, s.entropy) for s in with_fci] == [(s.logprobs, s.entropy) for s in without]


def test_scoring_nothing_gives_nothing(model):
    assert build_policy(model).score([], []) == []


# --- update -------------------------------------------------------------------------------------------------------

ROW_LENGTHS = [(6, 5), (2, 9), (9, 3), (4, 11)]  # 28 response tokens
# Which rows fall into which mini-batch, by hand: a run ends where it reaches its share of the 28 tokens.
MINI_BATCHES = {1: [[0, 1, 2, 3]], 2: [[0, 1], [2, 3]], 3: [[0, 1], [2, 3]], 4: [[0, 1], [2], [3]]}


@pytest.fixture(scope="module")
def rows(model) -> list[TrainingRow]:
    """Rows whose old log-probs are off by enough to clip some tokens on either side, and for dual clip to bite."""
    rng = random.Random(6)
    plain = eager_copy(model)
    rows = []
    for prompt_length, response_length in ROW_LENGTHS:
        prompt, response = random_tokens(rng, prompt_length), random_tokens(rng, response_length)
        with torch.no_grad():
            logprobs_NV = plain_distributions(plain, prompt, response, 1.0)
        old = [float(logprobs_NV[t, token]) + rng.gauss(0, 0.5) for t, token in enumerate(response)]
        advantages = [rng.choice([-1.5, -0.5, 0.0, 0.7, 1.2]) for _ in response]
        rows.append(TrainingRow(prompt, response, tuple(old), tuple(old), tuple(advantages)))
    return rows


@pytest.fixture(scope="module")
def reference() -> PreTrainedModel:
    return helpers.tiny_model(vocab_size=VOCABULARY, seed=7)


def plain_token_losses(
    model: PreTrainedModel, row: TrainingRow, settings: LossConfig, reference: PreTrainedModel | None = None
) -> list[Tensor]:
    """The loss of each token of a row, straight from eq. 1."""
    logprobs_NV = plain_distributions(model, row.prompt, row.response, 1.0)
    losses = []
    for t, token in enumerate(row.response):
        ratio = (logprobs_NV[t, token] - row.old_logprobs[t]).exp()
        bounded = ratio.clamp(1 - settings.clip_low, 1 + settings.clip_high)
        loss = -torch.minimum(ratio * row.advantages[t], bounded * row.advantages[t])
        if settings.dual_clip is not None and row.advantages[t] < 0:
            loss = torch.minimum(loss, torch.tensor(-settings.dual_clip * row.advantages[t]))
        if reference is not None:
            with torch.no_grad():
                reference_NV = plain_distributions(reference, row.prompt, row.response, 1.0)
            difference = reference_NV[t, token] - logprobs_NV[t, token]
            loss = loss + settings.kl * (difference.exp() - difference - 1)
        losses.append(loss)
    return losses


def plain_update(
    model: PreTrainedModel,
    reference: PreTrainedModel | None,
    rows: Sequence[TrainingRow],
    mini_batches: Sequence[Sequence[int]],
    loss: LossConfig,
    optimizer: OptimizerConfig,
) -> tuple[PreTrainedModel, float]:
    """PPO with AdamW as one would write it on paper; returns the model and the mean gradient norm."""
    model = eager_copy(model).train()
    adamw = torch.optim.AdamW(
        model.parameters(), lr=optimizer.learning_rate, betas=optimizer.betas, weight_decay=optimizer.weight_decay
    )
    tokens = sum(len(row.response) for row in rows)
    norms = []
    for mini_batch in mini_batches:
        total = sum(token for i in mini_batch for token in plain_token_losses(model, rows[i], loss, reference))
        (total / tokens * len(mini_batches)).backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), optimizer.max_grad_norm)))
        adamw.step()
        adamw.zero_grad()
    return model, sum(norms) / len(norms)


def assert_same_parameters(left: PreTrainedModel, right: PreTrainedModel, atol: float) -> None:
    for (name, a), (_, b) in zip(left.named_parameters(), right.named_parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=atol, rtol=0, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("budget", UPDATE_BUDGETS)
@pytest.mark.parametrize("mini_batches", [1, 2, 4])
@pytest.mark.parametrize(
    ("loss", "optimizer"),
    [
        (LossConfig(kl=0.0), {"max_grad_norm": 1e9}),
        (LossConfig(kl=0.3, dual_clip=1.1), {"max_grad_norm": 0.05, "weight_decay": 0.1, "betas": (0.5, 0.9)}),
    ],
    ids=["plain", "kl-clip-decay"],
)
def test_update_is_the_ppo_step_on_paper(model, reference, rows, budget, mini_batches, loss, optimizer):
    settings = dict(learning_rate=1e-4, mini_batches=mini_batches, micro_batch_tokens=budget, **optimizer)
    # AdamW divides by the gradient's own size: in double precision, that of all but zero is no mere rounding.
    model = copy.deepcopy(model).double()
    its_reference = copy.deepcopy(reference).double() if loss.kl else None
    policy = build_policy(model, its_reference, loss=loss, **settings)
    metrics = policy.update(rows)
    expected, norm = plain_update(
        model, its_reference, rows, MINI_BATCHES[mini_batches], loss, OptimizerConfig(**settings)
    )
    # A step is about the learning rate, 1e-4, whatever the gradient's size: where the gradient all but cancels, the
    # rounding of fp32 log-probs decides some of the step (1.1e-6 measured without vector instructions).
    assert_same_parameters(policy.model, expected, atol=5e-6)
    assert metrics["grad_norm"] == pytest.approx(norm, rel=1e-4)
    pairs = zip(policy.model.parameters(), model.parameters(), strict=True)
    assert max(float((a - b).detach().abs().max()) for a, b in pairs) > 5e-5
    assert policy.optimizer.updates == len(MINI_BATCHES[mini_batches])


@pytest.mark.parametrize("budget", UPDATE_BUDGETS)
@pytest.mark.parametrize("mini_batches", list(MINI_BATCHES))
def test_every_token_weighs_the_same_whatever_batch_it_falls_into(model, rows, budget, mini_batches):
    """Gradient descent with steps too small to matter adds up the mini-batches' gradients.

    Their mean is the gradient of the token mean of the whole batch, though mini-batches differ in size.
    """
    model = copy.deepcopy(model).double()
    plain = eager_copy(model)
    losses = [token for row in rows for token in plain_token_losses(plain, row, LossConfig())]
    mean = sum(losses) / len(losses)
    mean.backward()

    rate = 1e-6
    policy = build_policy(
        model, learning_rate=rate, mini_batches=mini_batches, micro_batch_tokens=budget, max_grad_norm=1e9
    )
    policy.optimizer.adamw = torch.optim.SGD(policy.model.parameters(), lr=rate)
    metrics = policy.update(rows)
    assert metrics["loss/policy"] == pytest.approx(mean.item(), abs=1e-5)
    steps = len(MINI_BATCHES[mini_batches])
    for before, after, expected in zip(model.parameters(), policy.model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close((before - after).detach() / rate / steps, expected.grad, atol=2e-4, rtol=1e-3)


def test_share_of_clipped_tokens_and_mean_ratio_are_over_all_tokens(model, rows):
    metrics = build_policy(model, learning_rate=1e-30, mini_batches=4, micro_batch_tokens=40).update(rows)
    plain = eager_copy(model)
    ratios, above, below, bounded = [], [], [], []
    for row in rows:
        with torch.no_grad():
            logprobs_NV = plain_distributions(plain, row.prompt, row.response, 1.0)
        for t, (token, old, advantage) in enumerate(zip(row.response, row.old_logprobs, row.advantages, strict=True)):
            ratios.append(float((logprobs_NV[t, token] - old).exp()))
            above.append(advantage > 0 and ratios[-1] > 1.28)
            below.append(advantage < 0 and ratios[-1] < 0.8)
            bounded.append(advantage < 0 and ratios[-1] > 1.1)  # what the dual clip above is for
    assert any(above)
    assert any(below)
    assert any(bounded)
    assert metrics["loss/clip_fraction"] == pytest.approx(sum(above + below) / 28)
    assert metrics["loss/ratio"] == pytest.approx(sum(ratios) / 28, rel=1e-5)


@pytest.mark.parametrize("temperature", [0.7, 1.5])
def test_update_and_score_know_the_same_probabilities(model, texts, temperature):
    policy = build_policy(model, temperature=temperature, learning_rate=1e-30)
    rows = [
        TrainingRow(prompt, response, score.logprobs, score.logprobs, (1.0,) * len(response))
        for prompt, response, score in zip(*texts, policy.score(*texts), strict=True)
    ]
    metrics = policy.update(rows)
    assert metrics["loss/ratio"] == pytest.approx(1.0, abs=1e-5)
    assert metrics["loss/old_kl"] == pytest.approx(0.0, abs=1e-9)
    assert metrics["loss/policy"] == pytest.approx(-1.0, abs=1e-5)


def test_kl_is_zero_at_the_start_and_grows_from_there(model, rows):
    policy = build_policy(model, copy.deepcopy(model), learning_rate=1e-2, loss=LossConfig(kl=0.1), mini_batches=1)
    assert policy.update(rows)["loss/kl"] == pytest.approx(0.0, abs=1e-9)
    assert policy.update(rows)["loss/kl"] > 1e-3
    assert "loss/kl" not in build_policy(model).update(rows)


def test_kl_pulls_back_to_the_reference(model, reference, rows):
    """Without any advantage the KL is all there is, and following it brings the policy closer."""
    rows = [replace(row, advantages=(0.0,) * len(row.response)) for row in rows]
    policy = build_policy(model, reference, learning_rate=1e-3, loss=LossConfig(kl=1.0), mini_batches=1)
    kls = [policy.update(rows)["loss/kl"] for _ in range(5)]
    assert kls == sorted(kls, reverse=True)
    assert kls[-1] < 0.95 * kls[0]


def test_gradient_checkpointing_gives_the_same_update(model, reference, rows):
    settings = dict(loss=LossConfig(kl=0.1), learning_rate=1e-4, micro_batch_tokens=40)
    plain = build_policy(model, reference, **settings)
    saving = build_policy(model, reference, gradient_checkpointing=True, **settings)
    forwards_of_plain, forwards_of_saving = count_layer_forwards(plain.model), count_layer_forwards(saving.model)
    assert saving.update(rows) == pytest.approx(plain.update(rows), rel=1e-4, abs=1e-7)
    assert_same_parameters(saving.model, plain.model, atol=1e-7)
    assert len(forwards_of_saving) == 2 * len(forwards_of_plain) > 0  # each forward is run again in the backward


@pytest.mark.parametrize(
    "config",
    [
        LlamaConfig(**SHAPE, attention_dropout=0.5),
        GPT2Config(
            vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, attn_pdrop=0.5, resid_pdrop=0.5, embd_pdrop=0.5
        ),
        OPTConfig(**SHAPE, ffn_dim=48, word_embed_proj_dim=32, dropout=0.5, attention_dropout=0.5, layerdrop=0.5),
    ],
    ids=["llama", "gpt2", "opt"],
)
@pytest.mark.parametrize("packing", ["tree", "none"])
def test_nothing_is_dropped_in_training(config, packing, rows):
    """The ratio of new to old probability would be noise."""
    torch.manual_seed(0)
    policy = build_policy(AutoModelForCausalLM.from_config(config), packing=packing, learning_rate=1e-30)
    scores = policy.score([row.prompt for row in rows], [row.response for row in rows])
    rows = [replace(row, old_logprobs=score.logprobs) for row, score in zip(rows, scores, strict=True)]
    metrics = policy.update(rows)
    assert metrics["loss/ratio"] == pytest.approx(1.0, abs=1e-5)
    assert metrics["loss/old_kl"] == pytest.approx(0.0, abs=1e-8)


def test_updates_too_small_for_16_bit_weights_add_up(model, rows):
    """At 0.25, neighbouring bf16 numbers are 0.002 apart: a step of 1e-4 alone changes nothing."""
    start = copy.deepcopy(model).bfloat16()
    policy = build_policy(start, learning_rate=1e-4, mini_batches=1)

    def changed() -> float:
        """Share of the larger weights that are not what they were."""
        pairs = zip(policy.model.parameters(), start.parameters(), strict=True)
        return torch.cat([(a != b)[b.abs() > 0.25].float() for a, b in pairs]).mean().item()

    policy.update(rows)
    assert changed() < 0.02
    for _ in range(24):
        policy.update(rows)
    assert changed() > 0.5
    for name, weight in policy.model.named_parameters():
        assert weight.dtype == torch.bfloat16
        assert policy.optimizer.masters[name].dtype == torch.float32
        assert torch.equal(weight, policy.optimizer.masters[name].bfloat16())


def test_gradients_of_micro_batches_are_added_in_fp32(model, rows):
    """With a reference in double precision: the sum of many bf16 gradients is no coarser than each."""
    start = copy.deepcopy(model).bfloat16()
    policy = build_policy(start, micro_batch_tokens=1)
    policy._accumulate(rows, 28.0)
    for name, weight in policy.model.named_parameters():
        assert weight.grad is None
        assert policy.optimizer.masters[name].grad.dtype == torch.float32
    exact = build_policy(copy.deepcopy(start).double(), micro_batch_tokens=1)
    exact._accumulate(rows, 28.0)
    found, expected = (
        torch.cat([its.optimizer.masters[name].grad.double().flatten() for name in its.optimizer.masters])
        for its in (policy, exact)
    )
    assert float((found - expected).norm() / expected.norm()) < 0.05


def count_layer_forwards(model: PreTrainedModel) -> list[object]:
    """A list that grows by one with each forward of the first layer's MLP."""
    forwards: list[object] = []
    model.model.layers[0].mlp.register_forward_pre_hook(lambda module, _: forwards.append(module))
    return forwards


def test_the_learning_rate_warms_up_over_optimizer_steps(model, rows):
    policy = build_policy(model, learning_rate=1e-3, warmup_steps=5, mini_batches=2)
    rates = [policy.update(rows)["learning_rate"] for _ in range(4)]
    assert rates == pytest.approx([2e-4 * 2, 2e-4 * 4, 1e-3, 1e-3])


def test_without_warm_up_the_first_step_has_the_full_rate(model, rows):
    assert build_policy(model, learning_rate=1e-3).update(rows)["learning_rate"] == 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_moments_made_before_the_first_step_are_those_that_adamw_makes(model, rows, dtype, monkeypatch):
    start = copy.deepcopy(model).to(dtype)
    early, late = (build_policy(start, learning_rate=1e-3, mini_batches=2) for _ in range(2))
    early.optimizer.allocate_moments()
    assert early.optimizer.tensors().keys() == late.optimizer.tensors().keys()  # no moments before an update
    metrics = [early.update(rows) for _ in range(2)]
    with monkeypatch.context() as patch:
        patch.setattr(MasterOptimizer, "allocate_moments", lambda optimizer: None)
        assert [late.update(rows) for _ in range(2)] == metrics
    ours, theirs = early.optimizer.tensors(), late.optimizer.tensors()
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]) and tensor.dtype == theirs[name].dtype, name
    for weight, other in zip(early.model.parameters(), late.model.parameters(), strict=True):
        assert torch.equal(weight, other)


# --- the KL before the first update ---------------------------------------------------------------------------------


@pytest.mark.parametrize("packing", ["tree", "none"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("settings", [{}, {"gradient_checkpointing": True}, {"micro_batch_tokens": 30}])
def test_the_kl_is_exactly_zero_before_the_first_update(model, rows, packing, dtype, settings):
    start = copy.deepcopy(model).to(dtype)
    loss = LossConfig(kl=0.1)
    policy = build_policy(start, copy.deepcopy(start), loss=loss, packing=packing, mini_batches=1, **settings)
    policy.starts_at_reference = True
    assert policy.update(rows)["loss/kl"] == 0.0
    assert policy.update(rows)["loss/kl"] > 0.0


def test_another_reference_is_refused_before_the_first_update_only(model, reference, rows):
    loss = LossConfig(kl=0.1)
    policy = build_policy(model, reference, loss=loss)
    policy.starts_at_reference = True
    with pytest.raises(RunError, match=r"loss\.kl"):
        policy.update(rows)
    resumed = build_policy(model, reference, loss=loss)
    assert resumed.update(rows)["loss/kl"] > 0.0


def test_a_forward_without_a_fixed_order_of_sums_is_no_other_model(model, rows):
    """Every forward of such a model differs from the last one, by rounding."""
    noise = iter(range(1, 100))
    start = copy.deepcopy(model)
    policy = build_policy(start, copy.deepcopy(start), loss=LossConfig(kl=0.1))
    policy.starts_at_reference = True
    assert policy.reference is not None
    for one in (policy.model, policy.reference):
        one.lm_head.register_forward_hook(lambda module, inputs, logits: logits + 1e-6 * next(noise) * logits.detach())
    assert 0.0 < policy.update(rows)["loss/kl"] < 1e-6


def test_router_jitter_is_off_in_training():
    router = torch.nn.Module()
    router.jitter_noise, router.hidden_dropout = 0.01, 0.1
    disable_dropout(router)
    assert (router.jitter_noise, router.hidden_dropout) == (0.0, 0.0)
