"""The command line.

``attnrl train``, ``compare``, ``eval``, ``disrupt``, ``point``, ``sft``, ``grade``, ``plot``, ``timeline``, ``report``,
``export``.
"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console

from attnrl.config.load import dump_config, load_config, recipe_names
from attnrl.config.schema import TrainConfig
from attnrl.config.sft import SftConfig
from attnrl.data.benchmarks import DATA_DIR_VARIABLE, KNOWN, TEMPERATURE
from attnrl.errors import RunError, UserError
from attnrl.experiments.comparison.config import comparison_names, load_comparison, plan_runs
from attnrl.utils.files import require_writable

app = typer.Typer(
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="Train reasoning language models with attention-guided process-supervised RL (AttnRL).",
)
console = Console()

INTERRUPTED = 130  # exit code of a command that Ctrl-C ended
# Raised on wrong flags and arguments. typer does not export it, and has moved it from one package to another.
UsageFault: Any = typer.BadParameter.__base__

RECIPES = f"A .yaml file, or one of: {', '.join(recipe_names())}."
COMPARISON = f"A .yaml file, recipes separated by commas, or one of: {', '.join(comparison_names())}."
CHANGES = "Settings of the comparison to change, as key.path=value (for example: workers=1 'seeds=[0,1]')."
OVERRIDES = "Settings to change, as key.path=value (for example: seed=1 method.branching.criterion=random)."

# Options of commands that sample and grade responses.
TaskOption = Annotated[str | None, typer.Option(help="A procedural task: its held-out problems.")]
DataOption = Annotated[str | None, typer.Option(help="A file of problems (parquet, jsonl, json, csv), or HUB_ID.")]
TopPOption = Annotated[float, typer.Option(min=0.0, max=1.0)]
MaxPromptTokensOption = Annotated[
    int | None, typer.Option(min=1, help="Longer prompts count as not solved. \\[default: the model's positions]")
]
PromptSuffixOption = Annotated[
    str | None, typer.Option(help="Appended where it is missing. \\[default: the paper's; none for --task]")
]
GraderOption = Annotated[
    str | None, typer.Option(help="rules, math or module:function. \\[default: the task's own, else math]")
]
FlexibleAnswersOption = Annotated[
    bool, typer.Option("--flexible-answers", help="Grade the last number of a response that boxes nothing.")
]
DtypeOption = Annotated[str, typer.Option(help="float32 or bfloat16")]
TrustRemoteCodeOption = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run the code that the model's directory brings (auto_map).")
]
MaxBatchOption = Annotated[
    int | None, typer.Option(min=1, help="Responses decoded at the same time. \\[default: what memory allows]")
]


@app.command()
def train(
    recipe: Annotated[str, typer.Argument(help=RECIPES)],
    overrides: Annotated[list[str] | None, typer.Argument(help=OVERRIDES, metavar="[KEY=VALUE]...")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything, show the run, stop.")] = False,
) -> None:
    """Train a model.

    Everything a run writes is in its output_dir: config.yaml, metrics.jsonl, timeline.jsonl, trees.jsonl,
    samples.jsonl and checkpoints/. The same command again continues where the last one stopped (resume=auto).
    Ctrl-C finishes the phase and saves; twice leaves at once.

    Keys most used: model, task or data.train, data.eval, steps, prompts, seed, output_dir, checkpoint.every,
    resume. --dry-run shows them all.

    [bold]Examples[/bold]

    attnrl train attnrl output_dir=runs/first

    attnrl train attnrl model=PATH task=null data.train=train.parquet data.eval=test.parquet output_dir=runs/mine

    attnrl train grpo steps=20 --dry-run

    attnrl train verl/r1_distill_qwen_1.5b_8xh100 --dry-run
    """
    config = load_config(TrainConfig, recipe, overrides or ())  # before torch is imported: a typo is told at once
    if config.engine == "verl":
        _train_with_verl(config, dry_run)
        return
    from attnrl.runs.display import Display
    from attnrl.runs.prepare import prepare
    from attnrl.runs.session import train as run_training
    from attnrl.runs.summary import describe, left_out, summarize

    prepared = prepare(config)
    if dry_run:
        console.print(dump_config(config), highlight=False, markup=False, soft_wrap=True)
        for line in describe(prepared):
            console.print(line, highlight=False, markup=False, soft_wrap=True)
        return
    resumed = [f"Continues from {prepared.checkpoint.directory}"] if prepared.checkpoint else []
    for line in [*left_out(prepared), *resumed]:
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    rows = run_training(prepared, Display(console))
    finished = config.is_over(int(rows[-1]["step"]), rows[-1].get("tokens/total", 0.0))
    for line in summarize(rows):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    console.print(f"Run directory: {config.output_dir}", highlight=False, markup=False, soft_wrap=True)
    if not finished:
        # What it was resumed from is behind it now.
        settings = [setting for setting in overrides or () if not setting.startswith("resume=")]
        command = shlex.join(["attnrl", "train", recipe, *settings])
        console.print(f"Stopped early. To continue: {command}", highlight=False, markup=False, soft_wrap=True)


def _train_with_verl(config: TrainConfig, dry_run: bool) -> None:
    from attnrl.runs.summary import summarize
    from attnrl.verl.launch import train as run_training
    from attnrl.verl.launch import try_to_compose
    from attnrl.verl.plan import plan

    if dry_run:
        console.print(dump_config(config), highlight=False, markup=False, soft_wrap=True)
        lines = [try_to_compose(config), *plan(config)]
    else:
        lines = [*summarize(run_training(config)), f"Run directory: {config.output_dir}"]
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)


@app.command()
def compare(
    comparison: Annotated[str, typer.Argument(help=COMPARISON)],
    overrides: Annotated[list[str] | None, typer.Argument(help=CHANGES, metavar="[KEY=VALUE]...")] = None,
    train: Annotated[bool, typer.Option(help="--no-train: the results of what is finished so far.")] = True,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything, list the runs, stop.")] = False,
) -> None:
    """Train recipes side by side, over several seeds and with equal budgets of sampled tokens.

    Writes tables (results.md), their numbers (results.json), learning curves with bands (curves.png) and the curves
    that the paper watches (dynamics.png) to the output_dir, beside the run directories (runs/). The same command
    again does what is left to do. Ctrl-C lets the runs in progress save; twice leaves at once.

    [bold]Examples[/bold]

    attnrl compare grpo,treerl,attnrl tokens=1000000 'seeds=[0,1,2]'

    attnrl compare quick --dry-run
    """
    loaded = load_comparison(comparison, overrides or ())
    runs = plan_runs(loaded)
    require_writable(loaded.output_dir, f"output_dir {loaded.output_dir}")
    if dry_run:
        console.print(dump_config(loaded), highlight=False, markup=False, soft_wrap=True)
        for run in runs:
            console.print(f"{run.arm}, seed {run.seed}: {run.directory}", highlight=False, markup=False, soft_wrap=True)
        return
    from attnrl.experiments.comparison.runner import run_comparison, write_results

    if train:
        run_comparison(loaded, runs, console)
    for line in write_results(loaded, runs):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    console.print(f"Results: {loaded.output_dir}", highlight=False, markup=False, soft_wrap=True)


@app.command("eval")
def evaluate_models(
    models: Annotated[list[str], typer.Argument(help="Checkpoint directories, or names of shipped models.")],
    benchmark: Annotated[
        list[str] | None,
        typer.Option(help=f"Names, separated by commas: {', '.join(KNOWN)}, or NAME=PATH, or NAME=HUB_ID."),
    ] = None,
    data_dir: Annotated[
        Path | None, typer.Option(help=f"Where the files of the benchmarks are. \\[default: ${DATA_DIR_VARIABLE}]")
    ] = None,
    task: TaskOption = None,
    data: DataOption = None,
    problems: Annotated[
        int | None, typer.Option(min=1, help="The first N problems only. \\[default: all of a benchmark, else 200]")
    ] = None,
    samples: Annotated[
        int | None,
        typer.Option(
            min=1, help="Responses per problem (k). \\[default: 32 of AIME and AMC, 4 of other benchmarks, else 8]"
        ),
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(min=0.0, help="0 is greedy. \\[default: 0.6 for benchmarks, else 1.0]")
    ] = None,
    top_p: TopPOption = 1.0,
    max_new_tokens: Annotated[
        int | None,
        typer.Option(min=1, help="At most, and what the model has positions for. \\[default: 32768, else 512]"),
    ] = None,
    max_prompt_tokens: MaxPromptTokensOption = None,
    prompt_suffix: PromptSuffixOption = None,
    grader: GraderOption = None,
    flexible_answers: FlexibleAnswersOption = False,
    seed: Annotated[int, typer.Option()] = 0,
    device: Annotated[str, typer.Option()] = "auto",
    dtype: DtypeOption = "float32",
    max_batch: MaxBatchOption = None,
    trust_remote_code: TrustRemoteCodeOption = False,
    chunk: Annotated[
        int | None, typer.Option(min=1, help="Responses between two writes. \\[default: about a minute's work]")
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="Write samples.jsonl and results.json to this directory, and continue there.")
    ] = None,
) -> None:
    """Measure models: avg@k with confidence intervals, pass@k, response length, truncation.

    Benchmarks follow the paper's protocol unless told otherwise. With --output, the same command again continues
    after a Ctrl-C or a kill and repeats nothing.

    [bold]Examples[/bold]

    attnrl eval ledger --task ledger --problems 100

    attnrl eval BASE runs/mine/checkpoints/step-000500 --benchmark aime24,math500 --data-dir DIR --output evals/mine

    attnrl eval PATH --data test.parquet --samples 4 --temperature 0.6 --output evals/test
    """
    from attnrl.evals.runner import load_suites, protocol_deviations, read_settings, run_evaluation

    if temperature is None:
        temperature = TEMPERATURE if benchmark else 1.0
    settings = read_settings(
        temperature=temperature,
        top_p=top_p,
        seed=seed,
        dtype=dtype,
        task=task,
        grader=grader,
        flexible_answers=flexible_answers,
        prompt_suffix=prompt_suffix,
        max_prompt_tokens=max_prompt_tokens,
    )
    suites = load_suites(
        benchmarks=benchmark or (),
        data_dir=data_dir,
        data=data,
        task=task,
        problems=problems,
        samples=samples,
        max_new_tokens=max_new_tokens,
        prompt_suffix=settings.prompt_suffix,
    )
    report = run_evaluation(
        models,
        suites,
        settings,
        console=console,
        device=device,
        output=output,
        chunk=chunk,
        max_batch=max_batch,
        trust_remote_code=trust_remote_code,
    )
    report.print(console, protocol_deviations(suites, settings))
    if output is not None:
        console.print(f"Written to {output}", highlight=False, markup=False, soft_wrap=True)


@app.command()
def disrupt(
    model: Annotated[str, typer.Argument(help="A checkpoint directory, or the name of a shipped model.")],
    task: TaskOption = None,
    data: DataOption = None,
    problems: Annotated[int, typer.Option(min=1, help="The first N problems only.")] = 200,
    samples: Annotated[int, typer.Option(min=1, help="Responses per problem.")] = 1,
    continuations: Annotated[int, typer.Option(min=1, help="Of each step, hidden and not.")] = 4,
    lag: Annotated[
        int, typer.Option(min=1, help="Steps kept from the hidden one on; what comes then is sampled anew.")
    ] = 4,
    hide_from: Annotated[
        str,
        typer.Option(help="continuation: the kept steps have seen the hidden one; next_step: they have not either."),
    ] = "continuation",
    delta: Annotated[int, typer.Option(min=0, help="Steps between a step and those that count for its FCI.")] = 4,
    rho: Annotated[float, typer.Option(min=0.0, max=1.0, help="Share of steps that are a response's top ones.")] = 0.2,
    bins: Annotated[int, typer.Option(min=1, help="Position bins; a response needs two steps for each.")] = 5,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 is greedy.")] = 1.0,
    top_p: TopPOption = 1.0,
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 512,
    max_prompt_tokens: Annotated[int | None, typer.Option(min=1)] = None,
    prompt_suffix: PromptSuffixOption = None,
    grader: GraderOption = None,
    flexible_answers: FlexibleAnswersOption = False,
    seed: Annotated[int, typer.Option()] = 0,
    device: Annotated[str, typer.Option()] = "auto",
    dtype: DtypeOption = "float32",
    max_batch: MaxBatchOption = None,
    trust_remote_code: TrustRemoteCodeOption = False,
    output: Annotated[
        Path | None, typer.Option(help="Write results.json, results.md, steps.jsonl and a picture to this directory.")
    ] = None,
) -> None:
    """Hide single steps from what comes after them: how much accuracy does each kind of step carry? (fig. 3)

    Compares steps of the highest FCI or entropy with random ones, and with random ones of the same position.

    [bold]Examples[/bold]

    attnrl disrupt ledger --task ledger --problems 100

    attnrl disrupt PATH --data test.parquet --samples 4 --temperature 0.6 --output disruption/mine
    """
    from attnrl.evals.runner import load_suites, read_settings
    from attnrl.experiments.disruption.runner import DisruptSettings, check_options, run_disruption

    check_options(hide_from=hide_from, rho=rho, task=task, data=data)
    evaluation = read_settings(
        temperature=temperature,
        top_p=top_p,
        seed=seed,
        dtype=dtype,
        task=task,
        grader=grader,
        flexible_answers=flexible_answers,
        prompt_suffix=prompt_suffix,
        max_prompt_tokens=max_prompt_tokens,
    )
    (suite,) = load_suites(
        data=data,
        task=task,
        problems=problems,
        samples=samples,
        max_new_tokens=max_new_tokens,
        prompt_suffix=evaluation.prompt_suffix,
    )
    settings = DisruptSettings(evaluation, lag, delta, rho, bins, continuations, hide_from)
    run_disruption(
        model,
        suite,
        settings,
        console=console,
        device=device,
        output=output,
        max_batch=max_batch,
        trust_remote_code=trust_remote_code,
    )


@app.command()
def point(
    model: Annotated[str, typer.Argument(help="A checkpoint directory, or the name of a shipped model.")],
    task: Annotated[str, typer.Option(help="A task whose true dependency graph is known: ledger, ledger_long.")],
    problems: Annotated[int, typer.Option(min=1)] = 200,
    samples: Annotated[int, typer.Option(min=1, help="Responses per problem.")] = 4,
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 448,
    pivotal: Annotated[int, typer.Option(min=1, help="Lines that must look a step up to make it pivotal.")] = 3,
    seed: Annotated[int, typer.Option()] = 0,
    device: Annotated[str, typer.Option()] = "auto",
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Where to write results.json, .md.")] = None,
) -> None:
    """See whether branch points lie on the steps on which most later steps depend.

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
        console.print(line, highlight=False, markup=False, soft_wrap=True)


@app.command()
def sft(
    recipe: Annotated[str, typer.Argument(help=RECIPES)] = "sft_ledger",
    overrides: Annotated[list[str] | None, typer.Argument(help=OVERRIDES, metavar="[KEY=VALUE]...")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check the recipe, show it, stop.")] = False,
) -> None:
    """Train a small base model from scratch on a procedural task's demonstrations.

    [bold]Examples[/bold]

    attnrl sft sft_ledger

    attnrl sft sft_ledger seed=1 architecture.hidden_size=96 output_dir=runs/wider
    """
    config = load_config(SftConfig, recipe, overrides or ())
    if dry_run:
        console.print(dump_config(config), highlight=False, markup=False, soft_wrap=True)
        return
    import torch
    from rich.progress import Progress

    from attnrl.runs.sft import SftProgress, train_sft

    if config.threads:
        torch.set_num_threads(config.threads)
    with Progress(console=console) as progress:
        bar = progress.add_task("supervised training", total=sum(stage.steps for stage in config.stages))

        def show(step: SftProgress) -> None:
            description = f"{step.stage}: loss {step.loss:.3f}, {step.tokens_per_second:,.0f} tokens/s"
            progress.update(bar, completed=step.step, description=description)

        checkpoints = train_sft(config, show)
    for checkpoint in checkpoints:
        console.print(f"Wrote {checkpoint}", highlight=False, soft_wrap=True)


@app.command()
def grade(
    file: Annotated[Path, typer.Argument(help="Rows of response and answer (.jsonl).")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The .jsonl file to write.")],
    grader: Annotated[str, typer.Option(help="rules, math or module:function.")] = "math",
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes for math. \\[default: one per core, at most 8]")
    ] = None,
    deadline: Annotated[float, typer.Option(help="Seconds that comparing one answer may take.")] = 5.0,
    flexible_answers: Annotated[
        bool, typer.Option("--flexible-answers", help="Look for the answer of a response that boxes nothing.")
    ] = False,
) -> None:
    """Grade responses: each row gets a verdict, the extracted answer and the reward.

    A row has response (text) and answer (text, or a list of accepted answers); with prompt, a box that only repeats
    the problem is found out. Verdicts: correct, wrong, no_answer, timeout, error, bad_gold.

    [bold]Example[/bold]

    attnrl grade responses.jsonl --output graded.jsonl --workers 2
    """
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    from attnrl.grading.grade_file import grade_file
    from attnrl.grading.registry import build_grader

    total = file.stat().st_size if file.is_file() else None
    columns = (TextColumn("grading"), BarColumn(), TaskProgressColumn(), TextColumn("{task.fields[rate]}"))
    with (
        build_grader(grader, flexible=flexible_answers, workers=workers, deadline=deadline) as built,
        Progress(*columns, TimeRemainingColumn(), console=console) as progress,
    ):
        bar = progress.add_task("grading", total=total, rate="")

        def show(rows: int, size: int) -> None:
            rate = rows / (progress.tasks[0].elapsed or 1)
            progress.update(bar, completed=size, rate=f"{rows:,} rows, {rate:,.0f}/s")

        verdicts = grade_file(file, output, built, show)
    rows = sum(verdicts.values())
    for verdict, count in verdicts.most_common():
        console.print(f"{verdict:<10} {count:>9,} {count / rows:>7.1%}", highlight=False)
    console.print(f"Wrote {rows:,} rows to {output}", highlight=False, markup=False, soft_wrap=True)


@app.command()
def plot(
    runs: Annotated[list[Path], typer.Argument(help="Run directories.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The picture to write (.png or .svg).")] = Path(
        "curves.png"
    ),
) -> None:
    """Draw the learning curves of runs: held-out accuracy over tokens sampled and over time.

    Runs whose names differ in a last -NUMBER only (seeds of one recipe) share a colour.

    [bold]Example[/bold]

    attnrl plot runs/attnrl-0 runs/attnrl-1 runs/grpo-0 --output curves.png
    """
    from attnrl.report.curves import draw_curves

    draw_curves(runs, output)
    console.print(f"Wrote {output}", highlight=False, soft_wrap=True)


@app.command()
def timeline(
    run: Annotated[Path, typer.Argument(help="A run directory.")],
    step: Annotated[int | None, typer.Option(min=1, help="The training step. \\[default: the last one]")] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="The picture to write (.png or .svg).")] = Path(
        "timeline.png"
    ),
) -> None:
    """Draw one training step: when sampler, grader and policy were at work.

    [bold]Example[/bold]

    attnrl timeline runs/attnrl --step 12 --output timeline.png
    """
    from attnrl.report.timeline import draw_timeline

    drawn = draw_timeline(run, output, step)
    console.print(f"Wrote step {drawn} to {output}", highlight=False, soft_wrap=True)


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(help="Run directories, finished or not.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The .html file to write.")] = Path("report.html"),
    max_mb: Annotated[
        float,
        typer.Option(
            "--max-mb", min=0.0, max=100_000.0, help="Megabytes of forests to keep; the page says what is left out."
        ),
    ] = 10.0,
    attention: Annotated[
        bool | None,
        typer.Option(help="Attention maps with the newest checkpoint; unless said, where it is below 2 GiB."),
    ] = None,
) -> None:
    """Write runs as one HTML page: curves side by side, time, forests to look through, FCI, attention.

    The page needs no network and nothing beside it. Any browser opens it.

    [bold]Examples[/bold]

    attnrl report runs/attnrl

    attnrl report runs/attnrl-0 runs/grpo-0 --output compared.html --max-mb 30 --no-attention
    """
    from attnrl.report.html import write_report

    size = write_report(runs, output, max_megabytes=max_mb, attention=attention)
    console.print(f"Wrote {output} ({size / 1e6:.1f} MB)", highlight=False, markup=False, soft_wrap=True)


@app.command()
def export(
    checkpoint: Annotated[
        Path, typer.Argument(help="global_step_N, or the directory of a verl run or of its checkpoints: the newest.")
    ],
    output: Annotated[Path, typer.Argument(help="The directory to write; it must not be there yet.")],
    trust_remote_code: TrustRemoteCodeOption = False,
) -> None:
    """Turn a checkpoint of verl's (FSDP2, any number of GPUs) into one of the local engine; verl is not needed.

    attnrl eval reads it, and attnrl train resume=OUTPUT goes on from it: weights, optimizer, the loop's state. Of a run
    with another trainer than ours it has the model only.

    [bold]Example[/bold]

    attnrl export runs/mine/checkpoints/global_step_500 exported
    """
    from attnrl.verl.export import export as export_checkpoint

    def say(line: str) -> None:
        console.print(line, highlight=False, markup=False, soft_wrap=True)

    done = export_checkpoint(checkpoint, output, trust_remote_code=trust_remote_code, say=say)
    if done.missing:
        say(f"Wrote the model of {done.source} to {output}, and the model only: there is no {done.missing}.")
        say(f"To use it: model={output}")
    else:
        say(f"Wrote {done.source} to {output}: training step {done.step}, optimizer step {done.updates}.")
        say(f"To go on from it: attnrl train RECIPE resume={output} output_dir=NEW")


def main() -> None:
    """Run the command line; bad input ends in one line and exit code 2, a run that cannot go on in one and code 1."""
    try:
        code = app(args=["--help"] if len(sys.argv) < 2 else None, standalone_mode=False)
    except RunError as error:
        _end(str(error), 1)
    except UsageFault as error:
        command = error.ctx.command_path if error.ctx is not None else "attnrl"
        _end(f"{error.format_message().rstrip('.')}; see {command} --help", 2)
    except UserError as error:
        _end(str(error), 2)
    except KeyboardInterrupt:
        code = INTERRUPTED
    if code == INTERRUPTED:
        print("attnrl: interrupted", file=sys.stderr)
    sys.exit(code or 0)


def _end(message: str, code: int) -> NoReturn:
    # A path or a key may hold line ends, and what they said would look like another message.
    print(f"attnrl: {' '.join(message.splitlines())}", file=sys.stderr)
    sys.exit(code)
