"""Contents of ``results.json``, and the outcomes of an earlier command in the same output directory."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import asdict
from importlib import metadata
from typing import Any

import torch

from attnrl import __version__
from attnrl.errors import UserError
from attnrl.evals.candidates import Candidate, SuitePlan
from attnrl.evals.directory import EvalDirectory
from attnrl.evals.settings import EvalSettings
from attnrl.evals.suites import Suite
from attnrl.evals.summary import EvaluationOutcome, Summary
from attnrl.tokenization import decode

#: (problem id, sample number) -> outcome
Outcomes = dict[tuple[str, int], EvaluationOutcome]
#: (model, benchmark) -> outcomes
OutcomesByPlan = dict[tuple[str, str], Outcomes]


def initial_record(
    previous: dict[str, Any] | None,
    candidates: Sequence[Candidate],
    suites: Sequence[Suite],
    settings: EvalSettings,
    device: torch.device,
) -> dict[str, Any]:
    """Return the contents of ``results.json`` before the first sample.

    Args:
        previous: contents of ``results.json`` written by an earlier command. Models, benchmarks and results of other
            models and benchmarks are kept. None for a new directory.
        candidates: the models.
        suites: the suites.
        settings: the settings.
        device: the device of sampling.

    Raises:
        UserError: ``previous`` has other settings, another token budget of a benchmark, or other weights of a model.
    """
    record: dict[str, Any] = {
        "complete": False,
        "settings": _plain_settings(settings),
        "models": {
            c.name: {"directory": str(c.directory.absolute()), "fingerprint": c.fingerprint, "positions": c.positions}
            for c in candidates
        },
        "benchmarks": {
            suite.name: {"source": suite.source, "max_new_tokens": suite.max_new_tokens} for suite in suites
        },
        "results": [],
        "averages": [],
        "versions": _versions(device),
    }
    if previous is None:
        return record
    _require_same_evaluation(previous, record)
    evaluated = {(candidate.name, suite.name) for candidate in candidates for suite in suites}
    return {
        **record,
        "models": previous["models"] | record["models"],
        "benchmarks": previous["benchmarks"] | record["benchmarks"],
        "results": [row for row in previous["results"] if (row["model"], row["benchmark"]) not in evaluated],
    }


def _plain_settings(settings: EvalSettings) -> dict[str, Any]:
    """Return the settings without groups, as JSON reads them back."""
    plain = asdict(settings)
    sampling = plain.pop("sampling")
    return {**sampling, "stop": list(settings.sampling.stop), **plain}


def _require_same_evaluation(previous: dict[str, Any], record: dict[str, Any]) -> None:
    changed = _differences(previous["settings"], record["settings"], "")
    for name, model in record["models"].items():
        before = previous["models"].get(name, model)
        if before["fingerprint"] != model["fingerprint"]:
            changed.append(f"the weights of {name} (fingerprint {before['fingerprint']} -> {model['fingerprint']})")
    for name, benchmark in record["benchmarks"].items():
        before = previous["benchmarks"].get(name, benchmark)
        changed += _differences(
            {"max_new_tokens": before["max_new_tokens"]},
            {"max_new_tokens": benchmark["max_new_tokens"]},
            f"{name} ",
        )
    if changed:
        raise UserError(
            f"--output: holds samples of another evaluation ({'; '.join(changed)}): choose another directory"
        )


def _differences(before: dict[str, Any], now: dict[str, Any], prefix: str) -> list[str]:
    return [f"{prefix}{key} {before.get(key)!r} -> {now[key]!r}" for key in now if before.get(key) != now[key]]


def _versions(device: torch.device) -> dict[str, str]:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    packages = {package: metadata.version(package) for package in ("torch", "transformers", "math-verify")}
    return {"python": platform.python_version(), "attnrl": __version__, **packages, "device": f"{device.type} ({name})"}


def add_result(record: dict[str, Any], model: str, plan: SuitePlan, summary: Summary) -> None:
    """Append the summary of one model on one suite to the results of ``record``."""
    row = {"model": model, "benchmark": plan.suite.name, **summary.as_dict()}
    record["results"].append({**row, "max_new_tokens": plan.suite.max_new_tokens, "shortened": plan.shortened})


def finished_outcomes(directory: EvalDirectory, candidates: Sequence[Candidate]) -> OutcomesByPlan:
    """Return the outcomes in ``samples.jsonl`` that belong to the plans of ``candidates``.

    Rows of other models, and rows beyond the planned problems and samples, are ignored.

    Raises:
        UserError: a row has another prompt, reference answer or seed than the planned response.
    """
    planned = {
        (candidate.name, plan.suite.name, sampled.problem.id, sampled.sample): (candidate, sampled)
        for candidate in candidates
        for plan in candidate.plans
        for sampled in plan.sample_requests
    }
    outcomes: OutcomesByPlan = {}
    for row in directory.rows():
        found = planned.get((row["model"], row["benchmark"], row["problem"], row["sample"]))
        if found is None:
            continue
        candidate, sampled = found
        same_prompt = row["prompt"] == decode(candidate.renderer.tokenizer, sampled.request.prompt)
        same_answers = tuple(row["answers"]) == sampled.problem.answers
        if not (same_prompt and same_answers and row["seed"] == sampled.request.seed):
            raise UserError(
                f"--output {directory.root}: holds samples of another evaluation "
                f"(another prompt or answer of {row['benchmark']}, problem {row['problem']}): choose another directory"
            )
        outcomes.setdefault((row["model"], row["benchmark"]), {})[row["problem"], row["sample"]] = outcome_of(row)
    return outcomes


def outcome_of(row: dict[str, Any]) -> EvaluationOutcome:
    """Return the outcome of a row of ``samples.jsonl``."""
    return EvaluationOutcome(
        row["problem"],
        row["reward"],
        row["verdict"],
        row["tokens"],
        row["finish_reason"],
        row.get("rewards", {}),
        row.get("fault"),
    )
