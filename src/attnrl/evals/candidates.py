"""Models to evaluate: tokenizer, identity of the weights, and the responses to sample for each suite."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedModel

from attnrl.data.fitting import PromptTally
from attnrl.errors import UserError
from attnrl.evals.settings import EvalSettings
from attnrl.evals.suites import Suite
from attnrl.local.loading import load_model, load_model_config, load_tokenizer
from attnrl.local.model_files import check_model_files, weights_fingerprint
from attnrl.local.model_names import find_model
from attnrl.local.weights import LoadedModel
from attnrl.prompts.renderer import PromptRenderer
from attnrl.rl.evaluation import SampleRequest
from attnrl.types import Problem, Request

NO_LIMIT = 1 << 62  # tokens


@dataclass(frozen=True)
class SuitePlan:
    """The responses of one model to one suite.

    Attributes:
        suite: the suite.
        sample_requests: every response to sample, in order.
        skipped: ids of problems with a prompt too long for the model.
        shortened: whether the model's positions cut the token budget of some response.
    """

    suite: Suite
    sample_requests: tuple[SampleRequest, ...]
    skipped: tuple[str, ...]
    shortened: bool


@dataclass(frozen=True)
class Candidate:
    """A model to evaluate. The weights are loaded on demand, by :meth:`load`.

    Attributes:
        name: the model as named by the user.
        directory: the checkpoint directory.
        fingerprint: hash of the weights, see :func:`weights_fingerprint`.
        positions: number of positions of the model, or None without a limit.
        renderer: renders the prompts; has the model's tokenizer.
        plans: the responses to sample, one plan per suite.
        trust_remote_code: whether Python code in the checkpoint directory may run.
        notes: remarks on the choice of the directory.
        remarks: remarks on the prompts of all suites, one line each.
    """

    name: str
    directory: Path
    fingerprint: str
    positions: int | None
    renderer: PromptRenderer
    plans: tuple[SuitePlan, ...]
    trust_remote_code: bool = False
    notes: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()

    def load(self, device: torch.device, dtype: str) -> LoadedModel:
        """Load the model's weights onto ``device``.

        Raises:
            UserError: as :func:`attnrl.local.loading.load_model`.
        """
        trusted = self.trust_remote_code
        tokenizer = self.renderer.tokenizer
        return load_model(self.directory, tokenizer, device=device, dtype=dtype, trust_remote_code=trusted)


def open_candidate(name: str, suites: Sequence[Suite], settings: EvalSettings, trust_remote_code: bool) -> Candidate:
    """Read the tokenizer and the configuration of the model ``name``, and plan the responses to every suite.

    Raises:
        UserError: the model cannot be found or read, or every prompt of a suite is too long for the model.
    """
    found = find_model(name, trust_remote_code=trust_remote_code)
    directory = found.directory
    check_model_files(directory, trust_remote_code=trust_remote_code)
    tokenizer = load_tokenizer(directory, trust_remote_code=trust_remote_code)
    config = load_model_config(directory, trust_remote_code=trust_remote_code)
    limit = getattr(config.get_text_config(decoder=True), "max_position_embeddings", None)
    positions = int(limit) if limit else None
    renderer = PromptRenderer(tokenizer, settings.prompts)
    tally = PromptTally(renderer)
    plans = tuple(plan_suite(suite, settings, renderer, positions, tally) for suite in suites)
    for plan in plans:
        if not plan.sample_requests:
            raise UserError(f"model {name}: every prompt of {plan.suite.name} is too long for the model")
    fingerprint = weights_fingerprint(name, directory, with_code=trust_remote_code)
    return Candidate(
        name, directory, fingerprint, positions, renderer, plans, trust_remote_code, found.notes, tally.remarks()
    )


def plan_suite(
    suite: Suite, settings: EvalSettings, renderer: PromptRenderer, positions: int | None, tally: PromptTally
) -> SuitePlan:
    """Plan the responses of a model with ``positions`` positions (None: no limit) to ``suite``.

    The remarks on the prompts are counted in ``tally``.

    A token budget beyond the last position is cut. A problem is skipped if the prompt leaves no position for a
    response or exceeds ``settings.max_prompt_tokens``.
    """
    sample_requests: list[SampleRequest] = []
    skipped = []
    shortened = False
    for problem in suite.problems:
        prompt = renderer.encode(problem)
        tally.add(problem, prompt)
        budget = suite.max_new_tokens if positions is None else min(suite.max_new_tokens, positions - len(prompt))
        if budget < 1 or len(prompt) > (settings.max_prompt_tokens or NO_LIMIT):
            skipped.append(problem.id)
            continue
        shortened |= budget < suite.max_new_tokens
        asked = renderer.asked(problem)
        for sample in range(suite.samples):
            seed = sample_seed(settings.seed, suite.name, problem.id, sample)
            sample_requests.append(SampleRequest(asked, sample, Request(prompt, budget, seed)))
    return SuitePlan(suite, tuple(sample_requests), tuple(skipped), shortened)


def sample_seed(seed: int, benchmark: str, problem: str, sample: int) -> int:
    """Return the 62-bit seed of one response: a hash of the arguments, independent of all other responses."""
    text = json.dumps([seed, benchmark, problem, sample])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 2


def require_positions(model: PreTrainedModel, problem: Problem, prompt: Sequence[int], max_new_tokens: int) -> None:
    """Check that the model has positions for ``prompt`` and a response of ``max_new_tokens`` tokens.

    Raises:
        UserError: the model has too few positions; the message names the problem.
    """
    limit = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
    if limit is not None and len(prompt) + max_new_tokens > limit:
        raise UserError(
            f"--max-new-tokens {max_new_tokens}: {problem.where} has a prompt of {len(prompt)} tokens, "
            f"and the model has {limit} positions"
        )
