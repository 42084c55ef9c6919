"""``attnrl disrupt``: hide one step of a response from all later tokens, and measure the loss of accuracy (figure 3).

1. Sample and grade responses, split the responses into steps, and score FCI, lookups and mean entropy of each step.
2. Choose one step per response and condition (:mod:`attnrl.experiments.disruption.choice`).
3. Keep the response up to ``lag`` steps from the chosen step on, and sample the rest again, with the same seeds, once
   with nothing hidden and once with the step hidden (:mod:`attnrl.experiments.disruption.hidden_steps`). Grade both.
4. Summarize over problems (:mod:`attnrl.experiments.disruption.summary`).
"""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.console import Console
from transformers import PreTrainedModel

from attnrl import __version__
from attnrl.data.fitting import PromptTally
from attnrl.errors import UserError
from attnrl.evals.batching import MAX_BATCH, rows_that_fit
from attnrl.evals.candidates import require_positions, sample_seed
from attnrl.evals.settings import EvalSettings, open_rewards
from attnrl.evals.suites import Suite
from attnrl.experiments.disruption.choice import hideable_steps
from attnrl.experiments.disruption.experiment import DisruptionExperiment, ScoredResponse
from attnrl.experiments.disruption.hidden_steps import check_hiding
from attnrl.experiments.disruption.report import disruption_tables, draw_disruption
from attnrl.experiments.disruption.settings import DisruptSettings
from attnrl.experiments.disruption.summary import HiddenStep, summarize_hidden_steps
from attnrl.inference.sampler import check_cache
from attnrl.local.loading import choose_device, load_model, load_tokenizer, require_influence
from attnrl.local.model_names import find_model
from attnrl.prompts.renderer import PromptRenderer
from attnrl.report.pictures import pyplot_for
from attnrl.rl.evaluation import SampleRequest, mean_reward
from attnrl.types import Request
from attnrl.utils.console import print_line, progress_bars
from attnrl.utils.files import require_writable


def run_disruption(
    model_name: str,
    suite: Suite,
    settings: DisruptSettings,
    *,
    console: Console,
    device: str = "auto",
    output: Path | None = None,
    max_batch: int | None = None,
    trust_remote_code: bool = False,
) -> dict[str, Any]:
    """Run the experiment, and return the contents of ``results.json``.

    Args:
        model_name: name of the model, see :func:`attnrl.local.model_names.find_model`.
        suite: the problems and responses per problem.
        settings: the settings.
        console: console for progress and tables.
        device: device of the model.
        output: directory for results, tables, steps and picture; None writes nothing.
        max_batch: largest batch size; by default as many rows as fit in memory.
        trust_remote_code: whether Python code in the model's directory may run.

    Raises:
        UserError: an input is invalid. Raised before anything is sampled, unless all responses have too few steps.
    """
    if output is not None:
        _require_new(output)
    where = choose_device(device)
    source = find_model(model_name, trust_remote_code=trust_remote_code)
    for note in source.notes:
        print_line(console, note)
    tokenizer = load_tokenizer(source.directory, trust_remote_code=trust_remote_code)
    with open_rewards(settings.evaluation) as rewards:
        dtype = settings.evaluation.dtype
        loaded = load_model(source.directory, tokenizer, device=where, dtype=dtype, trust_remote_code=trust_remote_code)
        for note in loaded.notes:
            print_line(console, note)
        model = loaded.model
        require_influence(model)
        renderer = PromptRenderer(tokenizer, settings.evaluation.prompts)
        requests = _sample_requests(suite, settings.evaluation, renderer, model, console)
        batch = min(rows_that_fit(model, requests), max_batch or MAX_BATCH)
        check_cache(model)
        check_hiding(model)
        try:
            with progress_bars(console) as progress:
                experiment = DisruptionExperiment(model, renderer, rewards, settings, batch, progress)
                responses = experiment.sample_responses(requests)
                usable = [r for r in responses if len(hideable_steps(r.steps, settings.lag)) >= 2 * settings.bins]
                if not usable:
                    raise UserError(_too_few_steps(responses, settings))
                hidden_steps = experiment.hide_steps(usable)
        except KeyboardInterrupt:
            print_line(console, "Stopped. Nothing was written: the statistics need all continuations.")
            raise
    results = {
        "model": model_name,
        "task": suite.name,
        "source": suite.source,
        "settings": asdict(settings),
        "max_new_tokens": suite.max_new_tokens,
        "sampled": {
            "problems": len({r.sampled.problem.id for r in responses}),
            "responses": len(responses),
            "accuracy": fmean(r.is_correct for r in responses),
            "reward": mean_reward([r.reward for r in responses]),
            "not_judged": sum(r.reward is None for r in responses),
            "mean_tokens": fmean(len(r.tokens) for r in responses),
            "mean_steps": fmean(len(r.steps) for r in responses),
        },
        **summarize_hidden_steps(hidden_steps, settings.bins, settings.evaluation.seed),
        "versions": {
            "python": platform.python_version(),
            "attnrl": __version__,
            **{package: metadata.version(package) for package in ("torch", "transformers")},
            "device": where.type,
        },
    }
    continued = [r for hidden in hidden_steps for r in (*hidden.undisturbed_rewards, *hidden.disrupted_rewards)]
    not_judged = results["sampled"]["not_judged"] + continued.count(None)
    if not_judged:
        print_line(
            console,
            f"{not_judged:,} of {len(responses) + len(continued):,} responses and continuations are not judged: they "
            "count as not correct.",
        )
    print_line(console, disruption_tables(results))
    if output is not None:
        _write(output, results, hidden_steps)
        print_line(console, f"Written to {output}")
    return results


def _sample_requests(
    suite: Suite, settings: EvalSettings, renderer: PromptRenderer, model: PreTrainedModel, console: Console
) -> list[SampleRequest]:
    """Return the requests of all responses, and print remarks on the prompts and the first prompt.

    Raises:
        UserError: a prompt fails, or a response does not fit the model's positions.
    """
    prompts = {}
    tally = PromptTally(renderer)
    for problem in suite.problems:
        prompt = renderer.encode(problem, settings.max_prompt_tokens)
        require_positions(model, problem, prompt, suite.max_new_tokens)
        tally.add(problem, prompt)
        prompts[problem.id] = prompt
    for line in (*suite.notes, *renderer.notes, *tally.remarks(), *renderer.show(suite.problems[0])):
        print_line(console, line)
    return [
        SampleRequest(
            renderer.asked(problem),
            sample,
            Request(
                prompts[problem.id],
                suite.max_new_tokens,
                sample_seed(settings.seed, suite.name, problem.id, sample),
            ),
        )
        for problem in suite.problems
        for sample in range(suite.samples)
    ]


def _too_few_steps(responses: Sequence[ScoredResponse], settings: DisruptSettings) -> str:
    most = max((len(hideable_steps(response.steps, settings.lag)) for response in responses), default=0)
    return (
        f"no response has enough steps: --bins {settings.bins} needs {2 * settings.bins} steps that can be hidden with "
        f"--lag {settings.lag}, the most are {most} (mean steps {fmean(len(r.steps) for r in responses):.1f}); "
        "a smaller --lag or fewer --bins may do"
    )


def _require_new(output: Path) -> None:
    if (output / "results.json").exists():
        raise UserError(f"--output {output}: holds results already, choose another directory")
    require_writable(output, f"--output {output}")
    pyplot_for("disrupt --output")


def _write(output: Path, results: dict[str, Any], hidden_steps: Sequence[HiddenStep]) -> None:
    output.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(hidden.as_dict()) + "\n" for hidden in hidden_steps)
    (output / "steps.jsonl").write_text(lines, encoding="utf-8")
    (output / "results.md").write_text(disruption_tables(results) + "\n", encoding="utf-8")
    draw_disruption(results, output / "disruption.png")
    (output / "results.json").write_text(json.dumps(results, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
