"""Rounding: what is fp32 whatever the weights are, what bf16 changes in a step, and what must change nothing.

Bounds are about twice what was measured (in the comments) or less, so that a fault of arithmetic shows: log-probs from
a bf16 softmax are beyond them.
"""

from __future__ import annotations

import copy
import io
import random
from dataclasses import dataclass, replace
from pathlib import Path

import helpers
import pytest
import torch
from rich.console import Console
from torch import Tensor
from transformers import PreTrainedModel

from attnrl.config.load import load_config
from attnrl.config.method import BranchingConfig
from attnrl.config.schema import LossConfig, OptimizerConfig, TrainConfig
from attnrl.data.run_data import held_out_problems
from attnrl.grading.rules import RulesGrader
from attnrl.inference.sampler import build_sampler
from attnrl.local import logprobs
from attnrl.local.loading import load_model, load_tokenizer
from attnrl.local.model_names import find_model
from attnrl.local.policy import LocalPolicy
from attnrl.prompts.renderer import PromptRenderer
from attnrl.runs.display import Display
from attnrl.runs.prepare import prepare
from attnrl.runs.session import train
from attnrl.tokenization import decode
from attnrl.types import Request, SamplingParams, TrainingRow

LEDGER = find_model("ledger").directory
TEMPERATURE = 0.9
VOCABULARY = 61


def build_policy(
    model: PreTrainedModel, reference: PreTrainedModel | None = None, packing: str = "tree", **optimizer: object
) -> LocalPolicy:
    settings = {"mini_batches": 1, "micro_batch_tokens": 100_000, "learning_rate": 3e-4, **optimizer}
    policy = LocalPolicy(
        copy.deepcopy(model),
        reference,
        loss=LossConfig(kl=0.01 if reference is not None else 0.0),
        optimizer=OptimizerConfig(**settings),
        branching=BranchingConfig(),
        temperature=TEMPERATURE,
        packing=packing,
    )
    policy.starts_at_reference = False  # the references of some tests are other models
    return policy


@dataclass(frozen=True)
class Batch:
    """A model in fp32, and rows with the log-probs that it gives them."""

    model: PreTrainedModel
    rows: tuple[TrainingRow, ...]

    @property
    def tokens(self) -> int:
        return sum(len(row.response) for row in self.rows)


def scored(model: PreTrainedModel, prompts: list, responses: list, advantages: list[float]) -> Batch:
    scores = build_policy(model).score(prompts, responses)
    texts = zip(prompts, responses, scores, advantages, strict=True)
    rows = (
        TrainingRow(prompt, response, score.logprobs, score.logprobs, (advantage,) * len(response))
        for prompt, response, score, advantage in texts
    )
    return Batch(model, tuple(rows))


def ledger_batch() -> Batch:
    """Four responses of the shipped model to each of four problems, with GRPO's advantages."""
    tokenizer = load_tokenizer(LEDGER)
    model = load_model(LEDGER, tokenizer, device=torch.device("cpu"), dtype="float32").model
    problems = [problem for problem in held_out_problems("ledger", 4) for _ in range(4)]
    sampler = build_sampler(model, tokenizer, SamplingParams(TEMPERATURE), max_batch=16)
    prompts = [PromptRenderer(tokenizer).encode(problem) for problem in problems]
    drawn = sampler.generate([Request(prompt, 256, seed) for seed, prompt in enumerate(prompts)])
    grades = RulesGrader(False).grade(problems, [decode(tokenizer, one.tokens) for one in drawn])
    reward = torch.tensor([grade.reward for grade in grades]).view(4, 4)
    advantage = reward - reward.mean(1, keepdim=True)
    assert advantage.abs().sum() > 1
    return scored(model, prompts, [one.tokens for one in drawn], advantage.flatten().tolist())


def tiny_batch() -> Batch:
    """Twelve random responses, four to a prompt, that share their beginnings."""
    rng = random.Random(0)
    prompts, responses = [], []
    for _ in range(3):
        prompt, trunk = ([rng.randrange(VOCABULARY) for _ in range(length)] for length in (9, 20))
        prompts += [tuple(prompt)] * 4
        responses += [tuple(trunk[:at] + [rng.randrange(VOCABULARY) for _ in range(15)]) for at in (0, 4, 12, 20)]
    advantages = [rng.choice([-1.0, -0.5, 0.5, 1.0]) for _ in prompts]
    return scored(helpers.tiny_model(vocab_size=VOCABULARY), prompts, responses, advantages)


BATCHES = {"tiny": tiny_batch, "ledger": ledger_batch}


@pytest.fixture(scope="module", params=list(BATCHES))
def named(request: pytest.FixtureRequest) -> tuple[str, Batch]:
    return request.param, BATCHES[request.param]()


@pytest.fixture(scope="module")
def batch(named: tuple[str, Batch]) -> Batch:
    return named[1]


def flat(tensors: object) -> Tensor:
    return torch.cat([tensor.detach().double().flatten() for tensor in tensors])


def cosine(left: Tensor, right: Tensor) -> float:
    return float(left @ right / left.norm() / right.norm())


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@dataclass(frozen=True)
class Step:
    """One update of a policy: its metrics, the gradient, by how much the weights changed, and what they became."""

    metrics: dict[str, float]
    gradient: Tensor
    change: Tensor
    weights: Tensor
    updates: int


def step(
    model: PreTrainedModel, batch: Batch, *, reference: PreTrainedModel | None = None, **optimizer: object
) -> Step:
    policy = build_policy(model, reference, **optimizer)
    before = flat(policy.optimizer.masters.values())
    again = build_policy(model, reference, **optimizer)
    again._accumulate(batch.rows, float(batch.tokens))
    gradient = flat(weight.grad for weight in again.optimizer.masters.values())
    metrics = dict(policy.update(batch.rows))
    after = flat(policy.optimizer.masters.values())
    return Step(metrics, gradient, after - before, after, policy.optimizer.updates)


def scores(model: PreTrainedModel, batch: Batch) -> Tensor:
    its = build_policy(model).score([row.prompt for row in batch.rows], [row.response for row in batch.rows])
    return torch.tensor([value for score in its for value in score.logprobs])


def old(batch: Batch) -> Tensor:
    return torch.tensor([value for row in batch.rows for value in row.old_logprobs])


# --- fp32 where it matters ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("packing", ["tree", "none"])
def test_logprobs_and_entropies_of_a_bf16_model_are_those_of_its_logits_in_fp32(batch: Batch, packing: str) -> None:
    model = copy.deepcopy(batch.model).bfloat16()
    policy = build_policy(model, packing=packing, micro_batch_tokens=1)  # each row alone, as below
    rows = batch.rows[:4]
    its = policy.score([row.prompt for row in rows], [row.response for row in rows])
    coarse = 0.0
    for row, score in zip(rows, its, strict=True):
        with torch.no_grad():
            logits_NV = policy.model(torch.tensor([[*row.prompt, *row.response]])).logits[0, len(row.prompt) - 1 : -1]
        assert logits_NV.dtype == torch.bfloat16
        target_N1 = torch.tensor(row.response)[:, None]
        fine_NV = (logits_NV.double() / TEMPERATURE).log_softmax(-1)
        expected = fine_NV.gather(1, target_N1)[:, 0].tolist()
        assert score.logprobs == pytest.approx(expected, abs=2e-5)
        assert score.entropy == pytest.approx((-(fine_NV.exp() * fine_NV).sum(-1)).tolist(), abs=2e-5)
        in_bf16 = (logits_NV / TEMPERATURE).log_softmax(-1).gather(1, target_N1)[:, 0].tolist()
        coarse = max(coarse, *(abs(a - b) for a, b in zip(in_bf16, expected, strict=True)))
    assert coarse > 1e-3  # what is tested makes a difference


def test_loss_gradients_and_moments_of_a_bf16_model_are_fp32(batch: Batch, monkeypatch: pytest.MonkeyPatch) -> None:
    from attnrl.local import policy as module

    seen: list[torch.dtype] = []
    plain = module.policy_loss

    def watched(*tensors: Tensor, **settings: object) -> object:
        found = plain(*tensors, **settings)
        seen.extend([*(tensor.dtype for tensor in tensors), found.loss.dtype, found.old_kl.dtype])
        return found

    monkeypatch.setattr(module, "policy_loss", watched)
    model = copy.deepcopy(batch.model).bfloat16()
    policy = build_policy(model, copy.deepcopy(model))
    policy.update(batch.rows)
    assert seen and set(seen) == {torch.float32}
    assert {weight.dtype for weight in policy.model.parameters()} == {torch.bfloat16}
    for master in policy.optimizer.masters.values():
        its = policy.optimizer.adamw.state[master]
        assert {tensor.dtype for tensor in (master, its["exp_avg"], its["exp_avg_sq"])} == {torch.float32}


# --- fp32 against bf16 ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bounds:
    """On what bf16 changes in a step.

    Attributes:
        logprob: root mean square, in nats.
        old_kl: k3 of the policy in bf16 to that in fp32, in nats.
        loss: in units of the mean size of an advantage.
        norm: of the gradient, relative.
        gradient: norm of its difference, relative.
        cosine: least one of the gradients.
        direction: least cosine of the changes of the weights. AdamW's first step is about the gradient's sign, so small
            gradients of either sign count as much as large ones.
    """

    logprob: float
    old_kl: float
    loss: float
    norm: float
    gradient: float
    cosine: float
    direction: float


BOUNDS = {
    # Measured: 0.021, 2.2e-4, 4.7e-4, 0.013, 0.041, 0.9992, 0.976.
    "tiny": Bounds(logprob=0.04, old_kl=5e-4, loss=2e-3, norm=0.04, gradient=0.1, cosine=0.997, direction=0.93),
    # Measured on two sets of rows: 0.0042 and 0.0045, 8.7e-6 and 1.0e-5, 1.7e-4 and 2.4e-4, 0.019 and 0.001, 0.061 and
    # 0.016, 0.998 and 0.9999, 0.933 and 0.985. With a bf16 softmax the first are 0.0081 and 0.0088, and old_kl is
    # 3.3e-5 and 3.9e-5.
    "ledger": Bounds(logprob=0.0065, old_kl=2.2e-5, loss=2e-3, norm=0.05, gradient=0.12, cosine=0.996, direction=0.88),
}


def logprob_error(model: PreTrainedModel, batch: Batch) -> float:
    return float((scores(model, batch) - old(batch)).pow(2).mean().sqrt())


def test_a_step_in_bf16_is_that_in_fp32_but_for_rounding(named: tuple[str, Batch]) -> None:
    """The same rows, with the log-probs of fp32 as the old ones, so that what bf16 changes shows in the ratio."""
    name, batch = named
    bounds, model = BOUNDS[name], copy.deepcopy(batch.model).bfloat16()
    fine, coarse = step(batch.model, batch), step(model, batch)
    size = sum(abs(row.advantages[0]) * len(row.response) for row in batch.rows) / batch.tokens
    assert logprob_error(model, batch) < bounds.logprob
    assert fine.metrics["loss/old_kl"] < 1e-10 < coarse.metrics["loss/old_kl"] < bounds.old_kl
    assert coarse.metrics["loss/ratio"] == pytest.approx(1.0, abs=10 * bounds.old_kl)
    assert coarse.metrics["loss/clip_fraction"] < 0.001
    assert coarse.metrics["loss/policy"] == pytest.approx(fine.metrics["loss/policy"], abs=bounds.loss * size)
    assert coarse.metrics["grad_norm"] == pytest.approx(fine.metrics["grad_norm"], rel=bounds.norm)
    assert relative(coarse.gradient, fine.gradient) < bounds.gradient
    assert cosine(coarse.gradient, fine.gradient) > bounds.cosine
    assert cosine(coarse.change, fine.change) > bounds.direction
    assert cosine(fine.change, flat(batch.model.parameters())) < 0.5  # a cosine can be small


def test_the_bounds_tell_a_softmax_in_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = ledger_batch()
    model, bounds = copy.deepcopy(batch.model).bfloat16(), BOUNDS["ledger"]
    fine = logprob_error(model, batch)

    def in_bf16(logits_wV: Tensor, slot_N: Tensor, target_N: Tensor, temperature: float) -> Tensor:
        scaled_wV = logits_wV / temperature
        return (scaled_wV[slot_N, target_N] - scaled_wV.logsumexp(-1)[slot_N]).float()

    monkeypatch.setattr(logprobs, "_logprobs_of", in_bf16)
    assert fine < bounds.logprob < logprob_error(model, batch)
    assert build_policy(model).update(batch.rows)["loss/old_kl"] > bounds.old_kl


# --- what must change nothing ---------------------------------------------------------------------------------------

CUTS = [("tree", 1), ("tree", 60), ("tree", 400), ("none", 400), ("none", 100_000)]
METRICS = ("loss/policy", "loss/clip_fraction", "loss/ratio", "loss/old_kl", "loss/kl", "grad_norm", "learning_rate")


def shifted(batch: Batch) -> Batch:
    """Half of the rows, with old log-probs that are off, so that some tokens are clipped and mini-batches differ."""
    rng = random.Random(1)
    rows = (
        replace(row, old_logprobs=tuple(value + rng.gauss(0, 0.2) for value in row.old_logprobs))
        for row in batch.rows[::2]
    )
    return Batch(batch.model, tuple(rows))


@pytest.mark.parametrize("mini_batches", [1, 3])
def test_how_a_batch_is_cut_and_packed_changes_no_update(batch: Batch, mini_batches: int) -> None:
    """In double precision, where only a fault is more than 1e-6 (log-probs are fp32 all the same).

    Measured: gradients 1.2e-7, weights 2.3e-8; their changes 4e-6, since AdamW divides by gradients of almost nothing.
    """
    batch = shifted(batch)
    model = copy.deepcopy(batch.model).double()
    torch.manual_seed(3)
    reference = copy.deepcopy(model)
    for weight in reference.parameters():
        weight.data += 0.01 * torch.randn_like(weight)
    whole = step(model, batch, reference=reference, mini_batches=mini_batches)
    assert whole.updates == mini_batches and whole.metrics["loss/clip_fraction"] > 0.01
    for packing, tokens in CUTS:
        cut = step(
            model, batch, reference=reference, mini_batches=mini_batches, packing=packing, micro_batch_tokens=tokens
        )
        assert relative(cut.gradient, whole.gradient) < 1e-6
        assert relative(cut.weights, whole.weights) < 1e-6
        assert relative(cut.change, whole.change) < 5e-5
        assert cut.updates == whole.updates
        found, expected = ({name: its.metrics[name] for name in METRICS} for its in (cut, whole))
        assert found == pytest.approx(expected, rel=1e-6, abs=1e-7)  # sums of fp32 values of about 0.2
    # Other ends of the mini-batches would show.
    other = step(model, batch, reference=reference, mini_batches=mini_batches + 1)
    assert relative(other.change, whole.change) > 1e-2


def test_in_fp32_it_changes_an_update_by_rounding_only(batch: Batch) -> None:
    """Measured: gradients 1.4e-6 to 3.5e-6, their norm 9e-7, weights 7e-8."""
    batch = shifted(batch)
    whole = step(batch.model, batch)
    for packing, tokens in CUTS:
        cut = step(batch.model, batch, packing=packing, micro_batch_tokens=tokens)
        assert relative(cut.gradient, whole.gradient) < 2e-5
        assert relative(cut.weights, whole.weights) < 1e-6
        assert cut.metrics["grad_norm"] == pytest.approx(whole.metrics["grad_norm"], rel=5e-6)
        assert cut.metrics["loss/policy"] == pytest.approx(whole.metrics["loss/policy"], abs=1e-6)


# --- the lag of one step --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pipeline", ["one_step", "two_phase"])
def test_the_lag_of_one_step_is_logged_and_small(tmp_path: Path, pipeline: str) -> None:
    """The shipped model and recipe, three steps of one mini-batch each, so that the lag is all there is to a ratio.

    Measured, one_step, over two seeds of four problems: clip_fraction 0 to 1.5e-4, old_kl 3e-5 to 5.7e-4, and the ratio
    1 within 2.3e-4. With two mini-batches (the recipe's): clip_fraction up to 1.7e-3, and old_kl up to 2e-4 where there
    is a lag and 1.4e-3 where there is none.
    """
    steps = 3 if pipeline == "one_step" else 2
    small = [
        f"steps={steps}",
        "prompts=3",
        "device=cpu",
        "optimizer.mini_batches=1",
        "sampling.score_continuations=true",
    ]
    small += ["eval.every=0", "log.trees_every=0", "checkpoint.every=0", f"method.pipeline={pipeline}"]
    config = load_config(TrainConfig, "attnrl", [*small, f"output_dir={tmp_path / 'run'}"])
    _, first, *later = train(prepare(config), Display(Console(file=io.StringIO())))
    assert len(later) == steps - 1 and all(row["grad_norm"] > 0 for row in (first, *later))
    for row in [first] if pipeline == "one_step" else [first, *later]:  # what the policy has just written
        assert row["loss/clip_fraction"] == 0.0
        assert row["loss/ratio"] == pytest.approx(1.0, abs=1e-6)
        assert row["loss/old_kl"] < 1e-10
    if pipeline == "one_step":
        for row in later:  # in part what the policy before the last update wrote
            assert 1e-7 < row["loss/old_kl"] < 5e-3
            assert row["loss/clip_fraction"] < 0.01
            assert row["loss/ratio"] == pytest.approx(1.0, abs=5e-3)
