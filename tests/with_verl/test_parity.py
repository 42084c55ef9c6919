"""The same samples, seeds and weights: what the verl engine makes of them is what the local engine makes of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from attnrl.config.load import load_config
from attnrl.config.schema import TrainConfig
from attnrl.data.run_data import load_run_data
from attnrl.inference.sampler import build_sampler
from attnrl.local.loading import build_policy, load_model, load_tokenizer
from attnrl.local.model_names import find_model
from attnrl.method.advantage import ADVANTAGES
from attnrl.rl.trainer import StepResult, Trainer
from attnrl.types import Completion, Policy, Request, Sampler
from attnrl.verl.launch import compose, installed_version

if installed_version() is None:
    pytest.skip("needs verl, in an environment of its own: make test-verl", allow_module_level=True)

import ray
import transfer_queue
from omegaconf import OmegaConf
from verl.trainer.ppo.v1 import get_trainer_cls

from attnrl.types import SamplingParams
from attnrl.verl.policy import VerlPolicy

#: Workers, and whether rows go end to end. Mini-batches of one, so that the only optimizer step is that of the loss.
LAYOUTS = {"one worker, rows end to end": (1, True), "two workers, padded rows": (2, False)}


def recipe(output: Path, workers: int, packed: bool) -> TrainConfig:
    return load_config(
        TrainConfig,
        "attnrl",
        [
            *("engine=verl", "verl.rollout=transformers", f"verl.gpus_per_node={workers}", f"output_dir={output}"),
            *(f"verl.remove_padding={packed}", "device=cpu", "prompts=5", "method.trunks=3", "loss.kl=0.01"),
            *("optimizer.mini_batches=1", "optimizer.micro_batch_tokens=1200", "sampling.score_continuations=true"),
        ],
    )


class Recorded:
    """A sampler that keeps what another one samples, or gives back what was kept."""

    def __init__(self, sampler: Sampler | None = None) -> None:
        self.sampler = sampler
        self.kept: list[tuple[list[Request], list[Completion]]] = []

    def generate(
        self, requests: Sequence[Request], *, on_completion: Any = None, should_stop: Any = None
    ) -> list[Completion]:
        if self.sampler is not None:
            completions = self.sampler.generate(requests)
            self.kept.append((list(requests), completions))
        else:
            asked, completions = self.kept.pop(0)
            assert list(requests) == asked  # a branch somewhere else would ask for something else
        for index, completion in enumerate(completions):
            on_completion(index, completion)
        return completions

    def sync(self) -> None:
        pass


def one_step(config: TrainConfig, sampler: Recorded, policy: Policy) -> tuple[StepResult, Mapping[str, float]]:
    """A step, and what a second update on its rows reports: at first the policy is the reference of the KL."""
    tokenizer = load_tokenizer(find_model(config.model).directory, trust_remote_code=False)
    data = load_run_data(config, tokenizer)
    with data.rewards as rewards:
        trainer = Trainer(
            config,
            sampler=sampler,
            rewards=rewards,
            policy=policy,
            renderer=data.renderer,
            source=data.source,
        )
        result = trainer.step()
    rows = [row for problem in result.problems for row in problem.training_rows(ADVANTAGES["tree"])]
    return result, policy.update(rows)


def listening() -> set[str]:
    """The addresses on which processes that this one has started wait to be spoken to."""
    found = set()
    for process in psutil.Process().children(recursive=True):
        try:
            connections = process.net_connections("inet")
        except psutil.NoSuchProcess:
            continue
        found |= {connection.laddr.ip for connection in connections if connection.status == psutil.CONN_LISTEN}
    return found


@pytest.fixture(scope="module", params=LAYOUTS.values(), ids=LAYOUTS)
def steps(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The same step by the local engine and by verl's workers, see :func:`one_step`, and :func:`listening`."""
    config = recipe(tmp_path_factory.mktemp("run"), *request.param)
    directory = find_model(config.model).directory

    def model() -> Any:
        return load_model(directory, tokenizer, device=torch.device("cpu"), dtype="float32").model

    tokenizer = load_tokenizer(directory, trust_remote_code=False)
    trained = model()
    samples = Recorded(build_sampler(trained, tokenizer, SamplingParams(), max_batch=64))
    local = one_step(config, samples, build_policy(config, trained, model()))

    composed = compose(config, str(directory))
    OmegaConf.resolve(composed)
    ray.init(**OmegaConf.to_container(composed.ray_kwargs.ray_init))
    transfer_queue.init(composed.transfer_queue)
    try:
        trainer = get_trainer_cls("attnrl")(composed)
        trainer.init()
        samples.sampler = None
        verl = one_step(config, samples, VerlPolicy(trainer.actor_rollout_wg, trainer.ref_policy_wg, config))
        yield local, verl, listening()
    finally:
        transfer_queue.close()
        ray.shutdown()


@pytest.fixture
def results(steps: Any) -> tuple[StepResult, StepResult]:
    (local, _), (verl, _), _ = steps
    return local, verl


def test_influence_is_the_same(results):
    compared = 0
    for local, verl in zip(results[0].problems, results[1].problems, strict=True):
        for ours, theirs in zip(local.plan.group.trunks, verl.plan.group.trunks, strict=True):
            assert theirs.influence == pytest.approx(ours.influence, abs=1e-6)
            compared += sum(influence > 0.01 for influence in ours.influence)
    assert compared > 100  # far from the tolerance


def test_branch_points_are_the_same(results):
    points = [[problem.plan.points for problem in result.problems] for result in results]
    assert points[0] == points[1]
    assert any(ats for of_problem in points[0] for ats in of_problem.values())


def test_advantages_are_the_same(results):
    rows = [
        [row for problem in result.problems for row in problem.training_rows(ADVANTAGES["tree"])] for result in results
    ]
    assert [row.advantages for row in rows[0]] == [row.advantages for row in rows[1]]
    assert [row.response for row in rows[0]] == [row.response for row in rows[1]]
    assert len({advantage for row in rows[0] for advantage in row.advantages}) > 5


def test_log_probs_and_entropies_are_the_same(results):
    for local, verl in zip(results[0].problems, results[1].problems, strict=True):
        pairs = zip([*local.plan.group.trunks, *local.branches], [*verl.plan.group.trunks, *verl.branches], strict=True)
        for ours, theirs in pairs:
            assert theirs.logprobs == pytest.approx(ours.logprobs, abs=1e-4)
            assert theirs.entropy == pytest.approx(ours.entropy, abs=1e-4)


@pytest.mark.parametrize("name", ["loss/policy", "grad_norm"])
def test_the_update_is_the_same(results, name):
    local, verl = (result.metrics[name] for result in results)
    assert local != 0
    assert verl == pytest.approx(local, rel=1e-4)


@pytest.mark.parametrize("name", ["loss/policy", "loss/kl", "loss/clip_fraction", "grad_norm"])
def test_so_is_the_next_on_the_weights_that_come_of_it(steps, name):
    (_, local), (_, verl), _ = steps
    assert local[name] != 0
    assert verl[name] == pytest.approx(local[name], rel=1e-2)


def test_a_cluster_of_one_machine_listens_on_the_loopback_interface_only(steps):
    *_, addresses = steps
    assert addresses
    assert all(ip_address(address.removeprefix("::ffff:")).is_loopback for address in addresses), addresses
