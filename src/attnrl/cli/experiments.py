"""Commands that run experiments: ``attnrl compare``, ``disrupt`` and ``point``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from attnrl.cli.console import console, echo
from attnrl.cli.options import DeviceOption, ModelArgument, ResponseOptions, SeedOption, with_response_options
from attnrl.config.columns import parse_columns
from attnrl.config.load import dump_config
from attnrl.errors import GraderError
from attnrl.experiments.comparison.config import comparison_names, load_comparison, plan_runs
from attnrl.utils.files import require_writable


def compare(
    comparison: Annotated[
        str,
        typer.Argument(help=f"A .yaml file, recipes separated by commas, or one of: {', '.join(comparison_names())}."),
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            help="Settings of the comparison to change, as key.path=value (for example: workers=1 'seeds=[0,1]').",
            metavar="[KEY=VALUE]...",
        ),
    ] = None,
    train: Annotated[bool, typer.Option(help="--no-train: report the finished runs, train none.")] = True,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything, list the runs, stop.")] = False,
) -> None:
    """Train recipes side by side, over several seeds and with equal budgets of sampled tokens.

    Writes to the output_dir, beside the run directories (runs/): tables (results.md), numbers (results.json), learning
    curves with confidence bands (curves.png) and the paper's training dynamics (dynamics.png). The same command again
    trains the unfinished runs. Ctrl-C lets the current runs save checkpoints; a second Ctrl-C exits at once.

    [bold]Examples[/bold]

    attnrl compare grpo,treerl,attnrl tokens=1000000 'seeds=[0,1,2]'

    attnrl compare quick --dry-run
    """
    loaded = load_comparison(comparison, overrides or ())
    runs = plan_runs(loaded)
    require_writable(loaded.output_dir, f"output_dir {loaded.output_dir}")
    if dry_run:
        echo(dump_config(loaded))
        for run in runs:
            echo(f"{run.arm}, seed {run.seed}: {run.directory}")
        return
    from attnrl.experiments.comparison.runner import run_comparison, write_results

    with_faults = run_comparison(loaded, runs, console) if train else []
    for line in write_results(loaded, runs):
        echo(line)
    echo(f"Results: {loaded.output_dir}")
    if with_faults:
        raise GraderError(
            f"{len(with_faults)} of {len(runs)} runs have more responses not judged than reward.max_not_judged, first "
            f"arm {with_faults[0].arm}, seed {with_faults[0].seed} (log: {with_faults[0].log})"
        )


@with_response_options
def disrupt(
    *,
    model: ModelArgument,
    problems: Annotated[int, typer.Option(min=1, help="The first N problems only.")] = 200,
    samples: Annotated[int, typer.Option(min=1, help="Responses per problem.")] = 1,
    continuations: Annotated[
        int, typer.Option(min=1, help="Continuations per step, with the step hidden and again with the step visible.")
    ] = 4,
    lag: Annotated[
        int, typer.Option(min=1, help="Steps kept, counted from the hidden step; the rest is sampled anew.")
    ] = 4,
    hide_from: Annotated[
        str,
        typer.Option(
            help="continuation: the step is hidden from the sampled tokens only; next_step: also from the kept steps."
        ),
    ] = "continuation",
    delta: Annotated[
        int, typer.Option(min=0, help="FCI counts later steps at a distance of at least this many steps.")
    ] = 4,
    rho: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Share of a response's steps that count as top steps.")
    ] = 0.2,
    bins: Annotated[int, typer.Option(min=1, help="Position bins; a response needs two steps per bin.")] = 5,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 is greedy.")] = 1.0,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest response, in tokens.")] = 512,
    output: Annotated[
        Path | None, typer.Option(help="Directory for results.json, results.md, steps.jsonl and a picture.")
    ] = None,
    options: ResponseOptions,
) -> None:
    """Hide single steps from later tokens and measure the loss of accuracy by kind of step (fig. 3).

    Compares the steps of highest FCI or entropy with random steps, and with random steps at the same position.

    [bold]Examples[/bold]

    attnrl disrupt ledger --task ledger --problems 100

    attnrl disrupt PATH --data test.parquet --samples 4 --temperature 0.6 --output disruption/mine
    """
    from attnrl.evals.suites import load_suites
    from attnrl.experiments.disruption.runner import run_disruption
    from attnrl.experiments.disruption.settings import DisruptSettings, check_disruption_options

    check_disruption_options(hide_from=hide_from, rho=rho, task=options.task, data=options.data)
    evaluation = options.eval_settings(temperature)
    (suite,) = load_suites(
        data=options.data,
        task=options.task,
        problems=problems,
        samples=samples,
        max_new_tokens=max_new_tokens,
        columns=parse_columns(options.columns),
        answers=evaluation.answers,
    )
    run_disruption(
        model,
        suite,
        DisruptSettings(evaluation, lag, delta, rho, bins, continuations, hide_from),
        console=console,
        device=options.device,
        output=output,
        max_batch=options.max_batch,
        trust_remote_code=options.trust_remote_code,
    )


def point(
    model: ModelArgument,
    task: Annotated[str, typer.Option(help="A task with a known dependency graph: ledger, ledger_long.")],
    problems: Annotated[int, typer.Option(min=1, help="Number of problems.")] = 200,
    samples: Annotated[int, typer.Option(min=1, help="Responses per problem.")] = 4,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest response, in tokens.")] = 448,
    pivotal: Annotated[
        int, typer.Option(min=1, help="Number of later lines that must use a step to make the step pivotal.")
    ] = 3,
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Directory for results.json and results.md.")
    ] = None,
) -> None:
    """Measure how often branch points are pivotal steps, the steps that most later steps depend on.

    [bold]Example[/bold]

    attnrl point ledger --task ledger
    """
    from attnrl.experiments.pointing import pointing_table, run_pointing

    results = run_pointing(
        model,
        task=task,
        problems=problems,
        samples=samples,
        max_new_tokens=max_new_tokens,
        pivotal=pivotal,
        seed=seed,
        device=device,
        output=output,
        console=console,
    )
    for line in pointing_table(results):
        echo(line)
